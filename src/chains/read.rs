//! From a disk's names to the facts about its chain: two round trips, more only for what is out of the ordinary.
//!
//! Everything is read as it lies there; a chain that is broken is no failure here, it is for the model to say so.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::exec::op::{FileKind, Op, READ_LIMIT, Stat, Value};
use crate::exec::staging;
use crate::image::chain::{Entry, Facts, Header, Inode, Kind, Names, Style};
use crate::image::{self, Fetched, Inspection, Prefix, qcow2};
use crate::location::normalize;

/// Bytes of a file's beginning that hold the header of a qcow2 image, with room to spare.
const HEAD: u64 = 8 << 10;

/// Where `qemu-img create` puts the table of a new layer with clusters of the usual size, and how much of it is read:
/// asked along with the header, it saves the question of whether anything was written to the layer.
const TABLE: (u64, u64) = (192 << 10, 4 << 10);

/// More files than any disk has layers: against a folder that is none of ours.
const MOST_FILES: usize = 2000;

/// Which chain is read.
#[derive(Clone, Debug)]
pub struct Query {
    /// The disk.
    pub names: Names,
    /// How its snapshots are kept where nothing on the disk tells.
    pub style: Style,
    /// Whether oned says that it is raw: then no header is believed, a guest can write any into its disk.
    pub raw: bool,
    /// Files outside that its layers may stand on, as far as they are known: the image that it was cloned from.
    pub images: Vec<PathBuf>,
}

/// Asks a host; answers one value per operation.
pub type Ask<'a> = dyn FnMut(Vec<Op>) -> Result<Vec<Value>> + 'a;

/// What was read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The facts.
    pub facts: Facts,
    /// Names in the folder of staging files, for [`super::Staging::prepare`]; none where there is no such folder.
    pub staged: Option<Vec<OsString>>,
}

/// Reads the chain of one disk.
///
/// # Errors
/// What the host answers. A chain that is broken is none.
pub fn read(query: &Query, ask: &mut Ask<'_>) -> Result<Reading> {
    let folder = query.names.folder();
    let home = query.names.disk.parent().unwrap_or(Path::new("/")).to_owned();
    let staging = staging::dir(query.names.origin.parent().unwrap_or(Path::new("/")));
    let list = |path: &Path| Op::List { path: path.to_owned() };
    let kind_of = |path: &Path| Op::Stat { path: path.to_owned(), follow: false };
    let first = ask(vec![list(&folder), list(&home), list(&staging), kind_of(&folder), kind_of(&home)])?;
    let [list, beside, staged, kinds @ ..] = first.as_slice() else { bail!("{} cannot be listed", folder.display()) };
    // Nobody makes links of these; what one leads to is somebody else's, and files in it would be removed.
    for (path, kind) in [&folder, &home].into_iter().zip(kinds) {
        if kind.stat().is_some_and(|stat| stat.kind == FileKind::Link) {
            bail!("{} is a link, not a directory", path.display());
        }
    }
    let staged = names(staged);
    let (names, beside) = (names(list), names(beside).unwrap_or_default());
    if names.as_ref().is_some_and(|names| names.len() > MOST_FILES) {
        bail!("{} holds more than {MOST_FILES} files, it is no folder of snapshots", folder.display());
    }
    let is_disk = |name: &&OsString| name.as_bytes().starts_with(b"disk.") && home.join(name) != query.names.disk;
    let others: Vec<PathBuf> = beside.iter().filter(is_disk).map(|name| home.join(name)).collect();
    let self_link = folder.file_name().map(OsStr::to_owned);
    let mut paths = vec![query.names.disk.clone()];
    if query.names.origin != query.names.disk {
        paths.push(query.names.origin.clone());
    }
    paths.extend(names.iter().flatten().map(|name| folder.join(name)));
    let is_layer = |path: &Path| path.file_name().map(OsStr::to_owned) != self_link;

    let looked = Looked { paths: &paths, is_layer: &is_layer, others: &others, images: &query.images, tables: true };
    let mut seen = look(&looked, ask)?;
    let entries = describe(query, &mut seen, ask)?;
    let take = |path: &Path| entries.get(path).cloned().unwrap_or_default();
    let in_folder =
        |names: Vec<OsString>| names.into_iter().map(|name| (name.clone(), take(&folder.join(name)))).collect();
    let facts = Facts {
        names: query.names.clone(),
        style: query.style,
        disk: take(&query.names.disk),
        origin: take(&query.names.origin),
        folder: names.map(in_folder),
        others: seen.others,
        outside: seen.outside,
    };
    Ok(Reading { facts, staged })
}

