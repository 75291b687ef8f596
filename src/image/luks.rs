//! LUKS, versions 1 and 2.
//!
//! Sources: LUKS1 On-Disk Format Specification 1.2.3, LUKS2 On-Disk Format Specification 1.1.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::{Fields, Miss, Window};
use super::verdict::{Findings, Format};

pub(super) const MAGIC: &[u8] = b"LUKS\xba\xbe";

/// Largest JSON area that is looked into; the format allows almost 4 MiB, `cryptsetup` makes 12 KiB.
const MAX_JSON: u64 = 1 << 20;

/// Bytes of the fixed part of a LUKS 1 header.
pub(super) const FIXED: usize = 592;

/// Cipher and mode of a LUKS 1 header; nothing where these bytes are none.
pub(super) fn cipher(start: &[u8]) -> Option<String> {
    let fields = Fields(start.get(..FIXED)?.to_vec());
    let first = fields.bytes(0, 6) == MAGIC && fields.be16(6) == 1;
    first.then(|| format!("{}-{}", fields.text(8, 32), fields.text(40, 32)))
}

/// Reads where the payload begins and with what it is encrypted.
pub(super) fn read(window: &mut Window<'_>, out: &mut Findings) -> Result<(), Miss> {
    out.seen.format = Format::Luks;
    let fields = window.exact(0, FIXED)?;
    let version = fields.be16(6);
    out.seen.variant = Some(version.to_string());
    let payload = match version {
        1 => {
            out.seen.encryption = cipher(&fields.0);
            Some(u64::from(fields.be32(104)) * 512)
        }
        2 => {
            let size = fields.be64(8);
            second(window, size, out)?
        }
        other => {
            out.inconsistent(format!("its LUKS version {other} is unknown"));
            None
        }
    };
    let Some(payload) = payload else { return Ok(()) };
    out.seen.payload_offset = Some(payload);
    match window.len() {
        // A payload offset of 0 is a detached header: there are no data here.
        _ if payload == 0 => out.inconsistent("it is a LUKS header without its data"),
        Some(len) if payload > len => out.inconsistent("its encrypted data lie outside the file"),
        len => out.seen.virtual_size = len.map(|len| len - payload),
    }
    Ok(())
}

/// The members of the JSON area that matter here; all others are skipped without being kept.
#[derive(Deserialize)]
struct Metadata {
    segments: BTreeMap<String, Segment>,
}

#[derive(Deserialize)]
struct Segment {
    offset: String,
    #[serde(default)]
    encryption: Option<String>,
}

/// Offset of the first segment of a LUKS 2 container.
fn second(window: &mut Window<'_>, size: u64, out: &mut Findings) -> Result<Option<u64>, Miss> {
    if size <= 4096 || size - 4096 > MAX_JSON {
        out.inconsistent(format!("its header size of {size} bytes is impossible"));
        return Ok(None);
    }
    let area = window.exact(4096, usize::try_from(size - 4096).unwrap_or(0))?;
    let end = area.0.iter().position(|&byte| byte == 0).unwrap_or(area.0.len());
    let Ok(metadata) = serde_json::from_slice::<Metadata>(&area.0[..end]) else {
        out.inconsistent("its LUKS metadata cannot be read");
        return Ok(None);
    };
    let offsets = metadata.segments.values().map(|segment| segment.offset.parse::<u64>());
    let Ok(offsets) = offsets.collect::<Result<Vec<_>, _>>() else {
        out.inconsistent("its LUKS metadata cannot be read");
        return Ok(None);
    };
    out.seen.encryption = metadata.segments.into_values().find_map(|segment| segment.encryption);
    let first = offsets.into_iter().min();
    if first.is_none() {
        out.inconsistent("it has no encrypted data");
    }
    Ok(first)
}
