//! What must hold of addresses and quoted words, whatever they say. See [`crate::fuzz`].

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use super::url::{Url, redact};
use super::{helper, rbd, s3, ssh, word as words};
use crate::exec::cmd::Secret;
use crate::exec::quote::quote;
use crate::fuzz::halves;

/// The word that a shell would take these bytes for; nothing where it would do more with them.
pub(crate) fn unquote(text: &[u8]) -> Option<Vec<u8>> {
    words::unquote(text).ok()
}

/// One word of a shell: what is quoted comes back, and what comes back can be quoted.
pub fn word(data: &[u8]) {
    let plain: Vec<u8> = data.iter().copied().filter(|byte| byte.is_ascii() && *byte != 0).collect();
    assert_eq!(words::unquote(quote(OsStr::from_bytes(&plain)).as_bytes()).as_ref(), Ok(&plain));
    if let Ok(found) = words::unquote(data) {
        assert!(found.len() <= data.len());
        let single = found.iter().flat_map(|byte| match byte {
            b'\'' => br"'\''".to_vec(),
            byte => vec![*byte],
        });
        let again: Vec<u8> = [b'\''].into_iter().chain(single).chain([b'\'']).collect();
        assert_eq!(words::unquote(&again), Ok(found));
    }
}

/// http addresses: what is asked for is plain, what is shown holds no secret, and a login goes to nobody else.
pub fn url(data: &[u8]) {
    let (first, second) = halves(data, 0);
    let (first, second) = (String::from_utf8_lossy(first), String::from_utf8_lossy(second));
    if let Some(url) = Url::parse(&first) {
        assert!(matches!(url.scheme(), "http" | "https") && !url.host().is_empty(), "{url:?}");
        let request = url.request();
        assert!(request.bytes().all(|byte| byte.is_ascii_graphic()), "{request}");
        assert!(request.starts_with(&format!("{}/", url.origin())) && !url.origin().contains(['@', '?', '#']));
        let again = Url::parse(&request).expect("what is asked for is an address");
        assert_eq!((again.request(), again.login().is_none()), (request, true));
        assert!(!url.shown().contains('?') && format!("{url:?}") == url.shown());
        if let Some(there) = url.join(&second) {
            assert!(matches!(there.scheme(), "http" | "https"));
            let elsewhere = !there.origin().eq_ignore_ascii_case(&url.origin());
            assert!(!elsewhere || second.contains('@') || there.login().is_none(), "{there:?}");
        }
    }
    // A password in a place where addresses have one.
    let plain: String = first.chars().filter(|c| !"/?#".contains(*c)).collect();
    let shown = redact(&format!("http://{plain}:c4n4ry@{second}?c4n4ry"));
    let elsewhere = second.split(['?', '#']).next().unwrap_or("").contains("c4n4ry");
    assert!(elsewhere || !shown.contains("c4n4ry"), "{shown}");
    assert!(!shown.contains(char::is_control), "{shown:?}");
}

/// `ssh://`, `rbd://`, `s3://` and those of the operator's programs: nothing becomes an option or another place.
pub fn location(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let text = &*text;
    ssh::fuzz(text);
    if let Some(export) = rbd::Export::parse(text) {
        let command = export.command();
        let args: Vec<&str> = command.args.iter().filter_map(|arg| arg.to_str()).collect();
        let plain = |arg: &str| arg.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+@:/".contains(&byte));
        assert!(args.iter().all(|arg| plain(arg)) && args.ends_with(&["-"]), "{args:?}");
        let known = ["--id", "--keyfile", "--conf", "-"];
        assert!(args.iter().all(|arg| !arg.starts_with('-') || known.contains(arg)), "{args:?}");
        let image = args[args.len() - 2];
        assert!(text.contains(image) && image.contains('/') && args[args.len() - 3] == "export", "{args:?}");
    }
    let keys = |style| s3::Settings {
        access_key: Some(Secret::new("AKIA")),
        secret_key: Some(Secret::new("c4n4ry")),
        endpoint: Some("http://store.example:9000/base".to_owned()),
        style,
        ..s3::Settings::default()
    };
    for style in [s3::Style::Path, s3::Style::VirtualHost, s3::Style::Auto] {
        let Ok(request) = s3::request(text, &keys(style)) else { continue };
        let url = &request.url;
        assert!(url.authority() == "store.example:9000" || url.authority().ends_with(".store.example:9000"), "{url:?}");
        assert!(url.path().starts_with("/base/") && !url.has_query() && url.login().is_none(), "{url:?}");
        assert!(!url.path().split('/').any(|part| matches!(part, "." | "..")), "{url:?}");
        let (_, named) = text.split_once("://").expect("an address");
        let (bucket, key) = named.split_once('/').expect("bucket and key");
        let path = super::url::unescape(url.path().strip_prefix("/base/").unwrap_or_default());
        let host = url.host().strip_suffix(".store.example").unwrap_or_default();
        let whole = if host.is_empty() { path } else { [host.as_bytes(), b"/", &path].concat() };
        assert_eq!(whole, [bucket.as_bytes(), b"/", key.as_bytes()].concat(), "{url:?}");
    }
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    for scheme in ["lxd", "restic", "onebex"] {
        if helper::is_plain(scheme, rest) {
            let address = rest.split('?').next().unwrap_or_default();
            assert!(rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:/@+,-?=&".contains(&byte)), "{rest}");
            assert!(
                !rest.starts_with('-')
                    && !["/-", "@-", ":-", ",-"].iter().any(|mark| address.contains(mark))
                    && !rest.contains("=-")
            );
        }
    }
}
