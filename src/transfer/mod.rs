//! The one-pass import of what a user named: a path or URL becomes a checked stream. [`crate::exec::copy`] writes it.
//!
//! # Layout
//!
//! - [`import`]: opens what a user named as one stream: source, rate limit, digests, decoder; and its first bytes.
//! - [`size`]: how large an image will be, for the `stat` of a datastore.
//! - [`look`]: what an image is, by its head and its end, for people.
//! - [`source`]: files that users name, and which they may; it judges on the machine that has them.
//! - [`http`], [`proxy`]: downloads.
//! - [`s3`]: objects of S3 and of services like it: downloads with a signature.
//! - [`progress`]: how far a stream has come.
//! - `ssh`: files of other machines.
//! - [`helper`]: downloads by upstream's program, for schemes that we do not serve.
//! - [`rate`], [`digest`], [`decode`]: the stages of an import: how fast, whether it is the right one, what is inside.

pub mod decode;
pub mod digest;
pub mod helper;
pub mod http;
pub mod import;
pub mod look;
mod overlap;
pub mod progress;
pub mod proxy;
pub mod rate;
pub mod s3;
mod sigv4;
pub mod size;
mod ssh;
mod url;
mod watch;

pub use crate::exec::source;
