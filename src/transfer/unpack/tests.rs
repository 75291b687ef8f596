//! Archives as the usual programs make them, and as somebody makes them who wants to write elsewhere.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;
use crate::exec::control::Cancel;

/// A folder with an empty one in it, so that what leads outside is seen.
struct Lab {
    dir: tempfile::TempDir,
    into: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let into = dir.path().join("into");
        fs::create_dir(&into).expect("a folder");
        Self { dir, into }
    }

    fn tar(&self, bytes: &[u8], limits: Limits) -> Result<(), String> {
        let control = Control::new(Cancel::new());
        let mut stream = Cursor::new(bytes);
        let result = unpack(Source::Tar(&mut stream), &self.into, limits, &control).map_err(|e| chain(&e));
        assert!(result.is_err() || stream.position() == bytes.len() as u64, "read to its end");
        result
    }

    fn zip(&self, bytes: &[u8], limits: Limits) -> Result<(), String> {
        let path = self.dir.path().join("archive");
        fs::write(&path, bytes).expect("written");
        let file = File::open(path).expect("open");
        unpack(Source::Zip(&file), &self.into, limits, &Control::new(Cancel::new())).map_err(|e| chain(&e))
    }

    /// Nothing but the archive and the folder may be there.
    fn is_clean_outside(&self) -> bool {
        fs::read_dir(self.dir.path()).expect("a folder").all(|entry| {
            let name = entry.expect("an entry").file_name();
            name == "into" || name == "archive" || name == "source"
        })
    }
}

