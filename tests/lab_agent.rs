//! Operations on a guest with an agent, by the links: what freezes its file systems, and what thaws them whatever happens.
//! And what the operator's `kvmrc` says of libvirt. `cargo test --test lab_agent -- --ignored --test-threads 1`, as root.
//!
//! The guest is a Linux that writes all the time, see `lab/linux.rs`. What was copied while it was frozen is a file system
//! that needs no journal; what was copied while it only stood still does.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

#[path = "lab/hypervisors.rs"]
#[allow(dead_code)]
mod hypervisors;
#[path = "lab/linux.rs"]
mod linux;
#[path = "lab/remotes.rs"]
mod remotes;
#[path = "lab/writer.rs"]
#[allow(dead_code)]
mod writer;

use hypervisors::{Lab, Layout, lab, within};
use linux::{Left, Linux, judge};
use remotes::Remotes;

/// `LCM_STATE`: a live snapshot, a disk saved while the VM runs.
const SNAPSHOT: u32 = 57;
const SAVES: u32 = 26;

/// A VM with a qcow2 disk and a raw one, and its calls.
struct Vm<'a> {
    lab: &'a Lab,
    remotes: Remotes<'a>,
}

impl<'a> Vm<'a> {
    fn new(lab: &'a Lab) -> Self {
        let vm = Self { lab, remotes: Remotes::new(lab) };
        let folder = vm.disk(0).with_extension("0.snap");
        fs::create_dir_all(&folder).expect("makes");
        fs::create_dir_all(lab.shared().join("102")).expect("makes");
        Linux::plant(&folder.join("0"), "qcow2");
        symlink(".", folder.join("disk.0.snap")).expect("links");
        symlink("disk.0.snap/0", vm.disk(0)).expect("links");
        Linux::plant(&vm.disk(1), "raw");
        vm
    }

    fn disk(&self, number: u32) -> PathBuf {
        self.lab.shared().join(format!("103/7/disk.{number}"))
    }

    /// The file that holds a snapshot.
    fn snapshot_file(&self, number: u32, k: u32) -> PathBuf {
        let folder = self.lab.shared().join(format!("103/7/disk.{number}.snap"));
        match fs::read_to_string(folder.join(format!("{k}.current"))) {
            Ok(text) => folder.join(Path::new(text.trim()).file_name().expect("a name")),
            Err(_) => folder.join(k.to_string()),
        }
    }

    fn start(&self) -> Linux<'a> {
        Linux::start(self.lab, "host1", 7, &[(&self.disk(0), "qcow2"), (&self.disk(1), "raw")])
    }

    /// `tm/qcow2/<action> host1:…/disk.<number> <words> 7 102`.
    fn command(&self, action: &str, number: u32, words: &[&str], lcm: u32) -> std::process::Command {
        let disk = |number: u32, format: &str, target: &str| {
            format!(
                "<DISK><DISK_ID>{number}</DISK_ID><FORMAT>{format}</FORMAT><CLONE>YES</CLONE><TARGET>{target}</TARGET>\
                 <SOURCE>{}/102/image</SOURCE></DISK>",
                self.lab.shared().display()
            )
        };
        let xml = format!(
            "<VM><ID>7</ID><LCM_STATE>{lcm}</LCM_STATE><DEPLOY_ID>one-7</DEPLOY_ID><TEMPLATE>{}{}</TEMPLATE>\
             <HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><VM_MAD>kvm</VM_MAD><DS_ID>103</DS_ID></HISTORY></HISTORY_RECORDS></VM>",
            disk(0, "qcow2", "vda"),
            disk(1, "raw", "vdb")
        );
        self.remotes.tell("vm/7", &xml);
        let mut args = vec![format!("host1:{}", self.disk(number).display())];
        args.extend(words.iter().map(|word| (*word).to_owned()));
        args.extend(["7", "102"].map(str::to_owned));
        self.remotes.call(&format!("tm/qcow2/{action}"), &args)
    }

    #[track_caller]
    fn must(&self, action: &str, number: u32, words: &[&str], lcm: u32) -> String {
        let begun = Instant::now();
        let done = self.command(action, number, words, lcm).output().expect("runs");
        let told = told(&done);
        println!("{action} {number} {words:?}: {:?}\n{told}", begun.elapsed());
        assert!(done.status.success(), "{action} {number} {words:?}: {told}");
        told
    }

    /// Puts a program before virsh on the host, which may change its words.
    fn before_virsh(&self, script: &str) {
        let own = self.lab.path("virsh");
        fs::copy("/usr/bin/virsh", self.lab.path("virsh.real")).expect("copies");
        fs::write(&own, format!("#!/bin/bash\nreal={}\n{script}\n", self.lab.path("virsh.real").display()))
            .expect("writes");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).expect("chmod");
        self.lab.must("host1", &["mount", "--bind", own.to_str().expect("plain"), "/usr/bin/virsh"]);
    }

    /// Takes it away: nothing may run it any more, also of a call that was killed. That takes its host a few seconds to
    /// see, not the minute that virsh may take.
    fn virsh_again(&self) {
        let begun = Instant::now();
        let gone = within(40, || self.lab.on("host1", &["umount", "/usr/bin/virsh"]).status.success());
        println!("nothing runs the other virsh after {:?}", begun.elapsed());
        assert!(gone, "{}", self.lab.must("host1", &["ps", "-ef"]));
    }
}

