//! The cache of images on a host, when something goes wrong: whatever it is, the VM gets its disk or nothing, the cache
//! never calls an image valid that is not, and the next action finds it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

#[path = "hosts/cached.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod cached;
#[path = "hosts/tm_faults.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "each test uses its part")]
mod tm_faults;

use cached::{ABC, consistent, hit, leftovers, metadata, plant, said};
use tm_faults::{Cloud, MOMENTS, left_by_the_dead, same, signal};

/// The transfer manager.
const MAD: &str = "local";

const MIB: u32 = 8;

#[track_caller]
fn right(cloud: &Cloud, when: &str) {
    assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc")), "{when}");
    consistent(cloud, when);
}

/// How long a clone takes that fetches the image.
fn takes() -> Duration {
    let cloud = cached::cloud(MIB);
    let begin = Instant::now();
    cloud.done("clone", &ABC);
    let took = begin.elapsed();
    right(&cloud, "undisturbed");
    took
}

#[test]
fn metadata_that_cannot_be_read_are_those_of_no_image() {
    let texts = [
        "",
        "---\n",
        "--- {}\n",
        "---\n:modtime: '5'\n",
        ":last_used: [\n:modtime: '5'\n",
        "---\n:last_used: '2026-13-77T99:99:99+00:00'\n:modtime: 5'\n\u{0}",
        "\u{feff}{\"modtime\": \"5\"}",
    ];
    for text in texts {
        let cloud = cached::cloud(1);
        plant(&cloud, "abc", &vec![7; 1 << 20], text);
        cloud.done("clone", &ABC);
        right(&cloud, text);
        hit(&cloud, text);
    }
}

#[test]
fn a_hit_clears_away_what_a_run_left_that_was_killed_right_behind_the_image_s_name() {
    let cloud = cached::cloud(1);
    cloud.done("clone", &ABC);
    let staging = left_by_the_dead(&cloud.path("cache"));
    cloud.done("clone", &ABC);
    right(&cloud, "again");
    hit(&cloud, "again");
    assert!(!staging.exists(), "the claim stays");
    // Or the last instant: the claim is gone, and its folder is not.
    fs::create_dir(&staging).expect("a folder");
    cloud.done("clone", &ABC);
    assert!(!staging.exists(), "the folder stays");
}

#[test]
fn what_upstreams_script_fetches_is_waited_for() {
    let cloud = cached::cloud(1);
    plant(&cloud, "abc", &[7; 1000], "");
    let mut upstream =
        Command::new("flock").arg(cloud.path("cache/abc-lock")).args(["sleep", "2"]).spawn().expect("flock");
    let held =
        || !Command::new("flock").arg("-n").arg(cloud.path("cache/abc-lock")).arg("true").status().unwrap().success();
    while !held() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut child = cloud.start("clone", &ABC);
    upstream.wait().expect("waits");
    assert!(child.try_wait().expect("asks").is_none(), "it did not wait for the lock");
    let ran = child.wait_with_output().expect("waits");
    assert!(ran.status.success(), "{}", said(&ran));
    right(&cloud, "after upstream");
    hit(&cloud, "after upstream");
}

#[test]
fn a_fetch_that_is_cut_is_none() {
    let cloud = cached::cloud(MIB);
    // The second host breaks off once, in the midst of the image.
    let ssh = format!(
        "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done\n[ $# -ge 3 ] || exit 1\nhost=$2\nshift 2\n\
         if [ \"$host\" = node2 ] && [ -e {0}/cut ]; then\n  sh -c \"$1\" >{0}/told.$$\n  code=$?\n  \
         if [ \"$(stat -c %s {0}/told.$$)\" -gt 3000000 ]; then\n    rm {0}/cut\n    head -c 3000000 {0}/told.$$\n    exit 255\n  fi\n  \
         cat {0}/told.$$\n  exit $code\nfi\nexec sh -c \"$1\"\n",
        cloud.path("").display()
    );
    fs::write(cloud.path("ssh"), ssh).expect("ssh");
    fs::set_permissions(cloud.path("ssh"), fs::Permissions::from_mode(0o755)).expect("executable");
    fs::write(cloud.path("cut"), "").expect("the cut");
    let from_node2 = ["node2:{ds}/1/abc", ABC[1], ABC[2], ABC[3]];
    let ran = cloud.done("clone", &from_node2);
    assert!(!cloud.path("cut").exists(), "it was not cut");
    assert!(said(&ran).contains("The cache of node1 is not used"), "{}", said(&ran));
    right(&cloud, "cut");
    assert!(!cloud.path("cache/abc").exists() && leftovers(&cloud).is_empty(), "{:?}", leftovers(&cloud));
    cloud.done("clone", &from_node2);
    right(&cloud, "again");
    hit(&cloud, "again");
}

#[test]
fn killed_or_cancelled_at_any_moment() {
    let took = takes();
    for (how, moment) in [Signal::KILL, Signal::TERM].into_iter().flat_map(|how| (0..MOMENTS).map(move |at| (how, at)))
    {
        let when = format!("{how:?} at {moment}");
        let cloud = cached::cloud(MIB);
        let child = cloud.start("clone", &ABC);
        std::thread::sleep(took * moment / MOMENTS);
        signal(&child, how);
        let ran = child.wait_with_output().expect("waits");
        cloud.settle();
        consistent(&cloud, &when);
        let disk = cloud.path("ds/103/7/disk.2");
        assert!(!disk.exists() || same(&disk, &cloud.path("ds/1/abc")), "{when}");
        if how == Signal::TERM && ran.status.code() == Some(143) {
            assert!(leftovers(&cloud).is_empty() && !disk.exists(), "{when}: {:?} {}", leftovers(&cloud), said(&ran));
        }
        cloud.done("clone", &ABC);
        hit(&cloud, &when);
    }
}

#[test]
fn an_image_that_goes_while_it_is_read_is_fetched_elsewhere() {
    let warm = || {
        let cloud = cached::cloud(MIB);
        cloud.done("clone", &ABC);
        cloud
    };
    let begin = Instant::now();
    hit(&warm(), "undisturbed");
    let took = begin.elapsed();
    // As upstream's script evicts: without the image's lock, and with its lock file. And as it fetches a newer one.
    let gone = |cloud: &Cloud| {
        for end in ["", "-metadata", "-lock"] {
            fs::remove_file(cloud.path(&format!("cache/abc{end}"))).expect("removes");
        }
    };
    let exchanged = |cloud: &Cloud| {
        fs::write(cloud.path("cache/new"), vec![9; (MIB << 20) as usize]).expect("writes");
        let text = metadata("2026-01-01T00:00:00+00:00").replace("'5'", "'6'");
        fs::write(cloud.path("cache/.text"), text).expect("writes");
        let mut both = Command::new("flock");
        both.current_dir(cloud.path("cache")).args(["abc-lock", "sh", "-c", "mv new abc && mv .text abc-metadata"]);
        assert!(both.status().expect("flock").success());
    };
    for what in ["gone", "exchanged"] {
        for moment in 0..MOMENTS {
            let when = format!("{what} at {moment}");
            let cloud = warm();
            let child = cloud.start("clone", &ABC);
            std::thread::sleep(took * moment / MOMENTS);
            match what {
                "gone" => gone(&cloud),
                _ => exchanged(&cloud),
            }
            let ran = child.wait_with_output().expect("waits");
            assert!(ran.status.success(), "{when}: {}", said(&ran));
            right(&cloud, &when);
            cloud.done("clone", &ABC);
            hit(&cloud, &when);
        }
    }
}
