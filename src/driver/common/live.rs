//! Storage operations on running domains: snapshot, merge, pull, copy, and copies of a frozen guest.
//!
//! Source: contract 02 §5 (`cpds`, `snap_create_live`, `snap_delete`); virsh(1). Three rules hold for all of them:
//!
//! - **A guest that ran runs afterwards**, whatever becomes of us: thawing, resuming and ending a block job are left with a
//!   guard on the host ([`Op::Guard`]) before anything is frozen or begun.
//! - **What libvirt says it has done is looked up** in the domain's description, and in the header where one was written,
//!   before anybody touches a file.
//! - **One operation at a time on one disk**: ours wait for each other, those of others are waited for a little.
//!
//! Each runs as one script on the host: one to look ([`Live::look`]), one to do it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::args::disk_number;
use crate::context::Cx;
use crate::exec::error::{OpError, OpErrorKind};
use crate::exec::host::{ErrorKind, Host, ScriptError};
use crate::exec::op::{Op, Value};
use crate::exec::step::Step;
use crate::image::{HEAD, Prefix, RefKind, inspect};
use crate::tool::virsh::{Disk, Domain, Layer, Virsh, job_kind};

/// Seconds between two looks at a disk that somebody else works on, as upstream waits.
const PAUSE: Duration = Duration::from_secs(5);

/// Looks at a busy disk where the operator sets no `VIRSH_RETRIES`.
const RETRIES: u64 = 3;

/// The domain of one VM on the host where it runs.
pub struct Live<'a> {
    cx: &'a Cx<'a>,
    host: Arc<dyn Host>,
    name: String,
    virsh: Virsh,
    retries: u64,
}

/// What was seen of a running domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its disks and its agent.
    pub domain: Domain,
    /// Whether its virtual CPUs stand still already; then they are left so.
    pub paused: bool,
}

impl Seen {
    /// Files of a disk as libvirt names them, the current one first: `chain::Live` wants them.
    #[must_use]
    pub fn files(&self, target: &str) -> Vec<PathBuf> {
        let chain = self.domain.disk(target).map(|disk| disk.chain.as_slice()).unwrap_or_default();
        chain.iter().map(|layer| layer.path.clone()).collect()
    }
}

/// The layer whose header a pull or merge changes, and the backing file that it names afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Above<'a> {
    /// Its file, by a path that is right now: libvirt's own may be a link that has moved on.
    pub file: &'a Path,
    /// The name to be written, as it is to stand in the header; `None` for no backing file at all.
    pub backing: Option<&'a Path>,
}

impl<'a> Live<'a> {
    /// The domain `name` (`DEPLOY_ID`) on `host`, by the operator's `kvmrc`.
    #[must_use]
    pub fn new(cx: &'a Cx<'a>, host: &Arc<dyn Host>, name: &str) -> Self {
        let retries = cx.settings.get("VIRSH_RETRIES").and_then(|text| text.trim().parse().ok());
        Self {
            cx,
            host: Arc::clone(host),
            name: name.to_owned(),
            virsh: Virsh::of(cx.settings),
            retries: retries.unwrap_or(RETRIES),
        }
    }

    /// Looks at the domain.
    ///
    /// # Errors
    /// It does not run there, or libvirt does not answer: in libvirt's words.
    pub fn look(&self) -> Result<Seen> {
        let ops = [self.virsh.domstate(&self.name), self.virsh.dumpxml(&self.name)].map(Op::Run);
        let [state, xml] =
            &self.cx.query(&self.host, ops).with_context(|| format!("Cannot look at domain {}", self.name))?[..]
        else {
            bail!("Cannot look at domain {}: no answer", self.name)
        };
        let paused = match state.text().as_str() {
            "running" | "idle" => false,
            "paused" => true,
            state => bail!("Domain {} does not run: it is {state}", self.name),
        };
        Ok(Seen { domain: Domain::parse(&xml.text())?, paused })
    }

