//! qcow2, versions 2 and 3.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`; the limits are those that QEMU's driver enforces.

use super::luks;
use super::source::{Fields, Miss, Window};
use super::verdict::{FeatureKind, Findings, Format, Reason, RefKind};

/// First bytes of qcow and qcow2; the version follows.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Incompatible features (bit, name). Bit 2 is the external data file, bit 3 the compression type, bit 4 extended L2.
const INCOMPATIBLE: [(u32, &str); 5] =
    [(0, "dirty"), (1, "corrupt"), (2, "external-data-file"), (3, "compression-type"), (4, "extended-l2")];
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const COMPATIBLE: [(u32, &str); 1] = [(0, "lazy-refcounts")];
const AUTOCLEAR: [(u32, &str); 2] = [(0, "bitmaps"), (1, "data-file-raw")];

/// Bytes of the largest L1 table, refcount table and snapshot count that QEMU opens.
const MAX_L1: u64 = 32 << 20;
const MAX_REFTABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
/// Bitmaps, and bytes of their directory, that QEMU reads.
const MAX_BITMAPS: u32 = 65535;
const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;
/// Longest backing file name, in bytes.
const MAX_BACKING: u32 = 1023;

struct Header {
    fields: Fields,
    version: u32,
    cluster: u64,
    incompatible: u64,
    length: u64,
}

/// Reads and judges the header and its extensions.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Qcow2;
    let Some(header) = header(window, out)? else { return Ok(()) };
    features(&header, out);
    geometry(&header, window.len(), out);
    let format = extensions(window, &header, out)?;
    backing(window, &header, format, out)
}

/// The fixed part of the header, or nothing where it is of no use at all.
fn header(window: &mut Window<'_>, out: &mut Findings) -> Result<Option<Header>, Miss> {
    let mut fields = window.exact(0, 72)?;
    let version = fields.be32(4);
    out.seen.variant = Some(version.to_string());
    // Known whatever is wrong with the rest.
    out.seen.virtual_size = Some(fields.be64(24));
    if !matches!(version, 2 | 3) {
        out.inconsistent(format!("its qcow2 version {version} is unknown"));
        return Ok(None);
    }
    let bits = fields.be32(20);
    if !(9..=21).contains(&bits) {
        out.inconsistent(format!("its cluster bits are {bits}, not 9 to 21"));
        return Ok(None);
    }
    let cluster = 1u64 << bits;
    out.seen.cluster_size = Some(cluster);
    let (mut incompatible, mut length) = (0, 72);
    if version == 3 {
        fields = window.exact(0, 104)?;
        incompatible = fields.be64(72);
        length = u64::from(fields.be32(100));
        if length < 104 || length > cluster || length % 8 != 0 {
            out.inconsistent(format!("its header length of {length} bytes is impossible"));
            length = length.clamp(104, cluster);
        }
        if length > 104 {
            fields = window.exact(0, 112)?;
        }
    }
    Ok(Some(Header { fields, version, cluster, incompatible, length }))
}

fn features(header: &Header, out: &mut Findings) {
    let fields = &header.fields;
    let (compatible, autoclear) = match header.version {
        3 => (fields.be64(80), fields.be64(88)),
        _ => (0, 0),
    };
    let sets = [
        (FeatureKind::Incompatible, header.incompatible, &INCOMPATIBLE[..]),
        (FeatureKind::Compatible, compatible, &COMPATIBLE),
        (FeatureKind::Autoclear, autoclear, &AUTOCLEAR),
    ];
    for (kind, set, names) in sets {
        out.unknown(kind, set, names.iter().fold(0, |mask, (bit, _)| mask | 1 << bit));
        for (_, name) in names.iter().filter(|(bit, _)| set >> bit & 1 == 1) {
            out.feature(*name);
        }
    }
    if header.incompatible & 2 != 0 {
        out.inconsistent("it is marked corrupt");
    }
    if header.version == 3 {
        let kind = if header.length > 104 { fields.u8(104) } else { 0 };
        let name = match kind {
            0 => "zlib".to_owned(),
            1 => "zstd".to_owned(),
            other => {
                out.inconsistent(format!("its compression type {other} is unknown"));
                other.to_string()
            }
        };
        if (header.incompatible & COMPRESSION != 0) != (kind != 0) {
            out.inconsistent("its compression type and its feature bit contradict each other");
        }
        out.seen.compression = Some(name);
        let order = fields.be32(96);
        if order > 6 {
            out.inconsistent(format!("its refcount order is {order}, not 0 to 6"));
        }
    }
    let crypt = fields.be32(32);
    if crypt != 0 {
        let method = match crypt {
            1 => "aes".to_owned(),
            2 => "luks".to_owned(),
            other => format!("unknown method {other}"),
        };
        out.seen.encryption = Some(method.clone());
        out.reason(Reason::Encrypted(method));
    }
    let snapshots = fields.be32(60);
    out.seen.snapshots = snapshots;
    if snapshots > MAX_SNAPSHOTS {
        out.inconsistent(format!("it claims {snapshots} internal snapshots"));
    } else if snapshots > 0 {
        out.reason(Reason::Snapshots(snapshots));
    }
}

