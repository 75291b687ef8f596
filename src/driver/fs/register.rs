//! `cp` and `stat`: the door through which users' bytes come in.
//!
//! Source: contract 02 §2.1, §2.4; 03. The bytes pass once: source, digests, decoder, inspector, sparse writer. Nothing
//! opens them before the inspector has judged their header, and the image gets its name when everything has been checked.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quick_xml::escape::escape;

use super::place::{NewImage, Place};
use crate::context::Cx;
use crate::driver::common::judge;
use crate::driver::common::layers::data_format;
use crate::driver::common::nfs;
use crate::driver::{Reply, Request, misuse};
use crate::exec::cmd::Secret;
use crate::exec::op::{FileKind, Op, Sparse, Value};
use crate::exec::process::Programs;
use crate::exec::staging;
use crate::exec::step::{Feed, Step};
use crate::image::{Contents, Format, Inspection};
use crate::payload::{ActionData, Datastore, DatastoreType, Image, ImageType, MarketTemplate};
use crate::report::Misuse;
use crate::tool::qemu_img::{self, Zeroes};
use crate::transfer::decode::Allowance;
use crate::transfer::helper::Helpers;
use crate::transfer::import::{self, Incoming};
use crate::transfer::progress::Progress;
use crate::transfer::rate::Rate;
use crate::transfer::{digest, http, s3, size, source};

/// Most bytes that `stat` downloads only to count what they unpack to: 16 GiB. oned waits 90 seconds for the answer.
const MOST_COUNTED: u64 = 16 << 30;

/// Registers an image from a path or URL.
pub fn cp(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    // What is read.
    let datastore = &request.data.datastore;
    let image = request.data.required_image().map_err(misuse)?;
    let location = image.path.required().map_err(misuse)?;
    let place = Place::open(cx, datastore, request.id)?;
    let new = place.new_image(cx, request.id);
    let shown = import::shown(location.as_ref());
    let failure = format!("Error copying {shown} to {}", place.show(&new.path));
    let opaque = is_opaque(datastore, true)?;
    let verb = if location.contains("://") { "Downloading image" } else { "Copying local image" };
    cx.info(format!("{verb} {shown} to the image repository"));
    let granted = granted(cx, &place, &request.data, image)?;
    let options = import::Options { max_output: granted.allowance(), ..options(cx, &request.data, image, opaque)? };
    let mut incoming = import::open(location.as_ref(), &options, &cx.control).with_context(|| failure.clone())?;
    let seen = incoming.inspect().with_context(|| failure.clone())?;
    let files = datastore.datastore_type.get().map_err(misuse)? == Some(DatastoreType::File);
    if !files && incoming.head().is_empty() {
        bail!("{failure}: it is empty");
    }
    // Kernels, ramdisks and context files are no disks: nothing ever looks for a format in them.
    let format = if files { "raw" } else { data_format(seen.format) };
    if !files {
        judge(&seen, opaque).and_then(|()| granted.holds(&seen)).with_context(|| format!("{failure}: refused"))?;
    }

    // What is decided.
    let keep = datastore.template.convert.trimmed().is_some_and(|c| !c.eq_ignore_ascii_case("yes"))
        || image.image_type.get().map_err(misuse)? == Some(ImageType::Cdrom)
        || files;
    let target = if keep { None } else { conversion(datastore.template.driver.trimmed(), seen.format) };
    let sparse = sparse_of(datastore);

    // What is done.
    nfs::mount(cx, &place, &place.in_host(), datastore)?;
    let first = if target.is_some() { place.staging("import") } else { new.staging.clone() };
    receive(cx, &place, incoming, &Landing { path: &first, sparse, shown: &shown, failure: &failure })?;
    if !files {
        look_again(cx, &place, &first, &seen).with_context(|| format!("{failure}: refused"))?;
    }
    if let Some(format) = target {
        convert(cx, &place, &seen, &first, &new, (format, sparse))?;
    }
    place.publish(cx, &new, &failure)?;
    Ok(Reply::Registered { source: new.source, format: target.unwrap_or(format).to_owned() })
}

