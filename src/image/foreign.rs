//! Formats that `qemu-img` would recognise and that are never accepted: their names are known, their headers not read.

use super::verdict::{Findings, Format};

/// First bytes of a Bochs image (the text field is 32 bytes long).
const BOCHS: &[u8] = b"Bochs Virtual HD Image\0";
/// First bytes of a compressed loop image: it is a shell script too.
const CLOOP: &[u8] = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop";

/// Notes the format and that it is refused; `false` where these are other bytes.
pub(super) fn read(start: &[u8], out: &mut Findings) -> bool {
    let format = if start.starts_with(BOCHS) {
        Format::Bochs
    } else if start.starts_with(CLOOP) {
        Format::Cloop
    } else {
        return false;
    };
    out.seen.format = format;
    out.refuse(format!("images of format {format} are not accepted"));
    true
}
