//! The `fs` datastore under faults: killed, cancelled, badly fed, with sources that change under it. The real binary,
//! called through a remotes tree as oned calls it.

use std::time::Duration;

use rustix::process::Signal;

#[path = "faults/house.rs"]
mod house;
#[path = "faults/kills.rs"]
mod kills;
#[path = "transfer/server.rs"]
#[allow(clippy::unwrap_used, dead_code)]
mod server;

use kills::{CASES, Case, check, disturbed, reference};

/// Moments of a run at which it is disturbed.
const MOMENTS: u32 = 8;

fn web() -> server::Server {
    let body: Vec<u8> = (0..3_u32 << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
    server::Server::start(move |_, _| server::Reply::ok(&body))
}

fn disturb(case: &Case, signal: Signal) {
    let web = web();
    let url = web.url("/disk.raw");
    let reference = reference(case, &url);
    for moment in 0..MOMENTS {
        let delay = reference.took * moment / (MOMENTS - 1);
        let (house, document, ran) = disturbed(case, &url, signal, delay);
        let about = format!("{signal:?} after {delay:?}");
        if signal == Signal::TERM {
            let code = ran.status.code();
            let early = std::os::unix::process::ExitStatusExt::signal(&ran.status) == Some(15);
            // Before our first instruction it is the launcher's death.
            assert!(early || matches!(code, Some(0 | 143)), "{} {about}: {:?} {}", case.name, ran.status, ran.text());
            if code == Some(143) {
                ran.failure(&about);
                assert_eq!(house.staged(), Vec::<String>::new(), "{} {about}: not taken back", case.name);
            }
            if early {
                assert_eq!(ran.text(), "", "{} {about}", case.name);
            }
        }
        check(case, &house, &document, &reference, &ran, &about);
    }
}

macro_rules! disturbances {
    ($($name:ident $index:expr),*) => { $(
        mod $name {
            #[test]
            fn killed() { super::disturb(&super::CASES[$index], super::Signal::KILL); }
            #[test]
            fn cancelled() { super::disturb(&super::CASES[$index], super::Signal::TERM); }
        }
    )* };
}

disturbances!(
    cp_raw 0, cp_gzip_convert 1, cp_http 2, mkfs 3, clone 4, rm 5, snap_delete 6, snap_delete_first 7, snap_revert 8,
    snap_revert_copy 9, snap_flatten 10, snap_flatten_first 11, snap_flatten_copy 12
);

#[test]
fn every_case_is_disturbed() {
    assert_eq!(CASES.len(), 13);
    let _ = Duration::ZERO;
}

/// A program in the house that stands for another one and lasts for ever, the house's folder among its words.
fn endless(house: &mut house::House, variable: &str) {
    let (program, file) = (house.path("home/endless"), house.path("home/nothing"));
    std::fs::write(&file, "").expect("writes");
    std::fs::write(&program, format!("#!/bin/sh\nexec tail -f {}\n", file.display())).expect("writes");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    house.env.push((variable.to_owned(), program.display().to_string()));
}

fn wait_for_child(house: &house::House) {
    let nothing = house.path("home/nothing").display().to_string();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !house.processes_left(0).iter().any(|line| line.contains("tail -f") && line.contains(&nothing)) {
        assert!(std::time::Instant::now() < until, "the child does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_child_dies_with_the_action_that_is_killed() {
    let mut house = house::House::new();
    endless(&mut house, "QEMU_IMG");
    let started = house.start_call("mkfs", &house.document("<FORMAT>qcow2</FORMAT><SIZE>8</SIZE>", ""));
    wait_for_child(&house);
    started.signal(Signal::KILL);
    assert!(house::was_killed(&house::finish(started)));
    assert_eq!(house.processes_left(3), Vec::<String>::new());
}

#[test]
fn a_child_that_lasts_is_ended_by_a_cancellation() {
    let mut house = house::House::new();
    endless(&mut house, "QEMU_IMG");
    let started = house.start_call("mkfs", &house.document("<FORMAT>qcow2</FORMAT><SIZE>8</SIZE>", ""));
    wait_for_child(&house);
    started.signal(Signal::TERM);
    let ran = house::finish(started);
    assert_eq!(ran.status.code(), Some(143), "{}", ran.text());
    ran.failure("cancelled");
    assert!(ran.took < Duration::from_secs(10), "{:?}", ran.took);
    assert_eq!(house.processes_left(3), Vec::<String>::new());
    assert_eq!((house.staged(), house.content().len()), (vec![], 0));
}
