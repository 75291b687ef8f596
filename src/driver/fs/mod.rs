//! The `fs` datastore: images as files in a directory, on the front-end or behind bridge hosts.
//!
//! Source: contract 02 §2, minus its weak points (`docs/deviations.md`).
//!
//! # Layout
//!
//! - `place`: which machine handles the datastore's files, and how a new file gets its name there.
//! - `register`: `cp` and `stat`, the door through which users' bytes come in.
//! - `create`: `mkfs`.
//! - `copy`: `clone`.
//! - `remove`: `rm`.
//! - `report`: `monitor` and `export`, which change nothing.
//! - `snapshot`: `snap_delete`, `snap_revert`, `snap_flatten`.

mod copy;
mod create;
mod place;
mod register;
mod remove;
mod report;
mod snapshot;

use anyhow::Result;

use super::{Driver, Entry, Reply, Request, Serve};
use crate::action::Kind;
use crate::context::Cx;

/// The fs datastore.
pub static DRIVER: Driver = Driver {
    kind: Kind::Datastore,
    mads: &["fs"],
    about: "Images as files in a directory, local, shared or behind bridge hosts",
    entries: &[
        own("cp", register::cp),
        own("mkfs", create::mkfs),
        own("clone", copy::clone),
        own("stat", register::stat),
        own("rm", remove::rm),
        own("monitor", report::monitor),
        own("export", report::export),
        own("snap_delete", snapshot::delete),
        own("snap_revert", snapshot::revert),
        own("snap_flatten", snapshot::flatten),
    ],
    left: &[],
    complete: true,
};

const fn own(name: &'static str, serve: fn(&Cx<'_>, &Request) -> Result<Reply>) -> Entry {
    Entry { name, serve: Serve::Datastore(serve) }
}
