//! Bad input at the door, through the real binary: servers and files that fail in every way are told in one plain line
//! that says what is wrong with what, and leave nothing behind.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "faults/house.rs"]
#[allow(dead_code)]
mod house;
#[path = "transfer/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "transfer/tls.rs"]
mod tls;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use house::{House, digest, xml};
use server::{Length, Reply, Request, Server, ranged};

/// The document of an image at `path`.
fn at(path: &str) -> String {
    format!("<PATH>{}</PATH>", xml(path.as_ref()))
}

/// Calls the action, which has to fail and leave nothing; gives its plain line.
#[track_caller]
fn refused(house: &House, action: &str, image: &str, template: &str) -> String {
    let line = house.call(action, &house.document(image, template)).failure(image);
    assert_eq!((house.staged(), house.content().len()), (vec![], 0), "{action} {image} left something");
    line
}

/// Data that do not compress to nothing.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0] & 0x3F
    };
    (0..len).map(|_| next()).collect()
}

/// What a program makes of the data on its standard input.
fn through(program: &str, args: &[&str], data: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let data = data.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&data).unwrap());
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(out.status.success());
    out.stdout
}

const TOOLS: [&str; 5] = ["gzip", "bzip2", "xz", "zstd", "lz4"];

// --- http ---

#[test]
fn every_refusal_of_a_server_says_http_and_its_status() {
    let house = House::new();
    let statuses = [
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "410 Gone",
        "416 Range Not Satisfiable",
        "204 No Content",
        "300 Multiple Choices",
        "304 Not Modified",
    ];
    for status in statuses {
        let server = Server::start(move |_, _| Reply::status(status));
        // What may be secret in an address is not repeated.
        let url = server.url("/x?token=secret").replace("http://", "http://user:secret@");
        for action in ["cp", "stat"] {
            let line = refused(&house, action, &at(&url), "");
            assert!(line.contains(&format!("HTTP {status} from {}", server.url("/x"))), "{line}");
            assert!(!line.contains("secret") && !line.contains("ermission"), "{line}");
        }
        assert_eq!(server.log().len(), 2, "{status} was asked for again");
    }
}

#[test]
fn a_server_that_fails_is_asked_again_and_then_told() {
    let house = House::new();
    let server = Server::start(|_, _| Reply::status("503 Service Unavailable"));
    let line = refused(&house, "cp", &at(&server.url("/x")), "");
    assert!(line.contains("HTTP 503 Service Unavailable from"), "{line}");
    assert_eq!(server.log().len(), 4);
    let server = Server::start(|n, _| if n == 0 { Reply::status("500 No") } else { Reply::ok(&sample(1000)) });
    house.act("cp", &at(&server.url("/x"))).reply("the second time");
}

#[test]
fn who_cannot_be_reached_is_named() {
    let house = House::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = refused(&house, "cp", &at(&format!("http://{free}/x")), "");
    assert!(line.contains(&format!("HTTP request to http://{free}/x failed")) && line.contains("refused"), "{line}");
    // RFC 6761 promises that nobody has this name.
    let line = refused(&house, "stat", &at("http://nonexistent.invalid/x"), "");
    assert!(line.contains("HTTP request to http://nonexistent.invalid/x failed"), "{line}");
    for url in ["http://", "http:///x", "https://ho st/x"] {
        let line = refused(&house, "cp", &at(url), "");
        assert!(line.contains("Not a valid URL"), "{url}: {line}");
    }
}

