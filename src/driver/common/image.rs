//! An image as a host sees it in its image datastore, asked about in one round trip.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::layers::{self, HEAD, Layer, Layers};
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Stat, Value};
use crate::location::{ImageFiles, normalize};

/// Number of questions that [`Image::questions`] asks.
pub const QUESTIONS: usize = 6;

/// See the module.
pub struct Image {
    /// Its names.
    pub files: ImageFiles,
    /// What the image is, links followed; nothing where there is none.
    pub stat: Option<Stat>,
    link: Option<PathBuf>,
    head: Option<Vec<u8>>,
    /// Text of the link `<image>.snap/0`, where that is one: then the image itself is the first layer.
    first: Option<PathBuf>,
    /// What is in `<image>.snap`; nothing where there is no such directory.
    pub names: Option<Vec<OsString>>,
    /// Whether a link is in the place of that directory. Nobody makes one; what it leads to is somebody else's.
    leads_away: bool,
}

impl Image {
    /// What has to be asked.
    pub fn questions(files: &ImageFiles) -> [Op; QUESTIONS] {
        let path = || files.image.clone();
        [
            Op::Stat { path: path(), follow: true },
            Op::ReadLink { path: path() },
            Op::Head { path: path(), len: HEAD },
            Op::List { path: files.snapshots() },
            Op::ReadLink { path: files.snapshot(0) },
            Op::Stat { path: files.snapshots(), follow: false },
        ]
    }

    /// The image, by the answers.
    pub fn read(files: ImageFiles, answers: &[Value]) -> Self {
        let answer = |at: usize| answers.get(at).unwrap_or(&Value::Absent);
        let bytes = |at| match answer(at) {
            Value::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        };
        Self {
            files,
            stat: answer(0).stat(),
            link: bytes(1).map(|text| PathBuf::from(OsStr::from_bytes(&text))),
            first: bytes(4).map(|text| PathBuf::from(OsStr::from_bytes(&text))),
            head: bytes(2),
            names: match answer(3) {
                Value::Names(names) => Some(names.clone()),
                _ => None,
            },
            leads_away: answer(5).stat().is_some_and(|stat| stat.kind == FileKind::Link),
        }
    }

    /// Its snapshot files, by number.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.names.iter().flatten().filter_map(|name| super::args::plain_number(name.to_str()?))
    }

    /// Whether its current state may be in another file than itself.
    pub fn has_layers(&self) -> bool {
        let is_image =
            |number| number == 0 && self.first.as_ref().is_some_and(|link| normalize(link) == self.files.image);
        self.link.is_some() || self.numbers().any(|number| !is_image(number))
    }

    /// Whether its name is a link: to one of its snapshots, or to what is no part of it.
    pub fn is_link(&self) -> bool {
        self.link.is_some()
    }

    /// That it is there, and a file, and its layers, if there are any, in a directory of its own.
    ///
    /// # Errors
    /// It is not.
    pub fn must_exist(&self, host: &Arc<dyn Host>) -> Result<Stat> {
        if self.leads_away {
            bail!("{} is a link, not a directory", self.files.snapshots().display());
        }
        match self.stat {
            Some(stat) if matches!(stat.kind, FileKind::File | FileKind::Block) => Ok(stat),
            Some(_) => bail!("{} is no file", self.files.image.display()),
            None if host.name().is_empty() => bail!("{} does not exist", self.files.image.display()),
            None => bail!("{} does not exist on {}", self.files.image.display(), host.name()),
        }
    }

    /// The file that holds its current state, judged. `format` is what oned says of it.
    ///
    /// # Errors
    /// It is missing, unsafe, or refers to what is not a part of it.
    pub fn current(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, format: Option<&str>) -> Result<Layer> {
        let stat = self.must_exist(host)?;
        if self.has_layers() {
            return Ok(Layers::read(cx, host, &self.files, format)?.active().clone());
        }
        if format == Some("raw") {
            // A guest can write anything into it, another format's header too.
            return Ok(raw(self.files.image.clone(), stat.size));
        }
        layers::alone(cx, host, &self.files.image, Some(stat.size), self.head.as_deref().unwrap_or_default())
    }
}

/// A file that is raw because oned says so.
pub fn raw(path: PathBuf, size: u64) -> Layer {
    Layer { path, link: None, format: crate::image::Format::Raw, virtual_size: Some(size), backing: None }
}
