//! What transfer managers do with a VM's disk on a host: what lies there before, how they are called, what has to be
//! there after, and the command that cannot be avoided.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::files::Source;
use super::lab::Sandbox;
use super::measure::helper;
use super::{floor, host};
use crate::conformance::sandbox::stand_in;

/// Virtual size of the image and its overlays, MiB.
const SIZE: u64 = 10 * 1024;

/// What [`Act::Resize`] asks for, MiB.
const LARGER: u64 = 2 * SIZE;

/// An action on disk 0 of VM 7, powered off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// `clone` of a qcow2 image: an overlay.
    Clone,
    /// `clone` of a raw image.
    CloneRaw(Source),
    /// `ln` of a persistent qcow2 image.
    Ln,
    /// `snap_create` above two other snapshots.
    SnapCreate,
    /// `snap_revert` to the first of two snapshots.
    SnapRevert,
    /// `snap_delete` of the second of two snapshots, on which the current file stands.
    SnapDelete,
    /// `resize` to twice its size.
    Resize,
}

impl Act {
    fn has_layers(self) -> bool {
        matches!(self, Self::SnapCreate | Self::SnapRevert | Self::SnapDelete | Self::Resize)
    }

    /// The command that does the part which nobody can do without, in short.
    pub fn tool_name(self) -> &'static str {
        match self {
            Self::Clone | Self::SnapCreate | Self::SnapRevert => "ssh HOST qemu-img create",
            Self::CloneRaw(_) => "ssh HOST cp --sparse=always",
            Self::Ln => "ssh HOST qemu-img info; ln -s",
            Self::SnapDelete => "ssh HOST qemu-img rebase",
            Self::Resize => "ssh HOST qemu-img resize",
        }
    }
}

/// A datastore of images (1) and a system datastore (103) with one VM, in a sandbox.
pub struct Vm {
    act: Act,
    datastores: PathBuf,
    /// The VM's directory as it is before each run.
    template: PathBuf,
    raw: Option<PathBuf>,
}