#[test]
fn a_wrong_length_is_told() {
    let house = House::new();
    let (plain, packed) = (sample(200_000), through("gzip", &["-c"], &sample(200_000)));
    let lying = |body: &[u8], length: usize| {
        let body = body.to_vec();
        Server::start(move |_, _| Reply { length: Length::Lie(length), ..Reply::ok(&body) })
    };
    let server = lying(&plain, 300_000);
    let line = refused(&house, "cp", &at(&server.url("/long")), "");
    assert!(line.contains("HTTP download of") && line.contains("was cut after 200000 bytes of 300000"), "{line}");
    // Nobody reads behind the announced end. What is wrong with the part shows in what it is, or by its digest.
    let server = lying(&packed, 100_000);
    let line = refused(&house, "cp", &at(&server.url("/short")), "");
    assert!(line.contains("gzip data end too early"), "{line}");
    let server = lying(&plain, 100_000);
    let sha1 = String::from_utf8(through("sha1sum", &[], &plain)).unwrap()[..40].to_owned();
    let image = format!("{}<TEMPLATE><SHA1>{sha1}</SHA1></TEMPLATE>", at(&server.url("/short")));
    let line = refused(&house, "cp", &image, "");
    assert!(line.contains("Hash does not match: sha1 of"), "{line}");
}

#[test]
fn a_cut_at_every_quarter_heals_where_the_server_has_ranges() {
    let house = House::new();
    let body = sample(1_200_000);
    let expected = {
        let file = house.path("users/expected");
        fs::write(&file, &body).unwrap();
        digest(&file)
    };
    for quarter in 0..4 {
        let at_byte = body.len() / 4 * quarter;
        for server_knows_ranges in [true, false] {
            let body = body.clone();
            let server = Server::start(move |n, request: &Request| {
                let reply = if server_knows_ranges {
                    ranged(request, &body, "\"a\"")
                } else {
                    Reply::ok(&body).with("ETag", "\"a\"")
                };
                if n == 0 { reply.cut(at_byte) } else { reply }
            });
            let ran = house.act("cp", &at(&server.url("/x")));
            let image = ran.source(&format!("cut at {at_byte}"));
            assert_eq!(digest(&image), expected);
            fs::remove_file(image).unwrap();
            let log = server.log();
            assert_eq!(log.len(), 2, "{log:?}");
            if quarter > 0 {
                assert_eq!(log[1].header("range"), Some(format!("bytes={at_byte}-").as_str()));
                assert_eq!(log[1].header("if-range"), Some("\"a\""));
            }
        }
    }
}

#[test]
fn a_cut_that_cannot_heal_is_told() {
    let house = House::new();
    let body = sample(800_000);
    for quarter in 1..4 {
        let at_byte = 200_000 * quarter;
        let plain = body.clone();
        let server = Server::start(move |_, _| Reply::ok(&plain).cut(at_byte));
        let line = refused(&house, "cp", &at(&server.url("/x")), "");
        assert!(line.contains(&format!("was cut after {at_byte} bytes of 800000")), "{line}");
        // Another object under the same address: by its tag, by its range, by a server without ranges.
        for way in 0..3 {
            let plain = body.clone();
            let server = Server::start(move |n, request: &Request| match (n, way) {
                (0, _) => ranged(request, &plain, "\"a\"").cut(at_byte),
                (_, 0) => ranged(request, &plain, "\"b\""),
                (_, 1) => Reply { status: "206 Partial Content", ..Reply::ok(&plain[7..]) }
                    .with("ETag", "\"a\"")
                    .with("Content-Range", "bytes 7-799999/800000"),
                _ => Reply::status("416 Range Not Satisfiable"),
            });
            let line = refused(&house, "cp", &at(&server.url("/x")), "");
            assert!(line.contains("was cut, and its content has changed since"), "{way}: {line}");
        }
    }
}

#[test]
fn redirects_lead_to_http_only_and_end() {
    let house = House::new();
    fs::write(house.path("users/secret"), "secret").unwrap();
    let local = format!("file://{}", house.path("users/secret").display());
    let targets =
        [local.as_str(), "ftp://host/x", "gopher://host/x", "s3://bucket/x", "ssh://host/x", "rbd:pool/image"];
    for target in targets {
        let location = target.to_owned();
        let server = Server::start(move |_, _| Reply::status("302 Found").with("Location", location.clone()));
        for action in ["cp", "stat"] {
            let line = refused(&house, action, &at(&server.url("/x")), "");
            // What is no address of another scheme is a path of the same server, and goes round.
            let said = line.contains("refused: only http and https are followed") || line.contains("do not end");
            assert!(line.contains("HTTP redirect") && said, "{target}: {line}");
        }
    }
    let server = Server::start(|_, _| Reply::status("301 Moved Permanently").with("Location", "/again"));
    let line = refused(&house, "cp", &at(&server.url("/x")), "");
    assert!(line.contains("HTTP redirects of") && line.contains("do not end"), "{line}");
    assert_eq!(server.log().len(), 11);
}

