//! The `fs` datastore under faults: killed, cancelled, badly fed, with sources that change under it. The real binary,
//! called through a remotes tree as oned calls it.

use std::time::Duration;

use rustix::process::Signal;

#[path = "faults/house.rs"]
#[allow(dead_code)]
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

/// Values that mean something to a shell, to a path, to a log or to a program; `{canary}` is a file that must not come
/// into being.
fn hostile(house: &house::House) -> Vec<String> {
    let canary = house.path("canary").display().to_string();
    let long = "A".repeat(64 << 10);
    let mut values: Vec<String> = [
        "'",
        "\"",
        "\\",
        "$(touch {canary})",
        "`touch {canary}`",
        "x; touch {canary}",
        "x && touch {canary}",
        "| touch {canary}",
        "x\ntouch {canary}\n",
        "a\r\nERROR: cp: forged",
        "..",
        "../..",
        "/",
        "//",
        "../../../../../../etc/passwd",
        "-rf",
        "--help",
        "-oProxyCommand=touch {canary}",
        "%s%n%x",
        "*",
        "~",
        "\u{202e}\u{85}\u{7f}",
        "\u{1f600}",
        "0",
        "-1",
        "99999999999999999999999",
        "1e9",
        "0x10",
        "nbd:unix:/x",
        "json:{\"driver\":\"host_device\"}",
        "http://",
        "http://[",
        "file:///etc/passwd",
        "ssh://h/$(touch {canary})",
        "s3://b/k",
        "/dev/zero",
        "/proc/self/mem",
        "\u{feff}",
    ]
    .iter()
    .map(|text| text.replace("{canary}", &canary))
    .collect();
    values.push(format!("/{long}"));
    values.push(long);
    values.push("/a\0b".to_owned());
    values
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            c => out.push(c),
        }
    }
    out
}

/// What lies in the house outside of the datastore, the staging directory and what calls may write.
fn outside(house: &house::House) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for dir in ["users", "oned", "home", "one/etc", "one/var/remotes/datastore"] {
        let listing =
            std::process::Command::new("find").arg(house.path(dir)).args(["-printf", "%p %y %s %l\\n"]).output();
        let mut lines: Vec<String> =
            String::from_utf8_lossy(&listing.expect("find runs").stdout).lines().map(str::to_owned).collect();
        lines.sort();
        found.push((dir.to_owned(), lines.join("\n")));
    }
    found
}

/// Puts a hostile value where `place` wants it, and calls.
fn feed(house: &house::House, action: &str, xml: impl Fn(&str) -> String) -> (usize, usize) {
    let (mut good, mut bad) = (0, 0);
    let (kept, around) = (house.content(), outside(house));
    for value in hostile(house) {
        let ran = house.call(action, &xml(&escaped(&value)));
        let about = format!("{action} with {:?}", value.chars().take(60).collect::<String>());
        if ran.status.success() {
            good += 1;
            ran.reply(&about);
            // A new image is the only thing that may have come.
            let now = house.content();
            for name in house::new_files(&kept, &now) {
                let made = house.base.join(&name);
                assert!(ran.stdout.contains(&name) || !made.is_file(), "{about}: {name}");
                if made.is_file() {
                    std::fs::remove_file(made).expect("removes");
                } else {
                    // `monitor` makes the directory of a datastore that has none.
                    assert_eq!(action, "monitor", "{about}");
                    let _ = std::fs::remove_dir_all(made);
                }
            }
        } else {
            bad += 1;
            let line = ran.failure(&about);
            assert!(line.len() < 16 << 10, "{about}: a line of {} bytes", line.len());
        }
        assert!(!house.path("canary").exists(), "{about}: something was executed");
        assert_eq!(house.staged(), Vec::<String>::new(), "{about}");
        assert_eq!(house.content(), kept, "{about}");
        assert_eq!(outside(house), around, "{about}");
    }
    assert_eq!(house.processes_left(5), Vec::<String>::new());
    (good, bad)
}

macro_rules! hostile_leaves {
    ($($name:ident $action:literal $set_up:ident $xml:expr;)*) => {
        mod hostile_values { $(
            #[test]
            fn $name() {
                let mut house = super::house::House::new();
                // No name is resolved and nothing leaves the machine.
                house.env = vec![("SSH".into(), "/bin/false".into()), ("ONESTORE_SSH".into(), "openssh".into())];
                let path = super::$set_up(&house);
                let xml: fn(&super::house::House, &str, &str) -> String = $xml;
                let counts = super::feed(&house, $action, |value| xml(&house, &path, value));
                println!("{}: {} accepted, {} refused", stringify!($name), counts.0, counts.1);
            }
        )* }
    };
}

