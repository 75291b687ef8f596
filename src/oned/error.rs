//! Why oned could not be asked, and what to do about it, in one line.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{DEFAULT_ENDPOINT, Object};
use crate::payload::PayloadError;

/// A question that got no answer.
#[derive(Debug)]
pub struct OnedError {
    /// Who was asked.
    pub place: String,
    /// What for.
    pub object: Object,
    /// What is wrong.
    pub cause: Cause,
    /// What the commands said when they were tried as well.
    fallback: Option<String>,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// There is no way there.
    #[error("{0}")]
    Unreachable(String),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// Encryption failed, mostly because the certificate is not trusted.
    #[error("no secure connection ({0})")]
    Tls(String),
    /// It is no API.
    #[error("HTTP status {0}")]
    Http(u16),
    /// The answer is too large.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer is no XML-RPC.
    #[error("the answer is not what oned sends ({0})")]
    BadReply(String),
    /// An XML-RPC fault: the API does not know the call.
    #[error("fault {code} ({message})")]
    Fault {
        /// Its code.
        code: i64,
        /// Its text.
        message: String,
    },
    /// oned said no.
    #[error("{message} (code {code:#06x})")]
    Denied {
        /// oned's code: 0x0100 authentication, 0x0200 authorisation, 0x0400 no such object, …
        code: i64,
        /// Its text.
        message: String,
    },
    /// There is no user and password to ask with.
    #[error("no credentials: {0}")]
    NoCredentials(String),
    /// The directory has no such file.
    #[error("there is no {}", .0.display())]
    NoFile(PathBuf),
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A command is not installed.
    #[error("{0} is not in PATH")]
    NoCommand(&'static str),
    /// A command failed.
    #[error("{program} failed: {text}")]
    Command {
        /// Its name.
        program: &'static str,
        /// The last line that it wrote to its standard error, or how it ended.
        text: String,
    },
    /// The object's own XML is not usable.
    #[error("{0}")]
    Xml(PayloadError),
    /// `ONESTORE_ONED` makes no sense.
    #[error("ONESTORE_ONED is not understood")]
    Choice,
}

impl Cause {
    /// Whether the commands might know better: they read other files for address and credentials.
    pub(super) fn invites_fallback(&self) -> bool {
        matches!(self, Self::Refused | Self::NoCredentials(_))
    }

    /// What to do next; empty where the cause says it all.
    fn advice(&self) -> String {
        match self {
            Self::Refused | Self::Unreachable(_) => "is oned running, is ONE_XMLRPC right?".to_owned(),
            Self::Timeout(_) => "is oned overloaded, is ONE_XMLRPC right?".to_owned(),
            Self::Tls(_) => "does this machine trust the certificate there?".to_owned(),
            Self::Http(_) | Self::BadReply(_) | Self::Fault { .. } => {
                format!("is ONE_XMLRPC the address of oned's API, such as {DEFAULT_ENDPOINT}?")
            }
            Self::Denied { code: 0x0100, .. } => "does the file ONE_AUTH hold valid credentials?".to_owned(),
            Self::NoCredentials(_) => "set ONE_AUTH to a file that holds user:password".to_owned(),
            Self::NoFile(_) => "save the object there, as `onevm show -x` and its like print it".to_owned(),
            Self::NoCommand(_) => "install opennebula-tools or set ONE_XMLRPC and ONE_AUTH".to_owned(),
            Self::Choice => "set it to dir:PATH, a URL or cli".to_owned(),
            Self::TooLarge { .. } | Self::Denied { .. } | Self::File { .. } | Self::Command { .. } | Self::Xml(_) => {
                String::new()
            }
        }
    }
}

impl OnedError {
    pub(super) fn new(place: String, object: Object, cause: Cause) -> Self {
        Self { place, object, cause, fallback: None }
    }

    /// The same, after the commands had been tried in vain.
    pub(super) fn and(self, second: &Self) -> Self {
        Self { fallback: Some(second.cause.to_string()), ..self }
    }
}

impl fmt::Display for OnedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cannot ask {} for {}: {}", self.place, self.object, self.cause)?;
        if let Some(fallback) = &self.fallback {
            write!(f, ", and {fallback}")?;
        }
        match self.cause.advice() {
            advice if advice.is_empty() => Ok(()),
            advice => write!(f, "; {advice}"),
        }
    }
}

/// The cause is part of the text, so there is no source to print after it.
impl std::error::Error for OnedError {}