/// Tells the size in MiB that an image from a path or URL would have for a guest, rounded up.
pub fn stat(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    let datastore = &request.data.datastore;
    let image = request.data.required_image().map_err(misuse)?;
    let location = image.path.required().map_err(misuse)?;
    let options = options(cx, &request.data, image, is_opaque(datastore, false)?)?;
    let failure = || format!("Cannot determine size for {}", import::shown(location.as_ref()));
    let options = size::Options { import: options, max_download: MOST_COUNTED };
    let bytes = size::size_of(location.as_ref(), &options, &cx.control).with_context(failure)?;
    if bytes == 0 {
        bail!("{}: it is empty", failure());
    }
    Ok(Reply::Size { mib: bytes.div_ceil(1 << 20) })
}

/// Whether the bytes are stored as they are. A files datastore does so unless told otherwise, but only for `cp`.
fn is_opaque(datastore: &Datastore, registering: bool) -> Result<bool> {
    let files = datastore.datastore_type.get().map_err(misuse)? == Some(DatastoreType::File);
    Ok(match datastore.template.no_decompress.trimmed() {
        Some(text) => text.eq_ignore_ascii_case("yes"),
        None => files && registering,
    })
}

/// What the datastore and the image ask of the import.
fn options(cx: &Cx<'_>, data: &ActionData, image: &Image, opaque: bool) -> Result<import::Options> {
    let template = &data.datastore.template;
    let dirs = |text: &crate::payload::Text| text.words().map(PathBuf::from).collect::<Vec<_>>();
    let mut restricted = cx.layout.restricted();
    restricted.extend(dirs(&template.restricted_dirs));
    let mut digests = Vec::new();
    let wanted = [
        (digest::Algorithm::Md5, &image.template.md5),
        (digest::Algorithm::Sha1, &image.template.sha1),
        (digest::Algorithm::Sha256, &image.template.sha256),
        (digest::Algorithm::Sha512, &image.template.sha512),
    ];
    for (algorithm, text) in wanted {
        if let Some(hex) = text.trimmed() {
            digests.push(digest::Expected::new(algorithm, hex).map_err(|e| Misuse(e.to_string()))?);
        }
    }
    let market = data.marketplace.as_ref().map(|market| &market.template);
    let limit = template.limit_transfer_bw.trimmed();
    let unverified = template.other.get("TLS_VERIFY").is_some_and(|v| v.trim().eq_ignore_ascii_case("no"));
    Ok(import::Options {
        policy: source::PathPolicy { safe: dirs(&template.safe_dirs), restricted },
        decompress: !opaque,
        digests,
        rate: limit.map(str::parse::<Rate>).transpose().map_err(|e| Misuse(e.to_string()))?,
        http: http::Options { verify_tls: cx.settings.tls_verify() && !unverified, ..http::Options::default() },
        programs: Programs::from_env(),
        // Never a mixture of both: a marketplace would be told a token that is not its own.
        s3: market
            .and_then(MarketTemplate::s3)
            .unwrap_or_else(|| s3::Settings::from_env(|name| std::env::var(name).ok())),
        // Its downloads have effects of their own, so `explain` does not start it.
        helpers: cx.is_real().then(|| Helpers {
            dir: cx.layout.remotes.join("datastore"),
            action_data: market_keys(data),
            temp: None,
        }),
        ..import::Options::default()
    })
}

/// How much an image may unpack to.
enum Granted {
    /// What oned charged for: `IMAGE/SIZE`, in MiB.
    Size(u64),
    /// What is free in the datastore, in bytes, where oned has not charged for anything.
    Free(u64),
    /// Nobody knows.
    Unknown,
}

/// oned's SIZE is what `stat` said before. For an app of a marketplace it is what somebody wrote into a catalogue, where
/// other sizes than a guest's are met, so that only the space is a limit.
fn granted(cx: &Cx<'_>, place: &Place, data: &ActionData, image: &Image) -> Result<Granted> {
    let from_catalogue = data.marketplace.is_some();
    if let Some(mib) = image.size.get().map_err(misuse)?.filter(|&mib| mib > 0 && !from_catalogue) {
        return Ok(Granted::Size(mib));
    }
    // Before a datastore is mounted on demand, only the space of the file system below it could be told.
    if data.datastore.template.nfs_auto_enable.is_yes_any_case() {
        return Ok(Granted::Unknown);
    }
    // The directory may not be there yet.
    let space = place.base.ancestors().find_map(|dir| cx.ask(&place.host, Op::Space { path: dir.to_owned() }).ok());
    Ok(match space {
        // The rest is for the other actions that run.
        Some(Value::Space(space)) => Granted::Free(space.free_mib.saturating_mul(1 << 20) / 20 * 19),
        _ => Granted::Unknown,
    })
}

