//! Images that a replica host keeps, under the paths that they have on the front-end.
//!
//! Source: contract 02 §7.1. `<image>.md5sum` on both sides tells whether a copy is current; it is written last and removed
//! first, so that it never tells of another content. Looking and copying are under the locks that upstream takes, both of
//! them at once: with upstream's, a copy can be taken for current while it is being made. What is not used any more goes
//! when there is too much of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::goods::{Found, Goods, digest};
use crate::context::Cx;
use crate::driver::common::args::plain_number;
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::exec::cmd::Secret;
use crate::exec::host::Host;
use crate::exec::op::{Op, Sparse, Value};
use crate::exec::step::Step;
use crate::location::{ImageFiles, with_suffix};
use crate::tool::find;

/// Seconds that one action waits for another that copies the same image, where the operator says nothing.
const LOCK_WAIT: u64 = 600;

/// Share of the file system in percent that may be used, where the operator says nothing.
const MOST_USED: u64 = 90;

/// Seconds in which an image was used, and is not removed: another action may be about to read it.
const RECENT: f64 = 600.0;

/// Has the replica host hold the image, and gives what it holds.
///
/// # Errors
/// The copy fails; another action has been making one for too long.
pub fn bring(cx: &Cx<'_>, image: &Found, replica: &Arc<dyn Host>, failure: &str) -> Result<Goods> {
    let files = &image.files;
    let wait = cx.settings.get("REPLICA_COPY_LOCK_TIMEOUT").and_then(|text| text.trim().parse().ok());
    let wait = Duration::from_secs(wait.unwrap_or(LOCK_WAIT));
    let _held = lock(cx, replica, &files.image, wait).with_context(|| failure.to_owned())?;
    let mut cached = Goods {
        host: Arc::clone(replica),
        current: files.image.clone(),
        format: "raw",
        bytes: image.bytes(),
        snapshots: image.numbers().map(|number| (number, files.snapshot(number))).collect(),
    };

    // What is read.
    let here = Original { image, digest: image.digest.clone() };
    let wanted = here.digest(cx, failure)?;
    let there = Copy::look(cx, replica, files).with_context(|| failure.to_owned())?;

    // What is decided and done.
    let goods = image.goods(cx, failure)?;
    cached.format = goods.format;
    let same_size = !image.is_plain() || there.size == Some(image.size);
    let same_snapshots = there.snapshots.iter().copied().eq(image.numbers());
    if there.digest.as_deref() == Some(wanted.as_str()) && same_size && same_snapshots {
        there.mark(cx, failure)?;
        return Ok(cached);
    }
    there.replace(cx, &goods, &wanted, failure)?;
    if let Err(error) = make_room(cx, replica, files) {
        cx.control.check()?;
        cx.warn(format!("Old images on {} cannot be removed: {error:#}", replica.name()));
    }
    Ok(cached)
}

/// Both locks that upstream takes one after the other.
fn lock(cx: &Cx<'_>, replica: &Arc<dyn Host>, image: &Path, wait: Duration) -> Result<impl Sized> {
    let name = format!("{}-{}", replica.name(), image.display());
    Ok((cx.hold(&name, wait)?, cx.hold(&format!("replica-{name}"), wait)?))
}

/// The image on the front-end.
struct Original<'a> {
    image: &'a Found,
    digest: Option<String>,
}

impl Original<'_> {
    /// Its digest: the one that was written down when it was last asked for, or else by reading it.
    fn digest(&self, cx: &Cx<'_>, failure: &str) -> Result<String> {
        if let Some(known) = &self.digest {
            return Ok(known.clone());
        }
        if !cx.is_real() {
            return Ok("(its digest)".to_owned());
        }
        let here = self.image.host();
        let sum = digest(cx, here, &self.image.content()).with_context(|| failure.to_owned())?;
        let write =
            Op::Write { path: self.image.files.md5sum(), content: Secret::new(format!("{sum}\n")), mode: 0o644 };
        cx.apply(Step::new(here, "Write the image's digest down for the next time", [write]).or_say(failure))?;
        Ok(sum)
    }
}

/// What the replica host has of the image.
struct Copy {
    files: ImageFiles,
    folder: Folder,
    digest: Option<String>,
    size: Option<u64>,
    snapshots: Vec<u32>,
    has_snapshots: bool,
    is_marked: bool,
}

