//! Downloads over http and https: one GET when nothing fails, retries and resumed ranges when something does.
//!
//! Contract 03 §2. Upstream runs `curl -k`, up to five times for one image. We: verify certificates unless told
//! otherwise, follow redirects to http and https only, and resume only what is provably the same object.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
};
use ureq::http::{HeaderMap, HeaderName, Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, NativeTlsConnector, TcpConnector};
use ureq::{Agent, Body};

use super::proxy::{ProxyChoice, Via};
use super::url::Url;
use super::watch::{Stop, Watch};
use crate::exec::cmd::Secret;
use crate::exec::control::Stopped;

/// Redirects that are followed.
pub const MAX_REDIRECTS: u32 = 10;

/// Bytes of a failure's body that are looked at: 16 KiB.
const FAILURE_BODY: u64 = 16 << 10;

/// Proves who asks. Made anew for each request, as a proof ages and holds for one address only.
pub(super) trait Proof: Send + Sync {
    /// Headers of a GET of `url` that is sent now.
    fn headers(&self, url: &Url) -> Vec<(HeaderName, Secret)>;

    /// Whether a redirect may be followed; the proof then goes along.
    fn may_follow(&self, from: &Url, to: &Url) -> bool;
}

/// How a download behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether certificates are verified. The operator may say no, per datastore.
    pub verify_tls: bool,
    /// Time for name resolution and connection.
    pub connect_timeout: Duration,
    /// Longest time without a byte.
    pub stall_timeout: Duration,
    /// How often in a row a request is tried again, after a failed connection, an answer of 5xx or a cut.
    pub retries: u32,
    /// Pause before the first retry; doubles with each.
    pub backoff: Duration,
    /// The proxy.
    pub proxy: ProxyChoice,
}

impl Default for Options {
    /// Certificates verified, 30 s to connect, 60 s without a byte, 3 retries after 1, 2 and 4 s.
    fn default() -> Self {
        Self {
            verify_tls: true,
            connect_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            retries: 3,
            backoff: Duration::from_secs(1),
            proxy: ProxyChoice::Environment,
        }
    }
}

/// Why a download failed. Addresses are shown without user, password and query.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is none.
    #[error("Not a valid URL: {0}")]
    Url(String),
    /// The server answered with a failure.
    #[error("HTTP {status}{} from {url}", named(reason.as_deref()))]
    Status {
        /// Code and phrase: `404 Not Found`.
        status: StatusCode,
        /// What the service calls it: `NoSuchKey`. S3 only.
        reason: Option<String>,
        /// The address that was asked.
        url: String,
    },
    /// No answer came.
    #[error("HTTP request to {url} failed")]
    Request {
        /// The address that was asked.
        url: String,
        /// The cause.
        source: Box<ureq::Error>,
    },
    /// The certificate was not accepted, or TLS failed otherwise.
    #[error(
        "HTTPS connection to {url} failed; TLS_VERIFY=no in the datastore or in onestore.conf accepts any certificate"
    )]
    Tls {
        /// The address that was asked.
        url: String,
        /// The cause.
        source: Box<ureq::Error>,
    },
    /// A redirect leads to something else than http and https.
    #[error("HTTP redirect from {url} to {target} refused: only http and https are followed")]
    Redirect {
        /// The address that was asked.
        url: String,
        /// Where it leads.
        target: String,
    },
    /// A redirect leads to where a proof must not go.
    #[error("HTTP redirect from {url} to {target} refused: a signed request stays with the hosts of its bucket")]
    Strange {
        /// The address that was asked.
        url: String,
        /// Where it leads.
        target: String,
    },
    /// There are too many redirects.
    #[error("HTTP redirects of {0} do not end")]
    TooManyRedirects(String),
    /// The stream was cut and could not be resumed.
    #[error("HTTP download of {url} was cut after {got} bytes{}", of(*.expected))]
    Cut {
        /// The address.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: Option<u64>,
    },
    /// The object is another one than before the cut.
    #[error("HTTP download of {url} was cut, and its content has changed since")]
    Changed {
        /// The address.
        url: String,
    },
    /// It had to stop. Not transparent: the exit status depends on finding the source.
    #[error("{0}")]
    Stopped(#[from] Stopped),
}

