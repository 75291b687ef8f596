//! Judges what a call answered.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Result, bail};
use regex::Regex;
use toml::Value;

use super::case::{Call, Expect};
use super::files::{self, Snapshot, clean};
use super::http::Server;
use super::process::Ran;
use super::vars::Vars;

/// Lines that oned's driver processes take for log lines; every other one is the text that a user sees.
static LOG: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(ERROR|INFO|WARN|DEBUG):").expect("the expression is constant"));

/// What a call left the judge to look at.
pub struct Evidence<'a> {
    /// The answers.
    pub ran: &'a Ran,
    /// The sandbox before the first call of the case.
    pub first: &'a Snapshot,
    /// The sandbox before this call.
    pub before: &'a Snapshot,
    /// The sandbox's root.
    pub root: &'a Path,
    /// The web server, if there is one.
    pub http: Option<&'a Server>,
}

/// The lines that oned would show to a user.
pub fn plain_lines(stderr: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(stderr).lines().filter(|line| !LOG.is_match(line)).map(str::to_owned).collect()
}

/// Checks everything that the call has to fulfil; the error is the first difference. Named groups of `stdout` become
/// names in `vars`.
pub fn check(call: &Call, evidence: &Evidence<'_>, vars: &mut Vars) -> Result<()> {
    let (expect, ran) = (&call.expect, evidence.ran);
    if ran.too_long {
        bail!("It did not end within {} s", call.limit_s);
    }
    if call.kill.is_some() && !ran.signalled {
        bail!("It ended with {} before the signal was due", ran.rc());
    }
    let fails = status(expect, ran)?;
    if ran.left_running {
        bail!("It left processes running");
    }
    stdout(expect, ran, vars)?;
    stderr(expect, ran, fails, vars)?;
    if let Some(most) = expect.wall_ms
        && ran.wall.as_millis() > u128::from(most)
    {
        bail!("It took {} ms, more than {most}", ran.wall.as_millis());
    }
    for after in &expect.after {
        files::check(after, vars, evidence.first)?;
    }
    for wanted in &expect.requests {
        let count = evidence.http.map_or(0, |server| server.count(&wanted.method, &wanted.path));
        if count != wanted.count {
            bail!("{} {} was asked for {count} times, not {}", wanted.method, wanted.path, wanted.count);
        }
    }
    leftovers(expect, evidence, fails, vars)
}

/// Whether the call has to fail, if its status is right.
fn status(expect: &Expect, ran: &Ran) -> Result<bool> {
    let rc = ran.rc();
    match &expect.rc {
        Value::Integer(wanted) if *wanted == i64::from(rc) => Ok(rc != 0),
        Value::Integer(wanted) => {
            let said = plain_lines(&ran.stderr).join(" | ");
            bail!("Exit status {rc}, not {wanted}{}{said}", if said.is_empty() { "" } else { ": " })
        }
        Value::String(text) if text == "fail" && rc != 0 => Ok(true),
        Value::String(text) if text == "fail" => bail!("It succeeded"),
        other => bail!("rc is {other}, not a number or \"fail\""),
    }
}

fn stdout(expect: &Expect, ran: &Ran, vars: &mut Vars) -> Result<()> {
    let Some(wanted) = &expect.stdout else { return Ok(()) };
    let text = String::from_utf8_lossy(&ran.stdout);
    let regex = vars.regex(&format!(r"\A(?:{wanted})\z"))?;
    let Some(found) = regex.captures(&text) else {
        bail!("Standard output is {text:?}");
    };
    for name in regex.capture_names().flatten() {
        if let Some(value) = found.name(name) {
            vars.set(name, value.as_str());
        }
    }
    Ok(())
}

fn stderr(expect: &Expect, ran: &Ran, fails: bool, vars: &Vars) -> Result<()> {
    let lines = plain_lines(&ran.stderr);
    let wanted = expect.error_lines.or_else(|| fails.then_some(1));
    if wanted.is_some_and(|wanted| wanted != lines.len()) {
        bail!("{} plain lines on standard error, not {}: {lines:?}", lines.len(), wanted.unwrap_or(0));
    }
    if fails && wanted == Some(1) && lines[0].trim().is_empty() {
        bail!("The line on standard error is empty");
    }
    if let Some(wanted) = &expect.stderr
        && !vars.regex(wanted)?.is_match(&lines.join("\n"))
    {
        bail!("Standard error does not say {wanted}: {lines:?}");
    }
    if let Some(unwanted) = &expect.not_stderr
        && vars.regex(unwanted)?.is_match(&String::from_utf8_lossy(&ran.stderr))
    {
        bail!("Standard error says {unwanted}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    Ok(())
}

/// New files have to be named by the case; after a failure nothing that was there may have changed.
fn leftovers(expect: &Expect, evidence: &Evidence<'_>, fails: bool, vars: &Vars) -> Result<()> {
    if expect.leftovers.as_deref() == Some("any") {
        return Ok(());
    }
    let mut named = Vec::new();
    for after in &expect.after {
        named.push((clean(&vars.text(&after.path)?), after.tree));
    }
    let tolerated =
        |path: &Path| named.iter().any(|(own, tree)| own == path || (*tree && path.starts_with(own.as_path())));
    let now = Snapshot::take(evidence.root)?;
    match evidence.before.difference(&now, &tolerated, fails) {
        Some(difference) => bail!("{difference}"),
        None => Ok(()),
    }
}