impl Copy {
    fn look(cx: &Cx<'_>, replica: &Arc<dyn Host>, files: &ImageFiles) -> Result<Self> {
        let questions = [
            Op::Head { path: files.md5sum(), len: 64 },
            Op::Stat { path: files.image.clone(), follow: false },
            Op::List { path: files.snapshots() },
            Op::Head { path: files.base.join(".monitor"), len: 64 },
            Folder::question(&files.base),
        ];
        let answers = cx.query(replica, questions)?;
        let [digest, stat, list, monitor, staging] = answers.as_slice() else {
            bail!("{} did not answer all questions", replica.name())
        };
        let names = if let Value::Names(names) = list { Some(names) } else { None };
        let number = |name: &std::ffi::OsString| plain_number(name.to_str()?);
        let mut snapshots: Vec<u32> = names.into_iter().flatten().filter_map(number).collect();
        snapshots.sort_unstable();
        Ok(Self {
            folder: Folder::of(replica, &files.base, staging)?,
            files: files.clone(),
            digest: Some(digest.text()).filter(|text| !text.is_empty()),
            size: stat.stat().map(|stat| stat.size),
            snapshots,
            has_snapshots: names.is_some(),
            is_marked: monitor.text() == "replica",
        })
    }

    /// `.monitor`: that the images here are copies.
    fn marker(&self) -> Option<Op> {
        let path = self.files.base.join(".monitor");
        (!self.is_marked).then(|| Op::Write { path, content: Secret::new("replica\n"), mode: 0o644 })
    }

    fn mark(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        if let Some(op) = self.marker() {
            cx.apply(Step::new(&self.folder.host, "Mark the datastore as a replica", [op]).or_say(failure))?;
        }
        Ok(())
    }

    /// Copies the image beside, and puts it in the place of what is there.
    fn replace(&self, cx: &Cx<'_>, goods: &Goods, digest: &str, failure: &str) -> Result<()> {
        let (files, folder) = (&self.files, &self.folder);
        let host = &folder.host;
        cx.info(format!("Copying {} to {}", files.image.display(), host.name()));
        let name = files.image.file_name().unwrap_or_default();
        let staged = folder.staging(name);
        let layers = folder.staging(with_suffix(Path::new(name), ".snap"));
        let mut ops = folder.prepare();
        if !goods.snapshots.is_empty() {
            ops.push(Op::MakeDir { path: layers.clone() });
        }
        ops.extend(self.marker());
        let remove = |path: PathBuf, tree| Op::Remove { path, tree, must_exist: false };
        let undo = [remove(layers.clone(), true)].into_iter().chain(folder.leave());
        let failed = format!("{failure}: Failed to rsync {} to {}", files.image.display(), host.name());
        cx.apply(Step::new(host, "Make room on the replica host", ops).undo(undo).or_say(&failed))?;
        let mut loads = vec![Load { from: goods.current.clone(), to: staged.clone() }];
        let each = goods.snapshots.iter();
        loads.extend(each.map(|(n, from)| Load { from: from.clone(), to: layers.join(n.to_string()) }));
        carry(cx, &Journey { from: &goods.host, to: host, sparse: Sparse::Holes, address: None }, &loads, &failed)?;

        // Nothing says that the copy is current while it is two things at once.
        let mut ops = vec![remove(files.md5sum(), false), Op::Rename { from: staged, to: files.image.clone() }];
        if self.has_snapshots {
            ops.push(remove(files.snapshots(), true));
        }
        if !goods.snapshots.is_empty() {
            ops.push(Op::Rename { from: layers, to: files.snapshots() });
        }
        ops.push(Op::Sync { path: files.base.clone() });
        ops.push(Op::Write { path: files.md5sum(), content: Secret::new(format!("{digest}\n")), mode: 0o644 });
        ops.extend(folder.leave());
        let what = format!("The copy is whole: give it its name {}", files.image.display());
        cx.apply(Step::new(host, what, ops).or_say(&failed))?;
        Ok(())
    }
}

/// One image in the cache.
#[derive(Debug, Default, PartialEq)]
struct Entry {
    /// When it was last read or written, in seconds since 1970.
    used: f64,
    /// Bytes that it occupies with its snapshots.
    bytes: u64,
    is_image: bool,
}

