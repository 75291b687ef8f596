//! The `local` transfer manager between two hosts with storage of their own, under a guest that writes:
//! `cargo test --test lab_local_tm -- --ignored --test-threads 1`, as root.
//!
//! Images are on the front-end, disks in `/var/lib/one/datastores` of each host, which the other one does not see. Every
//! file that holds a moment of the guest has to be whole: see `lab/writer.rs`.

use std::fs;
use std::path::{Path, PathBuf};
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

/// `LCM_STATE` of a VM that is off, of one whose snapshot is deleted while it runs, and of one whose disk is saved.
const OFF: u32 = 0;
const DELETES: u32 = 59;
const SAVES: u32 = 26;

/// VM 7 with four disks: clone, raw clone, persistent, persistent and raw.
struct Cloud<'a> {
    lab: &'a Lab,
}

impl<'a> Cloud<'a> {
    fn new(lab: &'a Lab) -> Self {
        for folder in ["oned/vm", "oned/datastore", "oned/image", "shared/1"] {
            fs::create_dir_all(lab.path(folder)).expect("makes");
        }
        let images = lab.shared().join("1");
        for (name, format) in [("clone", "qcow2"), ("rawclone", "raw"), ("kept", "qcow2"), ("rawkept", "raw")] {
            writer::plant(&images.join(name), format);
        }
        fs::write(
            lab.path("oned/image/3.xml"),
            "<IMAGE><ID>3</ID><PERSISTENT>0</PERSISTENT><MODTIME>5</MODTIME></IMAGE>",
        )
        .expect("writes");
        let cloud = Self { lab };
        cloud.datastore("");
        cloud
    }

    fn datastore(&self, attributes: &str) {
        let xml = format!("<DATASTORE><ID>1</ID><TEMPLATE>{attributes}</TEMPLATE></DATASTORE>");
        fs::write(self.lab.path("oned/datastore/1.xml"), xml).expect("writes");
    }

    fn image(&self, name: &str) -> String {
        self.lab.shared().join("1").join(name).display().to_string()
    }

    fn vm(&self, lcm: u32) {
        let disk = |id: u32, image: &str, format: &str, clone: &str| {
            format!(
                "<DISK><DISK_ID>{id}</DISK_ID><IMAGE_ID>3</IMAGE_ID><DATASTORE_ID>1</DATASTORE_ID><FORMAT>{format}</FORMAT>\
                 <CLONE>{clone}</CLONE><TARGET>hd{}</TARGET><SOURCE>{}</SOURCE></DISK>",
                char::from(b'a' + u8::try_from(id).expect("few")),
                self.image(image)
            )
        };
        let disks = [
            disk(0, "clone", "qcow2", "YES"),
            disk(1, "rawclone", "raw", "YES"),
            disk(2, "kept", "qcow2", "NO"),
            disk(3, "rawkept", "raw", "NO"),
        ];
        let vm = format!(
            "<VM><ID>7</ID><LCM_STATE>{lcm}</LCM_STATE><DEPLOY_ID>one-7</DEPLOY_ID><TEMPLATE>{}</TEMPLATE><HISTORY_RECORDS>\
             <HISTORY><SEQ>0</SEQ><DS_ID>103</DS_ID><VM_MAD>kvm</VM_MAD></HISTORY></HISTORY_RECORDS></VM>",
            disks.concat()
        );
        fs::write(self.lab.path("oned/vm/7.xml"), vm).expect("writes");
    }

    /// `tm/local/<action> <words>`, with the VM in this state.
    fn try_at(&self, lcm: u32, action: &'static str, words: &[&str]) -> Result<()> {
        self.vm(lcm);
        let layout = onestore::location::Layout::new(|_| None, Some(&self.lab.path("remotes")));
        let settings = Settings::load(&layout, "local", |name| (name == "VIRSH_RETRIES").then(|| "1".into()))?;
        let log = Log::quiet("tm/local/test");
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
        let entry = Driver::find(Called::Tm, "local").and_then(|driver| driver.entry(action, None)).expect("served");
        let Serve::Tm(serve) = entry.serve else { panic!("{action} is not the driver's own") };
        let args = words.iter().map(Into::into).collect();
        let action = Action::find(Called::Tm, action).expect("an action").name;
        serve(&cx, &TmRequest { mad: "local".to_owned(), action, args, vm: None })?;
        runner.commit()
    }

