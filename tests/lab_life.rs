//! One VM from `clone` to `delete`, on real hosts, by the links and in the order in which oned calls them:
//! `cargo test --test lab_life -- --ignored --test-threads 1`, as root.
//!
//! After every call everything the VM has is looked at: see `lab/life.rs`. The transcript is docs/lab-transcript.md.

use std::fs;
use std::io::Write as _;

#[path = "lab/hypervisors.rs"]
#[allow(dead_code)]
mod hypervisors;
#[path = "lab/life.rs"]
mod life;
#[path = "lab/remotes.rs"]
mod remotes;
#[path = "lab/writer.rs"]
mod writer;

use hypervisors::{Lab, Layout, lab};
use life::{Storage, Vm, publish};
use remotes::Remotes;

/// Snapshots, taken and deleted while the VM runs, and reverted while it is off.
fn snapshots(vm: &mut Vm<'_>) {
    for k in 0..3 {
        vm.snapshot(0, k);
    }
    vm.delete_snapshot(0, 1, &["2"], &["2.current"]);
    for number in [1, 2] {
        vm.snapshot(number, 0);
        vm.mark(number);
        vm.check();
    }
    vm.power_off();
    vm.revert(0, 0);
    vm.revert(2, 0);
    vm.begin("resume", 20);
    vm.deploy();
    vm.power_off();
    vm.delete_snapshot(0, 2, &["1", "2.current"], &[]);
    vm.delete_snapshot(2, 0, &["0"], &[]);
}

/// What users do with disks, and what operators do with hosts, until the VM ends.
fn rest(vm: &mut Vm<'_>, lab: &Lab, shared: bool) {
    vm.save_as(0, -1);
    vm.save_as(1, -1);
    vm.save_as(1, 0);
    vm.save_as(2, -1);
    vm.resize(0, 56);
    vm.begin("resume", 20);
    vm.deploy();
    vm.save_as(0, -1);
    vm.save_as(0, 0);
    vm.save_as(1, -1);
    vm.save_as(3, -1);
    vm.resize(0, 64);
    vm.resize(2, 20);
    vm.migrate_saved("host2");
    if shared {
        vm.migrate_live("host1");
    } else {
        // By the shell until now.
        lab.sync_agent();
    }
    vm.snapshot(0, 3);
    vm.undeploy();
    vm.resume_on("host1");
    vm.terminate();
}

/// From host to host, and what is saved and taken back on the way. `merged`: what becomes of the files of snapshots when one
/// of three goes.
fn travels(vm: &mut Vm<'_>, merged: (&[&str], &[&str])) {
    vm.stop();
    vm.resume_stopped_on("host2");
    vm.migrate_live("host1");
    for k in 0..3 {
        vm.snapshot(0, k);
    }
    vm.snapshot(1, 0);
    vm.mark(1);
    vm.delete_snapshot(0, 1, merged.0, merged.1);
    vm.save_as(0, -1);
    vm.save_as(0, 2);
    vm.save_as(3, -1);
    vm.power_off();
    vm.migrate_off("host2");
    vm.snapshot(3, 0);
    vm.revert(0, 2);
    vm.save_as(1, 0);
    vm.save_as(2, -1);
    vm.resize(0, 56);
    vm.begin("resume", 20);
    vm.deploy();
    vm.mark(3);
    vm.terminate();
    vm.lend_again();
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn on_shared_storage() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        lab.sync_agent();
        let mut vm = Vm::new(lab, Storage::Shared);
        vm.instantiate();
        snapshots(&mut vm);
        rest(&mut vm, lab, true);
        publish("Shared storage", &vm.transcript());
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn on_storage_of_the_hosts() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        let mut vm = Vm::new(lab, Storage::Mixed);
        vm.instantiate();
        snapshots(&mut vm);
        rest(&mut vm, lab, false);
        publish("Storage of the hosts' own: mixed mode", &vm.transcript());
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn on_storage_of_the_hosts_in_layers() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        lab.sync_agent();
        let mut vm = Vm::new(lab, Storage::Local);
        vm.instantiate();
        travels(&mut vm, (&["2"], &["2.current"]));
        publish("Storage of the hosts' own: local", &vm.transcript());
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn on_storage_of_the_hosts_in_copies() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        lab.sync_agent();
        let mut vm = Vm::new(lab, Storage::Ssh);
        vm.instantiate();
        travels(&mut vm, (&["1"], &[]));
        publish("Storage of the hosts' own: ssh", &vm.transcript());
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_raw_clone_shares_its_blocks_where_the_file_system_can() {
    lab(Layout { reflink: true, ..Layout::default() }, |lab| {
        let remotes = Remotes::new(lab);
        fs::create_dir_all(lab.shared().join("102")).expect("makes");
        let image = lab.shared().join("102/9d3c0033a1cb69daa8962640bc7f9592");
        // Two of this size do not fit on the file system.
        let mut file = fs::File::create(&image).expect("creates");
        for block in 0..260_u32 {
            let block = block.to_le_bytes().repeat(1 << 18);
            file.write_all(&block).expect("writes");
        }
        drop(file);
        for (agent, vm) in [(false, 8), (true, 9)] {
            if agent {
                lab.sync_agent();
            }
            let xml = format!(
                "<VM><ID>{vm}</ID><LCM_STATE>1</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>raw</FORMAT>\
                 <CLONE>YES</CLONE><SIZE>260</SIZE><ORIGINAL_SIZE>260</ORIGINAL_SIZE><SOURCE>{0}</SOURCE></DISK>\
                 </TEMPLATE></VM>",
                image.display()
            );
            remotes.tell(&format!("vm/{vm}"), &xml);
            remotes.tell("datastore/102", "<DATASTORE><ID>102</ID><TEMPLATE/></DATASTORE>");
            remotes.tell("datastore/103", "<DATASTORE><ID>103</ID><TEMPLATE/></DATASTORE>");
            let disk = lab.shared().join(format!("103/{vm}/disk.0"));
            let args = [
                format!("front:{}", image.display()),
                format!("host1:{}", disk.display()),
                vm.to_string(),
                "102".to_owned(),
            ];
            let done = remotes.call("tm/qcow2/clone", &args).output().expect("runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let disk = disk.display().to_string();
            lab.must("host1", &["cmp", &image.display().to_string(), &disk]);
            let extents = lab.must("host1", &["filefrag", "-v", &disk]);
            let extents: Vec<&str> =
                extents.lines().filter(|line| line.trim_start().starts_with(char::is_numeric)).collect();
            assert!(!extents.is_empty() && extents.iter().all(|line| line.contains("shared")), "{extents:?}");
        }
    });
}
