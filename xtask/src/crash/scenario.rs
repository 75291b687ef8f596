//! One scenario: an action that is disturbed at each of its points in turn, and what has to hold afterwards.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::calls::Call;
use super::fault::Fault;
use super::faults::Faults;
use super::hang;
use super::left::{Left, Repeated};
use super::lies::{self, Lie};
use super::line::{Line, Way};
use super::remote;
use super::report::{Failure, Row};
use super::state::{Reference, State, is_staging};
use super::tracer::{self, Deed, Plan, Stop, Trace, Who};
use super::world::World;
use crate::conformance::expect::plain_lines;
use crate::conformance::process::Ran;

/// What a repeated action may answer when the killed run had done everything but say so.
const DONE_ALREADY: [&str; 5] = ["does not exist", "exists already", "no layer", "is missing", "No such file"];

/// What is done at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The process is killed.
    Kill,
    /// The call fails.
    Fault(Fault),
    /// The program that is called does not answer as it should: the points are programs.
    Lie(Lie),
    /// The line to the hosts breaks: the points are bytes.
    Cut(Way),
    /// Storage hangs: the points are directories.
    Hang,
}

impl By {
    /// Its name in tables; a kill has none.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Kill => None,
            Self::Fault(fault) => Some(fault.name()),
            Self::Lie(lie) => Some(lie.name()),
            Self::Cut(way) => Some(way.name()),
            Self::Hang => Some("storage: hangs"),
        }
    }

    fn fault(self) -> Option<Fault> {
        if let Self::Fault(fault) = self { Some(fault) } else { None }
    }
}

/// What disturbances need.
#[derive(Clone, Copy, Default)]
pub struct With<'a> {
    /// Where the far end of ssh counts calls.
    pub remote: Option<&'a Path>,
    /// Where the tools count themselves.
    pub tools: Option<&'a Path>,
    /// The line to the hosts.
    pub line: Option<&'a Line>,
}

/// How the points of a scenario are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Who is disturbed.
    pub who: Who,
    /// By what.
    pub by: By,
    /// How many points, of all; all of them without it.
    pub sample: Option<usize>,
    /// What the sample is drawn by.
    pub seed: u64,
}

/// Disturbs one point, and counts the points so far.
struct At {
    number: usize,
    count: usize,
    who: Who,
    fault: Option<Fault>,
}

impl Plan for At {
    fn counts(&self, pid: Pid, child: bool, call: &Call) -> bool {
        // A kill at a child's call kills us; a fault in it is the child's own.
        self.fault.is_none_or(|fault| (!child || self.who != Who::Itself) && fault.possible(pid, call))
    }

    fn leaves_out_the_same(&self) -> bool {
        // A fault is in the call, not before it.
        self.fault.is_none()
    }

    fn deed(&mut self, _: Stop) -> Deed {
        self.count += 1;
        if self.count == self.number { self.fault.map_or(Deed::Kill, Deed::Fault) } else { Deed::Let }
    }
}

