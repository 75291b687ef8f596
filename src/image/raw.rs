//! Raw images: no header at all. What the first bytes say about the content is for people, not for decisions.
//!
//! Sources: UEFI specification §5 (MBR and GPT), ECMA-119 (volume descriptors), POSIX ustar.

use super::source::Window;
use super::verdict::{Contents, Findings, Format};

/// Notes the length and what the content looks like. Any bytes are a valid raw image.
pub(super) fn read(window: &mut Window<'_>, start: &[u8], out: &mut Findings) {
    out.seen.format = Format::Raw;
    out.seen.virtual_size = window.len();
    let at = |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(512, b"EFI PART") || at(4096, b"EFI PART") {
        out.seen.contents.push(Contents::Gpt);
    } else if is_mbr(start) {
        out.seen.contents.push(Contents::Mbr);
    }
    if at(32769, b"CD001") {
        out.seen.contents.push(Contents::Iso9660);
    }
    if at(257, b"ustar") {
        out.seen.contents.push(Contents::Tar);
    }
    if start.starts_with(b"PK\x03\x04") {
        out.seen.contents.push(Contents::Zip);
    }
}

/// The signature alone is also in the boot sector of every FAT file system: look at the four entries too.
fn is_mbr(start: &[u8]) -> bool {
    let Some(table) = start.get(446..512) else { return false };
    let entries = || table[..64].as_chunks::<16>().0.iter();
    table[64..] == [0x55, 0xAA]
        && entries().all(|entry| matches!(entry[0], 0 | 0x80))
        && entries().any(|entry| entry[4] != 0 && entry[12..] != [0; 4])
}
