//! A loop-mounted xfs with reflink, where copies share their data; it goes with the guard.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::measure::{helper, progress};

/// Size of the file system: the file that holds it is sparse, so that only what is written costs space.
const BYTES: u64 = 40 << 30;

/// A mounted file system.
pub struct Xfs {
    dir: PathBuf,
    image: PathBuf,
}

impl Xfs {
    /// Makes one below `work`.
    ///
    /// # Errors
    /// Not root, `mkfs.xfs` missing, no loop device.
    pub fn mount(work: &Path) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("Needs root, for a loop mount");
        }
        // From here on `drop` cleans up, however far we come.
        let xfs = Self { dir: work.join("xfs"), image: work.join("xfs.img") };
        fs::create_dir(&xfs.dir).with_context(|| format!("Cannot make {}", xfs.dir.display()))?;
        File::create(&xfs.image).and_then(|f| f.set_len(BYTES)).context("Cannot make the file for an xfs")?;
        let (image, dir) = (xfs.image.as_os_str(), xfs.dir.as_os_str());
        let os = OsStr::new;
        helper("mkfs.xfs", &[os("-q"), os("-m"), os("reflink=1"), image], Stdio::null())?;
        helper("mount", &[os("-o"), os("loop"), image, dir], Stdio::null())?;
        Ok(xfs)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn mounted(&self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
        device(&self.dir).is_some() && device(&self.dir) != self.dir.parent().and_then(device)
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let dir = self.dir.as_os_str();
        // A command that was just killed may hold it for a moment.
        for _ in 0..20 {
            if !self.mounted() || helper("umount", &[dir], Stdio::null()).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        if self.mounted()
            && let Err(error) = helper("umount", &[OsStr::new("--lazy"), dir], Stdio::null())
        {
            progress(&format!("Cannot unmount {}: {error:#}", self.dir.display()));
            return;
        }
        // The loop device went with the mount (`mount -o loop` sets it to).
        let _ = fs::remove_dir(&self.dir);
        let _ = fs::remove_file(&self.image);
    }
}
