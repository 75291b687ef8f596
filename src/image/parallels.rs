//! Parallels, old and extended. Source: QEMU's `docs/interop/parallels.rst`.

use super::source::{Miss, Window};
use super::verdict::{Findings, Format};

const OLD: &[u8] = b"WithoutFreeSpace";
const EXTENDED: &[u8] = b"WithouFreSpacExt";

/// Whether these first bytes are one of the two magics.
pub(super) fn is_parallels(start: &[u8]) -> bool {
    start.starts_with(OLD) || start.starts_with(EXTENDED)
}

/// Reads and judges the header.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Parallels;
    let fields = window.exact(0, 64)?;
    let old = fields.bytes(0, 16) == OLD;
    out.seen.variant = Some(if old { "WithoutFreeSpace" } else { "WithouFreSpacExt" }.to_owned());
    let version = fields.le32(16);
    if version != 2 {
        out.inconsistent(format!("its Parallels version {version} is unknown"));
    }
    let (tracks, entries) = (u64::from(fields.le32(28)), u64::from(fields.le32(32)));
    // The old kind has 32 bits for it, and rubbish behind.
    let sectors = if old { u64::from(fields.le32(36)) } else { fields.le64(36) };
    out.seen.virtual_size = sectors.checked_mul(512);
    out.seen.cluster_size = Some(tracks * 512);
    if tracks == 0 || tracks > i32::MAX as u64 / 513 {
        out.inconsistent(format!("its cluster size of {tracks} sectors is impossible"));
    } else if entries > i32::MAX as u64 / 4 || u128::from(entries) * u128::from(tracks) < u128::from(sectors) {
        out.inconsistent(format!("its table of {entries} entries does not hold its {sectors} sectors"));
    }
    if sectors > i64::MAX as u64 / 512 {
        out.inconsistent(format!("its size of {sectors} sectors is impossible"));
    }
    if window.len().is_some_and(|len| 64 + entries * 4 > len) {
        out.inconsistent("its table lies outside the file");
    }
    if fields.le32(44) == 0x746F_6E59 {
        out.feature("in-use");
    }
    if fields.le64(56) != 0 {
        out.feature("format-extension");
    }
    Ok(())
}
