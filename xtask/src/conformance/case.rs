//! What a case may say, and reading the case files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde::Deserialize;
use toml::{Table, Value};

/// One case: what is there before, one or more calls, and what each of them has to answer and leave.
#[derive(Debug)]
pub struct Case {
    /// Directory of the case file below `tests/conformance`.
    pub family: String,
    /// Name of the case file without its extension.
    pub file: String,
    /// Unique within the file.
    pub name: String,
    /// One sentence: what would go wrong for a user if this failed.
    pub why: String,
    /// Why upstream fails this case, if it is known to.
    pub upstream: Option<String>,
    /// Files made before the first call, in this order.
    pub before: Vec<Before>,
    /// What the web server of this case serves; none is started without routes.
    pub http: Vec<Route>,
    /// Objects for oned's stand-in: path below its directory (`vm/7.xml`) to text.
    pub oned: BTreeMap<String, String>,
    /// States of hosts other than monitored, as `onehost list` prints them (`off`, `err`, `dsbl`).
    pub hosts: BTreeMap<String, String>,
    /// Text added to configuration files: path below `remotes/etc` to text.
    pub conf: BTreeMap<String, String>,
    /// The calls.
    pub calls: Vec<Call>,
}

impl Case {
    /// `family/file/name`, what `--case` matches.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.family, self.file, self.name)
    }

    /// The action of the last call: the one that the case is about.
    pub fn action(&self) -> &str {
        self.calls.last().map_or("", |call| &call.action)
    }

    /// Whether a call names one of the kit's bridges.
    pub fn needs_bridge(&self) -> bool {
        self.calls.iter().any(|call| {
            let lists = call.datastore.get("BRIDGE_LIST").into_iter().chain(call.extra.get("SOURCE_BRIDGE_LIST"));
            lists.into_iter().any(|list| list.contains("bridge"))
                || call.argv.iter().flatten().any(|word| word.contains("bridge"))
                || call.image.values().any(|value| value.starts_with("ssh://"))
        })
    }
}

/// One call of a driver.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Path of the entry below the judged tree, such as `datastore/fs/cp`.
    pub action: String,
    /// Arguments; by default what oned passes to a datastore action: the id of the image or datastore.
    pub argv: Option<Vec<String>>,
    /// Attributes of the image, see [`super::payload`].
    #[serde(default)]
    pub image: BTreeMap<String, String>,
    /// Attributes of the datastore, see [`super::payload`].
    #[serde(default)]
    pub datastore: BTreeMap<String, String>,
    /// Further elements below the root of the payload.
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
    /// Standard input instead of the payload made from the attributes.
    pub stdin: Option<String>,
    /// How it is sent.
    #[serde(default)]
    pub stdin_as: Encoding,
    /// How many image ids the datastore lists.
    #[serde(default)]
    pub images: usize,
    /// Additions to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A signal to send while it runs.
    pub kill: Option<Kill>,
    /// Seconds after which the call has failed; 60 by default.
    #[serde(default = "sixty")]
    pub limit_s: u64,
    /// What has to come of it.
    pub expect: Expect,
}

fn sixty() -> u64 {
    60
}

/// How the text for standard input is sent.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Base64 in one line without a newline, as the driver processes do.
    #[default]
    Base64,
    /// Base64 in lines of 60 characters.
    Wrapped,
    /// The first half of the Base64.
    Half,
    /// As it is.
    Plain,
    /// The text is Base64 of the bytes to send.
    Bytes,
    /// Nothing: an empty pipe.
    None,
}

/// A signal for the process group of a call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// `TERM` or `KILL`.
    pub signal: String,
    /// Milliseconds to wait after the start, or after the conditions below hold.
    #[serde(default)]
    pub after_ms: u64,
    /// Not before the web server has been asked for this path.
    pub when_requested: Option<String>,
    /// Not before this directory has an entry.
    pub when_filled: Option<String>,
}

/// What has to come of a call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Exit status: a number or `"fail"` (anything but 0, or killed) or `"any"`.
    pub rc: Value,
    /// Regular expression for the whole standard output; its named groups become names for what follows.
    pub stdout: Option<String>,
    /// Regular expression that has to be found in the plain lines of standard error.
    pub stderr: Option<String>,
    /// Regular expression that must not be found in standard error.
    pub not_stderr: Option<String>,
    /// Standard output equals the beginning of this file, or all of it.
    pub stdout_of: Option<String>,
    /// Length of that beginning, with a unit.
    pub stdout_size: Option<String>,
    /// Any number of plain lines is fine, as long as there is one.
    #[serde(default)]
    pub any_lines: bool,
    /// Number of plain lines on standard error; 1 by default for a call that fails without a signal.
    pub error_lines: Option<usize>,
    /// Instead of a number: at most so many plain lines, for what is told on standard output.
    pub most_lines: Option<usize>,
    /// What has to be there, or not be there, afterwards.
    #[serde(default)]
    pub after: Vec<After>,
    /// `"any"` tolerates new files that `after` does not name, and changes of old ones.
    pub leftovers: Option<String>,
    /// Milliseconds that the call may take.
    pub wall_ms: Option<u64>,
    /// How often the web server must have been asked, since the start of the case.
    #[serde(default)]
    pub requests: Vec<Requests>,
}

