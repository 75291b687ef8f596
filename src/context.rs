//! What a driver is given besides its request: settings, hosts, oned, and the executor of its changes.
//!
//! `cx.query` asks a host something and changes nothing; `cx.apply` changes something. Both are the only ways out of a
//! driver.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::exec::control::Control;
use crate::exec::host::{Host, ScriptError};
use crate::exec::interpret::Io;
use crate::exec::lock::{LockDir, LockError, NamedLock};
use crate::exec::op::{Op, Script, Value};
use crate::exec::step::{Executor, Step};
use crate::location::Layout;
use crate::oned::Oned;
use crate::report::{Level, Log};
use crate::settings::Settings;

/// Gives hosts by name; the one place that decides how a host is reached.
pub trait Hosts {
    /// The machine that we run on.
    fn local(&self) -> Arc<dyn Host>;

    /// A host by the name that OpenNebula knows it by.
    ///
    /// # Errors
    /// A name that cannot be a host's.
    fn remote(&self, name: &str) -> Result<Arc<dyn Host>>;
}

/// The context of one action.
pub struct Cx<'a> {
    /// Folders of the installation.
    pub layout: &'a Layout,
    /// Upstream's configuration files.
    pub settings: &'a Settings,
    /// Where log lines go.
    pub log: &'a Log,
    /// When to stop.
    pub control: Control,
    hosts: &'a dyn Hosts,
    known: RefCell<HashMap<String, Arc<dyn Host>>>,
    executor: &'a dyn Executor,
    connect: &'a dyn Fn() -> Box<dyn Oned>,
    oned: OnceCell<Box<dyn Oned>>,
    name: &'a dyn Fn(u32) -> String,
    locks: RefCell<Vec<(String, NamedLock)>>,
}

/// How long an action waits for another one on the same object.
const LOCK_WAIT: Duration = Duration::from_secs(600);

/// The parts that [`Cx`] is made of.
pub struct Parts<'a> {
    /// See [`Cx::layout`].
    pub layout: &'a Layout,
    /// See [`Cx::settings`].
    pub settings: &'a Settings,
    /// See [`Cx::log`].
    pub log: &'a Log,
    /// See [`Cx::control`].
    pub control: Control,
    /// How hosts are reached.
    pub hosts: &'a dyn Hosts,
    /// Who does the changes.
    pub executor: &'a dyn Executor,
    /// How oned is reached; called when it is first asked something.
    pub connect: &'a dyn Fn() -> Box<dyn Oned>,
    /// Makes the file name of a new image from its id.
    pub name: &'a dyn Fn(u32) -> String,
}

impl<'a> Cx<'a> {
    /// A context of these parts.
    #[must_use]
    pub fn new(parts: Parts<'a>) -> Self {
        Self {
            layout: parts.layout,
            settings: parts.settings,
            log: parts.log,
            control: parts.control,
            hosts: parts.hosts,
            known: RefCell::default(),
            executor: parts.executor,
            connect: parts.connect,
            oned: OnceCell::new(),
            name: parts.name,
            locks: RefCell::default(),
        }
    }

    /// The machine that we run on: the front-end, or a hypervisor for the actions that run there.
    #[must_use]
    pub fn here(&self) -> Arc<dyn Host> {
        self.hosts.local()
    }

    /// A host by name; the connection is kept for the action's life.
    ///
    /// # Errors
    /// A name that cannot be a host's.
    pub fn host(&self, name: &str) -> Result<Arc<dyn Host>> {
        if let Some(host) = self.known.borrow().get(name) {
            return Ok(Arc::clone(host));
        }
        let host = self.hosts.remote(name)?;
        self.known.borrow_mut().insert(name.to_owned(), Arc::clone(&host));
        Ok(host)
    }

    /// oned, connected when it is first needed.
    #[must_use]
    pub fn oned(&self) -> &dyn Oned {
        self.oned.get_or_init(|| (self.connect)()).as_ref()
    }

    /// Asks a host. Also done in `explain`, so nothing here may change anything.
    ///
    /// # Errors
    /// [`ScriptError`]: the host cannot be reached, or a question cannot be answered.
    pub fn query(
        &self,
        host: &Arc<dyn Host>,
        ops: impl IntoIterator<Item = Op>,
    ) -> std::result::Result<Vec<Value>, ScriptError> {
        host.run(&Script::new(ops), Io::default(), &self.control)
    }

    /// Asks a host one thing.
    ///
    /// # Errors
    /// See [`Cx::query`].
    pub fn ask(&self, host: &Arc<dyn Host>, op: Op) -> std::result::Result<Value, ScriptError> {
        Ok(self.query(host, [op])?.pop().unwrap_or(Value::Done))
    }

    /// Changes something; see [`Executor::apply`].
    ///
    /// # Errors
    /// What failed, under the step's own words. The caller gives up and what was done so far is taken back.
    pub fn apply(&self, step: Step) -> Result<Vec<Value>> {
        self.executor.apply(step)
    }

    /// Takes a named lock of this machine until the action ends, if it has not taken it already; in `explain` takes none.
    ///
    /// # Errors
    /// Another action held it for ten minutes, or the lock file cannot be made.
    pub fn lock(&self, name: &str) -> Result<()> {
        if self.locks.borrow().iter().any(|(held, _)| held == name) {
            return Ok(());
        }
        let taken = self.hold(name, LOCK_WAIT)?;
        self.locks.borrow_mut().extend(taken.map(|lock| (name.to_owned(), lock)));
        Ok(())
    }

    /// The locks of [`Cx::lock`], for whoever goes on after the driver: what is taken back, or done after the reply, is part
    /// of the action.
    #[must_use]
    pub fn into_locks(self) -> Vec<NamedLock> {
        self.locks.into_inner().into_iter().map(|(_, lock)| lock).collect()
    }

    /// Takes a named lock of this machine, waiting for at most `wait`, until what is given back is dropped; in `explain`
    /// takes none.
    ///
    /// # Errors
    /// Another action holds it, or the lock file cannot be made.
    pub fn hold(&self, name: &str, wait: Duration) -> std::result::Result<Option<NamedLock>, LockError> {
        if !self.is_real() {
            return Ok(None);
        }
        LockDir::from_env().owned_like(&self.layout.var).take(name, wait, &self.control).map(Some)
    }

    /// Adds what takes a step back; see [`Executor::on_failure`].
    pub fn on_failure(&self, step: Step) {
        self.executor.on_failure(step);
    }

    /// Leaves a step for when the reply is delivered; see [`Executor::after`].
    pub fn after(&self, step: Step) {
        self.executor.after(step);
    }

    /// Whether changes really happen; see [`Executor::is_real`].
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.executor.is_real()
    }

    /// File name of a new image: 32 hexadecimal digits, different at every call.
    #[must_use]
    pub fn new_name(&self, image: u32) -> String {
        (self.name)(image)
    }

    /// Says in the log what is being done.
    pub fn info(&self, text: impl AsRef<str>) {
        self.log.say(Level::Info, text.as_ref());
    }

    /// Says in the log that something is odd.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.log.say(Level::Warn, text.as_ref());
    }
}
