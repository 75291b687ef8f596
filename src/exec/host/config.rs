//! What the operator's ssh configuration says about a host: `ssh -G host`, read once per host.
//!
//! `ssh -G` is the only reader of `ssh_config(5)` that agrees with the client about `Match`, `Include` and tokens, so it
//! is asked with the very words that later connect (contract 01 §13: the environment's `SSH` may be several words).

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::cmd::Cmd;
use super::super::control::Control;
use super::super::process::{self, ProcessError, ProcessIo, Programs, Spawn};
use super::HostName;

/// Seconds that `ssh -G` may take; it only waits for files, and for names where `CanonicalizeHostname` is set.
const ASK_LIMIT: Duration = Duration::from_secs(20);

/// Asks the operator's ssh what it would do for a host.
///
/// # Errors
/// [`ProcessError`]: there is no ssh, it is a stand-in that knows no `-G`, or the configuration is broken.
pub fn ask(
    host: &HostName,
    options: &[String],
    programs: &Programs,
    control: &Control,
) -> Result<SshConfig, ProcessError> {
    let options = options.iter().flat_map(|option| ["-o", option]);
    let spawn = Spawn::of(&Cmd::new("ssh").arg("-G").args(options).args(["--", host.as_str()]), programs)?;
    let spawn = Spawn { on_leash: false, ..spawn };
    let answer = process::run(&spawn, ProcessIo::default(), &control.within(ASK_LIMIT))?;
    Ok(SshConfig::parse(&String::from_utf8_lossy(&answer.stdout)))
}

/// The settings that ssh would connect to one host with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshConfig(Vec<(String, String)>);

impl SshConfig {
    /// Reads the output of `ssh -G`: a keyword in lower case, a blank and the value on each line.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| line.split_once(' ').map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
        Self(text.lines().filter_map(pair).collect())
    }

    /// First value of a keyword; absent if it is not set or set to `none`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next().filter(|value| !value.eq_ignore_ascii_case("none"))
    }

    /// Every value of a keyword that may be repeated.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> + use<'_> {
        let key = key.to_owned();
        self.0.iter().filter(move |(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// Whether a switch is on: ssh prints some as `yes` and others as `true`.
    #[must_use]
    pub fn is_on(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| matches!(value, "yes" | "true"))
    }

    /// Host name or address to connect to.
    #[must_use]
    pub fn host_name(&self) -> Option<&str> {
        self.get("hostname")
    }

    /// Port to connect to; 22 where ssh did not say.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.get("port").and_then(|port| port.parse().ok()).unwrap_or(22)
    }

    /// Socket of a multiplexing master, tokens already expanded by ssh.
    #[must_use]
    pub fn control_path(&self) -> Option<PathBuf> {
        self.get("controlpath").map(|path| home_expanded(path, std::env::home_dir().as_deref()))
    }

    /// Whether a multiplexing master listens; one that died leaves a socket that refuses.
    #[must_use]
    pub fn has_live_master(&self) -> bool {
        self.control_path().is_some_and(|path| UnixStream::connect(path).is_ok())
    }

    /// The files named by a keyword such as `userknownhostsfile`, `~` expanded. A name with blanks cannot be told apart
    /// from two names and is thereby not found, which only means that ssh itself has to connect.
    #[must_use]
    pub fn files(&self, key: &str) -> Vec<PathBuf> {
        let home = std::env::home_dir();
        let names = self.all(key).flat_map(str::split_whitespace);
        names.filter(|name| *name != "none").map(|name| home_expanded(name, home.as_deref())).collect()
    }

    /// Names under which `known_hosts` files list the host: the alias; or `[name]:port` and then the bare name.
    #[must_use]
    pub fn known_as(&self) -> Vec<String> {
        if let Some(alias) = self.get("hostkeyalias") {
            return vec![alias.to_ascii_lowercase()];
        }
        let name = self.host_name().unwrap_or_default().to_ascii_lowercase();
        match self.port() {
            22 => vec![name],
            port => vec![format!("[{name}]:{port}"), name],
        }
    }

    /// The cipher list with AES-GCM first, for bulk data: twice the data of the default for half the CPU (house style
    /// §7). Only reorders what the operator allows.
    #[must_use]
    pub fn bulk_ciphers(&self) -> Option<String> {
        let list: Vec<&str> = self.get("ciphers")?.split(',').collect();
        let (gcm, rest): (Vec<&str>, Vec<&str>) = list.into_iter().partition(|name| name.contains("-gcm@"));
        if gcm.is_empty() { None } else { Some([gcm, rest].concat().join(",")) }
    }

    /// Why libssh2 cannot connect to this host the way ssh would; `None` if nothing stands against it.
    #[must_use]
    pub fn beyond_libssh2(&self) -> Option<String> {
        const VALUED: [&str; 8] = [
            "proxyjump",
            "proxycommand",
            "certificatefile",
            "bindaddress",
            "bindinterface",
            "remotecommand",
            "revokedhostkeys",
            "pkcs11provider",
        ];
        const LISTS: [&str; 4] = ["setenv", "localforward", "remoteforward", "dynamicforward"];
        const SWITCHES: [&str; 4] = ["forwardagent", "permitlocalcommand", "stdinnull", "forkafterauthentication"];
        let valued = VALUED.into_iter().find(|key| self.get(key).is_some());
        let lists = LISTS.into_iter().find(|key| self.all(key).next().is_some());
        let switches = SWITCHES.into_iter().find(|key| !matches!(self.get(key), None | Some("no" | "false")));
        if let Some(key) = valued.or(lists).or(switches) {
            return Some(format!("The ssh configuration sets {key}"));
        }
        if self.get("pubkeyauthentication").is_some_and(|value| matches!(value, "no" | "false")) {
            return Some("The ssh configuration forbids public keys".into());
        }
        if self.get("sessiontype").is_some_and(|value| value != "default") {
            return Some("The ssh configuration sets sessiontype".into());
        }
        if self.get("requesttty").is_some_and(|value| !matches!(value, "auto" | "no" | "false")) {
            return Some("The ssh configuration asks for a terminal".into());
        }
        None
    }
}

