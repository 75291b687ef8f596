//! A private sshd on a high port of 127.0.0.1, with keys, `known_hosts` and ssh configuration of its own: nothing of the
//! machine's ssh set-up is read or written.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use onestore::exec::process::Programs;
use tempfile::TempDir;

/// A running sshd; ends with all its sessions when dropped.
pub struct Sshd {
    dir: TempDir,
    port: u16,
    child: Child,
}

impl Sshd {
    /// Starts it; `extra` are further lines of its configuration.
    pub fn start(extra: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        // Where sshd wants its unprivileged part to live.
        fs::create_dir_all("/run/sshd").expect("needs root");
        // The accounts of hosts read no start-up files of this machine's.
        fs::create_dir(dir.path().join("home")).expect("makes");
        for key in ["hostkey", "otherkey", "id", "stranger"] {
            keygen(&dir.path().join(key));
        }
        fs::copy(dir.path().join("id.pub"), dir.path().join("authorized_keys")).expect("copies");
        for _ in 0..10 {
            let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a port");
            if let Some(child) = spawn(dir.path(), free.port(), extra) {
                let sshd = Self { dir, port: free.port(), child };
                sshd.write_known_hosts("hostkey");
                sshd.configure("");
                return sshd;
            }
        }
        panic!("sshd does not start");
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `known_hosts` list this key of [`Sshd::start`] for the host.
    pub fn write_known_hosts(&self, key: &str) {
        let public = fs::read_to_string(self.path(&format!("{key}.pub"))).expect("reads");
        fs::write(self.path("known_hosts"), format!("[127.0.0.1]:{} {public}", self.port)).expect("writes");
    }

    /// Writes the ssh configuration; `extra` lines come first and so win.
    pub fn configure(&self, extra: &str) {
        let d = self.dir.path().display();
        let text = format!(
            "{extra}\nHost lab*\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {d}/id\n IdentitiesOnly yes\n \
             IdentityAgent none\n UserKnownHostsFile {d}/known_hosts\n GlobalKnownHostsFile /dev/null\n \
             StrictHostKeyChecking yes\n ControlMaster no\n",
            self.port
        );
        fs::write(self.path("ssh_config"), text).expect("writes");
    }

    /// The port that it listens at.
    #[allow(dead_code, reason = "not every lab puts something in front of it")]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The ssh client with this configuration, as the environment's `SSH` would have it.
    pub fn programs(&self) -> Programs {
        let config = self.path("ssh_config");
        Programs::default().with("ssh", ["ssh".as_ref(), "-F".as_ref(), config.as_os_str()])
    }

    /// Runs the plain client with these words.
    pub fn ssh(&self, words: &[&str]) -> std::process::ExitStatus {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(self.path("ssh_config")).args(words);
        ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("ssh runs")
    }

    /// Kills the processes that serve connections, but not the one that accepts them.
    pub fn cut_connections(&self) {
        for pid in descendants(self.child.id()) {
            if name_of(pid).starts_with("sshd") {
                kill(pid);
            }
        }
    }

    /// Processes that the server has started and that are still there.
    pub fn sessions(&self) -> Vec<u32> {
        descendants(self.child.id())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        for pid in descendants(self.child.id()) {
            kill(pid);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keygen(path: &Path) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path);
    assert!(keygen.status().expect("ssh-keygen runs").success());
}

/// `None` if the port was taken meanwhile.
fn spawn(dir: &Path, port: u16, extra: &str) -> Option<Child> {
    let d = dir.display();
    let config = format!(
        "{extra}\nListenAddress 127.0.0.1:{port}\nHostKey {d}/hostkey\nPidFile none\nAuthorizedKeysFile {d}/authorized_keys\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100:30:200\n\
         MaxSessions 64\nSetEnv SCRIPTS_REMOTE_DIR={d}/remotes HOME={d}/home\n"
    );
    fs::write(dir.join("sshd_config"), config).expect("writes");
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.args(["-D", "-f"]).arg(dir.join("sshd_config")).arg("-E").arg(dir.join("sshd.log"));
    let mut child = sshd.stdin(Stdio::null()).spawn().expect("openssh-server is installed");
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until && child.try_wait().expect("waits").is_none() {
        let banner = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            let mut banner = [0; 4];
            stream.read_exact(&mut banner).map(|()| banner)
        });
        if banner.is_ok_and(|banner| &banner == b"SSH-") {
            return Some(child);
        }
        sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process number");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// All processes below one, as `/proc/<pid>/task/<pid>/children` lists them.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
        let from = found.len();
        found.extend(children);
        next.extend_from_slice(&found[from..]);
    }
    found
}

/// Processes whose command line holds this text.
pub fn with_argument(text: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let holds = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    pids.filter(holds).collect()
}

/// Waits for something, at most this many seconds.
pub fn within(seconds: u64, mut test: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        if test() {
            return true;
        }
        sleep(Duration::from_millis(50));
    }
    test()
}
