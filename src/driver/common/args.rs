//! What a transfer manager is called with: `HOST:PATH` arguments that must be places of one VM.
//!
//! Source: contract 01 §2, §6.2, §9. A path is compared by components: `<datastores>/<datastore>/<vm>[/disk.N]`, the VM
//! being the one of the VM id argument. Nothing that leads elsewhere gets past here, because what comes after removes
//! and replaces.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};

use crate::context::Cx;
use crate::driver::TmRequest;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Value};
use crate::location::{ImageFiles, normalize, with_suffix};
use crate::report::Misuse;

impl TmRequest {
    /// An argument, empty where there is none.
    #[must_use]
    pub fn arg(&self, index: usize) -> &OsStr {
        self.args.get(index).map(AsRef::as_ref).unwrap_or_default()
    }

    /// An argument as text for people.
    #[must_use]
    pub fn text(&self, index: usize) -> String {
        self.arg(index).to_string_lossy().into_owned()
    }

    /// An argument that is a number; `name` is what it counts.
    ///
    /// # Errors
    /// It is none.
    pub fn number<N: std::str::FromStr>(&self, index: usize, name: &str) -> Result<N> {
        let number = self.arg(index).to_str().and_then(|text| text.parse().ok());
        match number {
            Some(number) => Ok(number),
            None => bail!(Misuse(format!(
                "{name} of tm/{}/{} is not a number: {:?}",
                self.mad,
                self.action,
                self.text(index)
            ))),
        }
    }

    /// The directory or file of the VM `vm` that an argument names.
    ///
    /// # Errors
    /// It names no host, or something that is not the VM's.
    pub fn place(&self, cx: &Cx<'_>, index: usize, vm: u32) -> Result<VmPlace> {
        VmPlace::new(cx, self.arg(index), vm)
    }

    /// The directory or file of the VM `vm` that an argument without a host names, on the machine that we run on.
    ///
    /// # Errors
    /// It is something that is not the VM's.
    pub fn place_here(&self, cx: &Cx<'_>, index: usize, vm: u32) -> Result<VmPlace> {
        VmPlace::at(cx.here(), self.arg(index), self.text(index), vm)
    }

    /// The host that an argument `[HOST:]PATH` names; the machine that we run on where it names none, or that one.
    ///
    /// # Errors
    /// It cannot be a host's name.
    pub fn holder(&self, cx: &Cx<'_>, index: usize) -> Result<Arc<dyn Host>> {
        let (host, _) = split(self.arg(index));
        let me = rustix::system::uname();
        match host {
            Some(host) if host.as_bytes() != me.nodename().to_bytes() => {
                let bad = || Misuse(format!("Bad host in {:?}", self.text(index)));
                cx.host(host.to_str().ok_or_else(bad)?).map_err(|e| Misuse(format!("{e:#}")).into())
            }
            _ => Ok(cx.here()),
        }
    }

    /// The directory of the VM `vm` that an argument without a host names, on this host.
    ///
    /// # Errors
    /// It is something that is not the VM's.
    pub fn place_of(&self, cx: &Cx<'_>, host: &str, index: usize, vm: u32) -> Result<VmPlace> {
        let mut whole = OsString::from(host);
        whole.push(":");
        whole.push(self.arg(index));
        VmPlace::new(cx, &whole, vm)
    }

    /// A disk of the VM `vm`.
    ///
    /// # Errors
    /// It is no disk of it.
    pub fn disk(&self, cx: &Cx<'_>, index: usize, vm: u32) -> Result<Disk> {
        self.place(cx, index, vm)?.disk()
    }

    /// The path of an argument `[HOST:]PATH`, normalised.
    ///
    /// # Errors
    /// It is not absolute, or has `..` in it.
    pub fn path(&self, index: usize) -> Result<PathBuf> {
        let (_, path) = split(self.arg(index));
        clean(path).ok_or_else(|| {
            Misuse(format!("Bad path {:?}: it has to be absolute and without ..", self.text(index))).into()
        })
    }
}

