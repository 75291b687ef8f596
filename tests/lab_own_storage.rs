//! What hosts with storage of their own keep besides the disks of their VMs: copies on a replica host (`ssh`), a cache of
//! images (`local`): `cargo test --test lab_own_storage -- --ignored --test-threads 1`, as root. A VM's whole life there is
//! in `lab_life.rs`.
//!
//! Images are on the front-end, disks in `/var/lib/one/datastores` of each host, which the other one does not see. Every
//! file that holds a moment of the guest has to be whole: see `lab/writer.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use onestore::action::{Action, Kind as Called};
use onestore::context::{Cx, Parts};
use onestore::driver::{Driver, Serve, TmRequest};
use onestore::exec::control::{Cancel, Control};
use onestore::exec::step::{Executor as _, Runner};
use onestore::oned::{self, Oned, OnedEnv};
use onestore::report::{Log, one_line};
use onestore::settings::Settings;

#[path = "hosts/by_ssh.rs"]
mod by_ssh;
#[path = "lab/hypervisors.rs"]
#[allow(dead_code)]
mod hypervisors;
#[path = "lab/writer.rs"]
mod writer;

use by_ssh::BySsh;
use hypervisors::{Kind, Lab, Layout, lab};

/// Where a host keeps its disks: a file system of its own in the lab.
const OWN: &str = "/var/lib/one/datastores/103/7";

/// VM 7 with one disk, a clone.
struct Cloud<'a> {
    lab: &'a Lab,
    /// The transfer manager.
    mad: &'static str,
}

impl<'a> Cloud<'a> {
    /// Attributes of the image datastore, and of the system datastore.
    fn new(lab: &'a Lab, mad: &'static str, images: &str, system: &str) -> Self {
        for folder in ["oned/vm", "oned/datastore", "oned/image", "shared/1"] {
            fs::create_dir_all(lab.path(folder)).expect("makes");
        }
        writer::plant(&lab.shared().join("1/clone"), "qcow2");
        let cloud = Self { lab, mad };
        cloud.modtime(5);
        for (id, attributes) in [(1, images), (103, system)] {
            let xml = format!("<DATASTORE><ID>{id}</ID><TEMPLATE>{attributes}</TEMPLATE></DATASTORE>");
            fs::write(lab.path(&format!("oned/datastore/{id}.xml")), xml).expect("writes");
        }
        // Of its disk recovery snapshots are taken, where there is a replica host.
        let vm = format!(
            "<VM><ID>7</ID><LCM_STATE>0</LCM_STATE><DEPLOY_ID>one-7</DEPLOY_ID><TEMPLATE><DISK>\
             <RECOVERY_SNAPSHOT_FREQ>1</RECOVERY_SNAPSHOT_FREQ><DISK_ID>0</DISK_ID><IMAGE_ID>3</IMAGE_ID>\
             <DATASTORE_ID>1</DATASTORE_ID><FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><TARGET>hda</TARGET>\
             <SOURCE>{}</SOURCE></DISK></TEMPLATE><HISTORY_RECORDS>\
             <HISTORY><SEQ>0</SEQ><DS_ID>103</DS_ID><VM_MAD>kvm</VM_MAD></HISTORY></HISTORY_RECORDS></VM>",
            cloud.image("clone")
        );
        fs::write(lab.path("oned/vm/7.xml"), vm).expect("writes");
        cloud
    }

    /// When oned saw the image change.
    fn modtime(&self, time: u32) {
        let xml = format!("<IMAGE><ID>3</ID><PERSISTENT>0</PERSISTENT><MODTIME>{time}</MODTIME></IMAGE>");
        fs::write(self.lab.path("oned/image/3.xml"), xml).expect("writes");
    }

    fn image(&self, name: &str) -> String {
        self.lab.shared().join("1").join(name).display().to_string()
    }

    fn tried(&self, action: &'static str, words: &[&str]) -> Result<()> {
        let layout = onestore::location::Layout::new(|_| None, Some(&self.lab.path("remotes")));
        let settings = Settings::load(&layout, self.mad, |name| (name == "VIRSH_RETRIES").then(|| "1".into()))?;
        let log = Log::quiet("tm/own/test");
        let control = Control::new(Cancel::new());
        let runner = Runner::new(control.clone(), &log);
        let choice = format!("dir:{}", self.lab.path("oned").display());
        let connect = || -> Box<dyn Oned> {
            oned::connect(&OnedEnv { choice: Some(choice.clone().into()), ..OnedEnv::default() })
        };
        let cx = Cx::new(Parts {
            layout: &layout,
            settings: &settings,
            log: &log,
            control,
            hosts: &BySsh,
            executor: &runner,
            connect: &connect,
            name: &|image| format!("new{image}"),
        });
        let entry = Driver::find(Called::Tm, self.mad).and_then(|driver| driver.entry(action, None)).expect("served");
        let Serve::Tm(serve) = entry.serve else { panic!("{action} is not the driver's own") };
        let args = words.iter().map(Into::into).collect();
        let action = Action::find(Called::Tm, action).expect("an action").name;
        serve(&cx, &TmRequest { mad: self.mad.to_owned(), action, args, vm: None })?;
        runner.commit()
    }

