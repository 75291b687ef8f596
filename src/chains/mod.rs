//! Snapshot chains on a host: what [`crate::image::chain`] decides, asked and done with operations.
//!
//! An action on a disk's snapshots is: [`read()`] the chain, have it plan, [`phases`] of the plan as steps.
//!
//! - [`mod@read`]: from a disk's names to the facts, in two round trips; the one place that reads layers.
//! - [`steps`]: from a plan to scripts, with what takes them back.

pub mod read;
pub mod steps;

pub use read::{Query, Reading, entries, read};
pub use steps::{Files, Phase, Staging, phases};
