//! oned's API for judged scripts that ask by XML-RPC: the objects of the case, and nothing that changes them.
//!
//! What the commands in the sandbox (`onevm show`, …) hand out is handed out here: `one.<kind>.info` answers with
//! `<kind>/<id>.xml`, `one.<kind>pool.info` with `<kind>pool.xml`. The answers have oned's shape: success, text, code.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;

use super::http::Listener;

/// Who calls, as the file that `ONE_AUTH` names says it.
pub const AUTH: &str = "oneadmin:conformance";

/// Longest request that is read, bytes.
const LONGEST: u64 = 1 << 20;

static METHOD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<methodName>one\.([a-z]+)\.info</methodName>").expect("the expression is constant"));
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<(?:i4|int)>([0-9]+)</(?:i4|int)>").expect("the expression is constant"));

/// A running stand-in. It stops when this is dropped.
pub struct Oned(Listener);

impl Oned {
    /// Serves the objects in this directory.
    ///
    /// Fails if there is no free port.
    pub fn start(objects: PathBuf) -> Result<Self> {
        Ok(Self(Listener::start(move |stream| serve(stream, &objects))?))
    }

    /// What `ONE_XMLRPC` has to say.
    pub fn endpoint(&self) -> String {
        format!("{}/RPC2", self.0.url)
    }
}

/// One request per connection.
fn serve(mut stream: TcpStream, objects: &Path) -> Result<()> {
    let body = answer(&request(&stream)?, objects);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset=utf-8\r\nConnection: close\r\nContent-Length:";
    Ok(write!(stream, "{head} {}\r\n\r\n{body}", body.len())?)
}

/// The body of a request.
fn request(stream: &TcpStream) -> Result<String> {
    let mut reader = BufReader::new(stream.take(LONGEST));
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().context("A bad length")?;
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    Ok(body)
}

/// What oned says to this request.
fn answer(request: &str, objects: &Path) -> String {
    let found = object(request).and_then(|name| fs::read_to_string(objects.join(name)).ok());
    let (done, text, code) = match &found {
        // oned sends no declaration and no end of line.
        Some(text) => (1, text.trim(), 0),
        None => (0, "Error getting the object", 0x400),
    };
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n\
         <value><boolean>{done}</boolean></value>\r\n<value><string>{text}</string></value>\r\n\
         <value><i4>{code}</i4></value>\r\n</data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n"
    )
}

/// The file of the object that is asked for.
fn object(request: &str) -> Option<String> {
    let kind = METHOD.captures(request)?.get(1)?.as_str();
    if kind.ends_with("pool") {
        return Some(format!("{kind}.xml"));
    }
    Some(format!("{kind}/{}.xml", NUMBER.captures(request)?.get(1)?.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{answer, object};

    fn call(method: &str, id: &str) -> String {
        format!(
            "<?xml version=\"1.0\" ?><methodCall><methodName>{method}</methodName><params><param><value><string>a:b\
             </string></value></param><param><value><i4>{id}</i4></value></param></params></methodCall>"
        )
    }

    #[test]
    fn requests_name_objects() {
        assert_eq!(object(&call("one.vm.info", "7")).as_deref(), Some("vm/7.xml"));
        assert_eq!(object(&call("one.datastorepool.info", "7")).as_deref(), Some("datastorepool.xml"));
        assert_eq!(object(&call("one.vm.action", "7")), None);
        assert_eq!(object(&call("one.vm.info", "../7")), None);
    }

    #[test]
    fn objects_are_handed_out_and_others_refused() {
        let dir = tempfile::tempdir().expect("makes");
        std::fs::create_dir(dir.path().join("vm")).expect("makes");
        std::fs::write(dir.path().join("vm/7.xml"), "<VM><NAME>a &amp; b</NAME></VM>\n").expect("writes");
        let text = answer(&call("one.vm.info", "7"), dir.path());
        let object = "<boolean>1</boolean></value>\r\n<value><string>&lt;VM&gt;&lt;NAME&gt;a &amp;amp; b&lt;/NAME&gt;&lt;/VM&gt;</string>";
        assert!(text.contains(object), "{text}");
        assert!(answer(&call("one.vm.info", "8"), dir.path()).contains("<boolean>0</boolean>"));
    }
}
