//! A file that holds all of a disk, for what leaves the VM's directory: the disk itself where it stands alone, a merged copy
//! where it is layers, and a copy of what the guest sees while it runs.
//!
//! Source: contract 02 §7 (`mvds`, `cpds`, `snap_create`, `snap_create_live`).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::Disk;
use crate::driver::common::backing::{judged, without_self_links};
use crate::driver::common::container::Container;
use crate::driver::common::disk::record;
use crate::driver::common::folder::Folder;
use crate::driver::common::layers::{HEAD, data_format};
use crate::driver::common::live::Live;
use crate::exec::op::{FileKind, Op, Sparse, Value};
use crate::exec::step::Step;
use crate::location::normalize;
use crate::payload::Vm;
use crate::tool::qemu_img;
use crate::tool::qemu_img::Zeroes;

/// A file of a disk that was looked at: the disk itself, or a snapshot of it.
pub struct Found {
    /// The file, links followed.
    pub file: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// How it is made to stand alone, where it does not: its format, the one that is wanted, and most bytes of the copy.
    merge: Option<(&'static str, &'static str, Option<u64>)>,
}

impl Found {
    /// Looks at `path`, which is the disk or a file of its snapshots. `format` is what oned says of the disk.
    ///
    /// # Errors
    /// It is missing or unsafe, or leads to what is not a part of the disk.
    pub fn look(cx: &Cx<'_>, disk: &Disk, path: &Path, format: Option<&str>) -> Result<Self> {
        let host = &disk.place.host;
        let questions = [
            Op::ReadLink { path: path.to_owned() },
            Op::Stat { path: path.to_owned(), follow: true },
            Op::Head { path: path.to_owned(), len: HEAD },
        ];
        let mut answers = cx.query(host, questions.into_iter().chain(disk.dirs()))?;
        disk.refuse_links(&answers.split_off(answers.len().min(3)))?;
        let [link, stat, head] =
            <[Value; 3]>::try_from(answers).map_err(|_| anyhow::anyhow!("The host did not answer all questions"))?;
        let Some(stat) = stat.stat() else { bail!("{} does not exist on {}", path.display(), host.name()) };
        if stat.kind != FileKind::File {
            bail!("{} is no file", path.display());
        }
        let file = match &link {
            Value::Bytes(text) => {
                let text = Path::new(OsStr::from_bytes(text));
                let file = without_self_links(&normalize(&path.parent().unwrap_or(Path::new("/")).join(text)));
                if file.parent() != Some(&disk.snapshots()) {
                    bail!("{} is a link to {}, which is not a part of it", path.display(), text.display());
                }
                file
            }
            _ => path.to_owned(),
        };
        let is_link = file != path;
        let itself = Op::Stat { path: file.clone(), follow: false };
        if is_link && cx.ask(host, itself)?.stat().is_none_or(|stat| stat.kind != FileKind::File) {
            bail!("{} is no file, and no layer can be a link", file.display());
        }
        let alone = Self { file: file.clone(), size: stat.size, merge: None };
        if format.is_none_or(|format| format == "raw") && !is_link {
            // A guest can write anything into it, another format's header too.
            return Ok(alone);
        }
        let mut known = HashMap::from([(file.clone(), head)]);
        let top = judged(cx, disk, &file, &mut known)?;
        let wanted = if is_link { qemu_img::written(format) } else { data_format(top.format) };
        if top.backing.is_none() && data_format(top.format) == wanted {
            return Ok(alone);
        }
        Ok(Self { merge: Some((top.format.name(), wanted, top.virtual_size.map(qemu_img::largest))), ..alone })
    }

    /// What makes a file that stands alone at `staged`; nothing where this one does.
    pub fn merge(&self, staged: &Path) -> Option<[Op; 2]> {
        let (format, wanted, largest) = self.merge?;
        let convert = qemu_img::convert((&self.file, format), (staged, wanted), Zeroes::Holes, largest);
        Some([Op::Run(convert), Op::Sync { path: staged.to_owned() }])
    }
}

/// A disk of a running VM.
pub struct Running<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// Its VM.
    pub vm: &'a Vm,
    /// A staging name in the VM's directory.
    pub to: &'a Path,
}

impl Running<'_> {
    /// Has what the guest sees copied to the staging name, whole and synced. A domain copies it itself; where it cannot, and
    /// for a container, the guest stands still meanwhile. What was standing still or running before is so afterwards.
    ///
    /// # Errors
    /// The guest does not run there, or neither way was possible.
    pub fn copy(&self, cx: &Cx<'_>, folder: &Folder, failure: &str) -> Result<()> {
        let Self { disk, vm, to } = self;
        let host = &disk.place.host;
        let id = disk.place.vm;
        let record = record(vm, id, disk.number)?;
        let domain = vm.deploy_id.trimmed().with_context(|| format!("VM {id} has no DEPLOY_ID in oned"))?;
        let format = if record.format.trimmed() == Some("qcow2") { "qcow2" } else { "raw" };
        let hypervisor = vm.last_history().and_then(|history| history.vm_mad.trimmed()).unwrap_or("kvm");
        if hypervisor == "lxc" {
            let whole = Found::look(cx, disk, &disk.path, record.format.trimmed())?;
            let ops = match whole.merge(to) {
                Some(_) => bail!("LXC driver does not support live snapshots of layers"),
                None => [
                    Op::Copy { from: whole.file, to: to.to_path_buf(), sparse: Sparse::Holes },
                    Op::Sync { path: to.to_path_buf() },
                ],
            };
            cx.apply(folder.prepared_step("Make room for the copy", folder.prepare()).or_say(failure))?;
            let undo = [Op::Remove { path: to.to_path_buf(), tree: false, must_exist: false }];
            Container::look(cx, host, domain)?.frozen("Copy the disk", &ops, undo)?;
            return Ok(());
        }
        let target = record.target.trimmed();
        let target = target.with_context(|| format!("Disk {} of VM {id} has no TARGET in oned", disk.number))?;
        let live = Live::new(cx, host, domain);
        let seen = live.look()?;
        let whole = |current: &Path| {
            let (from, to) = (current.to_owned(), to.to_path_buf());
            match format {
                "qcow2" => vec![Op::Run(qemu_img::convert_open((&from, "qcow2"), (&to, "qcow2"), Zeroes::Holes))],
                _ => vec![Op::Copy { from, to, sparse: Sparse::Holes }],
            }
        };
        cx.apply(folder.prepared_step("Make room for the copy", folder.prepare()).or_say(failure))?;
        live.copy(&seen, target, to, format, whole)
    }
}

/// Removes staging files of a folder and leaves it, when all is done.
pub fn forget(cx: &Cx<'_>, folder: &Folder, files: impl IntoIterator<Item = PathBuf>) {
    let remove = |path| Op::Remove { path, tree: false, must_exist: false };
    let ops: Vec<Op> = files.into_iter().map(remove).chain(folder.leave()).collect();
    cx.after(Step::new(&folder.host, "Remove the merged files", ops).best_effort());
}
