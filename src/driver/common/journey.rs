//! Files on their way from one host to another, or from one place to another on one host.
//!
//! A driver says which files and to which staging names; how they travel is decided here. Nothing is published: when
//! [`carry`] has returned, every file is complete under its staging name, on the disk, and known to be the same at both
//! ends. Whoever called gives it its name, and only then removes what it came from (`docs/transfers.md`).

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::context::Cx;
use crate::exec::carry::lane::{BadPorts, Ports};
use crate::exec::carry::{Carry, Freight, NOT_HERE, Report, Why, journal_of};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Script, Sparse, Value};
use crate::exec::relay;
use crate::exec::staging::{self, Owner};
use crate::exec::step::{Feed, Step};
use crate::report::{Level, Log};
use crate::settings::Settings;
use crate::tool::coreutils;
use crate::transfer::rate::Rate;

/// One regular file on its way. Links are followed at `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Where it is, on the host that it leaves.
    pub from: PathBuf,
    /// A staging path on the host that it goes to; its directory exists, and nothing is there.
    pub to: PathBuf,
}

/// Between which hosts, and how.
#[derive(Clone, Copy)]
pub struct Journey<'a> {
    /// The host that the files leave; the machine that we run on is `cx.here()`.
    pub from: &'a Arc<dyn Host>,
    /// The host that they go to.
    pub to: &'a Arc<dyn Host>,
    /// What becomes of holes and blocks of zeroes.
    pub sparse: Sparse,
    /// Where the one reaches the other, if not at its name: an address in a network for storage.
    pub address: Option<IpAddr>,
}

impl Journey<'_> {
    /// Whether both ends are one machine under one name: then its own kernel copies, and shares blocks where it can.
    #[must_use]
    pub fn stays(&self) -> bool {
        Arc::ptr_eq(self.from, self.to) || self.from.name() == self.to.name()
    }
}

/// How often a journey goes on after the connection broke, before it is left to the next run.
const AGAIN: u32 = 2;

/// How long it waits before: a switch that lost its link needs a moment.
const PAUSE: Duration = Duration::from_secs(1);