impl Granted {
    /// The same for what is unpacked.
    fn allowance(&self) -> Option<Allowance> {
        let most = self.most()?;
        Some(if matches!(self, Self::Free(_)) { Allowance::Space(most) } else { Allowance::Granted(most) })
    }

    /// Most bytes of the image's file: with the tables of its format.
    fn most(&self) -> Option<u64> {
        match self {
            Self::Size(mib) => Some(qemu_img::largest(mib.saturating_mul(1 << 20))),
            Self::Free(bytes) => Some(*bytes),
            Self::Unknown => None,
        }
    }

    /// Refuses a disk that is larger than what was charged for: clusters that lie on top of each other make a terabyte
    /// from a kilobyte.
    fn holds(&self, seen: &Inspection) -> Result<()> {
        match (self, self.most(), seen.virtual_size) {
            (Self::Size(mib), Some(most), Some(size)) if size > most => {
                bail!("Its disk has {} MiB, IMAGE/SIZE grants {mib} MiB", size.div_ceil(1 << 20));
            }
            _ => Ok(()),
        }
    }
}

/// The part of the document that upstream's downloader reads: the keys of a marketplace on S3.
fn market_keys(data: &ActionData) -> Secret {
    let Some(market) = data.marketplace.as_ref().map(|m| &m.template) else { return Secret::new("") };
    let secret = |text: &crate::payload::SecretText| text.get().map_or("", Secret::reveal).to_owned();
    let values = [
        ("ACCESS_KEY_ID", secret(&market.access_key_id)),
        ("SECRET_ACCESS_KEY", secret(&market.secret_access_key)),
        ("REGION", market.region.or("").to_owned()),
        ("AWS", market.aws.or("").to_owned()),
        ("ENDPOINT", market.endpoint.or("").to_owned()),
    ];
    let elements = values.map(|(name, text)| format!("<{name}>{}</{name}>", escape(&text))).concat();
    let document = format!(
        "<DS_DRIVER_ACTION_DATA><MARKETPLACE><TEMPLATE>{elements}</TEMPLATE></MARKETPLACE></DS_DRIVER_ACTION_DATA>"
    );
    Secret::new(BASE64.encode(document))
}

/// Refuses what no datastore should hold: an image that refers to other files, or an archive in place of an image.
fn judge(seen: &Inspection, opaque: bool) -> Result<()> {
    if !seen.verdict.is_safe() {
        bail!("It is a {} image that is {}", seen.format, seen.verdict);
    }
    if !opaque && seen.contents.iter().any(|c| matches!(c, Contents::Tar | Contents::Zip)) {
        bail!("It is an archive, not a disk image: unpack it, or set NO_DECOMPRESS=yes to store it as it is");
    }
    Ok(())
}

/// The format to convert to, if the datastore wants another one that we write. An encrypted image stays as it is.
pub fn conversion(wanted: Option<&str>, format: Format) -> Option<&str> {
    wanted.filter(|w| matches!(*w, "qcow2" | "raw") && *w != format.name() && format != Format::Luks)
}

/// What the datastore wants done with zeroes.
pub fn sparse_of(datastore: &Datastore) -> Sparse {
    if datastore.template.sparse.is_no_any_case() { Sparse::Allocate } else { Sparse::Holes }
}

/// Where the stream lands.
struct Landing<'a> {
    path: &'a Path,
    sparse: Sparse,
    shown: &'a str,
    failure: &'a str,
}

