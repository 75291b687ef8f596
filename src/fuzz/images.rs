//! Headers of disk images. That nothing unsafe is called safe is judged by the few bytes that make it so, read here a
//! second time and in the plainest way.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]
#![allow(clippy::cast_possible_truncation, reason = "places in an image of at most a few MiB")]

use crate::image::{Format, Inspection, Prefix, ReadAt, ReadError, inspect};

fn be32(image: &[u8], at: usize) -> u32 {
    image.get(at..at + 4).map_or(0, |bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn be64(image: &[u8], at: usize) -> u64 {
    u64::from(be32(image, at)) << 32 | u64::from(be32(image, at + 4))
}

fn le32(image: &[u8], at: usize) -> u32 {
    be32(image, at).swap_bytes()
}

fn le64(image: &[u8], at: usize) -> u64 {
    be64(image, at).swap_bytes()
}

/// The image with another beginning.
fn with_magic(data: &[u8], at: usize, magic: &[u8]) -> Vec<u8> {
    let mut image = data.to_vec();
    if image.len() >= at + magic.len() {
        image[at..at + magic.len()].copy_from_slice(magic);
    }
    image
}

/// What holds of every image; gives what is found in the whole.
fn judged(image: &[u8]) -> Inspection {
    let whole = inspect(&mut Prefix::whole(image)).expect("bytes at hand can be read");
    assert_eq!(whole.verdict.is_safe(), whole.verdict.reasons().is_empty());
    assert!(whole.verdict.to_string().len() < 1 << 20, "the answer is bounded");
    if whole.verdict.is_safe() {
        assert!(whole.references.is_empty() && whole.snapshots == 0, "{whole:?}");
        assert!(!matches!(whole.format, Format::Bochs | Format::Cloop), "{whole:?}");
        assert!(whole.unknown_features.iter().all(|name| !name.starts_with("incompatible")), "{whole:?}");
        assert!(whole.virtual_size.is_some_and(|size| i64::try_from(size).is_ok()), "{whole:?}");
    }
    // Known by its end alone.
    let is_fixed = whole.format == Format::Vpc && !image.starts_with(b"conectix");
    for len in [0, 4, 72, 104, 512, 1024, 4096, image.len() / 2, image.len().saturating_sub(1)] {
        let Some(head) = image.get(..len) else { continue };
        let part = inspect(&mut Prefix::new(head, Some(image.len() as u64))).expect("bytes at hand can be read");
        // Whether it is raw, a longer beginning may tell better.
        if part.verdict.is_safe() && part.format != Format::Raw && !is_fixed && len >= 72 {
            assert!(whole.verdict.is_safe(), "{len} bytes look safe, the whole does not: {whole:?}");
            assert_eq!((part.format, part.virtual_size), (whole.format, whole.virtual_size), "of {len} bytes");
        }
    }
    whole
}

/// qcow2 and qcow: no other file, no snapshot, no cipher, and the size of the header.
pub fn image_qcow2(data: &[u8]) {
    let image = with_magic(data, 0, b"QFI\xfb");
    let found = judged(&image);
    if !found.verdict.is_safe() || image.len() < 72 {
        return;
    }
    assert_eq!((be64(&image, 8), be32(&image, 16)), (0, 0), "a backing file: {found:?}");
    assert_eq!(found.virtual_size, Some(be64(&image, 24)));
    match be32(&image, 4) {
        1 => assert_eq!((found.format, be32(&image, 36)), (Format::Qcow, 0)),
        2 => assert_eq!((be32(&image, 32), be32(&image, 60)), (0, 0)),
        3 => {
            assert_eq!((be32(&image, 32), be32(&image, 60)), (0, 0));
            assert_eq!(be64(&image, 72) & !0b11001, 0, "features that nobody knows, or another file: {found:?}");
            let mut at = be32(&image, 100) as usize;
            while be32(&image, at) != 0 {
                assert_ne!(be32(&image, at), 0x4441_5441, "the name of a data file: {found:?}");
                at += 8 + (be32(&image, at + 4) as usize).next_multiple_of(8);
            }
        }
        version => panic!("version {version} is safe: {found:?}"),
    }
}

/// VMDK: one sparse extent, the image itself, and no parent.
pub fn image_vmdk(data: &[u8]) {
    let image =
        if data.first().is_some_and(|byte| *byte == b'#') { data.to_vec() } else { with_magic(data, 0, b"KDMV") };
    let found = judged(&image);
    if !found.verdict.is_safe() || found.format != Format::Vmdk {
        return;
    }
    assert!(image.starts_with(b"KDMV"), "a text names files: {found:?}");
    assert_ne!(le64(&image, 12), 0, "a capacity of 0: {found:?}");
    assert_eq!(found.virtual_size, Some(le64(&image, 12) * 512));
    let lower: Vec<u8> = image.iter().skip(512).take(20 * 512).map(u8::to_ascii_lowercase).collect();
    assert!(!lower.windows(18).any(|part| part == b"parentfilenamehint"), "a parent: {found:?}");
    let (at, len) = (le64(&image, 28) * 512, le64(&image, 36) * 512);
    let (at, end) = (at as usize, (at + len) as usize);
    let descriptor = &image[at.min(image.len())..end.min(image.len())];
    let text = String::from_utf8_lossy(descriptor.split(|byte| *byte == 0).next().unwrap_or_default()).to_lowercase();
    let extents = text.lines().filter(|line| line.split_whitespace().next() == Some("rw"));
    assert!(extents.clone().count() <= 1 && extents.clone().all(|line| line.contains("sparse")), "{text}");
}

/// A VHDX of 3 MiB whose bytes lie where the format wants them; between them are zeroes.
struct Vhdx<'a>([(u64, &'a [u8]); 7]);