/// What is at `paths`: files of one image, those in its `folder` of layers and itself. One round trip, more for a format
/// with a long header and for links that lead nowhere. `raw` is as [`Query::raw`].
///
/// # Errors
/// What the host answers. A file that is broken is none.
pub fn entries(folder: &Path, paths: &[PathBuf], raw: bool, ask: &mut Ask<'_>) -> Result<BTreeMap<PathBuf, Entry>> {
    let looked = Looked { paths, is_layer: &|_| true, others: &[], images: &[], tables: false };
    let seen = look(&looked, ask)?;
    entries_of(&seen.files, folder, raw, ask)
}

fn names(value: &Value) -> Option<Vec<OsString>> {
    match value {
        Value::Names(names) => Some(names.clone()),
        _ => None,
    }
}

/// One name as it was found.
struct Found {
    path: PathBuf,
    here: Option<Stat>,
    behind: Option<Stat>,
    link: Option<PathBuf>,
    head: Vec<u8>,
    table: Vec<u8>,
}

struct Seen {
    files: Vec<Found>,
    others: Vec<(PathBuf, PathBuf)>,
    outside: BTreeMap<PathBuf, Option<Inode>>,
}

/// What is looked at.
struct Looked<'a> {
    paths: &'a [PathBuf],
    /// Whether it has a header or text to be read.
    is_layer: &'a dyn Fn(&Path) -> bool,
    /// Other disks, which may be links.
    others: &'a [PathBuf],
    /// Files outside.
    images: &'a [PathBuf],
    /// Whether it matters if anything was written to a layer.
    tables: bool,
}

/// Looks at every name. Headers are asked for at once; where one cannot be read (a link that leads nowhere), once more and
/// without.
fn look(what: &Looked<'_>, ask: &mut Ask<'_>) -> Result<Seen> {
    let Looked { paths, is_layer, others, images, tables } = *what;
    let questions = |readable: &dyn Fn(usize) -> bool| {
        let mut ops = Vec::new();
        for (at, path) in paths.iter().enumerate() {
            ops.push(Op::Stat { path: path.clone(), follow: false });
            ops.push(Op::Stat { path: path.clone(), follow: true });
            ops.push(Op::ReadLink { path: path.clone() });
            if is_layer(path) && readable(at) {
                ops.push(Op::Read { path: path.clone(), offset: 0, len: HEAD });
                ops.extend(tables.then(|| Op::Read { path: path.clone(), offset: TABLE.0, len: TABLE.1 }));
            }
        }
        ops.extend(others.iter().map(|path| Op::ReadLink { path: path.clone() }));
        ops.extend(images.iter().map(|path| Op::Stat { path: path.clone(), follow: true }));
        ops
    };
    let mut readable: Box<dyn Fn(usize) -> bool> = Box::new(|_| true);
    let answers = if let Ok(answers) = ask(questions(&readable)) {
        answers
    } else {
        let kinds = ask(paths.iter().map(|path| Op::Stat { path: path.clone(), follow: true }).collect())?;
        let files: Vec<bool> =
            kinds.iter().map(|kind| kind.stat().is_some_and(|stat| stat.kind == FileKind::File)).collect();
        readable = Box::new(move |at| files.get(at).copied().unwrap_or(false));
        ask(questions(&readable))?
    };
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Absent);
    let mut files = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let (here, behind, link) = (next().stat(), next().stat(), path_of(next()));
        let read = is_layer(path) && readable(at);
        let mut bytes = |read: bool| if read { bytes(next()) } else { Vec::new() };
        let (head, table) = (bytes(read), bytes(read && tables));
        files.push(Found { path: path.clone(), here, behind, link, head, table });
    }
    let others = others.iter().filter_map(|other| Some((other.clone(), path_of(next())?))).collect();
    let outside = images.iter().map(|image| (image.clone(), next().stat().map(|stat| (stat.dev, stat.ino)))).collect();
    Ok(Seen { files, others, outside })
}

fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::Bytes(bytes) => bytes,
        _ => Vec::new(),
    }
}

fn path_of(value: Value) -> Option<PathBuf> {
    match value {
        Value::Bytes(text) => Some(PathBuf::from(OsStr::from_bytes(&text))),
        _ => None,
    }
}

/// What the headers say, and what remains to be asked because of it.
fn describe(query: &Query, seen: &mut Seen, ask: &mut Ask<'_>) -> Result<BTreeMap<PathBuf, Entry>> {
    let folder = query.names.folder();
    let mut entries = entries_of(&seen.files, &folder, query.raw, ask)?;
    ask_the_rest(seen, &folder, &mut entries, ask)?;
    Ok(entries)
}

