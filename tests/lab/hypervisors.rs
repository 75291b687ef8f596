//! A small cloud on one kernel: a front-end and two hosts, each with an sshd, a libvirtd and QEMU of its own.
//!
//! [`lab`] runs the test's body in the front-end: the test program starts itself again as a process of new network, mount,
//! process, host name and IPC namespaces, and the hosts are namespaces below those. So nothing on the machine is disturbed,
//! several labs stand side by side, and whatever becomes of the test, also SIGKILL, the kernel takes all of it away:
//! processes, mounts, loop devices, interfaces. [`lab`] asserts that at the end. See docs/lab.md.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::writer;

/// The hosts and their addresses.
const HOSTS: [(&str, &str); 2] = [("host1", "10.77.0.11"), ("host2", "10.77.0.12")];

/// The front-end, where the tests run.
pub const FRONT: (&str, &str) = ("front", "10.77.0.1");

/// Names of lab folders: this, the process number of the test, a dot and something random.
const PREFIX: &str = "onestore-lab.";

/// How a lab is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// The path under which the hosts see the shared folder, where not under the front-end's: below `/var/lib`.
    pub host_root: Option<&'static str>,
    /// Whether the shared folder is an xfs that can share blocks.
    pub reflink: bool,
    /// Whether it is in memory: what else the machine's disk has to do, no test has to wait for.
    pub memory: bool,
}

/// The cloud, seen from its front-end.
pub struct Lab {
    dir: PathBuf,
    layout: Layout,
    hosts: Mutex<BTreeMap<&'static str, Child>>,
    owned: bool,
}

/// Runs `body` in a lab. To be called by a `#[test]` function that does nothing else: its name is taken from the closure's.
pub fn lab<F: FnOnce(&Lab)>(layout: Layout, body: F) {
    if let Some(dir) = std::env::var_os("ONESTORE_LAB") {
        let lab = Lab::start(dir.into(), layout);
        return body(&lab);
    }
    let test = std::any::type_name::<F>();
    let test = test.split_once("::").map_or(test, |(_, test)| test);
    let test = test.trim_end_matches("::{{closure}}");
    sweep();
    let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{}.", std::process::id())).tempdir_in("/var/tmp");
    let dir = dir.expect("a folder");
    prepare(dir.path(), layout);
    let mut unshare = Command::new("setpriv");
    // The test program's end is the lab's end, whatever ends it.
    unshare.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]);
    unshare.args(["--kill-child", "--propagation", "private"]).arg(script()).arg("front").arg(dir.path());
    unshare.arg(std::env::current_exe().expect("a program"));
    unshare.args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads", "1"]);
    unshare.env("ONESTORE_LAB", dir.path()).env("HOME", dir.path().join("home")).env("TMPDIR", dir.path().join("tmp"));
    let done = unshare.stdin(Stdio::null()).output().expect("needs root, util-linux and iproute2");
    let told = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    print!("{told}");
    assert!(done.status.success() && told.contains("1 passed"), "the lab of {test} failed, see above");
    assert_clean(dir);
}

/// Nothing may be left of a lab whose first process has ended.
fn assert_clean(dir: TempDir) {
    let name = dir.path().file_name().and_then(|name| name.to_str()).expect("plain").to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&name), "mounts of {name} are left");
    let loops = Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output();
    assert!(!String::from_utf8_lossy(&loops.expect("losetup").stdout).contains(&name), "loop devices are left");
    let pids = fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter(|entry| entry.file_name().to_string_lossy().chars().all(|c| c.is_ascii_digit()));
    let of_lab = |entry: &fs::DirEntry| {
        fs::read(entry.path().join("environ")).is_ok_and(|environ| String::from_utf8_lossy(&environ).contains(&name))
    };
    let left: Vec<_> = pids.filter(of_lab).map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    dir.close().expect("nothing holds the folder");
}

/// Removes the folders of labs whose test was killed: their namespaces went with it.
fn sweep() {
    for entry in fs::read_dir("/var/tmp").expect("reads").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/host.sh")
}

