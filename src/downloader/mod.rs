//! Downloads for callers that are no driver of ours: `datastore/downloader.sh`, and `onestore download` for people.
//!
//! Contract 03. Markets, backups and the drivers of others call `downloader.sh FROM TO`; its options, texts and exit
//! statuses are kept. All the work is [`crate::transfer::import`]'s: one pass, whoever asks.
//!
//! # Layout
//!
//! - [`run`]: `downloader.sh`; [`options`]: its arguments and environment.
//! - [`person`]: `onestore download`.
//! - [`job`]: one download; [`target`]: where it goes, and how it gets there whole.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::exec::cmd::Secret;
use crate::exec::control::{Cancel, Control, Stopped};
use crate::exec::process::Programs;
use crate::location::Layout;
use crate::payload::{self, ActionData};
use crate::report::{Misuse, exit_status, find, one_line};
use crate::settings::Settings;
use crate::transfer::digest::Mismatch;
use crate::transfer::helper::{HelperError, Helpers, is_interactive};
use crate::transfer::unpack::Limits;
use crate::transfer::{http, import, s3};

pub mod job;
pub mod options;
pub mod person;
pub mod target;

use job::Job;
use options::Options;
use target::Target;

/// Exit status of every failure that has no other (`exit -1` of upstream's script).
const FAILED: u8 = 255;

/// Serves a call of `<remotes>/datastore/downloader.sh`.
#[must_use]
pub fn run(args: Vec<OsString>, remotes: &Path) -> ExitCode {
    match serve(args, remotes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", line(&error));
            ExitCode::from(status(&error))
        }
    }
}

/// What is said of a failure: the digest alone where that is it, for callers look for the text.
fn line(error: &anyhow::Error) -> String {
    find::<Mismatch>(error).map_or_else(|| one_line(error), ToString::to_string)
}

fn status(error: &anyhow::Error) -> u8 {
    if let Some(helper) = find::<HelperError>(error) {
        return helper.status();
    }
    if find::<Stopped>(error).is_some() { exit_status(error) } else { FAILED }
}

fn serve(args: Vec<OsString>, remotes: &Path) -> Result<()> {
    let env = |name: &str| std::env::var_os(name);
    let control = Control::new(Cancel::on_signals().context("Cannot install signal handlers")?);
    let options = Options::parse(args, env)?;
    let layout = Layout::new(env, Some(remotes));
    let settings = Settings::load(&layout, "downloader", env)?;
    let digests = options.digests()?;
    if !digests.is_empty() && options.from.to_str().is_some_and(is_interactive) {
        return Err(Misuse("Hash check not supported for interactive downloads".to_owned()).into());
    }
    let to = Target::of(&options.to)?;
    let action_data = env("DRV_ACTION").and_then(|text| text.into_string().ok()).unwrap_or_default();
    let document = document(&action_data);
    let market = document.as_ref().and_then(|data| data.marketplace.as_ref());
    let import = import::Options {
        decompress: !options.opaque,
        digests,
        rate: options.rate()?,
        http: http::Options {
            verify_tls: settings.tls_verify() && !document.as_ref().is_some_and(is_unverified),
            retries: if options.no_retry { 0 } else { http::Options::default().retries },
            ..http::Options::default()
        },
        programs: Programs::from_env(),
        // Never a mixture of both: a marketplace would be told a token that is not its own.
        s3: market.and_then(|market| market.template.s3()).unwrap_or_else(s3_of_environment),
        helpers: Some(Helpers {
            dir: layout.remotes.join("datastore"),
            action_data: Secret::new(action_data),
            temp: to.dir(),
        }),
        ..import::Options::default()
    };
    let (limits, most_decoded) = limits(&settings)?;
    let unpack = (!options.opaque).then_some(limits);
    let most = options.max_size()?;
    Job { from: &options.from, to, import, most, most_decoded, unpack, progress: None }.run(&control)
}

/// How much an archive may unpack to: `MAX_UNPACKED`. A number that the operator set holds for a single file, too.
fn limits(settings: &Settings) -> Result<(Limits, Option<u64>)> {
    let Some(text) = settings.get("MAX_UNPACKED") else { return Ok((Limits::default(), None)) };
    let bytes = options::bytes(OsStr::new(text))
        .ok_or_else(|| Misuse(format!("MAX_UNPACKED in onestore.conf is no number of bytes: {text:?}")))?;
    Ok((Limits { bytes, ..Limits::default() }, Some(bytes)))
}

fn s3_of_environment() -> s3::Settings {
    s3::Settings::from_env(|name| std::env::var(name).ok())
}

/// The action's document, where the caller is a driver that hands it on. One that cannot be read is none, as upstream has
/// it: then the keys are missing, which is told.
fn document(action_data: &str) -> Option<ActionData> {
    let xml = payload::read(action_data.as_bytes(), payload::DEFAULT_LIMIT).ok()?;
    payload::parse(&xml).ok()
}

/// Whether the document is of a datastore that waives the verification of certificates.
fn is_unverified(data: &ActionData) -> bool {
    let value = data.datastore.template.other.get("TLS_VERIFY");
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("no"))
}
