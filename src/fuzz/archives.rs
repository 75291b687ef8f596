//! tar and zip: whatever an archive says, nothing outside of its directory is touched, and what is inside leads nowhere
//! else.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::exec::control::Control;
use crate::transfer::unpack::{Archive, Limits, Source, UnpackError, unpack};

const LIMITS: Limits = Limits { bytes: 256 << 10, members: 48 };

/// A directory with one for the archive in it and something beside; made once for each thread, in memory where possible.
struct Ground {
    root: PathBuf,
    archive: File,
}

impl Ground {
    fn new() -> Self {
        let base = std::env::temp_dir();
        let name = format!("onestore-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let root = base.join(name.replace(['(', ')'], ""));
        fs::create_dir_all(root.join("into")).expect("a directory");
        fs::write(root.join("beside"), "canary").expect("a file");
        let open = File::options().read(true).write(true).create(true).truncate(true).open(root.join("archive"));
        Self { archive: open.expect("a file"), root }
    }

    /// Judges what is there, and clears it away.
    fn judge(&self) {
        assert_eq!(fs::read(self.root.join("beside")).expect("it is still there"), b"canary");
        assert_eq!(fs::read_dir(&self.root).expect("a directory").count(), 3, "nothing new beside");
        let into = self.root.join("into");
        let (mut todo, mut members, mut bytes) = (vec![into.clone()], 0, 0);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                let meta = fs::symlink_metadata(&path).expect("it is there");
                members += 1;
                assert_eq!(meta.permissions().mode() & 0o7000, 0, "{}", path.display());
                if meta.is_symlink() {
                    // One that leads nowhere yet may lead there one day.
                    let target = path.parent().expect("a parent").join(fs::read_link(&path).expect("a link"));
                    assert!(crate::location::normalize(&target).starts_with(&into), "{}", target.display());
                    assert!(target.canonicalize().map_or(true, |real| real.starts_with(&into)), "{}", target.display());
                } else if meta.is_dir() {
                    todo.push(path);
                } else {
                    assert!(meta.is_file(), "{}", path.display());
                    bytes += meta.len();
                }
            }
        }
        assert!(
            members <= LIMITS.members && bytes <= LIMITS.bytes * LIMITS.members,
            "{members} members, {bytes} bytes"
        );
        if members > 0 {
            fs::remove_dir_all(&into).expect("it can be cleared away");
            fs::create_dir(&into).expect("a directory");
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

thread_local! {
    static GROUND: Ground = Ground::new();
}

fn control() -> Control {
    Control::only_within(Duration::from_secs(20))
}

/// A failure is one of the archive, or of a name that the file system cannot have.
fn tolerable(result: Result<(), UnpackError>) {
    if let Err(error) = result {
        assert!(!error.to_string().contains(['\n', '\r', '\0']), "one line: {error}");
    }
}

/// A tar. Checksums are put right first, so that bytes that are tried get past them.
pub fn tar(data: &[u8]) {
    let mut archive = data.to_vec();
    archive.resize(data.len().next_multiple_of(512), 0);
    for block in archive.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let _ = Archive::detect(&archive);
    GROUND.with(|ground| {
        tolerable(unpack(Source::Tar(&mut &archive[..]), &ground.root.join("into"), LIMITS, &control()));
        ground.judge();
    });
}

/// A zip. The end of its directory is put right first.
pub fn zip(data: &[u8]) {
    let mut archive = data.to_vec();
    let find = |mark: &[u8]| data.windows(4).position(|part| part == mark);
    if let (Some(begin), Some(end)) = (find(b"PK\x01\x02"), find(b"PK\x05\x06"))
        && begin < end
        && end + 22 <= data.len()
        && data[end + 8] & 0x80 == 0
    {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        archive[end + 12..end + 16].copy_from_slice(&number(end - begin));
        archive[end + 16..end + 20].copy_from_slice(&number(begin));
    }
    GROUND.with(|ground| {
        let mut file = &ground.archive;
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&archive)).expect("a file");
        tolerable(unpack(Source::Zip(file), &ground.root.join("into"), LIMITS, &control()));
        ground.judge();
    });
}
