//! Power cuts: `cargo xtask crash --power`.
//!
//! The action runs on a real file system whose disk remembers writes and flushes ([`disk`]). Then the power is cut in the
//! past: of the writes since the last flush nothing, everything or an arbitrary part is on the disk. The file system is
//! mounted again, on its journal or repaired ([`ground`]), with the machine's boot number and time changed as after a
//! boot, and what is there is judged:
//!
//! 1. Cut while the action ran: what was there before is there, and the same action succeeds.
//! 2. Cut when it had said success: what it made is there, whole, also after the next action has cleared up.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::report::{Failure, Row};
use super::scenario::{again, reply};
use super::state::{Drawn, Reference, State, is_staging};
use super::world::{Ground, World};
use crate::conformance::case::Case;
use crate::conformance::sandbox::Tree;

mod disk;
mod ground;

use disk::{Disk, Event};
pub use ground::Kind;
use ground::{Fate, Mounted, cut};

/// What one scenario is replayed with.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The file system.
    pub kind: Kind,
    /// Cuts at most; they are spread over the run.
    pub most: usize,
    /// What parts of writes are drawn by.
    pub seed: u64,
    /// Nothing is synced, whatever the action asks for: shows that this would be seen.
    pub forgetful: bool,
}

/// Words before a command whose calls to sync do nothing and succeed.
const FORGETFUL: [&str; 5] = [
    "strace",
    "-f",
    "-o/dev/null",
    "-etrace=fsync,fdatasync,syncfs,sync",
    "-einject=fsync,fdatasync,syncfs,sync:retval=0",
];

/// A moment of a power cut.
struct Cut {
    /// Behind so many events.
    events: usize,
    fate: Fate,
    /// The action had said success.
    done: bool,
}

/// Cuts the power during and after a case's action.
///
/// # Errors
/// The action does not do undisturbed what its case says, or the harness itself fails.
pub fn replay(case: &Case, tree: &Tree, choice: Choice) -> Result<Row> {
    let begin = Instant::now();
    let mut row = Row::new(case, super::tracer::Who::Itself, super::scenario::By::Kill);
    let who = match choice.kind {
        Kind::Ext4 => "power, ext4",
        Kind::Ext2 => "power, no journal",
    };
    who.clone_into(&mut row.who);
    let here = Ground::memory()?;
    let at = |name: &str| here.path().join(name);
    for name in ["disk", "fs"] {
        std::fs::create_dir(at(name))?;
    }
    let image = at("image");
    let recorded = record(case, tree, choice, [&image, &at("disk"), &at("fs")])?;
    let Some(recorded) = recorded else { return Ok(row) };
    let cuts = cuts(&recorded.events, recorded.over, choice);
    row.points = cuts.len();
    row.full = choice.most == usize::MAX;
    for (number, moment) in cuts.iter().enumerate() {
        cut(&image, &recorded.base, &recorded.events, moment.events, moment.fate)?;
        choice.kind.repair(&image)?;
        let wrong = {
            let _mounted = Mounted::new(choice.kind, &image, &at("fs"))?;
            judge(&recorded, moment, here.path(), &mut row)?
        };
        row.killed += 1;
        if !wrong.is_empty() {
            let when = if moment.done { "after success" } else { "while it ran" };
            let point =
                format!("{when}, behind {} of {} events, {}", moment.events, recorded.events.len(), moment.fate);
            row.failures.push(Failure { number: number + 1, point, wrong, stderr: String::new() });
            if row.failures.len() >= 6 {
                break;
            }
        }
    }
    row.seconds = begin.elapsed().as_secs_f64();
    Ok(row)
}

/// A run on the disk that remembers.
struct Recorded<'a> {
    world: World<'a>,
    reference: Reference,
    base: Vec<u8>,
    events: Vec<Event>,
    /// Events when the action had ended.
    over: usize,
}

