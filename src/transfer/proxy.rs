//! Which proxy a download goes through: the variables that curl(1) knows.

use ureq::Proxy;

use super::url::Url;

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
