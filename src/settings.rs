//! Upstream's configuration files, read as data.
//!
//! The files are shell syntax and upstream sources them (contract 01 §4). We read `NAME=value` lines and run nothing:
//! command substitution and other variables are taken literally (`docs/deviations.md`).
//! Precedence, highest first: datastore attribute (the caller looks there), environment, file, built-in default.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::location::Layout;

/// A configuration file that is there but cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read configuration file {path}", path = .path.display())]
pub struct BadConf {
    path: PathBuf,
    source: io::Error,
}

/// Values of `datastore.conf` and of the family files beside it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: HashMap<String, String>,
}

/// Largest configuration file that is read, in bytes.
const CONF_LIMIT: u64 = 1 << 20;

impl Settings {
    /// Reads the files under `<remotes>/etc` that concern the driver `kind/mad`, then `env` on top of them.
    ///
    /// A file that is not there is no failure: upstream's defaults hold.
    ///
    /// # Errors
    /// [`BadConf`] for a file that exists but cannot be read or is larger than 1 MiB.
    pub fn load(layout: &Layout, mad: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, BadConf> {
        let etc = layout.remotes.join("etc");
        let files = [
            etc.join("datastore/datastore.conf"),
            etc.join("datastore").join(mad).join(format!("{mad}.conf")),
            etc.join("onestore.conf"),
        ];
        // Of the hypervisor's own file only what storage needs: it sets much else.
        let mut values = read_conf(&etc.join("vmm/kvm/kvmrc"))?;
        values.retain(|name, _| HYPERVISOR.contains(&name.as_str()));
        // Of a transfer manager's own file only what concerns replicas.
        let mut own = read_conf(&etc.join("tm").join(mad).join(format!("{mad}rc")))?;
        own.retain(|name, _| name.starts_with("REPLICA_"));
        values.extend(own);
        for file in files {
            values.extend(read_conf(&file)?);
        }
        for name in OVERRIDABLE {
            if let Some(value) = env(name).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty()) {
                values.insert((*name).to_owned(), value);
            }
        }
        Ok(Self { values })
    }

    /// A value that is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// File systems that `mkfs` may make (`SUPPORTED_FS`).
    #[must_use]
    pub fn supported_fs(&self) -> Vec<&str> {
        let list = self.get("SUPPORTED_FS").unwrap_or("ext2,ext3,ext4,xfs");
        list.split(',').map(str::trim).filter(|fs| !fs.is_empty()).collect()
    }

    /// Options for making the file system `fs` (`FS_OPTS_<fs>`), split at blanks.
    #[must_use]
    pub fn fs_options(&self, fs: &str) -> Vec<&str> {
        self.get(&format!("FS_OPTS_{fs}")).unwrap_or_default().split_whitespace().collect()
    }

    /// Whether a TLS certificate may be unverified (`TLS_VERIFY=no` in `onestore.conf`).
    #[must_use]
    pub fn tls_verify(&self) -> bool {
        !self.get("TLS_VERIFY").is_some_and(|v| v.eq_ignore_ascii_case("no"))
    }
}

/// Names that the environment may set for a driver.
const OVERRIDABLE: &[&str] = &[
    "SUPPORTED_FS",
    "BACKUP_BASE_PATH",
    "QCOW2_OPTIONS",
    "TLS_VERIFY",
    "LIBVIRT_URI",
    "VIRSH_TIMEOUT",
    "VIRSH_RETRIES",
];

/// What is taken from `vmm/kvm/kvmrc` (contract 01 §4).
const HYPERVISOR: &[&str] = &["LIBVIRT_URI", "VIRSH_TIMEOUT", "VIRSH_RETRIES"];

fn read_conf(path: &Path) -> Result<HashMap<String, String>, BadConf> {
    let bad = |source| BadConf { path: path.to_owned(), source };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(e) => return Err(bad(e)),
    };
    if !meta.is_file() || meta.len() > CONF_LIMIT {
        return Err(bad(io::Error::other("It is not a file of at most 1 MiB")));
    }
    let text = fs::read(path).map_err(bad)?;
    Ok(parse_conf(&String::from_utf8_lossy(&text)))
}

/// The `NAME=value` lines of a shell-syntax file; later lines win.
///
/// Understood: leading `export`, comments, single and double quotes, backslashes outside single quotes.
#[must_use]
pub fn parse_conf(text: &str) -> HashMap<String, String> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, rest) = line.split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(is_name) {
        return None;
    }
    Some((name.to_owned(), shell_word(rest)))
}

/// The first word of a shell line with its quotes taken off.
fn shell_word(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, '\\') => out.extend(chars.next()),
            // There a backslash quotes only what means something.
            (Some('"'), '\\') => match chars.next() {
                Some(c @ ('$' | '`' | '"' | '\\')) => out.push(c),
                other => out.extend(['\\'].into_iter().chain(other)),
            },
            (None, ' ' | '\t' | '\r' | ';') => break,
            (_, c) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conf_files_are_read_without_being_run() {
        let conf = parse_conf(
            "# X=1\nSUPPORTED_FS=\"ext4,xfs\" # why\nexport A='b c'\nFS_OPTS_ext4=-O\\ x\nEMPTY=\"\"\n 2x=1\nrm -rf /\nB=$(id)\n",
        );
        assert_eq!(conf["SUPPORTED_FS"], "ext4,xfs");
        assert_eq!(conf["A"], "b c");
        assert_eq!(conf["FS_OPTS_ext4"], "-O x");
        assert_eq!(conf["B"], "$(id)");
        assert_eq!(conf.len(), 5);
    }

    #[test]
    fn words_are_those_of_a_shell() {
        let conf = parse_conf("A=\"a\\b \\\"c\\\" \\$d\"\nB=a\\b\nC=a\u{a0}b c\n");
        assert_eq!((conf["A"].as_str(), conf["B"].as_str(), conf["C"].as_str()), ("a\\b \"c\" $d", "ab", "a\u{a0}b"));
    }

    #[test]
    fn an_empty_value_is_no_value() {
        let settings = Settings { values: parse_conf("SUPPORTED_FS=\"\"\n") };
        assert_eq!(settings.supported_fs(), ["ext2", "ext3", "ext4", "xfs"]);
    }

    #[test]
    fn files_add_up_and_the_environment_wins() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let etc = dir.path().join("etc/datastore");
        fs::create_dir_all(&etc).expect("etc");
        fs::write(etc.join("datastore.conf"), "SUPPORTED_FS=ext4\nFS_OPTS_ext4=\"-m 0\"\n").expect("conf");
        let layout = Layout::new(|_| None, Some(dir.path()));
        let plain = Settings::load(&layout, "fs", |_| None).expect("loads");
        assert_eq!(plain.supported_fs(), ["ext4"]);
        assert_eq!(plain.fs_options("ext4"), ["-m", "0"]);
        let env = |name: &str| (name == "SUPPORTED_FS").then(|| "xfs".into());
        let over = Settings::load(&layout, "fs", env).expect("loads");
        assert_eq!(over.supported_fs(), ["xfs"]);
    }
}
