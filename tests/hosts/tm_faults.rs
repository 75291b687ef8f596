//! Actions of a transfer manager, killed and cancelled at moments of their runs.
//!
//! Whoever uses this says in `MAD` which transfer manager it is.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

#[path = "../faults/cloud.rs"]
mod cloud;

#[allow(unused_imports, reason = "each test uses its part")]
pub use cloud::{Cloud, left_by_the_dead, qemu_img, same, signal};

use super::MAD;

/// Moments of a run at which it is disturbed.
pub const MOMENTS: u32 = 6;

/// An action, what it needs, and what has to be there when it is done.
pub struct Case {
    pub action: &'static str,
    pub words: &'static [&'static str],
    pub prepare: fn(&Cloud),
    pub check: fn(&Cloud),
}

/// Runs a case undisturbed and gives how long that took.
fn reference(case: &Case) -> Duration {
    let cloud = Cloud::of(MAD);
    (case.prepare)(&cloud);
    let begin = Instant::now();
    cloud.done(case.action, case.words);
    (case.check)(&cloud);
    begin.elapsed()
}

pub fn killed(case: &Case) {
    let took = reference(case);
    for moment in 0..MOMENTS {
        let cloud = Cloud::of(MAD);
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
        let cloud = Cloud::of(MAD);
        (case.prepare)(&cloud);
        if MAD != "qcow2" {
            // A datastore that has had a VM: `.monitor`, once made, stays; the next action wants it as well.
            // Of shared storage it is removed, and stays away.
            fs::write(cloud.path("ds/103/.monitor"), "ssh\n").expect("the mark");
        }
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