    /// Has the domain write to `overlay` from now on: a qcow2 file that is there, and names the current file as its
    /// backing file. Frozen by its agent meanwhile, if it has one; else the disk is as after a power failure at one moment.
    ///
    /// What fails later in the action takes it back: the domain merges the overlay into the file below, then it is removed.
    /// An overlay that the domain does not write to for certain is removed as well; one that it may write to never is.
    ///
    /// # Errors
    /// The domain goes on with its current file, or is gone; it runs if it ran.
    pub fn snapshot(&self, seen: &Seen, target: &str, overlay: &Path) -> Result<()> {
        self.alone(target)?;
        let disk = self.disk(seen, target)?;
        let below = disk.chain.first().and_then(|layer| layer.index);
        let path =
            overlay.to_str().ok_or_else(|| anyhow!("Cannot name {} to libvirt: it is not UTF-8", overlay.display()))?;
        let others = seen.domain.disks.iter().map(|disk| disk.target.as_str()).filter(|other| *other != target);
        let take = self.virsh.snapshot(&self.name, target, path, others);
        let step = |freeze: bool| {
            let mut ops = if freeze { self.freeze() } else { Vec::new() };
            ops.extend([Op::Run(take.clone()), self.dump()]);
            Step::new(&self.host, format!("Have {} write {target} to {}", self.name, overlay.display()), ops)
        };
        let freezes = seen.domain.agent && !seen.paused;
        let mut done = self.cx.apply(step(freezes));
        if let Err(error) = &done
            && freezes
            && failed_at(error) == Some(1)
        {
            self.cx.warn(format!("The guest of {} is not frozen for the snapshot: {error:#}", self.name));
            done = self.cx.apply(step(false));
        }
        if !self.cx.is_real() {
            return done.map(drop);
        }
        let result = done.and_then(|values| {
            self.expect(&values, target, |now| now.first().is_some_and(|layer| layer.path == overlay))
        });
        match result {
            Ok(_) => {
                let mut undo = Vec::new();
                undo.extend(below.map(|below| Op::Run(self.virsh.commit_active(&self.name, target, below))));
                undo.push(Op::Remove { path: overlay.to_owned(), tree: false, must_exist: false });
                self.cx.on_failure(
                    Step::new(
                        &self.host,
                        format!("Have {} write {target} to what is below {}", self.name, overlay.display()),
                        [],
                    )
                    .undo(undo),
                );
                Ok(())
            }
            Err(error) => {
                // Only what the living domain denies is certain.
                let unused = self.look().is_ok_and(|now| {
                    now.domain.disk(target).is_some_and(|disk| disk.chain.iter().all(|layer| layer.path != overlay))
                });
                if unused {
                    let remove = Op::Remove { path: overlay.to_owned(), tree: false, must_exist: false };
                    let step = Step::new(&self.host, format!("Remove the unused {}", overlay.display()), [remove]);
                    self.cx.apply(step.best_effort())?;
                } else {
                    self.cx.warn(format!("{} stays: domain {} may have written to it", overlay.display(), self.name));
                }
                Err(error)
            }
        }
    }

    /// Has the domain copy into the current file of the disk what that shows of the files down to the one at position
    /// `base` of its chain (0 is the current one), or of all.
    ///
    /// A failure or our death ends the job; the disk is whole at any time.
    ///
    /// # Errors
    /// The chain is as before, with more in the current file.
    pub fn pull(&self, seen: &Seen, target: &str, base: Option<usize>, above: Above<'_>) -> Result<()> {
        let disk = self.disk(seen, target)?;
        let index = base.map(|base| self.index(disk, base)).transpose()?;
        let job = self.virsh.pull(&self.name, target, index, is_relative(above));
        let what = format!("Have {} pull into {}", self.name, above.file.display());
        let kept: Vec<Layer> =
            disk.chain.iter().take(1).chain(base.iter().flat_map(|base| &disk.chain[*base..])).cloned().collect();
        self.job(target, what, job, (disk, 0, above), &kept)
    }

    /// Has the domain merge the files from position `top` of the disk's chain down to the one before `base` into the one at
    /// `base`. `top` is not the current one, 0.
    ///
    /// A failure or our death ends the job: the disk is whole at any time, but what `base` alone shows is a mixture then.
    ///
    /// QEMU opens what it merges into, and the file whose backing name changes, again by the names that it knows them by.
    /// A name that is the disk's link leads to the current file by then; so nothing is merged by such a name.
    ///
    /// # Errors
    /// The chain is as before: the domain knows a file that would be written by the disk's link, or what libvirt says.
    pub fn commit(&self, seen: &Seen, target: &str, (top, base): (usize, usize), above: Above<'_>) -> Result<()> {
        let disk = self.disk(seen, target)?;
        if top == 0 || top >= base {
            bail!(
                "Cannot merge position {top} of {target} into {base}: it has to lie between the current file and that"
            );
        }
        if let Some(link) = moving(&disk.chain, (top, base)) {
            bail!(
                "Domain {} knows a file of {target} as {}, which is the disk's link and leads elsewhere now: pull instead",
                self.name,
                link.display()
            );
        }
        let job = self.virsh.commit(
            &self.name,
            target,
            (self.index(disk, top)?, self.index(disk, base)?),
            is_relative(above),
        );
        let what = format!(
            "Have {} merge {} into {}",
            self.name,
            disk.chain[top].path.display(),
            disk.chain[base].path.display()
        );
        let kept: Vec<Layer> = disk.chain[..top].iter().chain(&disk.chain[base..]).cloned().collect();
        self.job(target, what, job, (disk, top - 1, above), &kept)
    }

