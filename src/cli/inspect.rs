//! `onestore inspect`: what images are and whether a program may open them, for people and as JSON.
//!
//! The operator asks: any file that they can read is looked at, whatever datastores allow. Names out of headers are shown
//! escaped. The JSON is described in `docs/operations.md` and only grows.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::exec::control::{Cancel, Control};
use crate::image::{Contents, Format, Inspection, Reason, Reference, Verdict};
use crate::location::Layout;
use crate::report::{CANCELLED, clean, exit_status, one_line};
use crate::settings::Settings;
use crate::transfer::look::{Look, look};
use crate::transfer::{http, import};

/// What is looked at, and how it is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, block devices, http and https addresses
    #[arg(required = true, value_name = "FILE|URL")]
    locations: Vec<OsString>,
    /// Print JSON: an object, or a list of them where several locations are given
    #[arg(long)]
    json: bool,
    /// Look at compressed files as they are
    #[arg(long)]
    no_decompress: bool,
}

/// Exit status for an unsafe image, and for one that could not be read.
const UNSAFE: u8 = 1;
const UNREAD: u8 = 2;

/// Looks at all of them; the exit status is the worst.
pub(super) fn run(args: &Args) -> ExitCode {
    let control = match Cancel::on_signals() {
        Ok(cancel) => Control::new(cancel),
        Err(error) => return super::complain(&anyhow::Error::new(error).context("Cannot install signal handlers")),
    };
    let env = |name: &str| std::env::var_os(name);
    // Where the files cannot be read their defaults hold, which are strict.
    let settings = Settings::load(&Layout::new(env, None), "fs", env).unwrap_or_default();
    let options = import::Options {
        decompress: !args.no_decompress,
        http: http::Options { verify_tls: settings.tls_verify(), ..http::Options::default() },
        ..import::Options::default()
    };
    let colours = !args.json && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (mut worst, mut found) = (0, Vec::new());
    for (n, location) in args.locations.iter().enumerate() {
        let seen = look(location, &options, &control).map_err(anyhow::Error::new);
        let status = match &seen {
            Ok(look) if look.inspection.verdict.is_safe() => 0,
            Ok(_) => UNSAFE,
            Err(error) if exit_status(error) == CANCELLED => CANCELLED,
            Err(_) => UNREAD,
        };
        worst = worst.max(status);
        let mut text = String::new();
        match (seen, args.json) {
            (seen, true) => found.push(Told::new(location, seen)),
            (Ok(look), false) => {
                let gap = if n > 0 { "\n" } else { "" };
                text = format!("{gap}{}", block(location, &look, colours));
            }
            (Err(error), false) => {
                let _ = writeln!(io::stderr(), "{}", one_line(&error));
            }
        }
        if let Err(status) = print(&text) {
            return status;
        }
        if status == CANCELLED {
            return ExitCode::from(CANCELLED);
        }
    }
    if args.json {
        let text = match &found[..] {
            [one] => serde_json::to_string_pretty(one),
            all => serde_json::to_string_pretty(all),
        };
        if let Err(status) = print(&format!("{}\n", text.unwrap_or_default())) {
            return status;
        }
    }
    ExitCode::from(worst)
}

/// A reader that went away has seen enough; a full disk has not.
fn print(text: &str) -> Result<(), ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(super::complain(&anyhow::Error::new(error).context("Cannot write the answer")))
        }
        _ => Ok(()),
    }
}

