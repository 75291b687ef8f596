//! One VM from `clone` to `delete`, on real hosts, by the links and in the order in which oned calls them:
//! `cargo test --test lab_life -- --ignored --test-threads 1`, as root.
//!
//! After every call everything the VM has is looked at: see `lab/life.rs`. The transcript is docs/lab-transcript.md.

#[path = "lab/hypervisors.rs"]
#[allow(dead_code)]
mod hypervisors;
#[path = "lab/life.rs"]
mod life;
#[path = "lab/remotes.rs"]
mod remotes;
#[path = "lab/writer.rs"]
mod writer;

use hypervisors::{Layout, lab};
use life::{Vm, publish};

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
fn rest(vm: &mut Vm<'_>, mixed: bool) {
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
    if !mixed {
        vm.migrate_live("host1");
    }
    vm.snapshot(0, 3);
    vm.undeploy();
    vm.resume_on("host1");
    vm.terminate();
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn on_shared_storage() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        lab.sync_agent();
        let mut vm = Vm::new(lab, "qcow2", false);
        vm.instantiate();
        snapshots(&mut vm);
        rest(&mut vm, false);
        publish("Shared storage", &vm.transcript());
    });
}

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn on_storage_of_the_hosts() {
    lab(Layout { memory: true, ..Layout::default() }, |lab| {
        let mut vm = Vm::new(lab, "shared", true);
        vm.instantiate();
        snapshots(&mut vm);
        rest(&mut vm, true);
        publish("Storage of the hosts' own (mixed mode)", &vm.transcript());
    });
}
