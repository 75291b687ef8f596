//! Plan snapshots of the local transfer manager: what `explain` shows for every action, read as an operator would read it.
//!
//! After a change: `INSTA_UPDATE=always cargo test --test plans_local`, and read the difference.

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
const PLANS: &str = "plans/local";

/// The image on the front-end, which is what a source without a host is too.
const SOURCE: &str = "{ds}/1/abc";

fn on(disk: &str) -> String {
    format!("node1:{{ds}}/103/7/{disk}")
}

/// A disk with one snapshot: `0`, and `1` on that.
fn layered(cloud: &Cloud, disk: &str) {
    cloud.qcow2(&format!("ds/103/7/{disk}.snap/0"), None);
    cloud.qcow2(&format!("ds/103/7/{disk}.snap/1"), Some(&format!("{disk}.snap/0")));
    symlink(".", cloud.path(&format!("ds/103/7/{disk}.snap/{disk}.snap"))).expect("the self link");
    symlink(format!("{disk}.snap/1"), cloud.path(&format!("ds/103/7/{disk}"))).expect("the disk");
}

#[test]
fn clone() {
    let cloud = Cloud::new("local");
    let plan = |disk: &str| cloud.explain("clone", &[SOURCE, &on(disk), "7", "1"]);
    plan!("clone_missing", plan("disk.0"));
    cloud.qcow2("ds/1/abc", None);
    plan!("clone_qcow2", plan("disk.0"));
    plan!("clone_allocated", plan("disk.1"));
    plan!("clone_from_host", cloud.explain("clone", &["node2:{ds}/1/abc", &on("disk.0"), "7", "1"]));
    plan!("clone_unknown_disk", plan("disk.9"));
    layered(&cloud, "disk.0");
    plan!("clone_again", plan("disk.0"));
    cloud.raw("ds/1/abc");
    plan!("clone_raw", plan("disk.2"));
    plan!("clone_kernel", plan("kernel"));
    plan!("clone_raw_for_qcow2", plan("disk.0"));
}

#[test]
fn ln() {
    let cloud = Cloud::new("local");
    cloud.raw("ds/1/abc");
    cloud.raw("ds/1/abc.snap/0");
    plan!("ln_raw", cloud.explain("ln", &[SOURCE, &on("disk.4"), "7", "1"]));
    fs::remove_dir_all(cloud.path("ds/1/abc.snap")).expect("removes");
    fs::remove_file(cloud.path("ds/1/abc")).expect("removes");
    cloud.qcow2("ds/1/abc.snap/0", None);
    cloud.qcow2("ds/1/abc.snap/2", Some("0"));
    fs::write(cloud.path("ds/1/abc.snap/1.current"), "/x/disk.3.snap/0\n").expect("the marker");
    symlink("abc.snap/2", cloud.path("ds/1/abc")).expect("the image");
    plan!("ln_layers", cloud.explain("ln", &[SOURCE, &on("disk.3"), "7", "1"]));
    plan!("clone_layers", cloud.explain("clone", &[SOURCE, &on("disk.0"), "7", "1"]));
}

#[test]
fn ln_of_an_image_that_shared_storage_has_used() {
    let cloud = Cloud::new("local");
    let image = cloud.qcow2("ds/1/abc", None);
    fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
    symlink(&image, cloud.path("ds/1/abc.snap/0")).expect("snapshot 0");
    symlink(".", cloud.path("ds/1/abc.snap/abc.snap")).expect("the self link");
    let backing = cloud.path("ds/1/abc.snap/0").display().to_string();
    cloud.qcow2("ds/1/abc.snap/1", Some(&backing));
    plan!("ln_layers_of_shared", cloud.explain("ln", &[SOURCE, &on("disk.3"), "7", "1"]));
}

