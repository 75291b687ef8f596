//! From a call to its reply: finds the driver, reads the request, runs it, prints the answer. The only caller of drivers.
//!
//! Order matters (contract 01 §8): the reply is printed, then what only served crash safety is cleared away, and only
//! then the exit status says success. Whatever dies before that is a failure for oned, and is taken back: by our own
//! undo stack, or, after `kill -9`, by the next action on the datastore ([`crate::exec::staging`]).

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::action::{Action, Kind, Stdin};
use crate::context::{Cx, Hosts, Parts};
use crate::driver::{Driver, Entry, Reply, Request, Serve, TmRequest};
use crate::exec::control::{Cancel, Control};
use crate::exec::host::local::Local;
use crate::exec::host::policy::{Policy, Remote};
use crate::exec::host::{Host, HostName};
use crate::exec::lock::NamedLock;
use crate::exec::process::Programs;
use crate::exec::step::{Executor, Explainer, Planned, Runner};
use crate::invocation::Invocation;
use crate::location::Layout;
use crate::oned::{self, Oned, OnedEnv};
use crate::payload;
use crate::report::{Level, Log, Misuse, Said, exit_status};
use crate::settings::Settings;

/// Runs a call as oned makes it and answers on stdout and stderr.
#[must_use]
pub fn run(call: &Invocation) -> ExitCode {
    let log = Log::new(&call.to_string(), std::env::var_os("ONESTORE_LOG").as_deref().map(OsStr::as_ref));
    match serve(call, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(Said(text)) = error.downcast_ref::<Said>() {
                // The failure is what counts, also where nobody reads the text.
                let _ = deliver(format!("{text}\n").as_bytes());
            }
            log.fail(&error);
            ExitCode::from(exit_status(&error))
        }
    }
}

fn serve(call: &Invocation, log: &Log) -> Result<()> {
    let control = Control::new(Cancel::on_signals().context("Cannot install signal handlers")?);
    let job = Job::new(call)?;
    // Before the runner, so that it goes after it: nobody else comes in while something is taken back.
    let held = Held::default();
    let runner = Runner::new(control.clone(), log);
    let reply = job.work(&control, &runner, log, &held)?;
    deliver(reply.as_bytes())?;
    runner.commit()
}

/// What a call would do, step by step, changing nothing.
///
/// # Errors
/// What the call itself would fail with before its first change.
pub fn explain(call: &Invocation) -> Result<Explanation> {
    let control = Control::new(Cancel::on_signals().context("Cannot install signal handlers")?);
    let log = Log::quiet(&call.to_string());
    let job = Job::new(call)?;
    let explainer = Explainer::default();
    let reply = job.work(&control, &explainer, &log, &Held::default())?;
    explainer.commit()?;
    Ok(Explanation { call: call.to_string(), steps: explainer.plan(), reply })
}

/// The answer of `explain`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Explanation {
    /// The call (`datastore/fs/cp`).
    pub call: String,
    /// Its steps in order.
    pub steps: Vec<Planned>,
    /// What it would print.
    pub reply: String,
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.call)?;
        if self.steps.is_empty() {
            writeln!(f, "  changes nothing")?;
        }
        for (number, step) in self.steps.iter().enumerate() {
            let host = if step.host.is_empty() { "front-end" } else { &step.host };
            writeln!(f, "\n{:>3}. {} [{host}]", number + 1, step.what)?;
            for op in &step.ops {
                writeln!(f, "       {op}")?;
            }
            if !step.undo.is_empty() {
                writeln!(f, "     undone by")?;
                for op in &step.undo {
                    writeln!(f, "       {op}")?;
                }
            }
        }
        match self.reply.trim_end() {
            "" => writeln!(f, "\nanswers nothing"),
            reply => writeln!(f, "\nanswers\n{}", indent(reply)),
        }
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("       {line}")).collect::<Vec<_>>().join("\n")
}

/// What keeps other actions from what this one works on, until its last step.
type Held = RefCell<Vec<NamedLock>>;

/// A call whose driver and entry were found and whose arguments are right in number.
struct Job<'a> {
    call: &'a Invocation,
    entry: &'static Entry,
    action: &'static Action,
}

impl<'a> Job<'a> {
    fn new(call: &'a Invocation) -> Result<Self> {
        let known = || names(call.kind);
        let driver = Driver::find(call.kind, &call.mad)
            .ok_or_else(|| Misuse(format!("Unknown {} driver {:?}: there are {}", call.kind, call.mad, known())))?;
        let unknown = || {
            let names: Vec<_> = driver.entries.iter().map(|e| e.name).collect();
            Misuse(format!(
                "Unknown action {:?} of {}/{}: there are {}",
                call.action,
                call.kind,
                call.mad,
                names.join(" ")
            ))
        };
        let action = call.spec().ok_or_else(unknown)?;
        let entry = driver.entry(action.name, call.system.as_deref()).ok_or_else(unknown)?;
        Ok(Self { call, entry, action })
    }

