//! What is there: snapshots of the sandbox to find what a call left or changed, and the conditions on single paths.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::Digest as _;

use super::case::{After, bytes};
use super::vars::{Vars, hex};

/// Places of the sandbox that belong to the kit.
pub const OURS: [&str; 5] = ["one/var/remotes", "one/lib", "bin", "oned", "home/.ssh"];

/// Every path below the sandbox's root and what it is.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(BTreeMap<PathBuf, Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    Link(PathBuf),
    File(String),
    Other,
}

impl Snapshot {
    /// Looks at everything below `root` but the kit's own places.
    pub fn take(root: &Path) -> Result<Self> {
        let mut entries = BTreeMap::new();
        walk(root, root, &mut entries)?;
        Ok(Self(entries))
    }

    /// Digest of a regular file at that time.
    fn digest(&self, path: &Path) -> Option<&str> {
        match self.0.get(path) {
            Some(Entry::File(digest)) => Some(digest),
            _ => None,
        }
    }

    /// The first path that differs in `now` without being tolerated: new, gone or changed.
    ///
    /// New directories on the way to something tolerated are fine, and so are empty ones below `datastores`.
    pub fn difference(&self, now: &Self, tolerated: &dyn Fn(&Path) -> bool, changes: bool) -> Option<String> {
        let on_the_way = |path: &Path| {
            let below = now.0.range(path.to_owned()..).take_while(|(other, _)| other.starts_with(path));
            below.clone().any(|(other, _)| tolerated(other)) || path.ends_with("datastores/100")
        };
        for (path, entry) in &now.0 {
            let is_new = !self.0.contains_key(path) && !tolerated(path);
            if is_new && !(*entry == Entry::Dir && on_the_way(path)) {
                return Some(format!("left behind: {}", path.display()));
            }
        }
        for (path, entry) in self.0.iter().filter(|(path, _)| changes && !tolerated(path)) {
            match now.0.get(path) {
                None => return Some(format!("gone: {}", path.display())),
                Some(other) if other != entry => {
                    return Some(format!("changed: {}", path.display()));
                }
                Some(_) => {}
            }
        }
        None
    }
}

fn walk(root: &Path, dir: &Path, entries: &mut BTreeMap<PathBuf, Entry>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let kind = fs::symlink_metadata(&path)?.file_type();
        if OURS.iter().any(|own| path == root.join(own)) {
            continue;
        }
        let entry = if kind.is_dir() {
            walk(root, &path, entries)?;
            Entry::Dir
        } else if kind.is_symlink() {
            Entry::Link(fs::read_link(&path)?)
        } else if kind.is_fifo() || kind.is_socket() {
            Entry::Other
        } else {
            Entry::File(digest(&path)?)
        };
        entries.insert(path, entry);
    }
    Ok(())
}

/// Holes count as zeroes; files of more than a gibibyte are told apart by size and age only.
fn digest(path: &Path) -> Result<String> {
    let about = fs::metadata(path)?;
    if about.len() > 1 << 30 {
        return Ok(format!("{} {}", about.len(), about.mtime()));
    }
    let mut file = fs::File::open(path)?;
    let mut hash = sha2::Sha256::new();
    std::io::copy(&mut file, &mut Update(&mut hash))?;
    Ok(hex(&hash.finalize()))
}

/// Feeds a digest.
struct Update<'a>(&'a mut sha2::Sha256);

impl std::io::Write for Update<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Without double slashes and single dots; links are not followed.
pub fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| *part != Component::CurDir).collect()
}