/// A condition on the web server's log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// Path of the route.
    pub path: String,
    /// Method, `GET` by default.
    #[serde(default = "get")]
    pub method: String,
    /// Exactly so many.
    pub count: usize,
}

fn get() -> String {
    "GET".to_owned()
}

/// A file made before the first call. `is` chooses the kind, see [`super::content`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Where.
    pub path: String,
    /// Kind.
    pub is: String,
    /// Size with a unit: `4096`, `64K`, `8M`, `5G`.
    pub size: Option<String>,
    /// Chooses among patterns.
    #[serde(default)]
    pub seed: u64,
    /// Text of `text` and `bytes`.
    pub text: Option<String>,
    /// The file that a copy, an archive or a link is made of.
    pub of: Option<String>,
    /// What a tar or zip holds, for members that no program would pack.
    #[serde(default)]
    pub members: Vec<Member>,
    /// Backing file of a qcow2 image.
    pub backing: Option<String>,
    /// Format of that backing file.
    pub backing_format: Option<String>,
    /// External data file of a qcow2 image.
    pub data_file: Option<String>,
    /// What to write into a qcow2 image: a command of `qemu-io`.
    #[serde(default)]
    pub write: Vec<String>,
    /// Permissions in octal.
    pub mode: Option<String>,
}

/// A member of an archive, as the archive says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// `file` (the default), `dir`, `link`, `hard`, `device` or `fifo`.
    pub is: Option<String>,
    /// What is in a file.
    #[serde(default)]
    pub text: String,
    /// Where a link leads.
    #[serde(default)]
    pub to: String,
    /// Permissions in octal.
    pub mode: Option<String>,
}

/// A condition on one path after a call, see [`super::files`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// Which.
    pub path: String,
    /// `false`: must not be there, not even as a dangling link.
    pub exists: Option<bool>,
    /// `file`, `dir` or `link`.
    pub is: Option<String>,
    /// Image format by its header.
    pub format: Option<String>,
    /// Length in bytes, with a unit.
    pub size: Option<String>,
    /// Virtual size, with a unit.
    pub virtual_size: Option<String>,
    /// Bytes equal those that the named file had before the first call (or has now, if it is newer).
    pub same_as: Option<String>,
    /// SHA-256 of the bytes.
    pub sha256: Option<String>,
    /// What a guest reads equals what it reads from the named image.
    pub content_of: Option<String>,
    /// Most bytes that may be allocated, with a unit.
    pub allocated_max: Option<String>,
    /// Fewest bytes that have to be allocated, with a unit.
    pub allocated_min: Option<String>,
    /// Target of the link.
    pub to: Option<String>,
    /// Permissions in octal.
    pub mode: Option<String>,
    /// Backing file as recorded, or `none`.
    pub backing: Option<String>,
    /// File system, as `blkid` names it.
    pub fs: Option<String>,
    /// Label of the file system.
    pub label: Option<String>,
    /// Whether anything may be below it.
    #[serde(default)]
    pub tree: bool,
}

/// What the web server answers on one path.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Path, starting with `/`.
    pub path: String,
    /// The file to serve.
    pub file: Option<String>,
    /// Status instead of 200.
    pub status: Option<u16>,
    /// Answer with a redirection to this place.
    pub redirect: Option<String>,
    /// Close the connection after so many bytes of the body, with a unit.
    pub truncate: Option<String>,
    /// Announce this length instead of the true one, with a unit.
    pub length: Option<String>,
    /// Answer 401 to whoever does not send this `user:password`.
    pub login: Option<String>,
    /// Do not answer `HEAD` with a length, nor `GET`.
    #[serde(default)]
    pub no_length: bool,
    /// Milliseconds of pause before each further 64 KiB of the body.
    #[serde(default)]
    pub pause_ms: u64,
}

/// Keys of a case that describe a call; in a case with several calls they are what these have in common.
const CALL: [&str; 12] = [
    "action",
    "argv",
    "image",
    "datastore",
    "extra",
    "stdin",
    "stdin_as",
    "images",
    "env",
    "kill",
    "limit_s",
    "expect",
];