    /// `tm/<mad>/<action> <words>`.
    #[track_caller]
    fn off(&self, action: &'static str, words: &[&str]) {
        self.tried(action, words).unwrap_or_else(|error| panic!("{action} {words:?}: {}", one_line(&error)));
    }

    /// Digest of what a guest reads of a file on a host, all its layers taken together.
    fn content(&self, host: &str, file: &str) -> String {
        let raw = format!("/tmp/content.{}", std::process::id());
        self.lab.must(host, &["qemu-img", "convert", "-U", "-O", "raw", file, &raw]);
        let sum = self.lab.must(host, &["md5sum", &raw]);
        self.lab.must(host, &["rm", &raw]);
        sum.split_whitespace().next().expect("a digest").to_owned()
    }

    /// The same on the front-end.
    fn content_here(file: &Path) -> String {
        let raw = tempfile::NamedTempFile::new().expect("a file");
        hypervisors::run(Command::new("qemu-img").args(["convert", "-O", "raw"]).args([file, raw.path()]));
        let sum = Command::new("md5sum").arg(raw.path()).output().expect("md5sum");
        String::from_utf8_lossy(&sum.stdout).split_whitespace().next().expect("a digest").to_owned()
    }

    /// Names in a directory of a host.
    fn names(&self, host: &str, dir: &str) -> Vec<String> {
        let list = self.lab.must(host, &["ls", "-A", dir]);
        list.lines().map(str::to_owned).collect()
    }

    fn highest(&self, host: &str, file: &str) -> u32 {
        self.lab.highest(host, Path::new(file))
    }
}

