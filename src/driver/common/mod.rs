//! What several storage families share, by what it is.
//!
//! - [`live`]: storage operations on running domains.

pub mod live;
