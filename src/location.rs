//! Where OpenNebula keeps things: the folders of an installation, and names inside a datastore.
//!
//! Source: contract 01 §2 (the `ONE_LOCATION` rules).

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// The folders of one OpenNebula installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `/var/lib/one` or `$ONE_LOCATION/var`.
    pub var: PathBuf,
    /// `/etc/one` or `$ONE_LOCATION/etc`.
    pub etc: PathBuf,
    /// The `remotes` folder we belong to: the one we were called in, else `<var>/remotes`.
    pub remotes: PathBuf,
    /// Where scripts keep datastores: `$DS_DIR`, else `<var>/datastores`.
    pub datastores: PathBuf,
    /// The home directory of the cloud's administrator.
    pub home: Option<PathBuf>,
}

impl Layout {
    /// Works the folders out from the environment; `called_in` is the `remotes` folder of the called path.
    #[must_use]
    pub fn new(env: impl Fn(&str) -> Option<std::ffi::OsString>, called_in: Option<&Path>) -> Self {
        let get = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let (var, etc) = match get("ONE_LOCATION") {
            Some(one) => (one.join("var"), one.join("etc")),
            None => (PathBuf::from("/var/lib/one"), PathBuf::from("/etc/one")),
        };
        Self {
            remotes: called_in.map_or_else(|| var.join("remotes"), Path::to_owned),
            datastores: get("DS_DIR").unwrap_or_else(|| var.join("datastores")),
            home: get("HOME"),
            var,
            etc,
        }
    }

    /// The folders that no image may come from, whatever a datastore says: secrets of the cloud itself.
    #[must_use]
    pub fn restricted(&self) -> Vec<PathBuf> {
        [Some(&self.var), Some(&self.etc), self.home.as_ref()].into_iter().flatten().cloned().collect()
    }
}

/// Why a path is not an image of a datastore.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Bad image source {source_path:?}: it is not a file directly in {base}", base = .base.display())]
pub struct NotInDatastore {
    source_path: PathBuf,
    base: PathBuf,
}

/// The files that belong to one image in a file datastore (contract 02 §1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    /// `BASE`, normalised.
    pub base: PathBuf,
    /// `BASE/<hash>`: the image, SOURCE of oned.
    pub image: PathBuf,
}

impl ImageFiles {
    /// The files of the image `source` of the datastore at `base`.
    ///
    /// `source` has to be a plain name directly in `base`, compared by path components: this is what keeps `rm` and the
    /// snapshot actions inside the datastore.
    ///
    /// # Errors
    /// [`NotInDatastore`] when it is not, or when the name is hidden (`.onestore`, `.isofiles` are not images).
    pub fn new(base: &Path, source: &Path) -> Result<Self, NotInDatastore> {
        let refuse = || NotInDatastore { source_path: source.to_owned(), base: base.to_owned() };
        let dots = source.components().any(|c| matches!(c, Component::ParentDir));
        let (base, image) = (normalize(base), normalize(source));
        let name = image.file_name().ok_or_else(refuse)?;
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if dots || hidden || !base.is_absolute() || base.parent().is_none() || image.parent() != Some(&base) {
            return Err(refuse());
        }
        Ok(Self { base, image })
    }

    /// `BASE/<hash>.snap`: its snapshots.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        with_suffix(&self.image, ".snap")
    }

    /// `BASE/<hash>.snap/<id>`: one snapshot.
    #[must_use]
    pub fn snapshot(&self, id: u32) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// `BASE/<hash>.md5sum`: the digest that replica hosts compare.
    #[must_use]
    pub fn md5sum(&self) -> PathBuf {
        with_suffix(&self.image, ".md5sum")
    }
}

/// `path` with `suffix` at the end of its last component.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(OsStr::new(suffix));
    PathBuf::from(name)
}

/// Resolves `.` and `..` by text alone and collapses repeated slashes.
///
/// Right for called paths and for what oned prints (`/var/lib/one//datastores/1`), wrong where `..` may follow a link.
#[must_use]
pub fn normalize(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() || out.as_os_str() == OsStr::new("") {
                    out.push("/");
                }
            }
            other => out.push(other.as_os_str()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_location_moves_everything() {
        let env = |name: &str| (name == "ONE_LOCATION").then(|| "/opt/one".into());
        let layout = Layout::new(env, None);
        assert_eq!(layout.remotes, Path::new("/opt/one/var/remotes"));
        assert_eq!(layout.datastores, Path::new("/opt/one/var/datastores"));
        let plain = Layout::new(|_| Some("".into()), Some(Path::new("/var/tmp/one")));
        assert_eq!(plain.var, Path::new("/var/lib/one"));
        assert_eq!(plain.remotes, Path::new("/var/tmp/one"));
    }

    #[test]
    fn an_image_lies_directly_in_its_datastore() {
        let ok = |source: &str| ImageFiles::new(Path::new("/ds//1/"), Path::new(source)).is_ok();
        assert!(ok("/ds/1/abc") && ok("/ds//1//abc"));
        for bad in [
            "/ds/1",
            "/ds/1/",
            "/ds/1/a/b",
            "/ds/1/../2/abc",
            "/ds/1/x/../abc",
            "/ds/1/.onestore",
            "/etc/passwd",
            "abc",
            "",
            "/",
        ] {
            assert!(!ok(bad), "{bad}");
        }
        assert!(ImageFiles::new(Path::new("/"), Path::new("/etc")).is_err());
    }
}