fn on(host: &str, disk: &str) -> String {
    format!("{host}:{OWN}/{disk}")
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_disk_is_made_anew_from_its_replica() {
    lab(Layout::default(), |lab| {
        let cloud = Cloud::new(lab, "ssh", "", "<REPLICA_HOST>host2</REPLICA_HOST>");
        let kept = "/var/lib/one/datastores/replica_snaps/7";
        let source = cloud.image("clone");
        cloud.off("clone", &[&source, &on("host1", "disk.0"), "7", "1"]);
        assert_eq!(lab.must("host1", &["readlink", &format!("{OWN}/disk.0")]), "disk.0.snap/base.1");
        assert_eq!(cloud.names("host1", &format!("{OWN}/disk.0.snap")), ["base", "base.1", "disk.0.snap"]);
        assert_eq!(cloud.names("host2", &format!("{kept}/disk.0.snap")), ["base"]);
        assert_eq!(cloud.content("host1", &format!("{OWN}/disk.0")), Cloud::content_here(Path::new(&source)));

        // What the guest has written is on the replica host, whole; and it goes on in its own layer.
        lab.sync_agent();
        let agent = lab.path("remotes/onestore/onestore").display().to_string();
        let path = format!("{OWN}/disk.0");
        let take = || lab.on("host1", &[&agent, "tm", "ssh", "recovery_snap_create_live", "7", &path, "0", "host2"]);
        let told = take();
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(said.starts_with("VM 7 is not running") && said.lines().count() == 1, "{said}");
        assert!(!told.status.success());
        let domain = lab.run_domain("host1", 7, &[(Path::new(&path), "qcow2")], Kind::Transient);
        let mut moments = Vec::new();
        for _ in 0..2 {
            let before = domain.writes_on();
            let told = take();
            assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            let time: u64 = String::from_utf8_lossy(&told.stdout).trim().parse().expect("a time");
            assert!(time > 1_700_000_000, "{time}");
            assert_eq!(cloud.names("host2", &format!("{kept}/disk.0.snap")), ["base", "base.1"]);
            assert!(!domain.source("hda").ends_with("rs_tmp"), "{:?}", domain.source("hda"));
            moments.push(before);
        }
        domain.writes_on();

        // A snapshot is a copy that stands alone; back to it and on.
        cloud.off("snap_create_live", &[&on("host1", "disk.0"), "0", "7", "1"]);
        let snapshot = cloud.highest("host1", &format!("{path}.snap/0"));
        domain.writes_on();

        // The host fails: its files are gone, the VM is created anew elsewhere.
        domain.destroy();
        lab.must("host1", &["rm", "-rf", OWN]);
        cloud.off("clone", &[&source, &on("host1", "disk.0"), "7", "1"]);
        let recovered = cloud.highest("host1", &path);
        assert!(recovered >= moments[1] && recovered <= snapshot, "{moments:?} {recovered} {snapshot}");
        let domain = lab.run_domain("host1", 7, &[(Path::new(&path), "qcow2")], Kind::Transient);
        assert!(domain.writes_on() > recovered);
        domain.destroy();

        // Off: a snapshot, and back to it, with what the replica host has.
        cloud.off("snap_create", &[&on("host1", "disk.0"), "0", "7", "1"]);
        let at = cloud.content("host1", &path);
        lab.must("host1", &["qemu-io", "-c", "write -P 9 1M 64K", &path]);
        assert_ne!(cloud.content("host1", &path), at);
        cloud.off("snap_revert", &[&on("host1", "disk.0"), "0", "7", "1"]);
        assert_eq!(cloud.content("host1", &path), at);
        assert_eq!(cloud.names("host2", &format!("{kept}/disk.0.snap")), ["base"]);
        assert_eq!(cloud.content("host2", &format!("{kept}/disk.0.snap/base")), at);

        // Saved and brought back it is one file.
        let to = lab.shared().join("1/saved");
        cloud.off("cpds", &[&on("host1", "disk.0"), &to.display().to_string(), "-1", "7", "1"]);
        assert_eq!(Cloud::content_here(&to), at);
        cloud.off("mvds", &[&on("host1", "disk.0"), &source, "7", "1"]);
        assert_eq!(Cloud::content_here(Path::new(&source)), at);

        // With the VM goes what is kept of it.
        cloud.off("delete", &[&format!("host1:{OWN}"), "7", "103"]);
        assert!(!lab.on("host2", &["test", "-e", kept]).status.success());
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_host_keeps_images_and_tells_sizes() {
    lab(Layout::default(), |lab| {
        let cache = "/var/lib/one/cache";
        let images = "<CACHE_ENABLE>YES</CACHE_ENABLE><CACHE_MAX_SIZE>100</CACHE_MAX_SIZE><CACHE_UPSTREAMS>host2</CACHE_UPSTREAMS>";
        let cloud = Cloud::new(lab, "local", images, "");
        cloud.off("clone", &[&cloud.image("clone"), &on("host1", "disk.0"), "7", "1"]);
        // By way of the peer, which keeps it too.
        for host in ["host1", "host2"] {
            assert_eq!(cloud.names(host, cache), ["clone", "clone-lock", "clone-metadata"], "{host}");
        }
        assert_eq!(
            cloud.content("host1", &format!("{OWN}/disk.0")),
            Cloud::content_here(Path::new(&cloud.image("clone")))
        );
        // The second one comes from the cache: the image is not needed.
        let image = cloud.image("clone");
        let inode = lab.must("host1", &["stat", "-c", "%i", &format!("{cache}/clone")]);
        cloud.off("clone", &[&image, &on("host1", "disk.0"), "7", "1"]);
        assert_eq!(lab.must("host1", &["stat", "-c", "%i", &format!("{cache}/clone")]), inode);
        // Other data under the same name.
        cloud.modtime(6);
        hypervisors::run(Command::new("qemu-io").args(["-c", "write -P 9 1M 64K", &image]));
        cloud.off("clone", &[&image, &on("host1", "disk.0"), "7", "1"]);
        assert_ne!(lab.must("host1", &["stat", "-c", "%i", &format!("{cache}/clone")]), inode);
        assert_eq!(cloud.content("host1", &format!("{OWN}/disk.0")), Cloud::content_here(Path::new(&image)));
        // A peer whose cache is broken: the image comes from the front-end.
        lab.must("host1", &["rm", &format!("{cache}/clone-metadata")]);
        lab.must("host2", &["rm", "-r", cache]);
        lab.must("host2", &["touch", cache]);
        cloud.off("clone", &[&image, &on("host1", "disk.0"), "7", "1"]);
        assert_eq!(cloud.content("host1", &format!("{OWN}/disk.0")), Cloud::content_here(Path::new(&image)));

        // The sizes, as the host's probe asks for them.
        lab.sync_agent();
        let agent = lab.path("remotes/onestore/onestore").display().to_string();
        let told = lab.must("host1", &[&agent, "tm", "local", "monitor_ds", "/var/lib/one//datastores/103"]);
        assert!(told.starts_with("VM = [ ID = 7, MONITOR = \"") && told.ends_with("\"]"), "{told}");
    });
}
