//! The snapshot actions of `qcow2` on running domains: `cargo test --test lab_snapshots -- --ignored --test-threads 1`, as
//! root.
//!
//! The guest writes all the time, and every file that holds one of its moments has to be whole: see `lab/writer.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use onestore::action::{Action, Kind as Called};
use onestore::context::Hosts;
use onestore::driver::{Driver, Serve, TmRequest};
use onestore::exec::control::{Cancel, Control};
use onestore::exec::host::{Host, ScriptError};
use onestore::exec::interpret::Io;
use onestore::exec::op::{Script, Value};
use onestore::report::one_line;

#[path = "hosts/by_ssh.rs"]
mod by_ssh;
#[path = "hosts/calls.rs"]
#[allow(dead_code)]
mod calls;
#[path = "lab/hypervisors.rs"]
#[allow(dead_code)]
mod hypervisors;
#[path = "lab/writer.rs"]
mod writer;

use by_ssh::BySsh;
use calls::Calls;
use hypervisors::{Kind, Lab, Layout, lab, run};

/// Disk 0 of a VM that is called `one-<id>`.
struct Disk<'a> {
    lab: &'a Lab,
    id: u32,
    domain: String,
    path: PathBuf,
    folder: PathBuf,
    /// What the guest had written, by snapshot.
    moments: BTreeMap<u32, u32>,
    /// Scripts that the last action had the host run.
    scripts: Arc<AtomicUsize>,
}

/// Where a host sees what is at `path` here: differs where its datastores have another root.
fn there(lab: &Lab, path: &Path) -> PathBuf {
    path.strip_prefix(lab.shared()).map_or_else(|_| path.to_owned(), |below| lab.shared_on_hosts().join(below))
}

/// Hosts by ssh; counts the scripts.
struct Counting(Arc<AtomicUsize>);

struct Counted(Arc<dyn Host>, Arc<AtomicUsize>);

impl Hosts for Counting {
    fn local(&self) -> Arc<dyn Host> {
        BySsh.local()
    }

    fn remote(&self, name: &str) -> Result<Arc<dyn Host>> {
        Ok(Arc::new(Counted(BySsh.remote(name)?, Arc::clone(&self.0))))
    }
}

impl Host for Counted {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.run(script, io, control)
    }
}

/// `LCM_STATE` of a snapshot that is deleted while the VM runs, of a disk that is saved meanwhile, and of a VM that is off.
const LIVE: u32 = 59;
const SAVES: u32 = 26;
const OFF: u32 = 0;

impl<'a> Disk<'a> {
    /// A standalone clone as upstream makes it.
    fn own(lab: &'a Lab, id: u32, domain: &str) -> Self {
        let vm = lab.shared().join(format!("0/{id}"));
        let folder = vm.join("disk.0.snap");
        fs::create_dir_all(&folder).expect("makes");
        writer::plant(&folder.join("0"), "qcow2");
        symlink(".", folder.join("disk.0.snap")).expect("links");
        symlink("disk.0.snap/0", vm.join("disk.0")).expect("links");
        Self {
            lab,
            id,
            domain: domain.to_owned(),
            path: vm.join("disk.0"),
            folder,
            moments: BTreeMap::new(),
            scripts: Arc::default(),
        }
    }

    /// A persistent image, used in place.
    fn persistent(lab: &'a Lab, id: u32, domain: &str) -> Self {
        let (vm, image) = (lab.shared().join(format!("0/{id}")), lab.shared().join("1/abc"));
        let folder = lab.shared().join("1/abc.snap");
        fs::create_dir_all(&vm).expect("makes");
        fs::create_dir_all(&folder).expect("makes");
        writer::plant(&image, "qcow2");
        symlink(".", folder.join("abc.snap")).expect("links");
        symlink(there(lab, &image), folder.join("0")).expect("links");
        symlink(there(lab, &folder.join("0")), vm.join("disk.0")).expect("links");
        Self {
            lab,
            id,
            domain: domain.to_owned(),
            path: vm.join("disk.0"),
            folder,
            moments: BTreeMap::new(),
            scripts: Arc::default(),
        }
    }

