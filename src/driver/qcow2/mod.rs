//! The `qcow2` transfer manager, which is also called `shared`: disks as files on storage that front-end and hosts share,
//! as overlays on the image or copies of it. With the suffix `.ssh`, disks on the host's own storage (mixed mode).
//!
//! Source: contract 02 §1, §3–6, minus its weak points (`docs/deviations.md`).
//!
//! # Layout
//!
//! - `clone`: `clone`, `clone.ssh`.
//! - `ln`, `mv`, `cpds`: persistent disks, moves between datastores, saving as an image.
//! - `migrate`: `premigrate`, `postmigrate`.
//! - `mixed`: `ln.ssh`, `mvds.ssh`.
//! - `monitor`: space and disk sizes.
//! - `mounts`: the first look at a host: mounts, image, place of the disk.

mod clone;
mod cpds;
mod ln;
mod migrate;
mod mixed;
mod monitor;
mod mounts;
mod mv;

use anyhow::Result;

use super::common::snapshot::{self, Act, Keeping};
use super::common::{context, delete, migrate as common, mv_host, resize, volatile};
use super::{Driver, Entry, Reply, Serve, TmRequest};
use crate::action::Kind;
use crate::context::Cx;
use crate::image::chain::Manner;

/// Where snapshots are on shared storage.
const SHARED: Keeping = Keeping::WithImage;

/// Where they are in mixed mode.
const HOST: Keeping = Keeping::WithDisk(Manner::Relative);

/// The qcow2 transfer manager, and shared.
pub static DRIVER: Driver = Driver {
    kind: Kind::Tm,
    mads: &["qcow2", "shared"],
    about: "Disks as overlays or files on storage that all hosts share",
    entries: &[
        own("clone", clone::clone),
        own("clone.ssh", clone::clone_ssh),
        own("ln", ln::ln),
        // A persistent disk is the image: there is nothing to bring back.
        Entry { name: "mvds", serve: Serve::Fixed("") },
        own("ln.ssh", mixed::ln),
        own("mvds.ssh", mixed::mvds),
        own("mv", mv::mv),
        own("mv.ssh", mv_host::mv),
        own("context", context::context),
        own("mkimage", volatile::mkimage),
        own("mkswap", volatile::mkswap),
        own("delete", delete::delete),
        own("resize", resize::resize),
        own("premigrate", migrate::premigrate),
        own("postmigrate", migrate::postmigrate),
        own("failmigrate", common::failmigrate),
        Entry { name: "monitor", serve: Serve::Datastore(monitor::monitor) },
        own("cpds", cpds::cpds),
        own("cpds.ssh", cpds::cpds_ssh),
        own("snap_create", |cx, request| snapshot::run(cx, request, SHARED, Act::Create)),
        own("snap_create.ssh", |cx, request| snapshot::run(cx, request, HOST, Act::Create)),
        own("snap_create_live", |cx, request| snapshot::run(cx, request, SHARED, Act::CreateLive)),
        own("snap_create_live.ssh", |cx, request| snapshot::run(cx, request, HOST, Act::CreateLive)),
        own("snap_revert", |cx, request| snapshot::run(cx, request, SHARED, Act::Revert)),
        own("snap_revert.ssh", |cx, request| snapshot::run(cx, request, HOST, Act::Revert)),
        own("snap_delete", |cx, request| snapshot::run(cx, request, SHARED, Act::Delete)),
        own("snap_delete.ssh", |cx, request| snapshot::run(cx, request, HOST, Act::Delete)),
    ],
    left: &["prebackup", "prebackup_live", "postbackup", "postbackup_live", "restore"],
    complete: true,
};

const fn own(name: &'static str, serve: fn(&Cx<'_>, &TmRequest) -> Result<Reply>) -> Entry {
    Entry { name, serve: Serve::Tm(serve) }
}
