//! The snapshot layers of an image as they lie on the disk, whichever transfer manager made them.
//!
//! Source: contract 02 §1. Three layouts are met: chains with absolute backing names (`shared`, `qcow2`), chains with
//! relative ones whose image is a link into `.snap` (`local`, mixed mode), and full copies (`ssh`, raw). What is on the
//! disk decides, never the transfer manager's name.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};

use super::judge;
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Value};
use crate::image::{Format, Reason, RefKind};
use crate::location::ImageFiles;
use crate::location::normalize;

/// Bytes of a file's beginning that hold every header: one cluster of the usual size.
pub const HEAD: u64 = 64 << 10;

/// One file of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// The file of the same image that it is a link to (`0 -> <image>`).
    pub link: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// Bytes that a guest sees.
    pub virtual_size: Option<u64>,
    /// The backing name as it is written in the header.
    pub backing: Option<PathBuf>,
}

/// An image with its snapshots.
#[derive(Debug)]
pub struct Layers {
    /// The names.
    pub files: ImageFiles,
    /// The image itself, or the file that it is a link to.
    pub image: Layer,
    snapshots: BTreeMap<u32, Layer>,
    /// Whether `<hash>.snap -> .` is there: the mark of a chain whose image VMs use in place.
    self_link: bool,
    /// Snapshots whose data lives in another file since a live commit (`k.current`).
    moved: BTreeMap<u32, OsString>,
}

impl Layers {
    /// Reads what is there: two round trips, more for a format with a long header.
    ///
    /// oned's `format` matters where it says raw: a guest can write anything into a raw disk, also another format's header.
    ///
    /// # Errors
    /// The image is missing; a layer refers to a file outside of the image; a header is not what it should be.
    pub fn read(cx: &Cx<'_>, host: &Arc<dyn Host>, files: &ImageFiles, format: Option<&str>) -> Result<Self> {
        let first = [
            Op::Stat { path: files.image.clone(), follow: true },
            Op::ReadLink { path: files.image.clone() },
            Op::List { path: files.snapshots() },
        ];
        let answers = cx.query(host, first)?;
        let [image, link, list] = answers.as_slice() else { bail!("{} cannot be read", files.image.display()) };
        if image.stat().is_none_or(|s| !matches!(s.kind, FileKind::File)) {
            bail!("{} does not exist or is no file", files.image.display());
        }
        let link = match link {
            Value::Bytes(text) => Some(PathBuf::from(OsStr::from_bytes(text))),
            _ => None,
        };
        let names = match list {
            Value::Names(names) => names.as_slice(),
            _ => &[],
        };
        let size = image.stat().map(|s| s.size);
        Self::read_files(cx, host, files, (link, size, format == Some("raw")), names)
    }

    fn read_files(
        cx: &Cx<'_>,
        host: &Arc<dyn Host>,
        files: &ImageFiles,
        (link, size, raw): (Option<PathBuf>, Option<u64>, bool),
        names: &[OsString],
    ) -> Result<Self> {
        let ids: Vec<u32> = names.iter().filter_map(|n| n.to_str()?.parse().ok()).collect();
        let moved: Vec<u32> = names.iter().filter_map(|n| n.to_str()?.strip_suffix(".current")?.parse().ok()).collect();
        let mut ops = vec![Op::Read { path: files.image.clone(), offset: 0, len: HEAD }];
        for id in &ids {
            let path = files.snapshot(*id);
            ops.push(Op::ReadLink { path: path.clone() });
            ops.push(Op::Stat { path: path.clone(), follow: true });
            ops.push(Op::Read { path, offset: 0, len: HEAD });
        }
        ops.extend(moved.iter().map(|id| Op::Read { path: current_file(files, *id), offset: 0, len: 4096 }));
        let mut answers = cx.query(host, ops)?.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Absent);

