//! oned's XML-RPC API: one HTTP call per question (OpenNebula's public API reference, `one.*.info`).
//!
//! The session goes to the configured endpoint and nowhere else: redirects are not followed, proxies of the
//! environment are not used, and it is taken out of everything that comes back.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use quick_xml::escape::escape;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::{Cause, Object, Oned, OnedEnv, OnedError, reply};
use crate::exec::cmd::Secret;

/// See the module.
#[derive(Debug)]
pub struct XmlRpc {
    endpoint: Secret,
    /// The endpoint without user and password.
    shown: String,
    auth: Option<PathBuf>,
    connect_timeout: Duration,
    total_timeout: Duration,
    limit: usize,
}

impl XmlRpc {
    /// Asks this endpoint with the credentials and limits of `env`. The credentials are read when they are needed.
    #[must_use]
    pub fn new(endpoint: &str, env: &OnedEnv) -> Self {
        let home = || env.home.as_ref().map(|home| home.join(".one/one_auth"));
        Self {
            endpoint: Secret::new(endpoint),
            shown: without_user(endpoint),
            auth: env.auth.clone().or_else(home),
            connect_timeout: env.connect_timeout,
            total_timeout: env.total_timeout,
            limit: env.answer_limit,
        }
    }

    /// The session: first line of the credentials file.
    fn session(&self) -> Result<Secret, Cause> {
        let Some(path) = &self.auth else {
            return Err(Cause::NoCredentials("neither ONE_AUTH nor HOME is set".to_owned()));
        };
        let text = fs::read_to_string(path)
            .map_err(|e| Cause::NoCredentials(format!("cannot read {}: {e}", path.display())))?;
        match text.lines().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) if line.contains(':') => Ok(Secret::new(line)),
            _ => Err(Cause::NoCredentials(format!("{} does not hold user:password", path.display()))),
        }
    }

    fn ask(&self, object: Object) -> Result<String, Cause> {
        let session = self.session()?;
        let body = self.post(&request(object, &session))?;
        reply::read(&body).map_err(|cause| censor(cause, &session))
    }

    fn post(&self, body: &str) -> Result<String, Cause> {
        let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(self.connect_timeout))
            .timeout_global(Some(self.total_timeout))
            .user_agent(concat!("onestore/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let mut response = agent
            .post(self.endpoint.reveal())
            .header("Content-Type", "text/xml; charset=utf-8")
            .send(body)
            .map_err(|e| self.transport(e))?;
        if response.status() != 200 {
            return Err(Cause::Http(response.status().as_u16()));
        }
        let most = u64::try_from(self.limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut answer = Vec::new();
        let reader = response.body_mut().with_config().limit(u64::MAX).reader();
        reader.take(most).read_to_end(&mut answer).map_err(|e| self.transport(ureq::Error::from(e)))?;
        if answer.len() > self.limit {
            return Err(Cause::TooLarge { limit: self.limit });
        }
        String::from_utf8(answer).map_err(|_| Cause::BadReply("it is not UTF-8".to_owned()))
    }

    /// What went wrong below the API. The library's own texts may hold the URL, so few of them are passed on.
    fn transport(&self, error: ureq::Error) -> Cause {
        use std::io::ErrorKind as Kind;
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => Cause::Timeout(self.connect_timeout),
            ureq::Error::Timeout(_) => Cause::Timeout(self.total_timeout),
            ureq::Error::Io(e) => match e.kind() {
                Kind::ConnectionRefused => Cause::Refused,
                Kind::TimedOut | Kind::WouldBlock => Cause::Timeout(self.total_timeout),
                Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => {
                    Cause::BadReply("the connection was closed before its end".to_owned())
                }
                _ => Cause::Unreachable(e.to_string()),
            },
            ureq::Error::HostNotFound => Cause::Unreachable("no such host".to_owned()),
            ureq::Error::ConnectionFailed => Cause::Unreachable("no connection".to_owned()),
            ureq::Error::NativeTls(e) => Cause::Tls(e.to_string()),
            ureq::Error::Tls(text) => Cause::Tls(text.to_owned()),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Cause::Unreachable("this is no URL".to_owned()),
            ureq::Error::Protocol(e) => Cause::BadReply(e.to_string()),
            other => Cause::Unreachable(other.to_string()),
        }
    }
}

impl Oned for XmlRpc {
    fn xml(&self, object: Object) -> Result<String, OnedError> {
        self.ask(object).map_err(|cause| OnedError::new(self.place(), object, cause))
    }

    fn place(&self) -> String {
        format!("oned at {}", self.shown)
    }
}

/// The call's XML. Parameters after the session: the id, and whether encrypted attributes are wanted in clear, which
/// only a datastore's are here (07 §1).
fn request(object: Object, session: &Secret) -> String {
    let (method, id, decrypt) = match object {
        Object::Vm(id) => ("one.vm.info", Some(id), Some(0)),
        Object::Image(id) => ("one.image.info", Some(id), Some(0)),
        Object::Datastore(id) => ("one.datastore.info", Some(id), Some(1)),
        Object::Host(id) => ("one.host.info", Some(id), Some(0)),
        Object::HostPool => ("one.hostpool.info", None, None),
        Object::DatastorePool => ("one.datastorepool.info", None, None),
    };
    let param = |kind: &str, text: &str| format!("<param><value><{kind}>{text}</{kind}></value></param>");
    let mut params = param("string", &escape(session.reveal()));
    if let Some(id) = id {
        params += &param("int", &id.to_string());
    }
    if let Some(decrypt) = decrypt {
        params += &param("boolean", &decrypt.to_string());
    }
    format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"
    )
}

/// Takes the session, and the password alone, out of what oned said.
fn censor(cause: Cause, session: &Secret) -> Cause {
    let clean = |text: String| {
        let whole = session.reveal();
        let text = text.replace(whole, "***");
        match whole.split_once(':') {
            // A very short password would take ordinary words apart, and give itself away by where it did.
            Some((_, password)) if password.len() >= 4 => text.replace(password, "***"),
            _ => text,
        }
    };
    match cause {
        Cause::Denied { code, message } => Cause::Denied { code, message: clean(message) },
        Cause::Fault { code, message } => Cause::Fault { code, message: clean(message) },
        Cause::BadReply(text) => Cause::BadReply(clean(text)),
        other => other,
    }
}

/// The URL without user, password, query and fragment.
pub(super) fn without_user(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}
