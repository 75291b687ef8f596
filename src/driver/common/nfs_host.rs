//! Datastores that a host mounts for its VMs, and keeps: `NFS_AUTO_ENABLE` of a transfer manager.
//!
//! Source: contract 02 §9, the persistent mount of `clone` and `ln`. Such a mount stands in `/etc/fstab`, and
//! `.automounted` marks it. Mounts of datastores that no longer ask for one are taken off, but only on oned's explicit
//! word: a list that is missing, empty or does not hold the datastores at hand takes nothing off.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::args::plain_number;
use super::nfs::{MARKER, export};
use crate::context::Cx;
use crate::driver::misuse;
use crate::exec::cmd::Secret;
use crate::exec::host::Host;
use crate::exec::op::{Op, Value};
use crate::exec::step::Step;
use crate::payload::Datastore;
use crate::report::Misuse;
use crate::tool::mount;

/// Most bytes of a table of mounts that are read.
const TABLE: u64 = 1 << 20;

/// Number of questions that [`questions`] asks.
pub const QUESTIONS: usize = 2;

/// What [`mount`] wants to know of the host: its mounts and its fstab.
pub fn questions() -> [Op; QUESTIONS] {
    ["/proc/self/mountinfo", "/etc/fstab"].map(|path| Op::Head { path: path.into(), len: TABLE })
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All that has to be mounted was mounted already.
    Nothing,
    /// Something was mounted.
    Mounted,
    /// `explain` has planned a mount.
    Planned,
}

/// Mounts those of `datastores` that ask for it below `root`, after taking off what is not wanted any more.
///
/// # Errors
/// What is to be mounted is incomplete or holds blanks; something else is mounted there; the mount fails.
pub fn mount(
    cx: &Cx<'_>,
    host: &Arc<dyn Host>,
    root: &Path,
    datastores: &[Datastore],
    answers: &[Value],
) -> Result<Plan> {
    let failure = || format!("Error setting up NFS mounts on {}", host.name());
    let text = |at: usize| answers.get(at).map(Value::text).unwrap_or_default();
    let mounts = nfs_mounts(&text(0));
    let ids: Vec<u32> =
        datastores.iter().map(|d| d.id.required_number()).collect::<Result<_, _>>().with_context(failure)?;
    unmount_unwanted(cx, host, root, &ids, &mounts)?;
    let mut plan = Plan::Nothing;
    for (datastore, id) in datastores.iter().zip(&ids) {
        if !datastore.template.nfs_auto_enable.is_yes_any_case() {
            continue;
        }
        let base = root.join(id.to_string());
        let source = export(&datastore.template).with_context(failure)?;
        match mounts.iter().find(|mount| mount.at == base) {
            Some(mount) if mount.source == source => continue,
            Some(mount) => bail!("{}: {} is mounted on {}, not {source}", failure(), mount.source, base.display()),
            None => {}
        }
        let options = datastore.template.nfs_auto_opts.or("defaults").to_owned();
        let Some(line) = mount::Line::new(&source, &base, &options) else {
            bail!(Misuse(format!(
                "{}: {source}, {} or {options:?} holds what fstab cannot",
                failure(),
                base.display()
            )));
        };
        let mut ops = Vec::new();
        if !text(1).lines().any(|old| line.is(old)) {
            ops.push(Op::Run(mount::edit_fstab(&line.replaced())));
        }
        ops.extend([
            Op::MakeDir { path: base.clone() },
            Op::Run(mount::mount_fstab(&base)),
            Op::Write { path: base.join(MARKER), content: Secret::new(""), mode: 0o644 },
        ]);
        let what = format!("Mount {source} on {} for good", base.display());
        cx.apply(Step::new(host, what, ops).or_say(failure()))?;
        plan = if cx.is_real() { Plan::Mounted } else { Plan::Planned };
    }
    Ok(plan)
}

/// An NFS mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    source: String,
}

