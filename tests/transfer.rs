//! The import path against a server with a script, local files, and every compression method.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "transfer/server.rs"]
mod server;

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onestore::exec::control::{Cancel, Control};
use onestore::exec::copy;
use onestore::exec::op::Sparse;
use onestore::image::Format;
use onestore::transfer::decode::{Allowance, Compression};
use onestore::transfer::digest::{Algorithm, Expected};
use onestore::transfer::http;
use onestore::transfer::import::{self, Incoming, open};
use onestore::transfer::proxy::ProxyChoice;
use onestore::transfer::size::{self, SizeError, size_of};
use onestore::transfer::source::PathPolicy;
use server::{Length, Reply, Server, ranged};

fn control() -> Control {
    Control::new(Cancel::new())
}

fn options() -> import::Options {
    let http = http::Options {
        backoff: Duration::from_millis(5),
        proxy: ProxyChoice::Direct,
        stall_timeout: Duration::from_secs(5),
        ..http::Options::default()
    };
    import::Options { http, ..import::Options::default() }
}

/// The error with its causes, as it would be printed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

fn fetch(location: &str, options: &import::Options) -> Result<Vec<u8>, String> {
    let mut incoming = open(OsStr::new(location), options, &control()).map_err(|error| chain(&error))?;
    let mut out = Vec::new();
    incoming.read_to_end(&mut out).map_err(|error| chain(&error))?;
    Ok(out)
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

const TOOLS: [(&str, Compression); 5] = [
    ("gzip", Compression::Gzip),
    ("bzip2", Compression::Bzip2),
    ("xz", Compression::Xz),
    ("zstd", Compression::Zstd),
    ("lz4", Compression::Lz4),
];

fn sha1_hex(data: &[u8]) -> String {
    String::from_utf8(through("sha1sum", &[], data)).unwrap()[..40].to_owned()
}

fn write(dir: &Path, name: &str, data: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, data).unwrap();
    path
}

// --- http ---

#[test]
fn one_get_is_enough() {
    let data = sample(1_000_000);
    let body = data.clone();
    let server = Server::start(move |_, request| ranged(request, &body, "\"a\""));
    assert!(fetch(&server.url("/a b/image"), &options()).unwrap() == data);
    let log = server.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(log[0].line, "GET /a%20b/image HTTP/1.1");
    assert_eq!(log[0].header("range"), None);
}

#[test]
fn a_cut_at_every_quarter_is_healed() {
    let data = sample(800_000);
    let body = data.clone();
    let server = Server::start(move |n, request| {
        let reply = ranged(request, &body, "\"a\"");
        if n < 4 { reply.cut(200_000) } else { reply }
    });
    let digest = Expected::new(Algorithm::Sha1, &sha1_hex(&data)).unwrap();
    let options = import::Options { digests: vec![digest], ..options() };
    assert!(fetch(&server.url("/image"), &options).unwrap() == data);
    let log = server.log();
    assert_eq!(log.len(), 4);
    assert_eq!(log[3].header("range"), Some("bytes=600000-"));
    assert_eq!(log[3].header("if-range"), Some("\"a\""));
}

#[test]
fn a_server_without_ranges_is_read_again_and_skipped() {
    let data = sample(500_000);
    let body = data.clone();
    let server = Server::start(move |n, _| {
        let reply = Reply::ok(&body).with("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT");
        if n == 0 { reply.cut(300_000) } else { reply }
    });
    assert!(fetch(&server.url("/image"), &options()).unwrap() == data);
    assert_eq!(server.log().len(), 2);
}

#[test]
fn an_object_that_changes_between_attempts_is_an_error() {
    let data = sample(500_000);
    let server = Server::start(move |n, request| {
        if n == 0 { ranged(request, &data, "\"a\"").cut(300_000) } else { ranged(request, &data, "\"b\"") }
    });
    let text = fetch(&server.url("/image"), &options()).unwrap_err();
    assert!(text.contains("content has changed"), "{text}");
}