fn record<'a>(case: &'a Case, tree: &Tree, choice: Choice, at: [&Path; 3]) -> Result<Option<Recorded<'a>>> {
    let ([image, mount_disk, mount_fs], Choice { kind, forgetful, .. }) = (at, choice);
    let disk = Disk::mount(mount_disk, kind.make(image)?)?;
    let file = mount_disk.join(disk::NAME);
    let mut world = {
        let _mounted = Mounted::new(kind, &file, mount_fs)?;
        World::new(mount_fs, case, tree, None, false)?
    };
    let root: PathBuf;
    let base;
    let (before, guests, after, guests_after, over, events);
    {
        let _mounted = Mounted::new(kind, &file, mount_fs)?;
        root = world.root();
        before = State::take(&root)?;
        guests = before.guests(&root);
        rustix::fs::syncfs(std::fs::File::open(&root)?)?;
        base = disk.begin();
        let call = world.call();
        let ran = world.run(call, forgetful.then_some(&FORGETFUL.map(str::to_owned)))?;
        over = disk.events();
        events = disk.end();
        if ran.rc() != 0 {
            bail!("Undisturbed, it fails: {}", String::from_utf8_lossy(&ran.stderr).trim());
        }
        let now = State::take(&root)?;
        let named: (State, Drawn) = now.with_names(&before, &reply(&ran.stdout));
        after = named.0;
        guests_after = now.guests(&root).into_iter().map(|(name, digest)| (named.1.replaced(&name), digest)).collect();
    }
    if after == before {
        return Ok(None);
    }
    // Once more, to learn which bytes are others in every run.
    cut(image, &base, &[], 0, Fate::None)?;
    let _mounted = Mounted::new(kind, image, mount_fs)?;
    let call = world.call();
    let ran = world.expected(call, None).context("Undisturbed")?;
    let (other, _) = State::take(&root)?.with_names(&before, &reply(&ran.stdout));
    let differs = |name: &&String| after.paths.get(*name) != other.paths.get(*name);
    let varying = after.paths.keys().filter(differs).cloned().collect();
    Ok(Some(Recorded {
        world,
        reference: Reference { before, guests, after, guests_after, varying },
        base,
        events,
        over,
    }))
}

/// Moments of cuts: around every flush, with what the disk may have made of the writes since the one before; and after
/// success.
fn cuts(events: &[Event], over: usize, choice: Choice) -> Vec<Cut> {
    let mut all = Vec::new();
    let mut seed = choice.seed;
    let mut some = || {
        seed += 1;
        Fate::Some(seed)
    };
    let mut since = 0;
    for (at, event) in events[..over].iter().enumerate() {
        match event {
            // Just before the flush is over: anything may have happened to the writes since the last.
            Event::Flush if since > 0 => {
                all.push(Cut { events: at, fate: Fate::None, done: false });
                all.push(Cut { events: at, fate: some(), done: false });
                all.push(Cut { events: at, fate: some(), done: false });
                all.push(Cut { events: at, fate: Fate::All, done: false });
                since = 0;
            }
            Event::Flush => {}
            Event::Write(..) => since += 1,
        }
    }
    // The last ones are after success, whatever is left out of the others.
    let keep = choice.most.saturating_sub(4).max(1);
    let step = all.len().div_ceil(keep).max(1);
    // Odd, so that every kind of fate has its turn.
    let step = if step > 1 { step | 1 } else { 1 };
    let mut cuts: Vec<Cut> = all.into_iter().step_by(step).collect();
    for fate in [Fate::None, some(), some(), Fate::All] {
        cuts.push(Cut { events: over, fate, done: true });
    }
    cuts
}

fn judge(recorded: &Recorded<'_>, moment: &Cut, scratch: &Path, row: &mut Row) -> Result<Vec<String>> {
    let (world, reference) = (&recorded.world, &recorded.reference);
    let root = world.root();
    let now = State::take(&root)?;
    let (named, drawn) = now.with_names(&reference.before, "");
    let mut wrong = reference.lost(&root, &named, &drawn);
    let differences = reference.differences(&root, &named, &drawn);
    let staging = |text: &String| text.strip_prefix("stray: ").is_some_and(is_staging);
    if moment.done {
        wrong.extend(differences.iter().filter(|text| !staging(text)).map(|text| format!("reported, but {text}")));
    }
    let whole = differences.iter().all(staging);
    let made = named.paths.keys().any(|name| !is_staging(name) && name.contains("NEW1"));
    let wrapper = booted(scratch)?;
    // After a power cut nobody knows whether oned was told of a whole image, so it stays.
    wrong.extend(again(world, reference, whole, whole && made, row, Some(&wrapper))?);
    if moment.done && made {
        let now = State::take(&root)?;
        let kept = drawn.0.iter().all(|name| now.paths.keys().any(|path| path.contains(name)));
        if !kept {
            wrong.push("the next action took away what was reported".to_owned());
        }
    }
    Ok(wrong)
}

/// Words before a command that let it see another boot of this machine.
fn booted(scratch: &Path) -> Result<Vec<String>> {
    let (boot, stat) = (scratch.join("boot_id"), scratch.join("stat"));
    std::fs::write(&boot, "6f8a1d1e-0000-4000-8000-00000000c001\n")?;
    // Later than any process of the run before.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 5;
    let text = std::fs::read_to_string("/proc/stat")?;
    let lines: Vec<String> = text
        .lines()
        .map(|line| if line.starts_with("btime ") { format!("btime {now}") } else { line.to_owned() })
        .collect();
    std::fs::write(&stat, lines.join("\n") + "\n")?;
    let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && mount --bind \"$2\" /proc/stat && shift 2 && exec \"$@\"";
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "booted"];
    let files = [boot, stat].map(|path| path.display().to_string());
    Ok(words.map(str::to_owned).into_iter().chain(files).collect())
}
