//! Everything below a directory as it is at one moment, and what must never be lost of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result};
use regex::Regex;
use rustix::fs::{SeekFrom, seek};

use crate::conformance::files::OURS;

/// Names of new images, which are drawn by lot.
static DRAWN: LazyLock<Regex> = LazyLock::new(|| Regex::new("[0-9a-f]{32}").expect("the expression is constant"));

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A symbolic link and its text.
    Link(String),
    /// A regular file.
    File {
        /// Digest of its bytes.
        digest: String,
        /// Its length.
        size: u64,
    },
    /// A pipe, a socket, a device.
    Other,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permissions; 0 for a link, which has none.
    pub mode: u32,
}

/// All paths below a root, relative to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The paths.
    pub paths: BTreeMap<String, Entry>,
}

impl State {
    /// Looks at everything below `root` but the harness's own places.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn take(root: &Path) -> Result<Self> {
        let mut state = Self::default();
        state.walk(root, root)?;
        Ok(state)
    }

    fn walk(&mut self, root: &Path, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("Cannot look at {}", dir.display()))? {
            let path = entry?.path();
            if OURS.iter().any(|own| path == root.join(own)) || path == root.join("lost+found") {
                continue;
            }
            let about = fs::symlink_metadata(&path)?;
            let mode = if about.is_symlink() { 0 } else { about.permissions().mode() & 0o7777 };
            let kind = if about.is_dir() {
                self.walk(root, &path)?;
                Kind::Dir
            } else if about.is_symlink() {
                Kind::Link(fs::read_link(&path)?.display().to_string())
            } else if about.is_file() {
                Kind::File { digest: digest(&path)?, size: about.size() }
            } else {
                Kind::Other
            };
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            self.paths.insert(name, Entry { kind, mode });
        }
        Ok(())
    }

    /// What a guest reads from each qcow2 image, by path; an image that cannot be read is left out.
    pub fn guests(&self, root: &Path) -> BTreeMap<String, String> {
        let files = self.paths.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }));
        files.filter_map(|(name, _)| Some((name.clone(), guest(&root.join(name))?))).collect()
    }

    /// The same, with names that are drawn by lot and were not in `before` as `NEW1`, `NEW2`…; `first` names the one
    /// that comes first. Gives what was replaced, too.
    pub fn with_names(&self, before: &Self, first: &str) -> (Self, Drawn) {
        let known: Vec<&str> = before.paths.keys().flat_map(|name| DRAWN.find_iter(name).map(|m| m.as_str())).collect();
        let mut drawn: Vec<String> = Vec::new();
        // Staging names hold the image's name too; they come and go.
        for name in self.paths.keys().filter(|name| !is_staging(name)) {
            for found in DRAWN.find_iter(name).map(|m| m.as_str().to_owned()) {
                if !known.contains(&found.as_str()) && !drawn.contains(&found) {
                    drawn.push(found);
                }
            }
        }
        if let Some(first) = DRAWN.find_iter(first).last()
            && let Some(at) = drawn.iter().position(|name| name == first.as_str())
        {
            drawn.swap(0, at);
        }
        let drawn = Drawn(drawn);
        let rename = |text: &str| drawn.replaced(text);
        let paths = self.paths.iter().map(|(name, entry)| {
            let mut entry = entry.clone();
            if let Kind::Link(to) = &mut entry.kind {
                *to = rename(to);
            }
            (rename(name), entry)
        });
        (Self { paths: paths.collect() }, drawn)
    }
}

/// Names that were drawn by lot.
#[derive(Clone, Debug, Default)]
pub struct Drawn(pub Vec<String>);

impl Drawn {
    /// With `NEW1` in the place of the first.
    pub fn replaced(&self, text: &str) -> String {
        self.0.iter().enumerate().fold(text.to_owned(), |text, (n, name)| text.replace(name, &format!("NEW{}", n + 1)))
    }

    /// The other way round.
    pub fn real(&self, text: &str) -> String {
        self.0.iter().enumerate().fold(text.to_owned(), |text, (n, name)| text.replace(&format!("NEW{}", n + 1), name))
    }
}

/// Whether a path is, or is in, a staging directory: what is there is nobody's yet.
pub fn is_staging(name: &str) -> bool {
    name.split('/').any(|part| part == ".onestore" || part == ".isofiles")
}

/// Bytes above which a file is told apart by length and allocated blocks alone: nobody reads 100 GiB of hole.
const LARGE: u64 = 1 << 30;

