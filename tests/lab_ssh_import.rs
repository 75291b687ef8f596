//! Images from other machines over a real sshd: `cargo test --test lab_ssh_import -- --ignored`.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use onestore::exec::control::{Cancel, Control};
use onestore::transfer::import::{self, open};
use onestore::transfer::source::PathPolicy;

#[path = "faults/house.rs"]
#[allow(dead_code)]
mod house;
#[path = "lab/sshd.rs"]
#[allow(dead_code)]
mod sshd;

use house::{House, finish};
use sshd::{Sshd, with_argument, within};

fn control() -> Control {
    Control::new(Cancel::new()).within(Duration::from_secs(120))
}

fn options(lab: &Sshd) -> import::Options {
    import::Options { programs: lab.programs(), ..import::Options::default() }
}

fn fetch(location: &str, options: &import::Options) -> Result<Vec<u8>, String> {
    let mut incoming = open(OsStr::new(location), options, &control()).map_err(|error| chain(&error))?;
    let mut out = Vec::new();
    incoming.read_to_end(&mut out).map_err(|error| chain(&error))?;
    Ok(out)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|at| at.wrapping_mul(0x9E37_79B9).to_be_bytes()[5]).collect()
}

/// The port that the server listens on, from the key that is known for it.
fn port(lab: &Sshd) -> String {
    let known = fs::read_to_string(lab.path("known_hosts")).expect("reads");
    let (_, rest) = known.split_once("]:").expect("a port");
    rest.split(' ').next().expect("a port").to_owned()
}

/// Puts this binary where a synced remotes tree has it.
fn sync_agent(lab: &Sshd) {
    fs::create_dir_all(lab.path("remotes/onestore")).expect("makes");
    fs::copy(env!("CARGO_BIN_EXE_onestore"), lab.path("remotes/onestore/onestore")).expect("copies");
}

/// A front-end whose ssh goes to the lab.
fn house(lab: &Sshd) -> House {
    let mut house = House::new();
    house.env = vec![("SSH".to_owned(), format!("ssh -F {}", lab.path("ssh_config").display()))];
    house
}

fn document(house: &House, location: &str, template: &str) -> String {
    house.document(&format!("<PATH><![CDATA[{location}]]></PATH>"), template)
}

#[test]
#[ignore = "needs sshd"]
fn names_are_taken_letter_by_letter_in_both_forms() {
    let lab = Sshd::start("");
    fs::create_dir(lab.path("data")).expect("makes");
    for far_side in ["sh", "agent"] {
        for (at, name) in ["plain", "a b", "it's \"x\"", "* ? [a]", "$(touch no) `id`", "-n", "ü", "a\\b", "100% #?&;|"]
            .into_iter()
            .enumerate()
        {
            let path = lab.path("data").join(name);
            fs::write(&path, name).expect("writes");
            let host = if at % 2 == 0 { "lab" } else { "root@lab:" };
            let location = format!("ssh://{host}{}", path.display());
            assert_eq!(fetch(&location, &options(&lab)).as_deref(), Ok(name.as_bytes()), "{far_side} {location}");
        }
        let image = sample(9 << 20);
        fs::write(lab.path("data/image"), &image).expect("writes");
        let location = format!("ssh://lab{}", lab.path("data/image").display());
        let mut incoming = open(OsStr::new(&location), &options(&lab), &control()).expect("opens");
        assert_eq!(incoming.image_len(), Some(9 << 20), "{far_side}");
        let mut arrived = Vec::new();
        incoming.read_to_end(&mut arrived).expect("reads");
        assert!(arrived == image, "{far_side}");
        if far_side == "sh" {
            sync_agent(&lab);
        }
    }
}

#[test]
#[ignore = "needs sshd"]
fn a_port_is_one_of_the_address() {
    let lab = Sshd::start("");
    fs::write(lab.path("image"), "image").expect("writes");
    let path = lab.path("image");
    let real = port(&lab);
    // The configuration leads nowhere.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    lab.configure(&format!("Port {closed}"));
    let good = format!("ssh://root@lab:{real}{}", path.display());
    assert_eq!(fetch(&good, &options(&lab)).as_deref(), Ok(&b"image"[..]));
    let none = fetch(&format!("ssh://lab{}", path.display()), &options(&lab)).expect_err("refused");
    assert!(none.contains("Cannot reach lab by ssh: Connection refused"), "{none}");
}

