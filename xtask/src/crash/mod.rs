//! Kills actions at every state-changing system call, and looks at what is left: `cargo xtask crash`.
//!
//! The scenarios are the conformance cases: each one that succeeds and changes something is an action with what it needs
//! and what it comes to. So a family is proven here as soon as it has cases there (`tests/conformance/README.md`).
//!
//! For each point: the sandbox is put back, the real binary is run in its tree under [`tracer`], killed, and looked at:
//!
//! 1. What was there before is there bit for bit, or as the complete action makes it; nothing half done has a final name.
//! 2. The same action succeeds, or says that there is nothing to do any more.
//! 3. Afterwards the tree is that of an undisturbed run, in names, contents and modes; no process and no mount is left.
//!
//! With `--fault` a call fails in the place of the kill ([`fault`]), with `--lie` a program answers wrongly ([`lies`]), with
//! `--cut` the line to a host breaks ([`mod@line`]), with `--hang` storage does not answer ([`hang`]); what has to hold then is
//! in [`faults`].
//!
//! Reading order: [`calls`], [`tracer`], [`same`], [`remote`], [`world`], [`state`], [`left`], [`scenario`], [`fault`], [`faults`],
//! [`lies`], [`mod@line`], [`hang`], [`report`].

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::conformance::case::{self, Case};
use crate::conformance::sandbox::Tree;
use crate::conformance::sshd::{More, Sshd};

mod calls;
mod fault;
mod faults;
mod hang;
mod left;
mod lies;
mod line;
mod power;
mod remote;
mod report;
mod same;
mod scenario;
mod state;
mod tracer;
mod tree;
mod world;

use fault::Fault;
use lies::{Lie, StandIns};
use line::Line;
use report::Row;
use scenario::{By, Choice, With};
use tracer::Who;
use world::{Ground, World};

/// Set where this program has mounts of its own already.
const OWN_MOUNTS: &str = "ONESTORE_CRASH_MOUNTS";

/// What the command line says.
// Every switch is one that a person types: there is nothing to group.
#[allow(clippy::struct_excessive_bools)]
#[derive(clap::Args)]
pub struct Args {
    /// The family of cases: a directory below tests/conformance
    family: Option<String>,
    /// Only this action (`snap_delete`, `clone.ssh`)
    #[arg(long)]
    action: Option<String>,
    /// Only cases whose FAMILY/FILE/NAME matches this glob
    #[arg(long, value_name = "GLOB")]
    case: Option<String>,
    /// Who is killed
    #[arg(long, value_enum, default_value = "self")]
    who: Vec<Who>,
    /// Instead of killing, let calls answer this
    #[arg(long, value_enum, conflicts_with = "power")]
    fault: Vec<Fault>,
    /// Instead of killing, let the programs that are called answer so
    #[arg(long, value_enum, conflicts_with_all = ["power", "fault"])]
    lie: Vec<Lie>,
    /// Instead of killing, break the line to the hosts after so many bytes of this way; 40 draws without --sample
    #[arg(long, value_enum, conflicts_with_all = ["power", "fault", "lie"])]
    cut: Vec<line::Way>,
    /// Instead of killing, let one directory after the other hang
    #[arg(long, conflicts_with_all = ["power", "fault", "lie", "cut"])]
    hang: bool,
    /// Kill at this many points of each case, drawn by the seed, instead of at all
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Also draw this many cases, instead of taking all
    #[arg(long, value_name = "N")]
    cases: Option<usize>,
    /// What is drawn by
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The binary; by default the one that was built beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Scenarios at the same time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Who works at the far end of ssh: the binary, as on a host that was synced, or sh alone
    #[arg(long, value_enum, default_value = "agent")]
    far: Far,
    /// Instead of killing, cut the power of a disk with this file system
    #[arg(long, value_enum)]
    power: Option<power::Kind>,
    /// With --power: make every call to sync do nothing, to see that the harness sees it
    #[arg(long, requires = "power")]
    forgetful: bool,
    /// Go through a real ssh server also where only this side is killed; else a stand-in runs the far side here
    #[arg(long)]
    ssh: bool,
    /// Append every row as a line of JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave out scenarios that have a row in the file of --json: an interrupted run goes on
    #[arg(long, requires = "json", conflicts_with_all = ["fault", "power", "lie", "cut", "hang"])]
    go_on: bool,
    /// Run nothing: read rows that were written with --json
    #[arg(long, value_name = "FILE", num_args = 1..)]
    report: Vec<PathBuf>,
    /// Put the table into docs/reliability.md
    #[arg(long)]
    write: bool,
    /// Name the scenarios and stop
    #[arg(long)]
    list: bool,
}

/// Who works at the far end of ssh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Far {
    /// The same binary.
    Agent,
    /// A POSIX shell.
    Sh,
}