fn user_file(house: &house::House) -> String {
    let path = house.path("users/disk.raw");
    house.raw(&path, 1, 5);
    format!("<PATH>{}</PATH>", path.display())
}

fn chained(house: &house::House) -> String {
    format!("<SOURCE>{}</SOURCE>", house.chain().display())
}

hostile_leaves! {
    cp_path "cp" user_file |h, _, v| h.document(&format!("<PATH>{v}</PATH>"), "");
    cp_path_below_users "cp" user_file |h, _, v| {
        h.document(&format!("<PATH>{}/users/{v}</PATH>", h.root.path().display()), "")
    };
    cp_md5 "cp" user_file |h, p, v| h.document(&format!("{p}<TEMPLATE><MD5>{v}</MD5></TEMPLATE>"), "");
    cp_driver "cp" user_file |h, p, v| h.document(p, &format!("<DRIVER>{v}</DRIVER>"));
    cp_base_path "cp" user_file |h, p, v| h.document_of(p, "", v, "");
    cp_type "cp" user_file |h, p, v| h.document(&format!("{p}<TYPE>{v}</TYPE>"), "");
    cp_bridge_list "cp" user_file |h, p, v| h.document(p, &format!("<BRIDGE_LIST>{v}</BRIDGE_LIST>"));
    cp_staging_dir "cp" user_file |h, p, v| h.document(p, &format!("<STAGING_DIR>{v}</STAGING_DIR>"));
    cp_limit "cp" user_file |h, p, v| h.document(p, &format!("<LIMIT_TRANSFER_BW>{v}</LIMIT_TRANSFER_BW>"));
    cp_no_decompress "cp" user_file |h, p, v| h.document(p, &format!("<NO_DECOMPRESS>{v}</NO_DECOMPRESS>"));
    cp_sparse "cp" user_file |h, p, v| h.document(p, &format!("<SPARSE>{v}</SPARSE>"));
    cp_restricted "cp" user_file |h, p, v| h.document(p, &format!("<RESTRICTED_DIRS>{v}</RESTRICTED_DIRS>"));
    cp_nfs_host "cp" user_file |h, p, v| {
        h.document(p, &format!("<NFS_AUTO_ENABLE>yes</NFS_AUTO_ENABLE><NFS_AUTO_HOST>{v}</NFS_AUTO_HOST>"))
    };
    stat_path "stat" user_file |h, _, v| h.document(&format!("<PATH>{v}</PATH>"), "");
    mkfs_fs "mkfs" user_file |h, _, v| {
        h.document(&format!("<FORMAT>raw</FORMAT><SIZE>1</SIZE><FS>{v}</FS>"), "")
    };
    mkfs_format "mkfs" user_file |h, _, v| h.document(&format!("<FORMAT>{v}</FORMAT><SIZE>1</SIZE>"), "");
    mkfs_size "mkfs" user_file |h, _, v| h.document(&format!("<FORMAT>raw</FORMAT><SIZE>{v}</SIZE>"), "");
    clone_path "clone" chained |h, _, v| h.document(&format!("<PATH>{v}</PATH>"), "");
    clone_driver "clone" chained |h, p, v| h.document(&p.replace("SOURCE", "PATH"), &format!("<DRIVER>{v}</DRIVER>"));
    rm_source "rm" chained |h, _, v| h.document(&format!("<SOURCE>{v}</SOURCE>"), "");
    rm_source_below "rm" chained |h, _, v| {
        h.document(&format!("<SOURCE>{}/{v}</SOURCE>", h.base.display()), "")
    };
    rm_base_path "rm" chained |h, p, v| h.document_of(p, "", v, "");
    export_source "export" chained |h, _, v| h.document(&format!("<SOURCE>{v}</SOURCE>"), "");
    snap_delete_id "snap_delete" chained |h, p, v| h.document(&format!("{p}<TARGET_SNAPSHOT>x{v}</TARGET_SNAPSHOT>"), "");
    snap_revert_source "snap_revert" chained |h, _, v| {
        h.document(&format!("<SOURCE>{v}</SOURCE><TARGET_SNAPSHOT>1</TARGET_SNAPSHOT>"), "")
    };
    snap_flatten_source "snap_flatten" chained |h, _, v| {
        h.document(&format!("<SOURCE>{v}</SOURCE><TARGET_SNAPSHOT>1</TARGET_SNAPSHOT>"), "")
    };
    monitor_base "monitor" user_file |h, p, v| h.document_of(p, "", &format!("{}/ds/1/{v}", h.root.path().display()), "");
}

