//! What the drivers are told: standard input and API answers as typed values.
//!
//! oned hands a datastore action its whole world as one XML document, Base64 or plain (contract 01 §6, 07 §1), and its
//! API answers with the same elements. [`read()`] takes the document in, [`parse()`] makes it an [`ActionData`], [`Vm`],
//! [`Image`], [`Datastore`], [`Host`], [`HostPool`] or [`DatastorePool`].
//!
//! # Layout
//!
//! - [`input`](mod@input): Base64 or plain bytes to text, with a size limit.
//! - [`field`]: the kinds of fields ([`Text`], [`First`], [`All`], [`SecretText`], [`Attributes`]) and the rule they share.
//! - `parser`: one pass over the XML with its defences; `record`: the macro that declares a record.
//! - `action`, `image`, `datastore`, `vm`, `host`: the records.
//!
//! # The rule for every value
//!
//! Elements may be repeated and interleaved. A value is the text of the *first* element of that name, as upstream's
//! `XPath` look-ups would find it; an empty first element is an absent value; unknown elements are skipped. A number that
//! is no number is an error only for the one who asks for it, and the error names the element.
//!
//! # Why not a derived serde type
//!
//! quick-xml's serde needs every repeatable element to be a list and buffers all that lies between two of its items.
//! With "the first one wins" every value is repeatable, so one long list of ids would be buffered and replayed once per
//! value. Here a repeated element is simply met again: one pass, nothing buffered.

mod action;
mod datastore;
mod error;
pub mod field;
mod host;
mod image;
pub mod input;
mod parser;
mod record;
#[cfg(test)]
mod tests;
mod vm;

pub use action::{ActionData, ExtraData, MarketTemplate, Marketplace, RestoreTemplate};
pub use datastore::{Datastore, DatastorePool, DatastoreTemplate, DatastoreType, Ids};
pub use error::{FieldError, PayloadError};
pub use field::{All, Attributes, First, SecretText, Text};
pub use host::{Host, HostDatastore, HostDatastores, HostPool, HostShare, HostTemplate};
pub use image::{Image, ImageTemplate, ImageType, Increment, Increments, Snapshot, Snapshots};
pub use input::{DEFAULT_LIMIT, read};
pub(crate) use parser::{Document, Parser};
pub use parser::{MAX_DEPTH, parse};
pub(crate) use record::{Record, record};
pub use vm::{
    BackupConfig, Backups, Context, Disk, HISTORY_ACTION_DELETE_RECREATE, History, HistoryRecords, Os, Tpm,
    UserTemplate, Vm, VmTemplate,
};
