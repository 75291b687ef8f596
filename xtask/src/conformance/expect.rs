//! Judges what a call answered.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow, bail};
use regex::Regex;
use toml::Value;

use super::case::{Call, Expect, bytes};
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

/// Checks everything that the call has to fulfil and returns what differs. Named groups of `stdout` become names in
/// `vars`.
pub fn check(call: &Call, evidence: &Evidence<'_>, vars: &mut Vars) -> Vec<String> {
    let (expect, ran) = (&call.expect, evidence.ran);
    let mut differences = Differences::default();
    if ran.too_long {
        differences.add(format!("It did not end within {} s", call.limit_s));
        return differences.0;
    }
    if call.kill.is_some() && !ran.signalled {
        differences.add(format!("It ended with {} before the signal was due", ran.rc()));
    }
    differences.check(status(expect, ran));
    if ran.left_running {
        differences.add("It left processes running".to_owned());
    }
    let fails = ran.rc() != 0;
    differences.check(stdout(expect, ran, vars));
    differences.check(stdout_of(expect, ran, vars));
    differences.check(lines(expect, ran, fails && call.kill.is_none()));
    differences.check(texts(expect, ran, vars));
    if let Some(most) = expect.wall_ms
        && ran.wall.as_millis() > u128::from(most)
    {
        differences.add(format!("It took {} ms, more than {most}", ran.wall.as_millis()));
    }
    for after in &expect.after {
        differences.check(files::check(after, vars, evidence.first));
    }
    for wanted in &expect.requests {
        let count = evidence.http.map_or(0, |server| server.count(&wanted.method, &wanted.path));
        if count != wanted.count {
            let (method, path) = (&wanted.method, &wanted.path);
            differences.add(format!("{method} {path} was asked for {count} times, not {}", wanted.count));
        }
    }
    differences.check(leftovers(expect, evidence, fails, vars));
    differences.0
}

/// What differs.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn add(&mut self, text: String) {
        self.0.push(text);
    }

    fn check(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.add(format!("{error:#}"));
        }
    }
}

fn status(expect: &Expect, ran: &Ran) -> Result<()> {
    let rc = ran.rc();
    match &expect.rc {
        Value::Integer(wanted) if *wanted == i64::from(rc) => Ok(()),
        Value::Integer(wanted) => {
            let said = plain_lines(&ran.stderr).join(" | ");
            bail!("Exit status {rc}, not {wanted}{}{said}", if said.is_empty() { "" } else { ": " })
        }
        Value::String(text) if text == "fail" && rc == 0 => bail!("It succeeded"),
        Value::String(text) if text == "fail" || text == "any" => Ok(()),
        other => bail!("rc is {other}, not a number, \"fail\" or \"any\""),
    }
}

fn stdout(expect: &Expect, ran: &Ran, vars: &mut Vars) -> Result<()> {
    let Some(wanted) = &expect.stdout else {
        return Ok(());
    };
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

/// Bytes on standard output.
fn stdout_of(expect: &Expect, ran: &Ran, vars: &Vars) -> Result<()> {
    let Some(file) = &expect.stdout_of else {
        return Ok(());
    };
    let file = vars.text(file)?;
    let mut wanted = std::fs::read(&file).with_context(|| format!("Cannot read {file}"))?;
    if let Some(size) = &expect.stdout_size {
        wanted.truncate(usize::try_from(bytes(size)?)?);
    }
    if ran.stdout != wanted {
        bail!("Standard output has {} bytes and differs from the {} of {file}", ran.stdout.len(), wanted.len());
    }
    Ok(())
}

/// How many lines a user gets to read.
fn lines(expect: &Expect, ran: &Ran, fails: bool) -> Result<()> {
    let lines = plain_lines(&ran.stderr);
    if expect.any_lines {
        return if lines.is_empty() { Err(anyhow!("No plain line on standard error")) } else { Ok(()) };
    }
    if let Some(most) = expect.most_lines {
        return if lines.len() > most { Err(anyhow!("{} plain lines on standard error", lines.len())) } else { Ok(()) };
    }
    let wanted = expect.error_lines.or_else(|| fails.then_some(1));
    if let Some(wanted) = wanted
        && wanted != lines.len()
    {
        let some: Vec<_> = lines.iter().take(3).collect();
        bail!("{} plain lines on standard error, not {wanted}: {some:?}", lines.len());
    }
    if wanted == Some(1) && lines[0].trim().is_empty() {
        bail!("The line on standard error is empty");
    }
    Ok(())
}

/// What these lines say.
fn texts(expect: &Expect, ran: &Ran, vars: &Vars) -> Result<()> {
    let lines = plain_lines(&ran.stderr);
    if let Some(wanted) = &expect.stderr
        && !vars.regex(wanted)?.is_match(&lines.join("\n"))
    {
        bail!("Standard error does not say {wanted}");
    }
    if let Some(unwanted) = &expect.not_stderr
        && vars.regex(unwanted)?.is_match(&String::from_utf8_lossy(&ran.stderr))
    {
        bail!("Standard error says {unwanted}");
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
