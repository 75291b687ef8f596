//! Plan snapshots: what `explain` shows for every action, read as an operator would read it.
//!
//! Questions are asked of real files in a temporary folder, also those for "bridges", which are this machine under
//! another name. Paths and owners are replaced by words, so a snapshot holds nothing of the machine.
//! After a change: `INSTA_UPDATE=always cargo test --test plans`, and read the difference.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use onestore::action::Kind;
use onestore::driver::{Driver, Request, Serve};

#[macro_use]
#[path = "hosts/plan.rs"]
mod plan;
#[path = "hosts/calls.rs"]
#[allow(dead_code)]
mod calls;
#[path = "hosts/this_machine.rs"]
mod this_machine;

use calls::Calls;
use this_machine::ThisMachine;

/// A front-end with one datastore, in a temporary folder.
struct Cloud {
    root: tempfile::TempDir,
}

impl Cloud {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["ds/1", "users", "oned", "remotes"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let host = |name: &str, state| format!("<HOST><ID>1</ID><NAME>{name}</NAME><STATE>{state}</STATE></HOST>");
        let hosts = format!("<HOST_POOL>{}{}</HOST_POOL>", host("bridge1", 2), host("bridge2", 8));
        fs::write(root.path().join("oned/hostpool.xml"), hosts).expect("the hosts");
        let pool = "<DATASTORE_POOL><DATASTORE><ID>1</ID><TEMPLATE><NFS_AUTO_ENABLE>yes</NFS_AUTO_ENABLE></TEMPLATE>\
                    </DATASTORE></DATASTORE_POOL>";
        fs::write(root.path().join("oned/datastorepool.xml"), pool).expect("the datastores");
        Self { root }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn raw(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        fs::write(&path, vec![1; 65536]).expect("a raw image");
        path
    }

    fn qcow2(&self, below: &str, backing: Option<&Path>) -> PathBuf {
        let path = self.path(below);
        let mut cmd = Command::new("qemu-img");
        cmd.args(["create", "-q", "-f", "qcow2"]);
        if let Some(backing) = backing {
            cmd.args(["-u", "-F", "qcow2", "-b"]).arg(backing);
        }
        assert!(cmd.arg(&path).arg("1M").status().expect("qemu-img").success());
        path
    }

    /// The chain that the `shared` transfer manager leaves: `0 -> image`, `1` on it, `2` on that.
    fn chain(&self) -> PathBuf {
        let image = self.qcow2("ds/1/abc", None);
        let snapshots = self.path("ds/1/abc.snap");
        fs::create_dir(&snapshots).expect("snapshots");
        symlink(&image, snapshots.join("0")).expect("snapshot 0");
        symlink(".", snapshots.join("abc.snap")).expect("the self link");
        self.qcow2("ds/1/abc.snap/1", Some(&snapshots.join("0")));
        self.qcow2("ds/1/abc.snap/2", Some(&snapshots.join("1")));
        image
    }

    /// What `datastore/fs/<action>` would do, in words without anything of this machine.
    fn explain(&self, action: &str, image: &str, template: &str) -> String {
        let base = format!("{}//ds/1", self.root.path().display());
        let xml = format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE>{image}</IMAGE><DATASTORE><ID>1</ID><TYPE>0</TYPE><BASE_PATH>{base}</BASE_PATH>\
             <TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS>{template}</TEMPLATE></DATASTORE>\
             <SOURCE_BRIDGE_LIST>{}</SOURCE_BRIDGE_LIST></DS_DRIVER_ACTION_DATA>",
            self.path("users").display(),
            if image.contains("<FROM_BRIDGE/>") { "bridge1" } else { "" },
        );
        let request = Request { id: 7, data: onestore::payload::parse(&xml).expect("a document") };
        let driver = Driver::find(Kind::Datastore, "fs").expect("fs");
        let Serve::Datastore(serve) = driver.entry(action, None).expect("the action").serve else {
            panic!("{action} is not served by the driver itself")
        };
        let calls = Calls {
            mad: "fs",
            remotes: self.path("remotes"),
            datastores: None,
            oned: Some(self.path("oned")),
            settings: &[],
            hosts: &ThisMachine,
        };
        calls.explain(&format!("datastore/fs/{action}"), self.root.path(), |cx| serve(cx, &request))
    }
}

/// Where the snapshots lie.
const PLANS: &str = "plans/fs";

fn path_of(path: &Path) -> String {
    format!("<TYPE>0</TYPE><PATH>{}</PATH>", path.display())
}

fn source_of(path: &Path, snapshot: i32) -> String {
    format!("<SOURCE>{}</SOURCE><TARGET_SNAPSHOT>{snapshot}</TARGET_SNAPSHOT><SIZE>1</SIZE>", path.display())
}

