//! QED. Source: QEMU's `docs/interop/qed_spec.rst`.

use super::source::{Miss, Window};
use super::verdict::{FeatureKind, Findings, Format, RefKind};

pub(super) const MAGIC: &[u8] = b"QED\0";

/// Reads and judges the header.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Qed;
    let fields = window.exact(0, 64)?;
    let (cluster, table) = (u64::from(fields.le32(4)), u64::from(fields.le32(8)));
    let features = fields.le64(16);
    let size = fields.le64(48);
    out.seen.virtual_size = Some(size);
    out.seen.cluster_size = Some(cluster);
    out.unknown(FeatureKind::Incompatible, features, 0b111);
    out.unknown(FeatureKind::Compatible, fields.le64(24), 0);
    out.unknown(FeatureKind::Autoclear, fields.le64(32), 0);
    for (bit, name) in [(0, "backing-file"), (1, "need-check"), (2, "backing-format-no-probe")] {
        if features >> bit & 1 == 1 {
            out.feature(name);
        }
    }
    if !cluster.is_power_of_two() || !(1 << 12..=1 << 26).contains(&cluster) {
        out.inconsistent(format!("its cluster size of {cluster} bytes is impossible"));
    } else if !table.is_power_of_two() || table > 16 {
        out.inconsistent(format!("its table size of {table} clusters is impossible"));
    } else {
        let entries = u128::from(cluster * table / 8);
        let most = entries * entries * u128::from(cluster);
        if u128::from(size) > most || size % 512 != 0 || i64::try_from(size).is_err() {
            out.inconsistent(format!("its virtual size of {size} bytes is impossible"));
        }
        let l1 = fields.le64(40);
        if l1 == 0 || l1 % cluster != 0 || window.len().is_some_and(|len| l1 >= len) {
            out.inconsistent(format!("its L1 table lies at the impossible offset {l1}"));
        }
    }
    let (offset, len) = (fields.le32(56), fields.le32(60));
    if features & 1 == 0 && offset == 0 && len == 0 {
        return Ok(());
    }
    let format = (features & 4 != 0).then(|| "raw".to_owned());
    if len > 1023 || offset > 1 << 20 {
        out.refer(RefKind::BackingFile, "", format);
        out.inconsistent("its backing file name lies outside the header");
        return Ok(());
    }
    let name = match window.exact(u64::from(offset), usize::try_from(len).unwrap_or(0)) {
        Ok(name) => name.text(0, name.0.len()),
        Err(miss) => {
            out.refer(RefKind::BackingFile, "", format);
            return Err(miss);
        }
    };
    out.refer(RefKind::BackingFile, &name, format);
    Ok(())
}
