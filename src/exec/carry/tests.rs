//! Journeys between two folders of one machine: the driving end is both ends, no ssh is needed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::exec::control::{Cancel, Control};
use crate::exec::process::Programs;

/// Data, zeroes that are written, or a hole; and the bytes of it.
#[derive(Clone, Debug)]
enum Piece {
    Data(u8, u32),
    Zeroes(u32),
    Hole(u32),
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let len = || prop_oneof![1..9000_u32, Just(1 << 20), Just((1 << 20) + 1), (1..700_u32).prop_map(|n| n * 4096)];
    let data = (1..=255_u8, len()).prop_map(|(byte, len)| Piece::Data(byte, len));
    prop::collection::vec(prop_oneof![data, len().prop_map(Piece::Zeroes), len().prop_map(Piece::Hole)], 0..6)
}

fn build(path: &Path, pieces: &[Piece]) {
    let file = File::create(path).expect("makes");
    let mut at = 0;
    for piece in pieces {
        let (byte, len) = match piece {
            Piece::Data(byte, len) => (Some(*byte), *len),
            Piece::Zeroes(len) => (Some(0), *len),
            Piece::Hole(len) => (None, *len),
        };
        if let Some(byte) = byte {
            file.write_all_at(&vec![byte; len as usize], at).expect("writes");
        }
        at += u64::from(len);
    }
    file.set_len(at).expect("extends");
}

fn go(carry: &Carry, control: &Control) -> io::Result<Report> {
    let mut said = Vec::new();
    drive::run(carry, &Programs::default(), control, &mut said)?;
    let text = String::from_utf8(said).expect("text");
    let report = text.lines().last().and_then(|line| line.strip_prefix("report ")).expect("a report").to_owned();
    Ok(serde_json::from_str(&report).expect("JSON"))
}

fn one(dir: &Path, sparse: Sparse) -> Carry {
    let files = vec![Freight { from: dir.join("from"), part: dir.join("to") }];
    Carry { source: None, target: None, files, sparse, streams: 2, zip: None, rate: None, ports: None }
}

fn control() -> Control {
    Control::only_within(Duration::from_secs(60))
}

fn arrived(report: Report) -> Arrived {
    match report {
        Report::Done(mut files) => files.remove(0),
        Report::Failed { why, text } => panic!("{why:?}: {text}"),
    }
}

/// Has the journal be one of an earlier boot.
fn booted(journal: &Path) {
    let mut bytes = fs::read(journal).expect("reads");
    let end = bytes.iter().position(|byte| *byte == b'\n').expect("a line");
    bytes[end - 1] = if bytes[end - 1] == b'0' { b'1' } else { b'0' };
    fs::write(journal, bytes).expect("writes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_arrives_is_what_left(pieces in pieces(), again in pieces(), damage in 0..3_000_000_u64, allocate: bool) {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        build(&from, &pieces);
        let carry = one(dir.path(), if allocate { Sparse::Allocate } else { Sparse::Holes });
        let first = arrived(go(&carry, &control()).expect("runs"));
        let bytes = fs::read(&from).expect("reads");
        prop_assert!(bytes == fs::read(&to).expect("reads"));
        prop_assert!(allocate || fs::metadata(&to).expect("there").blocks() <= fs::metadata(&from).expect("there").blocks() + 8);

        // Interrupted: the journal is there, and nothing is read or sent again.
        let same = arrived(go(&carry, &control()).expect("runs"));
        prop_assert_eq!((&first.digest, 0), (&same.digest, same.sent));
        prop_assert!(bytes == fs::read(&to).expect("reads"));

        // By a power cut: the part is not what the journal says, and the machine was booted since.
        booted(&journal_of(&to));
        let part = File::options().write(true).open(&to).expect("opens");
        if damage < bytes.len() as u64 {
            part.write_all_at(b"damage", damage.min(bytes.len() as u64 - 6.min(bytes.len() as u64))).expect("writes");
            part.set_len(bytes.len() as u64).expect("stays");
        }
        let second = arrived(go(&carry, &control()).expect("runs"));
        prop_assert!(bytes == fs::read(&to).expect("reads"));
        prop_assert_eq!((&first.digest, first.data), (&second.digest, second.data));
        prop_assert!(second.sent <= 1 << 20 , "{} of {} sent again", second.sent, first.sent);

        // Another source starts anew.
        fs::remove_file(&from).expect("there");
        build(&from, &again);
        arrived(go(&carry, &control()).expect("runs"));
        prop_assert!(fs::read(&from).expect("reads") == fs::read(&to).expect("reads"));
    }
}

