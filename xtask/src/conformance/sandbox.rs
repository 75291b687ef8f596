//! The world of one case: a front-end's directories below a private temporary directory.
//!
//! ```text
//! ROOT/one/var/remotes      the judged tree: directories are real, files are links to it, etc/ is a copy
//! ROOT/one/var/datastores   where {base} is
//! ROOT/one/lib  one/etc     what scripts load
//! ROOT/files staging  tmp  home
//! ROOT/bin                  stand-ins for oned's commands, the ssh wrapper
//! ROOT/oned                 the objects they answer with
//! ```
//! Drivers that write to places they have hard-coded (`/tmp/…`, `/var/lock/one`) are not held back from that.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::case::{Call, Case};
use super::oned::{self, Oned};
use super::sshd::Sshd;
use super::vars::Vars;

/// What is judged.
pub struct Tree {
    /// Its `remotes` directory.
    pub drivers: PathBuf,
    /// Its `lib` directory.
    pub lib: Option<PathBuf>,
    /// Additions to every call's environment.
    pub env: Vec<(String, String)>,
}

/// A sandbox; it is removed when this is dropped.
pub struct Sandbox {
    dir: TempDir,
    env: Vec<(String, String)>,
    _oned: Option<Oned>,
}

impl Sandbox {
    /// Lays out the directories, the tree and the stand-ins.
    pub fn new(case: &Case, tree: &Tree, ssh: Option<&Sshd>) -> Result<Self> {
        Self::new_in(&std::env::temp_dir(), case, tree, ssh)
    }

    /// The same below this directory.
    pub fn new_in(above: &Path, case: &Case, tree: &Tree, ssh: Option<&Sshd>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kit-").tempdir_in(above)?;
        // The system's temporary directory may be a link; drivers compare canonical names.
        let root = dir.path().canonicalize()?;
        for name in ["one/var/datastores", "one/etc", "one/lib/sh", "files", "staging", "tmp", "home", "bin", "oned"] {
            fs::create_dir_all(root.join(name))?;
        }
        let remotes = root.join("one/var/remotes");
        farm(&tree.drivers, &remotes, false)?;
        for (name, text) in &case.conf {
            let file = remotes.join("etc").join(name);
            fs::create_dir_all(file.parent().context("A configuration file without a directory")?)?;
            let mut file = fs::OpenOptions::new().append(true).create(true).open(file)?;
            // Nothing else can be known before the sandbox stands.
            let text = text.replace("{work}", &root.join("files").display().to_string());
            write!(file, "\n{text}\n")?;
        }
        library(tree, &root.join("one/lib"))?;
        // Scripts alone ask by the API.
        let oned = tree.lib.as_ref().map(|_| Oned::start(root.join("oned"))).transpose()?;
        let mut env = environment(&root, tree);
        if let Some(oned) = &oned {
            fs::write(root.join("bin/one_auth"), oned::AUTH)?;
            env.push(("ONE_AUTH".to_owned(), root.join("bin/one_auth").display().to_string()));
            env.push(("ONE_XMLRPC".to_owned(), oned.endpoint()));
            env.push(("RUBYLIB".to_owned(), root.join("one/lib/ruby").display().to_string()));
        }
        let sandbox = Self { env, dir, _oned: oned };
        sandbox.oned(case)?;
        if let Some(ssh) = ssh {
            ssh.install(&root.join("bin"), &root.join("home"))?;
        }
        Ok(sandbox)
    }

