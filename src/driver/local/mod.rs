//! The `local` transfer manager: disks on the host's own storage, qcow2 ones with their chains.
//!
//! Source: contract 02 §1, §8, minus its weak points (`docs/deviations.md`).

use anyhow::Result;

use super::common::{context, delete, migrate as common, migrate_host, monitor_ds, mv_host, resize, volatile};
use super::{Driver, Entry, Reply, Serve, TmRequest};
use crate::action::Kind;
use crate::context::Cx;

/// The local transfer manager.
pub static DRIVER: Driver = Driver {
    kind: Kind::Tm,
    mads: &["local"],
    about: "Disks as files on the host's own storage, qcow2 ones with their chains",
    entries: &[
        own("mv", mv_host::mv),
        own("context", context::context),
        own("mkimage", volatile::mkimage),
        own("mkswap", volatile::mkswap),
        own("delete", delete::delete),
        own("resize", resize::resize),
        own("premigrate", migrate_host::premigrate),
        own("postmigrate", migrate_host::postmigrate),
        own("failmigrate", common::failmigrate),
        // Not called for storage that is not shared.
        Entry { name: "monitor", serve: Serve::Fixed("") },
        own("monitor_ds", monitor_ds::monitor_ds),
    ],
    left: &["prebackup", "prebackup_live", "postbackup", "postbackup_live", "restore"],
    // Until clones, snapshots, saving and bringing back are served.
    complete: false,
};

const fn own(name: &'static str, serve: fn(&Cx<'_>, &TmRequest) -> Result<Reply>) -> Entry {
    Entry { name, serve: Serve::Tm(serve) }
}
