//! Operations on running domains: `cargo test --test lab_live -- --ignored --test-threads 1`, as root.

#[path = "lab/hypervisors.rs"]
#[allow(dead_code)]
mod hypervisors;
#[path = "lab/writer.rs"]
mod writer;

use hypervisors::{Kind, Layout, lab};

#[test]
#[ignore = "needs root, libvirt, QEMU"]
fn a_lab_stands_and_its_guest_writes() {
    lab(Layout::default(), |lab| {
        let disk = lab.shared().join("disk.0");
        writer::plant(&disk, "qcow2");
        let domain = lab.run_domain("host1", 7, &[(&disk, "qcow2")], Kind::Persistent);
        let first = domain.writes_on();
        assert!(first > 4096);
    });
}
