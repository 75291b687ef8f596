//! The `ssh` transfer manager: disks as files on the hosts' own storage, brought there and back by ssh. Snapshots are full
//! copies.
//!
//! Source: contract 02 §1, §3, §4, §7, minus its weak points (`docs/deviations.md`). Nothing is removed before a copy of it
//! is complete, on the disk, and known to be the same: files arrive under staging names ([`super::common::journey`]).
//!
//! # Layout
//!
//! - `order`, `goods`, `delivery`: what is asked for, the files of an image, and how they get into a VM's directory.
//! - `clone`: `clone`, `ln`; `replica`: the same by way of a replica host, `clone.replica`, `ln.replica`.
//! - `cache`: images on a replica host; `recovery`: what it keeps of a VM.
//! - `recovery_snapshot`: `recovery_snap_create_live`, on a hypervisor.
//! - `export`: a file that holds all of a disk; `mvds`, `cpds`: back into the image, into a new one.
//! - `snapshot`: `snap_create`, `snap_create_live`, `snap_revert`, `snap_delete`.
//! - `delete`: the common action and what is ours in it.

mod cache;
mod clone;
mod cpds;
mod delete;
mod delivery;
mod export;
mod goods;
mod mvds;
mod order;
mod recovery;
mod recovery_snapshot;
mod replica;
mod snapshot;

use anyhow::Result;

use super::common::{migrate, migrate_host, monitor_ds, mv_host, resize, volatile_host};
use super::{Driver, Entry, Reply, Serve, TmRequest};
use crate::action::Kind;
use crate::context::Cx;

/// The ssh transfer manager.
pub static DRIVER: Driver = Driver {
    kind: Kind::Tm,
    mads: &["ssh"],
    about: "Disks as files on the hosts' own storage, brought by ssh",
    entries: &[
        own("clone", clone::clone),
        own("clone.replica", replica::clone),
        own("ln", clone::clone),
        own("ln.replica", replica::clone),
        own("mv", mv_host::mv),
        own("mvds", mvds::mvds),
        own("cpds", cpds::cpds),
        own("context", volatile_host::context),
        own("mkimage", volatile_host::mkimage),
        own("mkswap", volatile_host::mkswap),
        own("delete", delete::delete),
        own("resize", resize::resize),
        own("snap_create", snapshot::create),
        own("snap_create_live", snapshot::create_live),
        own("snap_revert", snapshot::revert),
        own("snap_delete", snapshot::delete),
        own("premigrate", migrate_host::premigrate),
        own("postmigrate", migrate_host::postmigrate),
        own("failmigrate", migrate::failmigrate),
        // Not called for storage that is not shared.
        Entry { name: "monitor", serve: Serve::Fixed("") },
        own("monitor_ds", monitor_ds::monitor_ds),
        own("recovery_snap_create_live", recovery_snapshot::create),
    ],
    left: &["prebackup", "prebackup_live", "postbackup", "postbackup_live", "restore"],
    complete: true,
};

const fn own(name: &'static str, serve: fn(&Cx<'_>, &TmRequest) -> Result<Reply>) -> Entry {
    Entry { name, serve: Serve::Tm(serve) }
}
