//! A private OpenSSH server on loopback, so that bridges are real hosts reached by a real client.
//!
//! `bridge1` and `bridge2` lead to it, `deadbridge` to a port where nobody listens. Throw-away keys; nothing of the
//! account that runs the kit is read or written. OpenSSH takes the home directory from the account's entry and not
//! from `HOME`, so drivers are led to the configuration by a wrapper: first on `PATH`, and named by `SSH`, which is
//! what counts for scripts that put the system's directories before the inherited `PATH`.

use std::ffi::OsString;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::mounts::Mounts;

/// What a server is told beyond the usual.
#[derive(Default)]
pub struct More<'a> {
    /// Variables of every session.
    pub env: &'a [(&'a str, String)],
    /// Lines of the client's configuration, for all hosts.
    pub client: &'a str,
    /// Lines of the server's configuration; `{dir}` in them is the server's own directory.
    pub server: &'a str,
    /// The tree that hosts have at its fixed place, see [`super::mounts`].
    pub tree: Option<&'a Path>,
}

/// A running server; it is ended when this is dropped.
pub struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    mounts: Option<Mounts>,
}

impl Sshd {
    /// Makes keys and starts the server on a free port.
    ///
    /// Fails if OpenSSH's server is not installed or does not start within five seconds.
    pub fn start(more: &More<'_>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kit-sshd-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        for key in ["host", "client"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(key))
                .status()
                .context("Cannot run ssh-keygen")?;
            if !made.success() {
                bail!("ssh-keygen failed");
            }
        }
        fs::copy(at("client.pub"), at("authorized"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let name = |file: &str| at(file).display().to_string();
        let env = more.env.iter().fold(String::new(), |all, (name, value)| all + " " + name + "=" + value);
        let server = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nSetEnv ONESTORE_LOCK_DIR={} PATH={}{env}\nPasswordAuthentication no\nSubsystem sftp internal-sftp\nPermitRootLogin prohibit-password\nMaxStartups 100\nPrintMotd no\n",
            name("host"),
            name("authorized"),
            name("locks"),
            // From one host to the next.
            format_args!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", name("bin"))
        );
        let own = more.server.replace("{dir}", &dir.path().display().to_string());
        fs::write(at("sshd_config"), server + &own)?;
        let host_key = fs::read_to_string(at("host.pub"))?;
        fs::write(at("known_hosts"), format!("[127.0.0.1]:{port} {host_key}"))?;
        let client = format!(
            "Host bridge1 bridge2\n  Port {port}\nHost deadbridge\n  Port 1\nHost *\n  HostName 127.0.0.1\n  \
             IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n{}",
            name("client"),
            name("known_hosts"),
            more.client
        );
        fs::write(at("config"), client)?;
        fs::create_dir_all(at("bin"))?;
        wrappers(&at("bin"), &at("config"))?;
        // Wanted by the server whatever its configuration says.
        let _ = fs::create_dir_all("/run/sshd");
        let mounts = more.tree.map(|tree| Mounts::prepare(dir.path(), &at("config"), tree)).transpose()?;
        // The server must not outlive a kit that was killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(mounts.as_ref().map_or_else(Vec::new, Mounts::command))
            .arg(program()?)
            .args(["-D", "-e", "-f"])
            .arg(at("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log"))?)
            .spawn()
            .context("Cannot start sshd")?;
        let started = Self { child, dir, mounts };
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(started);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = fs::read_to_string(started.dir.path().join("log")).unwrap_or_default();
        bail!("sshd does not answer: {}", log.trim());
    }

    /// The client's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// What drivers need in front of them to find the hosts by plain `ssh`: nothing without a tree.
    pub fn before_drivers(&self) -> Vec<OsString> {
        self.mounts.as_ref().map_or_else(Vec::new, Mounts::command)
    }

    /// The server's own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the wrapper `ssh` (and the same for `scp`) into this directory, and the configuration into `home`.
    pub fn install(&self, bin: &Path, home: &Path) -> Result<()> {
        let config = self.config();
        wrappers(bin, &config)?;
        let dot = home.join(".ssh");
        fs::create_dir_all(&dot)?;
        fs::set_permissions(&dot, fs::Permissions::from_mode(0o700))?;
        fs::copy(&config, dot.join("config"))?;
        fs::copy(self.dir.path().join("known_hosts"), dot.join("known_hosts"))?;
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ssh` and `scp` with this configuration.
fn wrappers(bin: &Path, config: &Path) -> Result<()> {
    for name in ["ssh", "scp"] {
        let text = format!("#!/bin/sh\nexec /usr/bin/{name} -F '{}' \"$@\"\n", config.display());
        fs::write(bin.join(name), text)?;
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn program() -> Result<PathBuf> {
    let known = ["/usr/sbin/sshd", "/sbin/sshd", "/usr/local/sbin/sshd"];
    known.iter().map(PathBuf::from).find(|path| path.exists()).context("OpenSSH's server is not installed")
}
