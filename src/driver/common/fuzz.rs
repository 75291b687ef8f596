//! What must hold of places that arguments, attributes, headers and names of files name. See [`crate::fuzz`].

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::args;
use super::backing::{is_image, without_self_links};
use crate::exec::host::HostName;
use crate::exec::staging;
use crate::fuzz::halves;
use crate::location::{ImageFiles, normalize};

fn goes_up(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

/// `HOST:PATH`, images of a datastore, files that images stand on, staging files: what is accepted lies where it must.
pub fn places(data: &[u8]) {
    let (first, second) = halves(data, 0);
    let (first, second) = (OsStr::from_bytes(first), OsStr::from_bytes(second));
    for vm in [0, 7, 42, u32::MAX] {
        let (host, path) = args::split(first);
        let host = host.and_then(OsStr::to_str).unwrap_or_default();
        assert!(HostName::new(host).is_err() || !host.starts_with('-'), "{host}");
        let Some(args::Parts { root, datastore, dir, name }) = args::parts(path, vm) else { continue };
        assert!(root.is_absolute() && root.parent().is_some() && !goes_up(&dir), "{}", dir.display());
        assert_eq!(dir, root.join(datastore.to_string()).join(vm.to_string()));
        let named = name.is_none_or(|name| {
            let path = dir.join(&name);
            path.parent() == Some(&*dir) && (name == "kernel" || name == "initrd" || name.starts_with("disk."))
        });
        assert!(named, "{}", dir.display());
    }
    if let Ok(files) = ImageFiles::new(Path::new(first), Path::new(second)) {
        assert!(files.base.is_absolute() && files.base.parent().is_some() && !goes_up(&files.image));
        let inside = [files.image.clone(), files.snapshots(), files.md5sum()];
        assert!(inside.iter().all(|path| path.parent() == Some(&*files.base)), "{inside:?}");
        assert!(!files.image.file_name().is_none_or(|name| name.as_bytes().starts_with(b".")), "{inside:?}");
        assert_eq!(files.snapshot(3).parent(), Some(&*files.snapshots()));
        assert!(ImageFiles::new(&files.base, &files.image).is_ok());
    }
    let path = normalize(&Path::new("/ds").join(first));
    assert!(path.is_absolute() && !goes_up(&path) && normalize(&path) == path, "{}", path.display());
    let whole = without_self_links(&path);
    assert!(is_below_same(&whole, &path));
    for path in [path, whole, PathBuf::from(first)] {
        if is_image(Path::new("/ds"), &path) {
            assert!(path.starts_with("/ds") && !goes_up(&path) && (4..=5).contains(&path.components().count()));
        }
    }
    if let Some(to) = staging::final_of(Path::new(first)) {
        let from = Path::new(first);
        assert_eq!(to.parent(), from.parent().and_then(Path::parent));
        let name = from.file_name().expect("it has a name");
        let owner = staging::owner_of(name).expect("a staging file has an owner");
        let final_name = to.file_name().expect("it has a name");
        assert!(staging::staging_path(Path::new("/ds"), &owner, final_name).ends_with(name), "{}", from.display());
    }
}

/// Whether every part of a path stands in another one, in the same order.
fn is_below_same(part: &Path, whole: &Path) -> bool {
    let mut rest = whole.components();
    part.components().all(|one| rest.any(|other| other == one))
}