impl Vm {
    /// Lays it out. `raw` is the source of raw clones.
    ///
    /// # Errors
    /// `qemu-img` is missing, the disk is full.
    pub fn lay_out(act: Act, sandbox: &Sandbox, raw: Option<PathBuf>) -> Result<Self> {
        let datastores = sandbox.var().join("datastores");
        let vm = Self { act, template: sandbox.one().join(format!("template-{act:?}")), datastores, raw };
        let image = vm.image();
        for dir in [image.parent().unwrap_or(&image), &vm.template] {
            fs::create_dir_all(dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        }
        remove(&image)?;
        match &vm.raw {
            Some(raw) => fs::hard_link(raw, &image)?,
            None => create(&image, None)?,
        }
        if act.has_layers() && !vm.template.join("disk.0.snap").exists() {
            let layers = vm.template.join("disk.0.snap");
            fs::create_dir(&layers)?;
            symlink(".", layers.join("disk.0.snap"))?;
            create(&layers.join("0"), image.to_str())?;
            create(&layers.join("1"), Some("disk.0.snap/0"))?;
            create(&layers.join("2"), Some("disk.0.snap/1"))?;
            symlink("disk.0.snap/2", vm.template.join("disk.0"))?;
        }
        vm.objects(&sandbox.one().join("oned"), &sandbox.one().join("bin"))?;
        Ok(vm)
    }

    fn image(&self) -> PathBuf {
        self.datastores.join("1/0123456789abcdef")
    }

    fn dir(&self) -> PathBuf {
        self.datastores.join("103/7")
    }

    fn disk(&self) -> PathBuf {
        self.dir().join("disk.0")
    }

    fn layer(&self, number: u32) -> PathBuf {
        self.dir().join("disk.0.snap").join(number.to_string())
    }

    /// What oned knows, and the commands that hand it out.
    fn objects(&self, oned: &Path, bin: &Path) -> Result<()> {
        for dir in [oned.join("vm"), oned.join("datastore"), bin.to_owned()] {
            fs::create_dir_all(dir)?;
        }
        let (format, clone, mib) = match self.act {
            Act::CloneRaw(source) => ("raw", "YES", source.len() >> 20),
            Act::Ln => ("qcow2", "NO", SIZE),
            _ => ("qcow2", "YES", SIZE),
        };
        let snapshots = if self.act.has_layers() {
            let each = "<SNAPSHOT><ID>0</ID></SNAPSHOT><SNAPSHOT><ID>1</ID></SNAPSHOT>";
            format!("<SNAPSHOTS><DISK_ID>0</DISK_ID><NEXT_SNAPSHOT>2</NEXT_SNAPSHOT>{each}</SNAPSHOTS>")
        } else {
            String::new()
        };
        let vm = format!(
            "<VM><ID>7</ID><UID>0</UID><GID>0</GID><NAME>bench</NAME><STATE>8</STATE><LCM_STATE>0</LCM_STATE>\
             <DEPLOY_ID>one-7</DEPLOY_ID><TEMPLATE><DISK><CLONE>{clone}</CLONE><DATASTORE_ID>1</DATASTORE_ID>\
             <DISK_ID>0</DISK_ID><DISK_TYPE>FILE</DISK_TYPE><DRIVER>{format}</DRIVER><FORMAT>{format}</FORMAT>\
             <IMAGE_ID>5</IMAGE_ID><ORIGINAL_SIZE>{mib}</ORIGINAL_SIZE><SIZE>{mib}</SIZE>\
             <SOURCE><![CDATA[{}]]></SOURCE><TARGET>vda</TARGET><TM_MAD>qcow2</TM_MAD><TYPE>FILE</TYPE></DISK></TEMPLATE>{snapshots}\
             <HISTORY_RECORDS><HISTORY><OID>7</OID><SEQ>0</SEQ><HOSTNAME>{}</HOSTNAME><HID>0</HID><DS_ID>103</DS_ID>\
             <VM_MAD>kvm</VM_MAD><TM_MAD>qcow2</TM_MAD></HISTORY></HISTORY_RECORDS></VM>\n",
            self.image().display(),
            host::NAME,
        );
        fs::write(oned.join("vm/7.xml"), vm)?;
        let mut pool = String::new();
        for (id, kind, mad) in [(1, 0, "fs"), (103, 1, "-")] {
            let xml = format!(
                "<DATASTORE><ID>{id}</ID><NAME>bench {id}</NAME><DS_MAD>{mad}</DS_MAD><TM_MAD>qcow2</TM_MAD>\
                 <BASE_PATH><![CDATA[{}/{id}]]></BASE_PATH><TYPE>{kind}</TYPE><TEMPLATE><TM_MAD>qcow2</TM_MAD></TEMPLATE>\
                 </DATASTORE>\n",
                self.datastores.display()
            );
            fs::write(oned.join(format!("datastore/{id}.xml")), &xml)?;
            pool += &xml;
        }
        fs::write(oned.join("datastorepool.xml"), format!("<DATASTORE_POOL>{pool}</DATASTORE_POOL>\n"))?;
        for (command, kind) in [("onevm", "vm"), ("onedatastore", "datastore")] {
            let file = bin.join(command);
            fs::write(&file, stand_in(kind, oned))?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// The arguments of the action.
    pub fn args(&self) -> Vec<OsString> {
        let at = |path: &Path| {
            let mut word = OsString::from(host::NAME);
            word.push(":");
            word.push(path);
            word
        };
        let mut image = OsString::from("frontend:");
        image.push(self.image());
        let number = |number: u64| OsString::from(number.to_string());
        let disk = at(&self.disk());
        match self.act {
            Act::Clone | Act::CloneRaw(_) | Act::Ln => vec![image, disk, "7".into(), "1".into()],
            Act::SnapCreate => vec![disk, number(2), "7".into(), "1".into()],
            Act::SnapRevert => vec![disk, number(0), "7".into(), "1".into()],
            Act::SnapDelete => vec![disk, number(1), "7".into(), "1".into()],
            Act::Resize => vec![disk, number(LARGER), "7".into(), "1".into()],
        }
    }

    /// The command on the host that nobody can do without; `more` is added to it.
    pub fn command(&self, more: &str) -> String {
        let quoted = |path: PathBuf| format!("'{}'", path.display());
        let create = |backing: &str, layer: PathBuf| {
            let options = format!("-f qcow2 -F qcow2 -b {backing}");
            format!("qemu-img create -q {options} {} {SIZE}M", quoted(layer))
        };
        let command = match self.act {
            Act::Clone => create(&quoted(self.image()), self.disk()),
            Act::CloneRaw(_) => format!("cp --sparse=always {} {}", quoted(self.image()), quoted(self.disk())),
            // What kind of image it is has to be known first.
            Act::Ln => {
                let (image, disk) = (quoted(self.image()), quoted(self.disk()));
                format!("qemu-img info {image} >/dev/null && ln -s {image} {disk}")
            }
            Act::SnapCreate => create("disk.0.snap/2", self.layer(3)),
            Act::SnapRevert => create("disk.0.snap/0", self.layer(3)),
            Act::SnapDelete => {
                format!("qemu-img rebase -f qcow2 -F qcow2 -b disk.0.snap/0 {}", quoted(self.layer(2)))
            }
            Act::Resize => format!("qemu-img resize -q -f qcow2 {} {LARGER}M", quoted(self.layer(2))),
        };
        if more.is_empty() { command } else { format!("{command} && {more} {}", quoted(self.disk())) }
    }

    /// [`floor`] on the host.
    pub fn durable_copy(&self, program: &Path) -> String {
        let [program, image, disk] = [program, &self.image(), &self.disk()].map(|path| format!("'{}'", path.display()));
        format!("{program} {} {image} {disk}", floor::VERB)
    }

    /// Lays the VM's directory out as it is before the action.
    ///
    /// # Errors
    /// The disk is full.
    pub fn reset(&self) -> Result<()> {
        remove(&self.dir())?;
        remove(&self.datastores.join("1/0123456789abcdef.snap"))?;
        copy(&self.template, &self.dir()).with_context(|| format!("Cannot lay out {}", self.dir().display()))
    }

    /// Whether the disk is what the action owes.
    ///
    /// # Errors
    /// It is not.
    pub fn judge(&self) -> Result<()> {
        let target = || fs::read_link(self.disk()).context("The disk is no link");
        let owed = match self.act {
            Act::Clone => Header::read(&target()?, &self.dir())?.backing == self.image().display().to_string(),
            Act::CloneRaw(source) => fs::metadata(self.disk())?.len() == source.len(),
            Act::Ln => fs::canonicalize(self.disk())? == fs::canonicalize(self.image())?,
            Act::SnapCreate => Header::read(&target()?, &self.dir())?.backing.ends_with("/2"),
            Act::SnapRevert => Header::read(&target()?, &self.dir())?.backing.ends_with("/0"),
            Act::SnapDelete => {
                !self.layer(1).exists() && Header::read(&target()?, &self.dir())?.backing.ends_with("/0")
            }
            Act::Resize => Header::read(&target()?, &self.dir())?.bytes == LARGER << 20,
        };
        if !owed {
            bail!("Wrong result: {:?} did not leave {} as it should be", self.act, self.disk().display());
        }
        Ok(())
    }
}

/// What the header of a qcow2 file tells (QEMU's docs/interop/qcow2.txt).
struct Header {
    backing: String,
    bytes: u64,
}

impl Header {
    fn read(target: &Path, dir: &Path) -> Result<Self> {
        let path = dir.join(target);
        let text = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let number = |at: usize| -> Result<u64> {
            let bytes = text.get(at..at + 8).context("The file is too short")?;
            Ok(u64::from_be_bytes(bytes.try_into()?))
        };
        let (at, len) = (usize::try_from(number(8)?)?, usize::try_from(number(16)? >> 32)?);
        let backing = text.get(at..at + len).context("The file is too short")?;
        Ok(Self { backing: String::from_utf8_lossy(backing).into_owned(), bytes: number(24)? })
    }
}

/// An empty qcow2 file, on the disk.
fn create(path: &Path, backing: Option<&str>) -> Result<()> {
    let size = format!("{SIZE}M");
    let mut args = vec!["create", "-q", "-u", "-f", "qcow2"];
    if let Some(backing) = backing {
        args.extend(["-F", "qcow2", "-b", backing]);
    }
    let mut args: Vec<&std::ffi::OsStr> = args.into_iter().map(std::ffi::OsStr::new).collect();
    args.extend([path.as_os_str(), size.as_ref()]);
    helper("qemu-img", &args, Stdio::null())
}

fn remove(path: &Path) -> Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    gone.with_context(|| format!("Cannot remove {}", path.display()))
}

/// Copies a directory with its links.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        let target = to.join(entry.file_name().unwrap_or_default());
        if kind.is_symlink() {
            symlink(fs::read_link(&entry)?, target)?;
        } else if kind.is_dir() {
            copy(&entry, &target)?;
        } else {
            fs::copy(&entry, target)?;
        }
    }
    Ok(())
}