#[test]
fn a_cancel_leaves_what_the_next_journey_goes_on_with() {
    let dir = tempfile::tempdir().expect("a directory");
    build(&dir.path().join("from"), &[Piece::Data(7, 40 << 20)]);
    let mut carry = one(dir.path(), Sparse::Holes);
    carry.rate = Some(40 << 20);
    let control = Control::new(Cancel::new());
    let stopped = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !fs::metadata(journal_of(&dir.path().join("to"))).is_ok_and(|data| data.len() > 200) {
                std::thread::sleep(Duration::from_millis(5));
            }
            control.cancel.set();
        });
        go(&carry, &control)
    });
    assert!(stopped.is_err());
    carry.rate = None;
    let done = arrived(go(&carry, &self::control()).expect("runs"));
    assert!(done.resumed > 0 && done.sent < 40 << 20, "{done:?}");
    assert!(fs::read(dir.path().join("from")).expect("reads") == fs::read(dir.path().join("to")).expect("reads"));
}

#[test]
fn a_copy_is_for_nobody_whom_the_original_was_not_for() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    build(&from, &[Piece::Data(1, 9)]);
    fs::set_permissions(&from, fs::Permissions::from_mode(0o400)).expect("a mode");
    arrived(go(&one(dir.path(), Sparse::Holes), &control()).expect("runs"));
    assert_eq!(fs::metadata(&to).expect("there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("from")).expect("makes");
    let report = go(&one(dir.path(), Sparse::Holes), &control()).expect("runs");
    assert!(matches!(report, Report::Failed { why: Why::Other, text } if text.ends_with("is no regular file")));
    assert!(!dir.path().join("to").exists());
    fs::remove_dir(dir.path().join("from")).expect("removes");
    build(&dir.path().join("from"), &[Piece::Data(1, 9)]);
    fs::write(dir.path().join("elsewhere"), "kept").expect("writes");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("to")).expect("links");
    let report = go(&one(dir.path(), Sparse::Holes), &control()).expect("runs");
    assert!(matches!(report, Report::Failed { .. }), "a link is not written through");
    assert_eq!(fs::read(dir.path().join("elsewhere")).expect("reads"), b"kept");
}

#[test]
fn journals_of_staging_files_are_staging_files_of_the_same_owner() {
    let me = crate::exec::staging::Owner::me().expect("proc");
    let part = crate::exec::staging::staging_path(Path::new("/ds"), &me, &crate::exec::staging::journey_name("ab"));
    let journal = journal_of(&part);
    assert_eq!(crate::exec::staging::owner_of(journal.file_name().expect("a name")), Some(me));
    assert_ne!(journal, part);
    assert_eq!(journal_of(Path::new("/a/b")), Path::new("/a/b.journal"));
}

/// Streams beside ssh, to a door of this machine.
mod beside {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
    use std::time::Instant;

    use openssl::asn1::Asn1Time;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::ssl::{SslAcceptor, SslMethod};
    use openssl::x509::X509Builder;

    use super::super::door::{Door, Ends};
    use super::super::lane::{Key, Lane};
    use super::super::link::Link;
    use super::super::peer::{Files, opened};
    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ENDS: Ends = Ends { here: HOME, there: HOME };

    fn door(dir: &Path, key: &Key, ends: Ends) -> Door {
        // Not among the ports that the system gives to anybody.
        let payload = [&21_000_u16.to_le_bytes()[..], &21_499_u16.to_le_bytes(), key.reveal()].concat();
        let files = Files { reads: vec![dir.join("from")], writes: vec![dir.join("to")] };
        opened(&payload, &files, ends, &control()).expect("a port")
    }

    fn key() -> Key {
        Key::new().expect("random bytes")
    }

    fn lane(port: u16, key: &Key) -> io::Result<Lane> {
        let socket = TcpStream::connect((HOME, port))?;
        Lane::over(socket, key, Instant::now() + Duration::from_secs(5), &control())
    }

    fn link(port: u16, key: &Key) -> Link {
        Link::along(lane(port, key).expect("a lane"), "far", false).expect("a greeting")
    }

