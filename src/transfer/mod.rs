//! Moving image data: copies between files, streams into files, and the one-pass import of what a user named.
//!
//! # Layout
//!
//! - [`copy`]: file to file and stream to file, with reflinks and holes.

pub mod copy;
