//! qcow, version 1. Source: QEMU's `block/qcow.c` (header layout and limits).

use super::source::{Miss, Window};
use super::verdict::{Findings, Format, Reason, RefKind};

/// Reads and judges the header.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Qcow;
    let fields = window.exact(0, 48)?;
    let (backing, backing_len) = (fields.be64(8), fields.be32(16));
    let size = fields.be64(24);
    out.seen.virtual_size = Some(size);
    let (cluster_bits, l2_bits) = (u32::from(fields.u8(32)), u32::from(fields.u8(33)));
    if !(9..=16).contains(&cluster_bits) || !(6..=13).contains(&l2_bits) {
        out.inconsistent(format!("its cluster bits {cluster_bits} and table bits {l2_bits} are impossible"));
    } else {
        out.seen.cluster_size = Some(1 << cluster_bits);
        let shift = cluster_bits + l2_bits;
        let entries = size.div_ceil(1 << shift);
        let table = fields.be64(40);
        if size <= 1 || i64::try_from(size).is_err() || entries * 8 > i32::MAX as u64 {
            out.inconsistent(format!("its virtual size of {size} bytes is impossible"));
        } else if table == 0 || table.checked_add(entries * 8).is_none() {
            out.inconsistent(format!("its L1 table lies at the impossible offset {table}"));
        } else if window.len().is_some_and(|len| table >= len) {
            out.inconsistent("its L1 table lies outside the file");
        }
    }
    match fields.be32(36) {
        0 => {}
        crypt => {
            let method = if crypt == 1 { "aes".to_owned() } else { format!("unknown method {crypt}") };
            out.seen.encryption = Some(method.clone());
            out.reason(Reason::Encrypted(method));
        }
    }
    if backing == 0 && backing_len == 0 {
        return Ok(());
    }
    if backing_len > 1023 || backing > 1 << 20 {
        out.refer(RefKind::BackingFile, "", None);
        out.inconsistent("its backing file name lies outside the header");
        return Ok(());
    }
    let name = match window.exact(backing, usize::try_from(backing_len).unwrap_or(0)) {
        Ok(name) => name.text(0, name.0.len()),
        Err(miss) => {
            out.refer(RefKind::BackingFile, "", None);
            return Err(miss);
        }
    };
    out.refer(RefKind::BackingFile, &name, None);
    Ok(())
}