#[test]
fn a_cut_without_validators_cannot_be_healed() {
    let server = Server::start(|_, _| Reply::ok(&sample(500_000)).cut(300_000));
    let text = fetch(&server.url("/image"), &options()).unwrap_err();
    assert!(text.ends_with("was cut after 300000 bytes of 500000"), "{text}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_range_that_is_gone_is_an_error() {
    let server = Server::start(|n, request| {
        if n == 0 { ranged(request, &sample(500_000), "\"a\"").cut(300_000) } else { Reply::status("416 Gone") }
    });
    assert!(fetch(&server.url("/image"), &options()).unwrap_err().contains("changed"));
}

#[test]
fn a_wrong_content_length_is_an_error() {
    let data = sample(200_000);
    let body = data.clone();
    let server = Server::start(move |_, request| Reply {
        length: Length::Lie(300_000),
        ..Reply::ok(&body).with("ETag", "\"a\"").with("X", request.line.clone())
    });
    let text = fetch(&server.url("/image"), &options()).unwrap_err();
    assert!(text.contains("was cut after 200000 bytes of 300000"), "{text}");
    // Fewer than sent: only what was announced is read.
    let body = data.clone();
    let server = Server::start(move |_, _| Reply { length: Length::Lie(100_000), ..Reply::ok(&body) });
    assert!(fetch(&server.url("/image"), &options()).unwrap() == data[..100_000]);
    // None: the end of the connection is the end of the image.
    let body = data.clone();
    let server = Server::start(move |_, _| Reply { length: Length::Unsaid, ..Reply::ok(&body) });
    assert!(fetch(&server.url("/image"), &options()).unwrap() == data);
}

#[test]
fn failures_say_http_and_the_status() {
    for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "204 No Content"] {
        let server = Server::start(move |_, _| Reply::status(status));
        let url = server.url("/x");
        assert_eq!(fetch(&url, &options()).unwrap_err(), format!("HTTP {status} from {url}"));
        assert_eq!(server.log().len(), 1);
    }
}

#[test]
fn server_errors_are_tried_again() {
    let server = Server::start(|n, _| match n {
        0 => Reply::status("500 Internal Server Error"),
        1 => Reply::status("503 Service Unavailable"),
        _ => Reply::ok(b"image"),
    });
    assert_eq!(fetch(&server.url("/x"), &options()).unwrap(), b"image");
    let server = Server::start(|_, _| Reply::status("500 Internal Server Error"));
    let text = fetch(&server.url("/x"), &options()).unwrap_err();
    assert!(text.starts_with("HTTP 500 Internal Server Error from http://127.0.0.1"), "{text}");
    assert_eq!(server.log().len(), 4);
}

#[test]
fn a_refused_connection_names_the_address() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = fetch(&format!("http://u:secret@{free}/x?sig=secret"), &options()).unwrap_err();
    assert!(text.starts_with(&format!("HTTP request to http://{free}/x failed: ")), "{text}");
    assert!(text.contains("refused") && !text.contains("secret"), "{text}");
}

#[test]
fn redirects_are_followed_to_http_only() {
    let server = Server::start(|_, request| match request.line.split(' ').nth(1).unwrap() {
        "/a" => Reply::status("302 Found").with("Location", "b/c"),
        "/b/c" => Reply::ok(b"image"),
        "/file" => Reply::status("302 Found").with("Location", "file:///etc/passwd"),
        "/ftp" => Reply::status("301 Moved Permanently").with("Location", "ftp://host/x"),
        _ => Reply::status("307 Temporary Redirect").with("Location", "/loop"),
    });
    assert_eq!(fetch(&server.url("/a"), &options()).unwrap(), b"image");
    assert_eq!(server.log().len(), 2);
    for (path, target) in [("/file", "file:///etc/passwd"), ("/ftp", "ftp://host/x")] {
        let text = fetch(&server.url(path), &options()).unwrap_err();
        assert!(text.contains(&format!("to {target} refused")), "{text}");
    }
    let before = server.log().len();
    assert!(fetch(&server.url("/loop"), &options()).unwrap_err().contains("redirects"));
    assert_eq!(server.log().len() - before, 11);
}

#[test]
fn a_login_goes_to_its_host_only() {
    let other = Server::start(|_, _| Reply::ok(b"image"));
    let target = other.url("/x");
    let server = Server::start(move |_, _| Reply::status("302 Found").with("Location", target.clone()));
    let url = server.url("/x").replace("http://", "http://us%3Aer:pass@");
    assert_eq!(fetch(&url, &options()).unwrap(), b"image");
    assert_eq!(server.log()[0].header("authorization"), Some("Basic dXM6ZXI6cGFzcw=="));
    assert_eq!(other.log()[0].header("authorization"), None);
}

#[test]
fn a_server_that_stalls_is_given_up_and_a_cancel_is_heard() {
    let slow = || Server::start(|_, _| Reply { delay: Some(Duration::from_secs(8)), ..Reply::ok(b"image") });
    let server = slow();
    let mut stalling = options();
    stalling.http.stall_timeout = Duration::from_millis(300);
    stalling.http.retries = 0;
    let start = Instant::now();
    assert!(fetch(&server.url("/x"), &stalling).unwrap_err().contains("was cut after 0 bytes of 5"));
    assert!(start.elapsed() < Duration::from_secs(3));

    let server = slow();
    let control = control();
    let cancel = control.cancel.clone();
    let setter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        cancel.set();
    });
    let start = Instant::now();
    let error = open(OsStr::new(&server.url("/x")), &options(), &control).err().unwrap();
    assert!(chain(&error).contains("Cancelled"), "{}", chain(&error));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    setter.join().unwrap();
}

