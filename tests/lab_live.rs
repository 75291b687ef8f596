//! Operations on running domains: `cargo test --test lab_live -- --ignored --test-threads 1`, as root.
//!
//! The guest writes all the time, and every file that holds one of its moments has to be whole: see `lab/writer.rs`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use onestore::context::Cx;
use onestore::driver::live::{Above, Live};
use onestore::exec::control::{Cancel, Control};
use onestore::exec::op::{Op, Sparse};
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
use hypervisors::{Domain, Kind, Lab, Layout, lab, run, within};

/// Runs an action with `domain`; what it did is kept if it succeeds, else taken back.
fn act<T>(lab: &Lab, domain: &Domain<'_>, body: impl FnOnce(&Cx<'_>, &Live<'_>) -> Result<T>) -> Result<T> {
    act_within(lab, domain, Control::new(Cancel::new()), body)
}

fn act_within<T>(
    lab: &Lab,
    domain: &Domain<'_>,
    control: Control,
    body: impl FnOnce(&Cx<'_>, &Live<'_>) -> Result<T>,
) -> Result<T> {
    let calls = Calls {
        mad: "qcow2",
        remotes: lab.path("remotes"),
        datastores: None,
        oned: None,
        settings: &[("VIRSH_RETRIES", "1")],
        hosts: &BySsh,
    };
    calls.run(control, |cx| body(cx, &Live::new(cx, &cx.host(&domain.host)?, &domain.name)))
}

/// A clone as `qcow2` makes it: `disk.0 -> disk.0.snap/0`, which holds the guest; the link in the folder to itself.
fn plant(lab: &Lab, id: u32) -> (PathBuf, PathBuf) {
    let vm = lab.shared().join(format!("0/{id}"));
    let folder = vm.join("disk.0.snap");
    fs::create_dir_all(&folder).expect("makes");
    writer::plant(&folder.join("0"), "qcow2");
    symlink(".", folder.join("disk.0.snap")).expect("links");
    symlink("disk.0.snap/0", vm.join("disk.0")).expect("links");
    (vm.join("disk.0"), folder)
}

fn relink(disk: &Path, layer: u32) {
    let _ = fs::remove_file(disk);
    symlink(format!("disk.0.snap/{layer}"), disk).expect("links");
}

/// Snapshot: overlay `layer` on `below`, taken live, and the disk's link moved on.
fn snapshot(lab: &Lab, domain: &Domain<'_>, (disk, folder): (&Path, &Path), below: &str, layer: u32) -> Result<()> {
    let overlay = folder.join(layer.to_string());
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below])
        .arg(&overlay)
        .current_dir(folder));
    act(lab, domain, |_, live| live.snapshot(&live.look()?, "hda", &overlay))?;
    relink(disk, layer);
    Ok(())
}

