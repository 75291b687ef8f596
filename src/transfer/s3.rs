//! Objects of S3 and of services that speak its protocol: `s3://bucket/nested/key` becomes one signed GET.
//!
//! Contract 03 §2. Upstream takes the last two parts of the address for bucket and key, signs by hand for Amazon and
//! leaves the rest to curl. We: the first part is the bucket, everything behind it the key, letter by letter; every
//! request is signed anew, so that a resumed download outlives its first signature.

use std::net::Ipv6Addr;
use std::time::SystemTime;

use ureq::http::HeaderName;
use ureq::http::header::AUTHORIZATION;

use super::http::Proof;
use super::sigv4::{EMPTY_BODY, Message, Signer, encode_path, stamp};
use super::url::{Url, redact, split_scheme};
use crate::exec::cmd::Secret;

/// Longest key in bytes, by the S3 user guide.
const LONGEST_KEY: usize = 1024;

/// Whose objects may be read, and where they are.
///
/// `Debug` shows no key.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Public part of the key.
    pub access_key: Option<Secret>,
    /// Secret part of the key.
    pub secret_key: Option<Secret>,
    /// Token that goes with temporary keys.
    pub session_token: Option<Secret>,
    /// The region that requests are signed for; `us-east-1` where there is none.
    pub region: Option<String>,
    /// `http://host:port` or `https://host`; Amazon's of the region where there is none.
    pub endpoint: Option<String>,
    /// Whether it is another service than Amazon's (`AWS=no`), so that there has to be an endpoint.
    pub foreign: bool,
    /// How the bucket is named.
    pub style: Style,
}

/// Where a request names its bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// In the host name on Amazon's hosts, if it can be part of one, else in the path.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`
    Path,
    /// `https://bucket.endpoint/key`
    VirtualHost,
}

