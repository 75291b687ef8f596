//! What a person types: `onestore <verb>`. Calls by link and launcher never come here.

mod inspect;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::action::{ACTIONS, Action};
use crate::dispatch;
use crate::downloader::person;
use crate::driver::{self, DRIVERS, Driver, PROGRAMS};
use crate::exec::leash;
use crate::invocation::Invocation;
use crate::report::{Misuse, exit_status, one_line};

/// OpenNebula's storage drivers as one binary.
///
/// oned calls it through links (remotes/datastore/fs/cp, remotes/tm/…); by hand the same calls are
/// `onestore ds fs cp 7 < payload.xml`.
#[derive(Debug, Parser)]
#[command(name = "onestore", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a datastore action as oned would: Base64 or plain XML on standard input
    #[command(alias = "datastore")]
    Ds(Call),
    /// Run a transfer manager action as oned would
    Tm(Call),
    /// Show what an action would do, step by step and host by host, and how it would be undone; changes nothing
    Explain {
        /// `ds` or `tm`
        kind: String,
        #[command(flatten)]
        call: Call,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what disk images are and whether a program may open them: format, size, references to other files
    ///
    /// Reads headers only and opens nothing else. Exit status: 0 all are safe, 1 one is unsafe, 2 one could not be read.
    Inspect(inspect::Args),
    /// List the entries served, one `tm/qcow2/clone` a line
    Links {
        /// Only this family (`datastore/fs`); may be repeated
        #[arg(long)]
        family: Vec<String>,
    },
    /// List the families: name, complete or partial, number of entries, separated by tabs
    Families,
    /// List every action with its arguments
    Actions {
        /// Print the page docs/actions.md
        #[arg(long)]
        markdown: bool,
    },
    /// Fetch an image: decoded, checked and complete, or not at all
    Download(person::Download),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Run a script of typed operations for another onestore at the other end of an ssh connection
    #[command(hide = true)]
    Agent {
        /// Version of the other onestore
        version: OsString,
    },
}

#[derive(Debug, clap::Args)]
struct Call {
    /// The driver (`fs`, `qcow2`)
    mad: String,
    /// The action (`cp`, `clone`, `clone.ssh`)
    action: String,
    /// The action's arguments, as `onestore actions` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Decides between a driver call and a person's, and serves it.
#[must_use]
pub fn main(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let called_as = words.next().unwrap_or_default();
    let args: Vec<OsString> = words.collect();
    if let Some((verb, words)) = args.split_first()
        && verb == leash::VERB
        && called_as == "onestore"
    {
        return ExitCode::from(leash::run(words));
    }
    leash::available();
    if let Some(status) = program_call(&called_as, &args) {
        return status;
    }
    match driver_call(&called_as, &args) {
        Some(Ok(call)) => return dispatch::run(&call),
        Some(Err(error)) => return complain(&error),
        None => {}
    }
    let words = std::iter::once(OsString::from("onestore")).chain(args);
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { crate::report::MISUSED } else { 0 });
        }
    };
    match cli.verb {
        Verb::Ds(call) => by_words("ds", call),
        Verb::Tm(call) => by_words("tm", call),
        Verb::Agent { version } => ExitCode::from(crate::exec::agent::serve(&version)),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Download(args) => match person::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        },
        verb => match print(verb) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        },
    }
}

/// Runs the program beside the drivers that was called, if one was.
fn program_call(called_as: &OsStr, args: &[OsString]) -> Option<ExitCode> {
    let cwd = cwd();
    if args.first().is_some_and(|a| a == "--as") {
        let (program, remotes) = Invocation::program(Path::new(args.get(1)?), &cwd)?;
        return Some((program.run)(args.get(2..).unwrap_or_default().to_vec(), &remotes));
    }
    let called = [called_as.to_owned(), executed()];
    let (program, remotes) = called.iter().find_map(|path| Invocation::program(Path::new(path), &cwd))?;
    Some((program.run)(args.to_vec(), &remotes))
}