/// Its length.
const VHDX: u64 = 3 << 20;

impl<'a> Vhdx<'a> {
    fn new(data: &'a [u8]) -> Self {
        let cut = |from: usize, to: usize| &data[from.min(data.len())..to.min(data.len())];
        Self([
            (0, b"vhdxfile"),
            (64 << 10, cut(0, 80)),
            (128 << 10, cut(80, 160)),
            (192 << 10, cut(160, 288)),
            (256 << 10, cut(288, 416)),
            (1 << 20, cut(416, 672)),
            ((1 << 20) + (64 << 10), cut(672, data.len().min(4 << 10))),
        ])
    }
}

impl ReadAt for Vhdx<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let rest = usize::try_from(VHDX.saturating_sub(offset)).unwrap_or(0);
        let len = buf.len().min(rest);
        buf[..len].fill(0);
        for (at, piece) in self.0 {
            let (from, to) = (at.max(offset), (at + piece.len() as u64).min(offset + len as u64));
            if from < to {
                let (from_there, len) = ((from - at) as usize, (to - from) as usize);
                let here = (from - offset) as usize;
                buf[here..here + len].copy_from_slice(&piece[from_there..from_there + len]);
            }
        }
        Ok(len)
    }

    fn len(&self) -> Option<u64> {
        Some(VHDX)
    }
}

/// VHDX: no parent.
pub fn image_vhdx(data: &[u8]) {
    let found = inspect(&mut Vhdx::new(data)).expect("bytes at hand can be read");
    assert_eq!(found.format, Format::Vhdx);
    if found.verdict.is_safe() {
        assert!(found.references.is_empty() && found.variant.as_deref() != Some("differencing"), "{found:?}");
        assert!(found.virtual_size.is_some_and(|size| size > 0 && size <= 64 << 40), "{found:?}");
        let locator = *b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c";
        let count = usize::from(u16::from_le_bytes([data[416 + 10], data[416 + 11]]));
        let entries = data.get(416 + 32..672.min(data.len())).unwrap_or_default().chunks(32).take(count);
        assert!(entries.into_iter().all(|entry| !entry.starts_with(&locator)), "a parent locator: {found:?}");
    }
}

/// All other formats, and bytes that are none: the first byte says which.
pub fn image_other(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let image = match kind % 8 {
        0 => with_magic(data, 0, b"QED\0"),
        1 => with_magic(data, 0, b"conectix"),
        2 => with_magic(data, 64, &[0x7f, 0x10, 0xda, 0xbe]),
        3 => with_magic(data, 0, b"LUKS\xba\xbe\0\x01"),
        4 => with_magic(data, 0, b"LUKS\xba\xbe\0\x02"),
        5 => with_magic(data, 0, b"WithouFreSpacExt"),
        6 => with_magic(data, data.len().saturating_sub(512), b"conectix"),
        _ => data.to_vec(),
    };
    let found = judged(&image);
    if !found.verdict.is_safe() {
        return;
    }
    match found.format {
        Format::Qed => {
            assert_eq!((le64(&image, 16) & !0b110, le32(&image, 56), le32(&image, 60)), (0, 0, 0), "{found:?}");
            assert_eq!(found.virtual_size, Some(le64(&image, 48)));
        }
        Format::Vdi => {
            assert!(matches!(le32(&image, 76), 1 | 2), "{found:?}");
            assert!(image[424..456].iter().all(|byte| *byte == 0), "a parent: {found:?}");
        }
        Format::Vpc if image.starts_with(b"conectix") => assert!(matches!(be32(&image, 60), 2 | 3), "{found:?}"),
        Format::Raw => {
            let magics: [&[u8]; 7] =
                [b"QFI\xfb", b"QED\0", b"KDMV", b"COWD", b"conectix", b"vhdxfile", b"LUKS\xba\xbe"];
            assert!(magics.iter().all(|magic| !image.starts_with(magic)), "{found:?}");
            assert_eq!(found.virtual_size, Some(image.len() as u64));
        }
        _ => {}
    }
}
