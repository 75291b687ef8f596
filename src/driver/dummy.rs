//! The `dummy` datastore and transfer manager: fixed answers, for clouds without storage.
//!
//! Source: contract 02 §2 and §3, 01 §16. Figures and their order as upstream prints them.

use super::{Driver, Entry, Serve};
use crate::action::Kind;

/// The dummy datastore.
pub static DATASTORE: Driver = Driver {
    kind: Kind::Datastore,
    mads: &["dummy"],
    about: "Answers as if there were images; stores nothing",
    entries: &[
        fixed("cp", "dummy_path dummy_format\n"),
        fixed("mkfs", "dummy_path\n"),
        fixed("clone", "dummy_path\n"),
        fixed("stat", "1024\n"),
        fixed("rm", ""),
        fixed("monitor", "USED_MB=9720\nTOTAL_MB=20480\nFREE_MB=20480\n"),
        fixed("export", "dummy_path\n"),
        fixed("snap_delete", ""),
        fixed("snap_revert", ""),
        fixed("snap_flatten", ""),
        fixed("restore", "0 dummy_image\n"),
    ],
    left: &[],
    complete: true,
};

/// The dummy transfer manager.
pub static TM: Driver = Driver {
    kind: Kind::Tm,
    mads: &["dummy"],
    about: "Moves no disks and says that it did",
    entries: &[
        fixed("clone", ""),
        fixed("ln", ""),
        fixed("mkimage", ""),
        fixed("mkswap", ""),
        fixed("context", ""),
        fixed("mv", ""),
        fixed("mvds", ""),
        fixed("cpds", ""),
        fixed("delete", ""),
        fixed("resize", ""),
        fixed("snap_create", ""),
        Entry { name: "snap_create_live", serve: Serve::NotSupported },
        fixed("snap_revert", ""),
        fixed("snap_delete", ""),
        fixed("premigrate", ""),
        fixed("postmigrate", ""),
        fixed("failmigrate", ""),
        fixed("restore", ""),
        fixed("monitor", "USED_MB=1429920\nFREE_MB=3333260\nTOTAL_MB=4796800\n"),
    ],
    left: &[],
    complete: true,
};

const fn fixed(name: &'static str, answer: &'static str) -> Entry {
    Entry { name, serve: Serve::Fixed(answer) }
}
