//! How an import behaves, and why one could not begin: what [`super::import`] and the sources that it opens agree on.

use std::io;

use super::decode::Allowance;
use super::digest::Expected;
use super::helper::Helpers;
use super::http::{self, HttpError};
use super::rate::Rate;
use super::s3::{self, S3Error};
use super::source::{PathPolicy, SourceError};
use crate::exec::process::Programs;

/// How an import behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which files may be read, here and on other machines.
    pub policy: PathPolicy,
    /// Whether compressed sources are decoded (`NO_DECOMPRESS` says no).
    pub decompress: bool,
    /// Digests that the source, as downloaded, must have.
    pub digests: Vec<Expected>,
    /// The fastest that the source is read, of any kind.
    pub rate: Option<Rate>,
    /// The most bytes that are accepted of what does not announce its length: of decoded data, and of downloads without
    /// a length. What announces it can be judged before it comes.
    pub max_output: Option<Allowance>,
    /// How downloads behave.
    pub http: http::Options,
    /// Where S3 objects are and whose they are.
    pub s3: s3::Settings,
    /// How ssh is called.
    pub programs: Programs,
    /// Programs for schemes that we do not serve; without them no other program is started either.
    pub helpers: Option<Helpers>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: PathPolicy::default(),
            decompress: true,
            digests: Vec::new(),
            rate: None,
            max_output: None,
            http: http::Options::default(),
            s3: s3::Settings::default(),
            programs: Programs::default(),
            helpers: None,
        }
    }
}

/// Why an import could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The local file was not opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The download did not begin.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An S3 object cannot be asked for.
    #[error(transparent)]
    S3(#[from] S3Error),
    /// Nobody here serves the scheme.
    #[error(
        "Cannot read from {location}: scheme '{scheme}' is not served, only http, https, s3, ssh, rbd, local paths and those with a helper program are"
    )]
    Scheme {
        /// The location, without secrets.
        location: String,
        /// Its scheme.
        scheme: String,
    },
    /// The first bytes could not be read or decoded, or are all there is and wrong.
    #[error("Cannot read from {location}")]
    Read {
        /// The location, without secrets.
        location: String,
        /// The cause.
        source: io::Error,
    },
}
