//! A cloud in a temporary folder with traps around it: image datastore 1, system datastores 103 and 104, VM 7 with a
//! clone, a raw disk and a snapshot, and things that are somebody else's. Hosts are this machine behind a stand-in for
//! ssh, or a real sshd.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Stands in every file that nobody may read.
pub const CANARY: &str = "C4N4RY-0f-s0meb0dy-else";

/// What follows `--`, the host, is a command line for a shell.
const SSH: &str = "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done\n[ $# -ge 3 ] || exit 1\nshift 2\nexec sh -c \"$1\"\n";

/// What is judged: the binary of this build, or `ONESTORE_BIN`, an optimised one for long runs.
fn binary() -> PathBuf {
    std::env::var_os("ONESTORE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_onestore").into(), PathBuf::from)
}

/// The cloud.
pub struct Ground {
    root: tempfile::TempDir,
    /// The words of the ssh client.
    pub ssh: String,
}

impl Ground {
    /// A new one.
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        // Where the unprivileged part of a real server gets to as well.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("readable");
        let ground = Self { ssh: root.path().join("ssh").display().to_string(), root };
        for folder in
            ["seed/1", "seed/103/7/disk.0.snap", "seed/103/8", "seed/104", "outside/dir/7", "oned/vm", "oned/datastore"]
        {
            fs::create_dir_all(ground.path(folder)).expect("a folder");
        }
        for folder in ["one/etc", "one/var", "home/.one", "users", "bin", "locks", "tmp"] {
            fs::create_dir_all(ground.path(folder)).expect("a folder");
        }
        for file in [
            "outside/secret",
            "outside/dir/0",
            "outside/dir/1",
            "outside/dir/disk.0",
            "outside/dir/disk.2",
            "outside/dir/7/disk.0",
            "home/.one/one_auth",
            "one/etc/oned.conf",
        ] {
            fs::write(ground.path(file), format!("user:{CANARY}\n")).expect("a file of somebody else");
        }
        for file in ["seed/1/other", "seed/103/8/disk.0"] {
            fs::write(ground.path(file), format!("{CANARY}-other\n")).expect("a file of somebody else");
        }
        executable(&ground.path("ssh"), SSH);
        let trap = format!("#!/bin/sh\ntouch {}\n", ground.path("executed").display());
        executable(&ground.path("bin/trap"), &trap);
        fs::write(ground.path("users/in.raw"), vec![7; 64 << 10]).expect("an image");
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"], &[&ground.path("seed/1/abc")], &["1M"]);
        fs::write(ground.path("seed/103/7/disk.2"), vec![9; 64 << 10]).expect("a disk");
        let layer = |name: &str, backing: &str| {
            let path = ground.path("seed/103/7/disk.0.snap").join(name);
            let words = ["create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=4k", "-F", "qcow2", "-b", backing];
            qemu_img(&words, &[&path], &["1M"]);
        };
        // As a clone names it.
        layer("0", &ground.text("ds/1/abc"));
        layer("1", "disk.0.snap/0");
        symlink(".", ground.path("seed/103/7/disk.0.snap/disk.0.snap")).expect("the self link");
        symlink("disk.0.snap/1", ground.path("seed/103/7/disk.0")).expect("the disk");
        fs::write(ground.path("oned/hostpool.xml"), "<HOST_POOL></HOST_POOL>").expect("the hosts");
        fs::write(ground.path("oned/datastorepool.xml"), "<DATASTORE_POOL></DATASTORE_POOL>").expect("the pool");
        for id in [1, 103, 104] {
            let xml = format!("<DATASTORE><ID>{id}</ID><TEMPLATE></TEMPLATE></DATASTORE>");
            fs::write(ground.path(&format!("oned/datastore/{id}.xml")), xml).expect("a datastore");
        }
        ground.reset();
        ground
    }

    /// A path in its folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// The same as text.
    pub fn text(&self, below: &str) -> String {
        self.path(below).display().to_string()
    }

    /// Puts this binary where a host has it, so that scripts run in process there.
    pub fn with_agent(&self) {
        fs::create_dir_all(self.path("remotes/onestore")).expect("a folder");
        let (built, here) = (binary(), self.path("remotes/onestore/onestore"));
        fs::hard_link(&built, &here).or_else(|_| symlink(&built, &here)).expect("the binary");
    }

    /// Makes the datastores and the VM as they were in the beginning.
    pub fn reset(&self) {
        for folder in ["ds", "tmp"] {
            let _ = fs::remove_dir_all(self.path(folder));
        }
        fs::create_dir(self.path("tmp")).expect("a folder");
        copy_tree(&self.path("seed"), &self.path("ds"));
        fs::write(self.path("oned/vm/7.xml"), self.vm()).expect("the VM");
    }

    /// What is there now is what the datastores begin with from now on.
    pub fn settle(&self) {
        fs::remove_dir_all(self.path("seed")).expect("the old beginning");
        copy_tree(&self.path("ds"), &self.path("seed"));
    }

    /// VM 7 as oned knows it.
    pub fn vm(&self) -> String {
        let source = self.text("ds/1/abc");
        let disk = |id: u32, format: &str, more: &str| {
            format!(
                "<DISK><DISK_ID>{id}</DISK_ID><DATASTORE_ID>1</DATASTORE_ID><FORMAT>{format}</FORMAT><IMAGE_ID>3</IMAGE_ID>\
                 <ORIGINAL_SIZE>1</ORIGINAL_SIZE><SIZE>1</SIZE><SOURCE>{source}</SOURCE><TARGET>vda</TARGET>\
                 <TM_MAD>qcow2</TM_MAD><TYPE>FILE</TYPE>{more}</DISK>"
            )
        };
        let disks = [
            disk(0, "qcow2", "<CLONE>YES</CLONE>"),
            disk(1, "qcow2", "<CLONE>YES</CLONE><QCOW2_STANDALONE>yes</QCOW2_STANDALONE>"),
            disk(2, "raw", "<CLONE>YES</CLONE>"),
            disk(3, "qcow2", "<CLONE>NO</CLONE>"),
            "<DISK><DISK_ID>6</DISK_ID><FORMAT>raw</FORMAT><SIZE>2</SIZE></DISK>".to_owned(),
            "<DISK><DISK_ID>5</DISK_ID><FS>ext4</FS><FORMAT>raw</FORMAT><SIZE>8</SIZE></DISK>".to_owned(),
        ];
        format!(
            "<VM><ID>7</ID><NAME>v</NAME><DEPLOY_ID>one-7</DEPLOY_ID><STATE>8</STATE><LCM_STATE>0</LCM_STATE><TEMPLATE>{}\
             <CONTEXT><DISK_ID>9</DISK_ID></CONTEXT></TEMPLATE><HISTORY_RECORDS><HISTORY><HOSTNAME>node1</HOSTNAME>\
             <DS_ID>103</DS_ID><TM_MAD>qcow2</TM_MAD></HISTORY></HISTORY_RECORDS><SNAPSHOTS><DISK_ID>0</DISK_ID><SNAPSHOT>\
             <ID>0</ID><PARENT>-1</PARENT><NAME>s</NAME></SNAPSHOT></SNAPSHOTS></VM>",
            disks.concat()
        )
    }

    /// A call of the binary with these words, not started. Nothing of this process's environment is handed on.
    pub fn command<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mut command = Command::new(binary());
        command.args(words).env_clear().current_dir(self.path("tmp"));
        command.env("ONESTORE_ONED", format!("dir:{}", self.text("oned"))).env("ONE_LOCATION", self.path("one"));
        command.env("SSH", &self.ssh).env("ONESTORE_SSH", "openssh").env("HOME", self.path("home"));
        command.env("ONESTORE_LOCK_DIR", self.path("locks")).env("DS_DIR", self.path("ds"));
        command.env("SCRIPTS_REMOTE_DIR", self.path("remotes")).env("TMPDIR", self.path("tmp"));
        let bin = self.text("bin");
        command.env("PATH", format!("{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    /// The arguments of a transfer manager's action, honest ones, by their names in the table of actions.
    pub fn arguments(&self, names: &[&str]) -> Vec<OsString> {
        let sysdir = format!("node1:{}", self.text("ds").replacen("/ds", "//ds", 1));
        let one = |name: &&str| match name.trim_matches(['[', ']', '…']) {
            "FE:SOURCE" => format!("fe:{}", self.text("ds/1/abc")),
            "SOURCE" => self.text("ds/1/new"),
            "HOST:SYSDIR/disk.N" => format!("{sysdir}/103/7/disk.0"),
            "HOST:PATH" => format!("{sysdir}/103/7"),
            "HOST:SYSDIR" => sysdir.clone(),
            "SYSDIR" => format!("{}/103/7", self.text("ds")),
            "DATASTORE_DIR" => self.text("ds/103"),
            "DISK_PATH" => self.text("ds/103/7/disk.0"),
            "CONTEXT_SH" | "FILE" => self.text("users/in.raw"),
            "SRC_HOST" | "DST_HOST" | "REPLICA_HOST" => "node1".to_owned(),
            "VM_ID" => "7".to_owned(),
            "DS_ID" | "DATASTORE_ID" => "1".to_owned(),
            "SIZE_MB" => "4".to_owned(),
            "FORMAT" | "CALLER_MAD" => "qcow2".to_owned(),
            "SNAPSHOT_ID" => "0".to_owned(),
            "DEPLOY_ID" => "one-7".to_owned(),
            _ => "3".to_owned(),
        };
        names.iter().map(one).map(OsString::from).collect()
    }

    /// Everything that no action may change: by path, what it is.
    pub fn others(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for part in ["outside", "home", "one", "oned", "users", "bin", "seed", "ds/1/other", "ds/103/8"] {
            describe(&self.path(part), &mut found);
        }
        // What a real server's logins leave behind is not ours.
        found.retain(|path, _| !path.starts_with(self.path("oned/vm")));
        found
    }

    /// Files below these folders that hold the canary, besides those that always do.
    pub fn leaks(&self, folders: &[&str]) -> Vec<PathBuf> {
        let mut found = BTreeMap::new();
        for folder in folders {
            describe(&self.path(folder), &mut found);
        }
        let own = [self.path("ds/1/other"), self.path("ds/103/8/disk.0")];
        let holds = |(path, what): (PathBuf, String)| (what.contains(CANARY) && !own.contains(&path)).then_some(path);
        found.into_iter().filter_map(holds).collect()
    }
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[track_caller]
fn qemu_img(words: &[&str], paths: &[&Path], last: &[&str]) {
    let ran = Command::new("qemu-img").args(words).args(paths).args(last).output().expect("qemu-img");
    assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (here, there) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("a kind");
        if kind.is_symlink() {
            symlink(fs::read_link(&here).expect("a link"), &there).expect("a link");
        } else if kind.is_dir() {
            copy_tree(&here, &there);
        } else {
            fs::copy(&here, &there).expect("a copy");
        }
    }
}

/// Kind, mode and content of a path and of all below it.
fn describe(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let mode = meta.mode();
    let text = if meta.is_symlink() {
        format!("{mode:o} -> {}", fs::read_link(path).unwrap_or_default().display())
    } else if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            describe(&entry.path(), found);
        }
        format!("{mode:o}")
    } else if meta.is_file() {
        format!("{mode:o} {}", String::from_utf8_lossy(&fs::read(path).unwrap_or_default()))
    } else {
        format!("{mode:o}")
    };
    found.insert(path.to_owned(), text);
}
