//! From a plan to scripts: every pure step as operations, with what takes it back.

use std::io;
use std::path::{Path, PathBuf};

use crate::exec::cmd::Secret;
use crate::exec::op::{Op, Sparse};
use crate::exec::staging::{self, Owner};
use crate::image::chain::{Names, Plan, Planned, Step};
use crate::tool::qemu_img;

/// Where new files of a chain are written before they get their names.
#[derive(Clone, Debug)]
pub struct Staging {
    base: PathBuf,
    owner: Owner,
}

impl Staging {
    /// Beside the folder of layers: of the VM for its own disks, of the datastore for an image used in place.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of(names: &Names) -> io::Result<Self> {
        let base = names.origin.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { base, owner: Owner::me()? })
    }

    /// The folder that holds staging files; list it to [`Staging::prepare`].
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        staging::dir(&self.base)
    }

    /// What every change begins with: the folder, and the end of what killed runs left in it (`found`: its names).
    #[must_use]
    pub fn prepare(&self, found: &[std::ffi::OsString]) -> Vec<Op> {
        let mut ops = vec![Op::Claim { path: staging::claim_path(&self.base, &self.owner) }];
        ops.extend(staging::clear(&self.base, found, &self.owner));
        ops
    }

    /// What every change ends with, and what follows a failure.
    #[must_use]
    pub fn leave(&self) -> [Op; 2] {
        staging::leave(&self.base, &self.owner)
    }

    /// The staging name of a file. The folder's name is in it: layers of all disks are called by numbers.
    fn name(&self, file: &Path) -> PathBuf {
        let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
        let mut name = folder.to_owned();
        name.push(".");
        name.push(file.file_name().unwrap_or_default());
        staging::staging_path(&self.base, &self.owner, &name)
    }
}

/// A part of a plan that is done in one go.
#[derive(Debug)]
pub enum Phase {
    /// By one script on the host.
    Files(Files),
    /// By the running domain.
    Domain(Step),
}

/// One script on the host.
#[derive(Clone, Debug, Default)]
pub struct Files {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    what: String,
    ops: Vec<Op>,
    undo: Vec<Op>,
    scratch: Option<Op>,
}

impl Files {
    /// What it does, as one sentence.
    #[must_use]
    pub fn what(&self) -> String {
        let mut parts = self.parts.iter().map(|part| part.what.as_str());
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let mut rest = part.chars();
            text.push_str(", then ");
            text.extend(rest.next().into_iter().flat_map(char::to_lowercase));
            text.push_str(rest.as_str());
        }
        text
    }

    /// The operations.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        self.parts.iter().flat_map(|part| part.ops.iter().cloned()).collect()
    }

    /// What removes its staging files.
    #[must_use]
    pub fn scratch(&self) -> Vec<Op> {
        self.parts.iter().rev().filter_map(|part| part.scratch.clone()).collect()
    }

    /// What takes back the first `done` operations and the one after them, which may have been done in part.
    ///
    /// Not what was never reached: another action may have come in between and done it.
    #[must_use]
    pub fn undo(&self, done: usize) -> Vec<Op> {
        let mut begins = 0;
        let mut reached = Vec::new();
        for part in &self.parts {
            if begins > done {
                break;
            }
            reached.push(part);
            begins += part.ops.len();
        }
        reached.into_iter().rev().flat_map(|part| part.undo.iter().cloned()).collect()
    }
}

/// A plan as scripts, as few as possible, and what the domain does in between.
#[must_use]
pub fn phases(plan: &Plan, staging: &Staging) -> Vec<Phase> {
    let mut phases = Vec::new();
    let mut files = Files::default();
    let mut secured = true;
    for planned in &plan.steps {
        let ops = ops(&planned.step, staging);
        // What takes back the link of a disk that was a file must not run before the file has its second name for sure.
        let ends = ops.is_none() || (!secured && matches!(planned.step, Step::Link { .. }));
        if ends && !files.parts.is_empty() {
            phases.push(Phase::Files(std::mem::take(&mut files)));
            secured = true;
        }
        match ops {
            None => phases.push(Phase::Domain(planned.step.clone())),
            Some(ops) => files.parts.push(part(planned, ops, staging)),
        }
        secured &= !matches!(planned.step, Step::SecondName { .. });
    }
    if !files.parts.is_empty() {
        phases.push(Phase::Files(files));
    }
    phases
}

fn part(planned: &Planned, ops: Vec<Op>, staging: &Staging) -> Part {
    let scratch = match &planned.step {
        Step::PutOverlay { file, .. } | Step::PutCopy { to: file, .. } => {
            Some(Op::Remove { path: staging.name(file), tree: false, must_exist: false })
        }
        _ => None,
    };
    let undo = planned.undo.iter().flat_map(|step| take_back(step, staging)).collect();
    Part { what: planned.step.to_string(), ops, undo, scratch }
}

/// An undo tolerates that there is nothing to take back.
fn take_back(step: &Step, staging: &Staging) -> Vec<Op> {
    match step {
        Step::Remove { file } => vec![Op::Remove { path: file.clone(), tree: false, must_exist: false }],
        other => ops(other, staging).unwrap_or_default(),
    }
}

