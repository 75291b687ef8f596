//! What a disk image is and whether it may be trusted, read from its header alone.
//!
//! [`inspect`] is the only thing that looks at a user's bytes before the verdict: it opens nothing, follows nothing and
//! reads at most [`source::BUDGET`] bytes, whatever the header claims. It judges what is written in headers; what it
//! cannot see there is left to the caller: the virtual size against the size that was granted (aliased clusters make a
//! terabyte from a kilobyte), and the declared format against the one found here.
//!
//! # Layout
//!
//! - [`source`]: where bytes come from: a prefix of a stream, a file, a block device.
//! - [`verdict`]: what is found: [`Inspection`], [`Verdict`], [`Reason`].
//! - [`chain`]: the files of one disk with its snapshots, and every snapshot operation as a plan.
//! - one module per format: [`raw`], [`qcow2`], [`qcow`], [`qed`], [`vmdk`], [`vpc`], [`vhdx`], [`vdi`], [`luks`],
//!   [`parallels`], [`foreign`].
//!
//! # Use
//!
//! ```
//! use onestore::image::{Format, Prefix, inspect};
//!
//! let head = [0u8; 65536];
//! let found = inspect(&mut Prefix::new(&head, Some(1 << 30)))?;
//! assert_eq!(found.format, Format::Raw);
//! assert!(found.verdict.is_safe());
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod chain;
pub mod foreign;
pub mod luks;
pub mod parallels;
pub mod qcow;
pub mod qcow2;
pub mod qed;
pub mod raw;
pub mod source;
pub mod vdi;
pub mod verdict;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

use std::io;

pub use source::{Fetched, FileSource, Prefix, ReadAt, ReadError};
pub use verdict::{Contents, Format, Inspection, Reason, RefKind, Reference, Verdict};

use source::Window;
use verdict::Findings;

/// Bytes from the beginning of an image that suffice for a full answer on almost every image: 64 KiB.
///
/// VHDX keeps its metadata behind the first MiB, LUKS 2 may have a larger header, and a VHD of fixed size is known by its
/// last 512 bytes only; see [`Inspection::needs`].
pub const HEAD: usize = 64 << 10;

/// Reads the header of an image and judges it.
///
/// # Errors
/// What the source answers. A header that is cut short, nonsense or hostile is no error but a [`Verdict::Unsafe`].
pub fn inspect(source: &mut dyn ReadAt) -> io::Result<Inspection> {
    let mut window = Window::new(source);
    let start = window.start(HEAD)?;
    let mut findings = Findings::new(Format::Raw);
    let read = parse(&mut window, &start, &mut findings);
    if let Err(miss) = read {
        findings.miss(miss)?;
    }
    Ok(findings.finish())
}

/// Hands the header to the module that knows its magic.
fn parse(window: &mut Window<'_>, start: &[u8], out: &mut Findings) -> Result<(), source::Miss> {
    if start.starts_with(&qcow2::MAGIC) {
        return match start.get(4..8) {
            Some([0, 0, 0, 1]) => qcow::read(window, out),
            _ => qcow2::read(window, out),
        };
    }
    if start.starts_with(qed::MAGIC) {
        return qed::read(window, out);
    }
    if vmdk::is_vmdk(start) {
        return vmdk::read(window, start, out);
    }
    if start.starts_with(vpc::COOKIE) {
        return vpc::read(window, out);
    }
    if start.starts_with(vhdx::MAGIC) {
        return vhdx::read(window, out);
    }
    if vdi::is_vdi(start) {
        return vdi::read(window, out);
    }
    if start.starts_with(luks::MAGIC) {
        return luks::read(window, out);
    }
    if parallels::is_parallels(start) {
        return parallels::read(window, out);
    }
    if foreign::read(start, out) {
        return Ok(());
    }
    if vpc::read_fixed(window, out)? {
        return Ok(());
    }
    raw::read(window, start, out);
    Ok(())
}
