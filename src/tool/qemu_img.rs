//! `qemu-img` (qemu-img(1)): every command names its formats, none ever probes.
//!
//! File names are given as absolute paths: a name such as `nbd:x` or `json:{…}` is a protocol to qemu-img, a path that
//! starts with `/` never is.

use std::ffi::OsString;
use std::path::Path;

use crate::exec::cmd::{Cmd, Limits};

/// Formats that this project writes, and those it may convert from once the inspector found them safe.
pub type Format<'a> = &'a str;

/// Address space for a qemu-img that reads what a user made: 8 GiB. It converts within 1 GiB of memory, but has up to 64
/// threads, and glibc reserves 64 MiB of addresses for many of them, the more the machine has cores: with less it dies of
/// "Resource temporarily unavailable" now and then.
const ADDRESS_SPACE: u64 = 8 << 30;

/// CPU seconds for a command that looks at metadata only.
const METADATA_CPU: u64 = 60;

/// CPU seconds for a command that moves data: an upper bound against files that never end, not a budget.
const DATA_CPU: u64 = 12 * 3600;

/// What [`convert`] does with zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroes {
    /// Runs of zeroes become holes.
    Holes,
    /// Everything is allocated (`-S 0`).
    Allocate,
}

/// `qemu-img create -f FORMAT PATH SIZE`: an empty image of `mib` MiB.
#[must_use]
pub fn create(format: Format<'_>, path: &Path, mib: u64) -> Cmd {
    Cmd::new("qemu-img").args(["create", "-q", "-f", format]).arg(path).arg(format!("{mib}M"))
}

/// `qemu-img create -u -f qcow2 -F FORMAT -b BACKING PATH SIZE`: an empty overlay of `bytes` bytes.
///
/// With `-u` and a size qemu-img does not open the backing file, whose name is stored as it is given: a relative one is
/// meant from the folder in which the overlay will stand.
#[must_use]
pub fn create_overlay(path: &Path, backing: &Path, backing_format: Format<'_>, bytes: u64) -> Cmd {
    Cmd::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", backing_format, "-b"])
        .arg(backing)
        .arg(path)
        .arg(bytes.to_string())
        .limits(Limits { cpu_seconds: Some(METADATA_CPU), address_space: Some(ADDRESS_SPACE), ..Limits::default() })
}

/// The same with the operator's options.
#[must_use]
pub fn create_overlay_with(
    path: &Path,
    backing: &Path,
    backing_format: Format<'_>,
    bytes: u64,
    options: &CreateOptions,
) -> Cmd {
    let mut cmd = create_overlay(path, backing, backing_format, bytes);
    // Before the names: an option is told from them by its place.
    for (name, value) in &options.0 {
        cmd.args.insert(2, format!("{name}={value}").into());
        cmd.args.insert(2, "-o".into());
    }
    cmd
}

/// Options of `qemu-img create` for new qcow2 files: `QCOW2_OPTIONS`, the operator's setting (`-o compat=0.10`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions(Vec<(String, String)>);

/// Options that an operator may set; those that name files, formats or keys are not among them.
const SETTABLE: &[&str] = &[
    "cluster_size",
    "compat",
    "compression_type",
    "extended_l2",
    "lazy_refcounts",
    "nocow",
    "preallocation",
    "refcount_bits",
];

/// A setting that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Bad QCOW2_OPTIONS {text:?}: expected -o NAME=VALUE[,NAME=VALUE], with NAME one of {}", SETTABLE.join(" "))]
pub struct BadOptions {
    text: String,
}

impl CreateOptions {
    /// Reads `-o NAME=VALUE[,NAME=VALUE]…`; nothing for an empty text.
    ///
    /// # Errors
    /// [`BadOptions`] for anything else.
    pub fn parse(text: &str) -> Result<Self, BadOptions> {
        let bad = || BadOptions { text: text.to_owned() };
        let mut found = Vec::new();
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            let list = match word.strip_prefix("-o") {
                Some("") => words.next().ok_or_else(bad)?,
                Some(list) => list,
                None => return Err(bad()),
            };
            for option in list.split(',') {
                let (name, value) = option.split_once('=').ok_or_else(bad)?;
                let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                if !SETTABLE.contains(&name) || value.is_empty() || !value.chars().all(plain) {
                    return Err(bad());
                }
                found.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Self(found))
    }
}

/// What becomes of the room that a disk gains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// It is not allocated.
    Sparse,
    /// It is allocated at once.
    Allocate,
}

/// `qemu-img resize -f FORMAT PATH SIZE`: enlarges a disk to `mib` MiB; qemu-img refuses to make it smaller.
#[must_use]
pub fn resize(path: &Path, format: Format<'_>, mib: u64, growth: Growth) -> Cmd {
    let cmd = Cmd::new("qemu-img").args(["resize", "-q", "-f", format]);
    let cmd = match growth {
        Growth::Sparse => cmd,
        Growth::Allocate => cmd.arg("--preallocation=falloc"),
    };
    cmd.arg(path).arg(format!("{mib}M")).limits(Limits {
        cpu_seconds: Some(DATA_CPU),
        address_space: Some(ADDRESS_SPACE),
        ..Limits::default()
    })
}