#[test]
fn one_import_is_one_get() {
    let house = House::new();
    let raw = sample(3_000_000);
    let qcow2 = {
        let path = house.path("users/q");
        let status = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("8M").status();
        assert!(status.unwrap().success());
        fs::read(path).unwrap()
    };
    let bodies = [raw.clone(), through("gzip", &["-c"], &raw), through("xz", &["-c"], &raw), qcow2];
    let sum = |body: &[u8]| String::from_utf8(through("md5sum", &[], body)).unwrap()[..32].to_owned();
    for body in bodies {
        for template in ["", "<DRIVER>qcow2</DRIVER>", "<DRIVER>raw</DRIVER>"] {
            let copy = body.clone();
            let server = Server::start(move |_, request| ranged(request, &copy, "\"a\""));
            let image = format!("{}<TEMPLATE><MD5>{}</MD5></TEMPLATE>", at(&server.url("/image")), sum(&body));
            house.call("cp", &house.document(&image, template)).reply(template);
            let log = server.log();
            assert_eq!(log.len(), 1, "{log:?}");
            assert_eq!((log[0].line.as_str(), log[0].header("range")), ("GET /image HTTP/1.1", None));
        }
        let copy = body.clone();
        let server = Server::start(move |_, request| ranged(request, &copy, "\"a\""));
        house.act("stat", &at(&server.url("/image"))).reply("stat");
        assert_eq!(server.log().len(), 1);
    }
}

// --- TLS ---

#[test]
fn certificates_are_verified_unless_the_operator_says_no() {
    for (certificate, why) in [(tls::Certificate::SelfSigned, "self"), (tls::Certificate::Expired, "expired")] {
        let mut house = House::new();
        let server = tls::Server::start(certificate, &sample(100_000));
        if certificate == tls::Certificate::Expired {
            // Signed by somebody who is trusted, so that nothing but its age is wrong.
            house.env.push(("SSL_CERT_FILE".into(), server.authority().display().to_string()));
        }
        for action in ["cp", "stat"] {
            let line = refused(&house, action, &at(&server.url("/x")), "");
            assert!(line.contains(&format!("HTTPS connection to {} failed", server.url("/x"))), "{line}");
            assert!(line.contains("TLS_VERIFY=no") && line.contains("certificate") && line.contains(why), "{line}");
        }
        let image = at(&server.url("/x"));
        house.call("stat", &house.document(&image, "<TLS_VERIFY>no</TLS_VERIFY>")).reply("template");
        house.call("cp", &house.document(&image, "<TLS_VERIFY>NO</TLS_VERIFY>")).reply("template");
        fs::create_dir_all(house.path("one/var/remotes/etc")).unwrap();
        fs::write(house.path("one/var/remotes/etc/onestore.conf"), "TLS_VERIFY=no\n").unwrap();
        house.act("cp", &image).reply("conf");
    }
}

#[test]
fn a_certificate_of_somebody_trusted_is_accepted() {
    let mut house = House::new();
    let server = tls::Server::start(tls::Certificate::Good, &sample(100_000));
    house.env.push(("SSL_CERT_FILE".into(), server.authority().display().to_string()));
    house.act("cp", &at(&server.url("/x"))).reply("a good certificate");
    // For this address, not for another name of the same machine.
    let other = House::new();
    let line = refused(&other, "stat", &at(&server.url("/x")), "");
    assert!(line.contains("HTTPS connection to"), "{line}");
}

// --- archives and digests ---

