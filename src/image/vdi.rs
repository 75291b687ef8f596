//! VDI. Source: QEMU's `block/vdi.c` and the `VDICore.h` of `VirtualBox` (header layout, image types).

use super::source::{Fields, Miss, Window};
use super::verdict::{Findings, Format, RefKind};

const SIGNATURE: [u8; 4] = 0xBEDA_107F_u32.to_le_bytes();
/// QEMU opens at most this many blocks.
const MAX_BLOCKS: u64 = 0x1FFF_FFFF;

/// Whether the signature is where VDI has it, behind 64 bytes of text.
pub(super) fn is_vdi(start: &[u8]) -> bool {
    start.get(64..68) == Some(&SIGNATURE)
}

/// Reads and judges the header.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Vdi;
    let fields = window.exact(0, 512)?;
    let version = fields.le32(68);
    if version != 0x0001_0001 {
        out.inconsistent(format!("its VDI version {version:#x} is unknown"));
    }
    let (size, block, blocks) = (fields.le64(368), u64::from(fields.le32(376)), u64::from(fields.le32(384)));
    // Rounded up as QEMU does for images of other makers.
    out.seen.virtual_size = Some(size.checked_next_multiple_of(512).unwrap_or(size));
    out.seen.cluster_size = Some(block);
    match fields.le32(76) {
        1 => out.seen.variant = Some("dynamic".to_owned()),
        2 => out.seen.variant = Some("static".to_owned()),
        3 | 4 => {
            out.seen.variant = Some("differencing".to_owned());
            out.refer(RefKind::Parent, &parent(&fields), None);
        }
        other => out.inconsistent(format!("its image type {other} is unknown")),
    }
    if fields.bytes(424, 32).iter().any(|&byte| byte != 0) && out.seen.references.is_empty() {
        out.refer(RefKind::Parent, &parent(&fields), None);
    }
    let sector = fields.le32(360);
    if sector != 512 {
        out.inconsistent(format!("its sector size of {sector} bytes is impossible"));
    }
    if !block.is_power_of_two() || !(512..=256 << 20).contains(&block) {
        out.inconsistent(format!("its block size of {block} bytes is impossible"));
    } else if blocks > MAX_BLOCKS || i64::try_from(size).is_err() || size > blocks * block {
        out.inconsistent(format!("its {blocks} blocks do not hold its virtual size of {size} bytes"));
    }
    let (map, data) = (u64::from(fields.le32(340)), u64::from(fields.le32(344)));
    if map < 512 || map % 512 != 0 || data % 512 != 0 || data < map + blocks * 4 {
        out.inconsistent("its block map and its data overlap");
    } else if window.len().is_some_and(|len| map + blocks * 4 > len) {
        out.inconsistent("its block map lies outside the file");
    }
    Ok(())
}

/// The parent is named by the UUID that it has, as `VirtualBox` shows it: the first three parts are little-endian.
fn parent(fields: &Fields) -> String {
    let id = fields.bytes(424, 16);
    if id.iter().all(|&byte| byte == 0) {
        return String::new();
    }
    let tail: String = id[8..].iter().enumerate().fold(String::new(), |text, (n, byte)| {
        let dash = if n == 0 || n == 2 { "-" } else { "" };
        format!("{text}{dash}{byte:02x}")
    });
    format!("uuid:{:08x}-{:04x}-{:04x}{tail}", fields.le32(424), fields.le16(428), fields.le16(430))
}
