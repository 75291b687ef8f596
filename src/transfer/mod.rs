//! The one-pass import of what a user named: a path or URL becomes a checked stream. [`crate::exec::copy`] writes it.
//!
//! # Layout
//!
//! - [`import`]: opens what a user named as one stream: source, rate limit, digests, decoder; and its first bytes.
//! - `options`: how an import behaves, and why one could not begin.
//! - [`size`]: how large an image will be, for the `stat` of a datastore.
//! - [`look`]: what an image is, by its head and its end, for people.
//! - [`source`]: files that users name, and which they may; it judges on the machine that has them.
//! - [`http`], [`proxy`]: downloads.
//! - [`s3`]: objects of S3 and of services like it: downloads with a signature.
//! - [`progress`]: how far a stream has come.
//! - `ssh`, `rbd`: files of other machines, images of a Ceph cluster that other machines reach.
//! - [`helper`]: the operator's programs for schemes that we do not serve; `word` reads what they print.
//! - [`unpack`]: tar and zip archives into a directory, with guards.
//! - [`rate`], [`digest`], [`decode`]: the stages of an import: how fast, whether it is the right one, what is inside.

pub mod decode;
pub mod digest;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod helper;
pub mod http;
pub mod import;
pub mod look;
mod options;
mod overlap;
pub mod progress;
pub mod proxy;
pub mod rate;
mod rbd;
pub mod s3;
pub(crate) mod sigv4;
pub mod size;
mod ssh;
pub mod unpack;
mod url;
mod watch;
mod word;

pub use crate::exec::source;