#[test]
fn cp() {
    let cloud = Cloud::new();
    let raw = cloud.raw("users/disk.raw");
    plan!("cp", cloud.explain("cp", &path_of(&raw), ""));
    plan!("cp_convert", cloud.explain("cp", &path_of(&raw), "<DRIVER>qcow2</DRIVER><SPARSE>no</SPARSE>"));
    plan!("cp_bridge", cloud.explain("cp", &path_of(&raw), "<BRIDGE_LIST>bridge2 bridge1</BRIDGE_LIST>"));
    let staged = "<BRIDGE_LIST>bridge1</BRIDGE_LIST><STAGING_DIR>/var/stage</STAGING_DIR>";
    plan!("cp_bridge_staging_dir", cloud.explain("cp", &path_of(&raw), staged));
    plan!("cp_bridges_off", cloud.explain("cp", &path_of(&raw), "<BRIDGE_LIST>bridge2</BRIDGE_LIST>"));
    let crafted = cloud.qcow2("users/crafted.qcow2", Some(Path::new("/etc/hostname")));
    plan!("cp_crafted", cloud.explain("cp", &path_of(&crafted), ""));
}

#[test]
fn mkfs() {
    let cloud = Cloud::new();
    let image = |format: &str, fs: &str| format!("<FORMAT>{format}</FORMAT><FS>{fs}</FS><SIZE>10</SIZE>");
    plan!("mkfs_raw", cloud.explain("mkfs", &image("raw", ""), ""));
    plan!("mkfs_qcow2_ext4", cloud.explain("mkfs", &image("qcow2", "ext4"), ""));
    plan!("mkfs_swap", cloud.explain("mkfs", &image("swap", ""), ""));
    plan!("mkfs_save_as", cloud.explain("mkfs", &image("save_as", ""), ""));
    plan!("mkfs_unsupported", cloud.explain("mkfs", &image("raw", "ntfs"), ""));
}

#[test]
fn clone() {
    let cloud = Cloud::new();
    let raw = cloud.raw("ds/1/raw");
    plan!("clone", cloud.explain("clone", &path_of(&raw), ""));
    plan!("clone_convert", cloud.explain("clone", &path_of(&raw), "<DRIVER>qcow2</DRIVER>"));
    let from_bridge = path_of(&raw) + "<FROM_BRIDGE/>";
    plan!("clone_from_bridge", cloud.explain("clone", &from_bridge, ""));
    let chain = cloud.chain();
    plan!("clone_chain", cloud.explain("clone", &path_of(&chain), ""));
}

#[test]
fn rm() {
    let cloud = Cloud::new();
    let raw = cloud.raw("ds/1/raw");
    plan!("rm", cloud.explain("rm", &source_of(&raw, -1), ""));
    plan!("rm_outside", cloud.explain("rm", &source_of(Path::new("/etc/passwd"), -1), ""));
}

#[test]
fn snapshots_of_a_chain() {
    let cloud = Cloud::new();
    let image = cloud.chain();
    for (id, name) in [(0, "first"), (1, "middle"), (2, "active"), (7, "missing")] {
        plan!(format!("snap_delete_{name}"), cloud.explain("snap_delete", &source_of(&image, id), ""));
    }
    plan!("snap_revert_first", cloud.explain("snap_revert", &source_of(&image, 0), ""));
    plan!("snap_revert_active", cloud.explain("snap_revert", &source_of(&image, 2), ""));
    plan!("snap_flatten_first", cloud.explain("snap_flatten", &source_of(&image, 0), ""));
    plan!("snap_flatten_middle", cloud.explain("snap_flatten", &source_of(&image, 1), ""));
    plan!("export_chain", cloud.explain("export", &source_of(&image, -1), ""));
}

#[test]
fn snapshots_that_are_full_copies() {
    let cloud = Cloud::new();
    let image = cloud.raw("ds/1/abc");
    fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
    cloud.raw("ds/1/abc.snap/0");
    for action in ["snap_delete", "snap_revert", "snap_flatten"] {
        plan!(format!("{action}_copy"), cloud.explain(action, &source_of(&image, 0), ""));
    }
    plan!("export", cloud.explain("export", &source_of(&image, -1), ""));
}

#[test]
fn a_chain_that_leads_out_of_the_image_is_refused() {
    let cloud = Cloud::new();
    let image = cloud.qcow2("ds/1/abc", None);
    fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
    cloud.qcow2("ds/1/abc.snap/1", Some(Path::new("/etc/hostname")));
    plan!("snap_flatten_foreign", cloud.explain("snap_flatten", &source_of(&image, 1), ""));
}

#[test]
fn on_demand_mounts() {
    let cloud = Cloud::new();
    let nfs = "<NFS_AUTO_ENABLE>yes</NFS_AUTO_ENABLE><NFS_AUTO_HOST>nas</NFS_AUTO_HOST><NFS_AUTO_PATH>/vol</NFS_AUTO_PATH>\
               <NFS_AUTO_OPTS>soft</NFS_AUTO_OPTS>";
    plan!("mkfs_nfs", cloud.explain("mkfs", "<FORMAT>raw</FORMAT><SIZE>10</SIZE>", nfs));
}