/// The NFS mounts in `mountinfo` (`proc(5)`).
fn nfs_mounts(table: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (fixed, rest) = line.split_once(" - ")?;
        let mut rest = rest.split(' ');
        let kind = rest.next()?;
        let source = unescaped(rest.next()?);
        let at = unescaped(fixed.split(' ').nth(4)?);
        matches!(kind, "nfs" | "nfs4").then(|| Mount { at: at.into(), source })
    };
    table.lines().filter_map(parse).collect()
}

/// Blanks, tabs, line ends and backslashes are written in octal there.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (octal, plain)| text.replace(octal, plain))
}

fn unmount_unwanted(cx: &Cx<'_>, host: &Arc<dyn Host>, root: &Path, own: &[u32], mounts: &[Mount]) -> Result<()> {
    let id_of = |mount: &Mount| {
        let name = mount.at.strip_prefix(root).ok()?.to_str().and_then(plain_number)?;
        (!own.contains(&name)).then_some(name)
    };
    let others: Vec<(u32, &Mount)> = mounts.iter().filter_map(|mount| Some((id_of(mount)?, mount))).collect();
    if others.is_empty() {
        return Ok(());
    }
    let pool = match cx.oned().datastore_pool() {
        Ok(pool) => pool,
        Err(e) => {
            cx.warn(format!("Cannot tell which NFS mounts are still wanted, all stay: {e}"));
            return Ok(());
        }
    };
    let known: HashSet<u32> = pool.datastores.iter().filter_map(|d| d.id.get().ok().flatten()).collect();
    if !own.iter().all(|id| known.contains(id)) {
        cx.warn("oned's list of datastores is not complete, all NFS mounts stay");
        return Ok(());
    }
    let asks = |id: u32| {
        let datastore = pool.datastores.iter().find(|d| d.id.get() == Ok(Some(id)));
        datastore.is_some_and(|d| d.template.nfs_auto_enable.is_yes_any_case())
    };
    let unwanted: Vec<&Mount> = others.iter().filter(|(id, _)| !asks(*id)).map(|(_, mount)| *mount).collect();
    let marker = |mount: &&Mount| Op::Stat { path: mount.at.join(MARKER), follow: false };
    let found = cx.query(host, unwanted.iter().map(marker))?;
    for (mount, found) in unwanted.iter().zip(found) {
        if found.stat().is_none() {
            continue;
        }
        let mut ops = vec![Op::Run(mount::umount(&mount.at))];
        if let Some(line) = mount::Line::new(&mount.source, &mount.at, "defaults") {
            ops.push(Op::Run(mount::edit_fstab(&line.removed())));
        }
        ops.push(Op::RemoveDirIfEmpty { path: mount.at.clone() });
        let what = format!("Unmount {}, whose datastore no longer asks for it", mount.at.display());
        if let Err(e) = cx.apply(Step::new(host, what, ops)) {
            cx.warn(format!("{e:#}"));
        }
    }
    Ok(())
}

/// The id of a datastore, which has one.
trait RequiredNumber {
    fn required_number(&self) -> Result<u32>;
}

impl RequiredNumber for crate::payload::First<u32> {
    fn required_number(&self) -> Result<u32> {
        match self.get().map_err(misuse)? {
            Some(number) => Ok(number),
            None => bail!(Misuse("oned gave a datastore without an ID".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfs_mounts_are_found_with_their_blanks() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     30 22 0:50 / /var/lib/one/datastores/1 rw,relatime shared:9 - nfs4 nas:/vol\\040a rw,vers=4.2\n\
                     31 22 0:51 / /mnt\\040x rw - nfs nas:/b rw\nnonsense\n";
        let mount = |at: &str, source: &str| Mount { at: at.into(), source: source.into() };
        assert_eq!(nfs_mounts(table), [mount("/var/lib/one/datastores/1", "nas:/vol a"), mount("/mnt x", "nas:/b")]);
    }
}