/// The operations of a step; `None` for what only the domain can do.
fn ops(step: &Step, staging: &Staging) -> Option<Vec<Op>> {
    let folder = |path: &Path| Op::Sync { path: path.parent().unwrap_or(Path::new("/")).to_owned() };
    let put = |make: Op, file: &Path| {
        let from = staging.name(file);
        vec![make, Op::Sync { path: from.clone() }, Op::Rename { from, to: file.to_owned() }, folder(file)]
    };
    Some(match step {
        Step::MakeFolder { folder } => vec![Op::MakeDir { path: folder.clone() }],
        Step::DropFolder { folder } => vec![Op::RemoveDirIfEmpty { path: folder.clone() }],
        Step::Link { link, target } => {
            vec![Op::Symlink { target: target.clone(), link: link.clone() }, folder(link)]
        }
        Step::SecondName { file, name } => vec![Op::HardLink { from: file.clone(), to: name.clone() }, folder(name)],
        Step::PutOverlay { file, backing, format, size } => {
            put(Op::Run(qemu_img::create_overlay(&staging.name(file), backing, format, *size)), file)
        }
        Step::PutCopy { from, to } => {
            put(Op::Copy { from: from.clone(), to: staging.name(to), sparse: Sparse::Holes }, to)
        }
        Step::Rebase { file, onto, copy } => {
            let (name, format) = match onto {
                Some((name, format)) => (Some(name.as_path()), format.as_str()),
                None => (None, "raw"),
            };
            vec![Op::Run(qemu_img::rebase(file, name, format, *copy)), Op::Sync { path: file.clone() }]
        }
        Step::Remove { file } => vec![Op::Remove { path: file.clone(), tree: false, must_exist: true }, folder(file)],
        Step::Mark { marker, names } => {
            let content = Secret::new(format!("{}\n", names.display()));
            vec![Op::Write { path: marker.clone(), content, mode: 0o644 }, folder(marker)]
        }
        Step::LiveSnapshot { .. } | Step::BlockPull { .. } | Step::BlockCommit { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(phases: &[Phase]) -> Vec<String> {
        let me = Owner::me().expect("proc").tag();
        let words =
            |ops: &[Op]| ops.iter().map(|op| op.to_string().replace(&me, "OWNER")).collect::<Vec<_>>().join("; ");
        let one = |phase: &Phase| match phase {
            Phase::Files(files) => {
                let all = files.ops();
                format!("{} | {}", words(&all), words(&files.undo(all.len())))
            }
            Phase::Domain(step) => step.to_string(),
        };
        phases.iter().map(one).collect()
    }

    fn staging() -> Staging {
        Staging::of(&Names::own("/ds/0/7/disk.0".into())).expect("proc")
    }

    #[test]
    fn a_plan_is_one_script_that_can_be_taken_back() {
        let (disk, layer) = (PathBuf::from("/ds/0/7/disk.0"), PathBuf::from("/ds/0/7/disk.0.snap/1"));
        let mut plan = Plan::default();
        let overlay =
            Step::PutOverlay { file: layer.clone(), backing: "disk.0.snap/0".into(), format: "qcow2", size: 512 };
        plan.push_with(overlay, Step::Remove { file: layer });
        let back = Step::Link { link: disk.clone(), target: "disk.0.snap/0".into() };
        plan.push_with(Step::Link { link: disk, target: "disk.0.snap/1".into() }, back);
        assert_eq!(
            say(&phases(&plan, &staging())),
            [
                "qemu-img create -q -u -f qcow2 -F qcow2 -b disk.0.snap/0 /ds/0/7/.onestore/OWNER.disk.0.snap.1.part 512; \
              fsync /ds/0/7/.onestore/OWNER.disk.0.snap.1.part; \
              rename /ds/0/7/.onestore/OWNER.disk.0.snap.1.part /ds/0/7/disk.0.snap/1; fsync /ds/0/7/disk.0.snap; \
              ln -sfn disk.0.snap/1 /ds/0/7/disk.0; fsync /ds/0/7 | \
              ln -sfn disk.0.snap/0 /ds/0/7/disk.0; fsync /ds/0/7; rm -f /ds/0/7/disk.0.snap/1"
            ]
        );
        let phases = phases(&plan, &staging());
        let [Phase::Files(files)] = phases.as_slice() else { panic!("one script") };
        let said =
            "Make the empty layer /ds/0/7/disk.0.snap/1 on disk.0.snap/0, then point /ds/0/7/disk.0 to disk.0.snap/1";
        assert_eq!(files.what(), said);
        assert_eq!(files.scratch().len(), 1);
        // Failed before the link: another action's link is not touched.
        assert_eq!([0, 3, 4, 6].map(|done| files.undo(done).len()), [1, 1, 3, 3]);
    }

    #[test]
    fn a_plain_disk_is_replaced_only_after_it_has_a_second_name() {
        let (disk, layer) = (PathBuf::from("/ds/0/7/disk.0"), PathBuf::from("/ds/0/7/disk.0.snap/0"));
        let mut plan = Plan::default();
        plan.push(Step::SecondName { file: disk.clone(), name: layer });
        let link = |to: &str| Step::Link { link: disk.clone(), target: to.into() };
        plan.push_with(link("disk.0.snap/1"), link("disk.0.snap/0"));
        let said = say(&phases(&plan, &staging()));
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].ends_with("| "), "{said:?}");
    }

    #[test]
    fn the_domain_acts_between_scripts() {
        let file = PathBuf::from("/ds/0/7/disk.0.snap/2");
        let mut plan = Plan::default();
        plan.push(Step::BlockPull { file: file.clone(), base: None, backing: None });
        plan.push(Step::Remove { file });
        let said = say(&phases(&plan, &staging()));
        assert_eq!(said[0], "Have the domain pull its whole chain into its current file");
        assert_eq!(said[1], "rm /ds/0/7/disk.0.snap/2; fsync /ds/0/7/disk.0.snap | ");
    }
}
