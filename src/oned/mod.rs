//! Asking oned for its objects, directly and typed.
//!
//! A driver that needs more than it was handed asks through the trait [`Oned`]; [`connect`] chooses who answers:
//!
//! - [`xmlrpc`]: oned's XML-RPC API, one HTTP call.
//! - [`dir`]: a directory of XML files, for running actions by hand and in tests, without oned.
//! - [`cli`]: OpenNebula's commands, the last resort where the API cannot be reached from here.
//!
//! [`monitord`] is the other way round: it is told something.
//!
//! # Policy
//!
//! `ONESTORE_ONED` set to `dir:PATH`, an `http(s)://` URL or `cli` decides alone. Otherwise the API at `ONE_XMLRPC` is
//! asked; when there are no credentials or nobody listens there, the commands are tried if they are installed, since
//! they know more places to look for both.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::payload::{self, Datastore, DatastorePool, Host, HostPool, Image, Vm};

pub mod cli;
pub mod dir;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod monitord;
mod reply;
pub mod xmlrpc;

pub use error::{Cause, OnedError};

/// Where oned listens unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://localhost:2633/RPC2";

/// Something that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A virtual machine.
    Vm(u32),
    /// An image.
    Image(u32),
    /// A datastore, with secrets decrypted where the caller may see them.
    Datastore(u32),
    /// A host.
    Host(u32),
    /// All hosts that the caller may see.
    HostPool,
    /// All datastores that the caller may see.
    DatastorePool,
}

/// The object as errors name it.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(id) => write!(f, "VM {id}"),
            Self::Image(id) => write!(f, "image {id}"),
            Self::Datastore(id) => write!(f, "datastore {id}"),
            Self::Host(id) => write!(f, "host {id}"),
            Self::HostPool => f.write_str("the list of hosts"),
            Self::DatastorePool => f.write_str("the list of datastores"),
        }
    }
}

/// Who answers questions about OpenNebula's objects.
///
/// Every error is an [`OnedError`], which names the object, who was asked, what is wrong and what to do next.
pub trait Oned {
    /// The object's XML as oned gives it, to be handed on.
    fn xml(&self, object: Object) -> Result<String, OnedError>;

    /// Who is asked, for errors and explanations: a URL without credentials, a directory, the commands.
    fn place(&self) -> String;

    /// A virtual machine.
    fn vm(&self, id: u32) -> Result<Vm, OnedError> {
        parsed(self, Object::Vm(id))
    }

    /// An image.
    fn image(&self, id: u32) -> Result<Image, OnedError> {
        parsed(self, Object::Image(id))
    }

    /// A datastore, with secrets decrypted where the caller may see them; [`cli`] leaves them encrypted.
    fn datastore(&self, id: u32) -> Result<Datastore, OnedError> {
        parsed(self, Object::Datastore(id))
    }

    /// A host.
    fn host(&self, id: u32) -> Result<Host, OnedError> {
        parsed(self, Object::Host(id))
    }

    /// All hosts that the caller may see.
    fn host_pool(&self) -> Result<HostPool, OnedError> {
        parsed(self, Object::HostPool)
    }

    /// All datastores that the caller may see; their secrets stay encrypted.
    fn datastore_pool(&self) -> Result<DatastorePool, OnedError> {
        parsed(self, Object::DatastorePool)
    }
}

fn parsed<T: payload::Document>(oned: &(impl Oned + ?Sized), object: Object) -> Result<T, OnedError> {
    let xml = oned.xml(object)?;
    payload::parse(&xml).map_err(|e| OnedError::new(oned.place(), object, Cause::Xml(e)))
}

/// What decides who is asked: the environment, and limits that tests shorten.
#[derive(Clone)]
pub struct OnedEnv {
    /// `ONESTORE_ONED`.
    pub choice: Option<OsString>,
    /// `ONE_XMLRPC`.
    pub endpoint: Option<String>,
    /// `ONE_AUTH`: a file that holds `user:password` or `user:token`.
    pub auth: Option<PathBuf>,
    /// `HOME`, for `~/.one/one_auth`.
    pub home: Option<PathBuf>,
    /// `PATH`, where the commands are looked for.
    pub path: Option<OsString>,
    /// Time to connect within.
    pub connect_timeout: Duration,
    /// Time to answer within, all in all.
    pub total_timeout: Duration,
    /// Most bytes of an answer.
    pub answer_limit: usize,
}

/// A URL in it may carry a password, which is left out.
impl fmt::Debug for OnedEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choice = self.choice.as_ref().map(|choice| xmlrpc::without_user(&choice.to_string_lossy()));
        f.debug_struct("OnedEnv")
            .field("choice", &choice)
            .field("endpoint", &self.endpoint.as_deref().map(xmlrpc::without_user))
            .field("auth", &self.auth)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

impl Default for OnedEnv {
    /// An empty environment and the usual limits: 5 s, 30 s, 64 MiB.
    fn default() -> Self {
        Self {
            choice: None,
            endpoint: None,
            auth: None,
            home: None,
            path: None,
            connect_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(30),
            answer_limit: payload::DEFAULT_LIMIT,
        }
    }
}

impl OnedEnv {
    /// What this process was started with; empty variables count as unset.
    #[must_use]
    pub fn from_process() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            choice: var("ONESTORE_ONED"),
            endpoint: var("ONE_XMLRPC").map(|url| url.to_string_lossy().trim().to_owned()),
            auth: var("ONE_AUTH").map(PathBuf::from),
            home: var("HOME").map(PathBuf::from),
            path: var("PATH"),
            ..Self::default()
        }
    }
}

/// Chooses who answers; see the policy above. Nobody is asked anything yet.
#[must_use]
pub fn connect(env: &OnedEnv) -> Box<dyn Oned + Send + Sync> {
    let Some(choice) = &env.choice else {
        let endpoint = env.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
        return Box::new(WithFallback { api: xmlrpc::XmlRpc::new(endpoint, env), commands: cli::Cli::new(env) });
    };
    let bytes = choice.as_bytes();
    if let Some(path) = bytes.strip_prefix(b"dir:") {
        return Box::new(dir::Dir::new(PathBuf::from(OsString::from_vec(path.to_vec()))));
    }
    match choice.to_str() {
        Some("cli") => Box::new(cli::Cli::new(env)),
        Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
            Box::new(xmlrpc::XmlRpc::new(url, env))
        }
        _ => Box::new(Nobody),
    }
}

/// The API, and the commands where the API cannot even be asked.
struct WithFallback {
    api: xmlrpc::XmlRpc,
    commands: cli::Cli,
}

impl Oned for WithFallback {
    fn xml(&self, object: Object) -> Result<String, OnedError> {
        let error = match self.api.xml(object) {
            Err(error) if error.cause.invites_fallback() && self.commands.can_ask(object) => error,
            decided => return decided,
        };
        self.commands.xml(object).map_err(|second| error.and(&second))
    }

    fn place(&self) -> String {
        self.api.place()
    }
}

/// Answers when `ONESTORE_ONED` makes no sense. Its value is not repeated: a URL in it may carry a password.
struct Nobody;

impl Oned for Nobody {
    fn xml(&self, object: Object) -> Result<String, OnedError> {
        Err(OnedError::new(self.place(), object, Cause::Choice))
    }

    fn place(&self) -> String {
        "oned".to_owned()
    }
}