#[test]
#[ignore = "needs sshd"]
fn images_are_registered_and_sized() {
    let lab = Sshd::start("");
    let house = house(&lab);
    let image = sample(3 << 20);
    fs::write(lab.path("disk one.raw"), &image).expect("writes");
    let packed = std::process::Command::new("gzip").arg("-kc").arg(lab.path("disk one.raw")).output().expect("gzip");
    fs::write(lab.path("packed"), packed.stdout).expect("writes");
    for name in ["disk one.raw", "packed"] {
        let document = document(&house, &format!("ssh://lab:{}", lab.path(name).display()), "");
        assert_eq!(house.call("stat", &document).reply(name), "3");
        let ran = house.call("cp", &document);
        assert!(ran.reply(name).ends_with(" raw"));
        assert!(fs::read(ran.source(name)).expect("an image") == image, "{name}");
    }
    assert_eq!(house.staged(), Vec::<String>::new());
    assert!(within(10, || with_argument(&lab.path("ssh_config").display().to_string()).is_empty()));
}

#[test]
#[ignore = "needs sshd"]
fn every_failure_is_one_line_that_says_which() {
    let lab = Sshd::start("");
    let house = house(&lab);
    fs::write(lab.path("image"), "image").expect("writes");
    let at = |name: &str| format!("ssh://lab{}", lab.path(name).display());
    let check = |location: &str, reason: &str| {
        for action in ["cp", "stat"] {
            let line = house.call(action, &document(&house, location, "")).failure(location);
            assert!(line.contains(reason), "{action} {location}: {line}");
            assert!(house.content().is_empty() && house.staged().is_empty(), "{action} {location}");
        }
    };
    for _ in ["sh", "agent"] {
        check(&at("none"), &format!("Cannot read from {}: No such file or directory", at("none")));
        check(&at("image/none"), "Not a directory");
        check("ssh://lab/", "The path has to be absolute and to name a file");
        check("ssh://lab/tmp", "It is a directory, not a file or block device");
        check("ssh://lab/dev/null", "It is a character device, not a file or block device");
        sync_agent(&lab);
    }
    check("ssh://-oProxyCommand=x/y", "The host's name has characters that none can have");
    check("ssh://lab:99999/y", "The port has to be a number from 1 to 65535");
    check("ssh://nosuch.invalid/y", "Cannot reach nosuch.invalid by ssh: ");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    check(&format!("ssh://lab:{closed}/y"), "Cannot reach lab by ssh: Connection refused");
    lab.write_known_hosts("otherkey");
    check(&at("image"), "Host key verification failed: the host shows another key than known_hosts lists");
    fs::write(lab.path("known_hosts"), "").expect("writes");
    check(&at("image"), "Host key verification failed: No ED25519 host key is known");
}