    /// `tm/qcow2/<action> host1:…/disk.0 <k> <vm> 1`.
    fn act(&self, action: &'static str, k: u32, lcm: u32) -> Result<()> {
        self.call(action, [k.to_string()].as_slice(), lcm)
    }

    /// `tm/qcow2/<action> host1:…/disk.0 <words> <vm> 1`.
    fn call(&self, action: &'static str, words: &[String], lcm: u32) -> Result<()> {
        let oned = self.lab.path("oned");
        fs::create_dir_all(oned.join("vm")).expect("makes");
        let clone = if self.folder.starts_with(self.lab.shared().join("1")) { "NO" } else { "YES" };
        let vm = format!(
            "<VM><ID>{id}</ID><LCM_STATE>{lcm}</LCM_STATE><DEPLOY_ID>{domain}</DEPLOY_ID><TEMPLATE><DISK><DISK_ID>0</DISK_ID>\
             <FORMAT>qcow2</FORMAT><CLONE>{clone}</CLONE><TARGET>hda</TARGET><SOURCE>{shared}/1/abc</SOURCE></DISK></TEMPLATE>\
             <HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><VM_MAD>kvm</VM_MAD></HISTORY></HISTORY_RECORDS></VM>",
            id = self.id,
            domain = self.domain,
            shared = self.lab.shared().display()
        );
        fs::write(oned.join(format!("vm/{}.xml", self.id)), vm).expect("writes");
        let entry = Driver::find(Called::Tm, "qcow2").and_then(|driver| driver.entry(action, None)).expect("served");
        let Serve::Tm(serve) = entry.serve else { panic!("{action} is not the driver's own") };
        let disk = format!("host1:{}", there(self.lab, &self.path).display());
        let words = words.iter().cloned();
        let args =
            [disk].into_iter().chain(words).chain([self.id.to_string(), "1".to_owned()]).map(Into::into).collect();
        let name = Action::find(Called::Tm, action).expect("an action").name;
        let request = TmRequest { mad: "qcow2".to_owned(), action: name, args, vm: None };
        let calls = Calls {
            mad: "qcow2",
            remotes: self.lab.path("remotes"),
            datastores: None,
            oned: Some(oned),
            settings: &[("VIRSH_RETRIES", "1")],
            hosts: &Counting(Arc::clone(&self.scripts)),
        };
        self.scripts.store(0, Ordering::Relaxed);
        calls.run(Control::new(Cancel::new()), |cx| serve(cx, &request)).map(drop)
    }

    #[track_caller]
    fn must(&self, action: &'static str, k: u32, lcm: u32) {
        self.act(action, k, lcm).unwrap_or_else(|error| panic!("{action} {k}: {}", one_line(&error)));
        self.check();
    }

    /// A live snapshot, and what it holds.
    #[track_caller]
    fn snapshot(&mut self, k: u32) {
        self.must("snap_create_live", k, OFF);
        let file = there(self.lab, &self.file(k));
        self.moments.insert(k, self.lab.highest("host1", &file));
        self.check();
    }

    fn file(&self, k: u32) -> PathBuf {
        match fs::read_to_string(self.folder.join(format!("{k}.current"))) {
            Ok(text) => self.folder.join(Path::new(text.trim()).file_name().expect("a name")),
            Err(_) => self.folder.join(k.to_string()),
        }
    }