impl Settings {
    /// What the environment says, in the variables that the tools of the field know.
    #[must_use]
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let get = |names: &[&str]| names.iter().find_map(|name| env(name).filter(|value| !value.trim().is_empty()));
        let style = match get(&["ONESTORE_S3_PATH_STYLE"]) {
            Some(word) => Style::forced(&word),
            None => Style::Auto,
        };
        Self {
            access_key: get(&["AWS_ACCESS_KEY_ID"]).map(Secret::new),
            secret_key: get(&["AWS_SECRET_ACCESS_KEY"]).map(Secret::new),
            session_token: get(&["AWS_SESSION_TOKEN"]).map(Secret::new),
            region: get(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
            endpoint: get(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
            foreign: false,
            style,
        }
    }
}

impl Style {
    /// What a word says to "path style?": `yes`, `no`, anything else is no answer.
    #[must_use]
    pub fn forced(word: &str) -> Self {
        match word.trim().to_ascii_lowercase().as_str() {
            "yes" | "true" | "1" => Self::Path,
            "no" | "false" | "0" => Self::VirtualHost,
            _ => Self::Auto,
        }
    }
}

/// Why an object cannot be asked for. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read from {location}: {reason}")]
pub struct S3Error {
    /// The location, without secrets.
    location: String,
    reason: Reason,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("an S3 address is s3://BUCKET/KEY")]
    Address,
    #[error("the bucket's name may have letters, digits and . - _ only")]
    Bucket,
    #[error("the key is longer than {LONGEST_KEY} bytes")]
    TooLong,
    #[error("the key has a part '.' or '..' or a control character")]
    Key,
    /// Upstream's sentence.
    #[error("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY are required")]
    NoKeys,
    #[error("{0} has a character that none can have")]
    Setting(&'static str),
    #[error("AWS=no needs an ENDPOINT")]
    NoEndpoint,
    #[error("the ENDPOINT has to be http://HOST or https://HOST, without login and query")]
    Endpoint,
}

/// The parts of `s3://bucket/nested/key`, the key as it is.
fn parts(location: &str) -> Result<(&str, &str), Reason> {
    let (_, rest) = split_scheme(location).ok_or(Reason::Address)?;
    let (bucket, key) = rest.split_once('/').ok_or(Reason::Address)?;
    if bucket.is_empty() || key.is_empty() {
        return Err(Reason::Address);
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let begins = bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
    if bucket.len() > 255 || !begins || !bucket.bytes().all(good) || bucket.contains("..") {
        return Err(Reason::Bucket);
    }
    if key.len() > LONGEST_KEY {
        return Err(Reason::TooLong);
    }
    // A proxy or server may resolve dots, and then the signature is another path's.
    if key.split('/').any(|part| matches!(part, "." | "..")) || key.chars().any(char::is_control) {
        return Err(Reason::Key);
    }
    Ok((bucket, key))
}

/// A signed GET, ready to be sent as often as it takes.
pub(super) struct Request {
    pub(super) url: Url,
    pub(super) proof: Signed,
}

/// Makes the request for an address.
///
/// # Errors
/// [`S3Error`]: the address, the keys or the endpoint are not usable.
pub(super) fn request(location: &str, settings: &Settings) -> Result<Request, S3Error> {
    make(location, settings).map_err(|reason| S3Error { location: redact(location), reason })
}

fn make(location: &str, settings: &Settings) -> Result<Request, Reason> {
    let (bucket, key) = parts(location)?;
    let (Some(access), Some(secret)) = (&settings.access_key, &settings.secret_key) else {
        return Err(Reason::NoKeys);
    };
    let region = settings.region.as_deref().map_or("us-east-1", str::trim);
    let word = |text: &str, but: &[u8]| text.bytes().all(|byte| byte.is_ascii_graphic() && !but.contains(&byte));
    let token = settings.session_token.as_ref();
    let access_key = access.reveal().trim();
    for (good, name) in [
        (word(access_key, b",/"), "The access key"),
        (token.is_none_or(|token| word(token.reveal(), b"")), "The session token"),
        (region.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "REGION"),
    ] {
        if !good {
            return Err(Reason::Setting(name));
        }
    }
    let endpoint = match &settings.endpoint {
        Some(text) => Endpoint::parse(text.trim()).ok_or(Reason::Endpoint)?,
        None if settings.foreign => return Err(Reason::NoEndpoint),
        None => Endpoint { scheme: "https", authority: format!("s3.{region}.{AMAZON}"), folder: String::new() },
    };
    let url = endpoint.url(bucket, key, settings).ok_or(Reason::Endpoint)?;
    let signer = Signer {
        access_key: access_key.to_owned(),
        secret_key: Secret::new(secret.reveal().trim()),
        region: region.to_owned(),
        service: "s3",
    };
    let proof = Signed { signer, token: token.cloned(), bucket: bucket.to_owned(), path: url.path().to_owned() };
    Ok(Request { url, proof })
}

/// The domain of Amazon's hosts; there is a second one in China.
const AMAZON: &str = "amazonaws.com";

/// Where a service listens.
struct Endpoint {
    scheme: &'static str,
    /// Host, and port where it is not that of the scheme.
    authority: String,
    /// What stands before every path, without a slash at its end.
    folder: String,
}

impl Endpoint {
    fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text)?;
        if url.login().is_some() || text.contains(['?', '#', '@', '%']) {
            return None;
        }
        let usual = if url.scheme() == "http" { ":80" } else { ":443" };
        // What is signed has to be what the client sends as the host.
        let authority = url.authority().to_ascii_lowercase();
        let authority = authority.strip_suffix(usual).unwrap_or(&authority).to_owned();
        Some(Self { scheme: url.scheme(), authority, folder: url.path().trim_end_matches('/').to_owned() })
    }

    fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.authority.split(':').next().unwrap_or(""),
        }
    }

    /// Address of an object.
    fn url(&self, bucket: &str, key: &str, settings: &Settings) -> Option<Url> {
        let host = self.host();
        let is_address = host.parse::<Ipv6Addr>().is_ok() || host.parse::<std::net::Ipv4Addr>().is_ok();
        let virtual_host = match settings.style {
            Style::Path => false,
            // No name can stand before an address.
            Style::VirtualHost => !is_address && is_label(bucket, true),
            // A certificate for `*.host` covers no name with another dot.
            Style::Auto => is_amazon(host) && !settings.foreign && is_label(bucket, false),
        };
        let Self { scheme, authority, folder } = self;
        let text = if virtual_host {
            format!("{scheme}://{bucket}.{authority}{folder}{}", encode_path(&format!("/{key}")))
        } else {
            format!("{scheme}://{authority}{folder}{}", encode_path(&format!("/{bucket}/{key}")))
        };
        Url::parse(&text)
    }
}

/// Whether a bucket's name can begin a host name; with `dots` as several labels.
fn is_label(bucket: &str, dots: bool) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || (dots && byte == b'.');
    bucket.len() <= 63 && bucket.bytes().all(good) && !bucket.ends_with(['-', '.'])
}

fn is_amazon(host: &str) -> bool {
    let within = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    within(AMAZON) || within("amazonaws.com.cn")
}

/// Signs requests for one object.
#[derive(Debug)]
pub(super) struct Signed {
    signer: Signer,
    token: Option<Secret>,
    bucket: String,
    path: String,
}

impl Signed {
    fn headers_at(&self, url: &Url, stamp: &str) -> Vec<(HeaderName, Secret)> {
        let mut signed = vec![("host", url.authority()), ("x-amz-content-sha256", EMPTY_BODY), ("x-amz-date", stamp)];
        signed.extend(self.token.as_ref().map(|token| ("x-amz-security-token", token.reveal())));
        let message = Message { method: "GET", path: url.path(), query: "", headers: &signed, body: EMPTY_BODY };
        let authorization = self.signer.authorization(&message, stamp);
        let own = signed.iter().skip(1).map(|(name, value)| (HeaderName::from_static(name), Secret::new(*value)));
        own.chain([(AUTHORIZATION, authorization)]).collect()
    }
}

impl Proof for Signed {
    fn headers(&self, url: &Url) -> Vec<(HeaderName, Secret)> {
        self.headers_at(url, &stamp(SystemTime::now()))
    }