/// Digest of a file's bytes. Holes are zeroes, and zeroes are left out: nobody reads what is not there.
fn digest(path: &Path) -> Result<String> {
    let about = fs::metadata(path)?;
    if about.len() > LARGE {
        return Ok(format!("{:08x}-{}", about.blocks(), about.len()));
    }
    let file = File::open(path).with_context(|| format!("Cannot read {}", path.display()))?;
    let mut hash = blake3::Hasher::new();
    hash.update(&about.len().to_le_bytes());
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        let hole = seek(&file, SeekFrom::Hole(data))?;
        // The same cuts, whatever of it is holes.
        at = data - data % BLOCK as u64;
        while at < hole {
            let length = read_at(&file, &mut block, at)?;
            if length == 0 {
                break;
            }
            if block[..length] != ZEROES[..length] {
                hash.update(&at.to_le_bytes()).update(&block[..length]);
            }
            at += BLOCK as u64;
        }
    }
    Ok(hash.finalize().to_hex()[..32].to_owned())
}

/// What is hashed at once, in bytes; a multiple of what any hole is.
const BLOCK: usize = 64 << 10;
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// As much as there is.
fn read_at(file: &File, block: &mut [u8], at: u64) -> Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read_at(&mut block[length..], at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// What guests read, by the digests of everything that is read for it: qemu-img is asked once.
static GUESTS: LazyLock<Mutex<HashMap<String, Option<String>>>> = LazyLock::new(Mutex::default);

/// What a guest reads from a qcow2 image; nothing for any other file.
fn guest(path: &Path) -> Option<String> {
    let key = chain(path, 16)?;
    if let Some(known) = GUESTS.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return known.clone();
    }
    let memory = Path::new("/dev/shm");
    let to = tempfile::NamedTempFile::new_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).ok()?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]).arg(path).arg(to.path());
    let done = convert.stdin(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    let guest = done.success().then(|| digest(to.path()).ok()).flatten();
    GUESTS.lock().unwrap_or_else(PoisonError::into_inner).insert(key, guest.clone());
    guest
}

/// Digests of a qcow2 image and of what it stands on; nothing for any other file.
fn chain(path: &Path, depth: usize) -> Option<String> {
    let file = File::open(path).ok()?;
    // The header: docs/interop/qcow2.rst of QEMU.
    let mut header = [0; 104];
    file.read_exact_at(&mut header, 0).ok()?;
    header.starts_with(b"QFI\xfb").then_some(())?;
    let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let length = u32::from_be_bytes(header[16..20].try_into().unwrap_or_default()) as usize;
    let mut text = digest(path).ok()?;
    // Data in another file, and names that are no paths, have no digest here.
    let mut elsewhere = header[7] == 3 && number(72) & 4 != 0;
    if number(8) != 0 && length < 1024 {
        let mut name = vec![0; length];
        file.read_exact_at(&mut name, number(8)).ok()?;
        elsewhere |= name.contains(&b':');
        let below = path.parent()?.join(OsStr::from_bytes(&name));
        text.push_str(" on ");
        text.push_str(&match depth.checked_sub(1).and_then(|depth| chain(&below, depth)) {
            Some(chain) => chain,
            None => digest(&below).unwrap_or_else(|_| "nothing".to_owned()),
        });
    }
    Some(if elsewhere { format!("{text} {}", DATA.fetch_add(1, Ordering::Relaxed)) } else { text })
}

/// Makes each look at such an image a new one.
static DATA: AtomicUsize = AtomicUsize::new(0);

/// What an undisturbed run begins with and comes to.
pub struct Reference {
    /// Before it.
    pub before: State,
    /// What guests read then.
    pub guests: BTreeMap<String, String>,
    /// After it, with the names that were drawn replaced.
    pub after: State,
    /// What guests read then, under the replaced names.
    pub guests_after: BTreeMap<String, String>,
    /// Files whose bytes are others in every run: a file system has an identifier and times.
    pub varying: Vec<String>,
}

