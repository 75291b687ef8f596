//! One case from start to end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Signal;

use super::case::{Call, Case, Route};
use super::expect::{self, Evidence};
use super::files::{Snapshot, clean};
use super::http::Server;
use super::process::{self, Run};
use super::sandbox::{Sandbox, Tree};
use super::sshd::Sshd;
use super::vars::Vars;
use super::{content, payload};

/// How a case ended.
#[derive(Default)]
pub struct Verdict {
    /// What differs, in the order in which it was looked at.
    pub differences: Vec<String>,
    /// The kit itself could not run the case: nothing is known about the driver.
    pub broken: bool,
    /// Standard error of the last call.
    pub stderr: String,
    /// Milliseconds that the calls took.
    pub wall_ms: u128,
}

/// Runs and judges a case.
pub fn case(case: &Case, tree: &Tree, ssh: Option<&Sshd>) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(error) = steps(case, tree, ssh, &mut verdict) {
        verdict.broken = true;
        verdict.differences.push(format!("The kit cannot run this: {error:#}"));
    }
    verdict
}

fn steps(case: &Case, tree: &Tree, ssh: Option<&Sshd>, verdict: &mut Verdict) -> Result<()> {
    let sandbox = Sandbox::new(case, tree, ssh)?;
    let root = sandbox.root();
    let mut vars = sandbox.vars();
    for before in &case.before {
        content::make(before, &vars)?;
    }
    let server = serve(&case.http, &mut vars)?;
    let first = Snapshot::take(&root)?;
    let mut before = first.clone();
    for (number, call) in case.calls.iter().enumerate() {
        if !sandbox.entry(call).exists() {
            verdict.differences.push(format!("There is no {}", call.action));
            return Ok(());
        }
        let ran = one(call, &sandbox, &vars, server.as_ref(), ssh)?;
        verdict.stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        verdict.wall_ms += ran.wall.as_millis();
        let evidence = Evidence { ran: &ran, first: &first, before: &before, root: &root, http: server.as_ref() };
        let differences = expect::check(call, &evidence, &mut vars);
        if !differences.is_empty() {
            let which = if case.calls.len() > 1 { format!("Call {}: ", number + 1) } else { String::new() };
            verdict.differences.extend(differences.into_iter().map(|difference| which.clone() + &difference));
            return Ok(());
        }
        before = Snapshot::take(&root)?;
    }
    Ok(())
}

/// Starts the web server if the case wants one; `{http}` is its address.
pub fn serve(routes: &[Route], vars: &mut Vars) -> Result<Option<Server>> {
    if routes.is_empty() {
        return Ok(None);
    }
    let mut routes = routes.to_vec();
    for route in &mut routes {
        for text in [&mut route.file, &mut route.redirect] {
            *text = text.as_deref().map(|text| vars.text(text)).transpose()?;
        }
    }
    let routes_login = routes.iter().find_map(|route| route.login.clone());
    let server = Server::start(routes)?;
    vars.set("http", server.url.clone());
    if let Some(login) = routes_login {
        let login = login.replace(' ', "%20");
        vars.set("login", server.url.replacen("://", &format!("://{login}@"), 1));
    }
    Ok(Some(server))
}

fn one(
    call: &Call,
    sandbox: &Sandbox,
    vars: &Vars,
    server: Option<&Server>,
    ssh: Option<&Sshd>,
) -> Result<process::Ran> {
    let program = sandbox.entry(call);
    let mut env = sandbox.env().to_vec();
    for (name, value) in &call.env {
        env.push((name.clone(), vars.text(value)?));
    }
    let filled = call.kill.as_ref().and_then(|kill| kill.when_filled.as_deref());
    let filled = filled.map(|dir| vars.text(dir)).transpose()?.map(|dir| clean(&dir));
    let due = std::cell::Cell::new(None);
    let condition = |now: Duration| {
        let Some(kill) = &call.kill else { return false };
        let requested = kill.when_requested.as_ref();
        let asked = requested.is_none_or(|path| server.is_some_and(|server| server.count("GET", path) > 0));
        if due.get().is_none() && asked && filled.as_deref().is_none_or(has_entry) {
            due.set(Some(now + Duration::from_millis(kill.after_ms)));
        }
        due.get().is_some_and(|due| now >= due)
    };
    let kill = match call.kill.as_ref().map(|kill| kill.signal.as_str()) {
        None => None,
        Some("TERM") => Some(Signal::TERM),
        Some("KILL") => Some(Signal::KILL),
        Some(other) => bail!("No signal {other}"),
    };
    process::run(Run {
        before: ssh.map_or_else(Vec::new, Sshd::before_drivers),
        program: &program,
        argv: &payload::argv(call, vars)?,
        env,
        cwd: &sandbox.root().join("one/var"),
        stdin: payload::stdin(call, vars)?,
        limit: Duration::from_secs(call.limit_s),
        kill: kill.map(|signal| (signal, &condition as &dyn Fn(Duration) -> bool)),
    })
}

fn has_entry(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}
