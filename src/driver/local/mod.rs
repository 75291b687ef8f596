//! The `local` transfer manager: disks on the host's own storage, qcow2 ones with their chains.
//!
//! Source: contract 02 §1, §8, §11, minus its weak points (`docs/deviations.md`). What hosts of their own storage have in
//! common with `ssh` (moves, migrations, sizes) is in `driver::common`.
//!
//! # Layout
//!
//! - `clone`: `clone`, `ln`; `cache`, `metadata`: images that a host keeps.
//! - `mvds`, `cpds`: back to the image, and to a new one.
//! - `snapshot`: `snap_create`, `snap_create_live`, `snap_revert`, `snap_delete`.

mod cache;
mod clone;
mod cpds;
mod metadata;
mod mvds;
mod snapshot;

use anyhow::Result;

use super::common::{delete, migrate, migrate_host, monitor_ds, mv_host, resize, volatile_host};
use super::{Driver, Entry, Reply, Serve, TmRequest};
use crate::action::Kind;
use crate::context::Cx;

/// The local transfer manager.
pub static DRIVER: Driver = Driver {
    kind: Kind::Tm,
    mads: &["local"],
    about: "Disks as files on the host's own storage, qcow2 ones with their chains",
    entries: &[
        own("clone", clone::clone),
        own("ln", clone::ln),
        own("mv", mv_host::mv),
        own("mvds", mvds::mvds),
        own("cpds", cpds::cpds),
        own("snap_create", snapshot::create),
        own("snap_create_live", snapshot::create_live),
        own("snap_revert", snapshot::revert),
        own("snap_delete", snapshot::delete),
        own("context", volatile_host::context),
        own("mkimage", volatile_host::mkimage),
        own("mkswap", volatile_host::mkswap),
        own("delete", delete::delete),
        own("resize", resize::resize),
        own("premigrate", migrate_host::premigrate),
        own("postmigrate", migrate_host::postmigrate),
        own("failmigrate", migrate::failmigrate),
        // Not called for storage that is not shared.
        Entry { name: "monitor", serve: Serve::Fixed("") },
        own("monitor_ds", monitor_ds::monitor_ds),
    ],
    left: &["prebackup", "prebackup_live", "postbackup", "postbackup_live", "restore"],
    complete: true,
};

const fn own(name: &'static str, serve: fn(&Cx<'_>, &TmRequest) -> Result<Reply>) -> Entry {
    Entry { name, serve: Serve::Tm(serve) }
}
