//! Runs a script both ways on copies of a tree, and makes what came of it comparable.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use onestore::exec::cmd::{Cmd, Secret};
use onestore::exec::control::Control;
use onestore::exec::error::{OpError, OpErrorKind};
use onestore::exec::interpret::{self, Input, Io};
use onestore::exec::lock::LockDir;
use onestore::exec::op::{FileKind, Op, Script, Sparse, Value};
use onestore::exec::posix;
use onestore::exec::process::{self, ProcessErrorKind, ProcessIo, Programs, Spawn, Stdin};
use onestore::exec::staging::Owner;

/// What came of a script: its answers or its failure, what it sent, and the tree afterwards.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub result: Result<Vec<Value>, (Option<usize>, OpErrorKind, String)>,
    pub sent: Vec<u8>,
    pub tree: Vec<Entry>,
}

/// One object of a tree.
#[derive(Debug, PartialEq)]
pub struct Entry {
    pub path: PathBuf,
    pub kind: FileKind,
    pub mode: u32,
    pub links: u64,
    /// Content of a file, as long as it is short; text of a link.
    pub content: Vec<u8>,
    pub size: u64,
    /// Whether a large file occupies less than half of its size.
    pub sparse: bool,
}

pub fn control() -> Control {
    Control::only_within(Duration::from_secs(120))
}