    /// Has the domain merge its current file into the one below, and write to that again. The file stays, unused.
    ///
    /// A failure or our death ends the job: the domain goes on with its current file.
    ///
    /// # Errors
    /// What libvirt says.
    pub fn merge_current(&self, seen: &Seen, target: &str) -> Result<()> {
        self.alone(target)?;
        let disk = self.disk(seen, target)?;
        let kept: Vec<Option<u32>> = disk.chain.iter().skip(1).map(|layer| layer.index).collect();
        let ops = [
            Op::Guard { cmd: self.virsh.job_abort(&self.name, target), only_on_failure: true },
            Op::Run(self.virsh.commit_active(&self.name, target, self.index(disk, 1)?)),
            self.dump(),
        ];
        let what = format!("Have {} merge the current file of {target} into the one below", self.name);
        let values = self.cx.apply(Step::new(&self.host, what, ops))?;
        if !self.cx.is_real() {
            return Ok(());
        }
        self.expect(&values, target, |now| now.iter().map(|layer| layer.index).eq(kept.iter().copied())).map(drop)
    }

    /// Copies the disk as the guest sees it, without backing files, to the new file `to`, in `format` (`raw`, `qcow2`).
    /// Where libvirt cannot begin that, `otherwise` says how to copy the current file while the guest is frozen, or
    /// suspended. The copy is synced, and goes when the action fails.
    ///
    /// # Errors
    /// Neither was possible. The domain runs if it ran.
    pub fn copy(
        &self,
        seen: &Seen,
        target: &str,
        to: &Path,
        format: &str,
        otherwise: impl FnOnce(&Path) -> Vec<Op>,
    ) -> Result<()> {
        self.alone(target)?;
        let disk = self.disk(seen, target)?;
        let current = disk.chain.first().map(|layer| layer.path.clone()).unwrap_or_default();
        let remove = || Op::Remove { path: to.to_owned(), tree: false, must_exist: false };
        // An empty file that is there is taken as it is: one made by libvirtd would be root's.
        let ops = [
            Op::CreateSparse { path: to.to_owned(), bytes: 0 },
            Op::Guard { cmd: self.virsh.job_abort(&self.name, target), only_on_failure: true },
            Op::Run(self.virsh.copy(&self.name, target, to, format)),
            Op::Sync { path: to.to_owned() },
            self.dump(),
        ];
        let what = format!("Have {} copy {target} to {}", self.name, to.display());
        let error = match self.cx.apply(Step::new(&self.host, what, ops).undo([remove()])) {
            Ok(_) if !self.cx.is_real() => return Ok(()),
            Ok(values) => {
                let same =
                    |now: &[Layer]| now.iter().map(|layer| &layer.path).eq(disk.chain.iter().map(|layer| &layer.path));
                return self.expect(&values, target, same).map(drop);
            }
            Err(error) => error,
        };
        if failed_at(&error) != Some(2) || !refused(&error) {
            return Err(explained(error, 2, to));
        }
        self.cx.warn(format!("{error:#}; copying {} while {} stands still", current.display(), self.name));
        let mut ops = vec![remove()];
        ops.extend(otherwise(&current));
        ops.push(Op::Sync { path: to.to_owned() });
        self.frozen(seen, format!("Copy {} to {}", current.display(), to.display()), &ops, [remove()]).map(drop)
    }

