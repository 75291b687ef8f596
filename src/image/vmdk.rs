//! VMDK: sparse images with a binary header, and text descriptors that name other files.
//!
//! Sources: `VMware` "Virtual Disk Format 5.0"; QEMU's `block/vmdk.c` for what a reader follows: with a capacity of 0 it
//! turns to the embedded text descriptor and opens the files named there, with a directory "at the end" it believes a
//! second header at the end of the file, and it looks for a parent in the sectors after the first whatever the header
//! says of the descriptor's place.

use std::borrow::Cow;

use super::source::{Fields, Miss, Window};
use super::verdict::{Findings, Format, RefKind};

const SPARSE: &[u8] = b"KDMV";
const COWD: &[u8] = b"COWD";
/// Mark for "the grain directory's place stands in the footer".
const AT_END: u64 = u64::MAX;
/// Longest descriptor that is looked into: 20 sectors as `VMware` and QEMU write, and as much again.
const MAX_DESCRIPTOR: u64 = 64 << 10;
/// Where QEMU looks for a parent in every image with a binary header, and how far.
const PARENT_AT: u64 = 512;
const PARENT_LEN: usize = 20 * 512;

/// Whether these first bytes are a VMDK: a binary magic, or a text descriptor as QEMU's probe accepts it.
pub(super) fn is_vmdk(start: &[u8]) -> bool {
    if start.starts_with(SPARSE) || start.starts_with(COWD) {
        return true;
    }
    if start.get(..21).is_some_and(|first| first.eq_ignore_ascii_case(b"# Disk DescriptorFile")) {
        return true;
    }
    // Comments and blank lines, then `version=1`. Ours is laxer than the probe: more is refused, not less. Only comments
    // are read to their end; most disks begin with something else, or with nothing.
    let mut rest = start.trim_ascii_start();
    for _ in 0..1000 {
        if !rest.starts_with(b"#") {
            let line = rest.iter().take_while(|&&byte| byte != b'\n');
            return line.skip(12).all(u8::is_ascii_whitespace)
                && rest.get(..8).is_some_and(|word| word.eq_ignore_ascii_case(b"version="));
        }
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else { return false };
        rest = rest[end..].trim_ascii_start();
    }
    false
}

/// Reads and judges the header and the descriptor.
pub(super) fn read(window: &mut Window<'_>, start: &[u8], out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Vmdk;
    if start.starts_with(COWD) {
        let fields = window.exact(0, 24)?;
        out.seen.variant = Some("vmfsSparse".to_owned());
        out.seen.virtual_size = Some(u64::from(fields.le32(12)) * 512);
        out.refuse("it is a part of a VMDK of several files");
        return Ok(());
    }
    if !start.starts_with(SPARSE) {
        let descriptor = Descriptor::parse(&String::from_utf8_lossy(start));
        out.refuse("it is a VMDK descriptor that names other files");
        out.seen.virtual_size =
            descriptor.extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.sectors.checked_mul(512)?));
        descriptor.report(out, true);
        return Ok(());
    }
    let fields = window.exact(0, 512)?;
    header(&fields, out);
    descriptor(window, &fields, out)?;
    if fields.le64(56) == AT_END {
        footer(window, &fields, out)?;
    }
    Ok(())
}

fn header(fields: &Fields, out: &mut Findings) {
    let (version, capacity, grain) = (fields.le32(4), fields.le64(12), fields.le64(20));
    out.seen.virtual_size = capacity.checked_mul(512);
    out.seen.cluster_size = grain.checked_mul(512);
    if !(1..=3).contains(&version) {
        out.inconsistent(format!("its VMDK version {version} is unknown"));
    }
    if capacity == 0 {
        out.refuse("its capacity is 0, which sends readers to the files that its descriptor names");
    }
    if !grain.is_power_of_two() || !(8..=128).contains(&grain) {
        out.inconsistent(format!("its grain size of {grain} sectors is impossible"));
    }
    let entries = fields.le32(44);
    if entries == 0 || entries > 512 {
        out.inconsistent(format!("its grain tables have {entries} entries, not 1 to 512"));
    } else if grain != 0 {
        // As QEMU: at most 32 MiB of L1 table, four bytes an entry.
        let directory = u128::from(capacity) / (u128::from(entries) * u128::from(grain));
        if directory > (32 << 20) / 4 {
            out.inconsistent("its grain directory is larger than any that can be opened");
        }
    }
    if i64::try_from(u128::from(capacity) * 512).is_err() {
        out.inconsistent(format!("its capacity of {capacity} sectors is impossible"));
    }
    match fields.le16(77) {
        0 => {}
        1 => out.seen.compression = Some("deflate".to_owned()),
        other => out.inconsistent(format!("its compression algorithm {other} is unknown")),
    }
    let flags = fields.le32(8);
    for (bit, name) in [(0, "newline-test"), (1, "redundant-directory"), (16, "compressed"), (17, "markers")] {
        if flags >> bit & 1 == 1 {
            out.feature(name);
        }
    }
    if flags & 1 != 0 && fields.bytes(73, 4) != b"\n \r\n" {
        out.inconsistent("its line ends were damaged in a text transfer");
    }
}

