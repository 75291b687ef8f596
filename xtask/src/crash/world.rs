//! The world of one scenario: the sandbox of a conformance case, filled, and put back as it was for every run.
//!
//! It lies on a memory file system of its own, always at the same place: so names inside images are the same in every
//! run, and nothing of it can be left behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::tracer;
use crate::conformance::case::{Call, Case};
use crate::conformance::files::Snapshot;
use crate::conformance::http::Server;
use crate::conformance::process::{self, Ran, Run};
use crate::conformance::sandbox::{Sandbox, Tree};
use crate::conformance::sshd::Sshd;
use crate::conformance::vars::Vars;
use crate::conformance::{content, expect, payload, run};

/// How long processes of a call may outlive it.
const GRACE: Duration = Duration::from_secs(20);

/// A mounted file system; it is taken off when this is dropped.
pub struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    /// In memory.
    ///
    /// # Errors
    /// Mounting needs root.
    pub fn memory() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("crash-").tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=755", "crash"]).arg(dir.path());
        tool(&mut mount)?;
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        if let Err(error) = tool(umount.arg("-l").arg(self.dir.path())) {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Runs a program of the harness's own.
///
/// # Errors
/// It cannot be started, or fails; with what it said.
pub fn tool(command: &mut Command) -> Result<()> {
    let ran = command.stdin(Stdio::null()).output().with_context(|| format!("Cannot run {command:?}"))?;
    if !ran.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&ran.stderr).trim());
    }
    Ok(())
}

/// Stands for ssh where the network is of no matter: the command runs here, in a session of its own and not on our leash,
/// as the far side does. The address is checked by nobody; one host does not answer.
const SSH: &str = "#!/bin/sh\n\
    while [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done\n\
    [ $# -ge 3 ] || exit 255\n\
    case $2 in *deadbridge) echo 'ssh: connect to host deadbridge port 1: Connection refused' >&2; exit 255 ;; esac\n\
    exec setpriv --pdeathsig clear setsid -w sh -c \"$3\"\n";

/// The sandbox, and how it was.
pub struct World<'a> {
    /// The case that it was made for.
    pub case: &'a Case,
    /// Names of places in it.
    pub vars: Vars,
    sandbox: Sandbox,
    kept: PathBuf,
    stand_in: bool,
    strangers: Strangers,
    _server: Option<Server>,
}