/// What this binary is called for by the harness itself.
///
/// # Errors
/// The program cannot be traced.
pub fn hidden() -> Option<Result<ExitCode>> {
    let mut words = std::env::args_os().skip(1);
    let word = words.next()?;
    if let Some(state) = word.to_str()?.strip_prefix(lies::WORD) {
        let words: Vec<OsString> = words.collect();
        return Some(lies::serve(Path::new(state), &words));
    }
    match word.to_str()? {
        tracer::WORD | tracer::CLOSING => {
            let words: Vec<OsString> = words.collect();
            Some(tracer::become_traced(&words, word == tracer::CLOSING).map(|never| match never {}))
        }
        remote::WORD => {
            let agent = words.next().filter(|word| !word.is_empty());
            Some(words.next().context("No state").and_then(|file| remote::serve(Path::new(&file), agent.as_deref())))
        }
        _ => None,
    }
}

/// Runs the chore. The exit status is 1 when something was wrong after a kill.
///
/// # Errors
/// The harness cannot run a scenario.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.report.is_empty() {
        return told(args, &report::read(&args.report)?);
    }
    let cases = scenarios(args)?;
    if args.list {
        for case in &cases {
            println!("{:<28} {}", case.action(), case.id());
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Whatever ends this program, its mounts go with it.
    if std::env::var_os(OWN_MOUNTS).is_none() {
        let mut own = Command::new("unshare");
        own.args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1));
        return Err(own.env(OWN_MOUNTS, "yes").exec()).context("Cannot run unshare");
    }
    let installed = tree::Installed::new(args.binary.as_deref())?;
    let stand_ins = if args.lie.is_empty() { None } else { Some(StandIns::mount()?) };
    let tools = stand_ins.as_ref().map(StandIns::state);
    if tools.is_some() && args.jobs > 1 {
        bail!("The tools are everybody's: with --lie there is one job");
    }
    let done = match &args.json {
        Some(file) if args.go_on && file.exists() => report::read(std::slice::from_ref(file))?,
        _ => Vec::new(),
    };
    let all = args.who.iter().flat_map(|who| cases.iter().map(move |case| (case, *who)));
    let queue: Queue<'_> =
        Mutex::new(all.filter(|(case, who)| !done.iter().any(|row| row.is_of(case, *who))).collect());
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1))
            .map(|_| scope.spawn(|| worker(args, &installed.tree, tools.as_deref(), &queue, &rows)))
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("A worker panicked"))?)
    })?;
    let rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    told(args, &rows)
}

/// Prints the tables, and writes them where that is asked for.
fn told(args: &Args, rows: &[Row]) -> Result<ExitCode> {
    if args.write {
        report::write(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reliability.md")), rows)?;
    }
    print!("{}{}", report::text(rows), report::failures(rows));
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    println!(
        "{} scenarios, {} points, {} tried, {} failures",
        rows.iter().filter(|row| row.points > 0).count(),
        sum(|row| row.points),
        sum(|row| row.killed),
        sum(|row| row.failures.len())
    );
    Ok(if sum(|row| row.failures.len()) == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The cases that are scenarios: the last call succeeds, is not disturbed by the case itself, and is not a question.
fn scenarios(args: &Args) -> Result<Vec<Case>> {
    let wanted = args.case.as_deref().map(case::glob).transpose()?;
    let asks = ["monitor", "stat", "export", "monitor_ds", "ls"];
    let mut cases: Vec<Case> = case::load(&crate::conformance::default_cases(), args.family.as_deref())?
        .into_iter()
        .filter(|case| {
            let name = case.action().rsplit('/').next().unwrap_or_default().to_owned();
            let well = case.calls.iter().all(|call| call.kill.is_none())
                && case.calls.last().is_some_and(|call| call.expect.rc.as_integer() == Some(0));
            well && case.family != "dummy"
                && !asks.contains(&name.split('.').next().unwrap_or_default())
                && args.action.as_ref().is_none_or(|action| *action == name || case.action() == action)
                && wanted.as_ref().is_none_or(|glob| glob.is_match(&case.id()))
        })
        .collect();
    if let Some(count) = args.cases {
        scenario::draw(&mut cases, count, args.seed);
    }
    if cases.is_empty() {
        bail!("No case matches");
    }
    Ok(cases)
}

/// What is still to be done.
type Queue<'a> = Mutex<VecDeque<(&'a Case, Who)>>;

/// Takes scenarios until there are none left. One that the harness cannot run has failed.
fn worker(args: &Args, tree: &Tree, tools: Option<&Path>, queue: &Queue<'_>, rows: &Mutex<Vec<Row>>) -> Result<()> {
    let mut servers: Vec<Server> = Vec::new();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((case, who)) = next else { return Ok(()) };
        if who == Who::Remote && !case.needs_bridge() {
            continue;
        }
        let done = one(args, case, tree, tools, who, &mut servers).unwrap_or_else(|error| {
            let mut row = Row::new(case, who, ways(args)[0]);
            let wrong = vec![format!("The harness cannot run this: {error:#}")];
            row.failures.push(report::Failure { number: 0, point: String::new(), wrong, stderr: String::new() });
            vec![row]
        });
        for row in done {
            if row.points == 0 && row.failures.is_empty() {
                continue;
            }
            if let Some(file) = &args.json {
                let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file)?;
                writeln!(file, "{}", serde_json::to_string(&row)?)?;
            }
            eprintln!(
                "{:<26} {:<44} {:<22} {:>5} points {:>3} failures {:>6.1} s",
                row.action,
                row.variant,
                row.fault.as_deref().unwrap_or_default(),
                row.points,
                row.failures.len(),
                row.seconds
            );
            eprint!("{}", report::failures(std::slice::from_ref(&row)));
            rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        }
    }
}