/// A traced run of the action.
pub struct Disturbed {
    /// How it went.
    pub trace: Trace,
    /// Where it was disturbed, in words.
    pub at: Option<String>,
    /// Points of the whole run, if it was not disturbed.
    pub count: usize,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Disturbs `world`'s action in each of these ways, at the chosen points, with what `with` has for it.
///
/// # Errors
/// The action does not do undisturbed what its case says, or the harness itself fails.
pub fn enumerate(world: &mut World<'_>, ways: &[Choice], with: With<'_>) -> Result<Vec<Row>> {
    let Some(reference) = reference(world)? else {
        return Ok(Vec::new());
    };
    let rows = ways.iter().map(|choice| one_way(world, *choice, &reference, with)).collect();
    world.restore()?;
    rows
}

fn one_way(world: &World<'_>, choice: Choice, reference: &Reference, with: With<'_>) -> Result<Row> {
    let begin = Instant::now();
    let mut row = Row::new(world.case, choice.who, choice.by);
    let whole = disturb(world, choice, 0, with)?;
    row.points = whole.count + whole.trace.same;
    row.same = whole.trace.same;
    let mut repeated = Repeated::default();
    let faults = (choice.by != By::Kill).then(|| Faults::new(choice.by, choice.who, reference, &whole));
    // Runs differ a little: threads, and how full pipes are. So it goes on until a run ends undisturbed.
    let chosen = chosen(whole.count, Choice { sample: choice.sample.or_else(|| by_lot(choice.by)), ..choice });
    let mut next = 1;
    loop {
        let number = match &chosen {
            Some(numbers) => match numbers.get(next - 1) {
                Some(number) => *number,
                None => break,
            },
            None if next > 3 * whole.count + 50 => bail!("{} points and no end", next - 1),
            None => next,
        };
        next += 1;
        let run = disturb(world, choice, number, with)?;
        if run.at.is_some() {
            row.killed += 1;
        }
        let wrong = match &faults {
            Some(faults) => faults.judge(world, &run, &mut row)?,
            None => judge(world, reference, &run, (&mut row, &mut repeated))?,
        };
        if !wrong.is_empty() {
            let point = run.at.clone().unwrap_or_else(|| "not disturbed".to_owned());
            row.failures.push(Failure { number, point, wrong, stderr: run.stderr.clone() });
            // One scenario that is wrong everywhere tells nothing more.
            if row.failures.len() >= 12 {
                break;
            }
        }
        if run.at.is_none() && chosen.is_none() && number > whole.count {
            row.full = true;
            break;
        }
    }
    row.seconds = begin.elapsed().as_secs_f64();
    Ok(row)
}

/// Where nobody says how many: nobody wants every byte of a conversation.
fn by_lot(by: By) -> Option<usize> {
    matches!(by, By::Cut(_)).then_some(40)
}

/// The sample, in order.
fn chosen(count: usize, choice: Choice) -> Option<Vec<usize>> {
    let wanted = choice.sample.filter(|wanted| *wanted < count)?;
    let mut state = choice.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut numbers = std::collections::BTreeSet::new();
    while numbers.len() < wanted {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.insert(1 + usize::try_from(state % count as u64).unwrap_or(0));
    }
    Some(numbers.into_iter().collect())
}

/// Leaves `count` of them, drawn by the seed.
pub fn draw<T>(all: &mut Vec<T>, count: usize, seed: u64) {
    let choice = Choice { who: Who::Itself, by: By::Kill, sample: Some(count), seed };
    if let Some(numbers) = chosen(all.len(), choice) {
        let mut number = 0;
        all.retain(|_| {
            number += 1;
            numbers.contains(&number)
        });
    }
}

/// Runs the action undisturbed, twice; nothing if it changes nothing.
///
/// # Errors
/// It does not do what its case says.
pub fn reference(world: &mut World<'_>) -> Result<Option<Reference>> {
    let root = world.root();
    world.restore()?;
    let before = State::take(&root)?;
    let guests = before.guests(&root);
    let mut runs = Vec::new();
    let call = world.call();
    for number in 0..2 {
        if number > 0 {
            // What holds a time holds another one then.
            std::thread::sleep(std::time::Duration::from_millis(1100));
        }
        world.restore()?;
        let ran = world.expected(call, None).context("Undisturbed")?;
        let left = world.processes_left();
        if !left.is_empty() {
            bail!("Undisturbed, it leaves processes: {left:?}");
        }
        let now = State::take(&root)?;
        let (after, drawn) = now.with_names(&before, &reply(&ran.stdout));
        let guests = now.guests(&root).into_iter().map(|(name, digest)| (drawn.replaced(&name), digest));
        runs.push((after, guests.collect::<BTreeMap<_, _>>()));
    }
    let (second, first) = (runs.pop(), runs.pop());
    let (Some((after, guests_after)), Some((other, _))) = (second, first) else { bail!("No run") };
    if after == before {
        return Ok(None);
    }
    let differs = |name: &&String| after.paths.get(*name) != other.paths.get(*name);
    let varying: Vec<String> = after.paths.keys().filter(differs).cloned().collect();
    if after.paths.keys().ne(other.paths.keys()) {
        bail!("Two undisturbed runs leave different names: {varying:?}");
    }
    Ok(Some(Reference { before, guests, after, guests_after, varying }))
}

/// The first word of the reply.
pub fn reply(stdout: &[u8]) -> String {
    String::from_utf8_lossy(stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

fn disturb(world: &World<'_>, choice: Choice, number: usize, with: With<'_>) -> Result<Disturbed> {
    world.restore()?;
    let who = choice.who;
    let fault = choice.by.fault();
    match choice.by {
        By::Lie(lie) => return disturb_tools(world, lie, number, with.tools.context("No tools")?),
        By::Cut(way) => return disturb_line(world, way, number, with.line.context("No line")?),
        By::Hang => return hang::disturb(world, number),
        _ if who == Who::Remote => {
            return disturb_remote(world, fault, number, with.remote.context("No remote side")?);
        }
        By::Kill | By::Fault(_) => {}
    }
    let mut plan = At { number, count: 0, who, fault };
    let (mut child, input) = world.start_traced(fault.is_some())?;
    let mut stdin = child.stdin.take().context("No pipe")?;
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let streams = (child.stdout.take().context("No pipe")?, child.stderr.take().context("No pipe")?);
    let readers = (drain(streams.0), drain(streams.1));
    let trace = tracer::follow(&child, who, &mut plan)?;
    let read = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Disturbed {
        at: trace.disturbed.as_ref().map(ToString::to_string),
        count: plan.count,
        trace,
        stdout: read(readers.0),
        stderr: read(readers.1),
    })
}

fn disturb_remote(world: &World<'_>, fault: Option<Fault>, number: usize, file: &Path) -> Result<Disturbed> {
    remote::State { at: number, fault, ..remote::State::default() }.save(file)?;
    let ran = world.run(world.call(), None)?;
    let left = world.processes_left();
    let state = remote::State::load(file)?;
    remote::State::default().save(file)?;
    Ok(untraced(&ran, left, state.disturbed, state.count))
}

fn disturb_tools(world: &World<'_>, lie: Lie, number: usize, file: &Path) -> Result<Disturbed> {
    lies::State { at: number, lie: Some(lie), ..lies::State::default() }.save(file)?;
    let ran = world.run(world.call(), None)?;
    let left = world.processes_left();
    let state = lies::State::load(file)?;
    lies::State::default().save(file)?;
    Ok(untraced(&ran, left, state.disturbed, state.count))
}

fn disturb_line(world: &World<'_>, way: Way, number: usize, line: &Line) -> Result<Disturbed> {
    line.begin((number > 0).then_some((way, number)));
    let ran = world.run(world.call(), None)?;
    let left = world.processes_left();
    let count = line.bytes(way);
    line.begin(None);
    let at = (number > 0 && count >= number).then(|| format!("byte {number}"));
    Ok(untraced(&ran, left, at, count))
}

fn untraced(ran: &Ran, left: Vec<String>, at: Option<String>, count: usize) -> Disturbed {
    let lingering = if ran.left_running { vec!["its process group".to_owned()] } else { Vec::new() };
    Disturbed {
        trace: Trace {
            status: ran.rc(),
            too_long: ran.too_long,
            lingering: [lingering, left].concat(),
            disturbed: None,
            same: 0,
        },
        at,
        count,
        stdout: String::from_utf8_lossy(&ran.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&ran.stderr).into_owned(),
    }
}

fn drain(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Processes and mounts that a disturbed run has left, and whether it came to its end.
///
/// # Errors
/// The table of mounts cannot be read.
pub fn left_behind(world: &World<'_>, run: &Disturbed) -> Result<Vec<String>> {
    let mut wrong: Vec<String> = run.trace.lingering.iter().map(|line| format!("outlives it: {line}")).collect();
    if run.trace.too_long {
        wrong.push("did not end".to_owned());
    }
    wrong.extend(world.processes_left().into_iter().map(|line| format!("outlives it: {line}")));
    wrong.extend(mounts(&world.root())?);
    Ok(wrong)
}

/// What is wrong after a disturbed run, and after the same action was done again.
fn judge(
    world: &World<'_>,
    reference: &Reference,
    run: &Disturbed,
    (row, repeated): (&mut Row, &mut Repeated),
) -> Result<Vec<String>> {
    let root = world.root();
    let mut wrong = left_behind(world, run)?;
    let now = State::take(&root)?;
    let (named, drawn) = now.with_names(&reference.before, &reply(run.stdout.as_bytes()));
    wrong.extend(reference.lost(&root, &named, &drawn));
    let whole = reference.differences(&root, &named, &drawn).is_empty();
    let said = run.trace.status == 0;
    if said && !whole {
        wrong.push(format!("said success: {:?}", reference.differences(&root, &named, &drawn)));
    }
    let made = |state: &State| state.paths.keys().any(|name| !is_staging(name) && name.contains("NEW1"));
    let but_staging = |text: &String| text.strip_prefix("stray: ").is_some_and(is_staging);
    // The reply is out, a whole image has its name, and its staging name is gone: only the exit status was missing.
    let differences = reference.differences(&root, &named, &drawn);
    let staged = named.paths.keys().any(|name| is_staging(name) && name.contains("NEW1"));
    let orphan = made(&named) && !staged && !run.stdout.is_empty() && differences.iter().all(but_staging);
    if said && orphan {
        return Ok(wrong);
    }
    let repeat = |row: &mut Row| again(world, reference, whole, orphan, row, None);
    wrong.extend(if wrong.is_empty() {
        let left = Left::take(&root, world.kept(), &now, &reference.before, &drawn)?;
        repeated.once((left, whole, orphan), row, repeat)?
    } else {
        repeat(row)?
    });
    Ok(wrong)
}

/// Does the action again, and says what is wrong then. `whole`: nothing is left to do. `orphan`: there is a whole new image
/// that oned was not told of.
///
/// # Errors
/// It cannot be started.
pub fn again(
    world: &World<'_>,
    reference: &Reference,
    whole: bool,
    orphan: bool,
    row: &mut Row,
    wrapper: Option<&[String]>,
) -> Result<Vec<String>> {
    let root = world.root();
    let mut wrong = Vec::new();
    let ran: Ran = world.run(world.call(), wrapper)?;
    let lines = plain_lines(&ran.stderr);
    wrong.extend(world.processes_left().into_iter().map(|line| format!("outlives the repetition: {line}")));
    wrong.extend(mounts(&root)?);
    let now = State::take(&root)?;
    let (named, drawn) = now.with_names(&reference.before, &reply(&ran.stdout));
    if ran.rc() != 0 {
        let done = lines.len() == 1 && DONE_ALREADY.iter().any(|words| lines[0].contains(words));
        if !done {
            wrong.push(format!("repeated, it fails with {}: {}", ran.rc(), lines.join(" | ")));
        } else if !whole {
            let differences = reference.differences(&root, &named, &drawn);
            if differences.iter().all(|text| text.starts_with("stray: ") && is_staging(text)) {
                row.swept_later += 1;
            } else {
                wrong.push(format!("repeated, it says {:?}, and {}", lines[0], differences.join(", ")));
            }
        }
        row.done_already += 1;
        return Ok(wrong);
    }
    let mut named = named;
    if orphan && drawn.0.len() > 1 {
        row.orphans += 1;
        named.paths.retain(|name, _| !name.contains("NEW2"));
    }
    let differences = reference.differences(&root, &named, &drawn);
    wrong.extend(differences.into_iter().map(|text| format!("repeated: {text}")));
    Ok(wrong)
}

/// What is mounted below the sandbox, which nothing should be.
fn mounts(root: &Path) -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below = table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(root));
    Ok(below.map(|at| format!("mounted: {at}")).collect())
}