    /// The root directory, canonical.
    pub fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap_or_else(|_| self.dir.path().to_owned())
    }

    /// The path under which the call's driver is started.
    pub fn entry(&self, call: &Call) -> PathBuf {
        self.root().join("one/var/remotes").join(&call.action)
    }

    /// The environment that a driver process would pass on.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// The names that a case may use for places in here.
    pub fn vars(&self) -> Vars {
        let root = self.root();
        let mut vars = Vars::default();
        let text = |path: PathBuf| path.display().to_string();
        vars.set("root", text(root.clone()));
        vars.set("one", text(root.join("one")));
        vars.set("var", text(root.join("one/var")));
        // The double slash is what oned sends.
        vars.set("base", format!("{}//datastores/100", root.join("one/var").display()));
        vars.set("datastores", format!("{}//datastores", root.join("one/var").display()));
        for (name, dir) in [("work", "files"), ("staging", "staging"), ("tmp", "tmp"), ("home", "home")] {
            vars.set(name, text(root.join(dir)));
        }
        vars
    }

    /// The objects, and the commands that hand them out.
    fn oned(&self, case: &Case) -> Result<()> {
        let root = self.root();
        let oned = root.join("oned");
        let vars = self.vars();
        hosts(&case.hosts, &oned)?;
        fs::write(oned.join("datastorepool.xml"), "<DATASTORE_POOL></DATASTORE_POOL>\n")?;
        for (name, text) in &case.oned {
            let file = oned.join(name);
            fs::create_dir_all(file.parent().context("An object without a directory")?)?;
            fs::write(file, vars.text(text)?)?;
        }
        for (command, kind) in
            [("onevm", "vm"), ("onedatastore", "datastore"), ("onehost", "host"), ("oneimage", "image")]
        {
            let file = root.join("bin").join(command);
            fs::write(&file, stand_in(kind, &oned))?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// A command that answers `show ID`, `list --csv` and `list` from the directory of objects.
pub fn stand_in(kind: &str, oned: &Path) -> String {
    format!(
        "#!/bin/sh\nlist=0 csv=0 json=0 id=\nfor word in \"$@\"; do\n  case $word in\n    list) list=1 ;;\n    \
         --csv) csv=1 ;;\n    -j|--json) json=1 ;;\n    *[!0-9]*) ;;\n    *) id=$word ;;\n  esac\ndone\ncd '{}' || exit 255\n\
         if [ $list = 0 ]; then\n  cat {kind}/\"$id\".xml 2>/dev/null || {{ echo 'Error getting {kind}' >&2; exit 255; }}\n\
         elif [ $csv = 1 ]; then cat {kind}s.csv\nelif [ $json = 1 ]; then echo '{{\"{item}_POOL\":{{\"{item}\":[]}}}}'\nelse cat {kind}pool.xml\nfi\n",
        oned.display(),
        item = kind.to_uppercase(),
    )
}

/// The pool of the kit's bridges, as XML and as the list of those that are not usable.
fn hosts(states: &BTreeMap<String, String>, oned: &Path) -> Result<()> {
    let mut pool = String::from("<HOST_POOL>");
    let mut csv = String::from("NAME,STAT\n");
    for (id, name) in ["bridge1", "bridge2", "deadbridge"].iter().enumerate() {
        let state = states.get(*name).map(String::as_str);
        let number = match state {
            None => 2,
            Some("err") => 3,
            Some("dsbl") => 4,
            Some(_) => 8,
        };
        write!(pool, "<HOST><ID>{id}</ID><NAME>{name}</NAME><STATE>{number}</STATE></HOST>")?;
        if let Some(state) = state {
            writeln!(csv, "{name},{state}")?;
        }
    }
    pool.push_str("</HOST_POOL>\n");
    fs::write(oned.join("hostpool.xml"), pool)?;
    Ok(fs::write(oned.join("hosts.csv"), csv)?)
}

fn environment(root: &Path, tree: &Tree) -> Vec<(String, String)> {
    let at = |name: &str| root.join(name).display().to_string();
    let mut env: Vec<(String, String)> = [
        ("ONE_LOCATION", at("one")),
        ("ONE_MAD_DEBUG", String::new()),
        ("PRIORITY", "19".to_owned()),
        ("HOME", at("home")),
        ("USER", "oneadmin".to_owned()),
        ("LOGNAME", "oneadmin".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("SHLVL", "0".to_owned()),
        ("PATH", format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", at("bin"))),
        ("PWD", at("one/var")),
        ("TMPDIR", at("tmp")),
        ("SSH", at("bin/ssh")),
        ("SSH_FWD", format!("{} -o ForwardAgent=yes -o ControlMaster=no -o ControlPath=none", at("bin/ssh"))),
        ("RSYNC_RSH", at("bin/ssh")),
        ("ONESTORE_ONED", format!("dir:{}", at("oned"))),
        ("ONESTORE_LOCK_DIR", at("bin/locks")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    env.extend(tree.env.iter().cloned());
    env
}

/// `lib` of the judged front-end, or as much of it as the tree itself holds.
fn library(tree: &Tree, lib: &Path) -> Result<()> {
    if let Some(own) = &tree.lib {
        return farm(own, lib, false);
    }
    let common = tree.drivers.join("scripts_common.sh");
    if common.exists() {
        symlink(common, lib.join("sh/scripts_common.sh"))?;
    }
    Ok(())
}

/// Directories are made, files are linked; below `etc` they are copied, since a case may add to them.
fn farm(from: &Path, to: &Path, copy: bool) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("Cannot read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            farm(&source, &target, copy || entry.file_name() == "etc")?;
        } else if copy {
            fs::copy(&source, &target)?;
        } else {
            symlink(&source, &target)?;
        }
    }
    Ok(())
}
