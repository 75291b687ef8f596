//! `onestore download`: the same for people.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::job::{Existing, Job};
use super::target::Target;
use super::{limits, options};
use crate::exec::cmd::Secret;
use crate::exec::control::{Cancel, Control};
use crate::exec::process::Programs;
use crate::image::{FileSource, Inspection, inspect};
use crate::location::Layout;
use crate::report::{Log, Misuse};
use crate::settings::Settings;
use crate::transfer::digest::{Algorithm, Expected, Mismatch};
use crate::transfer::helper::{Helpers, is_interactive};
use crate::transfer::import::{self, Incoming};
use crate::transfer::rate::Rate;
use crate::transfer::unpack::{Archive, Limits};
use crate::transfer::{decode, http};

/// Arguments of `onestore download`.
#[derive(Debug, clap::Args)]
// Every switch is one that a person types: there is nothing to group.
#[allow(clippy::struct_excessive_bools)]
pub struct Download {
    /// Path or address: http, https, s3, ssh, rbd, or what a `<scheme>_downloader` program in remotes/datastore serves
    from: OsString,
    /// File to make, or - for standard output [default: the last name of FROM in this directory]
    to: Option<OsString>,
    /// MD5 that the source must have, as downloaded
    #[arg(long, value_name = "HEX")]
    md5: Option<String>,
    /// SHA-1 that it must have
    #[arg(long, value_name = "HEX")]
    sha1: Option<String>,
    /// SHA-256 that it must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// SHA-512 that it must have
    #[arg(long, value_name = "HEX")]
    sha512: Option<String>,
    /// Keep the bytes as they are: decode and unpack nothing
    #[arg(short, long)]
    nodecomp: bool,
    /// Read no faster than this many bytes a second (k, m, g)
    #[arg(short, long, value_name = "RATE")]
    limit: Option<Rate>,
    /// The most bytes that an archive or compressed image may unpack to (K, M, G)
    #[arg(long, value_name = "BYTES")]
    max_unpacked: Option<OsString>,
    /// Do not try again after a failure
    #[arg(short = 'o', long)]
    noretry: bool,
    /// Take any certificate
    #[arg(long)]
    insecure: bool,
    /// Replace TO if it exists
    #[arg(short, long)]
    force: bool,
    /// Say at the end what the image is and whether it is safe to open
    #[arg(long)]
    inspect: bool,
    /// Read the beginning only, say what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Serves the call.
///
/// # Errors
/// What went wrong; nothing is then left at TO.
pub fn run(args: &Download) -> Result<()> {
    let env = |name: &str| std::env::var_os(name);
    let control = Control::new(Cancel::on_signals().context("Cannot install signal handlers")?);
    let layout = Layout::new(env, None);
    let settings = Settings::load(&layout, "downloader", env)?;
    let to = target(args)?;
    let (default_limits, most_decoded) = limits(&settings)?;
    let most = args
        .max_unpacked
        .as_deref()
        .map(|text| options::bytes(text).ok_or_else(|| Misuse(format!("{} is no number of bytes", text.display()))));
    let most = most.transpose()?;
    let limits = most.map_or(default_limits, |bytes| Limits { bytes, ..default_limits });
    let digests = digests(args)?;
    if !digests.is_empty() && args.from.to_str().is_some_and(is_interactive) {
        return Err(Misuse("Hash check not supported for interactive downloads".to_owned()).into());
    }
    let log = Log::new("download", None);
    let told = log.clone();
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    let job = Job {
        from: &args.from,
        import: import::Options {
            decompress: !args.nodecomp,
            digests,
            rate: args.limit,
            http: http::Options {
                verify_tls: settings.tls_verify() && !args.insecure,
                retries: if args.noretry { 0 } else { http::Options::default().retries },
                ..http::Options::default()
            },
            programs: Programs::from_env(),
            s3: super::s3_of_environment(),
            helpers: Some(Helpers {
                dir: layout.remotes.join("datastore"),
                action_data: Secret::new(""),
                temp: to.dir(),
            }),
            ..import::Options::default()
        },
        most: None,
        most_decoded: most.or(most_decoded),
        unpack: (!args.nodecomp).then_some(limits),
        progress: terminal.then(|| (log.progress_interval(), Box::new(move |line: &str| told.progress(line)) as _)),
        to,
    };
    let shown = job.to.shown();
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let result = (|| {
        let mut incoming = job.open(&control)?;
        let seen = incoming.inspect().with_context(|| format!("Error copying {}", import::shown(&args.from)))?;
        let archive = job.unpack.filter(|_| !incoming.opaque).and(Archive::detect(incoming.head()));
        if args.dry_run {
            return say(&plan(&incoming, &seen, archive, &shown));
        }
        let path = job.to.dir().map(|_| PathBuf::from(&shown));
        job.deliver(incoming, existing, &control)?;
        match path.filter(|_| args.inspect && archive.is_none()) {
            Some(path) => say(&verdict(&path)?),
            None => Ok(()),
        }
    })();
    result.map_err(|error| match crate::report::find::<Mismatch>(&error).cloned() {
        Some(mismatch) => mismatch.into(),
        None => error,
    })
}

/// TO, or what it is by default. Nothing is overwritten unasked.
fn target(args: &Download) -> Result<Target> {
    let default = || default_name(args);
    let mut to = match &args.to {
        Some(to) => to.clone(),
        None => default()?,
    };
    if to != "-" && Path::new(&to).is_dir() {
        to = Path::new(&to).join(default()?).into_os_string();
    }
    let target = Target::of(&to)?;
    match &target {
        Target::Path(place) if place.exists() && !args.force && !args.dry_run => {
            Err(Misuse(format!("{} exists: choose another name, or say --force", place.shown.display())).into())
        }
        Target::InPlace(path) if is_device(path) && !args.force && !args.dry_run => {
            Err(Misuse(format!("{} is a block device: say --force to overwrite it", path.display())).into())
        }
        _ => Ok(target),
    }
}

fn is_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.file_type().is_block_device())
}