/// Checks the conditions on one path; the error is the first that does not hold.
pub fn check(after: &After, vars: &Vars, before: &Snapshot) -> Result<()> {
    let path = clean(&vars.text(&after.path)?);
    let shown = path.display();
    let Ok(about) = path.symlink_metadata() else {
        if after.exists == Some(false) {
            return Ok(());
        }
        bail!("{shown} is missing");
    };
    if after.exists == Some(false) {
        bail!("{shown} is still there");
    }
    if let Some(wanted) = &after.is {
        let kind = about.file_type();
        let is = if kind.is_dir() {
            "dir"
        } else if kind.is_symlink() {
            "link"
        } else {
            "file"
        };
        same(&shown.to_string(), "kind", wanted, is)?;
    }
    if let Some(to) = &after.to {
        let target = fs::read_link(&path).with_context(|| format!("{shown} is no link"))?;
        if clean(&vars.text(to)?) != clean(&target.display().to_string()) {
            bail!("{shown} leads to {}", target.display());
        }
    }
    if let Some(mode) = &after.mode {
        same(&shown.to_string(), "mode", mode, &format!("{:04o}", about.permissions().mode() & 0o7777))?;
    }
    data(after, vars, before, &path)
}

/// The conditions on what is in a file.
fn data(after: &After, vars: &Vars, before: &Snapshot, path: &Path) -> Result<()> {
    let shown = path.display().to_string();
    let about = fs::metadata(path).with_context(|| format!("{shown} leads nowhere"))?;
    if let Some(size) = &after.size {
        same(&shown, "size", &bytes(size)?.to_string(), &about.len().to_string())?;
    }
    let allocated = about.blocks() * 512;
    if let Some(least) = &after.allocated_min
        && allocated < bytes(least)?
    {
        bail!("{shown} has {allocated} bytes allocated, less than {least}");
    }
    if let Some(most) = &after.allocated_max
        && allocated > bytes(most)?
    {
        bail!("{shown} has {allocated} bytes allocated, more than {most}");
    }
    if let Some(other) = &after.same_as {
        let other = clean(&vars.text(other)?);
        let wanted = before.digest(&other).map_or_else(|| digest(&other), |known| Ok(known.to_owned()))?;
        if digest(path)? != wanted {
            bail!("{shown} differs from {}", other.display());
        }
    }
    if let Some(wanted) = &after.sha256 {
        same(&shown, "SHA-256", wanted, &digest(path)?)?;
    }
    if let Some(other) = &after.content_of {
        let other = vars.text(other)?;
        let output = tool("qemu-img").args(["compare", "-U"]).arg(path).arg(&other).output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("A guest reads {shown} differently from {other}: {}", String::from_utf8_lossy(&said).trim());
        }
    }
    image(after, vars, path)?;
    for (tag, wanted) in [("TYPE", &after.fs), ("LABEL", &after.label)] {
        if let Some(wanted) = wanted {
            let output = tool("blkid").args(["-p", "-o", "value", "-s", tag]).arg(path).output()?;
            same(&shown, tag, wanted, String::from_utf8_lossy(&output.stdout).trim())?;
        }
    }
    Ok(())
}

/// The conditions on an image's header.
fn image(after: &After, vars: &Vars, path: &Path) -> Result<()> {
    if after.format.is_none() && after.virtual_size.is_none() && after.backing.is_none() {
        return Ok(());
    }
    let shown = path.display().to_string();
    let output = tool("qemu-img").args(["info", "-U", "--output=json"]).arg(path).output()?;
    let info: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{shown} is no image"))?;
    if let Some(wanted) = &after.format {
        same(&shown, "format", wanted, info["format"].as_str().unwrap_or_default())?;
    }
    if let Some(wanted) = &after.virtual_size {
        same(&shown, "virtual size", &bytes(wanted)?.to_string(), &info["virtual-size"].to_string())?;
    }
    if let Some(wanted) = &after.backing {
        let backing = info["backing-filename"].as_str().unwrap_or("none");
        let wanted = vars.text(wanted)?;
        if clean(&wanted) != clean(backing) {
            bail!("{shown} has the backing file {backing}, not {wanted}");
        }
    }
    Ok(())
}

/// A program that looks at what a driver left. It may be anything, a chain of images that never ends too: so the
/// program gets five seconds of computing and eight gibibytes of addresses.
fn tool(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "20", "prlimit", "--as=8589934592", "--cpu=5", program]);
    command
}

fn same(path: &str, what: &str, wanted: &str, is: &str) -> Result<()> {
    if wanted != is {
        bail!("{path} has the {what} {is}, not {wanted}");
    }
    Ok(())
}