/// Everything that is only files: keys, names, configurations.
fn prepare(dir: &Path, layout: Layout) {
    for folder in ["etc/libvirt", "home/.ssh", "tmp", "shared", "small", "hosts/host1", "hosts/host2"] {
        fs::create_dir_all(dir.join(folder)).expect("makes");
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect("writes");
    let d = dir.display();
    let (id, hostkey) = (dir.join("home/.ssh/id"), dir.join("etc/hostkey"));
    for key in [&id, &hostkey] {
        let mut keygen = Command::new("ssh-keygen");
        assert!(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key).status().expect("ssh-keygen").success());
    }
    let public = fs::read_to_string(hostkey.with_extension("pub")).expect("reads");
    let known = [FRONT, HOSTS[0], HOSTS[1]].map(|(name, address)| format!("{name},{address} {public}"));
    write("home/.ssh/known_hosts", &known.concat());
    write(
        "home/.ssh/config",
        &format!(
            "Host *\n User root\n IdentityFile {d}/home/.ssh/id\n IdentitiesOnly yes\n IdentityAgent none\n \
             UserKnownHostsFile {d}/home/.ssh/known_hosts\n GlobalKnownHostsFile /dev/null\n \
             StrictHostKeyChecking yes\n ControlMaster no\n KexAlgorithms curve25519-sha256\n"
        ),
    );
    write(
        "etc/sshd_config",
        &format!(
            "HostKey {d}/etc/hostkey\nPidFile none\nAuthorizedKeysFile {d}/home/.ssh/id.pub\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100:30:200\nMaxSessions 64\n\
             UseDNS no\nSetEnv SCRIPTS_REMOTE_DIR={d}/remotes ONESTORE_LAB={d}\n"
        ),
    );
    let names = HOSTS.map(|(name, address)| format!("{address} {name}\n"));
    write("etc/hosts", &format!("127.0.0.1 localhost\n{} {}\n{}", FRONT.1, FRONT.0, names.concat()));
    // libvirtd insists on this user, and sshd on its own.
    let passwd = fs::read_to_string("/etc/passwd").expect("reads");
    let others: Vec<&str> =
        passwd.lines().filter(|line| !line.starts_with("root:") && !line.starts_with("libvirt-qemu:")).collect();
    write(
        "etc/passwd",
        &format!(
            "root:x:0:0:root:{d}/home:/bin/bash\n{}\nlibvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n",
            others.join("\n")
        ),
    );
    let group = fs::read_to_string("/etc/group").expect("reads");
    let others: Vec<&str> = group.lines().filter(|line| !line.starts_with("libvirt-qemu:")).collect();
    write("etc/group", &format!("{}\nlibvirt-qemu:x:64055:\n", others.join("\n")));
    // As OpenNebula configures it, but for the user.
    write(
        "etc/libvirt/qemu.conf",
        "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n\
         namespaces = []\ncgroup_controllers = []\n",
    );
    for (number, (name, _)) in (1..).zip(HOSTS) {
        // Two libvirts of one identity would not migrate to each other.
        let uuid = format!("6f6e6573-746f-4e65-8c61-62000000000{number}");
        let conf = format!("auth_unix_rw = \"none\"\nhost_uuid = \"{uuid}\"\n");
        write(&format!("hosts/{name}/libvirtd.conf"), &conf);
        if let Some(root) = layout.host_root {
            write(&format!("hosts/{name}/root"), root);
        }
    }
}