#[test]
fn a_certificate_that_nobody_signed_is_refused_unless_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let (key, cert, p12) = (dir.path().join("key"), dir.path().join("cert"), dir.path().join("p12"));
    let openssl = |args: &[&str]| {
        let status = Command::new("openssl").args(args).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "openssl {args:?}");
    };
    let (key, cert, p12) = (key.to_str().unwrap(), cert.to_str().unwrap(), p12.to_str().unwrap());
    let subject = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
    openssl(&[&["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert][..], &subject].concat());
    openssl(&["pkcs12", "-export", "-inkey", key, "-in", cert, "-out", p12, "-passout", "pass:x"]);
    let identity = native_tls::Identity::from_pkcs12(&std::fs::read(p12).unwrap(), "x").unwrap();
    let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}/x", listener.local_addr().unwrap().port());
    let thread = std::thread::spawn(move || {
        // One client that refuses the certificate, one that does not look.
        for stream in listener.incoming().take(2) {
            let Ok(mut stream) = acceptor.accept(stream.unwrap()) else { continue };
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nimage");
            let _ = stream.shutdown();
        }
    });
    let text = fetch(&url, &options()).unwrap_err();
    assert!(text.starts_with(&format!("HTTPS connection to {url} failed")), "{text}");
    assert!(text.contains("certificate"), "{text}");
    let mut lax = options();
    lax.http.verify_tls = false;
    assert_eq!(fetch(&url, &lax).unwrap(), b"image");
    thread.join().unwrap();
}

#[test]
fn schemes_that_nobody_serves_are_named() {
    let text = fetch("lxd://key:secret@host/x", &options()).unwrap_err();
    assert_eq!(
        text,
        "Cannot read from lxd://host/x: scheme 'lxd' is not served, only http, https, s3, ssh, rbd, local paths and those with a helper program are"
    );
    assert!(fetch("http://", &options()).unwrap_err().starts_with("Not a valid URL"));
}

// --- decoding, digests, limits ---

#[test]
fn every_method_is_decoded_in_one_pass() {
    let data = sample(2_000_000);
    for (tool, kind) in TOOLS {
        let encoded = through(tool, &["-c"], &data);
        let digest = Expected::new(Algorithm::Sha1, &sha1_hex(&encoded)).unwrap();
        let body = encoded.clone();
        let server = Server::start(move |_, request| ranged(request, &body, "\"a\""));
        let options = import::Options { digests: vec![digest], ..options() };
        let mut incoming = open(OsStr::new(&server.url("/no-name")), &options, &control()).unwrap();
        assert_eq!(incoming.compression, Some(kind));
        assert_eq!(incoming.encoded_len, Some(encoded.len() as u64));
        assert_eq!(incoming.head().len(), 65536);
        let target = tempfile::tempfile().unwrap();
        let n = copy::receive(&mut incoming, &target, Sparse::Holes, &control()).unwrap();
        assert_eq!(n, data.len() as u64);
        assert_eq!(server.log().len(), 1);
        // Untouched where it is to stay as it is, also where it is cut.
        let plain = import::Options { decompress: false, ..self::options() };
        assert!(fetch(&server.url("/x"), &plain).unwrap() == encoded);
        for cut in [encoded.len() / 4, encoded.len() / 2, encoded.len() - 1] {
            let dir = tempfile::tempdir().unwrap();
            let path = write(dir.path(), "cut", &encoded[..cut]);
            assert!(fetch(path.to_str().unwrap(), &self::options()).is_err(), "{tool} cut at {cut}");
        }
        let dir = tempfile::tempdir().unwrap();
        let twice = write(dir.path(), "twice", &encoded.repeat(2));
        assert!(fetch(twice.to_str().unwrap(), &self::options()).unwrap() == data.repeat(2), "{tool}");
        let garbage = write(dir.path(), "garbage", &[&encoded[..], b"garbage"].concat());
        assert!(fetch(garbage.to_str().unwrap(), &self::options()).is_err(), "{tool}");
    }
}

#[test]
fn a_wrong_digest_fails_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    for (name, data) in
        [("small", sample(10)), ("large", sample(3_000_000)), ("gz", { through("gzip", &["-c"], &sample(3_000_000)) })]
    {
        let path = write(dir.path(), name, &data);
        let wrong = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        let right = Expected::new(Algorithm::Sha1, &sha1_hex(&data).to_uppercase()).unwrap();
        let mut options = options();
        options.digests = vec![right.clone(), Expected::new(Algorithm::Sha1, wrong).unwrap()];
        let text = fetch(path.to_str().unwrap(), &options).unwrap_err();
        let (path, actual) = (path.display(), sha1_hex(&data));
        assert!(
            text.ends_with(&format!("Hash does not match: sha1 of {path} is {actual}, expected {wrong}")),
            "{text}"
        );
        options.digests = vec![right];
        assert!(fetch(&path.to_string(), &options).is_ok());
    }
}

