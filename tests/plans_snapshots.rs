//! Plan snapshots of the snapshot actions of transfer managers: what `explain` shows for every row of the table in
//! `docs/chains.md`, on real files in a temporary folder.
//!
//! After a change: `INSTA_UPDATE=always cargo test --test plans_snapshots`, and read the difference.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use onestore::action::Kind;
use onestore::driver::{Driver, Serve, TmRequest};

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

/// VM 7 with a clone (0), a persistent disk (1), a raw one (2) and one that is a plain file (3).
struct Cloud {
    root: tempfile::TempDir,
}

impl Cloud {
    fn new() -> Self {
        let cloud = Self { root: tempfile::tempdir().expect("a temporary folder") };
        for folder in ["oned/vm", "ds/1/abc.snap", "ds/0/7/disk.0.snap"] {
            fs::create_dir_all(cloud.path(folder)).expect("a folder");
        }
        let source = |name: &str| cloud.path("ds/1").join(name).display().to_string();
        let disk = |id: u32, format: &str, clone: &str, source: String| {
            format!(
                "<DISK><DISK_ID>{id}</DISK_ID><FORMAT>{format}</FORMAT><CLONE>{clone}</CLONE><SOURCE>{source}</SOURCE></DISK>"
            )
        };
        let disks = [
            disk(0, "qcow2", "YES", source("image")),
            disk(1, "qcow2", "NO", source("abc")),
            disk(2, "raw", "YES", source("image")),
            disk(3, "qcow2", "YES", source("image")),
        ];
        let vm = format!("<VM><ID>7</ID><TEMPLATE>{}</TEMPLATE></VM>", disks.concat());
        fs::write(cloud.path("oned/vm/7.xml"), vm).expect("the VM");
        let image = cloud.qcow2("ds/1/image", None);
        cloud.qcow2("ds/0/7/disk.0.snap/0", Some(&image));
        cloud.link("disk.0.snap/0", "ds/0/7/disk.0");
        cloud.link(".", "ds/0/7/disk.0.snap/disk.0.snap");
        let abc = cloud.qcow2("ds/1/abc", None);
        cloud.link(&abc.display().to_string(), "ds/1/abc.snap/0");
        cloud.link(".", "ds/1/abc.snap/abc.snap");
        cloud.link(&cloud.path("ds/1/abc.snap/0").display().to_string(), "ds/0/7/disk.1");
        fs::write(cloud.path("ds/0/7/disk.2"), vec![0; 1 << 20]).expect("a raw disk");
        cloud.qcow2("ds/0/7/disk.3", None);
        cloud
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn link(&self, target: &str, link: &str) {
        let link = self.path(link);
        drop(fs::remove_file(&link));
        symlink(target, link).expect("ln");
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

    /// Snapshots 0 to 2 of the clone; 3 is the current file.
    fn three(self) -> Self {
        for k in 1..=3 {
            self.qcow2(&format!("ds/0/7/disk.0.snap/{k}"), Some(format!("disk.0.snap/{}", k - 1).as_ref()));
        }
        self.link("disk.0.snap/3", "ds/0/7/disk.0");
        self
    }

    /// What `tm/qcow2/<action> host1:…/disk.<disk> <k> 7 1` would do, in words without anything of this machine.
    fn explain(&self, action: &str, disk: u32, k: u32) -> String {
        let (plain, system) = action.split_once('.').map_or((action, None), |(plain, system)| (plain, Some(system)));
        let driver = Driver::find(Kind::Tm, "qcow2").expect("qcow2");
        let Serve::Tm(serve) = driver.entry(plain, system).expect("the action").serve else {
            panic!("{action} is not served by the driver itself")
        };
        let disk = format!("host1:{}", self.path(&format!("ds/0/7/disk.{disk}")).display());
        let args = [disk, k.to_string(), "7".to_owned(), "1".to_owned()].map(Into::into).to_vec();
        let name = onestore::action::Action::find(Kind::Tm, plain).expect("an action").name;
        let request = TmRequest { mad: "qcow2".to_owned(), action: name, args, vm: None };
        let calls = Calls {
            mad: "qcow2",
            remotes: self.path("remotes"),
            datastores: None,
            oned: Some(self.path("oned")),
            settings: &[],
            hosts: &ThisMachine,
        };
        calls.explain(&format!("tm/qcow2/{action}"), self.root.path(), |cx| serve(cx, &request))
    }
}

/// Where the snapshots lie.
const PLANS: &str = "plans/qcow2";

#[test]
fn snap_create() {
    let cloud = Cloud::new();
    plan!("snap_create", cloud.explain("snap_create", 0, 0));
    plan!("snap_create_persistent", cloud.explain("snap_create", 1, 0));
    plan!("snap_create_raw", cloud.explain("snap_create", 2, 0));
    plan!("snap_create_plain", cloud.explain("snap_create", 3, 0));
    plan!("snap_create_other_number", cloud.explain("snap_create", 0, 4));
    plan!("snap_create_missing_disk", cloud.explain("snap_create", 9, 0));
    // Left by a try that was killed.
    cloud.qcow2("ds/0/7/disk.0.snap/1", Some("disk.0.snap/0".as_ref()));
    plan!("snap_create_again", cloud.explain("snap_create", 0, 0));
}

#[test]
fn snap_create_in_mixed_mode() {
    let cloud = Cloud::new();
    fs::remove_file(cloud.path("ds/0/7/disk.1")).expect("rm");
    fs::create_dir(cloud.path("ds/0/7/disk.1.snap")).expect("mkdir");
    cloud.qcow2("ds/0/7/disk.1.snap/0", None);
    cloud.link(".", "ds/0/7/disk.1.snap/disk.1.snap");
    cloud.link("disk.1.snap/0", "ds/0/7/disk.1");
    plan!("snap_create_ssh_persistent", cloud.explain("snap_create.ssh", 1, 0));
}

#[test]
fn snap_revert() {
    let cloud = Cloud::new().three();
    plan!("snap_revert", cloud.explain("snap_revert", 0, 1));
    plan!("snap_revert_missing", cloud.explain("snap_revert", 0, 7));
    fs::create_dir(cloud.path("ds/0/7/disk.2.snap")).expect("mkdir");
    fs::write(cloud.path("ds/0/7/disk.2.snap/0"), vec![1; 1 << 20]).expect("a copy");
    plan!("snap_revert_raw", cloud.explain("snap_revert", 2, 0));
}

#[test]
fn snap_delete() {
    let cloud = Cloud::new().three();
    plan!("snap_delete_first", cloud.explain("snap_delete", 0, 0));
    plan!("snap_delete_middle", cloud.explain("snap_delete", 0, 1));
    plan!("snap_delete_active", cloud.explain("snap_delete", 0, 2));
    plan!("snap_delete_gone", cloud.explain("snap_delete", 0, 9));
    // Reverted to 0: 1 and 3 stand on it, 2 is a leaf.
    cloud.qcow2("ds/0/7/disk.0.snap/3", Some("disk.0.snap/0".as_ref()));
    plan!("snap_delete_leaf", cloud.explain("snap_delete", 0, 2));
    plan!("snap_delete_two_children", cloud.explain("snap_delete", 0, 0));
    // After upstream's live commit of 2 into 1.
    fs::write(cloud.path("ds/0/7/disk.0.snap/2.current"), "/old/disk.0.snap/1\n").expect("a marker");
    fs::remove_file(cloud.path("ds/0/7/disk.0.snap/2")).expect("rm");
    plan!("snap_delete_moved", cloud.explain("snap_delete", 0, 2));
}

#[test]
fn snap_delete_of_a_persistent_disk() {
    let cloud = Cloud::new();
    cloud.qcow2("ds/1/abc.snap/1", Some(&cloud.path("ds/1/abc.snap/0")));
    cloud.link(&cloud.path("ds/1/abc.snap/1").display().to_string(), "ds/0/7/disk.1");
    plan!("snap_delete_persistent_first", cloud.explain("snap_delete", 1, 0));
}

#[test]
fn broken_chains() {
    let cloud = Cloud::new().three();
    fs::remove_file(cloud.path("ds/0/7/disk.0.snap/1")).expect("rm");
    plan!("snap_create_broken", cloud.explain("snap_create", 0, 3));
    plan!("snap_delete_needed", cloud.explain("snap_delete", 0, 1));
    plan!("snap_revert_beside_broken", cloud.explain("snap_revert", 0, 0));
    cloud.qcow2("ds/0/7/disk.0.snap/1", Some("/old/0/7/disk.0.snap/0".as_ref()));
    plan!("snap_create_moved", cloud.explain("snap_create", 0, 3));
}
