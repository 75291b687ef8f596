//! `rbd://[user@]host/pool/image?CEPH_USER=&CEPH_KEY=&CEPH_CONF=`: the image that `rbd export` gives on another host.
//!
//! Source: contract 03 §2. The seam for the Ceph family: [`Export::command`] is all that knows `rbd`.

use std::ffi::OsStr;
use std::io;

use super::url::redact;
use crate::exec::cmd::Cmd;
use crate::exec::control::Control;
use crate::exec::host::HostName;
use crate::exec::process::{self, ProcessIo, Programs, Spawn, Stdin, Stdout};
use crate::exec::quote::quote;
use crate::exec::relay::Relay;

/// An image of a Ceph cluster, and the host that can reach it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Export {
    host: HostName,
    /// `pool/image`, perhaps with `@snapshot`.
    image: String,
    user: Option<String>,
    keyfile: Option<String>,
    conf: Option<String>,
}

impl Export {
    /// Takes an address apart; nothing where a part may be taken for something else, as an option or another image.
    pub(super) fn parse(location: &str) -> Option<Self> {
        let (_, rest) = super::url::split_scheme(location)?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, image) = address.split_once('/')?;
        let image = image.trim_start_matches('/');
        let (pool, name) = image.split_once('/')?;
        let plain = |text: &str, marks: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
        };
        let named = |text: &str| text.split('/').all(|part| plain(part, "._-+@:"));
        if !plain(pool, "._-+") || !named(name) {
            return None;
        }
        let mut export =
            Self { host: HostName::new(host).ok()?, image: image.to_owned(), user: None, keyfile: None, conf: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=')?;
            let value = value.to_owned();
            if !value.is_empty() && !plain(&value, "._/-") {
                return None;
            }
            let value = Some(value).filter(|value| !value.is_empty());
            match key {
                "DS" => {}
                "CEPH_USER" => export.user = value,
                "CEPH_KEY" => export.keyfile = value,
                "CEPH_CONF" => export.conf = value,
                _ => return None,
            }
        }
        Some(export)
    }

    /// What is run on the host.
    pub(super) fn command(&self) -> Cmd {
        let mut cmd = Cmd::new("rbd");
        for (option, value) in [("--id", &self.user), ("--keyfile", &self.keyfile), ("--conf", &self.conf)] {
            if let Some(value) = value {
                cmd = cmd.args([option, value.as_str()]);
            }
        }
        cmd.args(["export", self.image.as_str(), "-"])
    }

    /// The image as a stream.
    ///
    /// # Errors
    /// Where there is no ssh, or no thread can be made. What goes wrong later is the error of a read.
    pub(super) fn open(&self, location: &str, programs: &Programs, control: &Control) -> io::Result<Relay> {
        let mut argv = programs.find("ssh").map_err(io::Error::other)?;
        argv.extend(["-T", "-x", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes", "--"].map(Into::into));
        argv.push(self.host.as_str().into());
        let words = programs.argv(&self.command());
        let words: Vec<String> = words.iter().map(|word| quote(OsStr::new(word))).collect();
        argv.push(words.join(" ").into());
        let shown = format!("rbd export of {}", redact(location));
        let spawn = Spawn { argv, env: Vec::new(), shown, also_ok: Vec::new(), hidden: Vec::new(), on_leash: true };
        let control = control.clone();
        Relay::start(move |mut writer| {
            let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Writer(&mut writer) };
            process::run(&spawn, io, &control).map(drop).map_err(io::Error::other)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_command() {
        let export = Export::parse("rbd://one@ceph1//one/one-7?DS=100&CEPH_USER=oneadmin&CEPH_CONF=/etc/ceph/c.conf")
            .expect("an address");
        assert_eq!(export.host.as_str(), "one@ceph1");
        let command = export.command().to_string();
        assert_eq!(command, "rbd --id oneadmin --conf /etc/ceph/c.conf export one/one-7 -");
        let plain = Export::parse("rbd://ceph1/one/one-7").expect("an address without a query");
        assert_eq!(plain.command().to_string(), "rbd export one/one-7 -");
    }

    #[test]
    fn what_may_be_taken_for_something_else_is_refused() {
        for address in [
            "rbd://h/pool",
            "rbd://h/pool/",
            "rbd:///pool/image",
            "rbd://-oProxyCommand=x/pool/image",
            "rbd://h/--conf=x/image",
            "rbd://h/pool/-x",
            "rbd://h/pool/a b",
            "rbd://h/pool/$(id)",
            "rbd://h/pool/image?CEPH_CONF=-x",
            "rbd://h/pool/image?CEPH_CONF=a;b",
            "rbd://h/pool/image?OTHER=1",
        ] {
            assert_eq!(Export::parse(address), None, "{address}");
        }
    }
}