fn entries_of(files: &[Found], folder: &Path, raw: bool, ask: &mut Ask<'_>) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut entries = BTreeMap::new();
    for found in files {
        let name = found.path.file_name().unwrap_or_default().as_bytes();
        let in_folder = found.path.parent() == Some(folder);
        let is_marker = in_folder && (name.ends_with(b".current") || name.ends_with(b".deleting"));
        let is_file = found.behind.is_some_and(|stat| stat.kind == FileKind::File);
        let is_self = in_folder && Some(OsStr::from_bytes(name)) == folder.file_name();
        let mut entry =
            Entry { kind: kind(found), inode: found.behind.map(|stat| (stat.dev, stat.ino)), ..Entry::default() };
        if is_marker {
            entry.text = Some(found.head.clone());
        } else if is_file && !is_self {
            entry.header = Some(header(raw, found, ask)?);
        }
        entries.insert(found.path.clone(), entry);
    }
    Ok(entries)
}

fn kind(found: &Found) -> Kind {
    match (&found.link, found.here.map(|stat| stat.kind)) {
        (Some(text), _) => Kind::Link(text.clone()),
        (None, Some(FileKind::File)) => Kind::File,
        (None, Some(FileKind::Dir)) => Kind::Folder,
        (None, Some(_)) => Kind::Other,
        (None, None) => Kind::Absent,
    }
}

fn header(raw: bool, found: &Found, ask: &mut Ask<'_>) -> Result<Header> {
    let size = found.behind.map(|stat| stat.size);
    if raw {
        return Ok(Header::raw(size));
    }
    let mut seen: Inspection = image::inspect(&mut Prefix::new(&found.head, size))?;
    if seen.needs.is_some() {
        let fetch = |offset, len: u64| {
            let read = Op::Read { path: found.path.clone(), offset, len: len.min(READ_LIMIT) };
            Ok(bytes(ask(vec![read]).map_err(std::io::Error::other)?.pop().unwrap_or(Value::Absent)))
        };
        seen = image::inspect(&mut Fetched::new(&found.head, size, fetch))?;
    }
    let mut header = Header::from(&seen);
    if header.format == image::Format::Raw {
        header.virtual_size = size;
    }
    Ok(header)
}

/// Whether layers on which nothing stands were ever written to, and whether what layers stand on outside is there.
fn ask_the_rest(
    seen: &mut Seen,
    folder: &Path,
    entries: &mut BTreeMap<PathBuf, Entry>,
    ask: &mut Ask<'_>,
) -> Result<()> {
    let backing: Vec<PathBuf> = entries
        .iter()
        .filter_map(|(path, entry)| {
            let name = &entry.header.as_ref()?.backing.as_ref()?.name;
            Some(normalize(&path.parent().unwrap_or(Path::new("/")).join(name)))
        })
        .collect();
    let stood_on = |path: &Path| backing.iter().any(|below| below.file_name() == path.file_name());
    let mut tables = Vec::new();
    for found in &seen.files {
        let entry = entries.get_mut(&found.path).and_then(|entry| entry.header.as_mut());
        let Some(header) = entry.filter(|header| header.format == image::Format::Qcow2) else { continue };
        let Some((offset, len)) = qcow2::l1_table(&found.head).filter(|_| !stood_on(&found.path)) else { continue };
        let within = offset.checked_sub(TABLE.0).filter(|skip| skip + len <= found.table.len() as u64);
        if let Some(skip) = within.and_then(|skip| usize::try_from(skip).ok()) {
            let table = found.table.iter().skip(skip).take(usize::try_from(len).unwrap_or(0));
            header.blank = Some(table.copied().all(|byte| byte == 0));
        } else if len <= READ_LIMIT {
            tables.push((found.path.clone(), Op::Read { path: found.path.clone(), offset, len }, len));
        }
    }
    let is_far = |path: &&PathBuf| {
        !path.starts_with(folder) && !entries.contains_key(*path) && !seen.outside.contains_key(*path)
    };
    let far: Vec<PathBuf> = backing.iter().filter(is_far).cloned().collect();
    if tables.is_empty() && far.is_empty() {
        return Ok(());
    }
    let mut ops: Vec<Op> = tables.iter().map(|(_, op, _)| op.clone()).collect();
    ops.extend(far.iter().map(|path| Op::Stat { path: path.clone(), follow: true }));
    let mut answers = ask(ops)?.into_iter();
    for (path, _, len) in tables {
        let table = bytes(answers.next().unwrap_or(Value::Absent));
        let header = entries.get_mut(&path).and_then(|entry| entry.header.as_mut());
        if let Some(header) = header.filter(|_| table.len() as u64 == len) {
            header.blank = Some(table.iter().all(|byte| *byte == 0));
        }
    }
    for path in far {
        let stat = answers.next().and_then(|answer| answer.stat());
        seen.outside.insert(path, stat.map(|stat| (stat.dev, stat.ino)));
    }
    Ok(())
}
