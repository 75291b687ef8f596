//! What several storage families share, by what it is.
//!
//! - [`args`]: what a transfer manager is called with.
//! - [`backing`]: what a disk stands on, judged.
//! - [`blank`]: an empty disk.
//! - [`bridges`]: hosts that act for a datastore.
//! - [`container`]: a container that stands still while its disk is copied.
//! - [`disk`]: a disk of a VM that is made or replaced.
//! - [`context`], [`delete`], [`resize`], [`volatile`], [`migrate`], [`mv_host`]: actions of several transfer managers.
//! - [`folder`]: a directory in which new things come into being.
//! - [`image`]: an image as a host sees it in its datastore.
//! - [`journey`]: files on their way from one host to another.
//! - [`judge`]: a file where it lies, before a program opens it.
//! - [`layers`]: the snapshot layers of an image as they lie on the disk.
//! - [`live`]: storage operations on running domains.
//! - [`loosen`]: names within disks that hold wherever their directory is.
//! - [`monitor_ds`]: sizes of disks, told on a host.
//! - [`sizes`]: what disks and snapshots occupy.
//! - [`snapshot`], [`running`]: snapshots of disks, and the domain that has a part in them.
//! - [`swap`]: an image that comes back with its layers.
//! - [`trees`]: what becomes of a directory that is copied.
//! - [`migrate_host`]: live migration between hosts with storage of their own.
//! - [`volatile_host`]: disks of no image, and context, on a host's own storage.
//! - [`monitored`]: whether a host tells the sizes of disks.
//! - [`one_directory`]: whether two hosts see one directory.
//! - [`nfs`]: datastores that are mounted on demand, by a datastore for a moment.
//! - [`nfs_host`]: the same by a host, for its VMs.

pub mod args;
pub mod backing;
pub mod blank;
pub mod bridges;
pub mod container;
pub mod context;
pub mod delete;
pub mod disk;
pub mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod image;
pub mod journey;
pub mod judge;
pub mod layers;
pub mod live;
pub mod loosen;
pub mod migrate;
pub mod migrate_host;
pub mod monitor_ds;
pub mod monitored;
pub mod mv_host;
pub mod nfs;
pub mod nfs_host;
pub mod one_directory;
pub mod resize;
pub mod running;
pub mod sizes;
pub mod snapshot;
pub mod swap;
pub mod trees;
pub mod volatile;
pub mod volatile_host;
