//! How we were called: by link, by launcher or by hand, as one value.
//!
//! The last three components of the called path decide (`datastore|tm / <mad> / <action>[.<system>]`), never the target
//! of a link (rule 1 of `docs/architecture.md`; contract 01 §3). A path may hold `..` (`tm/ssh/../qcow2/premigrate`).

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::action::{Action, Kind};
use crate::driver::{PROGRAMS, Program};
use crate::location::normalize;

/// One call of a driver action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Datastore driver or transfer manager.
    pub kind: Kind,
    /// The driver's name (`fs`, `qcow2`).
    pub mad: String,
    /// The action as it was called, without the suffix (`clone`, `pre_backup`).
    pub action: String,
    /// Suffix of a mixed-mode call: the system datastore's driver (`ssh` of `clone.ssh`).
    pub system: Option<String>,
    /// Arguments after the program name.
    pub args: Vec<OsString>,
    /// The `remotes` folder of the called path, where we were called by path.
    pub remotes: Option<PathBuf>,
}

/// A call that names no action.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCall {
    /// The kind is neither `datastore` nor `tm`.
    #[error("Unknown driver kind {0:?}: expected ds (datastore) or tm")]
    Kind(String),
    /// A driver or action name with characters that no name has.
    #[error("Bad driver or action name {0:?}")]
    Name(String),
}

impl Invocation {
    /// The call that `path` stands for, when its last components are `datastore|tm / <mad> / <action>`.
    ///
    /// A relative path is taken from `cwd`. `None` for a program called by its own name.
    #[must_use]
    pub fn from_path(path: &Path, cwd: &Path, args: Vec<OsString>) -> Option<Self> {
        let whole = normalize(&cwd.join(path));
        let mut names = whole.components().rev().map(|c| c.as_os_str().to_str());
        let (action, mad, folder) = (names.next()??, names.next()??, names.next()??);
        if action == "onestore" || folder == "ds" {
            return None;
        }
        let kind = Kind::of_folder(folder)?;
        let mut call = Self::new(kind, mad, action, args).ok()?;
        call.remotes = whole.ancestors().nth(3).map(Path::to_owned);
        Some(call)
    }

    /// The `remotes` folder of a program beside the drivers, when the last two components of `path` name one
    /// (`datastore/downloader.sh`), and which it is.
    #[must_use]
    pub fn program(path: &Path, cwd: &Path) -> Option<(&'static Program, PathBuf)> {
        let whole = normalize(&cwd.join(path));
        let program = PROGRAMS.iter().find(|program| whole.ends_with(program.path))?;
        Some((program, whole.ancestors().nth(2)?.to_owned()))
    }

    /// The call that `onestore ds|tm MAD ACTION[.SYSTEM] ARGS…` stands for.
    ///
    /// # Errors
    /// [`BadCall`] for an unknown kind or a name that is none.
    pub fn from_words(kind: &str, mad: &str, action: &str, args: Vec<OsString>) -> Result<Self, BadCall> {
        let kind = Kind::of_folder(kind).ok_or_else(|| BadCall::Kind(kind.to_owned()))?;
        Self::new(kind, mad, action, args)
    }

    fn new(kind: Kind, mad: &str, action: &str, args: Vec<OsString>) -> Result<Self, BadCall> {
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        let (action, system) = match action.split_once('.') {
            Some((action, system)) => (action, Some(system)),
            None => (action, None),
        };
        for name in [Some(mad), Some(action), system].into_iter().flatten() {
            if !is_name(name) {
                return Err(BadCall::Name(name.to_owned()));
            }
        }
        Ok(Self {
            kind,
            mad: mad.to_owned(),
            action: action.to_owned(),
            system: system.map(str::to_owned),
            args,
            remotes: None,
        })
    }

    /// The action's row in the table of all actions, if there is such an action.
    #[must_use]
    pub fn spec(&self) -> Option<&'static Action> {
        Action::find(self.kind, &self.action)
    }

    /// The name under which the action is served: `pre_backup` is `prebackup`.
    #[must_use]
    pub fn canonical_action(&self) -> &str {
        self.spec().map_or(self.action.as_str(), |spec| spec.name)
    }
}

impl fmt::Display for Invocation {
    /// `tm/qcow2/clone.ssh`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.mad, self.action)?;
        match &self.system {
            Some(system) => write!(f, ".{system}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(path: &str, cwd: &str) -> Option<String> {
        Invocation::from_path(Path::new(path), Path::new(cwd), vec![]).map(|c| c.to_string())
    }

    #[test]
    fn the_last_components_decide() {
        let one = "/var/lib/one/remotes";
        assert_eq!(call("/var/lib/one/remotes/datastore/fs/cp", "/").as_deref(), Some("datastore/fs/cp"));
        assert_eq!(call("/var/tmp/one//tm/qcow2/clone.ssh", "/").as_deref(), Some("tm/qcow2/clone.ssh"));
        assert_eq!(call("tm/ssh/../qcow2/premigrate", one).as_deref(), Some("tm/qcow2/premigrate"));
        assert_eq!(call("./cp", "/r/datastore/fs").as_deref(), Some("datastore/fs/cp"));
        assert_eq!(call("../x/cp", "/r/datastore/fs").as_deref(), Some("datastore/x/cp"));
    }

    #[test]
    fn other_names_are_no_driver_calls() {
        for path in ["/usr/bin/onestore", "onestore", "/r/datastore/fs/onestore", "/a/b/c", "/", "", "/r/tm/q'x/cp"] {
            assert_eq!(call(path, "/r/tm/qcow2"), None, "{path}");
        }
        assert_eq!(call("/r/tm/qcow2/clone.a.b", "/"), None);
    }

    #[test]
    fn the_remotes_folder_is_kept() {
        let call = Invocation::from_path(Path::new("/r/one/tm/ssh/../qcow2/ln"), Path::new("/"), vec![]);
        assert_eq!(call.and_then(|c| c.remotes), Some(PathBuf::from("/r/one")));
    }

    #[test]
    fn programs_stand_beside_the_drivers() {
        let found =
            |path: &str, cwd: &str| Invocation::program(Path::new(path), Path::new(cwd)).map(|(_, remotes)| remotes);
        let one = Some(PathBuf::from("/r/one"));
        assert_eq!(found("/r/one/datastore/downloader.sh", "/"), one);
        assert_eq!(found("/r/one/datastore/fs/../downloader.sh", "/"), one);
        assert_eq!(found("./downloader.sh", "/r/one/datastore"), one);
        assert_eq!(found("/r/one/datastore/fs/downloader.sh", "/"), None);
        assert_eq!(found("/usr/bin/downloader.sh", "/"), None);
    }

    #[test]
    fn words_are_checked() {
        assert!(Invocation::from_words("ds", "fs", "cp", vec![]).is_ok());
        assert_eq!(Invocation::from_words("vm", "fs", "cp", vec![]), Err(BadCall::Kind("vm".into())));
        assert_eq!(Invocation::from_words("tm", "../fs", "cp", vec![]), Err(BadCall::Name("../fs".into())));
    }
}