#[test]
fn documents_that_are_none_are_refused_by_every_action() {
    use base64::Engine as _;
    let house = house::House::new();
    let image = house.chain();
    let good = house.document(&format!("<SOURCE>{}</SOURCE><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>", image.display()), "");
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes();
    let whole = base64(good.as_bytes());
    let mut latin1 = good.clone().into_bytes();
    let at = latin1.iter().position(|byte| *byte == b'7').expect("the id");
    latin1[at] = 0xe9;
    let entity =
        "<!DOCTYPE x [<!ENTITY a SYSTEM \"file:///etc/passwd\">]>".to_owned() + &good.replace("<ID>7", "<ID>&a;");
    let deep = format!("<DS_DRIVER_ACTION_DATA>{}", "<A>".repeat(200_000));
    let huge = [b"<DS_DRIVER_ACTION_DATA>".to_vec(), vec![b' '; 65 << 20]].concat();
    let inputs: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("blanks", b" \n\t\n".to_vec()),
        ("half of it", whole[..whole.len() / 2].to_vec()),
        ("all but the end", whole[..whole.len() - 24].to_vec()),
        ("half of the XML", good.as_bytes()[..good.len() / 2].to_vec()),
        ("no Base64", b"\x00\x01\x02\xff".to_vec()),
        ("words", b"not base64 at all!".to_vec()),
        ("no UTF-8", base64(&latin1)),
        ("no UTF-8, plain", latin1),
        ("an entity of a file", base64(entity.as_bytes())),
        ("another root", b"<VM></VM>".to_vec()),
        ("two roots", [good.as_bytes(), good.as_bytes()].concat()),
        ("200000 levels", deep.into_bytes()),
        ("65 MiB", huge),
        ("no datastore", b"<DS_DRIVER_ACTION_DATA></DS_DRIVER_ACTION_DATA>".to_vec()),
    ];
    let kept = house.content();
    for action in
        ["cp", "mkfs", "clone", "stat", "rm", "monitor", "export", "snap_delete", "snap_revert", "snap_flatten"]
    {
        for (what, input) in &inputs {
            if *what == "65 MiB" && action != "rm" {
                continue;
            }
            let about = format!("{action} with {what}");
            let ran = house.call_bytes(action, input);
            ran.failure(&about);
            assert_eq!(ran.status.code(), Some(2), "{about}: {}", ran.text());
            assert_eq!(house.staged(), Vec::<String>::new(), "{about}");
        }
        let mut closed = house.command(action);
        let done = closed.stdin(std::process::Stdio::null()).output().expect("runs");
        assert_eq!(done.status.code(), Some(2), "{action} without input");
    }
    assert_eq!(house.content(), kept);
}

mod sources {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
    use std::process::Stdio;
    use std::time::Duration;

    use super::Signal;
    use super::house::{House, digest, finish};

    fn path(path: &std::path::Path) -> String {
        format!("<PATH>{}</PATH>", path.display())
    }

