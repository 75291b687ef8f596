//! The conformance kit: judges any tree of OpenNebula storage drivers.
//!
//! The cases are data (`tests/conformance/<family>/*.toml`), the judged tree is a `remotes` directory as an installer
//! lays it out, and every case runs in a sandbox of its own. Nothing here knows how a driver works inside: only its
//! arguments, standard input, environment, answers and the files it leaves are looked at.
//!
//! Reading order: [`case`] (what a case may say), [`payload`] (the XML of a call), [`sandbox`] and [`content`] (what
//! a call finds), [`http`], [`oned`], [`sshd`] and [`mounts`] (who it may talk to), [`process`] (running it), [`expect`] and [`files`]
//! (judging it), [`run`](mod@run) (one case from start to end), [`report`].

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

mod archive;
pub mod case;
pub mod content;
pub mod expect;
pub mod files;
pub mod http;
mod mounts;
mod oned;
pub mod payload;
pub mod process;
mod report;
pub mod run;
pub mod sandbox;
pub mod sshd;
#[cfg(test)]
mod tests;
pub mod vars;

/// What the command line says.
// Every switch is one that a person types: there is nothing to group.
#[allow(clippy::struct_excessive_bools)]
#[derive(clap::Args)]
pub struct Args {
    /// The remotes directory to judge: holds datastore/, tm/ and etc/
    #[arg(long, value_name = "DIR")]
    drivers: PathBuf,
    /// The front-end's lib directory (sh/, ruby/) that the judged scripts load; without it only
    /// `sh/scripts_common.sh` is offered, from the tree itself
    #[arg(long, value_name = "DIR")]
    lib: Option<PathBuf>,
    /// Only this family: a directory below tests/conformance
    #[arg(long)]
    family: Option<String>,
    /// Only cases whose FAMILY/FILE/NAME matches this glob (* and ?)
    #[arg(long, value_name = "GLOB")]
    case: Option<String>,
    /// The tree is meant to pass everything (the default)
    #[arg(long, conflicts_with = "upstream")]
    ours: bool,
    /// The tree is upstream's: cases marked as known wrong there are counted apart
    #[arg(long)]
    upstream: bool,
    /// Also write the result as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Set a variable in every call's environment
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Cases to run at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where the cases are
    #[arg(long, value_name = "DIR", default_value_os_t = default_cases())]
    cases: PathBuf,
    /// Print the standard error of every failed call
    #[arg(long, short)]
    verbose: bool,
    /// Name the cases and stop
    #[arg(long)]
    list: bool,
}

pub fn default_cases() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/conformance"))
}

/// Runs the chore. The exit status is 1 when a case failed that is not marked as known wrong in this tree.
pub fn run(args: &Args) -> Result<ExitCode> {
    let wanted = args.case.as_deref().map(case::glob).transpose()?;
    let cases: Vec<case::Case> = case::load(&args.cases, args.family.as_deref())?
        .into_iter()
        .filter(|case| wanted.as_ref().is_none_or(|glob| glob.is_match(&case.id())))
        .collect();
    if cases.is_empty() {
        bail!("No case matches");
    }
    if args.list {
        for case in &cases {
            println!("{:<44} {}", case.id(), case.why);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let tree = sandbox::Tree {
        drivers: args.drivers.canonicalize().with_context(|| format!("Cannot find {}", args.drivers.display()))?,
        lib: args.lib.as_ref().map(|lib| lib.canonicalize()).transpose().context("Cannot find the lib directory")?,
        env: args.env.iter().map(|pair| variable(pair)).collect::<Result<_>>()?,
    };
    let ssh = if cases.iter().any(case::Case::needs_bridge) { Some(server(&tree)?) } else { None };
    let outcomes = judge(cases, &tree, ssh.as_ref(), args.jobs.max(1));
    let side = if args.upstream { report::Side::Upstream } else { report::Side::Ours };
    let report = report::Report::new(side, outcomes, args.verbose);
    print!("{report}");
    if let Some(file) = &args.markdown {
        std::fs::write(file, report.markdown()).with_context(|| format!("Cannot write {}", file.display()))?;
    }
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The host of the bridges. Scripts, which are those with a `lib`, reach it by plain `ssh` and expect the tree on it.
fn server(tree: &sandbox::Tree) -> Result<sshd::Sshd> {
    let scripts = tree.lib.as_ref().map(|_| tree.drivers.as_path());
    sshd::Sshd::start(&sshd::More { tree: scripts, ..sshd::More::default() })
}

fn variable(pair: &str) -> Result<(String, String)> {
    let (name, value) = pair.split_once('=').with_context(|| format!("{pair} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs the cases on `jobs` threads; the answers come in the order of the cases.
fn judge(cases: Vec<case::Case>, tree: &sandbox::Tree, ssh: Option<&sshd::Sshd>, jobs: usize) -> Vec<report::Outcome> {
    let queue: Mutex<VecDeque<(usize, case::Case)>> = Mutex::new(cases.into_iter().enumerate().collect());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((index, case)) = next else { break };
                    let verdict = run::case(&case, tree, ssh);
                    let outcome = report::Outcome { case, verdict };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}