impl Lab {
    fn start(dir: PathBuf, layout: Layout) -> Self {
        let lab = Self { dir, layout, hosts: Mutex::default(), owned: true };
        if layout.reflink {
            let image = lab.path("xfs");
            fs::File::create_new(&image).and_then(|file| file.set_len(512 << 20)).expect("an image");
            run(Command::new("mkfs.xfs").arg("-q").arg(&image));
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(lab.shared()));
        }
        if layout.memory {
            for folder in [lab.shared(), lab.path("tmp")] {
                run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2g,mode=755", "tmpfs"]).arg(folder));
            }
        }
        for (name, _) in HOSTS {
            lab.start_host(name);
        }
        for (name, _) in HOSTS {
            let ready = within(60, || lab.on(name, &["virsh", "-q", "list"]).status.success());
            assert!(ready, "{name}: {:?}", lab.on(name, &["cat", "/var/log/libvirt/libvirtd.log"]));
            let open = within(20, || std::net::TcpStream::connect((name, 22)).is_ok());
            assert!(open, "{name}: {:?}", fs::read_to_string(lab.path(&format!("hosts/{name}/sshd.log"))));
        }
        lab
    }

    /// The lab that this process stands in, for a second process of a test. Hosts cannot be entered from it.
    pub fn joined() -> Self {
        let dir = std::env::var_os("ONESTORE_LAB").expect("a lab").into();
        Self { dir, layout: Layout::default(), hosts: Mutex::default(), owned: false }
    }

    /// A domain that runs already.
    pub fn domain(&self, host: &str, id: u32) -> Domain<'_> {
        Domain { lab: self, host: host.to_owned(), name: format!("one-{id}") }
    }

    /// Starts a host, anew where it was killed. Does not wait for its daemons.
    fn start_host(&self, name: &'static str) {
        let address = HOSTS.iter().find(|(host, _)| *host == name).expect("a host").1;
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]);
        unshare.args(["--propagation", "private"]).arg(script()).arg("host").arg(&self.dir).args([name, address]);
        let log = fs::File::create(self.path(&format!("hosts/{name}/log"))).expect("a log");
        let child = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("starts");
        let net = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let pid = child.id().to_string();
        assert!(within(10, || net(&pid).is_some_and(|its| Some(its) != net("self"))));
        let device = format!("v-{name}");
        run(Command::new("ip").args(["link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", &pid]));
        run(Command::new("ip").args(["link", "set", &device, "master", "lab", "up"]));
        self.hosts.lock().expect("locks").insert(name, child);
    }

    /// A path in the lab's folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// The shared folder on the front-end.
    pub fn shared(&self) -> PathBuf {
        self.path("shared")
    }

    /// The shared folder on the hosts.
    pub fn shared_on_hosts(&self) -> PathBuf {
        self.layout.host_root.map_or_else(|| self.shared(), PathBuf::from)
    }

    /// A folder of all machines with room for 24 MiB.
    pub fn small(&self) -> PathBuf {
        self.path("small")
    }

    /// Puts this binary on the hosts, as a synced remotes tree has it.
    pub fn sync_agent(&self) {
        fs::create_dir_all(self.path("remotes/onestore")).expect("makes");
        fs::copy(env!("CARGO_BIN_EXE_onestore"), self.path("remotes/onestore/onestore")).expect("copies");
    }

    /// Runs a command on a host or the front-end, as root and without ssh.
    pub fn on(&self, name: &str, words: &[&str]) -> Output {
        self.enter(name, words).output().expect("nsenter")
    }

    /// The same, and it must succeed; gives its output.
    pub fn must(&self, name: &str, words: &[&str]) -> String {
        let done = self.on(name, words);
        assert!(done.status.success(), "{name}: {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    fn enter(&self, name: &str, words: &[&str]) -> Command {
        if name == FRONT.0 {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdin(Stdio::null());
            return command;
        }
        let unshare = self.hosts.lock().expect("locks")[name].id();
        let init = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap_or_default();
        let mut enter = Command::new("nsenter");
        enter.args(["--target", init.trim(), "--net", "--mount", "--pid", "--uts", "--ipc", "--"]).args(words);
        enter.stdin(Stdio::null());
        enter
    }

    /// Ends a host with all that runs on it, as a power failure does.
    pub fn kill_host(&self, name: &str) {
        if let Some(mut child) = self.hosts.lock().expect("locks").remove(name) {
            let _ = child.kill();
            let _ = child.wait();
            let _ = Command::new("ip").args(["link", "delete", &format!("v-{name}")]).output();
        }
    }

    /// Starts a domain `one-<id>`, and waits until its guest writes, where the first disk has one ([`writer::plant`]).
    /// Paths as the host sees them.
    pub fn run_domain(&self, host: &str, id: u32, disks: &[(&Path, &str)], kind: Kind) -> Domain<'_> {
        let disk = |(at, (path, format)): (usize, &(&Path, &str))| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='hd{}' bus='ide'/></disk>",
                path.display(),
                char::from(b'a' + u8::try_from(at).expect("few disks"))
            )
        };
        let disks: String = disks.iter().enumerate().map(disk).collect();
        let name = format!("one-{id}");
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        );
        self.start_domain(host, id, &xml, kind)
    }

    /// Starts the domain `one-<id>` of this description.
    pub fn start_domain(&self, host: &str, id: u32, xml: &str, kind: Kind) -> Domain<'_> {
        let name = format!("one-{id}");
        let file = self.path(&format!("{name}.xml"));
        fs::write(&file, xml).expect("writes");
        let file = file.display().to_string();
        match kind {
            Kind::Transient => drop(self.must(host, &["virsh", "create", &file])),
            Kind::Persistent => {
                self.must(host, &["virsh", "define", &file]);
                self.must(host, &["virsh", "start", &name]);
            }
        }
        Domain { lab: self, host: host.to_owned(), name }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let hosts: Vec<&str> = self.hosts.lock().expect("locks").keys().copied().collect();
        for host in hosts {
            self.kill_host(host);
        }
        if self.layout.reflink || self.layout.memory {
            let _ = Command::new("umount").arg(self.shared()).status();
        }
        if self.layout.memory {
            let _ = Command::new("umount").arg(self.path("tmp")).status();
        }
        let _ = Command::new("umount").arg(self.small()).status();
    }
}

