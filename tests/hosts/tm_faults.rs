//! Actions of a transfer manager, killed and cancelled at moments of their runs: the real binary in a small cloud. Hosts are
//! this machine behind a stand-in for ssh, so that scripts go through sh as on a host where the binary does not stand.
//!
//! Whoever uses this says in `MAD` which transfer manager it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::MAD;

#[path = "../common/calls.rs"]
mod calls;
pub use calls::{qemu_img, same, signal};

/// Moments of a run at which it is disturbed.
pub const MOMENTS: u32 = 6;

/// A cloud in a temporary folder: image datastore 1, system datastores 103 and 104, VM 7.
pub struct Cloud {
    root: tempfile::TempDir,
}

const SSH: &str = "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done\n[ $# -ge 3 ] || exit 1\nshift 2\nexec sh -c \"$1\"\n";

impl Cloud {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["ds/1", "ds/103/7", "ds/104", "oned/vm", "oned/datastore", "one/etc", "one/var", "home", "vms"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let cloud = Self { root };
        fs::write(cloud.path("ssh"), SSH).expect("ssh");
        fs::set_permissions(cloud.path("ssh"), fs::Permissions::from_mode(0o755)).expect("executable");
        let source = cloud.path("ds/1/abc").display().to_string();
        let disk = |id: u32, more: &str| format!("<DISK><DISK_ID>{id}</DISK_ID><SOURCE>{source}</SOURCE>{more}</DISK>");
        let disks = [
            disk(0, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE>"),
            disk(1, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><QCOW2_STANDALONE>yes</QCOW2_STANDALONE>"),
            disk(2, "<FORMAT>raw</FORMAT><CLONE>YES</CLONE>"),
            disk(3, "<FORMAT>qcow2</FORMAT><CLONE>NO</CLONE>"),
            "<DISK><DISK_ID>5</DISK_ID><FS>ext4</FS></DISK>".to_owned(),
        ];
        let vm = format!("<VM><ID>7</ID><LCM_STATE>0</LCM_STATE><TEMPLATE>{}</TEMPLATE></VM>", disks.concat());
        fs::write(cloud.path("oned/vm/7.xml"), vm).expect("the VM");
        for id in [1, 103, 104] {
            let xml = format!("<DATASTORE><ID>{id}</ID></DATASTORE>");
            fs::write(cloud.path(&format!("oned/datastore/{id}.xml")), xml).expect("a datastore");
        }
        cloud
    }
}

/// An action, what it needs, and what has to be there when it is done.
pub struct Case {
    pub action: &'static str,
    pub words: &'static [&'static str],
    pub prepare: fn(&Cloud),
    pub check: fn(&Cloud),
}

/// Runs a case undisturbed and gives how long that took.
fn reference(case: &Case) -> Duration {
    let cloud = Cloud::new();
    (case.prepare)(&cloud);
    let begin = Instant::now();
    cloud.done(case.action, case.words);
    (case.check)(&cloud);
    begin.elapsed()
}

pub fn killed(case: &Case) {
    let took = reference(case);
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        (case.prepare)(&cloud);
        let mut child = cloud.start(case.action, case.words);
        std::thread::sleep(took * moment / MOMENTS);
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        // What is called a saved image is one, at any time.
        let saved = cloud.path("ds/1/new");
        assert!(!saved.exists() || same(&saved, &cloud.path("ds/103/7/disk.2")), "{} at {moment}", case.action);
        cloud.done(case.action, case.words);
        (case.check)(&cloud);
        assert_eq!(cloud.staged(), Vec::<String>::new(), "{} at {moment}", case.action);
    }
}

pub fn cancelled(case: &Case) {
    let took = reference(case);
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        (case.prepare)(&cloud);
        // A datastore that has had a VM: `.monitor`, once made, stays; the next action wants it as well.
        fs::write(cloud.path("ds/103/.monitor"), "ssh\n").expect("the mark");
        let before = cloud.listing();
        let child = cloud.start(case.action, case.words);
        std::thread::sleep(took * moment / MOMENTS);
        signal(&child, Signal::TERM);
        let ran = child.wait_with_output().expect("waits");
        let about = format!("{} at {moment}: {}", case.action, String::from_utf8_lossy(&ran.stderr));
        match ran.status.code() {
            Some(0) => (case.check)(&cloud),
            // Before the first instruction of ours there is no code.
            Some(143) | None => assert_eq!(cloud.listing(), before, "{about}"),
            code => panic!("{about}: {code:?}"),
        }
    }
}

/// Tests of cases: each killed, and each cancelled.
macro_rules! disturbances {
    ($($name:ident $case:ident),*) => { $(
        mod $name {
            #[test]
            fn killed() { super::killed(&super::$case); }
            #[test]
            fn cancelled() { super::cancelled(&super::$case); }
        }
    )* };
}

pub(crate) use disturbances;