impl<'a> World<'a> {
    /// Makes the sandbox on `ground`, and does all calls of the case but the last. With
    /// `keep` it can be put back.
    ///
    /// # Errors
    /// What the kit cannot make, or an earlier call that does not do what the case expects.
    pub fn new(ground: &Path, case: &'a Case, tree: &Tree, ssh: Option<&Sshd>, keep: bool) -> Result<Self> {
        let sandbox = Sandbox::new_in(ground, case, tree, ssh)?;
        let stand_in = ssh.is_none();
        if stand_in {
            let ssh = sandbox.root().join("bin/ssh");
            fs::write(&ssh, SSH)?;
            fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755))?;
        }
        let mut vars = sandbox.vars();
        for before in &case.before {
            content::make(before, &vars)?;
        }
        let server = run::serve(&case.http, &mut vars)?;
        let kept = ground.join("kept");
        let mut world = Self { case, vars, sandbox, kept, stand_in, strangers: Strangers::now(), _server: server };
        let (_, earlier) = case.calls.split_last().context("A case without a call")?;
        for call in earlier {
            world.expected(call, None)?;
        }
        if keep {
            tool(Command::new("cp").arg("-a").arg(world.root()).arg(&world.kept))?;
        }
        Ok(world)
    }

    /// The call that is judged.
    pub fn call(&self) -> &'a Call {
        &self.case.calls[self.case.calls.len() - 1]
    }

    /// The sandbox's directory.
    pub fn root(&self) -> PathBuf {
        self.sandbox.root()
    }

    /// How everything was before the last call.
    pub fn kept(&self) -> &Path {
        &self.kept
    }

    /// Puts everything back as it was before the last call, but for [`FIXED`].
    ///
    /// # Errors
    /// Files that cannot be removed or copied.
    pub fn restore(&self) -> Result<()> {
        let root = self.root();
        for name in parts(&root)? {
            let path = root.join(&name);
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| format!("Cannot remove {}", path.display()))?;
        }
        tool(Command::new("cp").args(["-a", "--parents"]).args(parts(&self.kept)?).arg(&root).current_dir(&self.kept))
    }

    /// Runs a call and holds it against what the case expects.
    ///
    /// # Errors
    /// The first thing that differs.
    pub fn expected(&mut self, call: &Call, wrapper: Option<&[String]>) -> Result<Ran> {
        let root = self.root();
        let before = Snapshot::take(&root)?;
        let ran = self.run(call, wrapper)?;
        let evidence = expect::Evidence { ran: &ran, first: &before, before: &before, root: &root, http: None };
        match expect::check(call, &evidence, &mut self.vars).into_iter().find(|text| !text.contains("was asked for")) {
            None => Ok(ran),
            Some(difference) => bail!("{difference}"),
        }
    }

    /// Runs a call, undisturbed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, call: &Call, wrapper: Option<&[String]>) -> Result<Ran> {
        self.run_with(call, wrapper, &[])
    }

    /// The same with more in the environment.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_with(&self, call: &Call, wrapper: Option<&[String]>, more: &[(String, String)]) -> Result<Ran> {
        let entry = self.sandbox.entry(call);
        let mut argv = payload::argv(call, &self.vars)?;
        let mut program = entry.clone();
        if let Some((first, rest)) = wrapper.and_then(|words| words.split_first()) {
            program = PathBuf::from(first);
            argv = [rest, &[entry.display().to_string()], &argv].concat();
        }
        process::run(Run {
            before: Vec::new(),
            program: &program,
            argv: &argv,
            env: [self.env(call)?, more.to_vec()].concat(),
            cwd: &self.root().join("one/var"),
            stdin: payload::stdin(call, &self.vars)?,
            limit: Duration::from_secs(90),
            kill: None,
        })
    }

    /// Starts the last call traced, by the calling thread, at `close` too if `closes`; gives it and what goes to its
    /// standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_traced(&self, closes: bool) -> Result<(Child, Vec<u8>)> {
        let call = self.call();
        let mut command = tracer::command(&self.sandbox.entry(call), closes)?;
        command.args(payload::argv(call, &self.vars)?.iter().map(OsStr::new));
        command.env_clear().envs(self.env(call)?).current_dir(self.root().join("one/var")).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok((command.spawn()?, payload::stdin(call, &self.vars)?))
    }

    fn env(&self, call: &Call) -> Result<Vec<(String, String)>> {
        let mut env = self.sandbox.env().to_vec();
        if self.stand_in {
            env.push(("ONESTORE_SSH".to_owned(), "openssh".to_owned()));
        }
        for (name, value) in &call.env {
            env.push((name.clone(), self.vars.text(value)?));
        }
        Ok(env)
    }

    /// Waits for the end of everything that has this world in its arguments, at the far end of ssh too; what is left.
    pub fn processes_left(&self) -> Vec<String> {
        let until = Instant::now() + GRACE;
        let root = self.root();
        loop {
            let left = users(&root, &self.strangers);
            if left.is_empty() || Instant::now() > until {
                return left;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What no action writes to: the tree of links to the binary, which makes up most of the sandbox.
const FIXED: [&str; 2] = ["one/var/remotes", "one/lib"];

/// The least number of paths below a sandbox that are all of it but [`FIXED`].
fn parts(root: &Path) -> Result<Vec<PathBuf>> {
    let mut parts = Vec::new();
    for dir in ["", "one", "one/var"] {
        for entry in fs::read_dir(root.join(dir)).with_context(|| format!("Cannot read {}", root.display()))? {
            let name = Path::new(dir).join(entry?.file_name());
            let divided = name == Path::new("one") || name == Path::new("one/var");
            if !divided && !FIXED.iter().any(|fixed| name == Path::new(fixed)) {
                parts.push(name);
            }
        }
    }
    Ok(parts)
}

/// Numbers of all processes.
fn processes() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Who has nothing to do with this world: a look at every file of every process on a busy machine takes long.
struct Strangers {
    /// Processes that were there before.
    processes: BTreeSet<String>,
    /// Spaces of mounts that were there before, but for ours: who is born there is a stranger too.
    spaces: BTreeSet<PathBuf>,
}

impl Strangers {
    fn now() -> Self {
        let processes: BTreeSet<String> = processes().collect();
        let own = space("self");
        let spaces = processes.iter().filter_map(|name| space(name)).filter(|space| Some(space) != own.as_ref());
        Self { spaces: spaces.collect(), processes }
    }

    fn have(&self, name: &String) -> bool {
        self.processes.contains(name) || space(name).is_some_and(|space| self.spaces.contains(&space))
    }
}

/// The space of mounts that a process lives in.
fn space(name: &str) -> Option<PathBuf> {
    fs::read_link(Path::new("/proc").join(name).join("ns/mnt")).ok()
}

/// Processes with this directory in their arguments, or with a file below it open.
fn users(root: &Path, strangers: &Strangers) -> Vec<String> {
    let text = root.display().to_string();
    let mut found = Vec::new();
    for name in processes().filter(|name| !strangers.have(name)) {
        let process = Path::new("/proc").join(&name);
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let open = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        if line.contains(&text) || open().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(root))) {
            found.push(format!("{name}: {line}"));
        }
    }
    found
}