#[test]
fn cache() {
    let cloud = Cloud::new("local");
    cloud.qcow2("ds/1/abc", None);
    let path = cloud.path("cache").display().to_string();
    let template = format!(
        "<CACHE_ENABLE>YES</CACHE_ENABLE><CACHE_PATH>{path}</CACHE_PATH><CACHE_MAX_SIZE>100</CACHE_MAX_SIZE>\
         <CACHE_UPSTREAMS>node1,node2</CACHE_UPSTREAMS>"
    );
    cloud.datastores(&template);
    cloud.image("<PERSISTENT>0</PERSISTENT><MODTIME>1700000000</MODTIME>");
    let plan = || cloud.explain("clone", &[SOURCE, &on("disk.0"), "7", "1"]);
    plan!("cache_miss", plan());
    fs::create_dir(cloud.path("cache")).expect("the cache");
    fs::copy(cloud.path("ds/1/abc"), cloud.path("cache/abc")).expect("the image");
    let metadata = |modtime: &str| {
        let text = format!("---\n:last_used: '2026-11-21T20:31:05+00:00'\n:modtime: '{modtime}'\n");
        fs::write(cloud.path("cache/abc-metadata"), text).expect("the metadata");
    };
    metadata("1700000000");
    plan!("cache_hit", plan());
    metadata("1600000000");
    plan!("cache_old", plan());
    cloud.image("<PERSISTENT>1</PERSISTENT><MODTIME>1700000000</MODTIME>");
    plan!("cache_persistent", plan());
}

#[test]
fn moves() {
    let cloud = Cloud::new("local");
    layered(&cloud, "disk.0");
    plan!("mv_disk", cloud.explain("mv", &[&on("disk.0"), "node2:{ds}/104/7/disk.0", "7", "103"]));
    plan!("mv", cloud.explain("mv", &["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "103"]));
    cloud.raw("ds/1/abc");
    cloud.raw("ds/103/7/disk.4");
    cloud.raw("ds/103/7/disk.4.snap/0");
    plan!("mvds_raw", cloud.explain("mvds", &[&on("disk.4"), "{ds}/1/abc", "7", "1"]));
    layered(&cloud, "disk.3");
    plan!("mvds", cloud.explain("mvds", &[&on("disk.3"), "{ds}/1/abc", "7", "1"]));
    fs::remove_file(cloud.path("ds/103/7/disk.3.snap/0")).expect("removes");
    plan!("mvds_broken", cloud.explain("mvds", &[&on("disk.3"), "{ds}/1/abc", "7", "1"]));
}

#[test]
fn cpds() {
    let cloud = Cloud::new("local");
    fs::create_dir_all(cloud.path("ds/1")).expect("the datastore");
    layered(&cloud, "disk.0");
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
fn snapshots() {
    let cloud = Cloud::new("local");
    layered(&cloud, "disk.0");
    cloud.raw("ds/103/7/disk.2");
    cloud.raw("ds/103/7/disk.2.snap/0");
    let plan = |action: &str, disk: &str, id: &str| cloud.explain(action, &[&on(disk), id, "7", "103"]);
    plan!("snap_create", plan("snap_create", "disk.0", "1"));
    plan!("snap_create_raw", plan("snap_create", "disk.2", "1"));
    plan!("snap_revert", plan("snap_revert", "disk.0", "0"));
    plan!("snap_revert_raw", plan("snap_revert", "disk.2", "0"));
    plan!("snap_delete", plan("snap_delete", "disk.0", "0"));
    plan!("snap_delete_raw", plan("snap_delete", "disk.2", "0"));
    plan!("snap_delete_missing", plan("snap_delete", "disk.0", "5"));
}

#[test]
fn disks_of_no_image() {
    let cloud = Cloud::new("local");
    plan!("mkimage", cloud.explain("mkimage", &["16", "qcow2", &on("disk.5"), "7", "103"]));
    plan!("mkswap", cloud.explain("mkswap", &["16", &on("disk.5"), "7", "103"]));
    plan!("delete_disk", cloud.explain("delete", &[&on("disk.5"), "7", "103"]));
    plan!("delete_vm", cloud.explain("delete", &["node1:{ds}/103/7", "7", "103"]));
    layered(&cloud, "disk.0");
    plan!("resize", cloud.explain("resize", &[&on("disk.0"), "4", "7", "103"]));
}

#[test]
fn context() {
    let cloud = Cloud::new("local");
    fs::write(cloud.path("vms/context.sh"), "A=1\n").expect("the script");
    let disk = on("disk.6");
    plan!("context", cloud.explain("context", &["{cloud}/vms/context.sh", "{ds}/1/abc:'x'", &disk, "7", "103"]));
}