/// Splits at the first colon.
pub(super) fn split(arg: &OsStr) -> (Option<&OsStr>, &OsStr) {
    let bytes = arg.as_bytes();
    match bytes.iter().position(|byte| *byte == b':') {
        Some(at) => (Some(OsStr::from_bytes(&bytes[..at])), OsStr::from_bytes(&bytes[at + 1..])),
        None => (None, arg),
    }
}

/// The path without repeated slashes; `None` where it is not absolute or goes up.
fn clean(path: &OsStr) -> Option<PathBuf> {
    let path = Path::new(path);
    let up = path.components().any(|part| part == Component::ParentDir);
    (path.is_absolute() && !up).then(|| normalize(path))
}

/// The parts of `<datastores>/<datastore>/<vm>[/disk.N]`.
pub(super) struct Parts {
    pub(super) root: PathBuf,
    pub(super) datastore: u32,
    pub(super) dir: PathBuf,
    pub(super) name: Option<String>,
}

/// Takes a path apart; `None` for what is no place of the VM.
pub(super) fn parts(path: &OsStr, vm: u32) -> Option<Parts> {
    let path = clean(path)?;
    let is_file = |name: &str| matches!(name, "kernel" | "initrd") || disk_number(name).is_some();
    let name = path.file_name().and_then(OsStr::to_str).filter(|name| is_file(name)).map(str::to_owned);
    let dir = if name.is_some() { path.parent()? } else { &path };
    let number = |dir: &Path| plain_number(dir.file_name()?.to_str()?);
    let datastore = number(dir.parent()?)?;
    let root = dir.parent()?.parent().filter(|root| root.parent().is_some())?;
    let (root, dir) = (root.to_owned(), (number(dir) == Some(vm)).then(|| dir.to_owned())?);
    Some(Parts { root, datastore, dir, name })
}

/// A directory of a VM in a system datastore, or something directly in it.
#[derive(Clone)]
pub struct VmPlace {
    /// The machine.
    pub host: Arc<dyn Host>,
    /// The argument to the letter.
    pub text: String,
    /// Where the datastores of the machine are.
    pub root: PathBuf,
    /// The system datastore.
    pub datastore: u32,
    /// The VM.
    pub vm: u32,
    /// Its directory: `<root>/<datastore>/<vm>`.
    pub dir: PathBuf,
    /// What in it is meant, nothing for the directory itself.
    pub name: Option<String>,
}

impl VmPlace {
    fn new(cx: &Cx<'_>, arg: &OsStr, vm: u32) -> Result<Self> {
        let text = arg.to_string_lossy().into_owned();
        let bad = || Misuse(format!("Bad place {text:?}: it has to be HOST:<datastores>/<datastore>/{vm}[/disk.N]"));
        let (Some(host), path) = split(arg) else { bail!(bad()) };
        let host = cx.host(host.to_str().ok_or_else(bad)?).map_err(|e| Misuse(format!("{e:#}")))?;
        Self::at(host, path, text, vm)
    }

    /// What `path`, given as `text`, names on `host`.
    fn at(host: Arc<dyn Host>, path: &OsStr, text: String, vm: u32) -> Result<Self> {
        let bad = || Misuse(format!("Bad place {text:?}: it has to be HOST:<datastores>/<datastore>/{vm}[/disk.N]"));
        let Parts { root, datastore, dir, name } = parts(path, vm).ok_or_else(bad)?;
        Ok(Self { host, text, root, datastore, vm, dir, name })
    }

    /// The path that is meant.
    pub fn path(&self) -> PathBuf {
        self.name.as_ref().map_or_else(|| self.dir.clone(), |name| self.dir.join(name))
    }

    /// Whether a disk is meant.
    pub fn is_disk(&self) -> bool {
        self.name.as_deref().is_some_and(|name| disk_number(name).is_some())
    }

    /// The directory of the system datastore.
    pub fn datastore_dir(&self) -> PathBuf {
        self.root.join(self.datastore.to_string())
    }

