//! Downloads by upstream's `datastore/downloader.sh`, for the schemes that we do not serve ourselves.
//!
//! A datastore that is switched over to us must still take images from Ceph, from backups and from LXD servers. The
//! program knows how (contract 03 §1, §2); it is asked for the bytes as they are, everything after that is ours: digests,
//! decoding, inspection.

use std::io;
use std::path::PathBuf;

use super::url::redact;
use crate::exec::cmd::Secret;
use crate::exec::control::Control;
use crate::exec::process::{self, ProcessIo, Spawn, Stdin, Stdout};
use crate::exec::relay::Relay;

/// Schemes that the program knows (contract 03 §2).
const SCHEMES: &[&str] = &["rbd", "lxd", "restic", "restic+rbd", "rsync", "rsync+rbd", "netapp", "purefa", "onebex"];

/// The program and what it has to be told.
#[derive(Clone, Debug)]
pub struct Helper {
    /// Where it is.
    pub program: PathBuf,
    /// The action's document in Base64, where the program looks for the keys of S3 (`DRV_ACTION`).
    pub action_data: Secret,
}

impl Helper {
    /// Opens `location` as a stream.
    ///
    /// `None` for a scheme that the program does not know, where there is no program, and for a location that is more than a
    /// plain address: the program hands it to a shell.
    ///
    /// # Errors
    /// When no thread can be made. What goes wrong later is the error of a read.
    pub(super) fn open(&self, location: &str, scheme: &str, control: &Control) -> Option<io::Result<Relay>> {
        let rest = location.split_once("://").map_or("", |(_, rest)| rest);
        if !SCHEMES.contains(&scheme) || !is_plain(scheme, rest) || !self.program.is_file() {
            return None;
        }
        let shown = format!("{} --nodecomp {} -", self.program.display(), redact(location));
        let spawn = Spawn {
            argv: vec![self.program.clone().into(), "--nodecomp".into(), "--".into(), location.into(), "-".into()],
            env: vec![("DRV_ACTION".to_owned(), self.action_data.clone())],
            shown,
            also_ok: Vec::new(),
            hidden: vec![self.action_data.clone()],
        };
        let control = control.clone();
        Some(Relay::start(move |mut writer| {
            let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Writer(&mut writer) };
            process::run(&spawn, io, &control).map(drop).map_err(io::Error::other)
        }))
    }
}

/// Whether what follows the scheme is a plain address. The program puts some of it before a shell unquoted, makes
/// variables of a query, and gives hosts to ssh as they are: so there are no characters that mean anything to a shell, no
/// part that begins like an option, and only the queries that the program knows.
fn is_plain(scheme: &str, rest: &str) -> bool {
    let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
    let word = |text: &str, marks: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c));
    let known: &[&str] = match scheme {
        "lxd" => &["size", "filesystem", "format"],
        "rbd" => &["DS", "CEPH_USER", "CEPH_KEY", "CEPH_CONF"],
        _ => &[],
    };
    let pair = |pair: &str| {
        pair.split_once('=')
            .is_some_and(|(key, value)| known.contains(&key) && word(value, "._/-") && !value.starts_with('-'))
    };
    word(address, "._:/@+,-")
        && !address.split(['/', '@', ':', ',']).any(|part| part.starts_with('-'))
        && query.is_none_or(|query| query.split('&').all(pair))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::exec::control::Cancel;

    /// A program that keeps the protocol: the bytes on stdout, failures on stderr.
    fn helper(script: &str) -> (tempfile::TempDir, Helper) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let program = dir.path().join("downloader.sh");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("the program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        (dir, Helper { program, action_data: Secret::new("canary") })
    }

    fn read(helper: &Helper, location: &str, scheme: &str) -> Result<String, String> {
        let control = Control::new(Cancel::new());
        let relay = helper.open(location, scheme, &control).ok_or("refused")?;
        let mut relay = relay.map_err(|e| e.to_string())?;
        let mut text = String::new();
        relay.read_to_string(&mut text).map(|_| text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_program_is_asked_for_the_bytes_as_they_are() {
        let (_dir, helper) = helper("echo \"$* $DRV_ACTION\"");
        let text = read(&helper, "rbd://host/a+b", "rbd").expect("a stream");
        assert_eq!(text, "--nodecomp -- rbd://host/a+b - canary\n");
        for good in [
            "restic://100/1/0:25f4b298,1:6968545c//var/lib/one/datastores/0/0/backup/disk.0",
            "rbd://user@ceph1/one/one-7?DS=100&CEPH_USER=one&CEPH_CONF=/etc/ceph/ceph.conf",
            "lxd://images.example.org/a/rootfs.tar.xz?size=2048&filesystem=ext4&format=raw",
        ] {
            let scheme = good.split(':').next().expect("a scheme");
            assert!(read(&helper, good, scheme).is_ok(), "{good}");
        }
    }

    #[test]
    fn its_failure_is_ours_and_shows_no_secret() {
        let (_dir, helper) = helper("printf half; echo \"no such key $DRV_ACTION\" >&2; exit 255");
        let error = read(&helper, "rbd://host/a", "rbd").expect_err("a failure");
        assert!(error.contains("no such key") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn what_a_shell_might_take_for_more_than_a_name_is_refused() {
        let (_dir, helper) = helper("echo called");
        for location in [
            "lxd://x/$(id)",
            "rbd://h/a b",
            "rbd://b/'x'",
            "rbd://b/`x`",
            "rbd://b/a;b",
            "rbd://b/a\nb",
            "rbd://h&/var/tmp/x:/y",
            "rbd://-oProxyCommand=x/y",
            "rbd://u@-oX/y",
            "lxd://x?size=1&PATH=/var/tmp",
            "lxd://x?size=$(id)",
            "rbd://b/a?x=1",
            "rbd://h/~root/x",
        ] {
            let scheme = location.split(':').next().expect("a scheme");
            assert_eq!(read(&helper, location, scheme).expect_err("refused"), "refused", "{location}");
        }
        assert!(read(&helper, "ftp://h/a", "ftp").is_err());
    }
}