/// Expands a leading `~/`, as ssh does for its own files.
fn home_expanded(name: &str, home: Option<&Path>) -> PathBuf {
    match (name.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that `ssh -G` of OpenSSH 9.2 printed.
    const PRINTED: &str = "host lab\nuser root\nhostname 127.0.0.1\nport 2222\npubkeyauthentication true\nrequesttty auto\n\
        sessiontype default\nforwardagent no\npermitlocalcommand no\nstdinnull no\nforkafterauthentication no\n\
        ciphers chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com\n\
        controlpath /run/one/ssh-socks/ctl-M-b8be.sock\nidentityfile /a/id\nidentityfile ~/.ssh/other\n\
        userknownhostsfile /a/known_hosts /a/known_hosts2\nconnecttimeout none\n";

    #[test]
    fn settings_are_found() {
        let config = SshConfig::parse(PRINTED);
        assert_eq!((config.host_name(), config.port()), (Some("127.0.0.1"), 2222));
        assert_eq!(config.get("connecttimeout"), None);
        assert!(config.is_on("pubkeyauthentication"));
        assert_eq!(config.control_path(), Some("/run/one/ssh-socks/ctl-M-b8be.sock".into()));
        assert_eq!(config.files("userknownhostsfile").len(), 2);
        assert_eq!(config.all("identityfile").count(), 2);
        assert_eq!(config.known_as(), ["[127.0.0.1]:2222", "127.0.0.1"]);
        assert_eq!(
            config.bulk_ciphers().as_deref(),
            Some("aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr")
        );
    }

    #[test]
    fn what_libssh2_cannot_do_is_left_to_ssh() {
        assert_eq!(SshConfig::parse(PRINTED).beyond_libssh2(), None);
        for line in [
            "proxyjump node1",
            "proxycommand nc %h %p",
            "forwardagent yes",
            "pubkeyauthentication false",
            "requesttty force",
            "certificatefile ~/.ssh/id-cert.pub",
            "setenv A=b",
            "forwardagent $SSH_AUTH_SOCK",
        ] {
            let text = format!("{line}\n{PRINTED}");
            assert!(SshConfig::parse(&text).beyond_libssh2().is_some(), "{line}");
        }
        assert_eq!(SshConfig::parse(&format!("proxycommand none\n{PRINTED}")).beyond_libssh2(), None);
    }

    #[test]
    fn a_tilde_is_the_home_directory() {
        assert_eq!(home_expanded("~/.ssh/id", Some(Path::new("/h"))), Path::new("/h/.ssh/id"));
        assert_eq!(home_expanded("/a/~/b", Some(Path::new("/h"))), Path::new("/a/~/b"));
    }
}