fn chain(error: &UnpackError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A header with a right checksum, and its data padded.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = [0; 512];
    block[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    block[100..107].copy_from_slice(b"0004755");
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[136..147].copy_from_slice(b"00000000017");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut all = block.to_vec();
    all.extend(data);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn tar_of(entries: &[Vec<u8>]) -> Vec<u8> {
    [&entries.concat()[..], &[0; 1024]].concat()
}

fn made(program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new(program).args(args).current_dir(dir).stderr(Stdio::inherit()).output().expect(program);
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// A name that needs ustar's prefix, and a header of its own elsewhere.
fn long(root: &Path) -> PathBuf {
    root.join("d").join("n".repeat(90)).join("m".repeat(90))
}

/// What an archive is made of: a tree with everything that may be in it.
fn sample(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    fs::create_dir_all(long(&source).parent().expect("a parent")).expect("folders");
    fs::write(source.join("a b\n'x"), "text").expect("a file");
    fs::set_permissions(source.join("a b\n'x"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    fs::write(long(&source), vec![7; 3 << 20]).expect("a file");
    fs::write(source.join("empty"), "").expect("a file");
    symlink("../a b\n'x", source.join("d/link")).expect("a link");
    fs::hard_link(source.join("empty"), source.join("second")).expect("a link");
    let sparse = File::create(source.join("sparse")).expect("a file");
    sparse.set_len(8 << 20).expect("its length");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 4 << 20).expect("written");
    source
}

fn is_sample(into: &Path) {
    assert_eq!(fs::read_to_string(into.join("a b\n'x")).expect("there"), "text");
    assert_eq!(fs::metadata(into.join("a b\n'x")).expect("there").permissions().mode() & 0o7777, 0o755);
    assert!(fs::read(long(into)).expect("there") == vec![7; 3 << 20]);
    assert_eq!(fs::read_link(into.join("d/link")).expect("a link"), Path::new("../a b\n'x"));
    let sparse = fs::read(into.join("sparse")).expect("there");
    assert_eq!((sparse.len(), &sparse[4 << 20..][..6]), (8 << 20, &b"middle"[..]));
    assert!(fs::metadata(into.join("sparse")).expect("there").blocks() * 512 < 4 << 20, "holes stay holes");
    assert_eq!(fs::read(into.join("second")).expect("there"), b"");
}

#[test]
fn what_tar_makes_is_unpacked() {
    for format in ["gnu", "posix", "ustar"] {
        for sparse in [&[][..], &["--sparse"]] {
            // ustar has no sparse files.
            if format == "ustar" && !sparse.is_empty() {
                continue;
            }
            let lab = Lab::new();
            let source = sample(lab.dir.path());
            let format_option = format!("--format={format}");
            let args = [&["-c", "-f", "-", "-C", "source", format_option.as_str()], sparse, &["."]].concat();
            let bytes = made("tar", &args, lab.dir.path());
            assert_eq!(Archive::detect(&bytes), Some(Archive::Tar), "{format}");
            let result = lab.tar(&bytes, Limits::default());
            if format == "posix" && !sparse.is_empty() {
                assert!(result.expect_err("not supported").contains("sparse file of the pax format"));
                continue;
            }
            assert_eq!(result, Ok(()), "{format} {sparse:?}");
            is_sample(&lab.into);
            let second = fs::metadata(lab.into.join("second")).expect("there");
            assert_eq!(second.ino(), fs::metadata(lab.into.join("empty")).expect("there").ino());
            let times = [&lab.into, &source].map(|dir| fs::metadata(dir.join("sparse")).expect("there").mtime());
            assert_eq!(times[0], times[1]);
        }
    }
}

#[test]
fn what_zip_makes_is_unpacked() {
    for option in ["-0", "-9", "-Zbzip2"] {
        let lab = Lab::new();
        sample(lab.dir.path());
        let source = lab.dir.path().join("source");
        made("zip", &["-q", "-r", "-y", option, "../archive", "."], &source);
        fs::rename(lab.dir.path().join("archive.zip"), lab.dir.path().join("archive")).expect("renamed");
        let bytes = fs::read(lab.dir.path().join("archive")).expect("there");
        assert_eq!(Archive::detect(&bytes), Some(Archive::Zip));
        assert_eq!(lab.zip(&bytes, Limits::default()), Ok(()), "{option}");
        is_sample(&lab.into);
    }
}

#[test]
fn members_that_lead_outside_are_refused() {
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("absolute name", vec![entry("/etc/x", b'0', "", b"x")]),
        ("leads outside by '..'", vec![entry("a/../../x", b'0', "", b"x")]),
        ("leads outside by '..'", vec![entry("..", b'5', "", b"")]),
        ("which is absolute", vec![entry("l", b'2', "/etc", b"")]),
        ("which leads outside", vec![entry("l", b'2', "../x", b"")]),
        ("which leads outside", vec![entry("a/b/l", b'2', "../../../x", b"")]),
        ("goes back on its way", vec![entry("l", b'2', "a/../../x", b"")]),
        // A deep link that leads up, and one through it.
        ("goes back", vec![entry("a/b/up", b'2', "../..", b""), entry("l", b'2', "a/b/up/../x", b"")]),
        // Through a link that leads to a folder inside.
        (
            "leads through a link",
            vec![entry("d", b'5', "", b""), entry("l", b'2', "d", b""), entry("l/x", b'0', "", b"x")],
        ),
        ("leads through a link", vec![entry("f", b'0', "", b"x"), entry("f/x", b'0', "", b"x")]),
        ("leads through a link", vec![entry("l", b'2', "d", b""), entry("l", b'5', "", b"")]),
        // A hard link gives a link another depth.
        ("no file unpacked before", vec![entry("a/b/up", b'2', "../..", b""), entry("up", b'1', "a/b/up", b"")]),
        ("no file unpacked before", vec![entry("h", b'1', "../archive", b"")]),
        ("no file unpacked before", vec![entry("h", b'1', "/etc/passwd", b"")]),
        ("no file unpacked before", vec![entry("h", b'1', "later", b""), entry("later", b'0', "", b"x")]),
        ("is a device", vec![entry("dev", b'3', "", b"")]),
        ("is a device", vec![entry("dev", b'4', "", b"")]),
        ("is a pipe", vec![entry("pipe", b'6', "", b"")]),
        ("of the unknown kind 'Z'", vec![entry("z", b'Z', "", b"")]),
        ("is a directory as well", vec![entry("d", b'5', "", b""), entry("d", b'0', "", b"x")]),
        ("leads outside", vec![entry("x", b'L', "", b"../x\0"), entry("y", b'0', "", b"x")]),
        ("leads outside", vec![entry("x", b'x', "", b"13 path=../x\n"), entry("y", b'0', "", b"x")]),
        ("which is absolute", vec![entry("x", b'K', "", b"/etc\0"), entry("y", b'2', "z", b"")]),
    ];
    for (why, entries) in cases {
        let lab = Lab::new();
        let error = lab.tar(&tar_of(&entries), Limits::default()).expect_err(why);
        assert!(error.contains(why) && error.starts_with("Member '"), "{why}: {error}");
        assert!(lab.is_clean_outside(), "{why}");
    }
}

#[test]
fn links_that_stay_inside_are_made_and_names_may_come_twice() {
    let lab = Lab::new();
    let entries = [
        entry("a/b/up", b'2', "../..", b""),
        entry("a/b/self", b'2', ".", b""),
        entry("l", b'2', "a/b/up/a", b""),
        entry("f", b'0', "", b"old"),
        entry("f", b'0', "", b"new"),
        entry("l", b'0', "", b"instead of a link"),
        entry("f", b'1', "f", b""),
        entry("./", b'5', "", b""),
    ];
    assert_eq!(lab.tar(&tar_of(&entries), Limits::default()), Ok(()));
    assert_eq!(fs::read(lab.into.join("f")).expect("there"), b"new");
    assert!(fs::symlink_metadata(lab.into.join("l")).expect("there").is_file());
    assert_eq!(fs::canonicalize(lab.into.join("a/b/up")).expect("inside"), lab.into.canonicalize().expect("there"));
}

#[test]
fn numbers_and_bytes_are_limited() {
    let many: Vec<_> = (0..12).map(|n| entry(&format!("f{n}"), b'0', "", b"0123456789")).collect();
    let lab = Lab::new();
    let error = lab.tar(&tar_of(&many), Limits { bytes: 1000, members: 10 }).expect_err("too many");
    assert!(error.contains("'f10' is one more than the 10 members that are allowed"), "{error}");
    let lab = Lab::new();
    let error = lab.tar(&tar_of(&many), Limits { bytes: 100, members: 100 }).expect_err("too much");
    assert!(error.contains("'f10' brings the archive to 110 bytes, 100 are allowed"), "{error}");
    // Folders on the way count, too.
    let deep = entry(&"d/".repeat(49), b'5', "", b"");
    assert!(
        Lab::new().tar(&tar_of(&[deep]), Limits { bytes: 0, members: 10 }).expect_err("deep").contains("10 members")
    );
    // A long name that claims gibibytes is not read into memory.
    let mut long = entry("x", b'L', "", b"");
    long[124..135].copy_from_slice(b"77777777777");
    let sum: u32 = long[..148].iter().chain(&long[156..512]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    long[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let error = Lab::new().tar(&tar_of(&[long]), Limits::default()).expect_err("too long");
    assert!(error.contains("extended header has 8589934591 bytes"), "{error}");
}

#[test]
fn a_cut_at_any_place_is_an_error() {
    let lab = Lab::new();
    let whole = tar_of(&[entry("a", b'0', "", &[1; 700]), entry("b", b'0', "", b"x")]);
    assert_eq!(lab.tar(&whole, Limits::default()), Ok(()));
    for cut in [1, 511, 512, 600, 1024, 1400, 1535, 1536, 2048, 2500, 2560] {
        let error = Lab::new().tar(&whole[..cut], Limits::default()).expect_err("cut");
        assert!(error.contains("cut short"), "{cut}: {error}");
    }
    let error = Lab::new().tar(&[&whole[..1536], &[b'x'; 512]].concat(), Limits::default()).expect_err("garbage");
    assert!(error.contains("Archive is damaged at member 'a': what follows is no header"), "{error}");
}

#[test]
fn damaged_and_hostile_zips_are_refused() {
    let lab = Lab::new();
    fs::write(lab.dir.path().join("source"), vec![b'x'; 5000]).expect("a file");
    made("zip", &["-q", "-9", "z.zip", "source"], lab.dir.path());
    let path = lab.dir.path().join("z.zip");
    let whole = fs::read(&path).expect("there");
    fs::remove_file(path).expect("removed");
    assert_eq!(lab.zip(&whole, Limits::default()), Ok(()));
    for cut in [10, whole.len() / 2, whole.len() - 1] {
        let error = Lab::new().zip(&whole[..cut], Limits::default()).expect_err("cut");
        assert!(error.contains("Archive is damaged: its directory is missing"), "{error}");
    }
    let central = whole.windows(4).rposition(|window| window == b"PK\x01\x02").expect("a directory");
    let with = |at: usize, bytes: &[u8]| {
        let mut other = whole.clone();
        other[at..at + bytes.len()].copy_from_slice(bytes);
        other
    };
    let cases: [(&str, Vec<u8>); 8] = [
        ("its checksum is wrong", with(central + 16, b"abcd")),
        ("does not hold the 4999 bytes", with(central + 24, &4999u32.to_le_bytes())),
        ("does not hold the 5001 bytes", with(central + 24, &5001u32.to_le_bytes())),
        ("is encrypted", with(central + 8, &[1, 0])),
        ("method 14", with(central + 10, &[14, 0])),
        ("not where the directory says", with(central + 42, &9u32.to_le_bytes())),
        ("leads outside by '..'", with(central + 46, b"../abc")),
        ("is a device", with(central + 40, &0o060_644u16.to_le_bytes())),
    ];
    for (why, bytes) in cases {
        let lab = Lab::new();
        let error = lab.zip(&bytes, Limits::default()).expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
        assert!(lab.is_clean_outside(), "{why}");
    }
    let error = Lab::new().zip(&whole, Limits { bytes: 4999, members: 1 }).expect_err("too much");
    assert!(error.contains("5000 bytes, 4999 are allowed"), "{error}");
}

#[test]
fn disk_images_are_no_archives() {
    assert_eq!(Archive::detect(&[0; 512]), None);
    assert_eq!(Archive::detect(b"QFI\xfb"), None);
    let mut sector = [0x90; 512];
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(Archive::detect(&sector), None);
    assert_eq!(Archive::detect(b"PK\x05\x06 an empty one"), Some(Archive::Zip));
}
