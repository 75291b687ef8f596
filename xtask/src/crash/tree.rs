//! A front-end's tree with the binary that is proven, laid out by `install.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::world::tool;
use crate::conformance::sandbox::Tree;

/// The tree; it is removed when this is dropped.
pub struct Installed {
    _dir: tempfile::TempDir,
    /// As the kit takes it.
    pub tree: Tree,
}

impl Installed {
    /// Installs `binary`, or the one that was built beside this program, with the links of all families.
    ///
    /// # Errors
    /// No binary, or what the installer says.
    pub fn new(binary: Option<&Path>) -> Result<Self> {
        let beside = std::env::current_exe()?.with_file_name("onestore");
        let binary = binary.map_or(beside, Path::to_owned);
        let binary = binary.canonicalize().with_context(|| format!("Cannot find {}: cargo build", binary.display()))?;
        let dir = tempfile::Builder::new().prefix("crash-tree-").tempdir()?;
        let drivers = dir.path().join("var/remotes");
        for folder in ["datastore", "tm"] {
            std::fs::create_dir_all(drivers.join(folder))?;
        }
        let installer = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../install.sh"));
        tool(Command::new(installer).arg("--one-location").arg(dir.path()).arg("--binary").arg(&binary))?;
        // Families that are not complete are left to upstream by the installer; what they serve is proven all the same.
        let links = Command::new(&binary).arg("links").output()?;
        if !links.status.success() {
            bail!("{} does not name its links", binary.display());
        }
        for entry in String::from_utf8_lossy(&links.stdout).lines() {
            let link = drivers.join(entry);
            if !link.is_symlink() {
                std::fs::create_dir_all(link.parent().context("A link without a folder")?)?;
                std::os::unix::fs::symlink("../../onestore/launch", link)?;
            }
        }
        Ok(Self { _dir: dir, tree: Tree { drivers, lib: None, env: Vec::new() } })
    }
}
