//! Mounts of their own for judged scripts and the host they log in to.
//!
//! Scripts call plain `ssh` by its place in the system, and OpenSSH looks for the configuration in the account's home
//! and not in `HOME`: a wrapper on `PATH` does not reach them. They also expect the tree in a fixed place on hosts. So
//! they run where the system's configuration of the client is the kit's, and `/var/tmp/one` the judged tree. Nobody
//! else on the machine sees that, and it is gone with the last process in it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The system's directory for temporary files that survive a start, in which hosts keep the tree.
const VAR_TMP: &str = "/var/tmp";

/// Where the mounts are made, and what is run then.
const SCRIPT: &str = r#"mount --bind "$1" /etc/ssh/ssh_config && mount --bind "$2" "$3" && shift 3 && exec "$@""#;

/// What is mounted.
pub struct Mounts {
    config: PathBuf,
    var_tmp: PathBuf,
}

impl Mounts {
    /// Prepares them in `dir`: this configuration of the client, this tree on hosts.
    ///
    /// Fails if temporary files of the kit are where the mount would hide them.
    pub fn prepare(dir: &Path, config: &Path, tree: &Path) -> Result<Self> {
        if dir.canonicalize()?.starts_with(VAR_TMP) {
            bail!("TMPDIR is below {VAR_TMP}, where judged scripts get a directory of their own");
        }
        let var_tmp = dir.join("var-tmp");
        fs::create_dir_all(&var_tmp)?;
        symlink(tree, var_tmp.join("one")).context("Cannot link the judged tree")?;
        Ok(Self { config: config.to_owned(), var_tmp })
    }

    /// The words before a program and its arguments that make it run there, with the same process id.
    pub fn command(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"].map(OsString::from).into();
        words.extend([self.config.clone().into(), self.var_tmp.clone().into(), VAR_TMP.into()]);
        words
    }
}
