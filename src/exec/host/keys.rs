//! Which private keys can be used without asking anybody: the files of the ssh configuration that hold no passphrase,
//! and an agent that answers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::config::SshConfig;

/// How to log in to one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// Socket of the agent.
    pub agent: Option<PathBuf>,
    /// With `IdentitiesOnly`: the public blobs that the agent may be asked for. `None`: all.
    pub agent_only: Option<Vec<Vec<u8>>>,
    /// Private key files without passphrase, in the order of the configuration.
    pub files: Vec<PathBuf>,
}

impl Identities {
    /// What the configuration names and what of it is there.
    #[must_use]
    pub fn find(config: &SshConfig) -> Self {
        let host = config.get("host").unwrap_or_default();
        let named: Vec<PathBuf> =
            config.files("identityfile").iter().map(|f| tokens_expanded(f, config, host)).collect();
        let from_env = || std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from);
        let agent = match config.all("identityagent").next() {
            None | Some("SSH_AUTH_SOCK") => from_env(),
            Some("none") => None,
            Some(_) => config.files("identityagent").into_iter().next(),
        };
        let agent = agent.filter(|path| std::os::unix::net::UnixStream::connect(path).is_ok());
        let agent_only = config.is_on("identitiesonly").then(|| named.iter().filter_map(|f| public_blob(f)).collect());
        let files = named.into_iter().filter(|file| usable(file)).collect();
        Self { agent, agent_only, files }
    }

    /// Whether there is nothing to log in with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.agent.is_none() && self.files.is_empty()
    }
}

/// Expands the tokens that are usual in `IdentityFile`; a rarer one leaves a name that is not found.
fn tokens_expanded(file: &Path, config: &SshConfig, host: &str) -> PathBuf {
    let Some(text) = file.to_str() else {
        return file.to_owned();
    };
    let home = std::env::home_dir().unwrap_or_default();
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, (c == '%').then(|| chars.next()).flatten()) {
            ('%', Some('%')) => out.push('%'),
            ('%', Some('d')) => out.push_str(&home.to_string_lossy()),
            ('%', Some('h')) => out.push_str(config.host_name().unwrap_or(host)),
            ('%', Some('n')) => out.push_str(host),
            ('%', Some('p')) => out.push_str(&config.port().to_string()),
            ('%', Some('r')) => out.push_str(config.get("user").unwrap_or_default()),
            ('%', Some(other)) => out.extend(['%', other]),
            (c, _) => out.push(c),
        }
    }
    PathBuf::from(out)
}

/// Whether a key file can be read, needs no passphrase and is private, which ssh insists on too.
fn usable(file: &Path) -> bool {
    let Ok(meta) = fs::metadata(file) else {
        return false;
    };
    let own = meta.uid() == rustix::process::getuid().as_raw();
    let exposed = own && meta.permissions().mode() & 0o077 != 0;
    !exposed && fs::read_to_string(file).is_ok_and(|text| !needs_passphrase(&text))
}

/// Whether the text of a private key is encrypted, or is in a form that we do not know, which comes to the same.
fn needs_passphrase(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    match lines.next() {
        Some("-----BEGIN OPENSSH PRIVATE KEY-----") => {
            let body: String = lines.take_while(|line| !line.starts_with('-')).collect();
            // PROTOCOL.key: the magic with its NUL, then the cipher's name as a string with a four byte length.
            let plain = b"openssh-key-v1\0\0\0\0\x04none";
            !STANDARD.decode(body).is_ok_and(|bytes| bytes.starts_with(plain))
        }
        Some("-----BEGIN RSA PRIVATE KEY-----" | "-----BEGIN EC PRIVATE KEY-----" | "-----BEGIN PRIVATE KEY-----") => {
            text.contains("ENCRYPTED")
        }
        _ => true,
    }
}

/// The public key beside a private one, as the blob that an agent lists.
fn public_blob(file: &Path) -> Option<Vec<u8>> {
    let mut name = file.as_os_str().to_owned();
    if file.extension().is_none_or(|extension| extension != "pub") {
        name.push(".pub");
    }
    let text = fs::read_to_string(name).ok()?;
    STANDARD.decode(text.split_ascii_whitespace().nth(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First lines of keys that `ssh-keygen -t ed25519` made, without and with a passphrase.
    const PLAIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz\n-----END OPENSSH PRIVATE KEY-----\n";
    const LOCKED: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAA\n-----END OPENSSH PRIVATE KEY-----\n";

    #[test]
    fn only_keys_without_passphrase_are_used() {
        assert!(!needs_passphrase(PLAIN));
        assert!(needs_passphrase(LOCKED));
        assert!(!needs_passphrase("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"));
        assert!(needs_passphrase("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(needs_passphrase("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        assert!(needs_passphrase("ssh-ed25519 AAAA"));
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("id");
        fs::write(&file, PLAIN).expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(usable(&file));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(!usable(&file));
        assert!(!usable(&dir.path().join("missing")));
    }

    #[test]
    fn tokens_of_identity_files_are_expanded() {
        let config = SshConfig::parse("host lab\nuser one\nhostname 10.0.0.3\nport 2222\n");
        let expanded = tokens_expanded(Path::new("/k/%r-%n-%h-%p-%%-%C"), &config, "lab");
        assert_eq!(expanded, Path::new("/k/one-lab-10.0.0.3-2222-%-%C"));
    }
}