pub fn entries(root: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let data = fs::symlink_metadata(&path).expect("is there");
            let kind = FileKind::of_mode(data.mode());
            let content = match kind {
                FileKind::File if data.len() <= 1 << 20 => fs::read(&path).expect("readable"),
                FileKind::File => digest(&path),
                FileKind::Link => fs::read_link(&path).expect("link").as_os_str().as_bytes().to_vec(),
                _ => Vec::new(),
            };
            if kind == FileKind::Dir {
                todo.push(path.clone());
            }
            let is_file = kind == FileKind::File;
            found.push(Entry {
                kind,
                mode: data.mode() & 0o7777,
                links: if is_file { data.nlink() } else { 0 },
                content: without_root(&content, root),
                size: if is_file { data.len() } else { 0 },
                sparse: is_file && data.len() >= 1 << 20 && data.blocks() * 512 < data.len() / 2,
                path: path.strip_prefix(root).expect("inside").to_owned(),
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The content of a large file, its zeroes counted instead of kept.
pub fn digest(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).expect("readable");
    let blocks = bytes.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    blocks.flat_map(|(at, block)| [&at.to_le_bytes()[..], block].concat()).collect()
}

pub fn without_root(bytes: &[u8], root: &Path) -> Vec<u8> {
    let root = root.as_os_str().as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(root.len()).position(|window| window == root) {
        out.extend_from_slice(&rest[..at]);
        out.push(b'@');
        rest = &rest[at + root.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Takes away what differs between two copies of one tree: the root's name, inode numbers, the order of names.
pub fn normal(values: Vec<Value>, root: &Path) -> Vec<Value> {
    let one = |value| match value {
        Value::Stat(mut stat) => {
            stat.ino = 0;
            // Sizes of directories are the file system's business.
            stat.size = if stat.kind == FileKind::Dir { 0 } else { stat.size };
            Value::Stat(stat)
        }
        Value::Bytes(bytes) => Value::Bytes(without_root(&bytes, root)),
        Value::Tree(mut nodes) => {
            for node in &mut nodes {
                node.size = if node.kind == FileKind::Dir { 0 } else { node.size };
                node.allocated = 0;
            }
            for link in nodes.iter_mut().filter_map(|node| node.link.as_mut()) {
                *link = PathBuf::from(OsString::from_vec(without_root(link.as_os_str().as_bytes(), root)));
            }
            Value::Tree(nodes)
        }
        Value::Names(mut names) => {
            names.sort();
            Value::Names(names)
        }
        value => value,
    };
    values.into_iter().map(one).collect()
}

pub fn outcome(result: Result<Vec<Value>, OpError>, sent: Vec<u8>, root: &Path) -> Outcome {
    let result = result.map(|values| normal(values, root)).map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n') && !text.contains("os error"), "one plain line: {text}");
        let text = String::from_utf8_lossy(&without_root(text.as_bytes(), root)).into_owned();
        let kind = match error.kind.clone() {
            // The words are compared in the text.
            OpErrorKind::Program { status, .. } => OpErrorKind::Program { status, stderr: String::new() },
            kind => kind,
        };
        (error.index, kind, text)
    });
    Outcome { result, sent, tree: entries(root) }
}

pub fn locks(root: &Path) -> PathBuf {
    root.join("locks")
}

pub fn in_process(script: &Script, root: &Path, input: Option<&[u8]>) -> Outcome {
    let mut sent = Vec::new();
    let mut stream = Cursor::new(input.unwrap_or_default());
    let io = Io {
        input: input.is_some().then_some(Input::Stream(&mut stream)),
        output: Some(&mut sent),
        locks: LockDir::at(locks(root)),
    };
    let result = interpret::run(script, io, &Programs::default(), &control());
    outcome(result, sent, root)
}

pub fn as_sh(shell: &str, script: &Script, root: &Path, input: Option<&[u8]>) -> Outcome {
    let (command, line) = posix::delivery(script);
    // A login shell gets the command; the script itself runs under the same kind of shell, whatever `sh` is here.
    let command = command.replace("exec sh", &format!("exec {shell}"));
    let mut spawn = Spawn::of(&Cmd::new(shell).arg("-c").arg(command), &Programs::default()).expect("a shell");
    let lock_dir = locks(root).to_str().expect("plain").to_owned();
    spawn.env.push(("ONESTORE_LOCK_DIR".to_owned(), Secret::new(lock_dir)));
    let mut stream = Cursor::new(line).chain(input.unwrap_or_default());
    let io = ProcessIo { stdin: Stdin::Stream(&mut stream), ..ProcessIo::default() };
    let (result, sent) = match process::run(&spawn, io, &control()) {
        Ok(done) if script.sends() => (posix::parse(script, &done.stdout), done.stdout),
        Ok(done) => (posix::parse(script, &done.stdout), Vec::new()),
        Err(error) => {
            let status = match error.kind {
                ProcessErrorKind::Status(status) => Some(status),
                _ => None,
            };
            return outcome(Err(posix::failure(script, status, error.stderr.as_bytes())), Vec::new(), root);
        }
    };
    outcome(result.map_err(OpError::from), sent, root)
}

/// Runs a script both ways, compares, and returns what came of it.
pub fn both(plant: impl Fn(&Path), script: impl Fn(&Path) -> Vec<Op>, input: Option<&[u8]>) -> Outcome {
    both_scripts(plant, |root| Script::new(script(root)), input)
}

/// The same for scripts that are more than their operations.
pub fn both_scripts(plant: impl Fn(&Path), script: impl Fn(&Path) -> Script, input: Option<&[u8]>) -> Outcome {
    let fresh = || {
        let temp = tempfile::tempdir().expect("temp");
        plant(temp.path());
        temp
    };
    let temp = fresh();
    let here = in_process(&script(temp.path()), temp.path(), input);
    for shell in ["dash", "bash"] {
        let temp = fresh();
        let there = as_sh(shell, &script(temp.path()), temp.path(), input);
        assert_eq!(here.result, there.result, "{shell}: left in process, right as sh");
        if here.result.is_ok() {
            assert_eq!(here.sent, there.sent, "{shell}");
        }
        assert_eq!(here.tree, there.tree, "{shell}: left in process, right as sh");
    }
    here
}

impl Outcome {
    pub fn values(&self) -> &[Value] {
        self.result.as_ref().expect("success")
    }

    pub fn failed(&self, index: usize, kind: &OpErrorKind, text: &str) {
        let (at, of, said) = self.result.as_ref().expect_err("failure");
        assert_eq!((at, of, said.as_str()), (&Some(index), kind, text));
    }

    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.tree.iter().find(|entry| entry.path == Path::new(path))
    }

    pub fn names(&self) -> Vec<String> {
        self.tree.iter().map(|entry| entry.path.display().to_string()).collect()
    }
}

pub const AWKWARD: [&[u8]; 6] = [b"-n", b"it's", b"two\nlines\n", b"\xff\xfe", b"$(x) `y` \\", "größe".as_bytes()];

/// A tree with some of everything.
pub fn garden(root: &Path) {
    fs::create_dir_all(root.join("d/e")).expect("mkdir");
    fs::create_dir(root.join("empty")).expect("mkdir");
    fs::write(root.join("a"), b"content of a\n").expect("write");
    fs::write(root.join("d/b"), b"content of b\0\xff").expect("write");
    fs::set_permissions(root.join("d/b"), fs::Permissions::from_mode(0o640)).expect("chmod");
    fs::hard_link(root.join("d/b"), root.join("d/e/b2")).expect("ln");
    symlink("a", root.join("link")).expect("ln");
    symlink("nowhere", root.join("dangling")).expect("ln");
    symlink("d", root.join("dirlink")).expect("ln");
    for name in AWKWARD {
        fs::write(root.join(OsStr::from_bytes(name)), name).expect("write");
    }
    let mut big = File::create(root.join("big")).expect("create");
    big.write_all(&[7; 5000]).expect("write");
    big.set_len(3 << 20).expect("truncate");
}

pub fn cp(from: PathBuf, to: PathBuf) -> Op {
    Op::Copy { from, to, sparse: Sparse::Holes }
}

pub fn rm(path: PathBuf, tree: bool, must_exist: bool) -> Op {
    Op::Remove { path, tree, must_exist }
}

/// By the program, so that neither interpreter is its own witness.
pub fn md5_of(bytes: &[u8]) -> String {
    let spawn = Spawn::of(&Cmd::new("md5sum"), &Programs::default()).expect("md5sum");
    let io = ProcessIo { stdin: Stdin::Bytes(bytes.to_vec()), ..ProcessIo::default() };
    let done = process::run(&spawn, io, &control()).expect("runs");
    String::from_utf8_lossy(&done.stdout[..32]).into_owned()
}

/// An owner that is dead for certain: another process start under our own number.
pub fn dead_tag() -> String {
    let me = Owner::me().expect("proc").tag();
    let (rest, epoch) = me.rsplit_once('-').expect("six parts");
    let (rest, start) = rest.rsplit_once('-').expect("six parts");
    let start = u64::from_str_radix(start, 16).expect("hexadecimal");
    format!("{rest}-{:x}-{epoch}", start + 1)
}