#[test]
fn bombs_and_too_large_images_are_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let bomb = write(dir.path(), "bomb", &through("gzip", &["-c"], &vec![0; 20 << 20]));
    let plain = write(dir.path(), "plain", &vec![0; 2 << 20]);
    let server = Server::start(|_, _| Reply { length: Length::Unsaid, ..Reply::ok(&vec![0; 2 << 20]) });
    let options = import::Options { max_output: Some(Allowance::Granted(1 << 20)), ..options() };
    for location in [bomb.to_str().unwrap(), &server.url("/endless")] {
        let text = fetch(location, &options).unwrap_err();
        assert!(text.contains("It unpacks to more than 1 MiB"), "{text}");
    }
    // What tells its length is up to the caller, who may refuse it before it comes.
    assert_eq!(fetch(plain.to_str().unwrap(), &options).unwrap().len(), 2 << 20);
}

#[test]
fn the_rate_limit_holds_for_every_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a", &sample(100_000));
    let options = import::Options { rate: Some("200k".parse().unwrap()), ..options() };
    let start = Instant::now();
    assert_eq!(fetch(path.to_str().unwrap(), &options).unwrap().len(), 100_000);
    assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
}

// --- local files ---

#[test]
fn a_plain_local_file_is_handed_out_for_a_reflink() {
    let dir = tempfile::tempdir().unwrap();
    let data = sample(300_000);
    let path = write(dir.path(), "a b'$(x)", &data);
    let location = path.as_os_str();
    let mut incoming = open(location, &options(), &control()).unwrap();
    let file = incoming.plain_file.take().unwrap();
    let target = tempfile::tempfile().unwrap();
    assert_eq!(copy::copy_file(&file, &target, Sparse::Holes, &control()).unwrap().size, 300_000);
    // Copying moved the offset of the file; the stream does not care.
    let mut out = Vec::new();
    incoming.read_to_end(&mut out).unwrap();
    assert!(out == data);

    let digest = Expected::new(Algorithm::Sha1, &sha1_hex(&data)).unwrap();
    let with = |options: &import::Options| open(location, options, &control()).unwrap().plain_file.is_some();
    assert!(!with(&import::Options { digests: vec![digest], ..options() }));
    assert!(!with(&import::Options { rate: Some("1g".parse().unwrap()), ..options() }));
    assert!(with(&import::Options { max_output: Some(Allowance::Granted(3)), ..options() }));
}

#[test]
fn a_local_file_that_changes_while_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a", &sample(300_000));
    for len in [200_000, 400_000] {
        let mut incoming: Incoming = open(path.as_os_str(), &options(), &control()).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let error = io::copy(&mut incoming, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("were announced"), "{error}");
        write(dir.path(), "a", &sample(300_000));
    }
}

#[test]
fn restricted_directories_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let path = write(&root, "a", b"x");
    let policy = PathPolicy { safe: vec![], restricted: vec![root] };
    let options = import::Options { policy, ..options() };
    let location = path.to_str().unwrap();
    let text = format!("Not allowed to copy image from {location}, check RESTRICTED_DIRS in your datastore");
    assert_eq!(fetch(location, &options).unwrap_err(), text);
    let sizes = size::Options { import: options, max_download: 0 };
    assert_eq!(size_of(path.as_os_str(), &sizes, &control()).unwrap_err().to_string(), text);
    assert!(size_of(path.parent().unwrap().as_os_str(), &sizes, &control()).is_err());
}

#[test]
fn an_unreadable_file_says_why() {
    let text = fetch("/nonexistent/image", &options()).unwrap_err();
    assert!(text.starts_with("Cannot read from /nonexistent/image: No such file"), "{text}");
}

// --- inspection and size ---

fn qcow2(dir: &Path) -> Vec<u8> {
    let path = dir.join("q");
    let args = ["create", "-q", "-f", "qcow2"];
    let status = Command::new("qemu-img").args(args).arg(&path).arg("7G").status().unwrap();
    assert!(status.success());
    std::fs::read(path).unwrap()
}