/// One location as JSON. Fields that are unknown are null, lists may be empty; of a location that could not be read
/// there is only `location` and `error`.
#[derive(Serialize)]
#[serde(untagged)]
enum Told {
    Seen(Box<Seen>),
    Failed { location: String, error: String },
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Seen {
    location: String,
    /// `safe` or `unsafe`.
    verdict: &'static str,
    reasons: Vec<Why>,
    next_step: Option<&'static str>,
    /// Length of the file or download in bytes.
    file_size: Option<u64>,
    /// `gzip`, `xz` … of the file; of its clusters see `compression`.
    wrapped_in: Option<&'static str>,
    #[serde(flatten)]
    image: Image,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    format: Format,
    variant: Option<String>,
    virtual_size: Option<u64>,
    cluster_size: Option<u64>,
    encryption: Option<String>,
    payload_offset: Option<u64>,
    compression: Option<String>,
    features: Vec<String>,
    unknown_features: Vec<String>,
    references: Vec<Reference>,
    snapshots: u32,
    bitmaps: u32,
    contents: Vec<Contents>,
}

#[derive(Serialize)]
struct Why {
    #[serde(flatten)]
    reason: Reason,
    text: String,
}

impl Told {
    fn new(location: &OsStr, seen: anyhow::Result<Look>) -> Self {
        let location = import::shown(location);
        let Look { inspection: found, compression, source_len } = match seen {
            Ok(look) => look,
            Err(error) => return Self::Failed { location, error: one_line(&error) },
        };
        let next_step = next_step(&found);
        let reasons =
            found.verdict.reasons().iter().map(|reason| Why { text: reason.to_string(), reason: reason.clone() });
        Self::Seen(Box::new(Seen {
            location,
            verdict: if found.verdict.is_safe() { "safe" } else { "unsafe" },
            reasons: reasons.collect(),
            next_step,
            file_size: source_len,
            wrapped_in: compression.map(crate::transfer::decode::Compression::name),
            image: Image {
                format: found.format,
                variant: found.variant,
                virtual_size: found.virtual_size,
                cluster_size: found.cluster_size,
                encryption: found.encryption,
                payload_offset: found.payload_offset,
                compression: found.compression,
                features: found.features,
                unknown_features: found.unknown_features,
                references: found.references,
                snapshots: found.snapshots,
                bitmaps: found.bitmaps,
                contents: found.contents,
            },
        }))
    }
}

/// One location as an aligned block.
fn block(location: &OsStr, look: &Look, colours: bool) -> String {
    let found = &look.inspection;
    let mut rows: Vec<(&str, String)> = Vec::new();
    let variant = found.variant.as_ref().map(|variant| format!(" ({})", clean(variant))).unwrap_or_default();
    rows.push(("Format", format!("{}{variant}", found.format)));
    rows.push(("Disk size", found.virtual_size.map_or_else(|| "unknown".to_owned(), size)));
    let wrapped = look.compression.map(|kind| format!(", compressed with {}", kind.name())).unwrap_or_default();
    rows.push(("File size", format!("{}{wrapped}", look.source_len.map_or_else(|| "unknown".to_owned(), size))));
    if let Some(bytes) = found.cluster_size {
        let compression = found.compression.as_ref().map(|kind| format!(", compression {}", clean(kind)));
        rows.push(("Clusters", format!("{}{}", human(bytes), compression.unwrap_or_default())));
    }
    rows.push(("Encryption", found.encryption.as_deref().map_or_else(|| "none".to_owned(), clean)));
    if let Some(offset) = found.payload_offset {
        rows.push(("Payload at", format!("{offset} bytes")));
    }
    for reference in &found.references {
        let format = reference.format.as_ref().map(|format| format!(", format {}", clean(format))).unwrap_or_default();
        rows.push(("Refers to", clean(&format!("{reference}{format}"))));
    }
    for (name, list) in [("Features", &found.features), ("Unknown", &found.unknown_features)] {
        if !list.is_empty() {
            rows.push((name, list.iter().map(|name| clean(name)).collect::<Vec<_>>().join(", ")));
        }
    }
    for (name, count) in [("Snapshots", found.snapshots), ("Bitmaps", found.bitmaps)] {
        if count > 0 {
            rows.push((name, count.to_string()));
        }
    }
    if !found.contents.is_empty() {
        rows.push(("Contents", found.contents.iter().map(|kind| contents(*kind)).collect::<Vec<_>>().join(", ")));
    }
    rows.extend(verdict(&found.verdict, colours));
    if let Some(step) = next_step(found) {
        rows.push(("Next", step.to_owned()));
    }
    let mut text = format!("{}\n", clean(&import::shown(location)));
    for (name, value) in rows {
        let _ = writeln!(text, "  {name:<10}  {value}");
    }
    text
}

/// The verdict, one reason a line.
fn verdict(verdict: &Verdict, colours: bool) -> Vec<(&'static str, String)> {
    let paint = |code: &str, word: &str| if colours { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    match verdict {
        Verdict::Safe => vec![("Verdict", paint("1;32", "safe"))],
        Verdict::Unsafe(reasons) => {
            let line = |(n, reason): (usize, &Reason)| match n {
                0 => ("Verdict", format!("{} because {}", paint("1;31", "unsafe"), clean(&reason.to_string()))),
                _ => ("", format!("and because {}", clean(&reason.to_string()))),
            };
            reasons.iter().enumerate().map(line).collect()
        }
    }
}

fn contents(kind: Contents) -> &'static str {
    match kind {
        Contents::Mbr => "DOS partition table",
        Contents::Gpt => "GUID partition table",
        Contents::Iso9660 => "ISO 9660 file system",
        Contents::Tar => "tar archive",
        Contents::Zip => "zip archive",
    }
}

/// What to do about the first reason, where there is something to do.
fn next_step(found: &Inspection) -> Option<&'static str> {
    const PLAIN: &str = "where the image was made: qemu-img convert -O qcow2 OLD NEW, then use NEW";
    let Some(reason) = found.verdict.reasons().first() else {
        let archive = found.contents.iter().any(|kind| matches!(kind, Contents::Tar | Contents::Zip));
        return archive.then_some(
            "an image datastore refuses archives: unpack it, or set NO_DECOMPRESS=yes to store it as it is",
        );
    };
    match reason {
        Reason::Reference(_) | Reason::Encrypted(_) | Reason::Refused(_) => Some(PLAIN),
        Reason::Snapshots(_) => {
            Some("where the image was made: qemu-img snapshot -d NAME, or convert it, which drops them all")
        }
        Reason::Truncated(_) => Some("it is cut short: get it again"),
        Reason::Incomplete(_) => Some("get the whole image and look at that"),
        Reason::Inconsistent(_) | Reason::UnknownFeatures(_) => {
            Some("where the image was made: qemu-img check, then convert it")
        }
    }
}

/// `10.5 GiB (10752 MiB, 11274289152 bytes)`; MiB as the cloud counts them, rounded up.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        _ => format!("{} ({} MiB, {bytes} bytes)", human(bytes), bytes.div_ceil(1 << 20)),
    }
}

/// With the largest unit that leaves a number above 1, one decimal place where it is not a whole one.
fn human(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let unit = 1u64 << (10 * power);
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, units[power]),
        rest => format!("{}.{rest} {}", tenths / 10, units[power]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        let cases = [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 40, "1 TiB")];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(human(u64::MAX), "15.9 EiB");
        assert_eq!(size(1 << 20), "1 MiB (1 MiB, 1048576 bytes)");
    }
}
