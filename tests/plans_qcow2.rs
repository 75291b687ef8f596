//! Plan snapshots of the qcow2 transfer manager: what `explain` shows for every action, read as an operator would read it.
//!
//! Hosts are this machine under other names; every script that reaches one is counted: a host is asked once and changed
//! once. After a change: `INSTA_UPDATE=always cargo test --test plans_qcow2`, and read the difference.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use onestore::action::{Action, Kind};
use onestore::context::{Cx, Hosts};
use onestore::driver::{Driver, Reply, Request, Serve, TmRequest};
use onestore::exec::control::{Cancel, Control};
use onestore::exec::host::local::Local;
use onestore::exec::host::{Host, ScriptError};
use onestore::exec::interpret::Io;
use onestore::exec::op::{Script, Value};
use onestore::exec::process::Programs;

#[path = "hosts/calls.rs"]
#[allow(dead_code)]
mod calls;

use calls::Calls;

/// This machine under the name of a host; counts what reaches it.
struct Named {
    name: String,
    local: Local,
    runs: Arc<Mutex<Vec<String>>>,
}

impl Host for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        self.runs.lock().expect("counts").push(self.name.clone());
        self.local.run(script, io, control)
    }
}

struct ThisMachine {
    runs: Arc<Mutex<Vec<String>>>,
}

impl Hosts for ThisMachine {
    fn local(&self) -> Arc<dyn Host> {
        Arc::new(Local::new(Programs::from_env()))
    }

    fn remote(&self, name: &str) -> anyhow::Result<Arc<dyn Host>> {
        let (name, runs) = (name.to_owned(), Arc::clone(&self.runs));
        Ok(Arc::new(Named { name, local: Local::new(Programs::from_env()), runs }))
    }
}

/// A cloud with an image datastore (1), system datastores (103, 104) and one VM (7), in a temporary folder.
struct Cloud {
    root: tempfile::TempDir,
    runs: Arc<Mutex<Vec<String>>>,
    conf: Rc<RefCell<Vec<(&'static str, &'static str)>>>,
}

impl Cloud {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["ds/1", "ds/103/7", "vms", "oned/vm", "oned/datastore", "remotes"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let cloud = Self { root, runs: Arc::default(), conf: Rc::default() };
        cloud.vm("");
        cloud.datastores("");
        cloud
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// The VM: disk 0 a clone, 1 a larger clone that is allocated, 2 raw, 3 persistent, 4 persistent and raw, 5 volatile.
    fn vm(&self, state: &str) {
        let source = format!("{}//ds/1/abc", self.root.path().display());
        let disk = |id: u32, more: &str| format!("<DISK><DISK_ID>{id}</DISK_ID><SOURCE>{source}</SOURCE>{more}</DISK>");
        let disks = [
            disk(0, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><SIZE>1</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE>"),
            disk(
                1,
                "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><SIZE>2</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE><SPARSE>no</SPARSE>\
                 <QCOW2_STANDALONE>yes</QCOW2_STANDALONE>",
            ),
            disk(2, "<FORMAT>raw</FORMAT><CLONE>YES</CLONE><SIZE>2</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE>"),
            disk(3, "<FORMAT>qcow2</FORMAT><CLONE>NO</CLONE>"),
            disk(4, "<FORMAT>raw</FORMAT><CLONE>NO</CLONE>"),
            "<DISK><DISK_ID>5</DISK_ID><FS>ext4</FS></DISK>".to_owned(),
        ];
        let history = "<HISTORY_RECORDS><HISTORY><DS_ID>104</DS_ID></HISTORY><HISTORY><DS_ID>103</DS_ID><VM_MAD>kvm</VM_MAD>\
                       </HISTORY></HISTORY_RECORDS>";
        let xml = format!("<VM><ID>7</ID>{state}<TEMPLATE>{}</TEMPLATE>{history}</VM>", disks.concat());
        fs::write(self.path("oned/vm/7.xml"), xml).expect("the VM");
    }

    fn datastores(&self, image: &str) {
        let mut pool = String::new();
        for (id, template) in [(1, image), (103, ""), (104, "")] {
            let xml = format!("<DATASTORE><ID>{id}</ID><TEMPLATE>{template}</TEMPLATE></DATASTORE>");
            fs::write(self.path(&format!("oned/datastore/{id}.xml")), &xml).expect("a datastore");
            pool += &xml;
        }
        let pool = format!("<DATASTORE_POOL>{pool}</DATASTORE_POOL>");
        fs::write(self.path("oned/datastorepool.xml"), pool).expect("the datastores");
    }

    fn raw(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, vec![1; 1 << 20]).expect("a raw image");
        path
    }

    fn qcow2(&self, below: &str, backing: Option<&str>) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        let mut cmd = Command::new("qemu-img");
        cmd.args(["create", "-q", "-f", "qcow2"]);
        if let Some(backing) = backing {
            cmd.args(["-u", "-F", "qcow2", "-b"]).arg(backing);
        }
        assert!(cmd.arg(&path).arg("1M").status().expect("qemu-img").success());
        path
    }