    /// To the same object on the same host, or on another of Amazon's for the same bucket; never away from TLS.
    fn may_follow(&self, from: &Url, to: &Url) -> bool {
        if to.path() != self.path || to.has_query() || to.login().is_some() {
            return false;
        }
        if to.scheme() == from.scheme() && to.authority().eq_ignore_ascii_case(from.authority()) {
            return true;
        }
        let (here, there) = (from.host().to_ascii_lowercase(), to.authority().to_ascii_lowercase());
        let of_bucket = |host: &str| {
            let rest = host.strip_prefix(&self.bucket).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| rest.starts_with("s3.") || rest.starts_with("s3-"))
        };
        to.scheme() == "https" && is_amazon(&here) && is_amazon(&there) && of_bucket(&here) && of_bucket(&there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            access_key: Some(Secret::new("AKID")),
            secret_key: Some(Secret::new("canary-secret")),
            ..Settings::default()
        }
    }

    fn url(location: &str, change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        request(location, &settings).map_or_else(|error| error.to_string(), |request| request.url.request())
    }

    fn endpoint(text: &str) -> impl FnOnce(&mut Settings) + use<> {
        let text = text.to_owned();
        move |settings| settings.endpoint = Some(text)
    }

    #[test]
    fn amazon_takes_the_bucket_in_the_host_name() {
        assert_eq!(url("s3://images/a/b c", |_| ()), "https://images.s3.us-east-1.amazonaws.com/a/b%20c");
        let region = |settings: &mut Settings| settings.region = Some("eu-west-1".to_owned());
        assert_eq!(url("S3://images/a", region), "https://images.s3.eu-west-1.amazonaws.com/a");
        assert_eq!(url("s3://my.images/a", region), "https://s3.eu-west-1.amazonaws.com/my.images/a");
        assert_eq!(url("s3://Old_Images/a", region), "https://s3.eu-west-1.amazonaws.com/Old_Images/a");
        let path = |settings: &mut Settings| settings.style = Style::Path;
        assert_eq!(url("s3://images/a", path), "https://s3.us-east-1.amazonaws.com/images/a");
        let dual = endpoint("https://s3.dualstack.eu-west-1.amazonaws.com");
        assert_eq!(url("s3://images/a", dual), "https://images.s3.dualstack.eu-west-1.amazonaws.com/a");
    }

    #[test]
    fn other_services_take_it_in_the_path_unless_told_otherwise() {
        assert_eq!(url("s3://images/a/b", endpoint("http://MINIO:9000/")), "http://minio:9000/images/a/b");
        assert_eq!(url("s3://i/a", endpoint("https://h:443/s3")), "https://h/s3/i/a");
        let hosted = |text: &str| {
            let set = endpoint(text);
            move |settings: &mut Settings| {
                set(settings);
                settings.style = Style::VirtualHost;
            }
        };
        assert_eq!(url("s3://my.images/a", hosted("https://h:8443")), "https://my.images.h:8443/a");
        assert_eq!(url("s3://images/a", hosted("http://127.0.0.1:9000")), "http://127.0.0.1:9000/images/a");
        assert_eq!(url("s3://images/a", hosted("http://[::1]:9000")), "http://[::1]:9000/images/a");
        let foreign = |settings: &mut Settings| settings.foreign = true;
        assert_eq!(url("s3://images/a", foreign), "Cannot read from s3://images/a: AWS=no needs an ENDPOINT");
        for bad in ["minio:9000", "ftp://h", "http://u:canary@h", "http://h/?x=canary", "http://", "https://h/%2e"] {
            let text = url("s3://images/a", endpoint(bad));
            assert!(text.contains("the ENDPOINT has to be") && !text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn keys_are_letter_by_letter() {
        let key = |key: &str| {
            let text = url(&format!("s3://b/{key}"), endpoint("http://h"));
            text.strip_prefix("http://h/b/").map_or(text.clone(), str::to_owned)
        };
        assert_eq!(key("a+b"), "a%2Bb");
        assert_eq!(key("100%"), "100%25");
        assert_eq!(key("a%20b"), "a%2520b");
        assert_eq!(key("ü/é x"), "%C3%BC/%C3%A9%20x");
        assert_eq!(key("/lead//x/"), "/lead//x/");
        assert_eq!(key("a?b#c&d=e:f@g"), "a%3Fb%23c%26d%3De%3Af%40g");
        assert_eq!(key("..a/b..c/...").as_str(), "..a/b..c/...");
    }

    #[test]
    fn hostile_addresses_are_refused() {
        for (location, reason) in [
            ("s3://", Reason::Address),
            ("s3:///key", Reason::Address),
            ("s3://bucket", Reason::Address),
            ("s3://bucket/", Reason::Address),
            ("s3://b/../x", Reason::Key),
            ("s3://b/a/..", Reason::Key),
            ("s3://b/./x", Reason::Key),
            ("s3://b/a\nHost: x", Reason::Key),
            ("s3://b/a\0", Reason::Key),
            ("s3://b/\u{85}", Reason::Key),
            ("s3://key:secret@bucket/x", Reason::Bucket),
            ("s3://b c/x", Reason::Bucket),
            ("s3://-b/x", Reason::Bucket),
            ("s3://../x", Reason::Bucket),
            ("s3://b..c/x", Reason::Bucket),
            ("s3://b\r\nx/x", Reason::Bucket),
            ("s3://bü/x", Reason::Bucket),
            ("s3://b?x/y", Reason::Bucket),
        ] {
            assert_eq!(parts(location), Err(reason), "{location:?}");
        }
        assert_eq!(parts(&format!("s3://b/{}", "x".repeat(1025))), Err(Reason::TooLong));
        let text = url("s3://key:secret@bucket/x", |_| ());
        assert!(text.starts_with("Cannot read from s3://bucket/x: ") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn keys_are_required_and_what_they_are_made_of_is_checked() {
        let none = "Cannot read from s3://b/k: S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY are required";
        assert_eq!(url("s3://b/k", |settings| settings.secret_key = None), none);
        assert_eq!(url("s3://b/k", |settings| settings.access_key = None), none);
        for change in [
            (|s| s.access_key = Some(Secret::new("canary\r\nX: y"))) as fn(&mut Settings),
            |s| s.session_token = Some(Secret::new("canary x")),
            |s| s.region = Some("evil.example/".to_owned()),
            |s| s.region = Some("a/b".to_owned()),
        ] {
            let text = url("s3://b/k", change);
            assert!(text.ends_with("has a character that none can have") && !text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn the_environment_is_read_as_the_tools_of_the_field_read_it() {
        let settings = Settings::from_env(|name| match name {
            "AWS_ACCESS_KEY_ID" => Some("AK".to_owned()),
            "AWS_SECRET_ACCESS_KEY" | "AWS_SESSION_TOKEN" => Some("canary".to_owned()),
            "AWS_DEFAULT_REGION" => Some("eu-north-1".to_owned()),
            "AWS_ENDPOINT_URL" => Some("http://h:9000".to_owned()),
            "AWS_REGION" => Some(" ".to_owned()),
            "ONESTORE_S3_PATH_STYLE" => Some("no".to_owned()),
            _ => None,
        });
        assert_eq!(settings.region.as_deref(), Some("eu-north-1"));
        assert_eq!(settings.style, Style::VirtualHost);
        assert!(settings.session_token.is_some() && settings.secret_key.is_some());
        assert!(!format!("{settings:?}").contains("canary"));
    }

    #[test]
    fn the_token_is_signed_and_nothing_is_shown() {
        let settings = Settings { session_token: Some(Secret::new("canary-token")), ..settings() };
        let request = request("s3://images/a b", &settings).expect("a request");
        let headers = request.proof.headers_at(&request.url, "20130524T000000Z");
        let value = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.reveal().to_owned());
        assert_eq!(value("x-amz-security-token").as_deref(), Some("canary-token"));
        assert_eq!(value("x-amz-date").as_deref(), Some("20130524T000000Z"));
        let authorization = value("authorization").expect("signed");
        assert!(authorization.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"));
        assert!(!authorization.contains("canary"));
        let shown = format!("{headers:?} {:?} {:?}", request.proof, request.url);
        assert!(!shown.contains("canary") && !shown.contains("Signature="), "{shown}");
    }

    #[test]
    fn redirects_are_followed_within_the_bucket_s_hosts_only() {
        let request = request("s3://images/a/b", &settings()).expect("a request");
        let may = |target: &str| request.url.join(target).is_some_and(|to| request.proof.may_follow(&request.url, &to));
        assert!(may("https://images.s3.eu-west-1.amazonaws.com/a/b"));
        assert!(may("https://images.s3-eu-west-1.amazonaws.com/a/b"));
        assert!(may("/a/b"));
        for target in [
            "https://images.s3.eu-west-1.amazonaws.com/a/c",
            "https://images.s3.eu-west-1.amazonaws.com/a/b?x=1",
            "http://images.s3.eu-west-1.amazonaws.com/a/b",
            "https://other.s3.eu-west-1.amazonaws.com/a/b",
            "https://images.evil.amazonaws.com/a/b",
            "https://images.s3.evilamazonaws.com/a/b",
            "https://images.s3.amazonaws.com.evil.example/a/b",
            "https://images.s3.eu-west-1.amazonaws.com:8443/a/b",
            "https://u:p@images.s3.eu-west-1.amazonaws.com/a/b",
            "https://evil.example/a/b",
            "http://images.s3.us-east-1.amazonaws.com/a/b",
        ] {
            assert!(!may(target), "{target}");
        }
        let own = Settings { endpoint: Some("http://h:9000".to_owned()), ..settings() };
        let own = super::request("s3://images/a", &own).expect("a request");
        let may = |target: &str| own.url.join(target).is_some_and(|to| own.proof.may_follow(&own.url, &to));
        assert!(may("http://h:9000/images/a"));
        assert!(!may("http://h:9001/images/a") && !may("https://images.s3.amazonaws.com/images/a"));
    }
}