fn of(expected: Option<u64>) -> String {
    expected.map(|bytes| format!(" of {bytes}")).unwrap_or_default()
}

fn named(reason: Option<&str>) -> String {
    reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

/// What identifies the object behind an address, for a resume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Validator {
    /// Only a strong one: weak ones allow other bytes.
    etag: Option<String>,
    modified: Option<String>,
}

impl Validator {
    fn of(headers: &HeaderMap) -> Self {
        let etag = text(headers, &ETAG).filter(|etag| !etag.starts_with("W/"));
        Self { etag, modified: text(headers, &LAST_MODIFIED) }
    }

    fn if_range(&self) -> Option<&str> {
        self.etag.as_deref().or(self.modified.as_deref())
    }
}

/// An open download: a reader of the body that heals cuts.
pub struct Download {
    client: Client,
    url: Url,
    body: Box<dyn Read + Send>,
    len: Option<u64>,
    validator: Validator,
    position: u64,
    /// Failures since the last byte.
    failures: u32,
    done: bool,
}

impl Download {
    /// Asks for `url` and waits for the head of the answer.
    ///
    /// # Errors
    /// [`HttpError`].
    pub(super) fn open(url: &str, options: &Options, stop: Stop) -> Result<Self, HttpError> {
        let url = Url::parse(url).ok_or_else(|| HttpError::Url(super::url::redact(url)))?;
        Self::begin(url, Client { options: options.clone(), stop, proof: None })
    }

    /// The same with a proof in every request.
    ///
    /// # Errors
    /// [`HttpError`].
    pub(super) fn open_proved(
        url: Url,
        proof: Arc<dyn Proof>,
        options: &Options,
        stop: Stop,
    ) -> Result<Self, HttpError> {
        Self::begin(url, Client { options: options.clone(), stop, proof: Some(proof) })
    }

    fn begin(url: Url, client: Client) -> Result<Self, HttpError> {
        let mut failures = 0;
        let response = loop {
            match client.get(&url, None) {
                Err(error) if error.is_transient() && failures < client.options.retries => {
                    client.pause(failures)?;
                    failures += 1;
                }
                result => break result?,
            }
        };
        if response.status() != StatusCode::OK {
            // Asked for no part, so that nothing but the whole will do: a 204 or 206 is no image.
            return Err(HttpError::Status { status: response.status(), reason: None, url: url.shown() });
        }
        let (parts, body) = response.into_parts();
        let len = text(&parts.headers, &CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let validator = Validator::of(&parts.headers);
        let body = Box::new(body.into_reader());
        Ok(Self { client, url, body, len, validator, position: 0, failures: 0, done: false })
    }

    /// The announced length in bytes.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        self.len
    }

