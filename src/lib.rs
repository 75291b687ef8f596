//! OpenNebula's storage drivers as one binary.
//!
//! # Layout
//!
//! In reading order; each module uses those below it, never those above (`docs/architecture.md`).
//!
//! - [`cli`]: what a person types, and whether it was a person at all.
//! - [`invocation`]: how we were called, by link or by hand, as one value.
//! - [`action`]: every action that OpenNebula calls, with arguments and reply.
//! - [`dispatch`]: from a call to its reply; the only caller of drivers. [`actions_page`] prints the tables.
//! - [`downloader`]: `datastore/downloader.sh` for those who call it, `onestore download` for people.
//! - [`driver`]: the storage families, one file or folder each, and the table of all of them.
//! - [`context`]: what a driver is given; `query` and `apply` are its only ways out.
//! - [`payload`]: standard input as typed values.
//! - [`oned`]: asking oned for objects.
//! - [`settings`], [`location`], [`report`]: configuration files, folders, oned's dialect on stdout and stderr.
//! - [`chains`]: snapshot chains on a host: read, planned by [`image::chain`], done as steps.
//! - [`transfer`]: what a user named as a checked stream: sources, decoders, digests.
//! - [`image`]: what image headers say, judged before any program opens the image.
//! - [`tool`]: one file per external program: commands as data.
//! - [`exec`]: operations, scripts and steps; the interpreters and hosts that run them; sparse copies.

pub mod action;
pub mod actions_page;
pub mod chains;
pub mod cli;
pub mod context;
pub mod dispatch;
pub mod downloader;
pub mod driver;
pub mod exec;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod image;
pub mod invocation;
pub mod location;
pub mod oned;
pub mod payload;
pub mod report;
pub mod settings;
pub mod tool;
pub mod transfer;