    #[track_caller]
    fn at(&self, lcm: u32, action: &'static str, words: &[&str]) {
        self.try_at(lcm, action, words).unwrap_or_else(|error| panic!("{action} {words:?}: {}", one_line(&error)));
    }

    #[track_caller]
    fn off(&self, action: &'static str, words: &[&str]) {
        self.at(OFF, action, words);
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
fn a_vms_life_from_host_to_host() {
    lab(Layout::default(), |lab| {
        let cloud = Cloud::new(lab);
        let image = |name: &str| cloud.image(name);
        cloud.off("clone", &[&image("clone"), &on("host1", "disk.0"), "7", "1"]);
        cloud.off("clone", &[&image("rawclone"), &on("host1", "disk.1"), "7", "1"]);
        cloud.off("ln", &[&image("kept"), &on("host1", "disk.2"), "7", "1"]);
        cloud.off("ln", &[&image("rawkept"), &on("host1", "disk.3"), "7", "1"]);
        assert_eq!(cloud.names("host1", "/var/lib/one/datastores/103"), [".monitor", "7"]);
        assert_eq!(cloud.names("host1", OWN), ["disk.0", "disk.0.snap", "disk.1", "disk.2", "disk.2.snap", "disk.3"]);

        // Live snapshots; each holds its moment from then on.
        let disk = PathBuf::from(format!("{OWN}/disk.0"));
        let layer = |k: u32| format!("{OWN}/disk.0.snap/{k}");
        let domain = lab.run_domain("host1", 7, &[(&disk, "qcow2")], Kind::Transient);
        let mut moments = Vec::new();
        for k in ["0", "1", "2"] {
            domain.writes_on();
            cloud.off("snap_create_live", &[&on("host1", "disk.0"), k, "7", "1"]);
            moments.push(cloud.highest("host1", &format!("{OWN}/disk.0.snap/{k}")));
        }
        assert!(moments.is_sorted(), "{moments:?}");
        domain.writes_on();

        // Saved as an image while it runs, and from a snapshot; both stand alone.
        let saved = lab.shared().join("1/saved");
        let to = saved.display().to_string();
        cloud.at(SAVES, "cpds", &[&on("host1", "disk.0"), &to, "-1", "7", "1"]);
        assert!(lab.highest("host1", &saved) >= moments[2]);
        cloud.at(SAVES, "cpds", &[&on("host1", "disk.0"), &to, "1", "7", "1"]);
        assert_eq!(lab.highest("host1", &saved), moments[1]);
        domain.writes_on();

        // The one in the middle goes: snapshot 2 is in file 1 then.
        cloud.at(DELETES, "snap_delete", &[&on("host1", "disk.0"), "1", "7", "1"]);
        assert_eq!(cloud.names("host1", &format!("{OWN}/disk.0.snap")), ["0", "1", "2.current", "3", "disk.0.snap"]);
        assert_eq!(cloud.highest("host1", &layer(1)), moments[2]);
        assert_eq!(cloud.highest("host1", &layer(0)), moments[0]);
        let last = domain.writes_on();
        domain.destroy();
        assert!(cloud.highest("host1", &layer(3)) >= last);
        let now = cloud.content("host1", &layer(3));

        // To the other host: nothing stays, nothing changes.
        lab.must("host1", &["sh", "-c", &format!("echo '<VM/>' > {OWN}/vm.xml")]);
        cloud.off("mv", &[&on("host1", "disk.0"), &on("host2", "disk.0"), "7", "103"]);
        cloud.off("mv", &[&format!("host1:{OWN}"), &format!("host2:{OWN}"), "7", "103"]);
        assert_eq!(cloud.names("host1", "/var/lib/one/datastores/103"), [".monitor"]);
        assert_eq!(cloud.content("host2", &layer(3)), now);
        assert_eq!(cloud.highest("host2", &layer(1)), moments[2]);
        assert_eq!(lab.must("host2", &["cat", "/var/lib/one/datastores/103/.monitor"]), "ssh");

        // It boots there.
        let domain = lab.run_domain("host2", 7, &[(&disk, "qcow2")], Kind::Transient);
        assert!(domain.writes_on() > last);
        domain.destroy();

        // Off: back to the merged snapshot, then it goes.
        cloud.off("snap_revert", &[&on("host2", "disk.0"), "2", "7", "1"]);
        assert_eq!(cloud.highest("host2", &layer(3)), moments[2]);
        cloud.off("cpds", &[&on("host2", "disk.0"), &to, "2", "7", "1"]);
        assert_eq!(lab.highest("host1", &saved), moments[2]);
        cloud.off("snap_delete", &[&on("host2", "disk.0"), "2", "7", "1"]);
        cloud.off("resize", &[&on("host2", "disk.0"), "80", "7", "1"]);
        assert_eq!(cloud.highest("host2", &layer(3)), moments[2]);

        // The persistent ones come back with their snapshots.
        let files = |disk: &str, k: u32| format!("{OWN}/{disk}.snap/{k}");
        cloud.off("snap_create", &[&on("host2", "disk.2"), "0", "7", "1"]);
        lab.must("host2", &["qemu-io", "-c", "write -P 7 1M 64K", &files("disk.2", 1)]);
        cloud.off("snap_create", &[&on("host2", "disk.3"), "0", "7", "1"]);
        lab.must("host2", &["qemu-io", "-f", "raw", "-c", "write -P 8 1M 64K", &format!("{OWN}/disk.3")]);
        let written = [cloud.content("host2", &files("disk.2", 1)), cloud.content("host2", &format!("{OWN}/disk.3"))];
        let before = [cloud.content("host2", &files("disk.2", 0)), cloud.content("host2", &files("disk.3", 0))];
        assert_ne!(written, before);
        cloud.off("mvds", &[&on("host2", "disk.2"), &image("kept"), "7", "1"]);
        cloud.off("mvds", &[&on("host2", "disk.3"), &image("rawkept"), "7", "1"]);
        // An epilog that is repeated finds all of it again.
        cloud.off("mvds", &[&on("host2", "disk.2"), &image("kept"), "7", "1"]);
        let here = |below: &str| Cloud::content_here(&lab.shared().join("1").join(below));
        assert_eq!([here("kept.snap/1"), here("rawkept")], written);
        assert_eq!([here("kept.snap/0"), here("rawkept.snap/0")], before);
        cloud.off("delete", &[&format!("host2:{OWN}"), "7", "103"]);

        // And out again, to the first host.
        cloud.off("ln", &[&image("kept"), &on("host1", "disk.2"), "7", "1"]);
        cloud.off("ln", &[&image("rawkept"), &on("host1", "disk.3"), "7", "1"]);
        assert_eq!(cloud.content("host1", &files("disk.2", 1)), written[0]);
        assert_eq!(cloud.content("host1", &files("disk.2", 0)), before[0]);
        assert_eq!(cloud.content("host1", &files("disk.3", 0)), before[1]);
        let left: Vec<String> = fs::read_dir(lab.shared().join("1"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_host_keeps_images_and_tells_sizes() {
    lab(Layout::default(), |lab| {
        let cloud = Cloud::new(lab);
        let cache = "/var/lib/one/cache";
        cloud.datastore(
            "<CACHE_ENABLE>YES</CACHE_ENABLE><CACHE_MAX_SIZE>100</CACHE_MAX_SIZE><CACHE_UPSTREAMS>host2</CACHE_UPSTREAMS>",
        );
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
        fs::write(
            lab.path("oned/image/3.xml"),
            "<IMAGE><ID>3</ID><PERSISTENT>0</PERSISTENT><MODTIME>6</MODTIME></IMAGE>",
        )
        .expect("writes");
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
