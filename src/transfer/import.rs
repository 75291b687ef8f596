//! The one pass of an import: source → rate limit → digests → decoder → the caller, who inspects the first bytes and
//! writes the rest with [`crate::exec::copy::receive`].
//!
//! ```no_run
//! # use onestore::exec::control::{Cancel, Control};
//! # use onestore::exec::op::Sparse;
//! # use onestore::exec::copy;
//! # use onestore::transfer::import;
//! let control = Control::new(Cancel::on_signals()?);
//! let mut incoming = import::open("http://host/image.qcow2.xz".as_ref(), &import::Options::default(), &control)?;
//! let found = incoming.inspect()?;
//! let staged = std::fs::File::create_new("/var/tmp/staged")?;
//! copy::receive(&mut incoming, &staged, Sparse::Holes, &control)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::decode::{Bounded, Compression, MAGIC};
use super::digest::Hashers;
use super::http::{Download, HttpError};
use super::overlap::Overlapped;
use super::rate::Limited;
use super::rbd::Export;
use super::s3;
use super::source::{SourceError, open_local};
use super::ssh;
use super::url::{redact, split_scheme};
use super::watch::Stop;
use crate::exec::control::Control;
use crate::image::{HEAD, Inspection, Prefix, inspect};

pub use super::options::{ImportError, Options};

/// The most of the decoded beginning that is kept: 4 MiB, enough for the header of any format.
pub const MAX_HEAD: usize = 4 << 20;

