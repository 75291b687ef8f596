//! What several storage families share, by what it is.
//!
//! - [`blank`]: an empty disk.
//! - [`bridges`]: hosts that act for a datastore.
//! - [`folder`]: a directory in which new things come into being.
//! - [`judge`]: a file where it lies, before a program opens it.
//! - [`layers`]: the snapshot layers of an image as they lie on the disk.
//! - [`nfs`]: datastores that are mounted on demand.

pub mod blank;
pub mod bridges;
pub mod folder;
pub mod judge;
pub mod layers;
pub mod nfs;