/// The keys of a case that are not about a call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rest {
    name: String,
    why: String,
    upstream: Option<String>,
    #[serde(default)]
    before: Vec<Before>,
    #[serde(default)]
    http: Vec<Route>,
    #[serde(default)]
    oned: BTreeMap<String, String>,
    #[serde(default)]
    hosts: BTreeMap<String, String>,
    #[serde(default)]
    conf: BTreeMap<String, String>,
}

/// Reads all case files below `dir`, sorted by family and file.
///
/// Fails on the first file that cannot be read or says something unknown, and on a name used twice.
pub fn load(dir: &Path, family: Option<&str>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in sorted(dir)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !entry.is_dir() || family.is_some_and(|wanted| wanted != name) {
            continue;
        }
        for file in sorted(&entry)? {
            if file.extension().is_some_and(|extension| extension == "toml") {
                let read = || -> Result<Vec<Case>> { parse(&std::fs::read_to_string(&file)?, &name, &file) };
                cases.extend(read().with_context(|| format!("Cannot read the cases in {}", file.display()))?);
            }
        }
        let objects = objects(&entry.join("oned"))?;
        for case in cases.iter_mut().filter(|case| case.family == name) {
            for (path, text) in &objects {
                case.oned.entry(path.clone()).or_insert_with(|| text.clone());
            }
        }
    }
    Ok(cases)
}

/// The objects in `<family>/oned`, which oned's stand-in knows in every case of the family: `vm/7.xml` and its text.
fn objects(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for kind in if dir.is_dir() { sorted(dir)? } else { Vec::new() } {
        let files = if kind.is_dir() { sorted(&kind)? } else { vec![kind] };
        for file in files {
            let path = file.strip_prefix(dir)?.display().to_string();
            let text = std::fs::read_to_string(&file).with_context(|| format!("Cannot read {}", file.display()))?;
            found.insert(path, text);
        }
    }
    Ok(found)
}

fn sorted(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The cases of one file: `[[case]]` tables; the other keys are defaults for all of them.
pub fn parse(text: &str, family: &str, file: &Path) -> Result<Vec<Case>> {
    let mut defaults: Table = text.parse()?;
    let Some(Value::Array(tables)) = defaults.remove("case") else { bail!("There is no [[case]]") };
    let mut cases: Vec<Case> = Vec::new();
    for table in tables {
        let Value::Table(mut table) = table else { bail!("A case is not a table") };
        inherit(&mut table, &defaults);
        let name = table.get("name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
        let case = one(table, family, file).with_context(|| format!("In the case {name}"))?;
        if cases.iter().any(|other| other.name == case.name) {
            bail!("Two cases are named {name}");
        }
        cases.push(case);
    }
    Ok(cases)
}

fn one(mut table: Table, family: &str, file: &Path) -> Result<Case> {
    let mut common = Table::new();
    for key in CALL {
        if let Some(value) = table.remove(key) {
            common.insert(key.to_owned(), value);
        }
    }
    let calls = match table.remove("call") {
        None => vec![common],
        Some(Value::Array(calls)) => calls
            .into_iter()
            .map(|call| {
                let Value::Table(mut call) = call else { bail!("A call is not a table") };
                inherit(&mut call, &common);
                Ok(call)
            })
            .collect::<Result<_>>()?,
        Some(_) => bail!("call is not a list of tables"),
    };
    let calls = calls.into_iter().map(|call| Ok(Call::deserialize(Value::Table(call))?)).collect::<Result<_>>()?;
    let rest = Rest::deserialize(Value::Table(table))?;
    if rest.upstream.as_ref().is_some_and(|text| !text.starts_with("fails: ")) {
        bail!("upstream has to read \"fails: <why>\"");
    }
    Ok(Case {
        family: family.to_owned(),
        file: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        name: rest.name,
        why: rest.why,
        upstream: rest.upstream,
        before: rest.before,
        http: rest.http,
        oned: rest.oned,
        hosts: rest.hosts,
        conf: rest.conf,
        calls,
    })
}

/// Takes over what is missing, one level deep for tables, except for what is expected.
fn inherit(table: &mut Table, from: &Table) {
    for (key, value) in from {
        match (table.get_mut(key), value) {
            (None, value) => {
                table.insert(key.clone(), value.clone());
            }
            (Some(Value::Table(own)), Value::Table(common)) if key != "expect" => {
                for (key, value) in common {
                    own.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            (Some(_), _) => {}
        }
    }
}

/// A glob with `*` and `?`, both of which match slashes too.
pub fn glob(pattern: &str) -> Result<Regex> {
    let text = regex::escape(pattern).replace(r"\*", ".*").replace(r"\?", ".");
    Ok(Regex::new(&format!("^(?:{text})$"))?)
}

/// A number of bytes: digits and an optional `K`, `M`, `G` (powers of 1024).
pub fn bytes(text: &str) -> Result<u64> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("{text} is no size"))? * factor)
}