/// Carries files. When it returns, every file is complete at [`Load::to`] and synced; between two hosts size and digest
/// were compared at both ends. On failure what was written is removed, but for what the next run can go on with: that is
/// kept in the staging directory for a day ([`staging::clear`]).
///
/// `failure` is what the user reads first when something goes wrong, as of [`Step::or_say`]. In `explain` the steps are
/// shown and nothing is touched.
///
/// # Errors
/// A host cannot be reached, a file cannot be read or written, the target has no space, the source changed on the way,
/// or the copy is not what the original is; each in one line under `failure`.
pub fn carry(cx: &Cx<'_>, journey: &Journey<'_>, loads: &[Load], failure: &str) -> Result<()> {
    if journey.stays() {
        return loads.iter().try_for_each(|load| copy(cx, journey, load, failure));
    }
    if loads.is_empty() {
        return Ok(());
    }
    let mut ways = Way::all(cx, journey);
    let parts = std::thread::scope(|scope| {
        if cx.is_real() && ways.first() == Some(&Way::Direct) {
            // A login takes a while: the source is logged in to while the target is looked at.
            let script = Script::from(Op::Carry(order(cx.settings, journey, Way::Direct, Vec::new())));
            let control = cx.control.clone();
            scope.spawn(move || journey.from.prepare(&script, &control));
        }
        Parts::find(cx, journey, loads)
    });
    let parts = parts.with_context(|| failure.to_owned())?;
    parts.take_up(cx, failure)?;
    let mut doors = doors(cx);
    let mut tries = 0;
    loop {
        let Some(way) = ways.first().copied() else {
            parts.let_go(cx, failure)?;
            return loads.iter().try_for_each(|load| streamed(cx, journey, load, failure));
        };
        match parts.travel(cx, way, doors, failure) {
            Ok(Report::Done(_)) => return parts.put(cx, failure),
            Ok(Report::Failed { why: Why::Lost, text }) => {
                cx.control.check().with_context(|| failure.to_owned())?;
                if tries == AGAIN {
                    bail!("{failure}: {text}; what has arrived is kept for a day, another try goes on with it");
                }
                tries += 1;
                // Whatever lies between the hosts may let ssh through and nothing else for long.
                doors = None;
                cx.warn(format!("{text}; going on with what has arrived"));
                std::thread::sleep(PAUSE);
            }
            Ok(Report::Failed { why: Why::NotThere | Why::Unreachable, text })
                if ways.len() > 1 || text.contains(NOT_HERE) =>
            {
                cx.info(format!("{text}; taking another way"));
                ways.remove(0);
            }
            Ok(Report::Failed { text, .. }) => {
                parts.give_up(cx);
                bail!("{failure}: {text}");
            }
            // The far side's shell, where the binary is not.
            Err(error) if format!("{error:#}").contains(NOT_HERE) => {
                ways.remove(0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Who drives, see [`crate::exec::carry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The source, straight to the target.
    Direct,
    /// We, between the two or as one of them.
    Here,
}

impl Way {
    /// The ways in the order in which they are tried; after the last the shell's.
    fn all(cx: &Cx<'_>, journey: &Journey<'_>) -> Vec<Self> {
        let apart = !journey.from.name().is_empty() && !journey.to.name().is_empty();
        let direct = cx.settings.get("TRANSFER_DIRECT").is_none_or(|word| !word.eq_ignore_ascii_case("no"));
        if apart && direct { vec![Self::Direct, Self::Here] } else { vec![Self::Here] }
    }
}

/// What is asked of who drives.
fn order(settings: &Settings, journey: &Journey<'_>, way: Way, files: Vec<Freight>) -> Carry {
    let name = |host: &Arc<dyn Host>| Some(host.name().to_owned()).filter(|name| !name.is_empty());
    Carry {
        source: name(journey.from).filter(|_| way == Way::Here),
        target: name(journey.to),
        // The networks of the hosts are not ours.
        address: journey.address.filter(|_| way == Way::Direct),
        files,
        sparse: journey.sparse,
        streams: settings.get("TRANSFER_STREAMS").and_then(|word| word.parse().ok()).unwrap_or(0),
        zip: match settings.get("TRANSFER_COMPRESS").map(str::to_ascii_lowercase).as_deref() {
            Some("yes") => Some(true),
            Some("no") => Some(false),
            _ => None,
        },
        rate: settings.get("TRANSFER_RATE").and_then(|word| word.parse::<Rate>().ok()).map(Rate::bytes_per_second),
        ports: None,
    }
}

/// Ports at which hosts may listen for each other (`TRANSFER_PORTS`). What is none is told, and ssh carries the data.
fn doors(cx: &Cx<'_>) -> Option<Ports> {
    let text = cx.settings.get("TRANSFER_PORTS").filter(|text| !text.eq_ignore_ascii_case("no"))?;
    text.parse().map_err(|error: BadPorts| cx.warn(format!("TRANSFER_PORTS: {error}; ssh carries the data"))).ok()
}

/// Loads, each with the name of its unfinished copy.
struct Parts<'a> {
    journey: &'a Journey<'a>,
    loads: &'a [Load],
    staged: Vec<PathBuf>,
    /// What gives the unfinished copies of runs that are dead our names.
    adopt: Vec<Op>,
}

impl<'a> Parts<'a> {
    fn find(cx: &Cx<'_>, journey: &'a Journey<'a>, loads: &'a [Load]) -> Result<Self> {
        let me = Owner::me().context("Cannot tell this process from others")?;
        let (mut parts, mut adopt) = (Vec::new(), Vec::new());
        let mut listed: Option<(PathBuf, Value)> = None;
        for load in loads {
            let Some(dir) = load.to.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == staging::DIR))
            else {
                // Nobody sweeps there, so nothing is left there either.
                parts.push(load.to.clone());
                continue;
            };
            let base = dir.parent().unwrap_or(dir);
            let key = key(journey, load, base);
            let part = staging::staging_path(base, &me, &staging::journey_name(&key));
            if listed.as_ref().is_none_or(|(of, _)| of != dir) {
                listed = Some((dir.to_owned(), cx.ask(journey.to, Op::List { path: dir.to_owned() })?));
            }
            if let Some((_, Value::Names(names))) = &listed {
                adopt.extend(taken_up(dir, names, &part, &me));
            }
            parts.push(part);
        }
        Ok(Self { journey, loads, staged: parts, adopt })
    }

    fn take_up(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        if self.adopt.is_empty() {
            return Ok(());
        }
        let what = "Take up what an interrupted run has brought already";
        cx.apply(Step::new(self.journey.to, what, self.adopt.clone()).or_say(failure)).map(drop)
    }

    /// A stream begins anew: what was taken up is of no use to it, and no later run would know it.
    fn let_go(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        if self.adopt.is_empty() {
            return Ok(());
        }
        let what = "Remove what an interrupted run has brought";
        cx.apply(Step::new(self.journey.to, what, self.unfinished()).or_say(failure)).map(drop)
    }

    /// What removes the unfinished copies and their journals.
    fn unfinished(&self) -> Vec<Op> {
        self.staged.iter().flat_map(|part| [remove(part.clone()), remove(journal_of(part))]).collect()
    }

    fn travel(&self, cx: &Cx<'_>, way: Way, ports: Option<Ports>, failure: &str) -> Result<Report> {
        let Journey { from, to, .. } = *self.journey;
        let files = self.loads.iter().zip(&self.staged);
        let files = files.map(|(load, part)| Freight { from: load.from.clone(), part: part.clone() }).collect();
        let carry = Carry { ports, ..order(cx.settings, self.journey, way, files) };
        let driver = if way == Way::Direct { Arc::clone(from) } else { cx.here() };
        let how = match way {
            Way::Direct => {
                let at = self.journey.address.map(|address| format!(" at {address}")).unwrap_or_default();
                format!("straight from {} to {}{at}", from.name(), to.name())
            }
            Way::Here => format!("from {} to {}", called(from), called(to)),
        };
        let heard = Arc::new(Mutex::new(Heard::default()));
        let ear = Ear { heard: Arc::clone(&heard), log: cx.log.clone() };
        let step = Step::new(
            &driver,
            format!("Carry {} {how}, and compare both ends", files_of(self.loads)),
            [Op::Carry(carry)],
        );
        cx.apply(step.or_say(failure).sink(Box::new(ear)))?;
        if !cx.is_real() {
            return Ok(Report::Done(Vec::new()));
        }
        let heard = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
        let report =
            heard.report.with_context(|| format!("{failure}: {} did not tell how it ended", called(&driver)))?;
        if let Report::Done(arrived) = &report {
            for (load, file) in self.loads.iter().zip(arrived) {
                cx.info(format!(
                    "{}: {} bytes, {} of data, {} of them there already, {} sent, digest {}",
                    load.from.display(),
                    file.size,
                    file.data,
                    file.resumed,
                    file.sent,
                    file.digest
                ));
            }
        }
        Ok(report)
    }

    /// Everything has arrived: it goes to where the caller wants it.
    fn put(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let (mut ops, mut undo) = (Vec::new(), Vec::new());
        for (load, part) in self.loads.iter().zip(&self.staged) {
            ops.push(Op::Remove { path: journal_of(part), tree: false, must_exist: false });
            if *part != load.to {
                ops.push(Op::Rename { from: part.clone(), to: load.to.clone() });
            }
            undo.push(remove(load.to.clone()));
        }
        let what =
            format!("Put {} where {} belongs", files_of(self.loads), if self.loads.len() == 1 { "it" } else { "each" });
        cx.apply(Step::new(self.journey.to, what, ops).or_say(failure).undo(undo)).map(drop)
    }

    /// No later run could go on with what is there.
    fn give_up(&self, cx: &Cx<'_>) {
        cx.on_failure(Step::new(self.journey.to, "Remove what has arrived", []).undo(self.unfinished()));
    }
}

fn files_of(loads: &[Load]) -> String {
    match loads {
        [load] => load.from.display().to_string(),
        loads => format!("{} files", loads.len()),
    }
}

/// What has the dead left of a journey under our name: one unfinished copy and one journal, of the same run if there is one.
/// More than one of either was left by a run that was killed here; all but these go.
fn taken_up(dir: &Path, names: &[OsString], part: &Path, me: &Owner) -> Vec<Op> {
    let journal = journal_of(part);
    let parts = staging::inherited(names, part, me);
    let journals = staging::inherited(names, &journal, me);
    let journal_beside = |old: &OsString| {
        let name = journal_of(&dir.join(old));
        journals.iter().copied().find(|one| Some(one.as_os_str()) == name.file_name())
    };
    let old = parts.iter().copied().find(|old| journal_beside(old).is_some()).or(parts.first().copied());
    // Without its copy a journal tells nothing.
    let noted = old.and_then(|old| journal_beside(old).or(journals.first().copied()));
    let rest =
        parts.into_iter().chain(journals.iter().copied()).filter(|name| Some(*name) != old && Some(*name) != noted);
    let mut ops: Vec<Op> = rest.map(|name| remove(dir.join(name))).collect();
    let renames = [(noted, journal.as_path()), (old, part)].map(|(from, to)| (from.map(|name| dir.join(name)), to));
    let renames = renames.into_iter().filter_map(|(from, to)| Some((from?, to.to_owned())));
    ops.extend(renames.filter(|(from, to)| from != to).map(|(from, to)| Op::Rename { from, to }));
    ops
}

/// What is copied to where, the same for every run: the target below its datastore, and the end of the source's path, both
/// without the run that a staging name names. It only finds what may be gone on with; whether it is of this very source is
/// for its journal to say.
fn key(journey: &Journey<'_>, load: &Load, base: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let to = staging::without_owner(load.to.strip_prefix(base).unwrap_or(&load.to));
    let from: Vec<_> = load.from.components().rev().take(3).collect();
    // What was merged for the journey lies in a staging folder itself, and has another owner in each run.
    let from = staging::without_owner(&from.into_iter().rev().collect::<PathBuf>());
    let mut digest = Sha256::new();
    for part in [journey.from.name().as_bytes(), from.as_os_str().as_bytes(), to.as_os_str().as_bytes()] {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    let number = digest.finalize().iter().take(16).fold(0_u128, |number, byte| (number << 8) | u128::from(*byte));
    format!("{number:032x}")
}

/// What a driving host said.
#[derive(Default)]
struct Heard {
    line: Vec<u8>,
    report: Option<Report>,
}

/// Longest line that is listened to: a report of many thousand files.
const LINE: usize = 16 << 20;

/// Takes what [`Op::Carry`] writes.
struct Ear {
    heard: Arc<Mutex<Heard>>,
    log: Log,
}

impl Write for Ear {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            if *byte != b'\n' {
                heard.line.push(*byte);
                if heard.line.len() > LINE {
                    return Err(io::Error::other("A line without an end"));
                }
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut heard.line)).into_owned();
            if let Some(report) = line.strip_prefix("report ") {
                heard.report = serde_json::from_str(report).ok();
            } else if let Some(note) = line.strip_prefix("note ") {
                self.log.say(Level::Info, note);
            } else if let Some((done, all)) = line.strip_prefix("progress ").and_then(|rest| rest.split_once(' '))
                && let (Ok(done), Ok(all)) = (done.parse::<u64>(), all.parse::<u64>())
            {
                self.log.progress(&format!("{} MiB of {} MiB", done >> 20, all >> 20));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn remove(path: PathBuf) -> Op {
    Op::Remove { path, tree: false, must_exist: false }
}

/// On one host.
fn copy(cx: &Cx<'_>, journey: &Journey<'_>, load: &Load, failure: &str) -> Result<()> {
    let Load { from, to } = load;
    let ops = [
        Op::Copy { from: from.clone(), to: to.clone(), sparse: journey.sparse },
        Op::Sync { path: to.clone() },
        Op::Stat { path: from.clone(), follow: true },
        Op::Stat { path: to.clone(), follow: false },
    ];
    let what = format!("Copy {} to {}", from.display(), to.display());
    let values = cx.apply(Step::new(journey.to, what, ops).or_say(failure).undo([remove(to.clone())]))?;
    if !cx.is_real() {
        return Ok(());
    }
    let size = |value: Option<&Value>| value.and_then(Value::stat).map(|stat| stat.size);
    if size(values.get(2)).is_none() || size(values.get(2)) != size(values.get(3)) {
        bail!("{failure}: {} changed while it was copied", from.display());
    }
    Ok(())
}

/// As a stream through the front-end, for hosts of which nothing more is known than that they have a shell.
fn streamed(cx: &Cx<'_>, journey: &Journey<'_>, load: &Load, failure: &str) -> Result<()> {
    let Load { from, to } = load;
    let question = Op::Stat { path: from.clone(), follow: true };
    let before = cx.ask(journey.from, question).with_context(|| failure.to_owned())?.stat();
    let Some(before) = before.filter(|stat| stat.kind == FileKind::File) else {
        bail!("{failure}: {} is no regular file on {}", from.display(), called(journey.from));
    };
    let reader = relay::file_of(journey.from, from, &cx.control).with_context(|| failure.to_owned())?;
    let ops = [
        Op::Receive { path: to.clone(), sparse: journey.sparse },
        Op::Sync { path: to.clone() },
        Op::Sha256 { path: to.clone() },
    ];
    let what = format!("Stream {} through the front-end", from.display());
    let undo = [remove(to.clone())];
    let step = Step::new(journey.to, what, ops).or_say(failure).undo(undo).feed(Feed::Stream(Box::new(reader)));
    let values = cx.apply(step)?;
    if before.mode & READABLE != READABLE {
        // Nobody else looks into the staging directory, so this is early enough.
        let what = format!("Keep {} from whom the original is kept", to.display());
        let step = Step::new(journey.to, what, [Op::Run(coreutils::chmod(&withheld(before.mode), to))]);
        cx.apply(step.or_say(failure))?;
    }
    // Compared with what is there now: a source that somebody writes to is no source of a copy.
    let original = cx.ask(journey.from, Op::Sha256 { path: from.clone() }).with_context(|| failure.to_owned())?;
    let arrived = values.first().and_then(Value::number);
    if arrived != Some(before.size) {
        let arrived = arrived.unwrap_or_default();
        bail!("{failure}: {arrived} bytes of {} arrived, it had {}", from.display(), before.size);
    }
    if values.get(2) != Some(&original) {
        let host = called(journey.from);
        bail!("{failure}: The copy of {} is not what {host} has; was it written to meanwhile?", from.display());
    }
    Ok(())
}

/// Permissions of a file that everybody may read: its copy is made with them.
const READABLE: u32 = 0o044;

/// What takes from group and others what a file of this mode does not grant them, for chmod(1).
fn withheld(mode: u32) -> String {
    let lacks =
        |shift: u32| [(4, 'r'), (2, 'w'), (1, 'x')].map(|(bit, name)| (mode >> shift & bit == 0).then_some(name));
    let text = |who: char, shift: u32| format!("{who}-{}", lacks(shift).into_iter().flatten().collect::<String>());
    format!("{},{}", text('g', 3), text('o', 0))
}

fn called(host: &Arc<dyn Host>) -> &str {
    match host.name() {
        "" => "the front-end",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::host::local::Local;
    use crate::exec::process::Programs;

    /// An owner of this machine who is dead: `number` tells one from another.
    fn dead(me: &Owner, number: u64) -> String {
        let tag = me.tag();
        let (head, epoch) = tag.rsplit_once('-').expect("a tag has parts");
        let (head, start) = head.rsplit_once('-').expect("a tag has parts");
        let start = u64::from_str_radix(start, 16).expect("a number");
        format!("{head}-{:x}-{epoch}", start + number)
    }

    fn names(all: &[String]) -> Vec<OsString> {
        all.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_run_that_stages_under_another_name_finds_what_an_earlier_one_has_brought() {
        let me = Owner::me().expect("proc");
        let host: Arc<dyn Host> = Arc::new(Local::new(Programs::default()));
        let journey = Journey { from: &host, to: &host, sparse: Sparse::Holes, address: None };
        let of = |owner: &str| {
            let load = Load {
                from: format!("/ds/103/7/.onestore/{owner}.disk.0.export.part").into(),
                to: format!("/ds/100/.onestore/{owner}.abc.part").into(),
            };
            key(&journey, &load, Path::new("/ds/100"))
        };
        assert_eq!(of(&me.tag()), of(&dead(&me, 1)));
    }

    #[test]
    fn one_copy_with_its_journal_is_taken_up_and_the_rest_goes() {
        let me = Owner::me().expect("proc");
        let dir = Path::new("/ds/100/.onestore");
        let part = staging::staging_path(Path::new("/ds/100"), &me, &staging::journey_name("k"));
        let copy = |number| format!("{}..journey-k.part", dead(&me, number));
        let journal = |number| format!("{}..journey-k.journal.part", dead(&me, number));
        let ops = |all: &[String]| taken_up(dir, &names(all), &part, &me);
        let rename = |from: String, to: &Path| Op::Rename { from: dir.join(from), to: to.to_owned() };
        let take = |at: u64, of: u64| vec![rename(journal(of), &journal_of(&part)), rename(copy(at), &part)];
        assert_eq!(ops(&[]), []);
        assert_eq!(ops(&[copy(1), journal(1)]), take(1, 1));
        // Killed between the two renames.
        assert_eq!(ops(&[copy(1), journal(2)]), take(1, 2));
        assert_eq!(ops(&[copy(1), copy(2), journal(2)]), [vec![remove(dir.join(copy(1)))], take(2, 2)].concat());
        assert_eq!(ops(&[journal(1)]), [remove(dir.join(journal(1)))]);
        assert_eq!(ops(&[copy(1)]), [rename(copy(1), &part)]);
        // Another journey, and one that somebody is on.
        let other = [copy(1).replace("-k", "-l"), format!("{}..journey-k.part", dead(&me, 0).replacen('-', "-0", 1))];
        assert_eq!(ops(&other), []);
    }
}