        let image_path = match &link {
            Some(text) => within(files, text, files.base.as_path())?,
            None => files.image.clone(),
        };
        let see = |path: PathBuf, link: Option<PathBuf>, head: Value, size: Option<u64>| {
            if raw {
                return Ok(Layer { path, link, format: Format::Raw, virtual_size: size, backing: None });
            }
            layer(cx, host, path, link, head, size)
        };
        let image = see(image_path, None, next(), size)?;
        let mut snapshots = BTreeMap::new();
        for id in ids {
            let (link, stat, head) = (next(), next(), next());
            let link = match link {
                Value::Bytes(text) => Some(within(files, Path::new(OsStr::from_bytes(&text)), &files.snapshots())?),
                _ => None,
            };
            snapshots.insert(id, see(files.snapshot(id), link, head, stat.stat().map(|s| s.size))?);
        }
        let mut elsewhere = BTreeMap::new();
        for id in moved {
            let Value::Bytes(text) = next() else { continue };
            let text = text.trim_ascii();
            if let Some(name) = Path::new(OsStr::from_bytes(text)).file_name() {
                elsewhere.insert(id, name.to_owned());
            }
        }
        let self_link = names.iter().any(|name| Some(name.as_os_str()) == files.snapshots().file_name());
        let layers = Self { files: files.clone(), image, snapshots, self_link, moved: elsewhere };
        layers.check()?;
        Ok(layers)
    }

    /// Every backing name stays within the image, and no chain runs in a circle.
    fn check(&self) -> Result<()> {
        for layer in self.all() {
            let mut seen = vec![layer.path.clone()];
            let mut at = layer.clone();
            while let Some(below) = self.below(&at)? {
                if seen.contains(&below.path) {
                    bail!(
                        "The layers of {} back each other in a circle at {}",
                        self.files.image.display(),
                        below.path.display()
                    );
                }
                seen.push(below.path.clone());
                at = below.clone();
            }
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.image).chain(self.snapshots.values())
    }

    /// The layer that `layer` is a link to or has as its backing file.
    ///
    /// # Errors
    /// A name that leads out of the image, or to nothing.
    pub fn below(&self, layer: &Layer) -> Result<Option<&Layer>> {
        let path = match (&layer.link, &layer.backing) {
            (Some(link), _) => link.clone(),
            (None, Some(text)) => within(&self.files, text, &self.files.snapshots())?,
            (None, None) => return Ok(None),
        };
        match self.all().find(|l| l.path == path) {
            Some(below) => Ok(Some(below)),
            None => bail!("{} needs {}, which is missing", layer.path.display(), path.display()),
        }
    }

    /// The file that holds the data of snapshot `id`, with links within the image followed.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn data(&self, id: u32) -> Result<&Layer> {
        let layer = match self.moved.get(&id) {
            Some(name) => self.snapshots.values().find(|l| l.path.file_name() == Some(name)),
            None => self.snapshots.get(&id),
        };
        match layer {
            Some(layer) => Ok(layer),
            None => bail!("snapshot {} does not exist", self.files.snapshot(id).display()),
        }
    }

    /// The layer behind links.
    pub fn behind<'a>(&'a self, layer: &'a Layer) -> &'a Layer {
        match &layer.link {
            Some(path) => self.all().find(|l| &l.path == path).unwrap_or(layer),
            None => layer,
        }
    }

    /// The layer that holds the image's current state: what a VM would write to.
    ///
    /// A chain of the `shared` kind keeps it in the highest snapshot file, and SOURCE only the first snapshot's state; it is
    /// still so when all snapshots are deleted and one file without a backing file is left.
    pub fn active(&self) -> &Layer {
        if self.image.path != self.files.image {
            return &self.image;
        }
        let layers = self.snapshots.values().rev();
        layers.into_iter().find(|l| l.backing.is_some() || (self.self_link && l.link.is_none())).unwrap_or(&self.image)
    }

    /// Whether the snapshots are layers of a chain rather than full copies.
    pub fn is_chain(&self) -> bool {
        self.self_link || self.all().any(|l| l.backing.is_some() || l.link.is_some())
    }

    /// The layers that have `layer` (or the file behind it) directly below them.
    ///
    /// # Errors
    /// A chain that leads outside; excluded by [`Layers::read`].
    pub fn above(&self, layer: &Layer) -> Result<Vec<&Layer>> {
        let mut found = Vec::new();
        for one in self.all().filter(|l| l.link.is_none() && l.path != layer.path) {
            if let Some(text) = &one.backing
                && within(&self.files, text, &self.files.snapshots())? == layer.path
            {
                found.push(one);
            }
        }
        Ok(found)
    }

    /// The numbered layers that stand on another one: number, path of that, and its format as QEMU has it.
    ///
    /// # Errors
    /// A chain that leads outside; excluded by [`Layers::read`].
    pub fn numbered(&self) -> Result<Vec<(u32, PathBuf, &'static str)>> {
        let mut found = Vec::new();
        for (id, one) in self.snapshots.iter().filter(|(_, one)| one.link.is_none()) {
            if let Some(below) = self.below(one)? {
                // The image itself stands among the layers as the link to it.
                let link = self.snapshots.values().find(|layer| layer.link.as_ref() == Some(&below.path));
                let path = link.map_or(&below.path, |link| &link.path);
                found.push((*id, path.clone(), data_format(below.format)));
            }
        }
        Ok(found)
    }

    /// The `.current` file of snapshot `id`, if there is one.
    pub fn moved_marker(&self, id: u32) -> Option<PathBuf> {
        self.moved.contains_key(&id).then(|| current_file(&self.files, id))
    }
}

