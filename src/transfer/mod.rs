//! Moving image data: copies between files, streams into files, and the one-pass import of what a user named.
//!
//! # Layout
//!
//! - [`copy`]: file to file and stream to file, with reflinks and holes.
//! - [`import`]: opens what a user named as one stream: source, rate limit, digests, decoder; and its first bytes.
//! - [`size`]: how large an image will be, for the `stat` of a datastore.
//! - [`source`]: files of this machine that users name, and which they may.
//! - [`http`], [`proxy`]: downloads.
//! - [`progress`]: how far a stream has come.
//! - [`helper`]: downloads by upstream's program, for schemes that we do not serve.
//! - [`rate`], [`digest`], [`decode`]: the stages of an import: how fast, whether it is the right one, what is inside.

pub mod copy;
pub mod decode;
pub mod digest;
pub mod helper;
pub mod http;
pub mod import;
mod overlap;
pub mod progress;
pub mod proxy;
pub mod rate;
pub mod size;
pub mod source;
mod url;
mod watch;
