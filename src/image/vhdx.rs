//! VHDX. Source: Microsoft [MS-VHDX], "Virtual Hard Disk v2 File Format".

use super::source::{Fields, Miss, Window};
use super::verdict::{Findings, Format, RefKind};

pub(super) const MAGIC: &[u8] = b"vhdxfile";

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];

/// GUIDs as they lie in the file.
type Guid = [u8; 16];
const BAT: Guid = guid(0x2DC2_7766, 0xF623, 0x4200, 0x9D64_115E_9BFD_4A08);
const METADATA: Guid = guid(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE_575F_050F_886E);
const PARAMETERS: Guid = guid(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6_33F0_AA44_E76B);
const SIZE: Guid = guid(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211_5DBE_D83B_F4B8);
const PAGE83: Guid = guid(0xBECA_12AB, 0xB2E6, 0x4523, 0x93EF_C309_E000_C746);
const LOGICAL: Guid = guid(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47_F233_A8FA_AB5F);
const PHYSICAL: Guid = guid(0xCDA3_48C7, 0x445D, 0x4471, 0x9CC9_E988_5251_C556);
const PARENT: Guid = guid(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7_D3D8_4834_AB0C);

/// Bytes of a parent locator that are looked into.
const MAX_LOCATOR: u32 = 64 << 10;

/// Largest size the format allows: 64 TiB.
const MAX_SIZE: u64 = 64 << 40;

/// Reads the headers, the region table and the metadata.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Vhdx;
    header(window, out)?;
    let Some((at, len)) = region(window, out)? else { return Ok(()) };
    metadata(window, at, len, out)
}

/// The current header: the valid one with the higher sequence number.
fn header(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    let mut best: Option<Fields> = None;
    for at in HEADERS {
        let fields = window.exact(at, 4096)?;
        let newer = best.as_ref().is_none_or(|best| fields.le64(8) > best.le64(8));
        if fields.bytes(0, 4) == b"head" && fields.le32(4) == checksum(&fields.0) && newer {
            best = Some(fields);
        }
    }
    match best {
        None => out.inconsistent("neither of its headers is valid"),
        Some(fields) => {
            if fields.le16(66) != 1 {
                out.inconsistent(format!("its VHDX version {} is unknown", fields.le16(66)));
            }
            // What the header says may change once the log is replayed.
            if fields.bytes(48, 16) != [0; 16] {
                out.inconsistent("its log has not been replayed");
            }
        }
    }
    Ok(())
}

/// Place and length of the metadata region.
fn region(window: &mut Window<'_>, out: &mut Findings) -> Result<Option<(u64, u32)>, Miss> {
    for at in REGIONS {
        let table = window.exact(at, 64 << 10)?;
        let count = table.le32(8);
        if table.bytes(0, 4) != b"regi" || table.le32(4) != checksum(&table.0) || count > 2047 {
            continue;
        }
        let mut metadata = None;
        let mut unknown = false;
        for n in 0..usize::try_from(count).unwrap_or(0) {
            let entry = 16 + n * 32;
            let id = table.bytes(entry, 16);
            if id == METADATA {
                metadata = Some((table.le64(entry + 16), table.le32(entry + 24)));
            } else if id != BAT && table.le32(entry + 28) & 1 == 1 {
                unknown = true;
            }
        }
        if unknown {
            out.inconsistent("it has a region that must be understood and is not known");
        }
        if metadata.is_none() {
            out.inconsistent("it has no metadata region");
        }
        return Ok(metadata);
    }
    out.inconsistent("neither of its region tables is valid");
    Ok(None)
}