/// Takes the stream into a staging file. With a bridge and a `STAGING_DIR` it lands there first.
fn receive(cx: &Cx<'_>, place: &Place, mut incoming: Incoming, to: &Landing<'_>) -> Result<()> {
    let how = match (incoming.compression, &incoming.plain_file) {
        (Some(compression), _) => format!(", unpacked from {}", compression.name()),
        (None, Some(_)) if place.bridge.is_none() => ", sharing its blocks where the file system can".to_owned(),
        (None, _) => String::new(),
    };
    let what = format!("Write {} to a staging file{how}", to.shown);
    let announced = incoming.encoded_len;
    let (feed, source) = if let Some(file) = incoming.plain_file.take() {
        let again = file.try_clone().with_context(|| to.failure.to_owned())?;
        (Feed::File(file), Some(again))
    } else {
        let (log, total) = (cx.log.clone(), incoming.image_len());
        let tell = Box::new(move |line: &str| log.progress(line));
        // A stream compares its length by itself.
        (Feed::Stream(Box::new(Progress::new(incoming, total, cx.log.progress_interval(), tell))), None)
    };
    let check = |answers: &[Value]| match &source {
        Some(file) if cx.is_real() => unchanged(file, announced, answers, to),
        _ => Ok(()),
    };
    let Some(folder) = &place.landing else {
        let answers = cx.apply(place.receive(what, to.path, to.sparse, feed).or_say(to.failure))?;
        return check(&answers);
    };
    let name = staging::final_of(to.path).and_then(|path| path.file_name().map(ToOwned::to_owned)).unwrap_or_default();
    let landing = place.landing(folder, &name);
    let dumping = format!("Error dumping {} to {}", to.shown, place.show(&landing));
    let dir = staging::dir(folder);
    let ops = [Op::MakeDir { path: dir.clone() }, Op::Receive { path: landing.clone(), sparse: to.sparse }];
    let remove = Op::Remove { path: landing.clone(), tree: false, must_exist: false };
    let leave = Op::RemoveDirIfEmpty { path: dir };
    let step = Step::new(&place.host, what, ops).undo([remove, leave.clone()]).or_say(dumping).feed(feed);
    check(&cx.apply(step)?)?;
    let mut ops = place.prepare();
    ops.extend([Op::Move { from: landing, to: to.path.to_owned() }, leave]);
    cx.apply(place.staging_step("Move it into the datastore", to.path, ops).or_say(to.failure))?;
    Ok(())
}

/// Refuses a copy of a file whose size was another one before or after: it may be a mixture of both.
fn unchanged(source: &File, announced: Option<u64>, answers: &[Value], to: &Landing<'_>) -> Result<()> {
    let meta = source.metadata().with_context(|| to.failure.to_owned())?;
    let received = answers.iter().find_map(Value::number);
    let now = if meta.is_file() { Some(meta.len()) } else { announced };
    if received != announced || now != announced {
        let number = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        bail!("{}: {} was changed meanwhile: {} bytes became {}", to.failure, to.shown, number(announced), number(now));
    }
    Ok(())
}

/// Looks at the staged file: what was judged in the stream must be what arrived. A user may write to his file meanwhile,
/// and a trailer is seen only here.
fn look_again(cx: &Cx<'_>, place: &Place, staged: &Path, judged: &Inspection) -> Result<()> {
    if !cx.is_real() {
        return Ok(());
    }
    let stat = cx.ask(&place.host, Op::Stat { path: staged.to_owned(), follow: false })?.stat();
    // A STAGING_DIR that others may write to is the one place where somebody could put a link in its place.
    if stat.is_none_or(|stat| stat.kind != FileKind::File) {
        bail!("What arrived is no file any more: somebody else writes to the staging directory");
    }
    let size = stat.map(|stat| stat.size);
    let found = judge::inspect(cx, &place.host, staged, size, &[])?;
    let fixed_vhd =
        found.format == Format::Vpc && judged.format == Format::Raw && found.variant.as_deref() == Some("fixed");
    if !found.verdict.is_safe() {
        bail!("What arrived is a {} image that is {}", found.format, found.verdict);
    }
    let sized = judged.format != Format::Raw;
    if !fixed_vhd && (found.format != judged.format || (sized && found.virtual_size != judged.virtual_size)) {
        bail!("What arrived is not what was looked at before: the source changed meanwhile");
    }
    Ok(())
}

/// Converts the judged file into the new image and drops it.
fn convert(
    cx: &Cx<'_>,
    place: &Place,
    seen: &Inspection,
    from: &Path,
    new: &NewImage,
    (format, sparse): (&str, Sparse),
) -> Result<()> {
    let zeroes = if sparse == Sparse::Holes { Zeroes::Holes } else { Zeroes::Allocate };
    let largest = seen.virtual_size.map(qemu_img::largest);
    let ops = [
        Op::Run(qemu_img::convert((from, seen.format.name()), (&new.staging, format), zeroes, largest)),
        Op::Remove { path: from.to_owned(), tree: false, must_exist: true },
    ];
    let what = format!("Convert it from {} to {format}", seen.format);
    let failure = format!("Error converting {}{}", new.path.display(), place.in_host());
    cx.apply(place.staging_step(what, &new.staging, ops).or_say(failure))?;
    Ok(())
}
