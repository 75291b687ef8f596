//! File systems on loop devices, and images of what a power cut leaves of one.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::super::world::tool;
use super::disk::Event;

/// Size of the disk: 128 MiB hold the images of every case, and what an import wants to see free.
const SIZE: u64 = 128 << 20;

/// Sectors that a disk writes whole, or not at all.
const SECTOR: usize = 4096;

/// A file system that is proven on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// As it comes, but without the heuristics that sync files which a program forgot to sync
    Ext4,
    /// Without a journal: nothing is on the disk but what was synced itself; repaired by e2fsck after the cut
    Ext2,
}

impl Kind {
    /// An empty one.
    ///
    /// # Errors
    /// What mkfs says.
    pub fn make(self, file: &Path) -> Result<Vec<u8>> {
        fs::File::create(file)?.set_len(SIZE)?;
        let features: &[&str] = if self == Self::Ext2 { &["-O", "^has_journal"] } else { &[] };
        let mut mkfs = Command::new("mkfs.ext4");
        tool(
            mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).args(features).arg(file),
        )?;
        Ok(fs::read(file)?)
    }

    /// Mount options: nothing is written late by itself, and nothing early.
    fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "noatime,commit=300,noauto_da_alloc",
            Self::Ext2 => "noatime,noauto_da_alloc",
        }
    }

    /// What an operator's machine does at boot.
    ///
    /// # Errors
    /// The file system cannot be repaired.
    pub fn repair(self, file: &Path) -> Result<()> {
        if self == Self::Ext4 {
            return Ok(());
        }
        let ran = Command::new("e2fsck").args(["-f", "-y"]).arg(file).output().context("Cannot run e2fsck")?;
        // 1: errors were corrected.
        if !matches!(ran.status.code(), Some(0 | 1)) {
            bail!("e2fsck failed: {}", String::from_utf8_lossy(&ran.stdout));
        }
        Ok(())
    }
}

/// A file system that is mounted from a file; it is taken off when this is dropped.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts the file system in `file` at `at`, by a loop device that goes with the mount.
    ///
    /// # Errors
    /// No loop device, or the file system is damaged.
    pub fn new(kind: Kind, file: &Path, at: &Path) -> Result<Self> {
        let options = format!("loop,{}", kind.options());
        tool(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(file).arg(at))?;
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Something of a call may still be closing its files.
        let umounted = (0..40).any(|_| {
            let done = tool(Command::new("umount").arg(&self.at)).is_ok();
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            done
        });
        if !umounted && let Err(error) = tool(Command::new("umount").arg("-l").arg(&self.at)) {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// What of the writes that were not flushed reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    None,
    /// All of them.
    All,
    /// Some sectors of some, drawn by this number.
    Some(u64),
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("nothing unflushed survives"),
            Self::All => f.write_str("everything survives"),
            Self::Some(seed) => write!(f, "some of the unflushed sectors survive (drawn by {seed})"),
        }
    }
}

/// Writes to `file` what is on the disk after a cut behind the first `count` events.
///
/// # Errors
/// The file cannot be written.
pub fn cut(file: &Path, base: &[u8], events: &[Event], count: usize, fate: Fate) -> Result<()> {
    let _ = fs::remove_file(file);
    let image = fs::File::create(file)?;
    image.set_len(base.len() as u64)?;
    for (at, block) in base.chunks(64 << 10).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            image.write_all_at(block, (at * (64 << 10)) as u64)?;
        }
    }
    let events = &events[..count];
    let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |at| at + 1);
    let mut state = if let Fate::Some(seed) = fate { seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 } else { 1 };
    let mut coin = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 1 == 1
    };
    for (number, event) in events.iter().enumerate() {
        let Event::Write(offset, data) = event else { continue };
        if number < flushed || fate == Fate::All {
            image.write_all_at(data, *offset)?;
        } else if fate != Fate::None {
            for (at, sector) in data.chunks(SECTOR).enumerate() {
                if coin() {
                    image.write_all_at(sector, offset + (at * SECTOR) as u64)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(count: usize, fate: Fate) -> Vec<u8> {
        let block = |byte: u8| vec![byte; SECTOR];
        let events = [
            Event::Write(0, block(1)),
            Event::Flush,
            Event::Write(SECTOR as u64, [block(2), block(3)].concat()),
            Event::Write(0, block(4)),
            Event::Flush,
        ];
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("image");
        cut(&file, &vec![0; 4 * SECTOR], &events, count, fate).expect("writes");
        let bytes = fs::read(file).expect("reads");
        bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_is_open() {
        assert_eq!(after(0, Fate::All), [0, 0, 0, 0]);
        assert_eq!(after(1, Fate::None), [0, 0, 0, 0]);
        assert_eq!(after(1, Fate::All), [1, 0, 0, 0]);
        assert_eq!(after(4, Fate::None), [1, 0, 0, 0]);
        assert_eq!(after(4, Fate::All), [4, 2, 3, 0]);
        assert_eq!(after(5, Fate::None), [4, 2, 3, 0]);
    }

    #[test]
    fn parts_of_writes_survive_in_every_mixture() {
        let mixtures: std::collections::BTreeSet<_> = (0..200).map(|seed| after(4, Fate::Some(seed))).collect();
        assert_eq!(mixtures.len(), 8, "three sectors, each written or not: {mixtures:?}");
    }
}
