//! What must hold of what travels between a host and us, whatever arrives. See [`crate::fuzz`].

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::agent::{encode, read_script};
use super::cmd::Cmd;
use super::host::HostName;
use super::host::config::SshConfig;
use super::host::failure::{connection_failure, judge, without_noise};
use super::host::known_hosts::KnownKeys;
use super::host::wire::{DONE, Delivery, Incoming, MARK_LEN};
use super::op::{Op, Script, Value};
use super::posix;
use crate::fuzz::halves;

/// A script as it travels: what is sent arrives, as plain ASCII, and data without their end mark are an error.
pub fn wire(data: &[u8]) {
    let _ = read_script(&mut BufReader::new(data));
    if let Ok(script) = serde_json::from_slice::<Script>(data) {
        assert!(posix::render(&script).is_ascii());
        let delivery = Delivery::of(&script).expect("a script can be sent");
        let mut sent = BufReader::new(&delivery.head[..]);
        let (arrived, mark) = read_script(&mut sent).expect("a script that was sent arrives");
        assert_eq!((&arrived, &mark), (&script, &delivery.mark));
        assert_eq!(sent.bytes().count(), 0, "nothing of the script is taken for data");
        let cut = delivery.head.len() - 1;
        assert!(read_script(&mut BufReader::new(&delivery.head[..cut])).is_err(), "a part of it is none");
    }
    let mark = [b'm'; MARK_LEN];
    let mut arrived = Vec::new();
    let ended = Incoming::new(data, &mark).read_to_end(&mut arrived);
    assert_eq!(ended.is_ok(), data.ends_with(&mark), "only the mark ends the data");
    assert!(data.starts_with(&arrived) && ended.map_or(true, |len| len + MARK_LEN == data.len()));
}

/// One of every question, then each of them alone.
static QUESTIONS: LazyLock<(Script, Vec<Script>)> = LazyLock::new(|| {
    let path = || PathBuf::from("/a");
    let all = Script::new([
        Op::Stat { path: path(), follow: true },
        Op::ReadLink { path: path() },
        Op::List { path: path() },
        Op::Read { path: path(), offset: 0, len: 8 },
        Op::Head { path: path(), len: 8 },
        Op::Tree { path: path(), depth: 1 },
        Op::Space { path: path() },
        Op::TreeSize { path: path() },
        Op::Md5 { path: path() },
        Op::Run(Cmd::new("true")),
        Op::Sync { path: path() },
    ]);
    let each = all.ops.iter().cloned().map(Script::from).collect();
    (all, each)
});

/// Whether an operation may be answered like this.
fn fits(op: &Op, value: &Value) -> bool {
    match op {
        Op::Stat { .. } => matches!(value, Value::Stat(_) | Value::Absent),
        Op::ReadLink { .. } | Op::Head { .. } => matches!(value, Value::Bytes(_) | Value::Absent),
        Op::List { .. } => matches!(value, Value::Names(_) | Value::Absent),
        Op::Tree { .. } => matches!(value, Value::Tree(_) | Value::Absent),
        Op::Space { .. } => matches!(value, Value::Space(_)),
        Op::TreeSize { .. } | Op::Receive { .. } => matches!(value, Value::Number(_)),
        Op::Read { .. } | Op::Run(_) => matches!(value, Value::Bytes(_)),
        Op::Md5 { .. } => matches!(value, Value::Bytes(digest) if digest.len() == 32),
        _ => matches!(value, Value::Done),
    }
}

/// What a host answers: of the kind that was asked for, or refused; success only where it was said.
pub fn answers(data: &[u8]) {
    let (script, each) = &*QUESTIONS;
    if let Ok(values) = posix::parse(script, data) {
        assert_eq!(values.len(), script.ops.len());
        for (op, value) in script.ops.iter().zip(&values) {
            assert!(fits(op, value), "{op} is answered by {value:?}");
        }
        // Numbers of blocks that no file system has are cut the first time.
        let once = posix::parse(script, &encode(script, &values)).expect("what was read can be written");
        let twice = posix::parse(script, &encode(script, &once)).expect("and read again");
        assert_eq!(once, twice);
        assert_eq!(once.len(), values.len());
    }
    let line = [b"0 ", data, b"\nend\n"].concat();
    for one in each {
        if let Ok(values) = posix::parse(one, &line) {
            let op = &one.ops[0];
            assert!(values.iter().all(|value| fits(op, value)), "{op} is answered by {values:?}");
        }
    }
    let (out, err) = halves(data, 0);
    for status in [Some(0), Some(1), Some(74), Some(127), Some(255), None] {
        let text = String::from_utf8_lossy(err);
        let done = without_noise(err).lines().any(|line| line == DONE);
        match judge("node1", script, status, out, err) {
            Ok(_) => assert!(status == Some(0) && done, "{text:?}"),
            Err(error) => {
                let shown = crate::report::clean(&error.to_string());
                assert!(!shown.contains(['\n', '\r']) && shown.contains("node1"), "{shown}");
            }
        }
        assert!(connection_failure(status, &text).is_none() || status == Some(255));
        let _ = posix::failure(script, status, err).to_string();
    }
}

/// What ssh says of its configuration, and known hosts: a key is accepted only if it stands there, in time.
pub fn ssh(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let config = SshConfig::parse(&text);
    assert!(config.known_as().iter().all(|name| *name == name.to_ascii_lowercase()));
    let _ = (config.port(), config.beyond_libssh2(), config.control_path(), config.files("userknownhostsfile"));
    if let (Some(ciphers), Some(all)) = (config.bulk_ciphers(), config.get("ciphers")) {
        let sorted = |list: &str| {
            let mut names: Vec<String> = list.split(',').map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&ciphers), sorted(all), "ciphers are put in order, none is added");
    }
    for name in ["node1", "[node1]:2222", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        let keys = KnownKeys::parse(std::slice::from_ref(&text), name);
        assert!(keys.algorithms().iter().all(|name| text.contains(name) || text.contains("ssh-rsa")));
        assert!(text.contains("AAAA") || !keys.accepts(b"\0\0\0"));
    }
    if let Ok(host) = HostName::new(&text) {
        assert!(!host.as_str().starts_with('-') && !host.as_str().contains(char::is_whitespace));
        assert!(
            !Path::new(host.as_str()).components().any(|part| part == std::path::Component::ParentDir) || text == ".."
        );
    }
}