    /// Gets a new body that goes on where the old one was cut.
    fn resume(&mut self) -> Result<(), HttpError> {
        let cut = || HttpError::Cut { url: self.url.shown(), got: self.position, expected: self.len };
        loop {
            if self.failures >= self.client.options.retries {
                return Err(cut());
            }
            self.client.pause(self.failures)?;
            self.failures += 1;
            let if_range = self.validator.if_range().map(str::to_owned);
            if if_range.is_none() && self.position > 0 {
                return Err(cut());
            }
            let range = if_range.filter(|_| self.position > 0).map(|validator| (self.position, validator));
            let response = match self.client.get(&self.url, range.as_ref().map(|(at, v)| (*at, Some(v.as_str())))) {
                Ok(response) => response,
                Err(error) if error.is_transient() => continue,
                Err(HttpError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => {
                    return Err(HttpError::Changed { url: self.url.shown() });
                }
                Err(error) => return Err(error),
            };
            return self.go_on(response);
        }
    }

    fn go_on(&mut self, response: Response<Body>) -> Result<(), HttpError> {
        let changed = || HttpError::Changed { url: self.url.shown() };
        let (parts, body) = response.into_parts();
        let validator = Validator::of(&parts.headers);
        let mut body = Box::new(body.into_reader());
        match parts.status {
            StatusCode::PARTIAL_CONTENT => {
                let (start, total) =
                    text(&parts.headers, &CONTENT_RANGE).and_then(|text| content_range(&text)).ok_or_else(changed)?;
                let other = self.validator.etag.is_some() && validator.etag.is_some() && validator != self.validator;
                if start != self.position || other || (total.is_some() && self.len.is_some() && total != self.len) {
                    return Err(changed());
                }
            }
            // Either the object has changed or the server knows no ranges: the validator tells.
            StatusCode::OK if self.position == 0 => {
                // Nothing was handed on yet: begin anew.
                self.len = text(&parts.headers, &CONTENT_LENGTH).and_then(|text| text.parse().ok());
                self.validator = validator;
            }
            StatusCode::OK => {
                if validator.if_range().is_none() || validator != self.validator {
                    return Err(changed());
                }
                let skipped = io::copy(&mut body.by_ref().take(self.position), &mut io::sink()).unwrap_or(0);
                if skipped < self.position {
                    let (url, expected) = (self.url.shown(), self.len);
                    return Err(HttpError::Cut { url, got: self.position, expected });
                }
            }
            status => return Err(HttpError::Status { status, reason: None, url: self.url.shown() }),
        }
        self.body = body;
        Ok(())
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.done && !buf.is_empty() {
            let want = match self.len {
                // More than was announced is never read.
                Some(len) => buf.len().min(usize::try_from(len - self.position).unwrap_or(usize::MAX)),
                None => buf.len(),
            };
            match self.body.read(&mut buf[..want]) {
                Ok(0) if self.len.is_none_or(|len| self.position >= len) => self.done = true,
                Ok(n) if n > 0 => {
                    self.position += n as u64;
                    self.failures = 0;
                    return Ok(n);
                }
                Ok(_) => self.resume().map_err(into_io)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.client.stop.check().map_err(io::Error::other)?;
                    self.resume().map_err(into_io)?;
                }
            }
        }
        Ok(0)
    }
}

/// The end of an object, from byte `from` of its `total` bytes: one request, for a look and not for an import. Nothing
/// where the server does not answer with just that.
pub(super) fn tail(url: &str, options: &Options, stop: Stop, from: u64, total: u64) -> Option<Vec<u8>> {
    let url = Url::parse(url)?;
    let client = Client { options: options.clone(), stop, proof: None };
    let response = client.get(&url, Some((from, None))).ok()?;
    let (parts, body) = response.into_parts();
    let range = text(&parts.headers, &CONTENT_RANGE).and_then(|text| content_range(&text));
    if parts.status != StatusCode::PARTIAL_CONTENT || range != Some((from, Some(total))) {
        return None;
    }
    let mut bytes = Vec::new();
    body.into_reader().take(total - from).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == total - from).then_some(bytes)
}

fn into_io(error: HttpError) -> io::Error {
    match error {
        HttpError::Stopped(stopped) => io::Error::other(stopped),
        error => io::Error::other(error),
    }
}

impl HttpError {
    /// Whether another try may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error(),
            Self::Request { source, .. } => {
                matches!(**source, ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed)
            }
            _ => false,
        }
    }
}

/// One agent and the way it is used.
struct Client {
    options: Options,
    stop: Stop,
    proof: Option<Arc<dyn Proof>>,
}