/// The format that a disk is given to qemu-img as, by what oned calls it: raw unless it is one that qemu-img can enlarge.
#[must_use]
pub fn written(format: Option<&str>) -> &'static str {
    match format {
        Some("qcow2") => "qcow2",
        Some("vdi") => "vdi",
        Some("qed") => "qed",
        Some("vhdx") => "vhdx",
        _ => "raw",
    }
}

/// `qemu-img convert -f FROM -O TO`: a copy in another format, or a chain flattened into one file.
///
/// `largest` bounds the file written, in bytes: what the source's header announces, so that no image can grow past it.
#[must_use]
pub fn convert(from: (&Path, Format<'_>), to: (&Path, Format<'_>), zeroes: Zeroes, largest: Option<u64>) -> Cmd {
    let mut cmd = Cmd::new("qemu-img").args(["convert", "-q", "-f", from.1, "-O", to.1]);
    if zeroes == Zeroes::Allocate {
        cmd = cmd.args(["-S", "0"]);
    }
    cmd.arg(from.0).arg(to.0).limits(Limits {
        cpu_seconds: Some(DATA_CPU),
        address_space: Some(ADDRESS_SPACE),
        file_size: largest,
        ..Limits::default()
    })
}

/// [`convert`] of an image that a domain has open (`-U`): only while its guest stands still.
#[must_use]
pub fn convert_open(from: (&Path, Format<'_>), to: (&Path, Format<'_>), zeroes: Zeroes) -> Cmd {
    let mut cmd = convert(from, to, zeroes, None);
    cmd.args.insert(1, "-U".into());
    cmd
}

/// `qemu-img rebase -f qcow2 -F FORMAT -b BACKING PATH`: gives an overlay another backing file.
///
/// With `keep_content` clusters that differ are copied into the overlay first, and it may be killed at any time: the old
/// backing file holds until all is copied. That needs `-t writethrough`: otherwise qemu-img changes the name while the
/// tables that lead to the copied clusters are still in its memory, and a kill then shows the new backing file's data.
/// Without (`-u`) only the name changes: for a backing file of equal content.
#[must_use]
pub fn rebase(path: &Path, backing: Option<&Path>, backing_format: Format<'_>, keep_content: bool) -> Cmd {
    let mut args: Vec<OsString> = vec!["rebase".into(), "-q".into(), "-f".into(), "qcow2".into()];
    let safety: &[&str] = if keep_content { &["-t", "writethrough"] } else { &["-u"] };
    args.extend(safety.iter().map(OsString::from));
    match backing {
        Some(backing) => args.extend(["-F".into(), backing_format.into(), "-b".into(), backing.into()]),
        None => args.extend(["-b".into(), OsString::new()]),
    }
    Cmd::new("qemu-img").args(args).arg(path).limits(Limits {
        cpu_seconds: Some(DATA_CPU),
        address_space: Some(ADDRESS_SPACE),
        ..Limits::default()
    })
}

/// Most bytes that an image of this virtual size may take in any format that we write: its data, 2 % of tables, and
/// what an empty one needs.
#[must_use]
pub fn largest(virtual_size: u64) -> u64 {
    virtual_size.saturating_add(virtual_size / 50).saturating_add(64 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_options_are_options_and_nothing_else() {
        let parse = CreateOptions::parse;
        let two = parse("-o compat=0.10 -ocluster_size=2M,lazy_refcounts=on").expect("options");
        let overlay = create_overlay_with(Path::new("/s/2"), Path::new("/s/1"), "raw", 512, &two).to_string();
        assert!(
            overlay.starts_with("qemu-img create -q -o lazy_refcounts=on -o cluster_size=2M -o compat=0.10 -u"),
            "{overlay}"
        );
        assert_eq!(parse(""), Ok(CreateOptions::default()));
        for bad in [
            "compat=0.10",
            "-o",
            "-o compat",
            "-o backing_file=/etc/passwd",
            "-o data_file=x",
            "-o compat=$(id)",
            "-b x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_grows() {
        assert_eq!(resize(Path::new("/d"), "raw", 8, Growth::Sparse).to_string(), "qemu-img resize -q -f raw /d 8M");
        assert_eq!(
            resize(Path::new("/d"), "qcow2", 8, Growth::Allocate).to_string(),
            "qemu-img resize -q -f qcow2 --preallocation=falloc /d 8M"
        );
    }

    #[test]
    fn every_format_is_named() {
        let convert = convert((Path::new("/a"), "raw"), (Path::new("/b"), "qcow2"), Zeroes::Allocate, Some(1));
        assert_eq!(convert.to_string(), "qemu-img convert -q -f raw -O qcow2 -S 0 /a /b");
        let overlay = create_overlay(Path::new("/s/2"), Path::new("/s/1"), "qcow2", 512);
        assert_eq!(overlay.to_string(), "qemu-img create -q -u -f qcow2 -F qcow2 -b /s/1 /s/2 512");
        assert_eq!(
            rebase(Path::new("/s/2"), None, "", true).to_string(),
            "qemu-img rebase -q -f qcow2 -t writethrough -b '' /s/2"
        );
    }
}