/// Where an image comes from, told by its location: the seam for further schemes.
enum Origin<'a> {
    Local(&'a Path),
    Http(&'a str),
    S3(&'a str),
    Ssh(&'a str),
    Other(&'a str),
}

impl<'a> Origin<'a> {
    fn of(location: &'a OsStr) -> Self {
        let Some((text, scheme)) = location.to_str().and_then(|text| Some((text, split_scheme(text)?.0))) else {
            return Self::Local(Path::new(location));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Self::Http(text),
            "s3" => Self::S3(text),
            "ssh" => Self::Ssh(text),
            _ => Self::Other(scheme),
        }
    }
}

/// Whether a location is an http or https address.
pub(super) fn is_http(location: &OsStr) -> bool {
    matches!(Origin::of(location), Origin::Http(_))
}

/// A location for people: without login and query.
#[must_use]
pub fn shown(location: &OsStr) -> String {
    redact(&location.to_string_lossy())
}

/// The bytes of an origin before any stage.
struct Opened {
    reader: Box<dyn Read + Send>,
    len: Option<u64>,
    /// The same file again, for a reflink.
    file: Option<File>,
    /// Its bytes are the image, whatever they look like.
    opaque: bool,
}

fn open_origin(location: &OsStr, options: &Options, stop: &Stop) -> Result<Opened, ImportError> {
    match Origin::of(location) {
        Origin::Local(path) => {
            let source = open_local(path, &options.policy)?;
            let failed = |source| ImportError::Source(SourceError::Io { path: path.to_owned(), source });
            let file = source.file.try_clone().map_err(failed)?;
            let reader = Local { file: source.file, at: 0 };
            Ok(Opened { reader: Box::new(reader), len: Some(source.len), file: Some(file), opaque: false })
        }
        Origin::Http(url) => {
            let download = Download::open(url, &options.http, stop.clone())?;
            let len = download.announced();
            Ok(Opened { reader: Box::new(download), len, file: None, opaque: false })
        }
        Origin::S3(text) => {
            let s3::Request { url, proof } = s3::request(text, &options.s3)?;
            let download = Download::open_proved(url, Arc::new(proof), &options.http, stop.clone())?;
            let len = download.announced();
            Ok(Opened { reader: Box::new(download), len, file: None, opaque: false })
        }
        Origin::Ssh(text) => {
            let (relay, len) = ssh::open(text, options, &stop.control())?;
            Ok(Opened { reader: Box::new(relay), len: Some(len), file: None, opaque: false })
        }
        Origin::Other(scheme) => {
            let refuse = || ImportError::Scheme { location: shown(location), scheme: scheme.to_owned() };
            let helpers = options.helpers.as_ref().ok_or_else(refuse)?;
            let text = location.to_str().ok_or_else(refuse)?;
            let failed = |source| ImportError::Read { location: shown(location), source };
            let scheme = scheme.to_ascii_lowercase();
            if scheme == "rbd" {
                let relay = Export::parse(text)
                    .ok_or_else(refuse)?
                    .open(text, &options.programs, &stop.control())
                    .map_err(failed)?;
                return Ok(Opened { reader: Box::new(relay), len: None, file: None, opaque: false });
            }
            let opened = helpers.open(text, &scheme, &stop.control()).ok_or_else(refuse)?;
            let (stream, opaque) = opened.map_err(failed)?;
            Ok(Opened { reader: Box::new(stream), len: None, file: None, opaque })
        }
    }
}

/// Reads by position: the descriptor's own offset is shared with the one that is handed out for a reflink.
struct Local {
    file: File,
    at: u64,
}

impl Read for Local {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = std::os::unix::fs::FileExt::read_at(&self.file, buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// An image on its way in. Reading it yields the decoded image from its first byte; the last read fails where a digest
/// or an announced length does not hold, so that nothing may be published before it has been read to its end.
pub struct Incoming {
    head: Vec<u8>,
    /// How much of the head has been read.
    taken: usize,
    ended: bool,
    stream: Box<dyn Read + Send>,
    stop: Stop,
    shared: Shared,
    location: String,
    /// How the source is compressed, where that is undone.
    pub compression: Option<Compression>,
    /// Length of the source, as downloaded, in bytes.
    pub encoded_len: Option<u64>,
    /// Whether a helper says that the bytes are the image, whatever they look like.
    pub opaque: bool,
    /// The local source itself, where the image is exactly that and nothing has to be checked: the caller may reflink
    /// it instead of reading.
    pub plain_file: Option<File>,
}

/// Opens what `location` names: a path, or an http or https address.
///
/// # Errors
/// [`ImportError`]. Small sources are read whole here, so that their wrong digests are found here.
pub fn open(location: &OsStr, options: &Options, control: &Control) -> Result<Incoming, ImportError> {
    let stop = Stop::new(control);
    let opened = open_origin(location, options, &stop)?;
    let failed = |source| match unpack(source) {
        Unpacked::Http(error) => ImportError::Http(error),
        Unpacked::Other(source) => ImportError::Read { location: shown(location), source },
    };
    let mut incoming = assemble(location, opened, options, control, stop).map_err(failed)?;
    incoming.extend_head(HEAD).map_err(failed)?;
    Ok(incoming)
}

enum Unpacked {
    Http(HttpError),
    Other(io::Error),
}

/// An error of the download that travelled as an error of a reader.
fn unpack(error: io::Error) -> Unpacked {
    match error.downcast::<HttpError>() {
        Ok(error) => Unpacked::Http(error),
        Err(error) => Unpacked::Other(error),
    }
}

/// Puts the stages together. Only where a source is downloaded, decoded or digested there is work for a second core.
fn assemble(
    location: &OsStr,
    opened: Opened,
    options: &Options,
    control: &Control,
    stop: Stop,
) -> io::Result<Incoming> {
    let shared = Shared::default();
    let name = shown(location);
    let mut raw: Box<dyn Read + Send> = Box::new(control.reader(opened.reader));
    if let Some(rate) = options.rate {
        raw = Box::new(Limited::new(raw, rate, control.clone()));
    }
    let mut source: Box<dyn Read + Send> = Box::new(Verified {
        inner: raw,
        hashers: Some(Hashers::new(&options.digests)),
        read: 0,
        announced: opened.len,
        name: name.clone(),
        stop: stop.clone(),
        shared: shared.clone(),
    });
    let mut compression = None;
    if options.decompress && !opened.opaque {
        let mut start = Vec::with_capacity(MAGIC);
        source.by_ref().take(MAGIC as u64).read_to_end(&mut start).map_err(|error| shared.prefer(error))?;
        compression = Compression::detect(&start);
        source = Box::new(io::Cursor::new(start).chain(source));
    }
    // Of a download the socket is one core's work and the file another's.
    if compression.is_some() || !options.digests.is_empty() || is_http(location) {
        source = Box::new(Overlapped::start("import-source", source)?);
    }
    if let Some(kind) = compression {
        source = Box::new(Overlapped::start("import-decode", kind.decoder(source)?)?);
    }
    let endless = compression.is_some() || (opened.len.is_none() && is_http(location));
    if let Some(limit) = options.max_output.filter(|_| endless) {
        source = Box::new(Bounded::new(source, limit));
    }
    let plain = compression.is_none() && options.digests.is_empty() && options.rate.is_none();
    Ok(Incoming {
        head: Vec::new(),
        taken: 0,
        ended: false,
        stream: source,
        stop,
        shared,
        location: name,
        compression,
        encoded_len: opened.len,
        opaque: opened.opaque,
        plain_file: opened.file.filter(|_| plain),
    })
}

impl Incoming {
    /// The decoded beginning: at least 64 KiB, or all there is.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Length of the decoded image in bytes, where it is known beforehand.
    #[must_use]
    pub fn image_len(&self) -> Option<u64> {
        match self.compression {
            None if self.ended => Some(self.head.len() as u64),
            None => self.encoded_len,
            Some(_) => self.ended.then_some(self.head.len() as u64),
        }
    }

    /// Judges the image by its head, which is extended to at most 4 MiB where its header is longer.
    ///
    /// The end of the image is not seen: inspect the staged file again before anything opens it.
    ///
    /// # Errors
    /// Those of reading on.
    pub fn inspect(&mut self) -> io::Result<Inspection> {
        loop {
            let found = inspect(&mut Prefix::new(&self.head, self.image_len()))?;
            let needs = found.needs.and_then(|needs| usize::try_from(needs).ok());
            match needs.filter(|&needs| needs > self.head.len() && needs <= MAX_HEAD && !self.ended) {
                Some(needs) => self.extend_head(needs)?,
                None => return Ok(found),
            }
        }
    }

    fn extend_head(&mut self, len: usize) -> io::Result<()> {
        let more = (len - len.min(self.head.len())) as u64;
        let mut part = Vec::new();
        let result = self.stream.by_ref().take(more).read_to_end(&mut part);
        self.head.append(&mut part);
        result.map_err(|error| self.shared.prefer(error))?;
        if self.head.len() < len {
            self.finish()?;
        }
        Ok(())
    }

    /// At the end of the image the source must be at its end, too, and in order.
    fn finish(&mut self) -> io::Result<()> {
        self.ended = true;
        if self.shared.verified() {
            return Ok(());
        }
        // A decoder that stopped early: its data ended before the source did.
        let text = format!("{} has bytes behind its compressed data", self.location);
        Err(self.shared.prefer(io::Error::new(io::ErrorKind::InvalidData, text)))
    }
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken < self.head.len() {
            let n = (&self.head[self.taken..]).read(buf)?;
            self.taken += n;
            return Ok(n);
        }
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        match self.stream.read(buf) {
            Ok(0) => self.finish().map(|()| 0),
            Ok(n) => Ok(n),
            Err(error) => Err(self.shared.prefer(error)),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Threads that wait for the network notice this; the others notice that nobody takes their buffers.
        self.stop.abandon();
    }
}

/// What the first stage has to say past the decoders, which may wrap or swallow its errors.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<End>>);

#[derive(Default)]
enum End {
    #[default]
    Open,
    Verified,
    Failed(io::Error),
}

impl Shared {
    fn set(&self, end: End) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    fn verified(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), End::Verified)
    }

    /// The source's own error where there is one, else the given.
    fn prefer(&self, error: io::Error) -> io::Error {
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *end) {
            End::Failed(own) => own,
            other => {
                *end = other;
                error
            }
        }
    }
}

/// Digests what passes, counts it, and at the end compares both.
struct Verified {
    inner: Box<dyn Read + Send>,
    hashers: Option<Hashers>,
    read: u64,
    announced: Option<u64>,
    name: String,
    stop: Stop,
    shared: Shared,
}

impl Verified {
    fn end(&mut self) -> io::Result<()> {
        if let Some(announced) = self.announced.filter(|&announced| announced != self.read) {
            let text = format!("{} has {} bytes, {announced} were announced", self.name, self.read);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        match self.hashers.take() {
            Some(hashers) => {
                hashers.verify(&self.name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            }
            None => Ok(()),
        }
    }
}

impl Read for Verified {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = match self.stop.check() {
            Ok(()) => self.inner.read(buf),
            Err(stopped) => Err(io::Error::other(stopped)),
        };
        let result = match result {
            Ok(0) if !buf.is_empty() => self.end().map(|()| {
                self.shared.set(End::Verified);
                0
            }),
            Ok(n) => {
                self.read += n as u64;
                if let Some(hashers) = &mut self.hashers {
                    hashers.update(&buf[..n]);
                }
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => Err(error),
        };
        result.map_err(|error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            self.shared.set(End::Failed(error));
            copy
        })
    }
}