fn backing(file: &Path) -> String {
    let info = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(file).output().expect("runs");
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("json");
    info["backing-filename"].as_str().unwrap_or_default().to_owned()
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn snapshots_are_taken_merged_and_pulled_under_a_writing_guest() {
    lab(Layout::default(), |lab| {
        for (id, kind, agent) in [(7, Kind::Persistent, false), (8, Kind::Transient, true)] {
            if agent {
                lab.sync_agent();
            }
            let (disk, folder) = plant(lab, id);
            let at = |layer: u32| folder.join(layer.to_string());
            let domain = lab.run_domain("host1", id, &[(&disk, "qcow2")], kind);
            let mut moments = vec![domain.writes_on()];
            for layer in 1..=3 {
                let below = format!("disk.0.snap/{}", layer - 1);
                snapshot(lab, &domain, (&disk, &folder), &below, layer).expect("a snapshot");
                assert_eq!(domain.source("hda"), at(layer));
                // What the guest had written when it was taken, and that stays.
                moments.push(lab.highest("host1", &at(layer - 1)));
                domain.writes_on();
            }
            assert!(moments.is_sorted(), "{moments:?}");
            assert_eq!(lab.highest("host1", &at(1)), moments[2]);

            // The middle one goes: 2 into 1, and 3 stands on that.
            let above = Above { file: &at(3), backing: Some(Path::new("disk.0.snap/1")) };
            act(lab, &domain, |_, live| live.commit(&live.look()?, "hda", (1, 2), above)).expect("commits");
            assert_eq!(backing(&at(3)), "disk.0.snap/1");
            fs::remove_file(at(2)).expect("removes");
            assert_eq!(lab.highest("host1", &at(1)), moments[3]);
            assert_eq!(lab.highest("host1", &at(0)), moments[1]);
            domain.writes_on();

            // The current file's parent goes: its content is pulled up. Its other neighbour is known to libvirt as disk.0.
            let above = Above { file: &at(3), backing: Some(Path::new("disk.0.snap/0")) };
            act(lab, &domain, |_, live| live.pull(&live.look()?, "hda", Some(2), above)).expect("pulls");
            assert_eq!(backing(&at(3)), "disk.0.snap/0");
            fs::remove_file(at(1)).expect("removes");
            let last = domain.writes_on();

            // And all of it.
            let above = Above { file: &at(3), backing: None };
            act(lab, &domain, |_, live| live.pull(&live.look()?, "hda", None, above)).expect("pulls");
            assert_eq!(backing(&at(3)), "");
            fs::remove_file(at(0)).expect("removes");
            assert!(domain.writes_on() > last);
            assert_eq!(domain.state(), "running");

            // Off and on again: what is there boots, and goes on where it was.
            let last = domain.highest();
            domain.destroy();
            assert!(lab.highest("host1", &disk) >= last);
            if kind == Kind::Persistent {
                assert!(domain.virsh("undefine", &[]).status.success());
            }
            let domain = lab.run_domain("host2", id, &[(&disk, "qcow2")], Kind::Transient);
            assert!(domain.writes_on() > last);
            domain.destroy();
        }
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn absolute_names_stay_true_although_libvirt_knows_a_file_by_its_link() {
    lab(Layout { host_root: Some("/var/lib/elsewhere/datastores"), ..Layout::default() }, |lab| {
        // A persistent image: the chain has absolute names, as the host sees them.
        let (disk, folder) = plant(lab, 9);
        let there = |path: &Path| lab.shared_on_hosts().join(path.strip_prefix(lab.shared()).expect("shared"));
        let (disk_there, folder_there) = (there(&disk), there(&folder));
        let on_host = |layer: u32| folder_there.join(layer.to_string());
        let domain = lab.run_domain("host1", 9, &[(&disk_there, "qcow2")], Kind::Persistent);
        domain.writes_on();
        for layer in 1..=2 {
            let (below, overlay) = (on_host(layer - 1), on_host(layer));
            let create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
            lab.must(
                "host1",
                &[&create[..], &[below.to_str().expect("plain"), overlay.to_str().expect("plain")]].concat(),
            );
            act(lab, &domain, |_, live| live.snapshot(&live.look()?, "hda", &overlay)).expect("a snapshot");
            relink(&disk, layer);
            domain.writes_on();
        }
        let base = on_host(0);
        let above = Above { file: &on_host(2), backing: Some(&base) };
        act(lab, &domain, |_, live| live.pull(&live.look()?, "hda", Some(2), above)).expect("pulls");
        assert_eq!(backing(&folder.join("2")), base.to_str().expect("plain"));
        let last = domain.writes_on();
        domain.destroy();
        lab.must("host1", &["rm", on_host(1).to_str().expect("plain")]);
        assert!(lab.highest("host1", &disk_there) >= last);
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_disk_is_copied_under_a_writing_guest() {
    lab(Layout { reflink: true, ..Layout::default() }, |lab| {
        let (disk, folder) = plant(lab, 7);
        let raw = lab.shared().join("second");
        fs::File::create(&raw).and_then(|file| file.set_len(1 << 20)).expect("creates");
        let domain = lab.run_domain("host1", 7, &[(&disk, "qcow2"), (&raw, "raw")], Kind::Persistent);
        domain.writes_on();
        snapshot(lab, &domain, (&disk, &folder), "disk.0.snap/0", 1).expect("a snapshot");
        for format in ["qcow2", "raw"] {
            let to = lab.shared().join(format!("image.{format}"));
            let before = domain.writes_on();
            act(lab, &domain, |_, live| live.copy(&live.look()?, "hda", &to, format, |_| panic!("not needed")))
                .expect("copies");
            let copied = lab.highest("host1", &to);
            assert!(copied >= before && copied <= domain.writes_on(), "{before} {copied}");
            assert_eq!(backing(&to), "");
            assert_eq!(domain.source("hda"), folder.join("1"));
        }

        // Frozen is the other way: suspended here, for no agent answers. It stands still, and runs on.
        let to = lab.shared().join("frozen");
        let ops = |to: &Path| {
            let current = folder.join("1").display().to_string();
            let convert = ["convert", "-U", "-O", "raw", &current, to.to_str().expect("plain")];
            vec![Op::Run(onestore::exec::cmd::Cmd::new("qemu-img").args(convert))]
        };
        let before = domain.writes_on();
        act(lab, &domain, |_, live| live.frozen(&live.look()?, "Copy", &ops(&to), [])).expect("copies");
        assert!(lab.highest("host1", &to) >= before);
        assert_eq!(domain.state(), "running");
        // One that was paused by its owner stays paused.
        assert!(domain.virsh("suspend", &[]).status.success());
        act(lab, &domain, |_, live| live.frozen(&live.look()?, "Copy", &ops(&to), [])).expect("copies");
        assert_eq!(domain.state(), "paused");
        assert!(domain.virsh("resume", &[]).status.success());

        // Where libvirt refuses the job, the copy is made of a guest that stands still.
        let to = lab.shared().join("refused");
        let copy = |_: &Path| ops(&to);
        act(lab, &domain, |_, live| live.copy(&live.look()?, "hda", &to, "no-format", copy)).expect("copies otherwise");
        assert!(lab.highest("host1", &to) >= before);
        assert_eq!(domain.state(), "running");
        let reflink = Op::Copy { from: raw, to: lab.shared().join("shares"), sparse: Sparse::Holes };
        act(lab, &domain, |_, live| live.frozen(&live.look()?, "Copy", &[reflink], [])).expect("copies");
        domain.writes_on();
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn faults_leave_the_disk_whole_and_the_guest_running() {
    lab(Layout::default(), |lab| {
        let (disk, folder) = plant(lab, 7);
        let domain = lab.run_domain("host1", 7, &[(&disk, "qcow2")], Kind::Persistent);
        let says = |result: Result<()>| one_line(&result.expect_err("fails"));
        // Until the places are full: then a copy does not fit.
        assert!(within(60, || domain.writes_on() > 2 * writer::SLOTS));

        // Full target: nothing stays there, and it is not tried again with the guest standing still.
        let to = lab.small().join("image");
        let text =
            says(act(lab, &domain, |_, live| live.copy(&live.look()?, "hda", &to, "raw", |_| panic!("in vain"))));
        assert!(text.starts_with(&format!("The hypervisor could not write {}", to.display())), "{text}");
        assert!(!to.exists());
        domain.writes_on();

        // A foreign job: it is waited for, then named, and not harmed.
        let foreign = lab.shared().join("foreign");
        fs::File::create(&foreign).expect("creates");
        let path = foreign.display().to_string();
        assert!(domain.virsh("blockcopy", &["hda", &path, "--transient-job", "--bandwidth", "1"]).status.success());
        let text = says(snapshot(lab, &domain, (&disk, &folder), "disk.0.snap/0", 1));
        assert!(text.contains("hda of domain one-7 is busy: the job \"Block Copy\" runs on it"), "{text}");
        assert!(
            String::from_utf8_lossy(&domain.virsh("blockjob", &["hda", "--info", "--raw"]).stdout)
                .contains("Block Copy")
        );
        assert!(domain.virsh("blockjob", &["hda", "--abort"]).status.success());

        // An overlay that is none: refused, and the domain goes on with what it has.
        fs::write(folder.join("1"), "no image").expect("writes");
        let overlay = folder.join("1");
        says(act(lab, &domain, |_, live| live.snapshot(&live.look()?, "hda", &overlay)));
        assert!(!overlay.exists());
        domain.writes_on();

        // A failure later in the action: the snapshot is taken back.
        let create = |below: &str| {
            run(Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below])
                .arg(&overlay)
                .current_dir(&folder));
        };
        create("disk.0.snap/0");
        let text = says(act(lab, &domain, |_, live| {
            live.snapshot(&live.look()?, "hda", &overlay)?;
            domain.writes_on();
            anyhow::bail!("Cannot go on")
        }));
        assert_eq!(text, "Cannot go on");
        assert!(!overlay.exists());
        domain.writes_on();
        assert!(domain.source("hda").ends_with("disk.0"));

        // Cancelled in the middle of a copy: the job ends, and its target goes.
        let (to, cancel) = (lab.shared().join("cancelled"), Cancel::new());
        let stop = cancel.clone();
        let (name, job) = (&domain, ["hda", "--bandwidth", "1"]);
        let text = std::thread::scope(|scope| {
            scope.spawn(move || {
                assert!(within(20, || name.virsh("blockjob", &job).status.success()));
                stop.set();
            });
            says(act_within(lab, &domain, Control::new(cancel), |_, live| {
                live.copy(&live.look()?, "hda", &to, "raw", |_| Vec::new())
            }))
        });
        assert!(text.contains("ancelled"), "{text}");
        assert!(within(20, || !to.exists()));
        assert!(within(20, || domain
            .virsh("blockjob", &["hda", "--info", "--raw"])
            .stdout
            .iter()
            .all(u8::is_ascii_whitespace)));
        domain.writes_on();

        // virsh is not there.
        let hidden = ["mount", "--bind", "/dev/null", "/usr/bin/virsh"];
        lab.must("host1", &hidden);
        let text = says(act(lab, &domain, |_, live| live.look().map(drop)));
        assert!(text.starts_with("Cannot look at domain one-7: host1: "), "{text}");
        lab.must("host1", &["umount", "/usr/bin/virsh"]);

        // The domain ends in the middle.
        create("disk.0.snap/0");
        let text = says(act(lab, &domain, |_, live| {
            let seen = live.look()?;
            domain.destroy();
            live.snapshot(&seen, "hda", &overlay)
        }));
        assert!(text.contains("domain is not running"), "{text}");
        let text = says(act(lab, &domain, |_, live| live.look().map(drop)));
        assert_eq!(text, "Domain one-7 does not run: it is shut off");
        lab.highest("host1", &folder.join("0"));
    });
}

/// What the killed process of the next test does: suspends the guest, and never comes to an end.
const KILLED: &str = "ONESTORE_LAB_KILLED";

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_guest_runs_on_when_we_are_killed_while_it_stands_still() {
    lab(Layout::default(), |lab| {
        let (disk, _) = plant(lab, 7);
        for (host, agent) in [("host1", false), ("host2", true)] {
            if agent {
                lab.sync_agent();
            }
            let domain = lab.run_domain(host, 7, &[(&disk, "qcow2")], Kind::Transient);
            domain.writes_on();
            let mut child = Command::new(std::env::current_exe().expect("a program"));
            child.args(["killed_while_a_guest_is_suspended", "--exact", "--include-ignored"]).env(KILLED, host);
            let mut child =
                child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
            assert!(within(30, || domain.state() == "paused"), "{host}");
            child.kill().expect("kills");
            child.wait().expect("ends");
            let killed = Instant::now();
            assert!(within(20, || domain.state() == "running"), "{host}: {}", domain.state());
            println!("{host}: runs {:?} after the kill", killed.elapsed());
            domain.writes_on();
            domain.destroy();
        }
    });
}

#[test]
#[ignore = "only what another test kills"]
fn killed_while_a_guest_is_suspended() {
    let Some(host) = std::env::var_os(KILLED).and_then(|host| host.into_string().ok()) else { return };
    let lab = Lab::joined();
    let domain = lab.domain(&host, 7);
    let sleep = Op::Run(onestore::exec::cmd::Cmd::new("sleep").arg("600"));
    let _ = act(&lab, &domain, |_, live| live.frozen(&live.look()?, "Sleep", &[sleep], []));
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_domain_whose_host_dies_is_named_and_its_disk_is_whole() {
    lab(Layout::default(), |lab| {
        let (disk, _) = plant(lab, 7);
        let domain = lab.run_domain("host1", 7, &[(&disk, "qcow2")], Kind::Transient);
        let last = domain.writes_on();
        lab.kill_host("host1");
        let begun = Instant::now();
        let control = Control::new(Cancel::new()).within(Duration::from_secs(5));
        let text = one_line(&act_within(lab, &domain, control, |_, live| live.look().map(drop)).expect_err("fails"));
        assert!(text.contains("host1"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(lab.highest("host2", &disk) >= last);
    });
}