/// The header at the end takes precedence over the one at the start, so that it must say the same.
fn footer(window: &mut Window<'_>, first: &Fields, out: &mut Findings) -> Result<(), Miss> {
    out.feature("footer");
    let Some(len) = window.len() else { return Err(Miss::NotHere(u64::MAX)) };
    // Marker, header, end of stream; a reader rounds the length of the file down to sectors.
    let Some(at) = (len - len % 512).checked_sub(1536) else {
        out.inconsistent("it is too short for its footer");
        return Ok(());
    };
    // The footer of a stream comes last: only whoever has the whole image can judge it.
    let tail = window.exact(at, 1024)?;
    let same = |at: usize, len: usize| tail.bytes(512 + at, len) == first.bytes(at, len);
    // Everything but the place of the directory.
    if tail.le32(12) != 3 || !same(0, 56) || !same(77, 2) || tail.le64(512 + 56) == AT_END {
        out.inconsistent("its footer contradicts its header");
    }
    Ok(())
}

/// The embedded descriptor, at the place that the header names and at the one where readers look for a parent.
fn descriptor(window: &mut Window<'_>, fields: &Fields, out: &mut Findings) -> Result<(), Miss> {
    let (at, len) = (fields.le64(28).saturating_mul(512), fields.le64(36).saturating_mul(512));
    let fixed = window.all_up_to(PARENT_AT, PARENT_LEN)?;
    if at == 0 || len == 0 {
        out.refuse("it has no descriptor of its own: it is a part of a VMDK of several files");
    } else if len > MAX_DESCRIPTOR {
        out.inconsistent(format!("its descriptor of {len} bytes is longer than any honest one"));
    } else {
        // The last sectors may be cut off where nothing follows.
        let most = usize::try_from(len).unwrap_or(0);
        let bytes = window.all_up_to(at, most)?;
        let descriptor = Descriptor::parse(&text(&bytes));
        out.seen.variant.clone_from(&descriptor.create_type);
        let kind = descriptor.create_type.as_deref().unwrap_or("");
        if !["monolithicSparse", "streamOptimized"].iter().any(|single| single.eq_ignore_ascii_case(kind)) {
            out.refuse(format!("its type '{}' is not one of a single file", kind.escape_debug()));
        }
        if descriptor.extents.len() != 1 || descriptor.extents.iter().any(|extent| extent.kind != "SPARSE") {
            out.refuse("its descriptor does not name exactly one sparse extent, itself");
            descriptor.report(out, true);
        } else {
            descriptor.report(out, false);
        }
    }
    if at != PARENT_AT {
        Descriptor::parse(&text(&fixed)).report(out, false);
    }
    // Whatever our parser makes of the lines: readers search for the words.
    let hint = b"parentFileNameHint";
    if out.seen.references.is_empty() && fixed.windows(hint.len()).any(|part| part.eq_ignore_ascii_case(hint)) {
        out.refer(RefKind::Parent, "", None);
    }
    Ok(())
}

/// The text up to the first NUL. Names may be in another encoding than UTF-8; what follows them counts all the same.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

struct Extent {
    sectors: u64,
    kind: String,
    name: String,
}

/// The lines of a descriptor that matter.
#[derive(Default)]
struct Descriptor {
    create_type: Option<String>,
    parent_cid: Option<String>,
    parent: Option<String>,
    extents: Vec<Extent>,
}

impl Descriptor {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines().map(str::trim) {
            let access = line.split_whitespace().next().unwrap_or("");
            if ["RW", "RDONLY", "NOACCESS"].contains(&access.to_ascii_uppercase().as_str()) {
                // The cap is far above any honest count; one too many is refused anyway.
                if found.extents.len() < 64 {
                    found.extents.push(extent(line));
                }
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"').to_owned();
            match key.trim().to_ascii_lowercase().as_str() {
                "createtype" => found.create_type = Some(value),
                "parentcid" => found.parent_cid = Some(value),
                "parentfilenamehint" => found.parent = Some(value),
                _ => {}
            }
        }
        found
    }

    /// Notes the parent, and the extents where they are not the image itself.
    fn report(&self, out: &mut Findings, extents: bool) {
        if out.seen.variant.is_none() {
            out.seen.variant.clone_from(&self.create_type);
        }
        if let Some(parent) = &self.parent {
            out.refer(RefKind::Parent, parent, None);
        } else if self.parent_cid.as_deref().is_some_and(|cid| !cid.eq_ignore_ascii_case("ffffffff")) {
            out.refer(RefKind::Parent, "", None);
        }
        for extent in self.extents.iter().filter(|_| extents) {
            out.refer(RefKind::Extent, &extent.name, Some(extent.kind.to_ascii_lowercase()));
        }
    }
}

/// `RW 2048 FLAT "name" 0`
fn extent(line: &str) -> Extent {
    let mut words = line.split_whitespace().skip(1);
    let sectors = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let kind = words.next().unwrap_or("").to_ascii_uppercase();
    let name = match (line.find('"'), line.rfind('"')) {
        (Some(first), Some(last)) if first < last => line[first + 1..last].to_owned(),
        _ => words.next().unwrap_or("").to_owned(),
    };
    Extent { sectors, kind, name }
}