/// The sizes and places of the tables.
fn geometry(header: &Header, len: Option<u64>, out: &mut Findings) {
    let (fields, cluster) = (&header.fields, header.cluster);
    let size = fields.be64(24);
    let extended = header.incompatible & EXTENDED_L2 != 0;
    if extended && cluster < 1 << 14 {
        out.inconsistent("its clusters are too small for extended L2 entries");
    }
    if i64::try_from(size).is_err() {
        out.inconsistent(format!("its virtual size of {size} bytes is impossible"));
    }
    let entries = cluster / if extended { 16 } else { 8 };
    // At most 2^42 bytes per L1 entry: no overflow.
    let needed = size.div_ceil(cluster * entries);
    let l1 = u64::from(fields.be32(36));
    let l1_offset = fields.be64(40);
    if needed * 8 > MAX_L1 || l1 * 8 > MAX_L1 {
        out.inconsistent("its L1 table is larger than any that can be opened");
    } else if l1 < needed {
        out.inconsistent(format!("its L1 table has {l1} entries where its virtual size needs {needed}"));
    }
    table("L1 table", l1_offset, l1 * 8, cluster, len, out);
    let refcount = u64::from(fields.be32(56)) * cluster;
    if refcount > MAX_REFTABLE {
        out.inconsistent("its refcount table is larger than any that can be opened");
    }
    if refcount == 0 {
        out.inconsistent("it has no refcount table");
    }
    // QEMU writes only the used part of the table's last cluster.
    table("refcount table", fields.be64(48), refcount.min(8), cluster, len, out);
    let snapshots = fields.be32(60);
    if snapshots > 0 {
        table("snapshot table", fields.be64(64), u64::from(snapshots.min(MAX_SNAPSHOTS)) * 40, 8, len, out);
    }
}

/// A table lies at a multiple of `unit`, behind the header and inside the file.
fn table(name: &str, offset: u64, bytes: u64, unit: u64, len: Option<u64>, out: &mut Findings) {
    if bytes == 0 {
        return;
    }
    let end = offset.checked_add(bytes);
    if !offset.is_multiple_of(unit) || offset == 0 || end.is_none_or(|end| i64::try_from(end).is_err()) {
        out.inconsistent(format!("its {name} lies at the impossible offset {offset}"));
    } else if end.zip(len).is_some_and(|(end, len)| end > len) {
        out.inconsistent(format!("its {name} lies outside the file"));
    }
}