impl Layer {
    /// How a layer beside this one is named in a backing name, in the manner of the name that stands there now.
    pub fn name_for(&self, target: &Path) -> PathBuf {
        match (&self.backing, target.file_name()) {
            (Some(old), Some(name)) if old.is_relative() && target.parent() == self.path.parent() => {
                old.with_file_name(name)
            }
            _ => target.to_owned(),
        }
    }
}

fn current_file(files: &ImageFiles, id: u32) -> PathBuf {
    files.snapshots().join(format!("{id}.current"))
}

/// Judges an image that has no snapshots, by its first bytes: it stands on nothing.
///
/// # Errors
/// It is unsafe, or stands on another file.
pub fn alone(cx: &Cx<'_>, host: &Arc<dyn Host>, path: &Path, size: Option<u64>, head: Vec<u8>) -> Result<Layer> {
    let layer = layer(cx, host, path.to_owned(), None, Value::Bytes(head), size)?;
    match &layer.backing {
        None => Ok(layer),
        Some(backing) => bail!("{} refers to {}, which is not a part of it", path.display(), backing.display()),
    }
}

/// Judges one file. A layer may stand on another one, and may hold internal snapshots; nothing else that makes an image
/// unsafe is taken, also in a datastore: images that came in before us were not judged.
pub fn layer(
    cx: &Cx<'_>,
    host: &Arc<dyn Host>,
    path: PathBuf,
    link: Option<PathBuf>,
    head: Value,
    size: Option<u64>,
) -> Result<Layer> {
    let Value::Bytes(head) = head else { bail!("{} cannot be read", path.display()) };
    let seen = judge::inspect(cx, host, &path, size, head)?;
    let backing = |reason: &Reason| match reason {
        Reason::Reference(reference) if reference.kind == RefKind::BackingFile => Some(PathBuf::from(&reference.name)),
        _ => None,
    };
    let taken = |reason: &Reason| backing(reason).is_some() || matches!(reason, Reason::Snapshots(_));
    if let Some(reason) = seen.verdict.reasons().iter().find(|reason| !taken(reason)) {
        bail!("{} is a {} image that cannot be used: {reason}", path.display(), seen.format);
    }
    // A trailer makes no other format of the same first bytes: QEMU takes such a file for raw.
    let format =
        if seen.format == Format::Vpc && seen.variant.as_deref() == Some("fixed") { Format::Raw } else { seen.format };
    Ok(Layer {
        format,
        virtual_size: if format == Format::Raw { size } else { seen.virtual_size },
        backing: seen.verdict.reasons().iter().find_map(backing).filter(|_| link.is_none()),
        path,
        link,
    })
}

/// The format as oned and QEMU have it: an encrypted volume is raw data to them.
pub fn data_format(format: Format) -> &'static str {
    if format == Format::Luks { "raw" } else { format.name() }
}