/// How libvirt knows a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `virsh create`.
    Transient,
    /// `virsh define` and `virsh start`.
    Persistent,
}

/// A running domain. Ends with the lab.
pub struct Domain<'a> {
    lab: &'a Lab,
    /// Where it runs.
    pub host: String,
    /// Its name.
    pub name: String,
}

impl Domain<'_> {
    /// `virsh <command> <domain> <words>` on its host.
    pub fn virsh(&self, command: &str, words: &[&str]) -> Output {
        self.lab.on(&self.host, &[&["virsh", "-q", command, &self.name], words].concat())
    }

    /// What libvirt calls its state: `running`, `paused` ….
    pub fn state(&self) -> String {
        String::from_utf8_lossy(&self.virsh("domstate", &[]).stdout).trim().to_owned()
    }

    /// File behind its disk.
    pub fn source(&self, target: &str) -> PathBuf {
        let list = self.lab.must(&self.host, &["virsh", "-q", "domblklist", &self.name]);
        let line = list.lines().find_map(|line| line.trim().strip_prefix(target)).expect("the disk");
        line.trim().into()
    }

    /// How often its guest has written to the first disk.
    pub fn writes(&self) -> u64 {
        let told = self.lab.must(&self.host, &["virsh", "-q", "domblkstat", &self.name, "hda"]);
        let count = told.lines().find_map(|line| line.split_once("wr_req")).expect("a count").1;
        count.trim().parse().expect("a number")
    }

    /// The highest number that its guest has written to the first disk, which must be whole: the domain stands still
    /// meanwhile, as in a power failure.
    pub fn highest(&self) -> u32 {
        assert!(self.virsh("suspend", &[]).status.success());
        let source = self.source("hda");
        let highest = self.lab.highest(&self.host, &source);
        assert!(self.virsh("resume", &[]).status.success());
        highest
    }

    /// Waits until the guest has written something new; gives the highest number.
    pub fn writes_on(&self) -> u32 {
        let before = self.highest();
        let mut now = before;
        let on = within(30, || {
            now = self.highest();
            now > before
        });
        assert!(on, "{}: it stays at {before}, {}", self.name, self.state());
        now
    }

    /// Ends it, as pulling the plug does.
    pub fn destroy(&self) {
        assert!(self.virsh("destroy", &[]).status.success());
    }
}

impl Lab {
    /// The highest number on a disk of a host, of any format and with its backing files, which must be whole.
    pub fn highest(&self, host: &str, disk: &Path) -> u32 {
        let raw = tempfile::Builder::new().suffix(".raw").tempfile_in(self.path("tmp")).expect("a file");
        let (from, to) = (disk.display().to_string(), raw.path().display().to_string());
        self.must(host, &["qemu-img", "convert", "-U", "-O", "raw", &from, &to]);
        writer::highest(raw.path())
    }
}

/// Runs a command, which must succeed.
pub fn run(command: &mut Command) {
    let done = command.output().expect("runs");
    let _ = std::io::stdout().write_all(&done.stdout);
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Waits for something, at most this many seconds.
pub fn within(seconds: u64, mut test: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        if test() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    test()
}
