//! A directory on a machine in which new things come into being under staging names ([`crate::exec::staging`]).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::exec::host::Host;
use crate::exec::op::{Op, Value};
use crate::exec::staging::{self, Owner};
use crate::exec::step::Step;

/// See the module.
pub struct Folder {
    /// The machine.
    pub host: Arc<dyn Host>,
    /// The directory, normalised.
    pub base: PathBuf,
    /// What clears away the staging files of runs that died.
    clear: Vec<Op>,
    owner: Owner,
}

impl Folder {
    /// The directory `base` of `host`, with what clears away dead runs.
    pub fn new(host: Arc<dyn Host>, base: PathBuf, clear: Vec<Op>, owner: Owner) -> Self {
        Self { host, base, clear, owner }
    }

    /// The question whose answer [`Folder::of`] wants.
    pub fn question(base: &Path) -> Op {
        Op::List { path: staging::dir(base) }
    }

    /// The directory `base` of `host`; `answer` is what the host said to [`Folder::question`].
    ///
    /// # Errors
    /// This process cannot be told from others, because `/proc` cannot be read.
    pub fn of(host: &Arc<dyn Host>, base: &Path, answer: &Value) -> Result<Self> {
        let owner = Owner::me().context("Cannot tell this process from others")?;
        let clear = match answer {
            Value::Names(names) => staging::clear(base, names, &owner),
            _ => Vec::new(),
        };
        Ok(Self::new(Arc::clone(host), base.to_owned(), clear, owner))
    }

    /// Whose staging files these are.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where `name` is written first.
    pub fn staging(&self, name: impl AsRef<OsStr>) -> PathBuf {
        staging::staging_path(&self.base, &self.owner, name.as_ref())
    }

    /// The claim alone: where what is taken back has to lie in the staging directory again, which may be gone.
    pub fn claim(&self) -> Op {
        Op::Claim { path: staging::claim_path(&self.base, &self.owner) }
    }

    /// What every change begins with: the directories, and the end of what killed runs left.
    pub fn prepare(&self) -> Vec<Op> {
        let mut ops = vec![Op::MakeDir { path: self.base.clone() }];
        ops.extend(self.enter());
        ops
    }

    /// The same where the directory is there.
    pub fn enter(&self) -> Vec<Op> {
        let mut ops = vec![self.claim()];
        ops.extend(self.clear.iter().cloned());
        ops
    }

    /// A step that writes the staging file `staging`, which goes again when anything fails.
    pub fn staging_step(&self, what: impl Into<String>, staging: &Path, ops: impl IntoIterator<Item = Op>) -> Step {
        let remove = Op::Remove { path: staging.to_owned(), tree: false, must_exist: false };
        Step::new(&self.host, what, ops).undo([remove].into_iter().chain(self.leave()))
    }

    /// A step that begins with [`Folder::prepare`] and writes no staging file: the claim goes again when anything fails.
    pub fn prepared_step(&self, what: impl Into<String>, ops: impl IntoIterator<Item = Op>) -> Step {
        Step::new(&self.host, what, ops).undo(self.leave())
    }

    /// The end of what killed runs left, be it an empty directory, where nothing else is to be done; nothing where they left
    /// nothing. `answer` is what [`Folder::of`] was given.
    pub fn tidy(&self, answer: &Value) -> Option<Step> {
        let empty = matches!(answer, Value::Names(names) if names.is_empty());
        let what = format!("Clear away what runs that died have left in {}", self.base.display());
        let ops = || self.prepare().into_iter().chain(self.leave());
        (empty || !self.clear.is_empty()).then(|| Step::new(&self.host, what, ops()).best_effort())
    }

    /// Gives the staging directory up.
    pub fn leave(&self) -> [Op; 2] {
        staging::leave(&self.base, &self.owner)
    }
}