#[test]
#[ignore = "needs sshd"]
fn a_file_that_the_login_cannot_read_says_so() {
    // Root reads everything: over there it runs as somebody else.
    let user = "ForceCommand exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c \"$SSH_ORIGINAL_COMMAND\"";
    let lab = Sshd::start(user);
    let secret = lab.path("secret");
    fs::write(&secret, "x").expect("writes");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("chmod");
    fs::set_permissions(lab.path(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    let error = fetch(&format!("ssh://lab{}", secret.display()), &options(&lab)).expect_err("not readable");
    assert_eq!(error, format!("Cannot read from ssh://lab{}: Permission denied", secret.display()));
}

#[test]
#[ignore = "needs sshd"]
fn the_rules_of_local_files_hold_over_there() {
    let lab = Sshd::start("");
    let house = house(&lab);
    for dir in ["secret", "open"] {
        fs::create_dir(lab.path(dir)).expect("makes");
        fs::write(lab.path(dir).join("image"), "image").expect("writes");
    }
    symlink(lab.path("secret/image"), lab.path("open/link")).expect("links");
    symlink(lab.path("secret"), lab.path("open/folder")).expect("links");
    let restricted = format!("<RESTRICTED_DIRS>{}</RESTRICTED_DIRS>", lab.path("secret").display());
    let refused = |path: &Path, template: &str| {
        let location = format!("ssh://lab{}", path.display());
        let sentence = format!("Not allowed to copy image from {location}, check RESTRICTED_DIRS in your datastore");
        for action in ["cp", "stat"] {
            let line = house.call(action, &document(&house, &location, template)).failure(&location);
            assert!(line.ends_with(&sentence), "{action}: {line}");
            assert!(house.content().is_empty());
        }
    };
    for _ in ["sh", "agent"] {
        for path in ["secret/image", "secret/none", "secret", "open/link", "open/folder/image", "open/../secret/image"]
        {
            refused(&lab.path(path), &restricted);
        }
        // Built in: the cloud's files, disks of other users among them, and the home directory of the login.
        for path in ["/var/lib/one/datastores/0/1/disk.0", "/etc/one/oned.conf"] {
            refused(Path::new(path), "");
        }
        refused(&lab.path("home/.ssh/id_ed25519"), "");
        // As a new datastore is made: everything but what is safe.
        let usual =
            format!("<RESTRICTED_DIRS>/</RESTRICTED_DIRS><SAFE_DIRS>{}</SAFE_DIRS>", lab.path("open").display());
        refused(&lab.path("secret/image"), &usual);
        refused(&lab.path("open/link"), &usual);
        let good = format!("ssh://lab{}", lab.path("open/image").display());
        // The document's own SAFE_DIRS stands first and wins; so this one says it all by itself.
        let base = house.base.display().to_string();
        let safe = house.document_of(&format!("<PATH>{good}</PATH>"), "", &base, "").replace(
            "</SAFE_DIRS>",
            &format!(" {}</SAFE_DIRS><RESTRICTED_DIRS>/</RESTRICTED_DIRS>", lab.path("open").display()),
        );
        let source = house.call("cp", &safe).source("safe");
        fs::remove_file(source).expect("removes");
        sync_agent(&lab);
    }
    // A caller without rules, as the markets' downloader: what lies in a datastore is what it is there for.
    let exported = lab.path("var/lib/one/datastores/1");
    fs::create_dir_all(&exported).expect("makes");
    fs::write(exported.join("abc"), "image").expect("writes");
    let location = format!("ssh://lab:{}//abc", exported.display());
    assert_eq!(fetch(&location, &options(&lab)).as_deref(), Ok(&b"image"[..]));
    let policy = PathPolicy { safe: Vec::new(), restricted: vec![exported] };
    assert!(fetch(&location, &import::Options { policy, ..options(&lab) }).is_err());
}

#[test]
#[ignore = "needs sshd"]
fn a_connection_that_breaks_leaves_nothing() {
    let lab = Sshd::start("");
    let house = house(&lab);
    fs::write(lab.path("image"), sample(64 << 20)).expect("writes");
    let location = format!("ssh://lab{}", lab.path("image").display());
    for _ in ["sh", "agent"] {
        let mut incoming = open(OsStr::new(&location), &options(&lab), &control()).expect("opens");
        lab.cut_connections();
        let error = io::copy(&mut incoming, &mut io::sink()).expect_err("cut");
        assert!(error.to_string().starts_with("Lost the connection to lab"), "{error}");

        let slow = "<LIMIT_TRANSFER_BW>4m</LIMIT_TRANSFER_BW>";
        let running = house.start_call("cp", &document(&house, &location, slow));
        let grows = || house.staged().iter().any(|name| size_of(&house.base.join(".onestore").join(name)) > 1 << 20);
        assert!(within(20, grows));
        lab.cut_connections();
        let line = finish(running).failure("cut");
        assert!(line.contains("Lost the connection to lab"), "{line}");
        assert!(house.content().is_empty() && house.staged().is_empty());
        sync_agent(&lab);
    }
    assert!(within(20, || with_argument(&lab.path("ssh_config").display().to_string()).is_empty()));
}

fn size_of(path: &PathBuf) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

#[test]
#[ignore = "needs sshd"]
fn a_reader_that_has_seen_enough_ends_the_connection() {
    let lab = Sshd::start("");
    fs::write(lab.path("image"), sample(64 << 20)).expect("writes");
    let location = format!("ssh://lab{}", lab.path("image").display());
    drop(open(OsStr::new(&location), &options(&lab), &control()).expect("opens"));
    assert!(within(20, || with_argument(&lab.path("ssh_config").display().to_string()).is_empty()));
    assert!(within(20, || lab.sessions().is_empty()));
}