/// Removes images that were not used for the longest time, while there are too many.
fn make_room(cx: &Cx<'_>, replica: &Arc<dyn Host>, keep: &ImageFiles) -> Result<()> {
    if !cx.is_real() {
        return Ok(());
    }
    let base = &keep.base;
    let list = Op::Run(find::ages(base));
    let answers = cx.query(replica, [list, Op::Space { path: base.clone() }])?;
    let [Value::Bytes(text), Value::Space(space)] = answers.as_slice() else { bail!("It did not answer") };
    let found = find::parse(text);
    let entries = entries(&found);
    let occupied: u64 = found.iter().map(|file| file.bytes).sum::<u64>() >> 20;
    let number = |name: &str| cx.settings.get(name).and_then(|text| text.trim().parse::<u64>().ok());
    let most = number("REPLICA_MAX_SIZE_MB").unwrap_or_else(|| {
        let share = space.total_mib / 100 * number("REPLICA_MAX_USED_PERC").unwrap_or(MOST_USED).min(100);
        (share + occupied).saturating_sub(space.used_mib)
    });
    let now = found.iter().map(|file| file.used).fold(0.0, f64::max);
    for name in unused(&entries, occupied.saturating_sub(most), now) {
        let files = ImageFiles::new(base, &base.join(OsStr::from_bytes(&name)))?;
        if files.image == keep.image {
            continue;
        }
        // One that is being copied or compared is in use.
        let Ok(_held) = lock(cx, replica, &files.image, Duration::ZERO) else { continue };
        let remove = |path, tree| Op::Remove { path, tree, must_exist: false };
        let ops = [remove(files.md5sum(), false), remove(files.image.clone(), false), remove(files.snapshots(), true)];
        let what = format!("Remove {}, which was not used for the longest time", files.image.display());
        cx.apply(Step::new(replica, what, ops))?;
    }
    Ok(())
}

/// Images by name: the files of each counted together.
fn entries(found: &[find::File]) -> BTreeMap<Vec<u8>, Entry> {
    let mut entries: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    for file in found {
        let path = file.path.as_os_str().as_bytes();
        let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let image = [b".snap".as_slice(), b".md5sum"].iter().find_map(|end| first.strip_suffix(*end)).unwrap_or(first);
        let is_name = image.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte) || *byte == b'-');
        if image.is_empty() || !is_name {
            continue;
        }
        let entry = entries.entry(image.to_vec()).or_default();
        entry.bytes += file.bytes;
        if path == image && file.is_file {
            entry.is_image = true;
            entry.used = file.used;
        }
    }
    entries.retain(|_, entry| entry.is_image);
    entries
}

/// Names of images to remove, so that nine tenths of `excess` MiB become free; those in use now are none of them.
fn unused(entries: &BTreeMap<Vec<u8>, Entry>, excess: u64, now: f64) -> Vec<Vec<u8>> {
    let wanted = excess.saturating_mul(9) / 10;
    let mut oldest: Vec<_> = entries.iter().filter(|(_, entry)| entry.used + RECENT < now).collect();
    oldest.sort_by(|a, b| a.1.used.total_cmp(&b.1.used));
    let mut freed = 0;
    let mut names = Vec::new();
    for (name, entry) in oldest {
        if freed >= wanted {
            break;
        }
        freed += entry.bytes >> 20;
        names.push(name.clone());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, used: f64, mib: u64) -> find::File {
        find::File { path: path.into(), used, bytes: mib << 20, is_file: path != "bb.snap" }
    }

    #[test]
    fn the_longest_unused_go_first_and_whole() {
        let found = [
            file("aa", 10.0, 4),
            file("aa.md5sum", 10.0, 0),
            file("bb", 5.0, 2),
            file("bb.snap", 5.0, 0),
            file("bb.snap/0", 5.0, 3),
            file("cc", 9_999.0, 100),
            file("name-of-a-person", 1.0, 100),
            file("dd.snap/1", 1.0, 9),
        ];
        let entries = entries(&found);
        let names = |excess| -> Vec<String> {
            let lossy = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
            unused(&entries, excess, 10_000.0).into_iter().map(lossy).collect()
        };
        assert_eq!(entries.len(), 3);
        assert_eq!(names(0), Vec::<String>::new());
        assert_eq!(names(5), ["bb"]);
        assert_eq!(names(6), ["bb"]);
        assert_eq!(names(7), ["bb", "aa"]);
        // What is in use stays, however large the excess is.
        assert_eq!(names(1000), ["bb", "aa"]);
    }
}
