//! VHD ("Virtual PC"): fixed, dynamic and differencing.
//!
//! Sources: Microsoft "Virtual Hard Disk Image Format Specification"; QEMU's `block/vpc.c` for which creators mean the
//! size field and which the geometry.

use super::source::{Fields, Miss, Window};
use super::verdict::{Findings, Format, RefKind};

/// First bytes of a footer, and of the copy of it that dynamic images begin with.
pub(super) const COOKIE: &[u8] = b"conectix";
const FOOTER: usize = 512;
/// Sectors of the largest geometry; beyond it the size field counts.
const MAX_GEOMETRY: u64 = 65535 * 16 * 255;
/// Creators whose size field is the size of the disk; all others mean the geometry.
const SIZE_COUNTS: [&[u8]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];

/// Reads and judges an image that begins with a copy of its footer.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Vpc;
    let footer = window.exact(0, FOOTER)?;
    judge(&footer, out);
    match footer.be32(60) {
        2 => out.seen.variant = Some("fixed".to_owned()),
        kind @ (3 | 4) => {
            out.seen.variant = Some(if kind == 3 { "dynamic" } else { "differencing" }.to_owned());
            if kind == 4 {
                // Noted now: what follows may be missing.
                out.refer(RefKind::Parent, "", None);
            }
            dynamic(window, &footer, out)?;
        }
        other => out.inconsistent(format!("its disk type {other} is unknown")),
    }
    Ok(())
}

/// Reads an image of fixed size, which only its last 512 bytes give away; `false` where this is none.
///
/// `qemu-img` does not see these either and calls them raw. Only a footer whose checksum holds is believed, because any
/// raw disk might end with the cookie.
pub(super) fn read_fixed(window: &mut Window<'_>, out: &mut Findings) -> Result<bool, Miss> {
    let Some(at) = window.len().and_then(|len| len.checked_sub(FOOTER as u64)) else { return Ok(false) };
    let bytes = window.up_to(at, FOOTER)?;
    if bytes.len() < FOOTER || !bytes.starts_with(COOKIE) {
        return Ok(false);
    }
    let footer = Fields(bytes);
    if footer.be32(60) != 2 || footer.be32(64) != checksum(&footer, 64) || footer.be64(48) > at {
        return Ok(false);
    }
    out.seen.format = Format::Vpc;
    out.seen.variant = Some("fixed".to_owned());
    judge(&footer, out);
    Ok(true)
}

fn judge(footer: &Fields, out: &mut Findings) {
    let geometry = u64::from(footer.be16(56)) * u64::from(footer.u8(58)) * u64::from(footer.u8(59));
    let field = footer.be64(48);
    let size = if geometry == MAX_GEOMETRY || SIZE_COUNTS.contains(&footer.bytes(28, 4)) {
        field / 512 * 512
    } else {
        geometry * 512
    };
    out.seen.virtual_size = Some(size);
    if footer.be32(64) != checksum(footer, 64) {
        out.inconsistent("the checksum of its footer is wrong");
    }
    if footer.be32(12) >> 16 != 1 {
        out.inconsistent(format!("its VHD version {:#x} is unknown", footer.be32(12)));
    }
    // The format ends at 2040 GiB; QEMU writes up to 2^32 sectors.
    if field > 1 << 41 || size > 1 << 41 {
        out.inconsistent(format!("its virtual size of {field} bytes is impossible"));
    }
}

fn dynamic(window: &mut Window<'_>, footer: &Fields, out: &mut Findings) -> Result<(), Miss> {
    let at = footer.be64(16);
    if at < FOOTER as u64 || at > 1 << 20 {
        out.inconsistent(format!("its dynamic header lies at the impossible offset {at}"));
        return Ok(());
    }
    let header = window.exact(at, 1024)?;
    if header.bytes(0, 8) != b"cxsparse" {
        out.inconsistent("its dynamic header is damaged");
        return Ok(());
    }
    if header.be32(36) != checksum(&header, 36) {
        out.inconsistent("the checksum of its dynamic header is wrong");
    }
    let (table, entries, block) = (header.be64(16), u64::from(header.be32(28)), u64::from(header.be32(32)));
    out.seen.cluster_size = Some(block);
    if !block.is_power_of_two() || block < 512 {
        out.inconsistent(format!("its block size of {block} bytes is impossible"));
    } else if entries * block < out.seen.virtual_size.unwrap_or(0) {
        out.inconsistent(format!("its block table of {entries} entries is too small for its virtual size"));
    }
    let end = table.checked_add(entries * 4);
    if end.is_none_or(|end| window.len().is_some_and(|len| end > len)) {
        out.inconsistent("its block table lies outside the file");
    }
    let name = header.bytes(64, 512);
    let locators = header.bytes(576, 8 * 24);
    if footer.be32(60) == 4 {
        let units = name.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair));
        let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        out.name_last(&String::from_utf16_lossy(&units));
    } else if locators.iter().any(|&byte| byte != 0) {
        out.refer(RefKind::Parent, "", None);
    }
    Ok(())
}

/// One's complement of the sum of all bytes but the checksum's own four, at `own`.
fn checksum(fields: &Fields, own: usize) -> u32 {
    let sum = fields.0.iter().enumerate().filter(|(at, _)| !(own..own + 4).contains(at));
    !sum.fold(0u32, |sum, (_, &byte)| sum.wrapping_add(u32::from(byte)))
}
