//! Plans: pure steps with what takes each of them back.

use std::fmt;
use std::path::PathBuf;

/// One change of a disk's files. Each is done completely or not at all, or can be interrupted without harm; where not, it
/// says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the folder of layers.
    MakeFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// Removes the folder of layers if it is empty.
    DropFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// Makes a symbolic link, or points one elsewhere, in one rename.
    Link {
        /// The link.
        link: PathBuf,
        /// Its text.
        target: PathBuf,
    },
    /// Gives a file a second name (a hard link).
    SecondName {
        /// The file.
        file: PathBuf,
        /// The new name.
        name: PathBuf,
    },
    /// Makes an empty overlay beside and renames it to its name, over what is there.
    PutOverlay {
        /// Its name.
        file: PathBuf,
        /// The backing file as it is written in the header.
        backing: PathBuf,
        /// Its format.
        format: &'static str,
        /// Bytes that a guest sees.
        size: u64,
    },
    /// Copies a file beside and renames it to its name, over what is there.
    PutCopy {
        /// The file copied.
        from: PathBuf,
        /// Its name.
        to: PathBuf,
    },
    /// Gives an overlay another backing file; what a guest sees of it stays.
    ///
    /// With `copy` clusters that differ are copied into it first, and it may be interrupted at any time. Without, only the
    /// name changes, for a backing file of equal content.
    Rebase {
        /// The overlay.
        file: PathBuf,
        /// The new backing file as it is written in the header, and its format; none to make it stand alone.
        onto: Option<(PathBuf, String)>,
        /// Whether content has to be copied.
        copy: bool,
    },
    /// Removes a file or link.
    Remove {
        /// What goes.
        file: PathBuf,
    },
    /// Writes a small marker file, in one rename.
    Mark {
        /// The marker: `k.current`, `k.deleting`.
        marker: PathBuf,
        /// The path that stands in it.
        names: PathBuf,
    },
    /// Has the running domain write to an overlay that is there already (`snapshot-create --reuse-external`).
    LiveSnapshot {
        /// The overlay.
        file: PathBuf,
    },
    /// Has the running domain copy into its current file all that lies between it and `base`; may be interrupted.
    BlockPull {
        /// The current file.
        file: PathBuf,
        /// What it stands on afterwards; none for nothing.
        base: Option<Open>,
        /// Its name as it is to stand in the header.
        backing: Option<PathBuf>,
    },
    /// Has the running domain merge `top` into `base` and take it out of its chain. Interrupted, `base` holds a part of
    /// it: what is read through `top` stays right, `base` alone is of no use any more.
    BlockCommit {
        /// The layer that is merged.
        top: Open,
        /// The layer below it.
        base: Open,
        /// The layer above `top`, which stands on `base` afterwards.
        above: PathBuf,
        /// The name of `base` as it is to stand in its header.
        backing: PathBuf,
    },
}

/// A file that the domain has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its path in the folder. The domain may know it by another one (`S/disk.N`, if it was the current file once).
    pub path: PathBuf,
    /// Its position in the domain's chain (`vda[1]`); 0 is the current file.
    pub at: usize,
}

/// A step with what takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The step.
    pub step: Step,
    /// What takes it back, also after a part of it; empty where it is harmless or where there is no way back.
    pub undo: Vec<Step>,
}

/// What an operation comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Planned>,
    /// Why there is nothing to do, or less than one might expect; for the log.
    pub note: Option<String>,
}

impl Plan {
    /// A plan without steps that says why.
    #[must_use]
    pub fn nothing(note: impl Into<String>) -> Self {
        Self { steps: Vec::new(), note: Some(note.into()) }
    }

    /// Adds a step that is not taken back.
    pub fn push(&mut self, step: Step) {
        self.steps.push(Planned { step, undo: Vec::new() });
    }

    /// Adds a step and what takes it back.
    pub fn push_with(&mut self, step: Step, undo: Step) {
        self.steps.push(Planned { step, undo: vec![undo] });
    }
}

impl fmt::Display for Step {
    /// The sentence that explains it, without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeFolder { folder } => write!(f, "Make the folder of layers {}", folder.display()),
            Self::DropFolder { folder } => write!(f, "Drop the folder of layers {}", folder.display()),
            Self::Link { link, target } => write!(f, "Point {} to {}", link.display(), target.display()),
            Self::SecondName { file, name } => write!(f, "Give {} the second name {}", file.display(), name.display()),
            Self::PutOverlay { file, backing, .. } => {
                write!(f, "Make the empty layer {} on {}", file.display(), backing.display())
            }
            Self::PutCopy { from, to } => write!(f, "Copy {} to {}", from.display(), to.display()),
            Self::Rebase { file, onto: Some((name, _)), copy: true } => {
                write!(f, "Put {} on {}, its content stays", file.display(), name.display())
            }
            Self::Rebase { file, onto: Some((name, _)), copy: false } => {
                write!(f, "Name {} as the backing file of {}", name.display(), file.display())
            }
            Self::Rebase { file, onto: None, .. } => {
                write!(f, "Make {} stand alone, its content stays", file.display())
            }
            Self::Remove { file } => write!(f, "Remove {}", file.display()),
            Self::Mark { marker, names } => write!(f, "Write {} into {}", names.display(), marker.display()),
            Self::LiveSnapshot { file } => write!(f, "Have the domain write to {}", file.display()),
            Self::BlockPull { base: Some(base), .. } => {
                write!(f, "Have the domain pull what lies above {} into its current file", base.path.display())
            }
            Self::BlockPull { base: None, .. } => {
                f.write_str("Have the domain pull its whole chain into its current file")
            }
            Self::BlockCommit { top, base, .. } => {
                write!(f, "Have the domain merge {} into {}", top.path.display(), base.path.display())
            }
        }
    }
}

/// A plan as text: one line per step.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for planned in &self.steps {
            writeln!(f, "{}", planned.step)?;
        }
        match &self.note {
            Some(note) => writeln!(f, "({note})"),
            None => Ok(()),
        }
    }
}
