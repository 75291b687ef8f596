//! Where everything happens: a temporary directory with an own `ONE_LOCATION` for each tree, on the file systems needed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::files::{self, Source};
use super::host::Host;
use super::stop::Stop;
use super::xfs::Xfs;

/// The file system that a subject runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    /// That of the work directory.
    Work,
    /// The loop-mounted xfs with reflink.
    Reflink,
}

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// The tree that the budgets are for, as it is called in real use.
    Drivers,
    /// The same binary, called by symlinks without a launcher.
    Link,
    /// The tree given with `--against`.
    Other,
    /// The plain tool that does the same work.
    Tool,
}

/// A driver tree (the `remotes` directory) to measure.
pub struct Tree {
    /// Whose it is.
    pub who: Who,
    /// The directory.
    pub remotes: PathBuf,
}

/// A tree's own `ONE_LOCATION` on one file system.
pub struct Sandbox {
    one: PathBuf,
}

impl Sandbox {
    /// `$ONE_LOCATION`.
    pub fn one(&self) -> &Path {
        &self.one
    }

    /// `$ONE_LOCATION/var`, the working directory of driver calls.
    pub fn var(&self) -> PathBuf {
        self.one.join("var")
    }

    /// `BASE_PATH` of the image datastore.
    pub fn base(&self) -> PathBuf {
        self.one.join("var/datastores/100")
    }

    /// The file of an entry such as `datastore/fs/cp`.
    pub fn entry(&self, entry: &str) -> PathBuf {
        self.one.join("var/remotes").join(entry)
    }

    /// The environment of a call, and nothing else of ours.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        let home = self.one.join("home");
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let pairs: [(&str, OsString); 5] = [
            ("ONE_LOCATION", self.one.clone().into()),
            ("HOME", home.into()),
            ("PATH", path.into()),
            ("LANG", "C.UTF-8".into()),
            ("USER", "oneadmin".into()),
        ];
        pairs.map(|(name, value)| (name.into(), value)).into()
    }

    /// The same for an action that reaches a host and asks oned.
    pub fn env_with(&self, host: &Host) -> Vec<(OsString, OsString)> {
        let (bin, mut env) = (self.one.join("bin"), self.env());
        for (name, value) in &mut env {
            if name == "PATH" {
                let mut path = OsString::from(&bin);
                path.push(":");
                path.push(&value);
                *value = path;
            }
        }
        let mut oned = OsString::from("dir:");
        oned.push(self.one.join("oned"));
        env.push(("ONESTORE_ONED".into(), oned));
        env.push(("ONESTORE_LOCK_DIR".into(), self.one.join("locks").into()));
        env.push(("SSH".into(), host.words().join(std::ffi::OsStr::new(" "))));
        env
    }

    /// Empties the datastore, also of what a failed run left.
    pub fn clear(&self) -> Result<()> {
        let base = self.base();
        if base.exists() {
            fs::remove_dir_all(&base).with_context(|| format!("Cannot empty {}", base.display()))?;
        }
        fs::create_dir_all(&base).with_context(|| format!("Cannot make {}", base.display()))
    }
}

/// The temporary directory and what hangs on it. All of it goes with this value.
pub struct Lab {
    /// Unmounted before the directory below it is removed: fields are dropped in this order.
    xfs: Option<Xfs>,
    host: Option<Host>,
    root: TempDir,
    /// Why there is no xfs.
    pub no_xfs: Option<String>,
    /// Why there is no host.
    pub no_host: Option<String>,
    /// The trees to measure.
    pub trees: Vec<Tree>,
    /// Ends everything early.
    pub stop: Stop,
    made: BTreeSet<PathBuf>,
}

