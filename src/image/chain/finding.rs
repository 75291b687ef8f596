//! What can be wrong with a chain, and why an operation refuses: one line each, naming the file.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong with a chain as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The disk itself is not there.
    DiskMissing(PathBuf),
    /// The disk is a link to a layer that is not there.
    ActiveMissing {
        /// The disk.
        disk: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// The disk is a link that leads out of its own files.
    DiskElsewhere {
        /// The disk.
        disk: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// The disk of a persistent image is a file of its own: what the VM writes does not reach the image.
    DiskCut {
        /// The disk.
        disk: PathBuf,
        /// The image.
        image: PathBuf,
    },
    /// The disk is a file, and the snapshots are layers that it has nothing to do with.
    DiskBeside {
        /// The disk.
        disk: PathBuf,
        /// A layer.
        layer: PathBuf,
    },
    /// Another disk of the VM uses one of our files.
    TwoDisks {
        /// Our file.
        file: PathBuf,
        /// The other disk.
        other: PathBuf,
    },
    /// A backing file is not there.
    MissingParent {
        /// The layer.
        file: PathBuf,
        /// The name in its header.
        name: String,
    },
    /// Layers back each other.
    Cycle(Vec<PathBuf>),
    /// A backing file is named without its format: a program would guess.
    NoBackingFormat(PathBuf),
    /// A backing file is declared as something that it is not.
    WrongFormat {
        /// The layer.
        file: PathBuf,
        /// What it declares.
        says: String,
        /// What the backing file is.
        is: &'static str,
    },
    /// A backing name that cannot be a file of ours: a protocol, or bytes that are no text.
    BadName {
        /// The layer.
        file: PathBuf,
        /// The name in its header.
        name: String,
    },
    /// A backing name that leads to another folder, while a file of that name lies here.
    OtherRoot {
        /// The layer.
        file: PathBuf,
        /// The name in its header.
        name: String,
        /// The file that lies here.
        here: PathBuf,
    },
    /// Where a layer should be there is something else.
    NotAFile(PathBuf),
    /// No program may open it.
    Unusable {
        /// The layer.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// `k.current` names a file that is not there, or none at all.
    DanglingCurrent {
        /// The marker.
        marker: PathBuf,
        /// What it names.
        names: PathBuf,
    },
    /// One file is said to hold several snapshots.
    SharedFile {
        /// The file.
        file: PathBuf,
        /// The snapshots.
        snapshots: Vec<u32>,
    },
    /// A layer with data stands on the file that the disk names as its current one.
    DataAbove {
        /// The layer.
        layer: PathBuf,
        /// The file that the disk names.
        active: PathBuf,
    },
    /// The snapshot's file was about to be merged into; its content is no longer the snapshot's.
    HalfDeleted {
        /// The snapshot.
        snapshot: u32,
        /// Its file.
        file: PathBuf,
    },
    /// The running domain uses another chain than the files say.
    LiveDiffers {
        /// What the domain uses.
        domain: String,
        /// What the files say.
        files: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let w = |path: &'_ Path| path.display().to_string();
        match self {
            Self::DiskMissing(disk) => write!(f, "{} is missing", w(disk)),
            Self::ActiveMissing { disk, target } => {
                write!(f, "{} is a link to {}, which is missing", w(disk), w(target))
            }
            Self::DiskElsewhere { disk, target } => {
                write!(f, "{} is a link to {}, which is none of its files", w(disk), w(target))
            }
            Self::DiskCut { disk, image } => {
                write!(f, "{} is a file of its own and no longer the image {}", w(disk), w(image))
            }
            Self::DiskBeside { disk, layer } => {
                write!(f, "{} is a file that has nothing to do with the layer {}", w(disk), w(layer))
            }
            Self::TwoDisks { file, other } => write!(f, "{} is used by another disk too: {}", w(file), w(other)),
            Self::MissingParent { file, name } => {
                write!(f, "{} needs its backing file '{}', which is missing", w(file), name.escape_debug())
            }
            Self::Cycle(files) => {
                let names: Vec<String> = files.iter().map(|file| w(file)).collect();
                write!(f, "The layers back each other in a circle: {}", names.join(", "))
            }
            Self::NoBackingFormat(file) => write!(f, "{} does not say which format its backing file has", w(file)),
            Self::WrongFormat { file, says, is } => {
                write!(f, "{} takes its backing file for {}, but it is {is}", w(file), says.escape_debug())
            }
            Self::BadName { file, name } => {
                write!(f, "{} has a backing file '{}', which is no path", w(file), name.escape_debug())
            }
            Self::OtherRoot { file, name, here } => write!(
                f,
                "{} has its backing file under another root, '{}', while {} lies here: the disk was moved",
                w(file),
                name.escape_debug(),
                w(here)
            ),
            Self::NotAFile(path) => write!(f, "{} is no file", w(path)),
            Self::Unusable { file, why } => write!(f, "{} cannot be used: {why}", w(file)),
            Self::DanglingCurrent { marker, names } => {
                write!(f, "{} names {}, which is missing", w(marker), w(names))
            }
            Self::SharedFile { file, snapshots } => {
                let ids: Vec<String> = snapshots.iter().map(ToString::to_string).collect();
                write!(f, "{} is said to hold the snapshots {}", w(file), ids.join(" and "))
            }
            Self::DataAbove { layer, active } => write!(
                f,
                "{} holds data above {}, which the disk names as its current file: a live snapshot was interrupted",
                w(layer),
                w(active)
            ),
            Self::HalfDeleted { snapshot, file } => write!(
                f,
                "Snapshot {snapshot} was being deleted when that was interrupted, {} no longer holds it: delete it again",
                w(file)
            ),
            Self::LiveDiffers { domain, files } => {
                write!(f, "The running domain uses {domain}, but the files say {files}")
            }
        }
    }
}

/// Why an operation is not done. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The part of the chain that it would touch is broken.
    #[error("{0}")]
    Broken(Finding),
    /// There is no such snapshot.
    #[error("Snapshot {} does not exist", .0.display())]
    NoSnapshot(PathBuf),
    /// A file of the snapshot, or of the state after it, is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The snapshot's file is the one that the VM writes to.
    #[error("{} holds the current state, nothing was written since that snapshot", .0.display())]
    HoldsCurrent(PathBuf),
    /// A layer stands on the file that would be replaced.
    #[error("{} stands on {}", .above.display(), .file.display())]
    StandsOn {
        /// The layer.
        above: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// The size of a disk is not known.
    #[error("The size of {} is unknown", .0.display())]
    NoSize(PathBuf),
    /// A disk of this kind cannot become a chain.
    #[error("{} cannot become a layer: its backing file '{}' is named relative to where it stands", .file.display(), .name.escape_debug())]
    Unmovable {
        /// The disk.
        file: PathBuf,
        /// Its backing name.
        name: String,
    },
    /// The snapshot cannot be deleted while the VM runs.
    #[error("{} cannot be merged while the VM runs: {why}", .file.display())]
    NotLive {
        /// The file.
        file: PathBuf,
        /// Why.
        why: &'static str,
    },
}