    /// `cp` and `stat` of what is no image fail with one line that says why, and leave nothing.
    #[test]
    fn what_is_no_file_is_refused() {
        let house = House::new();
        let users = house.path("users");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            users.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(users.join("socket")).expect("a socket");
        fs::create_dir(users.join("dir")).expect("a directory");
        fs::write(users.join("empty"), "").expect("writes");
        symlink("nothing", users.join("dangling")).expect("a link");
        symlink("circle", users.join("circle")).expect("a link");
        fs::write(house.path("one/etc/key"), "secret").expect("writes");
        symlink(house.path("one/etc/key"), users.join("restricted")).expect("a link");
        symlink(house.path("one/etc"), users.join("through")).expect("a link");
        let cases = [
            ("fifo", "a pipe"),
            ("socket", "a socket"),
            ("dir", "a directory"),
            ("empty", "empty"),
            ("dangling", "No such file"),
            ("circle", "symbolic links"),
            ("missing", "No such file"),
            ("restricted", "Not allowed to copy image"),
            ("through/key", "Not allowed to copy image"),
            ("../one/etc/key", "Not allowed to copy image"),
        ];
        for (name, why) in cases {
            for action in ["cp", "stat"] {
                // `stat` tells the size of a tree, as upstream does.
                if (action, name) == ("stat", "dir") {
                    continue;
                }
                let ran = house.act(action, &path(&users.join(name)));
                let line = ran.failure(name);
                assert!(line.contains(why) && line.contains(name), "{action} {name}: {line}");
                assert!(ran.took < Duration::from_secs(5), "{action} {name} waited");
            }
        }
        assert_eq!((house.staged(), house.content().len()), (vec![], 0));
    }

    /// Root reads everything, so that the call runs as somebody else; without root the file's mode is enough.
    #[test]
    fn what_cannot_be_read_is_said() {
        let mut house = House::new();
        let file = house.path("users/disk.raw");
        house.raw(&file, 1, 5);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("chmod");
        if rustix::process::geteuid().is_root() {
            for dir in ["ds/1", "home"] {
                fs::set_permissions(house.path(dir), fs::Permissions::from_mode(0o777)).expect("chmod");
            }
            // The binary of the build may lie where only its owner comes.
            let binary = house.path("one/var/remotes/onestore/onestore");
            fs::remove_file(&binary).expect("removes");
            fs::copy(env!("CARGO_BIN_EXE_onestore"), &binary).expect("copies");
            let words = "setpriv --reuid 65534 --regid 65534 --clear-groups --";
            house.wrapper = words.split(' ').map(str::to_owned).collect();
        }
        for action in ["cp", "stat"] {
            let line = house.act(action, &path(&file)).failure(action);
            assert!(line.contains("Permission denied") && line.contains("disk.raw"), "{line}");
        }
        assert_eq!((house.staged(), house.content().len()), (vec![], 0));
    }

    /// The source is slowed down to 1 MiB/s, so that something can happen to it meanwhile.
    fn meanwhile(gzip: bool, change: impl Fn(&std::path::Path)) -> (House, super::house::Ran, String) {
        let house = House::new();
        let mut file = house.path("users/disk.raw");
        house.raw(&file, 2, 5);
        if gzip {
            assert!(std::process::Command::new("gzip").arg("-1").arg(&file).status().expect("gzip").success());
            file = house.path("users/disk.raw.gz");
        }
        let whole = digest(&file);
        let started =
            house.start_call("cp", &house.document(&path(&file), "<LIMIT_TRANSFER_BW>1M</LIMIT_TRANSFER_BW>"));
        while house.staged().is_empty() {
            assert!(started.begin.elapsed() < Duration::from_secs(20), "nothing is staged");
            std::thread::sleep(Duration::from_millis(2));
        }
        change(&file);
        let ran = finish(started);
        (house, ran, whole)
    }

    #[test]
    fn a_source_that_vanishes_is_read_to_its_end() {
        let (_house, ran, whole) = meanwhile(false, |file| fs::remove_file(file).expect("removes"));
        assert_eq!(digest(&ran.source("vanishing")), whole);
    }

    #[test]
    fn a_source_that_changes_its_size_is_no_image() {
        type Change = fn(&std::path::Path);
        let changes: [(&str, Change); 2] = [
            ("shrinks", |file| {
                fs::File::options().write(true).open(file).expect("opens").set_len(70_000).expect("cuts");
            }),
            ("grows", |file| {
                let file = fs::File::options().write(true).open(file).expect("opens");
                file.write_all_at(b"more", file.metadata().expect("size").len()).expect("writes");
            }),
        ];
        for (what, change) in changes {
            for gzip in [false, true] {
                let (house, ran, _) = meanwhile(gzip, change);
                let line = ran.failure(what);
                assert!(line.contains("disk.raw"), "{what}: {line}");
                assert_eq!((house.staged(), house.content().len()), (vec![], 0), "{what}");
            }
        }
    }

