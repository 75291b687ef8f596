//! Parallels, old and extended. Source: QEMU's `docs/interop/parallels.rst`.

use super::source::{Fields, Miss, Window};
use super::verdict::{Findings, Format};

const OLD: &[u8] = b"WithoutFreeSpace";
const EXTENDED: &[u8] = b"WithouFreSpacExt";

/// Magic of a format extension, and of the one feature that it is known to hold.
const EXTENSION: u64 = 0xAB23_4CEF_23DC_EA87;
const DIRTY_BITMAP: u64 = 0x2038_5FAE_252C_B34A;
/// Bytes of the extension that are looked into.
const MAX_EXTENSION: u64 = 64 << 10;

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
    match fields.le64(56) {
        0 => {}
        sector => extension(window, sector.saturating_mul(512), tracks * 512, out)?,
    }
    Ok(())
}

/// The features of the format extension, one cluster behind its header of 24 bytes. It may lie anywhere in the file: a
/// part that is not at hand is judged when the whole image is.
fn extension(window: &mut Window<'_>, at: u64, cluster: u64, out: &mut Findings) -> Result<(), Miss> {
    out.feature("format-extension");
    if window.len().is_some_and(|len| at >= len) {
        out.inconsistent("its format extension lies outside the file");
        return Ok(());
    }
    let fields = Fields(window.up_to(at, usize::try_from(cluster.min(MAX_EXTENSION)).unwrap_or(0))?);
    if fields.0.len() >= 24 && fields.le64(0) != EXTENSION {
        out.inconsistent("its format extension is damaged");
        return Ok(());
    }
    let mut next = 24;
    while next + 24 <= fields.0.len() {
        match fields.le64(next) {
            0 => break,
            DIRTY_BITMAP => out.feature("dirty-bitmap"),
            other if fields.le64(next + 8) & 1 == 1 => {
                out.inconsistent(format!("it has a feature {other:#x} that must be understood and is not known"));
            }
            other if out.seen.unknown_features.len() < 64 => {
                out.seen.unknown_features.push(format!("extension-{other:#018x}"));
            }
            _ => {}
        }
        let data = usize::try_from(fields.le32(next + 16)).unwrap_or(usize::MAX);
        next = next.saturating_add(24).saturating_add(data).saturating_add(7) / 8 * 8;
    }
    Ok(())
}