/// The last name of a path or address, without the endings of what is unpacked.
fn default_name(args: &Download) -> Result<OsString> {
    let name = last_name(&args.from)?;
    if args.nodecomp {
        return Ok(name);
    }
    let mut short = name.as_bytes();
    for endings in [&[".gz", ".bz2", ".xz", ".zst", ".lz4"][..], &[".tar", ".zip"]] {
        let ending = endings.iter().find_map(|ending| short.strip_suffix(ending.as_bytes()));
        short = ending.filter(|rest| !rest.is_empty()).unwrap_or(short);
    }
    Ok(OsStr::from_bytes(short).to_owned())
}

/// The last name of a path or address.
fn last_name(from: &OsString) -> Result<OsString> {
    let none = || Misuse(format!("{} has no last name: say where it should go", import::shown(from)));
    let text = from.to_string_lossy();
    let address = text.split_once("://").map(|(_, rest)| rest.split(['?', '#']).next().unwrap_or_default());
    let name = match address {
        Some(address) => address.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).map(OsString::from),
        None => Path::new(from).file_name().map(ToOwned::to_owned),
    };
    let name =
        name.filter(|name| !name.is_empty() && name != "." && name != ".." && !name.as_bytes().starts_with(b"-"));
    Ok(name.ok_or_else(none)?)
}

fn digests(args: &Download) -> Result<Vec<Expected>> {
    let given = [
        (Algorithm::Md5, &args.md5),
        (Algorithm::Sha1, &args.sha1),
        (Algorithm::Sha256, &args.sha256),
        (Algorithm::Sha512, &args.sha512),
    ];
    let given = given.into_iter().filter_map(|(algorithm, hex)| Some((algorithm, hex.as_deref()?)));
    given.map(|(algorithm, hex)| Ok(Expected::new(algorithm, hex).map_err(|e| Misuse(e.to_string()))?)).collect()
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(io::stderr(), "{text}")?)
}

/// What would be done, as far as the beginning tells.
fn plan(incoming: &Incoming, seen: &Inspection, archive: Option<Archive>, to: &str) -> String {
    let length = incoming.encoded_len.map_or_else(|| "of unknown length".to_owned(), |len| format!("of {len} bytes"));
    let packed = incoming.compression.map(decode::Compression::name);
    let packed = packed.map_or_else(String::new, |name| format!(", unpacked from {name}"));
    match archive {
        Some(archive) => format!("Would unpack a {} archive {length}{packed} into the directory {to}", archive.name()),
        None => format!("Would write a {} image {length}{packed} to {to}: {}", seen.format, seen.verdict),
    }
}

/// What arrived.
fn verdict(path: &Path) -> Result<String> {
    let cannot = || format!("Cannot inspect {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mut source = FileSource::new(&file).with_context(cannot)?;
    let seen = inspect(&mut source).with_context(cannot)?;
    let size = seen.virtual_size.map_or_else(String::new, |size| format!(", {size} bytes for a guest"));
    Ok(format!("{}: {} image{size}, {}", path.display(), seen.format, seen.verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_name_is_the_last_one() {
        let name = |from: &str| last_name(&from.into()).map(|name| name.to_string_lossy().into_owned()).ok();
        assert_eq!(name("https://u:p@host/a/disk.qcow2?sig=1/2#x").as_deref(), Some("disk.qcow2"));
        assert_eq!(name("/var/tmp/a b").as_deref(), Some("a b"));
        for from in ["https://host", "https://host/", "https://host/a/", "/", "..", "https://host/..", "http://h/-f"] {
            assert_eq!(name(from), None, "{from}");
        }
    }
}