impl Client {
    /// One request, redirects followed; an answer that is no success is an error.
    fn get(&self, url: &Url, range: Option<(u64, Option<&str>)>) -> Result<Response<Body>, HttpError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            self.stop.check()?;
            let mut request = self.agent(&at)?.get(at.request()).header(ACCEPT_ENCODING, "identity");
            if let Some(login) = at.login() {
                request = request.header(AUTHORIZATION, login.reveal());
            }
            if let Some((position, validator)) = range {
                request = request.header(RANGE, format!("bytes={position}-"));
                if let Some(validator) = validator {
                    request = request.header(IF_RANGE, validator);
                }
            }
            for (name, value) in self.proof.iter().flat_map(|proof| proof.headers(&at)) {
                request = request.header(name, value.reveal());
            }
            let response = request.call().map_err(|error| self.failed(&at, error))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let target =
                text(response.headers(), &LOCATION).filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308));
            let Some(target) = target else {
                let reason = self.proof.as_ref().and_then(|_| reason(response));
                return Err(HttpError::Status { status, reason, url: at.shown() });
            };
            let to = at.join(&target).ok_or_else(|| {
                let target = super::url::redact(&target);
                HttpError::Redirect { url: at.shown(), target }
            })?;
            if self.proof.as_ref().is_some_and(|proof| !proof.may_follow(&at, &to)) {
                return Err(HttpError::Strange { url: at.shown(), target: to.shown() });
            }
            at = to;
        }
        Err(HttpError::TooManyRedirects(url.shown()))
    }

    /// An agent for one address: the proxy depends on it.
    fn agent(&self, url: &Url) -> Result<Agent, HttpError> {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(RootCerts::PlatformVerifier)
            .disable_verification(!self.options.verify_tls)
            .build();
        let proxy = self.options.proxy.resolve(url).map_err(|proxy| HttpError::Url(super::url::redact(&proxy)))?;
        let (via, forward) = proxy.as_ref().and_then(|proxy| Via::forward(proxy, url)).unzip();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls)
            .proxy(proxy.filter(|_| via.is_none()))
            .user_agent(concat!("onestore/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(self.options.connect_timeout))
            .timeout_connect(Some(self.options.connect_timeout))
            .timeout_per_read(Some(self.options.stall_timeout))
            .input_buffer_size(256 << 10)
            .build();
        // The watch lies below TLS, so that an interrupted wait loses nothing.
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(Watch { stop: self.stop.clone(), forward })
                .chain(NativeTlsConnector::default());
        Ok(match via {
            Some(via) => Agent::with_parts(config, connector, via),
            None => Agent::with_parts(config, connector, DefaultResolver::default()),
        })
    }

    fn failed(&self, url: &Url, error: ureq::Error) -> HttpError {
        if let Err(stopped) = self.stop.check() {
            return stopped.into();
        }
        let (url, source) = (url.shown(), Box::new(error));
        match *source {
            ureq::Error::NativeTls(_) | ureq::Error::Tls(_) | ureq::Error::Der(_) | ureq::Error::Pem(_) => {
                HttpError::Tls { url, source }
            }
            _ => HttpError::Request { url, source },
        }
    }

    /// Waits before retry number `n`, from 0.
    fn pause(&self, n: u32) -> Result<(), HttpError> {
        let until = Instant::now() + self.options.backoff.saturating_mul(1 << n.min(16));
        loop {
            self.stop.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// What S3 calls a failure: the `Code` in its body (Error Responses of the API reference), and the region that a bucket is
/// really in.
fn reason(response: Response<Body>) -> Option<String> {
    let region = text(response.headers(), &HeaderName::from_static("x-amz-bucket-region")).filter(|text| is_word(text));
    let mut body = Vec::new();
    // A body that breaks off may have said it already.
    let _ = response.into_body().into_reader().take(FAILURE_BODY).read_to_end(&mut body);
    let body = String::from_utf8_lossy(&body);
    let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code.trim());
    let code = code.filter(|code| is_word(code))?.to_owned();
    // Of use only where the region is what was wrong.
    let elsewhere = region.filter(|_| code.contains("Redirect") || code.contains("Malformed"));
    Some(elsewhere.map_or(code.clone(), |region| format!("{code}: the bucket is in the region {region}")))
}

/// Whether a server's word may stand in a message.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

/// First byte and total length of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}