fn told(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// The guest runs and writes, and nothing of it is frozen.
#[track_caller]
fn alive(linux: &Linux<'_>) {
    assert_eq!(linux.domain.state(), "running");
    assert_eq!(linux.freeze_status(), "thawed");
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn file_systems_are_frozen_by_the_agent_and_thawed_whatever_happens() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        let vm = Vm::new(lab);
        vm.remotes.kvmrc("export VIRSH_RETRIES=1\n");
        let begun = Instant::now();
        let linux = vm.start();
        println!("the guest writes after {:?}", begun.elapsed());
        alive(&linux);

        // Live snapshots: a layer, and a copy.
        vm.must("snap_create_live", 0, &["0"], SNAPSHOT);
        assert_eq!(linux.states(), (1, 1));
        let (left, first) = judge(lab, "host1", &vm.snapshot_file(0, 0));
        assert_eq!(left, Left::Clean);
        vm.must("snap_create_live", 1, &["0"], SNAPSHOT);
        assert_eq!(linux.states(), (2, 2));
        let (left, second) = judge(lab, "host1", &vm.snapshot_file(1, 0));
        assert!(left == Left::Clean && second > first, "{left:?} {first} {second}");
        alive(&linux);

        // Saved as an image: where libvirt refuses the job, frozen.
        let image = lab.shared().join("102/saved");
        let words = [image.to_str().expect("plain"), "-1"];
        vm.before_virsh("exec $real \"${@/#--format=*/--format=none-such}\"");
        for (number, states) in [(0, 3), (1, 4)] {
            vm.must("cpds", number, &words, SAVES);
            assert_eq!(linux.states(), (states, states));
            let (left, third) = judge(lab, "host1", &image);
            assert!(left == Left::Clean && third > second, "{left:?} {second} {third}");
            alive(&linux);
        }
        vm.virsh_again();

        // Killed while it is frozen: the guard on the host thaws. First by the shell there, then by our own agent.
        vm.before_virsh("case \" $* \" in *' snapshot-create '*) sleep 600 ;; esac\nexec $real \"$@\"");
        for (k, states) in [("1", 5), ("2", 6)] {
            let mut child = vm.command("snap_create_live", 0, &[k], SNAPSHOT).spawn().expect("starts");
            assert!(within(60, || linux.freeze_status() == "frozen"), "{}", linux.console());
            child.kill().expect("kills");
            child.wait().expect("ends");
            let killed = Instant::now();
            assert!(within(120, || linux.freeze_status() == "thawed"), "{}", linux.console());
            println!("thawed {:?} after the kill", killed.elapsed());
            assert_eq!(linux.states(), (states, states));
            alive(&linux);
            lab.sync_agent();
        }
        vm.virsh_again();
        // oned never gives a number twice, also not one whose snapshot failed.
        vm.must("snap_create_live", 0, &["3"], SNAPSHOT);
        let (left, fourth) = judge(lab, "host1", &vm.snapshot_file(0, 3));
        assert!(left == Left::Clean && fourth > first, "{left:?} {first} {fourth}");

        // An agent that hangs: given up after VIRSH_TIMEOUT, and the guest stands still instead.
        vm.remotes.kvmrc("export VIRSH_RETRIES=1\nexport VIRSH_TIMEOUT=3\n");
        let states = linux.states();
        linux.shell("killall -STOP qemu-ga");
        let begun = Instant::now();
        assert!(within(60, || !linux.agent("guest-ping")));
        println!("the agent hangs after {:?}", begun.elapsed());
        let told = vm.must("snap_create_live", 1, &["1"], SNAPSHOT);
        assert!(told.contains("suspending one-7 instead"), "{told}");
        assert_eq!((linux.states(), linux.domain.state().as_str()), (states, "running"));
        let (left, _) = judge(lab, "host1", &vm.snapshot_file(1, 1));
        assert_eq!(left, Left::Journal);
        linux.domain.destroy();
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn kvmrc_says_how_libvirt_is_reached_and_how_long_a_busy_disk_is_waited_for() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        let vm = Vm::new(lab);
        let folder = vm.disk(0).with_extension("0.snap");
        writer::plant(&folder.join("0"), "qcow2");
        let domain =
            lab.run_domain("host1", 7, &[(&vm.disk(0), "qcow2"), (&vm.disk(1), "raw")], hypervisors::Kind::Transient);
        domain.writes_on();
        // The writer's disks are on another bus.
        let command = |action: &str, k: &str| {
            let command = vm.command(action, 0, &[k], SNAPSHOT);
            let xml = fs::read_to_string(lab.path("oned/vm/7.xml")).expect("reads");
            vm.remotes.tell("vm/7", &xml.replace(">vda<", ">hda<").replace(">vdb<", ">hdb<"));
            command
        };

        // Another socket: libvirt is where the operator says, and nowhere else.
        vm.remotes.kvmrc("export LIBVIRT_URI=qemu+unix:///system?socket=/run/none-such\n");
        let done = command("snap_create_live", "0").output().expect("runs");
        assert!(!done.status.success() && told(&done).contains("/run/none-such"), "{}", told(&done));
        lab.must("host1", &["ln", "-s", "/run/libvirt/libvirt-sock", "/run/lab-sock"]);
        vm.remotes.kvmrc("export LIBVIRT_URI='qemu+unix:///system?socket=/run/lab-sock'\n");
        let done = command("snap_create_live", "0").output().expect("runs");
        assert!(done.status.success(), "{}", told(&done));

        // A foreign job: no retry is no waiting, and the job goes on.
        let foreign = lab.shared().join("foreign");
        fs::File::create(&foreign).expect("creates");
        let path = foreign.display().to_string();
        assert!(domain.virsh("blockcopy", &["hda", &path, "--transient-job", "--bandwidth", "1"]).status.success());
        vm.remotes.kvmrc("export VIRSH_RETRIES=0\n");
        let begun = Instant::now();
        let done = command("snap_create_live", "1").output().expect("runs");
        let busy = "hda of domain one-7 is busy: the job \"Block Copy\" runs on it";
        assert!(!done.status.success() && told(&done).contains(busy), "{}", told(&done));
        println!("refused after {:?}", begun.elapsed());

        // Waited for: it goes on when the disk is free.
        vm.remotes.kvmrc("export VIRSH_RETRIES=100\n");
        let mut child = command("snap_create_live", "1").spawn().expect("starts");
        let mut log = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
        let mut text = String::new();
        while !text.contains("Waiting for the job \"Block Copy\"") {
            assert!(std::io::BufRead::read_line(&mut log, &mut text).expect("reads") > 0, "{text}");
        }
        assert!(domain.virsh("blockjob", &["hda", "--abort"]).status.success());
        std::io::Read::read_to_string(&mut log, &mut text).expect("reads");
        assert!(child.wait().expect("ends").success(), "{text}");
        assert_eq!(domain.source("hda"), vm.snapshot_file(0, 2));
        domain.writes_on();
        domain.destroy();
    });
}
