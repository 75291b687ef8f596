//! S3 sources against a real server that verifies signatures, over a line that logs and cuts.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use onestore::exec::cmd::Secret;
use onestore::exec::control::{Cancel, Control};
use onestore::transfer::decode::Compression;
use onestore::transfer::digest::{Algorithm, Expected};
use onestore::transfer::http;
use onestore::transfer::import::{self, open};
use onestore::transfer::proxy::ProxyChoice;
use onestore::transfer::s3::{Settings, Style};
use onestore::transfer::size::{self, size_of};
use sha2::{Digest as _, Sha256};

#[path = "faults/house.rs"]
#[allow(dead_code)]
mod house;
#[path = "s3/lab.rs"]
mod lab;

use house::House;
use lab::{Deed, KEY, Line, S3, SERVICE, TEMPORARY, header, put};

fn control() -> Control {
    Control::new(Cancel::new())
}

fn options(line: &Line, change: impl FnOnce(&mut Settings)) -> import::Options {
    let http = http::Options {
        backoff: Duration::from_millis(5),
        proxy: ProxyChoice::Fixed(line.proxy()),
        stall_timeout: Duration::from_secs(5),
        ..http::Options::default()
    };
    let mut s3 = Settings {
        access_key: Some(Secret::new(KEY.0)),
        secret_key: Some(Secret::new(KEY.1)),
        endpoint: Some(format!("http://{SERVICE}")),
        ..Settings::default()
    };
    change(&mut s3);
    import::Options { http, s3, ..import::Options::default() }
}

fn hosted(settings: &mut Settings) {
    settings.style = Style::VirtualHost;
}

fn fetch(location: &str, options: &import::Options) -> Result<Vec<u8>, String> {
    let mut incoming = open(OsStr::new(location), options, &control()).map_err(|error| chain(&error))?;
    let mut out = Vec::new();
    incoming.read_to_end(&mut out).map_err(|error| chain(&error))?;
    Ok(out)
}

/// The error with its causes, as it would be printed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    assert!(!text.contains("canary") && !text.contains("Signature="), "{text}");
    text
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