    /// Does something while the guest is frozen by its agent, or suspended where it has none that works. One that stands
    /// still already is left so.
    ///
    /// Thawing is left with a guard on the host before: the guest runs on when the operations have ended, failed, or
    /// nobody is left to wait for them.
    ///
    /// # Errors
    /// What failed of the operations, or that the guest can neither be frozen nor suspended.
    pub fn frozen(
        &self,
        seen: &Seen,
        what: impl Into<String>,
        ops: &[Op],
        undo: impl IntoIterator<Item = Op>,
    ) -> Result<Vec<Value>> {
        let what = what.into();
        let undo: Vec<Op> = undo.into_iter().collect();
        let step = |before: Vec<Op>, how: &str| {
            let what = format!("{what}, {how}");
            Step::new(&self.host, what, before.into_iter().chain(ops.iter().cloned())).undo(undo.clone())
        };
        if seen.paused {
            return self.cx.apply(step(Vec::new(), &format!("{} stands still already", self.name)));
        }
        if seen.domain.agent {
            match self.cx.apply(step(self.freeze(), &format!("the guest of {} frozen", self.name))) {
                Err(error) if failed_at(&error) == Some(1) => {
                    self.cx.warn(format!("{error:#}; suspending {} instead", self.name));
                }
                done => return done.map(|values| values[2..].to_vec()),
            }
        }
        let suspend = vec![
            Op::Guard { cmd: self.virsh.resume(&self.name), only_on_failure: false },
            Op::Run(self.virsh.suspend(&self.name)),
        ];
        self.cx.apply(step(suspend, &format!("{} suspended", self.name))).map(|values| values[2..].to_vec())
    }