/// The file of the image that `text`, a backing name or link seen from `from`, stands for.
///
/// Allowed are the image itself and the plain names in its `.snap`; the self link `<hash>.snap -> .` may stand in
/// between any number of times.
fn within(files: &ImageFiles, text: &Path, from: &Path) -> Result<PathBuf> {
    let whole = normalize(&from.join(text));
    let snapshots = files.snapshots();
    if whole == files.image {
        return Ok(whole);
    }
    if let Ok(rest) = whole.strip_prefix(&snapshots) {
        let me = snapshots.file_name().unwrap_or_default();
        let mut parts = rest.components().map(std::path::Component::as_os_str).skip_while(|part| *part == me);
        if let (Some(name), None) = (parts.next(), parts.next()) {
            return Ok(snapshots.join(name));
        }
    }
    bail!("{} refers to {}, which is not a part of it", files.image.display(), text.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> ImageFiles {
        ImageFiles::new(Path::new("/ds/1"), Path::new("/ds/1/abc")).expect("an image")
    }

    #[test]
    fn only_the_image_and_its_layers_are_within_it() {
        let f = files();
        let from = f.snapshots();
        let ok = |text: &str| within(&f, Path::new(text), &from).ok();
        assert_eq!(ok("/ds//1/abc"), Some("/ds/1/abc".into()));
        assert_eq!(ok("1"), Some("/ds/1/abc.snap/1".into()));
        assert_eq!(ok("abc.snap/1"), Some("/ds/1/abc.snap/1".into()));
        assert_eq!(ok("/ds/1/abc.snap/abc.snap/0"), Some("/ds/1/abc.snap/0".into()));
        assert_eq!(ok("../abc"), Some("/ds/1/abc".into()));
        for bad in
            ["/etc/passwd", "../../2/x", "/ds/1/other", "x/y", "/ds/1/abc.snap", "json:{}/../../../x", "nbd:unix:/x"]
        {
            assert_eq!(ok(bad), None, "{bad}");
        }
    }

    fn layers(of: &[(u32, Option<&str>, Option<&str>)], link: Option<&str>) -> Layers {
        let files = files();
        let make = |path: PathBuf, link: Option<&str>, backing: Option<&str>| Layer {
            path,
            link: link.map(PathBuf::from),
            format: Format::Qcow2,
            virtual_size: Some(1),
            backing: backing.map(PathBuf::from),
        };
        let image = make(link.map_or_else(|| files.image.clone(), PathBuf::from), None, None);
        let snapshots =
            of.iter().map(|(id, link, backing)| (*id, make(files.snapshot(*id), *link, *backing))).collect();
        Layers { files, image, snapshots, self_link: false, moved: BTreeMap::new() }
    }

    #[test]
    fn a_shared_chain_has_its_state_in_the_highest_layer() {
        let l = layers(
            &[(0, Some("/ds/1/abc"), None), (1, None, Some("/ds/1/abc.snap/0")), (10, None, Some("/ds/1/abc.snap/1"))],
            None,
        );
        l.check().expect("sound");
        assert!(l.is_chain());
        assert_eq!(l.active().path, Path::new("/ds/1/abc.snap/10"));
        assert_eq!(l.behind(l.data(0).expect("0")).path, Path::new("/ds/1/abc"));
        let above: Vec<_> = l.above(l.data(0).expect("0")).expect("above").iter().map(|l| l.path.clone()).collect();
        assert_eq!(above, [Path::new("/ds/1/abc.snap/1")]);
        assert!(l.data(7).is_err());
    }

    #[test]
    fn full_copies_are_no_chain() {
        let l = layers(&[(0, None, None), (1, None, None)], None);
        assert!(!l.is_chain());
        assert_eq!(l.active().path, Path::new("/ds/1/abc"));
    }

    #[test]
    fn the_last_layer_of_a_chain_whose_snapshots_are_gone_holds_the_state() {
        let mut l = layers(&[(1, None, None)], None);
        l.self_link = true;
        assert!(l.is_chain());
        assert_eq!(l.active().path, Path::new("/ds/1/abc.snap/1"));
    }

    #[test]
    fn circles_and_gaps_are_found() {
        let circle = layers(&[(1, None, Some("2")), (2, None, Some("1"))], None);
        assert!(circle.check().expect_err("a circle").to_string().contains("circle"));
        let gap = layers(&[(2, None, Some("1"))], None);
        assert!(gap.check().expect_err("a gap").to_string().contains("missing"));
    }

    #[test]
    fn backing_names_keep_their_manner() {
        let l = layers(&[(1, None, Some("abc.snap/0")), (2, None, Some("/ds/1/abc"))], None);
        let target = Path::new("/ds/1/abc.snap/7");
        assert_eq!(l.data(1).expect("1").name_for(target), Path::new("abc.snap/7"));
        assert_eq!(l.data(2).expect("2").name_for(target), target);
    }
}