    fn refused(port: u16, key: &Key) -> String {
        match lane(port, key) {
            Ok(_) => panic!("let in"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn frames_go_by_a_lane_as_they_go_by_ssh() {
        let dir = tempfile::tempdir().expect("a directory");
        build(&dir.path().join("from"), &[Piece::Data(7, 3 << 20), Piece::Hole(5 << 20), Piece::Data(9, 5000)]);
        let key = key();
        let door = door(dir.path(), &key, ENDS);
        let mut far = link(door.port(), &key);
        let mut near = store::Store::new(vec![dir.path().join("from")], Vec::new());
        let identity = near.stat(0).expect("there");
        far.begin(0, Begin { identity, allocate: false, first: true }).expect("begins");
        let mut packed = Packed::default();
        for at in store::ranges(&near.map(0).expect("maps"), &identity) {
            near.take(0, at, &mut packed).expect("reads");
            far.put(0, at, &packed, at % 2 == 0).expect("writes");
        }
        far.sync().expect("syncs");
        assert_eq!(fs::read(dir.path().join("from")).expect("reads"), fs::read(dir.path().join("to")).expect("reads"));
        link(door.port(), &key).ping().expect("another one at the same door");
        assert!(!far.is_worn());
        far.worn = lane::MOST;
        assert!(far.is_worn());
        // With the door its streams end, and nobody else comes in.
        let port = door.port();
        drop(door);
        assert!(far.ping().is_err());
        assert!(TcpStream::connect((HOME, port)).is_err());
    }

    #[test]
    fn what_a_peer_says_last_is_heard() {
        let dir = tempfile::tempdir().expect("a directory");
        build(&dir.path().join("from"), &[Piece::Data(7, 1 << 20)]);
        let key = key();
        let door = door(dir.path(), &key, ENDS);
        let mut far = link(door.port(), &key);
        let mut near = store::Store::new(vec![dir.path().join("from")], Vec::new());
        let identity = near.stat(0).expect("there");
        far.begin(0, Begin { identity, allocate: false, first: true }).expect("begins");
        let mut packed = Packed::default();
        near.take(0, 0, &mut packed).expect("reads");
        // There is no such range: the peer ends, and whoever drives writes on.
        let failure = (0..1000).find_map(|_| far.put(0, 99, &packed, false).err()).expect("it is told");
        assert!(failure.text.starts_with("far: ") && failure.text.contains("range"), "{failure}");
    }

    #[test]
    fn who_has_not_got_the_key_gets_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        build(&dir.path().join("from"), &[Piece::Data(7, 1 << 20)]);
        let key = key();
        assert_eq!(format!("{key:?}"), "***");
        let open = door(dir.path(), &key, ENDS);
        let text = refused(open.port(), &self::key());
        assert!(text.starts_with("The handshake failed: "), "{text}");
        // Without any key.
        let tls = openssl::ssl::SslConnector::builder(SslMethod::tls_client()).expect("TLS").build();
        let socket = TcpStream::connect((HOME, open.port())).expect("connects");
        let config = tls.configure().expect("TLS").verify_hostname(false).use_server_name_indication(false);
        assert!(config.connect("localhost", socket).is_err());
        // From another machine than the one that ssh came from.
        let elsewhere = door(dir.path(), &key, Ends { here: HOME, there: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)) });
        refused(elsewhere.port(), &key);
        link(open.port(), &key);
    }

    #[test]
    fn a_certificate_is_no_key() {
        let pair = PKey::from_ec_key(
            openssl::ec::EcKey::generate(
                &openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).expect("a curve"),
            )
            .expect("a key"),
        );
        let pair = pair.expect("a key");
        let mut certificate = X509Builder::new().expect("a certificate");
        certificate.set_pubkey(&pair).expect("a certificate");
        certificate.set_not_before(&Asn1Time::days_from_now(0).expect("a time")).expect("a certificate");
        certificate.set_not_after(&Asn1Time::days_from_now(1).expect("a time")).expect("a certificate");
        certificate.sign(&pair, MessageDigest::sha256()).expect("signs");
        let mut server = SslAcceptor::mozilla_modern_v5(SslMethod::tls_server()).expect("TLS");
        server.set_private_key(&pair).expect("TLS");
        server.set_certificate(&certificate.build()).expect("TLS");
        let server = server.build();
        let listener = TcpListener::bind((HOME, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let thread = std::thread::spawn(move || {
            let (socket, _) = listener.accept().expect("somebody comes");
            server.accept(socket).is_ok()
        });
        refused(port, &key());
        assert!(!thread.join().expect("ends"));
    }

    #[test]
    fn strangers_neither_come_in_nor_keep_others_out() {
        let dir = tempfile::tempdir().expect("a directory");
        build(&dir.path().join("from"), &[Piece::Data(7, 1 << 20)]);
        let key = key();
        let door = door(dir.path(), &key, ENDS);
        let stranger = || TcpStream::connect((HOME, door.port())).expect("connects");
        let mut scanners: Vec<TcpStream> = (0..8).map(|_| stranger()).collect();
        for (at, scanner) in scanners.iter_mut().enumerate() {
            // Some say nothing, some what they say to everybody.
            if at % 2 == 0 {
                scanner.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("writes");
            }
        }
        let begun = Instant::now();
        link(door.port(), &key).ping().expect("answers");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // As many as there is room for, and more: they are sent away, and the others have two seconds.
        scanners.extend((0..40).map(|_| stranger()));
        for scanner in &mut scanners {
            scanner.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
            let mut said = Vec::new();
            let _ = scanner.read_to_end(&mut said);
            assert!(said.len() < 100, "an alert at most: {said:?}");
        }
        link(door.port(), &key).ping().expect("answers");
    }
}