    /// A block job that changes the chain to `kept`, and the name that `above`, at position `at` of the disk, has to hold.
    fn job(
        &self,
        target: &str,
        what: String,
        job: crate::exec::cmd::Cmd,
        (disk, at, above): (&Disk, usize, Above<'_>),
        kept: &[Layer],
    ) -> Result<()> {
        self.alone(target)?;
        let mut ops =
            vec![Op::Guard { cmd: self.virsh.job_abort(&self.name, target), only_on_failure: true }, Op::Run(job)];
        if let Some(backing) = above.backing {
            let name = backing
                .to_str()
                .ok_or_else(|| anyhow!("Cannot name {} to QEMU: it is not UTF-8", backing.display()))?;
            let nodes = (self.index(disk, 0)?, self.index(disk, at)?);
            ops.push(Op::Run(self.virsh.name_backing(&self.name, nodes, name)));
        }
        ops.push(Op::Read { path: above.file.to_owned(), offset: 0, len: HEAD as u64 });
        ops.push(self.dump());
        let values =
            self.cx.apply(Step::new(&self.host, what, ops)).map_err(|error| explained(error, 1, above.file))?;
        if !self.cx.is_real() {
            return Ok(());
        }
        let indexes = |layers: &[Layer]| layers.iter().map(|layer| layer.index).collect::<Vec<_>>();
        self.expect(&values, target, |now| indexes(now) == indexes(kept))?;
        let [.., Value::Bytes(head), _] = &values[..] else { bail!("Cannot read {}: no answer", above.file.display()) };
        let found = inspect(&mut Prefix::new(head, None)).context("Cannot read the header")?;
        let named = found.references.iter().find(|reference| reference.kind == RefKind::BackingFile);
        let named = named.map(|reference| reference.name.as_str());
        if named.map(Path::new) != above.backing {
            let show = |name: Option<&str>| name.unwrap_or("no file").to_owned();
            bail!(
                "{} names {} as its backing file, not {}, after domain {} has changed it",
                above.file.display(),
                show(named),
                show(above.backing.and_then(Path::to_str)),
                self.name
            );
        }
        Ok(())
    }

    /// Nobody else works on the disk: our own actions wait here for each other, and a foreign job is waited for.
    fn alone(&self, target: &str) -> Result<()> {
        self.cx.lock(&format!("live-{}-{target}", self.name))?;
        let ask = || -> Result<Option<String>> {
            let info = self.cx.ask(&self.host, Op::Run(self.virsh.job_info(&self.name, target)))?;
            Ok(job_kind(&info.text()).map(str::to_owned))
        };
        let mut tries = 0;
        while let Some(kind) = ask().with_context(|| format!("Cannot look at {target} of domain {}", self.name))? {
            if tries >= self.retries || !self.cx.is_real() {
                bail!("{target} of domain {} is busy: the job \"{kind}\" runs on it", self.name);
            }
            tries += 1;
            self.cx.info(format!("Waiting for the job \"{kind}\" on {target} of domain {}", self.name));
            let until = Instant::now() + PAUSE;
            while Instant::now() < until {
                self.cx.control.check()?;
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    fn disk<'s>(&self, seen: &'s Seen, target: &str) -> Result<&'s Disk> {
        seen.domain.disk(target).ok_or_else(|| anyhow!("Domain {} has no disk {target}", self.name))
    }

    fn index(&self, disk: &Disk, at: usize) -> Result<u32> {
        let layer = disk.chain.get(at);
        layer
            .and_then(|layer| layer.index)
            .ok_or_else(|| anyhow!("{} of domain {} has no file at position {at}", disk.target, self.name))
    }

    fn freeze(&self) -> Vec<Op> {
        vec![
            Op::Guard { cmd: self.virsh.thaw(&self.name), only_on_failure: false },
            Op::Run(self.virsh.freeze(&self.name)),
        ]
    }

    fn dump(&self) -> Op {
        Op::Run(self.virsh.dumpxml(&self.name))
    }

    /// The last answer is a description of the domain, in which the disk's chain has to be right.
    fn expect(&self, values: &[Value], target: &str, right: impl Fn(&[Layer]) -> bool) -> Result<Domain> {
        let domain = Domain::parse(&values.last().map(Value::text).unwrap_or_default())?;
        let disk = domain.disk(target).ok_or_else(|| anyhow!("Domain {} has lost its disk {target}", self.name))?;
        if disk.mirror || !right(&disk.chain) {
            let files: Vec<String> = disk.chain.iter().map(|layer| layer.path.display().to_string()).collect();
            bail!("Domain {} does not have {target} as it should: it has {}", self.name, files.join(" on "));
        }
        Ok(domain)
    }
}

/// A file that a merge of `top` into `base` writes to, if the domain knows it by a disk's link. The current file is open
/// for writing already.
fn moving(chain: &[Layer], (top, base): (usize, usize)) -> Option<&Path> {
    let is_link = |path: &Path| path.file_name().and_then(OsStr::to_str).and_then(disk_number).is_some();
    let written = [Some(base), top.checked_sub(1).filter(|above| *above > 0)];
    let mut written = written.into_iter().flatten().filter_map(|at| chain.get(at)).map(|layer| layer.path.as_path());
    written.find(|path| is_link(path))
}

fn is_relative(above: Above<'_>) -> bool {
    above.backing.is_some_and(Path::is_relative)
}

/// Index of the operation that failed, where one did.
fn failed_at(error: &anyhow::Error) -> Option<usize> {
    error.downcast_ref::<ScriptError>().filter(|error| error.kind == ErrorKind::Failed)?.failure.as_ref()?.index
}

/// Whether virsh refused the job, in contrast to one that was begun and failed: that has its reason in the storage, and
/// another way of copying would meet it again with the guest standing still. Of the latter virsh says nothing on stderr.
fn refused(error: &anyhow::Error) -> bool {
    let failure = error.downcast_ref::<ScriptError>().and_then(|error| error.failure.as_ref());
    match failure.map(|failure| &failure.kind) {
        Some(OpErrorKind::Program { stderr, .. }) => stderr.contains("error:"),
        _ => false,
    }
}

/// Adds what virsh leaves unsaid when operation `at`, a job, began and failed.
fn explained(error: anyhow::Error, at: usize, to: &Path) -> anyhow::Error {
    let failure = error.downcast_ref::<ScriptError>().and_then(|error| error.failure.as_ref());
    let unsaid =
        |failure: &OpError| matches!(&failure.kind, OpErrorKind::Program { stderr, .. } if stderr.trim().is_empty());
    if failed_at(&error) == Some(at) && failure.is_some_and(|failure| unsaid(failure)) {
        return error.context(format!("The hypervisor could not write {}: is there space left", to.display()));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_merged_by_the_name_of_a_disks_link() {
        let chain = |names: &[&str]| -> Vec<Layer> {
            let layer = |(at, name): (u32, &&str)| Layer {
                path: Path::new("/ds/0/7").join(name),
                format: "qcow2".to_owned(),
                index: Some(at),
            };
            (0..).zip(names).map(layer).collect()
        };
        let started = chain(&["disk.0.snap/3", "disk.0.snap/2", "disk.0.snap/1", "disk.0", "disk.0.snap/0"]);
        let link = Some(Path::new("/ds/0/7/disk.0"));
        // Into it, and below what names it.
        assert_eq!(moving(&started, (2, 3)), link);
        assert_eq!(moving(&started, (1, 3)), link);
        assert_eq!(moving(&started, (4, 5)), link);
        // It is only read, or not part of it.
        assert_eq!(moving(&started, (3, 4)), None);
        assert_eq!(moving(&started, (1, 2)), None);
        // The current file is open for writing.
        assert_eq!(moving(&chain(&["disk.0", "disk.0.snap/1", "disk.0.snap/0"]), (1, 2)), None);
    }
}