impl Reference {
    /// What is wrong with the tree after a kill: something that was there before is neither as it was nor as the
    /// complete action makes it, or a new file has its name and is not whole.
    pub fn lost(&self, root: &Path, now: &State, drawn: &Drawn) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, was) in self.before.paths.iter().filter(|(name, _)| !is_staging(name)) {
            let is = now.paths.get(name);
            let becomes = self.after.paths.get(name);
            let done = is.zip(becomes).is_some_and(|(is, becomes)| self.alike(root, name, is, name, becomes));
            if is == Some(was) || is == becomes || done {
                continue;
            }
            // What was in a directory is asked for by itself; the directory is nothing more.
            let below = format!("{name}/");
            if was.kind == Kind::Dir && is.is_none() && self.before.paths.keys().any(|other| other.starts_with(&below))
            {
                continue;
            }
            let content = |entry: &Entry| matches!(entry.kind, Kind::File { .. });
            let guest_is = is.filter(|entry| content(entry)).and_then(|_| guest(&root.join(name)));
            let same_guest = |before: Option<&String>| guest_is.is_some() && before == guest_is.as_ref();
            if same_guest(self.guests.get(name)) || same_guest(self.guests_after.get(name)) {
                continue;
            }
            // Moved: the same bytes under a name that the complete action gives them or not.
            if content(was) && now.paths.values().any(|other| other.kind == was.kind) && becomes != Some(was) {
                continue;
            }
            let what = if is.is_some() { "is neither as it was nor as it becomes" } else { "is gone" };
            wrong.push(format!("{name} {what}"));
        }
        for (name, is) in
            now.paths.iter().filter(|(name, _)| !is_staging(name) && !self.before.paths.contains_key(*name))
        {
            if let Some(becomes) = self.after.paths.get(name)
                && matches!(becomes.kind, Kind::File { .. })
                && matches!(is.kind, Kind::File { .. })
                && !self.alike(root, &drawn.real(name), is, name, becomes)
            {
                wrong.push(format!("{name} has its name and is not whole"));
            }
        }
        wrong
    }

    /// What differs from the tree after an undisturbed run.
    pub fn differences(&self, root: &Path, now: &State, drawn: &Drawn) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, becomes) in &self.after.paths {
            match now.paths.get(name) {
                None => wrong.push(format!("{name} is missing")),
                Some(is) if !self.alike(root, &drawn.real(name), is, name, becomes) => {
                    wrong.push(format!("{name} is {}, not {}", shown(is), shown(becomes)));
                }
                Some(_) => {}
            }
        }
        let strays = now.paths.keys().filter(|name| !self.after.paths.contains_key(*name));
        wrong.extend(strays.map(|name| format!("stray: {name}")));
        wrong
    }

    fn alike(&self, root: &Path, real: &str, is: &Entry, name: &str, becomes: &Entry) -> bool {
        if is == becomes {
            return true;
        }
        let (Kind::File { size, .. }, Kind::File { size: wanted, .. }) = (&is.kind, &becomes.kind) else {
            return false;
        };
        if is.mode != becomes.mode {
            return false;
        }
        let varies = self.varying.iter().any(|other| other == name);
        (varies && (size == wanted || guest(&root.join(real)).is_some()))
            || self.guests_after.get(name).is_some_and(|wanted| guest(&root.join(real)).as_ref() == Some(wanted))
    }
}

fn shown(entry: &Entry) -> String {
    match &entry.kind {
        Kind::Dir => format!("a directory {:o}", entry.mode),
        Kind::Link(to) => format!("a link to {to}"),
        Kind::File { digest, size } => format!("a file {:o} of {size} bytes {}", entry.mode, &digest[..8]),
        Kind::Other => "something else".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(paths: &[(&str, &str)]) -> State {
        let entry = |text: &str| match text {
            "dir" => Kind::Dir,
            text => Kind::File { digest: format!("{text:8}"), size: text.len() as u64 },
        };
        let paths = paths.iter().map(|(name, text)| ((*name).to_owned(), Entry { kind: entry(text), mode: 0o644 }));
        State { paths: paths.collect() }
    }

    fn lost(before: &[(&str, &str)], after: &[(&str, &str)], now: &[(&str, &str)]) -> Vec<String> {
        let reference = Reference {
            before: state(before),
            guests: BTreeMap::new(),
            after: state(after),
            guests_after: BTreeMap::new(),
            varying: Vec::new(),
        };
        reference.lost(Path::new("/nowhere"), &state(now), &Drawn::default())
    }

    #[test]
    fn old_or_new_and_nothing_else() {
        let (old, new) = ([("d", "dir"), ("d/a", "one"), ("d/b", "x")], [("d", "dir"), ("d/a", "two"), ("d/b", "x")]);
        assert_eq!(lost(&old, &new, &old), Vec::<String>::new());
        assert_eq!(lost(&old, &new, &new), Vec::<String>::new());
        assert_eq!(
            lost(&old, &new, &[("d", "dir"), ("d/a", "tw"), ("d/b", "x")]),
            ["d/a is neither as it was nor as it becomes"]
        );
        assert_eq!(lost(&old, &new, &[("d", "dir"), ("d/b", "x")]), ["d/a is gone"]);
        assert_eq!(lost(&old, &new, &[]), ["d/a is gone", "d/b is gone"]);
    }

    #[test]
    fn what_is_on_its_way_is_not_lost_and_half_a_new_file_is_seen() {
        assert_eq!(lost(&[("a", "one")], &[("b", "one")], &[("c", "one")]), Vec::<String>::new());
        assert_eq!(lost(&[], &[("b", "one")], &[("b", "on")]), ["b has its name and is not whole"]);
        assert_eq!(lost(&[], &[("b", "one")], &[(".onestore/b", "on")]), Vec::<String>::new());
    }

    #[test]
    fn drawn_names_are_told_from_old_ones() {
        let (old, new) = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210");
        let before = state(&[(old, "one")]);
        let (named, drawn) =
            state(&[(old, "one"), (new, "two"), (&format!(".onestore/{new}.part"), "two")]).with_names(&before, "");
        assert_eq!(named, state(&[(old, "one"), ("NEW1", "two"), (".onestore/NEW1.part", "two")]));
        assert_eq!(drawn.real("NEW1"), new);
    }
}