fn metadata(window: &mut Window<'_>, at: u64, len: u32, out: &mut Findings) -> Result<(), Miss> {
    if at < 1 << 20 || !at.is_multiple_of(1 << 20) || len < 64 << 10 {
        out.inconsistent("its metadata lie at an impossible place");
        return Ok(());
    }
    let table = window.exact(at, 64 << 10)?;
    let count = usize::from(table.le16(10));
    if table.bytes(0, 8) != b"metadata" || count > 2047 {
        out.inconsistent("its metadata are damaged");
        return Ok(());
    }
    let (mut parent, mut name) = (false, String::new());
    for n in 0..count {
        let entry = 32 + n * 32;
        let (offset, size, flags) = (table.le32(entry + 16), table.le32(entry + 20), table.le32(entry + 24));
        let id = table.bytes(entry, 16);
        if id == PARENT {
            parent = true;
            let place = at.saturating_add(u64::from(offset));
            name = locator(&window.up_to(place, usize::try_from(size.min(MAX_LOCATOR)).unwrap_or(0))?);
            continue;
        }
        if id == PAGE83 || id == PHYSICAL {
            continue;
        }
        if id != PARAMETERS && id != SIZE && id != LOGICAL {
            if flags & 4 != 0 {
                out.inconsistent("it has a metadata item that must be understood and is not known");
            }
            continue;
        }
        if offset < 64 << 10 || offset.checked_add(size).is_none_or(|end| end > len) {
            out.inconsistent("its metadata items lie outside their region");
            continue;
        }
        let item = window.exact(at + u64::from(offset), 8)?;
        if id == SIZE {
            out.seen.virtual_size = Some(item.le64(0));
            if item.le64(0) > MAX_SIZE || item.le64(0) == 0 || item.le64(0) % 512 != 0 {
                out.inconsistent(format!("its virtual size of {} bytes is impossible", item.le64(0)));
            }
        } else if id == PARAMETERS {
            let block = u64::from(item.le32(0));
            out.seen.cluster_size = Some(block);
            let fixed = item.le32(4) & 1 == 1;
            out.seen.variant = Some(if fixed { "fixed" } else { "dynamic" }.to_owned());
            parent |= item.le32(4) & 2 != 0;
            if !block.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block) {
                out.inconsistent(format!("its block size of {block} bytes is impossible"));
            }
        } else if ![512, 4096].contains(&item.le32(0)) {
            out.inconsistent(format!("its sector size of {} bytes is impossible", item.le32(0)));
        }
    }
    if parent {
        out.seen.variant = Some("differencing".to_owned());
        out.refer(RefKind::Parent, &name, None);
    }
    if out.seen.virtual_size.is_none() || out.seen.cluster_size.is_none() {
        out.inconsistent("its metadata do not give its size");
    }
    Ok(())
}

/// The parent's path, as a parent locator gives it ([MS-VHDX] §2.6.2.6.2): of its keys the most telling one. What lies
/// outside of the bytes is left out: any answer refuses the image.
fn locator(bytes: &[u8]) -> String {
    let fields = Fields(bytes.to_vec());
    let text = |at: u32, len: u16| {
        let units = fields.bytes(usize::try_from(at).unwrap_or(usize::MAX), usize::from(len)).as_chunks::<2>().0.iter();
        String::from_utf16_lossy(&units.map(|pair| u16::from_le_bytes(*pair)).collect::<Vec<_>>())
    };
    let entries = (0..usize::from(fields.le16(18)).min(64)).map(|n| 20 + n * 12);
    let pairs: Vec<(String, String)> = entries
        .map(|at| {
            let key = text(fields.le32(at), fields.le16(at + 8));
            (key, text(fields.le32(at + 4), fields.le16(at + 10)))
        })
        .collect();
    let keys = ["absolute_win32_path", "relative_path", "volume_path", "parent_linkage"];
    let found = keys.iter().find_map(|key| pairs.iter().find(|(name, _)| name == key));
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

const fn guid(a: u32, b: u16, c: u16, d: u64) -> Guid {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// CRC-32C of a structure whose own checksum stands at bytes 4 to 8 and counts as zero.
fn checksum(bytes: &[u8]) -> u32 {
    // A fuzzer cannot guess sums: there every one is right.
    if cfg!(fuzzing) {
        return Fields(bytes.get(..8).unwrap_or_default().to_vec()).le32(4);
    }
    let mut crc = u32::MAX;
    for (at, &byte) in bytes.iter().enumerate() {
        let byte = if (4..8).contains(&at) { 0 } else { byte };
        crc = crc >> 8 ^ CRC[usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

static CRC: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut n = 0;
    while n < 256 {
        // The index is below 256.
        #[allow(clippy::cast_possible_truncation)]
        let mut value = n as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0x82F6_3B78 } else { value >> 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};