#[test]
fn cut_and_damaged_data_of_each_kind_are_told() {
    let house = House::new();
    let data = sample(2_000_000);
    for tool in TOOLS {
        let whole = through(tool, &["-c"], &data);
        let cuts = [whole.len() / 4, whole.len() / 2, whole.len() / 4 * 3, whole.len() - 1];
        for cut in cuts {
            let file = house.path("users/cut");
            fs::write(&file, &whole[..cut]).unwrap();
            let line = refused(&house, "cp", &at(&file.display().to_string()), "");
            assert!(line.contains(&format!("The {tool} data")), "{tool} cut at {cut}: {line}");
            assert!(line.contains("end too early") || tool == "bzip2" || tool == "lz4", "{tool} cut at {cut}: {line}");
            // The same with a digest, which is that of the cut file.
            let md5 = digest(&file);
            let image = format!("{}<TEMPLATE><MD5>{md5}</MD5></TEMPLATE>", at(&file.display().to_string()));
            let line = refused(&house, "cp", &image, "<DRIVER>qcow2</DRIVER>");
            assert!(line.contains(&format!("The {tool} data")), "{tool} cut at {cut}: {line}");
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        for byte in &mut damaged[middle..middle + 16] {
            *byte ^= 0xA5;
        }
        let file = house.path("users/damaged");
        fs::write(&file, &damaged).unwrap();
        let line = refused(&house, "cp", &at(&file.display().to_string()), "");
        assert!(line.contains(&format!("The {tool} data")), "{tool} damaged: {line}");
        fs::write(&file, [&whole[..], b"behind the end"].concat()).unwrap();
        let line = refused(&house, "cp", &at(&file.display().to_string()), "");
        assert!(line.contains(tool) || line.contains("bytes behind its compressed data"), "{tool}: {line}");
    }
    // Archives are no images.
    let file = house.path("users/some.tar");
    let tar = Command::new("tar").arg("-cf").arg(&file).arg("-C").arg(house.path("users")).arg("damaged").status();
    assert!(tar.unwrap().success());
    let line = refused(&house, "cp", &at(&file.display().to_string()), "");
    assert!(line.contains("It is an archive, not a disk image"), "{line}");
}

#[test]
fn a_wrong_digest_of_each_kind_is_told() {
    let house = House::new();
    let file = house.path("users/disk");
    fs::write(&file, sample(500_000)).unwrap();
    let digests = [("MD5", 32), ("SHA1", 40), ("SHA256", 64), ("SHA512", 128)];
    for (name, len) in digests {
        let wrong = "0123456789abcdef".repeat(len / 16 + 1);
        let wrong = &wrong[..len];
        let image = format!("{}<TEMPLATE><{name}>{wrong}</{name}></TEMPLATE>", at(&file.display().to_string()));
        let line = refused(&house, "cp", &image, "");
        let kind = name.to_ascii_lowercase();
        assert!(line.contains(&format!("Hash does not match: {kind} of")) && line.contains(wrong), "{line}");
        // One that is none at all is the caller's mistake.
        let image = format!("{}<TEMPLATE><{name}>xyz</{name}></TEMPLATE>", at(&file.display().to_string()));
        let ran = house.act("cp", &image);
        ran.failure(name);
        assert_eq!(ran.status.code(), Some(2), "{}", ran.text());
    }
}

#[test]
fn zero_bytes_are_no_image() {
    let house = House::new();
    let file = house.path("users/empty");
    fs::write(&file, "").unwrap();
    let mut places = vec![file.display().to_string()];
    let server = Server::start(|_, _| Reply::ok(b""));
    places.push(server.url("/empty"));
    for tool in TOOLS {
        let packed = house.path(&format!("users/{tool}"));
        fs::write(&packed, through(tool, &["-c"], b"")).unwrap();
        places.push(packed.display().to_string());
    }
    for place in places {
        for action in ["cp", "stat"] {
            let line = refused(&house, action, &at(&place), "");
            assert!(line.ends_with(": it is empty"), "{action} {place}: {line}");
        }
    }
}

// --- local files ---

#[test]
fn local_files_that_cannot_be_read_are_told() {
    let house = House::new();
    let users = house.path("users");
    fs::create_dir(users.join("folder")).unwrap();
    symlink("circle", users.join("circle")).unwrap();
    symlink("nothing", users.join("dangling")).unwrap();
    assert!(Command::new("mkfifo").arg(users.join("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(users.join("socket")).unwrap();
    let cases = [
        ("missing", "No such file or directory"),
        ("dangling", "No such file or directory"),
        ("circle", "symbolic link"),
        ("pipe", "it is a pipe, not a file"),
        ("socket", "it is a socket, not a file"),
    ];
    for (name, what) in cases {
        let path = users.join(name).display().to_string();
        for action in ["cp", "stat"] {
            let line = refused(&house, action, &at(&path), "");
            assert!(line.contains(&format!("Cannot read from {path}")) && line.contains(what), "{action}: {line}");
        }
    }
    let path = users.join("folder").display().to_string();
    let line = refused(&house, "cp", &at(&path), "");
    assert!(line.contains("it is a directory, not a file"), "{line}");
}

#[test]
fn a_file_that_may_not_be_read_is_told() {
    let mut house = House::new();
    let file = house.path("users/private");
    fs::write(&file, sample(1000)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&file).is_ok() {
        // We are root: the action is not.
        house.wrapper = ["setpriv", "--reuid", "65534", "--clear-groups"].map(str::to_owned).to_vec();
    }
    let line = refused(&house, "cp", &at(&file.display().to_string()), "");
    assert!(line.contains("Cannot read from") && line.contains("Permission denied"), "{line}");
}

#[test]
fn a_link_that_is_swapped_never_leads_into_a_restricted_directory() {
    let house = House::new();
    let (secrets, path, next) = (house.path("secrets"), house.path("users/link"), house.path("users/next"));
    fs::create_dir(&secrets).unwrap();
    fs::write(secrets.join("key"), b"TOP-SECRET".repeat(1000)).unwrap();
    fs::write(house.path("users/open"), vec![7; 10_000]).unwrap();
    let restricted = format!("<RESTRICTED_DIRS>{}</RESTRICTED_DIRS>", secrets.display());
    symlink(secrets.join("key"), &path).unwrap();
    let line = refused(&house, "cp", &at(&path.display().to_string()), &restricted);
    assert!(line.contains("Not allowed to copy image from"), "{line}");

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for target in [secrets.join("key"), house.path("users/open")] {
                    symlink(target, &next).unwrap();
                    fs::rename(&next, &path).unwrap();
                }
            }
        });
        let (mut copied, mut refused) = (0, 0);
        for _ in 0..60 {
            let ran = house.call("cp", &house.document(&at(&path.display().to_string()), &restricted));
            if ran.status.success() {
                assert_eq!(fs::read(ran.source("swapped")).unwrap(), vec![7; 10_000]);
                copied += 1;
            } else {
                assert!(ran.failure("swapped").contains("Not allowed to copy image from"), "{}", ran.text());
                refused += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!("{copied} copied, {refused} refused");
    });
    for name in house.content().keys() {
        assert_eq!(fs::read(house.base.join(name)).unwrap(), vec![7; 10_000]);
    }
}

#[test]
fn a_file_that_vanishes_is_copied_or_told() {
    let house = House::new();
    for round in 0..8u64 {
        let file = house.path("users/vanishing");
        house.raw(&file, 8, round + 1);
        let whole = digest(&file);
        let started = house.start_call("cp", &house.document(&at(&file.display().to_string()), ""));
        std::thread::sleep(std::time::Duration::from_millis(round * 3));
        fs::remove_file(&file).unwrap();
        let ran = house::finish(started);
        if ran.status.success() {
            // What was opened is all there, whatever becomes of its name.
            let image = ran.source("vanished");
            assert_eq!(digest(&image), whole);
            fs::remove_file(image).unwrap();
        } else {
            assert!(ran.failure("vanished").contains("No such file or directory"), "{}", ran.text());
        }
        assert_eq!((house.staged(), house.content().len()), (vec![], 0));
    }
}
