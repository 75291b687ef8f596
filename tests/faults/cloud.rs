//! A cloud in a temporary folder whose host is this machine behind a stand-in for ssh, so that scripts go through sh as on
//! a host where the binary does not stand. Actions are calls of the real binary.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use onestore::exec::staging::Owner;
use rustix::process::{Pid, Signal, kill_process_group};

/// The cloud: image datastore 1, system datastores 103 and 104, VM 7.
pub struct Cloud {
    root: tempfile::TempDir,
    /// The transfer manager that is called.
    mad: &'static str,
}

/// ssh: runs the command here. Files beside it make it a bad connection:
/// `down` (refuses), `cut` (holds `N SECONDS`: the N-th connection from now on is cut after so long), `bin` (programs of the
/// host), `hidden` (a program that the host does not have; needs namespaces).
const SSH: &str = r#"#!/bin/sh
me=$0
while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
[ $# -ge 3 ] || exit 1
[ ! -e "$me.down" ] || { echo "ssh: connect to host $2 port 22: Connection refused" >&2; exit 255; }
shift 2
PATH=$me.bin:$PATH
if [ -e "$me.cut" ]; then
    echo >>"$me.calls"
    read -r nth seconds <"$me.cut"
    if [ "$(wc -l <"$me.calls")" -ge "$nth" ]; then timeout -s KILL "$seconds" sh -c "$1"; exit 255; fi
fi
if [ -e "$me.hidden" ]; then
    export me
    exec unshare -rm sh -c 'mkdir "$me.real.$$" && mount --bind /usr/bin "$me.real.$$" && mount -t tmpfs tmpfs /usr/bin &&
        "$me.real.$$/ln" -s "$me.real.$$"/* /usr/bin/ && rm "/usr/bin/$(cat "$me.hidden")" && exec sh -c "$1"' sh "$1"
fi
exec sh -c "$1"
"#;

/// Leaves in a directory what a killed action has left there, before anything else: the claim of a process of this machine
/// that has ended. Gives the staging directory.
pub fn left_by_the_dead(base: &Path) -> PathBuf {
    let mut ended = Command::new("true").spawn().expect("true");
    ended.wait().expect("waits");
    let me = Owner::me().expect("proc").tag();
    let mut parts: Vec<String> = me.split('-').map(str::to_owned).collect();
    parts[3] = format!("{:x}", ended.id());
    let staging = base.join(".onestore");
    fs::create_dir_all(&staging).expect("a folder");
    fs::write(staging.join(format!("{}.claim.part", parts.join("-"))), "").expect("a claim");
    staging
}

impl Cloud {
    pub fn new() -> Self {
        Self::of("qcow2")
    }

    /// A cloud of another transfer manager.
    pub fn of(mad: &'static str) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["ds/1", "ds/103/7", "ds/104", "oned/vm", "oned/datastore", "one/etc", "one/var", "home", "vms"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let cloud = Self { root, mad };
        fs::write(cloud.path("ssh"), SSH).expect("ssh");
        fs::set_permissions(cloud.path("ssh"), fs::Permissions::from_mode(0o755)).expect("executable");
        cloud.vm(0, "kvm", "one-7");
        for id in [1, 103, 104] {
            let xml = format!("<DATASTORE><ID>{id}</ID></DATASTORE>");
            fs::write(cloud.path(&format!("oned/datastore/{id}.xml")), xml).expect("a datastore");
        }
        cloud
    }

    /// VM 7 as oned has it: clones 0 and 1 (standalone), 2 raw, 3 and 4 (raw) persistent, 5 volatile.
    pub fn vm(&self, lcm: u32, hypervisor: &str, name: &str) {
        let source = self.path("ds/1/abc").display().to_string();
        let disk = |id: u32, more: &str| {
            format!("<DISK><DISK_ID>{id}</DISK_ID><SOURCE>{source}</SOURCE><TARGET>vda</TARGET>{more}</DISK>")
        };
        let disks = [
            disk(0, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE>"),
            disk(1, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><QCOW2_STANDALONE>yes</QCOW2_STANDALONE>"),
            disk(2, "<FORMAT>raw</FORMAT><CLONE>YES</CLONE>"),
            disk(3, "<FORMAT>qcow2</FORMAT><CLONE>NO</CLONE>"),
            disk(4, "<FORMAT>raw</FORMAT><CLONE>NO</CLONE>"),
            "<DISK><DISK_ID>5</DISK_ID><FS>ext4</FS></DISK>".to_owned(),
        ];
        let vm = format!(
            "<VM><ID>7</ID><LCM_STATE>{lcm}</LCM_STATE><DEPLOY_ID><![CDATA[{name}]]></DEPLOY_ID><TEMPLATE>{}</TEMPLATE>\
             <HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><VM_MAD>{hypervisor}</VM_MAD></HISTORY></HISTORY_RECORDS></VM>",
            disks.concat()
        );
        fs::write(self.path("oned/vm/7.xml"), vm).expect("the VM");
    }

    /// A clone with `snapshots` snapshots, each with data of its own; the current file is the last one.
    pub fn layered(&self, disk: &str, snapshots: u32) {
        let image = self.qcow2("ds/1/abc", 1);
        let folder = self.path(&format!("ds/103/7/{disk}.snap"));
        fs::create_dir(&folder).expect("layers");
        symlink(".", folder.join(format!("{disk}.snap"))).expect("the self link");
        let mut backing = image.display().to_string();
        for layer in 0..=snapshots {
            let path = folder.join(layer.to_string());
            qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &backing], &[&path]);
            Self::write(&path, u64::from(layer), layer + 1);
            backing = format!("{disk}.snap/{layer}");
        }
        symlink(format!("{disk}.snap/{snapshots}"), self.path(&format!("ds/103/7/{disk}"))).expect("the disk");
    }

    /// Has a guest write block `block` of a disk.
    pub fn write(disk: &Path, block: u64, pattern: u32) {
        let write = format!("write -q -P {pattern} {}k 64k", block * 64);
        let ran = Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(disk).output().expect("qemu-io");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }

    /// What a guest would read, as a raw file beside the cloud.
    pub fn content(&self, disk: &Path) -> Vec<u8> {
        let raw = self.path("content");
        qemu_img(&["convert", "-U", "-f", "qcow2", "-O", "raw"], &[disk, &raw]);
        fs::read(raw).expect("reads")
    }

    /// The action fails and says so in one line, which is given.
    #[track_caller]
    pub fn fails(&self, action: &str, words: &[&str]) -> String {
        let ran = self.command(action, words).output().expect("runs");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success(), "{action} does not fail: {said}");
        let is_log = |line: &str| ["INFO:", "WARN:", "ERROR:", "DEBUG:"].iter().any(|level| line.starts_with(level));
        let plain: Vec<&str> = said.lines().filter(|line| !is_log(line)).collect();
        assert_eq!(plain.len(), 1, "{action}: {said}");
        plain[0].to_owned()
    }

    /// Waits until nothing of a killed action runs any more: the host notices a little later.
    pub fn settle(&self) {
        let me = self.root.path().as_os_str().as_encoded_bytes();
        let ours = |entry: &fs::DirEntry| {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            environ.windows(me.len()).any(|part| part == me)
        };
        let until = Instant::now() + Duration::from_secs(20);
        while fs::read_dir("/proc").expect("proc").flatten().any(|entry| ours(&entry)) {
            assert!(Instant::now() < until, "a killed action runs on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Gives the host a program, as a script of sh.
    pub fn program(&self, name: &str, text: &str) {
        let path = self.path("ssh.bin").join(name);
        fs::create_dir_all(self.path("ssh.bin")).expect("a folder");
        fs::write(&path, format!("#!/bin/sh\n{text}")).expect("a program");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Makes the connection a bad one: see `SSH`; nothing makes it a good one again.
    pub fn connection(&self, bad: &str, how: &str) {
        for file in ["down", "cut", "calls", "hidden"] {
            drop(fs::remove_file(self.path(&format!("ssh.{file}"))));
        }
        if !bad.is_empty() {
            fs::write(self.path(&format!("ssh.{bad}")), how).expect("writes");
        }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn command(&self, action: &str, words: &[&str]) -> Command {
        let root = self.root.path().display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_onestore"));
        command
            .args(["tm", self.mad, action])
            .args(words.iter().map(|word| word.replace("{ds}", &format!("{root}//ds"))));
        command.env_clear().env("ONESTORE_ONED", format!("dir:{root}/oned")).env("ONE_LOCATION", self.path("one"));
        command.env("SSH", self.path("ssh")).env("ONESTORE_SSH", "openssh").env("HOME", self.path("home"));
        command.env("ONESTORE_LOCK_DIR", self.path("locks")).env("DS_DIR", self.path("ds"));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    pub fn start(&self, action: &str, words: &[&str]) -> Child {
        self.command(action, words).spawn().expect("starts")
    }

    #[track_caller]
    pub fn done(&self, action: &str, words: &[&str]) -> Output {
        let ran = self.command(action, words).output().expect("runs");
        assert!(ran.status.success(), "{action}: {}", String::from_utf8_lossy(&ran.stderr));
        ran
    }

    /// An image with data that does not compress to nothing.
    pub fn image(&self, below: &str, mib: u32) -> PathBuf {
        let path = self.path(below);
        let bytes: Vec<u8> = (0..mib << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
        fs::write(&path, bytes).expect("an image");
        path
    }

    pub fn qcow2(&self, below: &str, mib: u32) -> PathBuf {
        let raw = self.image("raw", mib);
        let path = self.path(below);
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &path]);
        fs::remove_file(raw).expect("removes");
        path
    }

    /// All paths below the datastores, and what they are.
    pub fn listing(&self) -> Vec<String> {
        let found = Command::new("find").arg(self.path("ds")).args(["-printf", "%P %y %l\\n"]).output().expect("find");
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    pub fn staged(&self) -> Vec<String> {
        self.listing().into_iter().filter(|line| line.contains(".onestore")).collect()
    }
}

#[track_caller]
pub fn qemu_img(words: &[&str], paths: &[&Path]) {
    let ran = Command::new("qemu-img").args(words).args(paths).output().expect("qemu-img");
    assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Whether a guest reads the same from both.
pub fn same(a: &Path, b: &Path) -> bool {
    Command::new("qemu-img").arg("compare").args(["-q", "-U"]).args([a, b]).status().expect("qemu-img").success()
}

pub fn signal(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}
