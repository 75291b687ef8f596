//! Plan snapshots of the qcow2 transfer manager: what `explain` shows for every action, read as an operator would read it.
//!
//! Hosts are this machine under other names; every script that reaches one is counted: a host is asked once and changed
//! once. After a change: `INSTA_UPDATE=always cargo test --test plans_qcow2`, and read the difference.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

#[macro_use]
#[path = "hosts/plan.rs"]
mod plan;
#[path = "hosts/tm_cloud.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod tm_cloud;

use tm_cloud::Cloud;

/// Where the snapshots lie.
const PLANS: &str = "plans/qcow2";

const SOURCE: &str = "fe:{ds}/1/abc";

fn on(disk: &str) -> String {
    format!("node1:{{ds}}/103/7/{disk}")
}

#[test]
fn clone() {
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
    cloud.datastores(
        "<NFS_AUTO_ENABLE>yes</NFS_AUTO_ENABLE><NFS_AUTO_HOST>nas</NFS_AUTO_HOST><NFS_AUTO_PATH>/vol</NFS_AUTO_PATH>\
         <NFS_AUTO_OPTS>soft</NFS_AUTO_OPTS>",
    );
    plan!("clone_nfs", cloud.explain("clone", &[SOURCE, &on("disk.0"), "7", "1"]));
}

#[test]
fn ln() {
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
    plan!("mkimage", cloud.explain("mkimage", &["16", "qcow2", &on("disk.5"), "7", "103"]));
    plan!("mkswap", cloud.explain("mkswap", &["16", &on("disk.5"), "7", "103"]));
    plan!("delete_disk", cloud.explain("delete", &[&on("disk.5"), "7", "103"]));
    plan!("delete_vm", cloud.explain("delete", &["node1:{ds}/103/7", "7", "103"]));
    plan!("delete_datastore", cloud.explain("delete", &["node1:{ds}/103", "7", "103"]));
}

#[test]
fn resize() {
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
    fs::write(cloud.path("vms/context.sh"), "A=1\n").expect("the script");
    let words = ["{cloud}/vms/context.sh", "{ds}/1/abc:'my", "script'", "https://h/x.tgz", "{cloud}/vms/token.txt"];
    let disk = on("disk.6");
    let words: Vec<&str> = words.iter().copied().chain([disk.as_str(), "7", "103"]).collect();
    plan!("context", cloud.explain("context", &words));
}

#[test]
fn migrations() {
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
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
    let cloud = Cloud::new("qcow2");
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
    let other = Cloud::new("qcow2");
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
