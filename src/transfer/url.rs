//! Addresses of http and https as users write them: taken apart, made valid, and shown without their secrets.

use std::fmt::Write as _;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::exec::cmd::Secret;

/// An http or https address. `Debug` and [`Url::shown`] keep the login and the query back: signatures live there.
#[derive(Clone)]
pub(super) struct Url {
    /// `http` or `https`.
    scheme: &'static str,
    /// Host, and port where one is given.
    authority: String,
    /// Begins with a slash.
    path: String,
    query: Option<Secret>,
    login: Option<Secret>,
}

impl Url {
    /// Takes an address apart; nothing where it is none, or of another scheme.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = split_scheme(text)?;
        let scheme = if scheme.eq_ignore_ascii_case("http") {
            "http"
        } else if scheme.eq_ignore_ascii_case("https") {
            "https"
        } else {
            return None;
        };
        let rest = rest.split('#').next().unwrap_or("");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (login, authority) = match authority.rsplit_once('@') {
            Some((login, authority)) => (Some(basic(login)), authority),
            None => (None, authority),
        };
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte);
        if authority.is_empty() || authority.starts_with(':') || !authority.bytes().all(valid) {
            return None;
        }
        // An IPv6 address has both of its brackets, and something between them.
        if authority.strip_prefix('[').is_some_and(|rest| rest.split_once(']').is_none_or(|(host, _)| host.is_empty()))
        {
            return None;
        }
        let (path, query) = match tail.split_once('?') {
            Some((path, query)) => (path, Some(Secret::new(escape(query)))),
            None => (tail, None),
        };
        let path = if path.is_empty() { "/".to_owned() } else { escape(path) };
        Some(Self { scheme, authority: authority.to_owned(), path, query, login })
    }

    /// Where a `Location` leads, seen from here; nothing where that is no http or https address.
    ///
    /// The login goes along to the same scheme, host and port only.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        let absolute = if split_scheme(location).is_some() {
            location.to_owned()
        } else if let Some(rest) = location.strip_prefix("//") {
            format!("{}://{rest}", self.scheme)
        } else if location.starts_with('/') {
            format!("{}://{}{location}", self.scheme, self.authority)
        } else if location.starts_with('?') {
            format!("{}://{}{}{location}", self.scheme, self.authority, self.path)
        } else {
            let folder = &self.path[..=self.path.rfind('/').unwrap_or(0)];
            format!("{}://{}{folder}{location}", self.scheme, self.authority)
        };
        let mut url = Self::parse(&absolute)?;
        if url.login.is_none() && url.scheme == self.scheme && url.authority.eq_ignore_ascii_case(&self.authority) {
            url.login.clone_from(&self.login);
        }
        Some(url)
    }

    /// The address to ask for, without the login.
    pub(super) fn request(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{}", query.reveal())).unwrap_or_default();
        format!("{}{query}", self.base())
    }

    /// Scheme, host and port.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// The value of an `Authorization` header.
    pub(super) fn login(&self) -> Option<&Secret> {
        self.login.as_ref()
    }

    /// `http` or `https`.
    pub(super) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The host without port and brackets.
    pub(super) fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.authority.split(':').next().unwrap_or(""),
        }
    }

    /// Host and port as they are sent.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The path as it is sent.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether there is a query.
    pub(super) fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// For people: without login and query.
    pub(super) fn shown(&self) -> String {
        self.base()
    }

    fn base(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }
}

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.base())
    }
}

/// The scheme of an address, and what follows `://`. RFC 3986 §3.1.
pub(super) fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(valid)).then_some((scheme, rest))
}

/// Any address for people: without login, query and control characters.
#[must_use]
pub(super) fn redact(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or("");
    let shown = match split_scheme(text) {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let host = rest[..end].rsplit('@').next().unwrap_or("");
            format!("{scheme}://{host}{}", &rest[end..])
        }
        None => text.to_owned(),
    };
    shown.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `Basic …` from `user:password`, which may be percent-encoded. RFC 7617.
fn basic(login: &str) -> Secret {
    let plain = unescape(login);
    let plain = if plain.contains(&b':') { plain } else { [&plain[..], b":"].concat() };
    Secret::new(format!("Basic {}", BASE64_STANDARD.encode(plain)))
}

pub(super) fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = (byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let value = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        out.push(value.unwrap_or(byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    out
}

/// Percent-encodes what may not stand in an address, and leaves alone what is encoded already.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        let url = Url::parse("HTTPS://us%40er:p:w@host.example:8443/a b/ü?sig=x y#frag").unwrap();
        assert_eq!(url.request(), "https://host.example:8443/a%20b/%C3%BC?sig=x%20y");
        assert_eq!(url.shown(), "https://host.example:8443/a%20b/%C3%BC");
        assert_eq!(url.login().unwrap().reveal(), format!("Basic {}", BASE64_STANDARD.encode("us@er:p:w")));
        assert_eq!(url.host(), "host.example");
        assert_eq!(Url::parse("http://[::1]:80").unwrap().host(), "::1");
        let debug = format!("{url:?}");
        assert!(!debug.contains("p:w") && !debug.contains("sig"), "{debug}");
        for text in [
            "",
            "host/x",
            "ftp://host/x",
            "http://",
            "http://:80/",
            "http://ho st/",
            "http:///x",
            "http:/x",
            "http://[/",
            "http://[]:1/",
            "http://[::1",
        ] {
            assert!(Url::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn redirects_are_resolved() {
        let url = Url::parse("http://u:p@host/a/b?q").unwrap();
        let cases = [
            ("https://other/x", "https://other/x", false),
            ("//other/x", "http://other/x", false),
            ("/x", "http://host/x", true),
            ("c/d?e", "http://host/a/c/d?e", true),
            ("?e", "http://host/a/b?e", true),
            ("http://host:81/", "http://host:81/", false),
        ];
        for (location, request, login) in cases {
            let target = url.join(location).unwrap();
            assert_eq!((target.request().as_str(), target.login().is_some()), (request, login), "{location}");
        }
        for location in ["file:///etc/passwd", "ftp://host/x", "gopher://host"] {
            assert!(url.join(location).is_none(), "{location}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(redact("s3://key:secret@host/x?sig=1"), "s3://host/x");
        assert_eq!(redact("/some\n/path"), "/some?/path");
    }
}