fn gzipped(data: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("data");
    std::fs::write(&path, data).expect("writes");
    let done = Command::new("gzip").arg("-c").arg(&path).stderr(Stdio::null()).output().expect("gzip runs");
    assert!(done.status.success());
    done.stdout
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn both_styles_and_nested_keys_are_one_signed_get() {
    let s3 = S3::start();
    let data = sample(300_000);
    s3.put("images", "a/nested/key.raw", &data);
    s3.put("my.images", "dotted", b"in a bucket with dots");
    let line = Line::plain(&s3);
    assert!(fetch("s3://images/a/nested/key.raw", &options(&line, |_| ())).expect("path style") == data);
    assert!(fetch("s3://images/a/nested/key.raw", &options(&line, hosted)).expect("virtual host") == data);
    assert!(fetch("s3://my.images/dotted", &options(&line, |_| ())).is_ok());
    let log = line.log();
    assert_eq!(log.len(), 3, "{log:?}");
    assert!(log[0].starts_with("GET http://s3.test/images/a/nested/key.raw HTTP/1.1\r\n"), "{}", log[0]);
    assert_eq!(header(&log[0], "host"), Some(SERVICE));
    assert!(log[1].starts_with("GET http://images.s3.test/a/nested/key.raw HTTP/1.1\r\n"), "{}", log[1]);
    assert_eq!(header(&log[1], "host"), Some("images.s3.test"));
    for head in log {
        assert!(
            header(&head, "authorization").is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256 Credential=AK"))
        );
        assert_eq!(header(&head, "range"), None);
        assert!(!head.contains("canary"), "{head}");
    }
}

#[test]
fn odd_keys_name_what_they_say() {
    let s3 = S3::start();
    let line = Line::plain(&s3);
    let keys =
        ["a b", "a+b", "100%", "a%20b", "ü/日本語", "it's $(x) `y` \"z\"", "q?x=1&y=2", "h#f", "~(a)!*,;:@=[]{}|^\\"];
    for key in keys {
        s3.put("images", key, key.as_bytes());
        for style in [Style::Path, Style::VirtualHost] {
            let options = options(&line, |settings| settings.style = style);
            let found = fetch(&format!("s3://images/{key}"), &options);
            assert_eq!(found.as_deref(), Ok(key.as_bytes()), "{key} {style:?}");
        }
    }
}

#[test]
fn the_server_really_verifies() {
    let s3 = S3::start();
    s3.put("images", "a", b"image");
    s3.put("images", "b", b"another");
    let good = |line: &Line| fetch("s3://images/a", &options(line, |_| ()));
    let replaced =
        |old: &'static str, new: &'static str| Line::to(&s3, move |_, _| Deed::Replace(old.to_owned(), new.to_owned()));
    assert!(good(&Line::plain(&s3)).is_ok());
    for (old, new) in [("/images/a ", "/images/b "), ("x-amz-date: 2", "x-amz-date: 1"), ("Signature=", "Signature=0")]
    {
        let error = good(&replaced(old, new)).expect_err(old);
        assert!(error.starts_with("HTTP 4"), "{error}");
    }
}

#[test]
fn a_session_token_is_sent_and_signed() {
    let s3 = S3::start();
    s3.put("images", "a", b"image");
    let line = Line::plain(&s3);
    let temporary = |token: Option<&str>| {
        options(&line, |settings| {
            settings.access_key = Some(Secret::new(TEMPORARY.0));
            settings.secret_key = Some(Secret::new(TEMPORARY.1));
            settings.session_token = token.map(Secret::new);
        })
    };
    assert_eq!(fetch("s3://images/a", &temporary(Some(TEMPORARY.2))).as_deref(), Ok(&b"image"[..]));
    let error = fetch("s3://images/a", &temporary(None)).expect_err("no token");
    assert!(error.contains("(InvalidToken)"), "{error}");
    let log = line.log();
    assert_eq!(header(&log[0], "x-amz-security-token"), Some(TEMPORARY.2));
    let authorization = header(&log[0], "authorization").expect("signed");
    assert!(authorization.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"));
    assert_eq!(header(&log[1], "x-amz-security-token"), None);
}

#[test]
fn failures_say_what_the_service_calls_them() {
    let s3 = S3::start();
    s3.put("images", "a", b"image");
    let line = Line::plain(&s3);
    let error =
        |location: &str, change: fn(&mut Settings)| fetch(location, &options(&line, change)).expect_err("fails");
    assert_eq!(error("s3://images/none", |_| ()), "HTTP 404 Not Found (NoSuchKey) from http://s3.test/images/none");
    assert_eq!(error("s3://nobody/a", |_| ()), "HTTP 404 Not Found (NoSuchBucket) from http://s3.test/nobody/a");
    assert_eq!(
        error("s3://images/a", |settings| settings.secret_key = Some(Secret::new("canary-wrong"))),
        "HTTP 403 Forbidden (SignatureDoesNotMatch) from http://s3.test/images/a"
    );
    let unknown = error("s3://images/a", |settings| settings.access_key = Some(Secret::new("AKUNKNOWN")));
    assert!(unknown.starts_with("HTTP 403 Forbidden (NotSignedUp) from "), "{unknown}");
    assert_eq!(line.log().len(), 4, "none is tried again");
    let none = error("s3://images/a", |settings| settings.secret_key = None);
    assert_eq!(none, "Cannot read from s3://images/a: S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY are required");
    assert_eq!(line.log().len(), 4, "nothing was sent");
}

#[test]
fn what_a_server_says_is_not_repeated_blindly() {
    let s3 = S3::start();
    let answer = |body: &'static str, more: &'static str| {
        let line = Line::to(&s3, move |_, _| {
            Deed::Answer(format!("HTTP/1.1 400 Bad Request\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len()))
        });
        fetch("s3://images/a", &options(&line, |_| ())).expect_err("fails")
    };
    let plain = "HTTP 400 Bad Request from http://s3.test/images/a";
    for body in ["", "<Code>", "<Code></Code>", "<Code>a\nERROR: b</Code>", "<Code><b/></Code>", "no XML"] {
        assert_eq!(answer(body, ""), plain, "{body}");
    }
    let code = "<?xml version=\"1.0\"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>x</Message></Error>";
    assert_eq!(
        answer(code, "x-amz-bucket-region: eu-west-1\r\n"),
        "HTTP 400 Bad Request (AuthorizationHeaderMalformed: the bucket is in the region eu-west-1) from \
         http://s3.test/images/a"
    );
}

#[test]
fn a_cut_is_healed_with_a_new_signature() {
    let s3 = S3::start();
    let data = sample(900_000);
    s3.put("images", "a b", &data);
    let line = Line::to(&s3, |number, _| {
        // Signatures are of a second: the next request has another.
        std::thread::sleep(Duration::from_millis(if number == 0 { 1100 } else { 0 }));
        if number < 3 { Deed::Cut(250_000) } else { Deed::Pass }
    });
    let digest = Expected::new(Algorithm::Sha256, &sha256(&data)).expect("a digest");
    let options = import::Options { digests: vec![digest], ..options(&line, |_| ()) };
    assert!(fetch("s3://images/a b", &options).expect("healed") == data);
    let log = line.log();
    assert_eq!(log.len(), 4, "{log:?}");
    assert_eq!(header(&log[3], "range"), Some("bytes=750000-"));
    assert!(header(&log[3], "if-range").is_some_and(|value| value.starts_with('"')), "{}", log[3]);
    assert_ne!(header(&log[0], "authorization"), header(&log[1], "authorization"));
}

#[test]
fn an_object_that_changes_between_attempts_is_refused() {
    let s3 = S3::start();
    s3.put("images", "a", &sample(500_000));
    let root = s3.root();
    let line = Line::to(&s3, move |number, _| {
        if number == 0 {
            return Deed::Cut(200_000);
        }
        let mut other = sample(500_000);
        other.reverse();
        put(&root, "images", "a", &other);
        Deed::Pass
    });
    let error = fetch("s3://images/a", &options(&line, |_| ())).expect_err("changed");
    assert_eq!(error, "HTTP download of http://s3.test/images/a was cut, and its content has changed since");
}

#[test]
fn compressed_objects_are_unpacked_and_digests_are_of_what_came() {
    let s3 = S3::start();
    let data = sample(1_500_000);
    let packed = gzipped(&data);
    s3.put("images", "disk.without-suffix", &packed);
    let line = Line::plain(&s3);
    let digest = |hex: &str| Expected::new(Algorithm::Sha256, hex).expect("a digest");
    let with = |hex: &str| import::Options { digests: vec![digest(hex)], ..options(&line, |_| ()) };
    let location = "s3://images/disk.without-suffix";
    let mut incoming = open(OsStr::new(location), &with(&sha256(&packed)), &control()).expect("opens");
    assert_eq!(incoming.compression, Some(Compression::Gzip));
    assert_eq!(incoming.encoded_len, Some(packed.len() as u64));
    let mut out = Vec::new();
    incoming.read_to_end(&mut out).expect("reads");
    assert!(out == data);
    let error = fetch(location, &with(&sha256(&data))).expect_err("another digest");
    assert!(error.contains("Hash does not match"), "{error}");
    let sizes = size::Options { import: options(&line, |_| ()), max_download: 10 << 20 };
    let before = line.log().len();
    assert_eq!(size_of(OsStr::new(location), &sizes, &control()).expect("a size"), 1_500_000);
    assert_eq!(line.log().len() - before, 1);
}

#[test]
fn redirects_carry_no_signature_to_strangers() {
    let s3 = S3::start();
    s3.put("images", "a", b"image");
    let to = |target: &'static str| {
        move |number: usize, _: &str| match number {
            0 => Deed::Answer(format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
            )),
            _ => Deed::Pass,
        }
    };
    let line = Line::to(&s3, to("http://s3.test/images/a"));
    assert_eq!(fetch("s3://images/a", &options(&line, |_| ())).as_deref(), Ok(&b"image"[..]));
    assert_eq!(line.log().len(), 2);
    for target in ["http://evil.test/images/a", "http://s3.test/images/b", "https://s3.test.evil/images/a"] {
        let line = Line::to(&s3, to(target));
        let error = fetch("s3://images/a", &options(&line, |_| ())).expect_err(target);
        let text = format!(
            "HTTP redirect from http://s3.test/images/a to {target} refused: a signed request stays with the hosts of its bucket"
        );
        assert_eq!(error, text);
        assert_eq!(line.log().len(), 1, "{target}");
    }
}

// --- as oned calls it ---

fn house(line: &Line) -> House {
    let mut house = House::new();
    house.env = vec![("http_proxy".to_owned(), line.proxy())];
    house
}

fn market(more: &str) -> String {
    format!(
        "<MARKETPLACE><ID>3</ID><TEMPLATE><ACCESS_KEY_ID>{}</ACCESS_KEY_ID><SECRET_ACCESS_KEY>{}</SECRET_ACCESS_KEY>\
         <REGION>default</REGION><AWS>no</AWS><ENDPOINT>http://{SERVICE}</ENDPOINT>{more}</TEMPLATE></MARKETPLACE>",
        KEY.0, KEY.1
    )
}

fn document(house: &House, path: &str, beside: &str) -> String {
    let base = house.base.display().to_string();
    house.document_of(&format!("<PATH>{path}</PATH>"), "", &base, beside)
}

#[test]
fn an_image_is_registered_with_the_keys_of_its_marketplace() {
    let s3 = S3::start();
    let data = sample(3 << 20);
    s3.put("images", "apps/disk.gz", &gzipped(&data));
    let line = Line::plain(&s3);
    let house = house(&line);
    let ran = house.call("cp", &document(&house, "s3://images/apps/disk.gz", &market("")));
    let source = ran.source("cp");
    assert!(std::fs::read(&source).expect("an image") == data);
    assert_eq!(line.log().len(), 1, "one GET");
    let ran = house.call("stat", &document(&house, "s3://images/apps/disk.gz", &market("")));
    assert_eq!(ran.reply("stat"), "3");
    let hosted = market("<FORCE_PATH_STYLE>no</FORCE_PATH_STYLE>");
    house.call("cp", &document(&house, "s3://images/apps/disk.gz", &hosted)).source("virtual host");
    assert!(line.log().last().is_some_and(|head| header(head, "host") == Some("images.s3.test")));
}

#[test]
fn the_keys_of_the_environment_are_for_images_without_a_marketplace() {
    let s3 = S3::start();
    s3.put("images", "a", &sample(1 << 20));
    let line = Line::plain(&s3);
    let mut house = house(&line);
    let mut set = |name: &str, value: &str| house.env.push((name.to_owned(), value.to_owned()));
    set("AWS_ACCESS_KEY_ID", TEMPORARY.0);
    set("AWS_SECRET_ACCESS_KEY", TEMPORARY.1);
    set("AWS_SESSION_TOKEN", TEMPORARY.2);
    set("AWS_REGION", "eu-north-1");
    set("AWS_ENDPOINT_URL", &format!("http://{SERVICE}"));
    house.call("cp", &document(&house, "s3://images/a", "")).source("cp");
    assert!(header(&line.log()[0], "authorization").is_some_and(|value| value.contains("/eu-north-1/s3/aws4_request")));
    // A marketplace with keys gets nothing of it.
    house.call("cp", &document(&house, "s3://images/a", &market(""))).source("cp");
    assert_eq!(header(&line.log()[1], "x-amz-security-token"), None);
}

#[test]
fn a_failed_import_is_one_line_without_secrets_and_leaves_nothing() {
    let s3 = S3::start();
    s3.put("images", "a", &sample(1 << 20));
    let line = Line::plain(&s3);
    let house = house(&line);
    let wrong = market("").replace(KEY.1, "canary-wrong");
    for (location, beside, reason) in [
        ("s3://images/a", wrong.as_str(), "HTTP 403 Forbidden (SignatureDoesNotMatch) from http://s3.test/images/a"),
        ("s3://images/none", &market(""), "HTTP 404 Not Found (NoSuchKey) from http://s3.test/images/none"),
        ("s3://images/a", "", "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY are required"),
        ("s3://key:canary@images/a", &market(""), "the bucket's name may have"),
        ("s3://images/../a", &market(""), "the key has a part '.' or '..'"),
    ] {
        for action in ["cp", "stat"] {
            let ran = house.call(action, &document(&house, location, beside));
            let line = ran.failure(location);
            assert!(line.contains(reason), "{line}");
            assert!(!ran.text().contains("canary") && !ran.stdout.contains("canary"), "{}", ran.text());
            assert!(house.content().is_empty() && house.staged().is_empty(), "{location}");
        }
    }
}