/// Walks the header extensions; answers the declared format of the backing file.
fn extensions(window: &mut Window<'_>, header: &Header, out: &mut Findings) -> Result<Option<String>, Miss> {
    let backing = header.fields.be64(8);
    // A nonsense offset is reported with the backing file.
    let end = if backing > header.length && backing <= header.cluster { backing } else { header.cluster };
    let total = window.len();
    let mut at = header.length;
    let mut format = None;
    let mut data_file = None;
    while at + 8 <= end {
        let intro = match window.exact(at, 8) {
            Ok(intro) => intro,
            // A version 2 header may fill a file to its last byte.
            Err(Miss::End(_)) if at == header.length => break,
            Err(miss) => return Err(miss),
        };
        let (kind, len) = (intro.be32(0), u64::from(intro.be32(4)));
        at += 8;
        if kind == 0 {
            break;
        }
        if len > end - at {
            out.inconsistent(format!("its header extension {kind:#010x} is longer than the header"));
            break;
        }
        let text = |window: &mut Window<'_>, most: u64| -> Result<String, Miss> {
            let n = usize::try_from(len.min(most)).unwrap_or(0);
            Ok(String::from_utf8_lossy(&window.exact(at, n)?.0).into_owned())
        };
        match kind {
            0xE279_2ACA => format = Some(text(window, 64)?),
            0x4441_5441 => data_file = Some(text(window, 4096)?),
            0x6803_F857 => out.feature("feature-name-table"),
            0x2385_2875 => bitmaps(&window.exact(at, usize::try_from(len.min(24)).unwrap_or(0))?, header, total, out),
            0x0537_BE77 => {
                let fields = window.exact(at, usize::try_from(len.min(16)).unwrap_or(0))?;
                encryption(window, &fields, header, out)?;
            }
            // Whoever does not know an extension may ignore it. There are as many as a cluster holds.
            other if out.seen.unknown_features.len() < 64 => {
                out.seen.unknown_features.push(format!("extension-{other:#010x}"));
            }
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    if header.incompatible & DATA_FILE != 0 || data_file.is_some() {
        out.refer(RefKind::DataFile, data_file.as_deref().unwrap_or(""), None);
    }
    Ok(format)
}

/// The bitmaps extension: how many there are, and where their directory lies. It counts only with its autoclear bit.
fn bitmaps(fields: &Fields, header: &Header, len: Option<u64>, out: &mut Findings) {
    out.feature("persistent-bitmaps");
    if header.version < 3 || header.fields.be64(88) & 1 == 0 {
        return;
    }
    let count = fields.be32(0);
    out.seen.bitmaps = count;
    let (size, offset) = (fields.be64(8), fields.be64(16));
    if fields.0.len() < 24 || !(1..=MAX_BITMAPS).contains(&count) || size > MAX_BITMAP_DIRECTORY {
        out.inconsistent(format!("its {count} bitmaps with a directory of {size} bytes are impossible"));
    } else {
        table("bitmap directory", offset, size, header.cluster, len, out);
    }
}

/// The encryption header extension: a LUKS header that lies in clusters of its own.
fn encryption(window: &mut Window<'_>, fields: &Fields, header: &Header, out: &mut Findings) -> Result<(), Miss> {
    out.feature("encryption-header");
    if header.fields.be32(32) != 2 {
        out.inconsistent("it has an encryption header but is not encrypted with it");
        return Ok(());
    }
    let (offset, size) = (fields.be64(0), fields.be64(8));
    if fields.0.len() < 16 || size == 0 {
        out.inconsistent("its encryption header has no place");
        return Ok(());
    }
    table("encryption header", offset, size, header.cluster, window.len(), out);
    // For people only, so that a part that is not at hand does not matter.
    if let Some(cipher) = luks::cipher(&window.up_to(offset, luks::FIXED)?) {
        out.seen.encryption = Some(format!("luks, {cipher}"));
    }
    Ok(())
}

fn backing(window: &mut Window<'_>, header: &Header, format: Option<String>, out: &mut Findings) -> Result<(), Miss> {
    let (offset, len) = (header.fields.be64(8), header.fields.be32(16));
    if offset == 0 && len == 0 {
        return Ok(());
    }
    // What cannot be read is a reference all the same: no program is to find out what it makes of it.
    if len > MAX_BACKING || offset > header.cluster || header.cluster - offset < u64::from(len) || offset < 72 {
        out.refer(RefKind::BackingFile, "", format);
        out.inconsistent("its backing file name lies outside the header");
        return Ok(());
    }
    match window.exact(offset, usize::try_from(len).unwrap_or(0)) {
        Ok(name) => {
            out.refer(RefKind::BackingFile, &String::from_utf8_lossy(&name.0), format);
            Ok(())
        }
        Err(miss) => {
            out.refer(RefKind::BackingFile, "", format);
            Err(miss)
        }
    }
}
