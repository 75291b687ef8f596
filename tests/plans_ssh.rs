//! Plan snapshots of the ssh transfer manager: what `explain` shows for every action, read as an operator would read it.
//!
//! After a change: `INSTA_UPDATE=always cargo test --test plans_ssh`, and read the difference.

use std::fs;
use std::os::unix::fs::symlink;

#[macro_use]
#[path = "hosts/plan.rs"]
mod plan;
#[path = "hosts/tm_cloud.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod tm_cloud;

use tm_cloud::Cloud;

/// Where the snapshots lie.
const PLANS: &str = "plans/ssh";

/// The image on the front-end, which is what a source without a host is too.
const SOURCE: &str = "{ds}/1/abc";

fn on(disk: &str) -> String {
    format!("node1:{{ds}}/103/7/{disk}")
}

/// A system datastore with a replica host, and where that keeps what it has of VMs.
fn replicated(cloud: &Cloud) {
    let xml = "<DATASTORE><ID>103</ID><TEMPLATE><REPLICA_HOST>replica</REPLICA_HOST></TEMPLATE></DATASTORE>";
    fs::write(cloud.path("oned/datastore/103.xml"), xml).expect("a datastore");
    let host = "<HOST><NAME>node1</NAME><TEMPLATE><REPLICA_STORAGE_IP>10.0.0.7</REPLICA_STORAGE_IP></TEMPLATE></HOST>";
    fs::write(cloud.path("oned/hostpool.xml"), format!("<HOST_POOL>{host}</HOST_POOL>")).expect("the hosts");
    let etc = cloud.path("remotes/etc/tm/ssh");
    fs::create_dir_all(&etc).expect("a folder");
    let conf = format!("REPLICA_RECOVERY_SNAPS_DIR={}\n", cloud.path("kept").display());
    fs::write(etc.join("sshrc"), conf).expect("the configuration");
}

/// A disk of which recovery snapshots are taken.
fn recoverable(cloud: &Cloud, below: &str, disk: &str) {
    cloud.qcow2(&format!("{below}/{disk}.snap/base"), None);
    symlink(".", cloud.path(&format!("{below}/{disk}.snap/{disk}.snap"))).expect("the self link");
    cloud.qcow2(&format!("{below}/{disk}.snap/base.1"), Some(&format!("{disk}.snap/base")));
    symlink(format!("{disk}.snap/base.1"), cloud.path(&format!("{below}/{disk}"))).expect("the disk");
}

#[test]
fn clone() {
    let cloud = Cloud::new("ssh");
    let plan = |disk: &str| cloud.explain("clone", &[SOURCE, &on(disk), "7", "1"]);
    plan!("clone_missing", plan("disk.0"));
    cloud.qcow2("ds/1/abc", None);
    plan!("clone_qcow2", plan("disk.0"));
    plan!("clone_larger_and_allocated", plan("disk.1"));
    plan!("clone_from_host", cloud.explain("clone", &["node2:{ds}/1/abc", &on("disk.0"), "7", "1"]));
    plan!("clone_unknown_disk", plan("disk.9"));
    plan!("clone_elsewhere", cloud.explain("clone", &[SOURCE, "node1:{ds}/103/8/disk.0", "7", "1"]));
    cloud.raw("ds/1/abc");
    cloud.raw("ds/1/abc.snap/0");
    plan!("clone_raw_with_snapshot", plan("disk.2"));
    plan!("clone_kernel", plan("kernel"));
    plan!("ln_raw", cloud.explain("ln", &[SOURCE, &on("disk.4"), "7", "1"]));
    cloud.qcow2("ds/1/abc", Some("/etc/passwd"));
    fs::remove_dir_all(cloud.path("ds/1/abc.snap")).expect("removes");
    plan!("clone_of_what_stands_on_another_file", plan("disk.0"));
}

#[test]
fn clone_of_an_image_that_shared_storage_has_used() {
    let cloud = Cloud::new("ssh");
    let image = cloud.qcow2("ds/1/abc", None);
    fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
    symlink(&image, cloud.path("ds/1/abc.snap/0")).expect("snapshot 0");
    symlink(".", cloud.path("ds/1/abc.snap/abc.snap")).expect("the self link");
    let backing = cloud.path("ds/1/abc.snap/0").display().to_string();
    cloud.qcow2("ds/1/abc.snap/1", Some(&backing));
    plan!("ln_layers_of_shared", cloud.explain("ln", &[SOURCE, &on("disk.3"), "7", "1"]));
}

#[test]
fn replica() {
    let cloud = Cloud::new("ssh");
    cloud.qcow2("ds/1/abc", None);
    let clone = |disk: &str| cloud.explain("clone", &[SOURCE, &on(disk), "7", "1"]);
    plan!("replica_none", cloud.explain("clone.replica", &[SOURCE, &on("disk.0"), "7", "1"]));
    replicated(&cloud);
    plan!("replica_given", cloud.explain("ln.replica", &[SOURCE, &on("disk.3"), "7", "1", "other"]));
    plan!("replica_clone", clone("disk.0"));
    let vm = fs::read_to_string(cloud.path("oned/vm/7.xml")).expect("the VM");
    let vm = vm.replace("<CLONE>", "<RECOVERY_SNAPSHOT_FREQ>60</RECOVERY_SNAPSHOT_FREQ><CLONE>");
    fs::write(cloud.path("oned/vm/7.xml"), vm).expect("the VM");
    plan!("replica_recoverable", clone("disk.1"));
    recoverable(&cloud, "kept/7", "disk.0");
    plan!("replica_recovers", clone("disk.0"));
    plan!("replica_delete_disk", cloud.explain("delete", &[&on("disk.0"), "7", "1"]));
    plan!("replica_delete_vm", cloud.explain("delete", &["node1:{ds}/103/7", "7", "103"]));
    cloud.raw("ds/103/7/disk.2");
    plan!("replica_snap_create", cloud.explain("snap_create", &[&on("disk.2"), "0", "7", "103"]));
}