/// The call that oned makes: by link (our own name), by launcher (`--as PATH`), or none.
fn driver_call(called_as: &OsStr, args: &[OsString]) -> Option<Result<Invocation>> {
    let cwd = cwd();
    if args.first().is_some_and(|a| a == "--as") {
        let path = args.get(1).cloned().unwrap_or_default();
        let rest = args.get(2..).unwrap_or_default().to_vec();
        let call = Invocation::from_path(Path::new(&path), &cwd, rest);
        let refuse = || Misuse(format!("{} is no path of a driver action", Path::new(&path).display()));
        return Some(call.ok_or_else(|| refuse().into()));
    }
    let called = [called_as.to_owned(), executed()];
    called.iter().find_map(|path| Invocation::from_path(Path::new(path), &cwd, args.to_vec())).map(Ok)
}

fn cwd() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
}

/// A caller may set argv[0] to anything; the kernel remembers the path that was executed.
fn executed() -> OsString {
    OsString::from_vec(rustix::param::linux_execfn().to_bytes().to_vec())
}

fn by_words(kind: &str, call: Call) -> ExitCode {
    match invocation(kind, call) {
        Ok(call) => dispatch::run(&call),
        Err(error) => complain(&error),
    }
}

fn invocation(kind: &str, call: Call) -> Result<Invocation> {
    Ok(Invocation::from_words(kind, &call.mad, &call.action, call.args).map_err(|e| Misuse(e.to_string()))?)
}

fn complain(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "{}", one_line(error));
    ExitCode::from(exit_status(error))
}

/// The verbs that only print.
fn print(verb: Verb) -> Result<()> {
    let text = match verb {
        Verb::Explain { kind, mut call, mut json } => {
            // Everything behind the action's name is an argument of it; no action has this one.
            if call.args.last().is_some_and(|last| last == "--json") {
                call.args.pop();
                json = true;
            }
            let explanation = dispatch::explain(&invocation(&kind, call)?)?;
            if json { format!("{}\n", serde_json::to_string_pretty(&explanation)?) } else { explanation.to_string() }
        }
        Verb::Links { family } => links(&family)?,
        Verb::Families => families(),
        Verb::Actions { markdown: true } => crate::actions_page::page(),
        Verb::Actions { markdown: false } => actions(),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "onestore", &mut script);
            String::from_utf8_lossy(&script).into_owned()
        }
        Verb::Ds(_) | Verb::Tm(_) | Verb::Agent { .. } | Verb::Download(_) | Verb::Inspect(_) => String::new(),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// The family names of a driver: `tm/qcow2`, `tm/shared`.
fn family_names(driver: &Driver) -> impl Iterator<Item = String> + '_ {
    driver.mads.iter().map(move |mad| format!("{}/{mad}", driver.kind))
}

fn links(wanted: &[String]) -> Result<String> {
    let programs = PROGRAMS.iter().map(|program| program.family().to_owned());
    let all: Vec<String> = DRIVERS.iter().flat_map(|d| family_names(d)).chain(programs).collect();
    if let Some(unknown) = wanted.iter().find(|w| !all.contains(w)) {
        return Err(Misuse(format!("Unknown family {unknown:?}: there are {}", all.join(" "))).into());
    }
    let mut lines: Vec<String> = driver::links().collect();
    if !wanted.is_empty() {
        lines.retain(|line| wanted.iter().any(|w| line.rsplit_once('/').is_some_and(|(family, _)| family == w)));
    }
    lines.sort();
    Ok(lines.into_iter().fold(String::new(), |text, line| text + &line + "\n"))
}

fn families() -> String {
    let mut text = String::new();
    for driver in DRIVERS {
        let state = if driver.complete { "complete" } else { "partial" };
        for name in family_names(driver) {
            let entries = driver.links().filter(|l| l.starts_with(&format!("{name}/"))).count();
            let _ = writeln!(text, "{name}\t{state}\t{entries}");
        }
    }
    for program in PROGRAMS {
        let entries = PROGRAMS.iter().filter(|other| other.family() == program.family()).count();
        let _ = writeln!(text, "{}\tcomplete\t{entries}", program.family());
    }
    text
}

fn actions() -> String {
    let width = |f: fn(&Action) -> usize| ACTIONS.iter().map(f).max().unwrap_or_default();
    let (name, args) = (width(|a| a.name.len()), width(|a| a.args.join(" ").len()));
    let mut text = String::new();
    for action in ACTIONS {
        let folder = action.kind.folder();
        let arguments = action.args.join(" ");
        let _ = writeln!(text, "{folder:<9}  {:<name$}  {arguments:<args$}  {}", action.name, action.what);
    }
    for program in PROGRAMS {
        let _ = writeln!(text, "{}  {}", program.path, program.about);
    }
    text
}