    /// A disk with one snapshot: `0` on the image, `1` on that.
    fn layered(&self, disk: &str) {
        let dir = format!("ds/103/7/{disk}.snap");
        let image = self.path("ds/1/abc").display().to_string();
        self.qcow2(&format!("{dir}/0"), Some(&image));
        symlink(".", self.path(&format!("{dir}/{disk}.snap"))).expect("the self link");
        self.qcow2(&format!("{dir}/1"), Some(&format!("{disk}.snap/0")));
        symlink(format!("{disk}.snap/1"), self.path(&format!("ds/103/7/{disk}"))).expect("the disk");
    }

    fn args(&self, words: &[&str]) -> Vec<OsString> {
        let root = self.root.path().display().to_string();
        words.iter().map(|word| word.replace("{ds}", &format!("{root}//ds")).replace("{cloud}", &root).into()).collect()
    }

    /// Does an action, in the context of calls to this cloud.
    fn serve(&self, cx: &Cx<'_>, action: &str, words: &[&str], stdin: &str) -> anyhow::Result<Reply> {
        let driver = Driver::find(Kind::Tm, "qcow2").expect("qcow2");
        let (name, system) = action.split_once('.').map_or((action, None), |(name, system)| (name, Some(system)));
        match driver.entry(name, system).expect("the action").serve {
            Serve::Tm(serve) => {
                let action = Action::find(Kind::Tm, name).expect("the action").name;
                let vm = (!stdin.is_empty()).then(|| stdin.to_owned());
                serve(cx, &TmRequest { mad: "qcow2".to_owned(), action, args: self.args(words), vm })
            }
            Serve::Datastore(serve) => {
                let xml = stdin.replace("{ds}", &self.path("ds").display().to_string());
                let id = words[0].parse().expect("an id");
                serve(cx, &Request { id, data: onestore::payload::parse(&xml).expect("a document") })
            }
            other => panic!("{action} is {other:?}"),
        }
    }