#[test]
fn recovery() {
    let cloud = Cloud::new("ssh");
    replicated(&cloud);
    recoverable(&cloud, "ds/103/7", "disk.0");
    cloud.qcow2("ds/103/7/disk.0.snap/0", None);
    let plan = |action: &str, id: &str| cloud.explain(action, &[&on("disk.0"), id, "7", "103"]);
    plan!("layers_snap_create", plan("snap_create", "1"));
    plan!("layers_snap_create_again", plan("snap_create", "0"));
    plan!("layers_snap_revert", plan("snap_revert", "0"));
    plan!("layers_snap_revert_missing", plan("snap_revert", "5"));
    plan!("layers_snap_delete", plan("snap_delete", "0"));
    plan!("layers_mvds", cloud.explain("mvds", &[&on("disk.0"), "{ds}/1/abc", "7", "1"]));
    plan!("layers_cpds", cloud.explain("cpds", &[&on("disk.0"), "{ds}/1/new", "-1", "7", "1"]));
    plan!("layers_resize", cloud.explain("resize", &[&on("disk.0"), "4", "7", "103"]));
}

#[test]
fn moves() {
    let cloud = Cloud::new("ssh");
    cloud.qcow2("ds/103/7/disk.0", None);
    cloud.qcow2("ds/103/7/disk.0.snap/0", None);
    plan!("mv_disk", cloud.explain("mv", &[&on("disk.0"), "node2:{ds}/104/7/disk.0", "7", "103"]));
    plan!("mv", cloud.explain("mv", &["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "103"]));
    cloud.raw("ds/1/abc");
    cloud.raw("ds/103/7/disk.4");
    cloud.raw("ds/103/7/disk.4.snap/0");
    plan!("mvds", cloud.explain("mvds", &[&on("disk.4"), "{ds}/1/abc", "7", "1"]));
    plan!("mvds_to_host", cloud.explain("mvds", &[&on("disk.4"), "node2:{ds}/1/abc", "7", "1"]));
    plan!("mvds_missing", cloud.explain("mvds", &[&on("disk.3"), "{ds}/1/abc", "7", "1"]));
    symlink("/etc/passwd", cloud.path("ds/103/7/disk.3")).expect("a link");
    plan!("mvds_of_a_link_elsewhere", cloud.explain("mvds", &[&on("disk.3"), "{ds}/1/abc", "7", "1"]));
}

#[test]
fn cpds() {
    let cloud = Cloud::new("ssh");
    cloud.qcow2("ds/103/7/disk.0", None);
    cloud.qcow2("ds/103/7/disk.0.snap/0", None);
    let plan = |snapshot: &str| cloud.explain("cpds", &[&on("disk.0"), "{ds}/1/new", snapshot, "7", "1"]);
    plan!("cpds", plan("-1"));
    plan!("cpds_snapshot", plan("0"));
    plan!("cpds_missing", plan("9"));
    cloud.vm("<LCM_STATE>26</LCM_STATE>");
    plan!("cpds_running", plan("-1"));
}

#[test]
fn snapshots() {
    let cloud = Cloud::new("ssh");
    cloud.qcow2("ds/103/7/disk.0", None);
    cloud.qcow2("ds/103/7/disk.0.snap/0", None);
    let plan = |action: &str, id: &str| cloud.explain(action, &[&on("disk.0"), id, "7", "103"]);
    plan!("snap_create", plan("snap_create", "1"));
    plan!("snap_create_again", plan("snap_create", "0"));
    plan!("snap_revert", plan("snap_revert", "0"));
    plan!("snap_revert_missing", plan("snap_revert", "5"));
    plan!("snap_delete", plan("snap_delete", "0"));
    plan!("snap_delete_missing", plan("snap_delete", "5"));
}

#[test]
fn migration() {
    let cloud = Cloud::new("ssh");
    let vm = "<VM><ID>7</ID><TEMPLATE></TEMPLATE></VM>";
    let plan = |action: &str, to: &str, ds: &str| {
        cloud.explain_with(action, &["node1", "node2", &format!("{{ds}}/{to}/7"), "7", ds], vm)
    };
    plan!("premigrate", plan("premigrate", "104", "104"));
    fs::create_dir_all(cloud.path("ds/104/7")).expect("a folder");
    plan!("premigrate_in_the_way", plan("premigrate", "104", "104"));
    fs::create_dir_all(cloud.path("ds/103/7")).expect("a folder");
    plan!("postmigrate", plan("postmigrate", "103", "103"));
}

#[test]
fn disks_of_no_image() {
    let cloud = Cloud::new("ssh");
    plan!("mkimage", cloud.explain("mkimage", &["16", "qcow2", &on("disk.5"), "7", "103"]));
    plan!("mkswap", cloud.explain("mkswap", &["16", &on("disk.5"), "7", "103"]));
    plan!("delete_disk", cloud.explain("delete", &[&on("disk.5"), "7", "103"]));
    plan!("delete_vm", cloud.explain("delete", &["node1:{ds}/103/7", "7", "103"]));
    fs::write(cloud.path("vms/context.sh"), "A=1\n").expect("the script");
    plan!("context", cloud.explain("context", &["{cloud}/vms/context.sh", &on("disk.6"), "7", "103"]));
}
