//! Which proxy a download goes through: the variables that curl(1) knows.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Proxy, ProxyProtocol};

use super::url::Url;
use super::watch::Forward;
use crate::exec::cmd::Secret;

/// Where the proxy comes from.
#[derive(Clone, Debug)]
pub enum ProxyChoice {
    /// `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, as curl reads them.
    Environment,
    /// None, whatever the environment says.
    Direct,
    /// This one for every address, whatever the environment says: `http://host:port`.
    Fixed(String),
}

impl ProxyChoice {
    /// The proxy for an address; its text where that is no proxy.
    pub(super) fn resolve(&self, url: &Url) -> Result<Option<Proxy>, String> {
        match self {
            Self::Direct => Ok(None),
            Self::Environment => choose(url, |name| std::env::var(name).ok()).map(parse).transpose(),
            Self::Fixed(text) => parse(text.clone()).map(Some),
        }
    }
}

fn parse(text: String) -> Result<Proxy, String> {
    Proxy::new(&text).map_err(|_| text)
}

/// Finds the proxy, whatever server is asked for: the request goes there and names the server.
#[derive(Debug)]
pub(super) struct Via(Proxy);

impl Via {
    /// For an http address behind an http proxy, which need not tunnel for us: many refuse to. Others are left to ureq.
    pub(super) fn forward(proxy: &Proxy, url: &Url) -> Option<(Self, Forward)> {
        if url.scheme() != "http" || proxy.protocol() != ProxyProtocol::Http {
            return None;
        }
        let login = proxy.username().map(|user| format!("{user}:{}", proxy.password().unwrap_or_default()));
        let login = login.map(|login| Secret::new(format!("Basic {}", BASE64_STANDARD.encode(login))));
        Some((Self(proxy.clone()), Forward { origin: url.origin(), login }))
    }
}

impl Resolver for Via {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(self.0.uri(), config, timeout)
    }
}

/// Picks the variable. `HTTP_PROXY` is left out as in curl: a CGI script's client can set it.
fn choose(url: &Url, lookup: impl Fn(&str) -> Option<String>) -> Option<String> {
    let any = |names: &[&str]| names.iter().find_map(|name| lookup(name)).filter(|value| !value.is_empty());
    if any(&["no_proxy", "NO_PROXY"]).is_some_and(|list| excludes(&list, url.host())) {
        return None;
    }
    let own = match url.scheme() {
        "https" => any(&["https_proxy", "HTTPS_PROXY"]),
        _ => any(&["http_proxy"]),
    };
    own.or_else(|| any(&["all_proxy", "ALL_PROXY"]))
}

/// Whether a host is in a `no_proxy` list: itself, a domain it is in, or `*`.
fn excludes(list: &str, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    list.split([',', ' ']).map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(
        |entry| {
            let domain = entry.trim_start_matches('.');
            entry == "*" || host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_curl_are_obeyed() {
        let env = |name: &str| match name {
            "http_proxy" => Some("http://a:1".to_owned()),
            "HTTPS_PROXY" => Some("http://b:2".to_owned()),
            "no_proxy" => Some("localhost, .internal,example.org".to_owned()),
            _ => None,
        };
        let cases = [
            ("http://host/", Some("http://a:1")),
            ("https://host/", Some("http://b:2")),
            ("http://localhost/", None),
            ("http://a.internal/", None),
            ("http://www.Example.org/", None),
            ("http://myexample.org/", Some("http://a:1")),
        ];
        for (url, proxy) in cases {
            assert_eq!(choose(&Url::parse(url).unwrap(), env).as_deref(), proxy, "{url}");
        }
        let all = |name: &str| (name == "all_proxy" || name == "HTTP_PROXY").then(|| format!("http://{name}"));
        assert_eq!(choose(&Url::parse("http://host/").unwrap(), all).as_deref(), Some("http://all_proxy"));
    }
}