    /// It as a disk.
    ///
    /// # Errors
    /// It is none.
    pub fn disk(self) -> Result<Disk> {
        match self.name.as_deref().and_then(disk_number) {
            Some(number) => Ok(Disk { path: self.path(), number, place: self }),
            None => bail!(Misuse(format!(
                "Bad disk {:?}: it has to be HOST:<datastores>/<datastore>/{}/disk.N",
                self.text, self.vm
            ))),
        }
    }

    /// The files of an image as this machine sees them: below its own datastores, `<datastore>/<file>` of `source`.
    ///
    /// # Errors
    /// `source` does not end like that.
    pub fn image(&self, source: &Path) -> Result<ImageFiles> {
        let (base, file) = image_names(source)?;
        let base = self.root.join(base);
        Ok(ImageFiles::new(&base, &base.join(file)).map_err(|e| Misuse(e.to_string()))?)
    }
}

/// The files of an image by the place that oned registers it at, on whichever machine: `<datastores>/<datastore>/<file>`.
///
/// # Errors
/// `source` does not end like that.
pub fn registered(source: &Path) -> Result<ImageFiles> {
    image_names(source)?;
    Ok(ImageFiles::new(source.parent().unwrap_or(Path::new("/")), source).map_err(|e| Misuse(e.to_string()))?)
}

/// Datastore and file in the end of an image's place.
fn image_names(source: &Path) -> Result<(&OsStr, &OsStr)> {
    let base = source.parent().and_then(Path::file_name);
    match (base, source.file_name()) {
        (Some(base), Some(file)) if base.to_str().and_then(plain_number).is_some() => Ok((base, file)),
        _ => bail!(Misuse(format!(
            "Bad image source {:?}: it has to be <datastores>/<datastore>/<file>",
            source.display()
        ))),
    }
}

/// A disk of a VM.
#[derive(Clone)]
pub struct Disk {
    /// Where it is.
    pub place: VmPlace,
    /// Its number.
    pub number: u32,
    /// `<root>/<datastore>/<vm>/disk.<number>`.
    pub path: PathBuf,
}

impl Disk {
    /// The directories of the VM and of the disk's layers, as questions for [`Self::refuse_links`].
    pub fn dirs(&self) -> [Op; 2] {
        [self.place.dir.clone(), self.snapshots()].map(|path| Op::Stat { path, follow: false })
    }

    /// Judges the answers to [`Self::dirs`]. Nobody makes links of these directories; what one leads to is somebody else's.
    ///
    /// # Errors
    /// One is a link.
    pub fn refuse_links(&self, answers: &[Value]) -> Result<()> {
        for (dir, answer) in [self.place.dir.clone(), self.snapshots()].iter().zip(answers) {
            if answer.stat().is_some_and(|stat| stat.kind == FileKind::Link) {
                bail!("{} is a link, not a directory", dir.display());
            }
        }
        Ok(())
    }

    /// `disk.N.snap`: its layers.
    pub fn snapshots(&self) -> PathBuf {
        with_suffix(&self.path, ".snap")
    }

    /// `disk.N`.
    pub fn name(&self) -> String {
        format!("disk.{}", self.number)
    }
}

/// The lock of a disk: one action at a time changes it.
pub fn lock_of(vm: u32, name: &str) -> String {
    format!("onestore-vm-{vm}-{name}")
}

/// N of `disk.N`.
pub fn disk_number(name: &str) -> Option<u32> {
    plain_number(name.strip_prefix("disk.")?)
}

/// A number as oned prints it: digits alone, no leading zero.
pub fn plain_number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_as_oned_prints_them_are_numbers() {
        assert_eq!(disk_number("disk.0"), Some(0));
        for bad in ["disk.", "disk.01", "disk.+1", "disk.-1", "disk.1.snap", "disk.99999999999", "Disk.1", "disk.1 "] {
            assert_eq!(disk_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_path_that_goes_up_is_none() {
        assert_eq!(clean(OsStr::new("/a//b/")), Some("/a/b".into()));
        for bad in ["a/b", "", "/a/../b", ".."] {
            assert_eq!(clean(OsStr::new(bad)), None, "{bad}");
        }
        assert_eq!(split(OsStr::new("h:/a:b")), (Some(OsStr::new("h")), OsStr::new("/a:b")));
    }
}