    #[test]
    fn a_source_that_changes_while_it_is_copied_at_full_speed_is_whole_or_refused() {
        let (mut copied, mut refused) = (0, 0);
        for round in 0..12_u64 {
            let house = House::new();
            let file = house.path("users/disk.raw");
            house.raw(&file, 24, 5);
            let started = house.start_call("cp", &house.document(&path(&file), "<SPARSE>no</SPARSE>"));
            std::thread::sleep(Duration::from_millis(round * 3));
            let target = fs::File::options().write(true).open(&file).expect("opens");
            target.set_len(if round % 2 == 0 { 1 << 20 } else { 48 << 20 }).expect("changes");
            let ran = finish(started);
            if ran.status.success() {
                copied += 1;
                let size = fs::metadata(ran.source("copied")).expect("is there").len();
                assert!([1 << 20, 24 << 20, 48 << 20].contains(&size), "{size} bytes were never its size");
            } else {
                refused += 1;
                ran.failure("refused");
                assert_eq!(house.content().len(), 0);
            }
            assert_eq!(house.staged(), Vec::<String>::new());
        }
        println!("{copied} copied, {refused} refused");
        assert_eq!(copied + refused, 12);
    }

    #[test]
    fn a_server_that_says_nothing_is_left_when_the_action_is_cancelled() {
        let silent = super::server::Server::start(|_, _| super::server::Reply {
            delay: Some(Duration::from_secs(60)),
            ..super::server::Reply::ok(&[1; 1000])
        });
        let house = House::new();
        let document = house.document(&format!("<PATH>{}</PATH>", silent.url("/x")), "");
        let started = house.start_call("cp", &document);
        while silent.log().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        started.signal(Signal::TERM);
        let ran = finish(started);
        ran.failure("cancelled");
        assert_eq!(ran.status.code(), Some(143));
        assert!(ran.took < Duration::from_secs(5), "{:?}", ran.took);
        assert_eq!((house.staged(), house.content().len()), (vec![], 0));
    }

    #[test]
    fn a_reply_that_nobody_reads_takes_the_image_back() {
        let house = House::new();
        let file = house.path("users/disk.raw");
        house.raw(&file, 1, 5);
        let cases = [
            ("cp", path(&file)),
            ("mkfs", "<FORMAT>qcow2</FORMAT><FS>ext4</FS><SIZE>8</SIZE>".to_owned()),
            ("stat", path(&file)),
        ];
        for (action, image) in cases {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let mut command = house.command(action);
            let mut child = command.stdout(writer).stdin(Stdio::piped()).spawn().expect("starts");
            drop(command);
            let stdin = child.stdin.as_mut().expect("a pipe");
            std::io::Write::write_all(stdin, house.document(&image, "").as_bytes()).expect("writes");
            drop(child.stdin.take());
            let ran = finish(super::house::Started { child, begin: std::time::Instant::now() });
            assert!(ran.failure(action).contains("Cannot deliver the reply"), "{}", ran.text());
            assert_eq!((house.staged(), house.content().len()), (vec![], 0), "{action}");
        }
    }

    #[test]
    fn sixteen_at_once_do_not_meet() {
        let house = House::new();
        let file = house.path("users/disk.raw");
        house.raw(&file, 4, 5);
        let whole = digest(&file);
        let old: Vec<_> =
            (0..8).map(|_| house.act("mkfs", "<FORMAT>raw</FORMAT><SIZE>1</SIZE>").source("before")).collect();
        let removing: Vec<_> = old
            .iter()
            .map(|image| house.start_call("rm", &house.document(&format!("<SOURCE>{}</SOURCE>", image.display()), "")))
            .collect();
        let copying: Vec<_> = (0..16).map(|_| house.start_call("cp", &house.document(&path(&file), ""))).collect();
        // One of them is killed: the others may sweep what it left, and nothing else.
        copying[7].signal(Signal::KILL);
        for started in removing {
            finish(started).reply("rm");
        }
        let mut images = std::collections::BTreeSet::new();
        for (number, started) in copying.into_iter().enumerate() {
            let ran = finish(started);
            // The kill may come too late.
            if number != 7 || ran.status.success() {
                images.insert(ran.source("cp"));
            }
        }
        images.insert(house.act("cp", &path(&file)).source("the last"));
        assert!([16, 17].contains(&images.len()), "{images:?}");
        assert!(images.iter().all(|image| digest(image) == whole));
        assert_eq!((house.staged(), house.content().len()), (vec![], images.len()));
    }
}