#[test]
fn an_incoming_image_is_judged_by_its_head() {
    let dir = tempfile::tempdir().unwrap();
    let image = write(dir.path(), "x.xz", &through("xz", &["-c"], &qcow2(dir.path())));
    let mut incoming = open(image.as_os_str(), &options(), &control()).unwrap();
    let found = incoming.inspect().unwrap();
    assert_eq!((found.format, found.virtual_size), (Format::Qcow2, Some(7 << 30)));
    assert!(found.verdict.is_safe(), "{}", found.verdict);
}

#[test]
fn a_header_behind_the_first_kilobytes_is_fetched_in_the_same_pass() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let args = ["create", "-q", "-f", "vhdx"];
    assert!(Command::new("qemu-img").args(args).arg(&path).arg("1G").status().unwrap().success());
    let image = std::fs::read(&path).unwrap();
    let body = image.clone();
    let server = Server::start(move |_, request| ranged(request, &body, "\"a\""));
    let mut incoming = open(OsStr::new(&server.url("/v")), &options(), &control()).unwrap();
    let found = incoming.inspect().unwrap();
    assert_eq!((found.format, found.virtual_size), (Format::Vhdx, Some(1 << 30)));
    let mut out = Vec::new();
    incoming.read_to_end(&mut out).unwrap();
    assert!(out == image);
    assert_eq!(server.log().len(), 1);
}

#[test]
fn sizes_are_those_of_the_decoded_disk() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample(1_500_000);
    let qcow2 = qcow2(dir.path());
    let sizes = size::Options { import: options(), max_download: 10 << 20 };
    let of = |location: &str| size_of(OsStr::new(location), &sizes, &control());
    let local = |name: &str, data: &[u8]| of(write(dir.path(), name, data).to_str().unwrap()).unwrap();
    let remote = |data: Vec<u8>| {
        let server = Server::start(move |_, request| ranged(request, &data, "\"a\""));
        let size = of(&server.url("/x")).unwrap();
        assert_eq!(server.log().len(), 1);
        size
    };
    assert_eq!(local("raw", &raw), 1_500_000);
    assert_eq!(local("empty", b""), 0);
    assert_eq!(local("qcow2", &qcow2), 7 << 30);
    assert_eq!(remote(raw.clone()), 1_500_000);
    assert_eq!(remote(qcow2.clone()), 7 << 30);
    for (tool, _) in TOOLS {
        let encoded = through(tool, &["-c"], &raw);
        assert_eq!(local(tool, &encoded), 1_500_000, "{tool}");
        assert_eq!(local(tool, &encoded.repeat(3)), 4_500_000, "{tool}");
        assert_eq!(local(tool, &through(tool, &["-c"], &qcow2)), 7 << 30, "{tool}");
        assert_eq!(remote(encoded.clone()), 1_500_000, "{tool}");
        // Too much to be downloaded twice, or who knows how much.
        let small = size::Options { max_download: 1000, ..sizes.clone() };
        for (length, limits) in [(Length::True, &small), (Length::Unsaid, &sizes)] {
            let body = encoded.clone();
            let server = Server::start(move |_, _| Reply { length, ..Reply::ok(&body) });
            let error = size_of(OsStr::new(&server.url("/x")), limits, &control()).unwrap_err();
            assert!(matches!(error, SizeError::Unsupported), "{error:?}");
        }
    }
    let opaque = import::Options { decompress: false, ..options() };
    let opaque = size::Options { import: opaque, ..sizes.clone() };
    let gz = write(dir.path(), "gz", &through("gzip", &["-c"], &raw));
    let len = std::fs::metadata(&gz).unwrap().len();
    assert_eq!(size_of(gz.as_os_str(), &opaque, &control()).unwrap(), len);
    // An http failure says so.
    let server = Server::start(|_, _| Reply::status("404 Not Found"));
    assert!(of(&server.url("/x")).unwrap_err().to_string().starts_with("HTTP 404 Not Found"));
}

#[test]
fn a_directory_counts_as_du_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub dir");
    std::fs::create_dir(&sub).unwrap();
    write(&sub, "a", &sample(12_345));
    write(dir.path(), "b", b"xyz");
    std::fs::hard_link(dir.path().join("b"), sub.join("c")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", sub.join("l")).unwrap();
    let out = Command::new("du").arg("-sb").arg(dir.path()).output().unwrap();
    let du: u64 = String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let sizes = size::Options { import: options(), max_download: 0 };
    assert_eq!(size_of(dir.path().as_os_str(), &sizes, &control()).unwrap(), du);
}