    /// Does the work with `executor` and gives what is to be printed.
    fn work(&self, control: &Control, executor: &dyn Executor, log: &Log, held: &Held) -> Result<String> {
        match self.entry.serve {
            Serve::Fixed(answer) => {
                drain_stdin()?;
                Ok(answer.to_owned())
            }
            Serve::NotSupported => {
                drain_stdin()?;
                anyhow::bail!("{}: Operation not supported", self.call.action)
            }
            Serve::Datastore(serve) => {
                self.check_arguments()?;
                let request = self.request()?;
                self.with_context(control, executor, log, held, |cx| serve(cx, &request))
            }
            Serve::Tm(serve) => {
                self.check_arguments()?;
                let request = self.tm_request()?;
                self.with_context(control, executor, log, held, |cx| serve(cx, &request))
            }
        }
    }

    fn with_context(
        &self,
        control: &Control,
        executor: &dyn Executor,
        log: &Log,
        held: &Held,
        serve: impl FnOnce(&Cx<'_>) -> Result<Reply>,
    ) -> Result<String> {
        let env = |name: &str| std::env::var_os(name);
        let layout = Layout::new(env, self.call.remotes.as_deref());
        let settings = Settings::load(&layout, &self.call.mad, env)?;
        let hosts = RealHosts::new(log)?;
        let cx = Cx::new(Parts {
            layout: &layout,
            settings: &settings,
            log,
            control: control.clone(),
            hosts: &hosts,
            executor,
            connect: &connect,
            name: &new_name,
        });
        let reply = serve(&cx);
        held.borrow_mut().extend(cx.into_locks());
        reply.map(|reply| reply.to_string())
    }

    fn check_arguments(&self) -> Result<()> {
        let (least, most) = self.action.arity();
        let given = self.call.args.len();
        if given < least || most.is_some_and(|most| given > most) {
            return Err(Misuse(format!(
                "{} takes {} but was given {given} argument{}",
                self.call,
                self.action.args.join(" "),
                if given == 1 { "" } else { "s" }
            ))
            .into());
        }
        Ok(())
    }

    fn request(&self) -> Result<Request> {
        let word = self.call.args.first().map(OsString::as_os_str).unwrap_or_default();
        let id = word.to_str().and_then(|w| w.parse().ok()).ok_or_else(|| {
            let name = self.action.args.first().unwrap_or(&"the first argument");
            Misuse(format!("{} of {} is not a number: {:?}", name, self.call, word.to_string_lossy()))
        })?;
        let data = payload::parse(&self.document()?).map_err(|e| Misuse(chain_text(&e)))?;
        Ok(Request { id, data })
    }

    fn tm_request(&self) -> Result<TmRequest> {
        // What has no document on standard input has an empty pipe there, or a person's terminal: nobody reads it.
        let vm = if self.action.stdin == Stdin::Vm { Some(self.document()?) } else { None };
        Ok(TmRequest { mad: self.call.mad.clone(), action: self.action.name, args: self.call.args.clone(), vm })
    }

    /// The XML on standard input.
    fn document(&self) -> Result<String> {
        if io::stdin().is_terminal() {
            return Err(Misuse(format!("{} reads {} on standard input", self.call, self.action.stdin.word())).into());
        }
        Ok(payload::read(io::stdin().lock(), payload::DEFAULT_LIMIT).map_err(|e| Misuse(chain_text(&e)))?)
    }
}

/// An error and its sources in one text.
fn chain_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn names(kind: Kind) -> String {
    let mads = crate::driver::DRIVERS.iter().filter(|d| d.kind == kind).flat_map(|d| d.mads);
    mads.copied().collect::<Vec<_>>().join(" ")
}

/// Reads standard input to its end, so that the caller's write does not fail.
fn drain_stdin() -> Result<()> {
    let mut stdin = io::stdin().lock();
    if stdin.is_terminal() {
        return Ok(());
    }
    let mut block = [0; 8 << 10];
    while stdin.read(&mut block).context("Cannot read standard input")? > 0 {}
    Ok(())
}

fn deliver(reply: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(reply).and_then(|()| stdout.flush()).context("Cannot deliver the reply")
}

/// Hosts as they are.
struct RealHosts<'a> {
    programs: Programs,
    policy: Policy,
    log: &'a Log,
}

impl<'a> RealHosts<'a> {
    fn new(log: &'a Log) -> Result<Self> {
        let policy = Policy::from_env().map_err(|e| Misuse(e.to_string()))?;
        Ok(Self { programs: Programs::from_env(), policy, log })
    }
}

impl Hosts for RealHosts<'_> {
    fn local(&self) -> Arc<dyn Host> {
        Arc::new(Local::new(self.programs.clone()))
    }

    fn remote(&self, name: &str) -> Result<Arc<dyn Host>> {
        let log = self.log.clone();
        let notes = Arc::new(move |text: &str| log.say(Level::Debug, text));
        Ok(Arc::new(Remote::new(HostName::new(name)?, self.programs.clone(), self.policy, notes)))
    }
}

fn connect() -> Box<dyn Oned> {
    oned::connect(&OnedEnv::from_process())
}

/// 32 hexadecimal digits that no other call gets: time, process, image and a counter, hashed as upstream's names are.
fn new_name(image: u32) -> String {
    use md5::Digest as _;
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let host = rustix::system::uname();
    let mut hasher = md5::Md5::new();
    hasher.update(format!("{}:{image}:{}:{count}:", time.as_nanos(), std::process::id()));
    hasher.update(OsStr::from_bytes(host.nodename().to_bytes()).as_bytes());
    let digest = hasher.finalize();
    format!("{:032x}", u128::from_be_bytes(digest.into()))
}
