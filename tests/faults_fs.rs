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
    server::Server::start(move |_, _| server::Reply { body: body.clone(), ..server::Reply::default() })
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