    fn calls<T>(&self, body: impl FnOnce(&Calls<'_>) -> T) -> T {
        body(&Calls {
            mad: "qcow2",
            remotes: self.path("remotes"),
            datastores: Some(self.path("ds")),
            oned: Some(self.path("oned")),
            settings: &self.conf.borrow(),
            hosts: &ThisMachine { runs: Arc::clone(&self.runs) },
        })
    }

    /// What the action would do, in words without anything of this machine.
    fn explain_with(&self, action: &str, words: &[&str], stdin: &str) -> String {
        let call = format!("tm/qcow2/{action}");
        self.calls(|calls| calls.explain(&call, self.root.path(), |cx| self.serve(cx, action, words, stdin)))
    }

    fn explain(&self, action: &str, words: &[&str]) -> String {
        self.explain_with(action, words, "")
    }

    /// Does the action, and gives how many scripts each host ran.
    fn scripts(&self, action: &str, words: &[&str]) -> usize {
        self.reached(action, words, "").len()
    }

    /// Does the action, and gives the hosts that ran a script, in order.
    fn reached(&self, action: &str, words: &[&str], stdin: &str) -> Vec<String> {
        self.runs.lock().expect("counts").clear();
        let control = Control::new(Cancel::new());
        self.calls(|calls| calls.run(control, |cx| self.serve(cx, action, words, stdin))).expect(action);
        self.runs.lock().expect("counts").clone()
    }
}

macro_rules! plan {
    ($name:expr, $text:expr) => {
        insta::with_settings!({ snapshot_path => "plans/qcow2", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!($name, $text);
        });
    };
}

const SOURCE: &str = "fe:{ds}/1/abc";

fn on(disk: &str) -> String {
    format!("node1:{{ds}}/103/7/{disk}")
}

#[test]
fn clone() {
    let cloud = Cloud::new();
    let plan = |disk: &str| cloud.explain("clone", &[SOURCE, &on(disk), "7", "1"]);
    plan!("clone_missing", plan("disk.0"));
    cloud.qcow2("ds/1/abc", None);
    plan!("clone_overlay", plan("disk.0"));
    plan!("clone_standalone", plan("disk.1"));
    plan!("clone_unknown_disk", plan("disk.9"));
    plan!("clone_elsewhere", cloud.explain("clone", &[SOURCE, "node1:{ds}/103/8/disk.0", "7", "1"]));
    plan!("clone_ssh", cloud.explain("clone.ssh", &[SOURCE, &on("disk.0"), "7", "1"]));
    cloud.conf.borrow_mut().push(("QCOW2_OPTIONS", "-o compat=0.10"));
    cloud.layered("disk.0");
    plan!("clone_again_with_options", plan("disk.0"));
    cloud.raw("ds/1/abc");
    plan!("clone_raw", plan("disk.2"));
    plan!("clone_kernel", plan("kernel"));
}

#[test]
fn clone_from_a_datastore_that_is_mounted_on_demand() {
    let cloud = Cloud::new();
    cloud.datastores(
        "<NFS_AUTO_ENABLE>yes</NFS_AUTO_ENABLE><NFS_AUTO_HOST>nas</NFS_AUTO_HOST><NFS_AUTO_PATH>/vol</NFS_AUTO_PATH>\
         <NFS_AUTO_OPTS>soft</NFS_AUTO_OPTS>",
    );
    plan!("clone_nfs", cloud.explain("clone", &[SOURCE, &on("disk.0"), "7", "1"]));
}

#[test]
fn ln() {
    let cloud = Cloud::new();
    cloud.raw("ds/1/abc");
    plan!("ln_raw", cloud.explain("ln", &[SOURCE, &on("disk.4"), "7", "1"]));
    cloud.qcow2("ds/1/abc", None);
    plan!("ln_qcow2", cloud.explain("ln", &[SOURCE, &on("disk.3"), "7", "1"]));
    plan!("ln_ssh", cloud.explain("ln.ssh", &[SOURCE, &on("disk.3"), "7", "1"]));
    symlink(cloud.path("ds/1/abc"), {
        fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
        cloud.path("ds/1/abc.snap/0")
    })
    .expect("snapshot 0");
    symlink(".", cloud.path("ds/1/abc.snap/abc.snap")).expect("the self link");
    let backing = cloud.path("ds/1/abc.snap/0").display().to_string();
    cloud.qcow2("ds/1/abc.snap/1", Some(&backing));
    plan!("ln_qcow2_layers", cloud.explain("ln", &[SOURCE, &on("disk.3"), "7", "1"]));
    plan!("ln_ssh_layers", cloud.explain("ln.ssh", &[SOURCE, &on("disk.3"), "7", "1"]));
}

#[test]
fn moves() {
    let cloud = Cloud::new();
    cloud.qcow2("ds/1/abc", None);
    cloud.layered("disk.0");
    let mv = |action: &str, from: &str, to: &str| cloud.explain(action, &[from, to, "7", "103"]);
    plan!("mv", mv("mv", "node1:{ds}/103/7", "node2:{ds}/104/7"));
    plan!("mv_same_path", mv("mv", "node1:{ds}/103/7", "node2:{ds}/103/7"));
    plan!("mv_missing", mv("mv", "node1:{ds}/104/7", "node2:{ds}/103/7"));
    plan!("mv_ssh", mv("mv.ssh", "node1:{ds}/103/7", "node2:{ds}/104/7"));
    let standalone = cloud.qcow2("ds/103/7/disk.3.snap/0", None);
    symlink(".", standalone.with_file_name("disk.3.snap")).expect("the self link");
    cloud.qcow2("ds/103/7/disk.3.snap/1", Some("disk.3.snap/0"));
    symlink("disk.3.snap/1", cloud.path("ds/103/7/disk.3")).expect("the disk");
    plan!("mvds_ssh", cloud.explain("mvds.ssh", &[&on("disk.3"), "{ds}/1/abc", "7", "1"]));
}

#[test]
fn cpds() {
    let cloud = Cloud::new();
    cloud.qcow2("ds/1/abc", None);
    cloud.layered("disk.0");
    cloud.raw("ds/103/7/disk.2");
    let plan = |disk: &str, snapshot: &str| cloud.explain("cpds", &[&on(disk), "{ds}/1/new", snapshot, "7", "1"]);
    plan!("cpds", plan("disk.0", "-1"));
    plan!("cpds_snapshot", plan("disk.0", "0"));
    plan!("cpds_raw", plan("disk.2", "-1"));
    plan!("cpds_missing", plan("disk.0", "9"));
    cloud.vm("<LCM_STATE>26</LCM_STATE>");
    plan!("cpds_running", plan("disk.0", "-1"));
}

#[test]
fn disks_of_no_image() {
    let cloud = Cloud::new();
    plan!("mkimage", cloud.explain("mkimage", &["16", "qcow2", &on("disk.5"), "7", "103"]));
    plan!("mkswap", cloud.explain("mkswap", &["16", &on("disk.5"), "7", "103"]));
    plan!("delete_disk", cloud.explain("delete", &[&on("disk.5"), "7", "103"]));
    plan!("delete_vm", cloud.explain("delete", &["node1:{ds}/103/7", "7", "103"]));
    plan!("delete_datastore", cloud.explain("delete", &["node1:{ds}/103", "7", "103"]));
}

#[test]
fn resize() {
    let cloud = Cloud::new();
    cloud.qcow2("ds/1/abc", None);
    cloud.layered("disk.0");
    let plan = |mib: &str| cloud.explain("resize", &[&on("disk.0"), mib, "7", "1"]);
    plan!("resize", plan("4"));
    plan!("resize_smaller", plan("0"));
    cloud.vm("<LCM_STATE>62</LCM_STATE>");
    plan!("resize_running", plan("4"));
}

#[test]
fn context() {
    let cloud = Cloud::new();
    fs::write(cloud.path("vms/context.sh"), "A=1\n").expect("the script");
    let words = ["{cloud}/vms/context.sh", "{ds}/1/abc:'my", "script'", "https://h/x.tgz", "{cloud}/vms/token.txt"];
    let disk = on("disk.6");
    let words: Vec<&str> = words.iter().copied().chain([disk.as_str(), "7", "103"]).collect();
    plan!("context", cloud.explain("context", &words));
}

#[test]
fn migrations() {
    let cloud = Cloud::new();
    let vm =
        "<VM><ID>7</ID><TEMPLATE><DISK><TM_MAD>qcow2</TM_MAD></DISK><DISK><TM_MAD>ceph</TM_MAD></DISK></TEMPLATE></VM>";
    let plan = |action: &str| cloud.explain_with(action, &["node1", "node2", "{ds}/103/7", "7", "103"], vm);
    plan!(
        "premigrate",
        plan("premigrate").lines().filter(|line| !line.contains("/tm/ceph/")).collect::<Vec<_>>().join("\n")
    );
    fs::create_dir_all(cloud.path("ds/104/7")).expect("the old directory");
    plan!("postmigrate", plan("postmigrate"));
    fs::remove_dir(cloud.path("ds/103/7")).expect("removes");
    plan!("postmigrate_not_arrived", plan("postmigrate"));
}

#[test]
fn monitor() {
    let cloud = Cloud::new();
    let stdin = "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>105</ID></DATASTORE><DATASTORE_LOCATION>{ds}</DATASTORE_LOCATION>\
                 </DS_DRIVER_ACTION_DATA>";
    plan!("monitor_new", cloud.explain_with("monitor", &["105"], stdin));
}

/// Whether this is the process that tests. Actions take locks: in a folder of the test, which a process can only be told
/// when it starts.
fn has_locks_of_its_own(test: &str) -> bool {
    let has = std::env::var_os("ONESTORE_LOCK_DIR").is_some();
    if !has {
        let locks = tempfile::tempdir().expect("a temporary folder");
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        again.args(["--exact", test]).env("ONESTORE_LOCK_DIR", locks.path());
        assert!(again.status().expect("runs").success());
    }
    has
}

#[test]
fn migrations_and_monitoring_ask_each_host_once_and_change_it_once() {
    if !has_locks_of_its_own("migrations_and_monitoring_ask_each_host_once_and_change_it_once") {
        return;
    }
    let cloud = Cloud::new();
    let vm = "<VM><ID>7</ID><TEMPLATE><DISK><TM_MAD>qcow2</TM_MAD></DISK></TEMPLATE></VM>";
    let migrate = |action: &str| cloud.reached(action, &["node1", "node2", "{ds}/103/7", "7", "103"], vm);
    let none: [&str; 0] = [];
    // The disks are where they were.
    assert_eq!(migrate("premigrate"), none);
    assert_eq!(migrate("failmigrate"), none);
    // Where there is nothing to remove, and where there is.
    assert_eq!(migrate("postmigrate"), ["node2", "node1"]);
    fs::create_dir_all(cloud.path("ds/104/7")).expect("the old directory");
    assert_eq!(migrate("postmigrate"), ["node2", "node1", "node1"]);
    assert!(!cloud.path("ds/104/7").exists());
    // The front-end looks itself; a bridge is asked whether the directory is there, and for the space and all disks.
    let monitor = |bridges: &str| {
        let stdin = format!(
            "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>103</ID><TEMPLATE>{bridges}</TEMPLATE></DATASTORE>\
             <DATASTORE_LOCATION>{{ds}}</DATASTORE_LOCATION><MONITOR_VM_DISKS>1</MONITOR_VM_DISKS></DS_DRIVER_ACTION_DATA>"
        );
        cloud.reached("monitor", &["103"], &stdin)
    };
    assert_eq!(monitor(""), none);
    assert_eq!(monitor("<BRIDGE_LIST>node1</BRIDGE_LIST>"), ["node1", "node1"]);
}

#[test]
fn a_host_is_asked_once_and_changed_once() {
    if !has_locks_of_its_own("a_host_is_asked_once_and_changed_once") {
        return;
    }
    let cloud = Cloud::new();
    cloud.qcow2("ds/1/abc", None);
    fs::write(cloud.path("vms/context.sh"), "A=1\n").expect("the script");
    let (disk, persistent) = ("node1:{ds}/103/7/disk.0", "node1:{ds}/103/7/disk.3");
    // Scripts on the host: what it is asked, and what it does. Who reads a chain asks for its names, then for its headers.
    let all: [(&str, Vec<&str>, usize); 22] = [
        ("clone", vec![SOURCE, disk, "7", "1"], 2),
        ("ln", vec![SOURCE, persistent, "7", "1"], 2),
        ("clone.ssh", vec![SOURCE, "node1:{ds}/103/7/disk.1", "7", "1"], 2),
        ("mkimage", vec!["1", "raw", "node1:{ds}/103/7/disk.5", "7", "103"], 2),
        ("mkswap", vec!["1", "node1:{ds}/103/7/disk.5", "7", "103"], 2),
        // What is streamed has a script of its own, and is compared before it is put in place.
        ("context", vec!["{cloud}/vms/context.sh", "node1:{ds}/103/7/disk.6", "7", "103"], 3),
        ("resize", vec![disk, "4", "7", "1"], 2),
        ("snap_create", vec![disk, "0", "7", "1"], 3),
        ("snap_create", vec![disk, "1", "7", "1"], 3),
        ("snap_revert", vec![disk, "0", "7", "1"], 3),
        ("snap_delete", vec![disk, "0", "7", "1"], 3),
        ("snap_create", vec![persistent, "0", "7", "1"], 3),
        // Nothing was written since.
        ("snap_revert", vec![persistent, "0", "7", "1"], 2),
        ("snap_delete", vec![persistent, "0", "7", "1"], 3),
        ("cpds", vec![disk, "{ds}/1/new", "-1", "7", "1"], 2),
        ("cpds.ssh", vec![disk, "{ds}/1/new", "1", "7", "1"], 2),
        ("mv", vec!["node1:{ds}/103/7", "node1:{ds}/104/7", "7", "104"], 3),
        ("mv", vec!["node1:{ds}/104/7", "node1:{ds}/103/7", "7", "103"], 3),
        ("delete", vec![persistent, "7", "103"], 1),
        ("ln.ssh", vec![SOURCE, persistent, "7", "1"], 4),
        ("snap_create.ssh", vec![persistent, "9", "7", "1"], 3),
        // The copy is looked at before the original goes.
        ("mvds.ssh", vec![persistent, "{ds}/1/abc", "7", "1"], 5),
    ];
    let counted: Vec<_> = all.iter().map(|(action, words, _)| (*action, cloud.scripts(action, words))).collect();
    assert_eq!(counted, all.iter().map(|(action, _, scripts)| (*action, *scripts)).collect::<Vec<_>>());
    // However many layers there are.
    let other = Cloud::new();
    other.qcow2("ds/1/abc", None);
    other.layered("disk.0");
    let snapshot = "<SNAPSHOT><ID>0</ID></SNAPSHOT>";
    other.vm(&format!("<SNAPSHOTS><DISK_ID>0</DISK_ID>{snapshot}</SNAPSHOTS>"));
    assert_eq!(other.scripts("resize", &[disk, "8", "7", "1"]), 2);
    assert_eq!(other.scripts("cpds", &[disk, "{ds}/1/saved", "-1", "7", "1"]), 2);
    fs::rename(cloud.path("ds/103/7"), cloud.path("ds/104/7")).expect("renames");
    assert_eq!(cloud.scripts("delete", &["node1:{ds}/104/7", "7", "104"]), 1);
    assert!(!Path::new(&cloud.path("ds/104/7")).exists());
}