impl Lab {
    /// Makes the directory below `work`.
    ///
    /// # Errors
    /// `work` cannot be written.
    pub fn new(work: &Path, stop: Stop) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("onestore-bench.").tempdir_in(work);
        let root = root.with_context(|| format!("Cannot make a directory in {}", work.display()))?;
        fs::create_dir(root.path().join("images"))?;
        Ok(Self {
            xfs: None,
            host: None,
            root,
            no_xfs: None,
            no_host: None,
            trees: Vec::new(),
            stop,
            made: BTreeSet::new(),
        })
    }

    /// A directory for anything.
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// Mounts the xfs, once. Where that does not work, [`Self::no_xfs`] says why.
    pub fn mount_xfs(&mut self) {
        if self.xfs.is_some() || self.no_xfs.is_some() {
            return;
        }
        let mounted = Xfs::mount(self.root.path()).and_then(|xfs| {
            fs::create_dir(xfs.dir().join("images"))?;
            Ok(xfs)
        });
        match mounted {
            Ok(xfs) => self.xfs = Some(xfs),
            Err(error) => self.no_xfs = Some(format!("{error:#}")),
        }
    }

    /// Starts the host, once. Where that does not work, [`Self::no_host`] says why.
    pub fn start_host(&mut self) {
        if self.host.is_some() || self.no_host.is_some() {
            return;
        }
        // The first tree is the one that is measured; only that one's files on the host matter.
        let remotes = self.trees.first().map_or(self.root.path(), |tree| &tree.remotes);
        match Host::start(self.root.path(), remotes) {
            Ok(host) => self.host = Some(host),
            Err(error) => self.no_host = Some(format!("{error:#}")),
        }
    }

    /// The host, once it runs.
    ///
    /// # Errors
    /// It does not.
    pub fn host(&self) -> Result<&Host> {
        self.host.as_ref().context("No host is running")
    }

    fn ground(&self, ground: Ground) -> Result<&Path> {
        match (ground, &self.xfs) {
            (Ground::Work, _) => Ok(self.root.path()),
            (Ground::Reflink, Some(xfs)) => Ok(xfs.dir()),
            (Ground::Reflink, None) => bail!("No xfs is mounted"),
        }
    }

    /// Directory of the source images of a file system; `SAFE_DIRS` names it.
    pub fn images(&self, ground: Ground) -> Result<PathBuf> {
        Ok(self.ground(ground)?.join("images"))
    }

    /// A source image, made at its first use.
    pub fn source(&mut self, ground: Ground, source: Source) -> Result<PathBuf> {
        let path = self.images(ground)?.join(source.name());
        if self.made.insert(path.clone()) {
            files::make(source, &path, &self.stop)?;
        }
        Ok(path)
    }

    /// A file derived from a source, made by `make` at its first use.
    pub fn derived(&mut self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.root.path().join("images").join(name);
        if self.made.insert(path.clone()) {
            make(&path)?;
        }
        Ok(path)
    }

    /// The `ONE_LOCATION` of a tree on a file system, made at its first use.
    pub fn sandbox(&self, ground: Ground, tree: &Tree) -> Result<Sandbox> {
        let name = match tree.who {
            Who::Drivers => "drivers",
            Who::Link => "link",
            Who::Other => "other",
            Who::Tool => "tool",
        };
        self.sandbox_named(ground, name, &tree.remotes)
    }

    /// The same under a name of its own.
    pub fn sandbox_named(&self, ground: Ground, name: &str, remotes: &Path) -> Result<Sandbox> {
        let one = self.ground(ground)?.join(name);
        if !one.exists() {
            fs::create_dir_all(one.join("var/datastores/100"))?;
            for dir in ["etc", "home"] {
                fs::create_dir(one.join(dir))?;
            }
            symlink(remotes, one.join("var/remotes"))?;
            // A tree of scripts has its libraries beside it, as in an installed front-end.
            if let Some(lib) = remotes.parent().map(|p| p.join("lib")).filter(|lib| lib.is_dir()) {
                symlink(lib, one.join("lib"))?;
            }
        }
        Ok(Sandbox { one })
    }

    /// Lays out the trees of our binary: as `install.sh` does (links to the launcher), and with links to the binary.
    ///
    /// # Errors
    /// The binary or the launcher is missing, or the binary does not list its entries.
    pub fn lay_out(&mut self, binary: &Path, launcher: &Path) -> Result<()> {
        let links = Command::new(binary).arg("links").output();
        let links = links.with_context(|| format!("Cannot start {}", binary.display()))?;
        if !links.status.success() {
            bail!("{} links failed ({})", binary.display(), links.status);
        }
        let links = String::from_utf8(links.stdout).context("Entries are not UTF-8")?;
        for (who, name, target) in [(Who::Drivers, "ours", "launch"), (Who::Link, "ours-linked", "onestore")] {
            let remotes = self.root.path().join(name);
            fs::create_dir_all(remotes.join("onestore"))?;
            copy(binary, &remotes.join("onestore/onestore"))?;
            copy(launcher, &remotes.join("onestore/launch"))?;
            for line in links.lines() {
                let entry = remotes.join(line);
                let parent = entry.parent().context("An entry without a directory")?;
                fs::create_dir_all(parent)?;
                symlink(Path::new("../../onestore").join(target), &entry)?;
            }
            self.trees.push(Tree { who, remotes });
        }
        Ok(())
    }
}

/// Copies a file with its mode.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("Cannot copy {}", from.display()))?;
    Ok(())
}
