//! Downloads by upstream's `datastore/downloader.sh`, for the schemes that we do not serve ourselves.
//!
//! A datastore that is switched over to us must still take images from S3, from backups and from other machines. The
//! program knows how (contract 03 §1, §2); it is asked for the bytes as they are, everything after that is ours: digests,
//! decoding, inspection.

use std::io;
use std::path::PathBuf;

use super::import::ImportError;
use super::url::redact;
use crate::exec::cmd::Secret;
use crate::exec::control::Control;
use crate::exec::process::{self, ProcessIo, Spawn, Stdin, Stdout};
use crate::exec::relay::Relay;

/// Schemes that the program knows (contract 03 §2).
const SCHEMES: &[&str] =
    &["ssh", "s3", "rbd", "lxd", "restic", "restic+rbd", "rsync", "rsync+rbd", "netapp", "purefa", "onebex"];

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
    /// # Errors
    /// [`ImportError::Scheme`] for a scheme that the program does not know or where there is no program, and for a
    /// location that is more than a plain address: the program hands it to a shell. What goes wrong later is the error of
    /// a read.
    pub(super) fn open(&self, location: &str, scheme: &str, control: &Control) -> Result<Relay, ImportError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._~:/?#@%&=+,-".contains(c);
        if !SCHEMES.contains(&scheme) || !location.chars().all(plain) || !self.program.is_file() {
            return Err(ImportError::Scheme { location: redact(location), scheme: scheme.to_owned() });
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
        let relay = Relay::start(move |mut writer| {
            let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Writer(&mut writer) };
            process::run(&spawn, io, &control).map(drop).map_err(io::Error::other)
        });
        relay.map_err(|source| ImportError::Read { location: redact(location), source })
    }
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
        let mut relay = helper.open(location, scheme, &control).map_err(|e| e.to_string())?;
        let mut text = String::new();
        relay.read_to_string(&mut text).map(|_| text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_program_is_asked_for_the_bytes_as_they_are() {
        let (_dir, helper) = helper("echo \"$* $DRV_ACTION\"");
        let text = read(&helper, "s3://bucket/a+b?x=1", "s3").expect("a stream");
        assert_eq!(text, "--nodecomp -- s3://bucket/a+b?x=1 - canary\n");
    }

    #[test]
    fn its_failure_is_ours_and_shows_no_secret() {
        let (_dir, helper) = helper("printf half; echo \"no such key $DRV_ACTION\" >&2; exit 255");
        let error = read(&helper, "s3://bucket/a", "s3").expect_err("a failure");
        assert!(error.contains("no such key") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn what_a_shell_might_take_for_more_than_a_name_is_refused() {
        let (_dir, helper) = helper("echo called");
        for location in ["lxd://x/$(id)", "ssh://h:/a b", "s3://b/'x'", "s3://b/`x`", "s3://b/a;b", "s3://b/a\nb"] {
            let scheme = location.split(':').next().expect("a scheme");
            assert!(read(&helper, location, scheme).expect_err("refused").contains("is not served"), "{location}");
        }
        assert!(read(&helper, "ftp://h/a", "ftp").is_err());
    }
}
