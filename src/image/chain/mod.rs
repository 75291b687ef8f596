//! Snapshot chains of one disk as pure data: what lies there, what is wrong with it, and every operation as a plan.
//!
//! Nothing here does I/O. Somebody who can ask a host fills in [`Facts`]; [`Chain::of`] makes the model of them; the
//! operations answer with a [`Plan`], whose steps somebody who can change a host carries out. Both are `crate::chains`.
//!
//! A plan's steps are ordered so that being killed between any two of them loses nothing, and the same operation done
//! again completes it or says that it is done. `docs/chains.md` shows the layouts and what happens to which file.
//!
//! # Words
//!
//! Source: contract 02 §1 and §5. *File k* of the folder holds *snapshot k*: creating snapshot *k* freezes the current
//! file and makes `k+1` the current one. `k.current` redirects: the data of snapshot *k* lives in the file that it names.
//! A *layer* is a file of the folder; the *origin* is what the folder stands beside.
//!
//! # Layout
//!
//! - [`facts`]: the input. [`finding`]: what can be wrong. [`model`]: layers, parents, the current one.
//! - [`plan`]: steps and plans. [`offline`], [`live`], [`moving`]: the operations.

pub mod facts;
pub mod finding;
pub mod live;
pub mod model;
pub mod moving;
pub mod offline;
pub mod plan;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod simulator;

pub use facts::{Backing, Entry, Facts, Header, Inode, Kind, Manner, Names, Style};
pub use finding::{Finding, Refusal};
pub use live::Live;
pub use model::{Below, Chain, Layer, Node};
pub use offline::Source;
pub use plan::{Open, Plan, Planned, Step};