    /// Every snapshot holds what it held, and no work is left over.
    #[track_caller]
    fn check(&self) {
        for (k, moment) in &self.moments {
            assert_eq!(self.lab.highest("host1", &there(self.lab, &self.file(*k))), *moment, "snapshot {k}");
        }
        let names: Vec<String> = fs::read_dir(&self.folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        assert!(!names.iter().any(|name| name.ends_with(".deleting")), "{names:?}");
    }

    fn numbers(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.folder).expect("a folder");
        let mut ids: Vec<u32> =
            entries.filter_map(|entry| entry.expect("an entry").file_name().to_str()?.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }

    fn backing(&self, k: u32) -> String {
        let file = self.folder.join(k.to_string());
        let info = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(file).output().expect("runs");
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("json");
        info["backing-filename"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_disks_life_with_snapshots_under_a_writing_guest() {
    lab(Layout::default(), |lab| {
        let path = lab.shared().join("0/7/disk.0");
        let mut disk = Disk::own(lab, 7, "one-7");
        let domain = lab.run_domain("host1", 7, &[(&path, "qcow2")], Kind::Transient);
        disk.domain.clone_from(&domain.name);
        for k in 0..3 {
            domain.writes_on();
            disk.snapshot(k);
        }
        assert_eq!(disk.numbers(), [0, 1, 2, 3]);
        assert!(disk.moments.values().is_sorted());
        domain.writes_on();

        // In the middle: 2 is merged into 1, which holds snapshot 2 from now on.
        disk.moments.remove(&1);
        disk.must("snap_delete", 1, LIVE);
        assert_eq!((disk.numbers(), disk.file(2)), (vec![0, 1, 3], disk.folder.join("1")));
        assert_eq!(disk.backing(3), "disk.0.snap/1");
        domain.writes_on();
        // Right below the current file.
        disk.moments.remove(&2);
        disk.must("snap_delete", 2, LIVE);
        assert_eq!((disk.numbers(), disk.backing(3).as_str()), (vec![0, 3], "disk.0.snap/0"));
        disk.must("snap_delete", 2, LIVE);
        let last = domain.writes_on();
        domain.destroy();
        assert!(lab.highest("host1", &path) >= last);

        // Off: back to the first one, and a branch beside it stays.
        disk.must("snap_create", 3, OFF);
        disk.moments.insert(3, lab.highest("host1", &disk.file(3)));
        disk.must("snap_revert", 0, OFF);
        assert_eq!(lab.highest("host1", &path), disk.moments[&0]);
        assert_eq!(disk.backing(4), "disk.0.snap/0");

        // Runs again; 3 and 4 stand on 0. The branch is put elsewhere, then 0 goes.
        let domain = lab.run_domain("host1", 7, &[(&path, "qcow2")], Kind::Transient);
        domain.writes_on();
        disk.snapshot(4);
        domain.writes_on();
        disk.moments.remove(&0);
        disk.must("snap_delete", 0, LIVE);
        assert_eq!(disk.numbers(), [0, 3, 5]);
        assert_eq!((disk.file(4), disk.backing(3)), (disk.folder.join("0"), String::new()));
        domain.destroy();
        let domain = lab.run_domain("host1", 7, &[(&path, "qcow2")], Kind::Transient);
        domain.writes_on();
        disk.snapshot(5);
        domain.writes_on();
        // 5 is known by the link: neither may something be merged into it nor a name be written there.
        disk.moments.remove(&4);
        disk.must("snap_delete", 4, LIVE);
        domain.writes_on();
        disk.snapshot(6);
        domain.writes_on();
        disk.moments.remove(&5);
        disk.must("snap_delete", 5, LIVE);
        domain.writes_on();
        // A leaf that the domain does not have open.
        disk.moments.remove(&3);
        disk.must("snap_delete", 3, LIVE);
        let last = domain.writes_on();
        domain.destroy();
        assert!(lab.highest("host1", &path) >= last);
        disk.must("snap_create", 7, OFF);
        disk.moments.insert(7, lab.highest("host1", &disk.file(7)));
        disk.must("snap_create", 8, OFF);
        disk.moments.insert(8, disk.moments[&7]);

        // Boots on a chain: the current file is known by the link, which still leads to it.
        let domain = lab.run_domain("host1", 7, &[(&path, "qcow2")], Kind::Transient);
        domain.writes_on();
        disk.moments.remove(&7);
        disk.must("snap_delete", 7, LIVE);
        assert!(disk.folder.join("8.current").exists());
        domain.writes_on();
        let last = domain.writes_on();
        domain.destroy();
        for k in [6, 8] {
            disk.moments.remove(&k);
            disk.must("snap_delete", k, OFF);
        }
        assert_eq!((disk.numbers(), disk.backing(9)), (vec![9], String::new()));
        assert!(lab.highest("host1", &path) >= last);
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_persistent_image_under_a_writing_guest() {
    lab(Layout::default(), |lab| {
        let path = lab.shared().join("0/8/disk.0");
        let mut disk = Disk::persistent(lab, 8, "one-8");
        let domain = lab.run_domain("host1", 8, &[(&path, "qcow2")], Kind::Transient);
        disk.domain.clone_from(&domain.name);
        domain.writes_on();
        disk.snapshot(0);
        domain.writes_on();
        disk.snapshot(1);
        domain.writes_on();
        // QEMU knows the image by the disk's link, which has moved on: merging into it would write to another file.
        disk.moments.remove(&0);
        disk.must("snap_delete", 0, LIVE);
        assert_eq!((disk.numbers(), disk.file(1)), (vec![1, 2], disk.folder.join("1")));
        assert_eq!(
            (disk.backing(1), disk.backing(2)),
            (lab.shared().join("1/abc").display().to_string(), String::new())
        );
        domain.writes_on();
        disk.snapshot(2);
        domain.writes_on();
        disk.moments.remove(&1);
        disk.must("snap_delete", 1, LIVE);
        disk.moments.remove(&2);
        disk.must("snap_delete", 2, LIVE);
        assert_eq!((disk.numbers(), disk.backing(3)), (vec![3], String::new()));
        let last = domain.writes_on();
        domain.destroy();
        assert!(lab.highest("host1", &path) >= last);
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_live_snapshot_that_was_interrupted_is_completed() {
    lab(Layout::default(), |lab| {
        let path = lab.shared().join("0/9/disk.0");
        let mut disk = Disk::own(lab, 9, "one-9");
        let domain = lab.run_domain("host1", 9, &[(&path, "qcow2")], Kind::Transient);
        disk.domain.clone_from(&domain.name);
        domain.writes_on();
        disk.snapshot(0);
        domain.writes_on();
        // As if killed after the domain has switched and before the link has.
        fs::remove_file(&path).expect("removes");
        symlink("disk.0.snap/0", &path).expect("links");
        disk.must("snap_create_live", 0, OFF);
        assert_eq!(fs::read_link(&path).expect("a link"), Path::new("disk.0.snap/1"));
        // A layer that was made and never used is taken.
        run(Command::new("qemu-img").current_dir(&disk.folder).args([
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            "disk.0.snap/1",
            "2",
            "64M",
        ]));
        disk.snapshot(1);
        assert_eq!(disk.numbers(), [0, 1, 2]);
        domain.writes_on();
        // A domain that is not there: nothing is touched.
        disk.domain = "one-4711".to_owned();
        let before = (disk.numbers(), fs::read_link(&path).expect("a link"));
        let error = disk.act("snap_create_live", 2, OFF).expect_err("no such domain");
        assert!(one_line(&error).contains("one-4711"), "{error:#}");
        assert!(disk.act("snap_delete", 0, LIVE).is_err());
        assert_eq!((disk.numbers(), fs::read_link(&path).expect("a link")), before);
        domain.destroy();
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_disk_is_saved_under_a_writing_guest() {
    lab(Layout::default(), |lab| {
        let path = lab.shared().join("0/11/disk.0");
        let images = lab.shared().join("1");
        let mut disk = Disk::own(lab, 11, "one-11");
        let domain = lab.run_domain("host1", 11, &[(&path, "qcow2")], Kind::Transient);
        disk.domain.clone_from(&domain.name);
        domain.writes_on();
        disk.snapshot(0);
        let before = domain.writes_on();
        let to = images.join("saved");
        let save = |snapshot: &str| disk.call("cpds", &[to.display().to_string(), snapshot.to_owned()], SAVES);
        let line = |error: anyhow::Error| one_line(&error);
        save("-1").map_err(line).expect("saved as it is");
        let saved = lab.highest("host1", &to);
        assert!(saved >= before, "{saved} < {before}");
        domain.writes_on();
        // Once more: the new state takes the place of the old one.
        save("-1").map_err(line).expect("saved again");
        assert!(lab.highest("host1", &to) > saved);
        domain.writes_on();
        // A snapshot of the running VM is a file that nobody writes to.
        save("0").map_err(line).expect("a snapshot is saved");
        assert_eq!(lab.highest("host1", &to), disk.moments[&0]);
        domain.writes_on();
        let left: Vec<_> = fs::read_dir(&images).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(left, ["saved"]);
        disk.check();
    });
}

/// Where front-end and host see the datastores in different places, the names in files are the host's; and what an action
/// costs in scripts is the same.
#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn live_actions_where_the_host_has_its_datastores_elsewhere() {
    lab(Layout { host_root: Some("/var/lib/elsewhere/datastores"), ..Layout::default() }, |lab| {
        for (id, mut disk) in [(7, Disk::own(lab, 7, "one-7")), (8, Disk::persistent(lab, 8, "one-8"))] {
            let path = there(lab, &disk.path);
            let domain = lab.run_domain("host1", id, &[(&path, "qcow2")], Kind::Transient);
            disk.domain.clone_from(&domain.name);
            let mut scripts = Vec::new();
            for k in 0..3 {
                domain.writes_on();
                disk.snapshot(k);
                scripts.push(disk.scripts.load(Ordering::Relaxed));
            }
            domain.writes_on();
            let to = lab.shared().join(format!("1/saved{id}"));
            for snapshot in ["-1", "1"] {
                let done = disk.call("cpds", &[to.display().to_string(), snapshot.to_owned()], SAVES);
                done.unwrap_or_else(|error| panic!("cpds {snapshot}: {}", one_line(&error)));
                scripts.push(disk.scripts.load(Ordering::Relaxed));
            }
            assert_eq!(lab.highest("host1", &there(lab, &to)), disk.moments[&1]);
            for k in [1, 0, 2] {
                domain.writes_on();
                disk.moments.remove(&k);
                disk.must("snap_delete", k, LIVE);
                scripts.push(disk.scripts.load(Ordering::Relaxed));
            }
            let last = domain.writes_on();
            domain.destroy();
            assert_eq!((disk.numbers(), disk.backing(3)), (vec![3], String::new()));
            assert!(lab.highest("host1", &path) >= last);
            // Of a live action each thing that is asked of the domain is a script, as it depends on the answer before.
            assert_eq!(scripts, [7, 7, 7, 6, 3, 7, 6, 4], "VM {id}");
        }
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_snapshot_for_which_there_is_no_room_changes_nothing() {
    lab(Layout::default(), |lab| {
        let mut disk = Disk::own(lab, 12, "one-12");
        let small = lab.small().join("0/12");
        fs::create_dir_all(small.parent().expect("a folder")).expect("makes");
        run(Command::new("cp").arg("-a").arg(disk.path.parent().expect("a folder")).arg(&small));
        (disk.path, disk.folder) = (small.join("disk.0"), small.join("disk.0.snap"));
        let domain = lab.run_domain("host1", 12, &[(&disk.path, "qcow2")], Kind::Transient);
        disk.domain.clone_from(&domain.name);
        domain.writes_on();
        // The guest would get an error itself.
        assert!(domain.virsh("suspend", &[]).status.success());
        let fill = lab.small().join("fill");
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=4k", "status=none"]).arg(format!("of={}", fill.display()));
        assert!(!dd.output().expect("dd").status.success(), "it is full now");
        let before = (disk.numbers(), fs::read_link(&disk.path).expect("a link"));
        let error = one_line(&disk.act("snap_create_live", 0, OFF).expect_err("no room"));
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!((disk.numbers(), fs::read_link(&disk.path).expect("a link")), before);
        assert!(domain.source("hda").ends_with("disk.0"));
        fs::remove_file(fill).expect("removes");
        assert_eq!(domain.state(), "paused");
        assert!(domain.virsh("resume", &[]).status.success());
        disk.must("snap_create_live", 0, OFF);
        domain.writes_on();
        domain.destroy();
    });
}
