//! The snapshot layers of an image as they lie on the disk, whichever transfer manager made them: read by
//! [`crate::chains`], here is what they mean for an image that no VM uses.
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
use crate::chains;
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Value};
use crate::image::Format;
use crate::image::chain::{Entry, Header, Kind};
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
        let folder = files.snapshots();
        let first = [Op::Stat { path: files.image.clone(), follow: true }, Op::List { path: folder.clone() }];
        let answers = cx.query(host, first)?;
        let [image, list] = answers.as_slice() else { bail!("{} cannot be read", files.image.display()) };
        if image.stat().is_none_or(|s| !matches!(s.kind, FileKind::File)) {
            bail!("{} does not exist or is no file", files.image.display());
        }
        let names = match list {
            Value::Names(names) => names.as_slice(),
            _ => &[],
        };
        let ids: Vec<u32> = names.iter().filter_map(|n| n.to_str()?.parse().ok()).collect();
        let moved: Vec<u32> = names.iter().filter_map(|n| n.to_str()?.strip_suffix(".current")?.parse().ok()).collect();
        let mut paths = vec![files.image.clone()];
        paths.extend(ids.iter().map(|id| files.snapshot(*id)));
        paths.extend(moved.iter().map(|id| current_file(files, *id)));
        let mut ask = |ops| cx.query(host, ops).map_err(anyhow::Error::from);
        let entries = chains::entries(&folder, &paths, format == Some("raw"), &mut ask)?;
        let self_link = names.iter().any(|name| Some(name.as_os_str()) == folder.file_name());
        Self::of(files, &entries, (&ids, &moved), self_link)
    }

    fn of(
        files: &ImageFiles,
        entries: &BTreeMap<PathBuf, Entry>,
        (ids, moved): (&[u32], &[u32]),
        self_link: bool,
    ) -> Result<Self> {
        let found = |path: &Path| entries.get(path).cloned().unwrap_or_default();
        let entry = found(&files.image);
        let image = match &entry.kind {
            Kind::Link(text) => within(files, text, &files.base)?,
            _ => files.image.clone(),
        };
        let image = layer(image, None, entry.header)?;
        let mut snapshots = BTreeMap::new();
        for id in ids {
            let entry = found(&files.snapshot(*id));
            let link = match &entry.kind {
                Kind::Link(text) => Some(within(files, text, &files.snapshots())?),
                _ => None,
            };
            snapshots.insert(*id, layer(files.snapshot(*id), link, entry.header)?);
        }
        let mut elsewhere = BTreeMap::new();
        for id in moved {
            let text = found(&current_file(files, *id)).text.unwrap_or_default();
            if let Some(name) = Path::new(OsStr::from_bytes(text.trim_ascii())).file_name() {
                elsewhere.insert(*id, name.to_owned());
            }
        }
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

    /// The numbered layers that stand on another one: number, path of that, and its format as QEMU has it. The image itself
    /// stands among the layers as [`Layers::first`], or as the link to it.
    ///
    /// # Errors
    /// A chain that leads outside; excluded by [`Layers::read`].
    pub fn numbered(&self) -> Result<Vec<(u32, PathBuf, &'static str)>> {
        let mut found = Vec::new();
        for (id, one) in self.snapshots.iter().filter(|(_, one)| one.link.is_none()) {
            if let Some(below) = self.below(one)? {
                let link = self.snapshots.values().find(|layer| layer.link.as_ref() == Some(&below.path));
                let path = match link {
                    Some(link) => link.path.clone(),
                    None if below.path == self.files.image => self.files.snapshot(0),
                    None => below.path.clone(),
                };
                found.push((*id, path, data_format(below.format)));
            }
        }
        Ok(found)
    }

    /// The number under which the image itself has to stand among its layers where they are copied: nothing where it does
    /// already. Once its first snapshot is deleted, the next layer names the image and no link to it is left.
    ///
    /// # Errors
    /// The number is taken by another file.
    pub fn first(&self) -> Result<Option<u32>> {
        if self.snapshots.values().any(|layer| layer.link.as_ref() == Some(&self.files.image))
            || self.above(&self.image)?.is_empty()
        {
            return Ok(None);
        }
        match self.snapshots.get(&0) {
            None => Ok(Some(0)),
            Some(layer) => bail!("{} is in the place of {}", layer.path.display(), self.files.image.display()),
        }
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
pub fn alone(cx: &Cx<'_>, host: &Arc<dyn Host>, path: &Path, size: Option<u64>, head: &[u8]) -> Result<Layer> {
    let layer = judged(cx, host, path, size, head)?;
    match &layer.backing {
        None => Ok(layer),
        Some(backing) => bail!("{} refers to {}, which is not a part of it", path.display(), backing.display()),
    }
}

/// Judges one file by its first bytes.
///
/// # Errors
/// No program may open it.
pub fn judged(cx: &Cx<'_>, host: &Arc<dyn Host>, path: &Path, size: Option<u64>, head: &[u8]) -> Result<Layer> {
    let mut header = Header::from(&judge::inspect(cx, host, path, size, head)?);
    if header.format == Format::Raw {
        header.virtual_size = size;
    }
    layer(path.to_owned(), None, Some(header))
}

/// A layer may stand on another one, and may hold internal snapshots; nothing else that makes an image unsafe is taken, also
/// in a datastore: images that came in before us were not judged.
fn layer(path: PathBuf, link: Option<PathBuf>, header: Option<Header>) -> Result<Layer> {
    let Some(header) = header else { bail!("{} cannot be read", path.display()) };
    if let Some(fault) = &header.fault {
        bail!("{} is a {} image that cannot be used: {fault}", path.display(), header.format);
    }
    Ok(Layer {
        format: header.format,
        virtual_size: header.virtual_size,
        backing: header.backing.map(|backing| PathBuf::from(backing.name)).filter(|_| link.is_none()),
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