/// Every way to disturb one case.
fn one(
    args: &Args,
    case: &Case,
    tree: &Tree,
    tools: Option<&Path>,
    who: Who,
    servers: &mut Vec<Server>,
) -> Result<Vec<Row>> {
    if let Some(kind) = args.power {
        let tree = with_agent(args, tree);
        let row = power::replay(
            case,
            &tree,
            power::Choice { kind, most: args.sample.unwrap_or(usize::MAX), seed: args.seed, forgetful: args.forgetful },
        );
        return Ok(vec![row?]);
    }
    let kind = if who == Who::Remote { Who::Remote } else { Who::Itself };
    let cut = !args.cut.is_empty();
    if cut && !case.needs_bridge() {
        return Ok(Vec::new());
    }
    let wanted = case.needs_bridge() && (args.ssh || cut || kind == Who::Remote);
    if wanted && !servers.iter().any(|server| server.who == kind) {
        servers.push(server(args, tree, kind)?);
    }
    let server = servers.iter().find(|server| server.who == kind).filter(|_| wanted);
    let ssh = server.map(|server| &server.sshd);
    let ground = Ground::memory()?;
    let file = ssh.map(|server| server.dir().join("remote.json"));
    if let Some(file) = &file {
        remote::State::default().save(file)?;
    }
    let tree = if ssh.is_none() { &with_agent(args, tree) } else { tree };
    let mut world = World::new(ground.path(), case, tree, ssh, true)?;
    let choice = |by| Choice { who, by, sample: args.sample, seed: args.seed };
    let ways: Vec<_> = ways(args).into_iter().map(choice).collect();
    let line = server.and_then(|server| server.line.as_ref());
    scenario::enumerate(&mut world, &ways, With { remote: file.as_deref(), tools, line })
}

/// What is done at the points, one after the other; at least one way.
fn ways(args: &Args) -> Vec<By> {
    if args.hang {
        return vec![By::Hang];
    }
    if args.fault.is_empty() && args.lie.is_empty() && args.cut.is_empty() {
        return vec![By::Kill];
    }
    let cuts = args.cut.iter().copied().map(By::Cut);
    args.fault.iter().copied().map(By::Fault).chain(args.lie.iter().copied().map(By::Lie)).chain(cuts).collect()
}

/// A real far end.
struct Server {
    who: Who,
    sshd: Sshd,
    line: Option<Line>,
}

fn server(args: &Args, tree: &Tree, who: Who) -> Result<Server> {
    let agent = if args.far == Far::Agent { tree.drivers.display().to_string() } else { String::new() };
    let command = match who {
        Who::Remote => {
            let me = std::env::current_exe().context("Cannot find this binary")?;
            format!("ForceCommand '{}' {} '{agent}' '{{dir}}/remote.json'\n", me.display(), remote::WORD)
        }
        _ if args.far == Far::Agent => {
            format!("ForceCommand SCRIPTS_REMOTE_DIR='{agent}' sh -c \"$SSH_ORIGINAL_COMMAND\"\n")
        }
        _ => String::new(),
    };
    let sshd = Sshd::start(&More { server: &command, ..More::default() })?;
    let line = if args.cut.is_empty() { None } else { Some(Line::before(sshd.dir())?) };
    Ok(Server { who, sshd, line })
}

/// The tree, with the binary over there where there is only a stand-in for ssh.
fn with_agent(args: &Args, tree: &Tree) -> Tree {
    let mut tree = Tree { drivers: tree.drivers.clone(), lib: tree.lib.clone(), env: tree.env.clone() };
    if args.far == Far::Agent {
        tree.env.push(("SCRIPTS_REMOTE_DIR".to_owned(), tree.drivers.display().to_string()));
    }
    tree
}
