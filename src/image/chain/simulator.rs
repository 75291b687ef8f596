//! A simulator of what a guest sees: images of a few blocks, links, markers, and a running domain.
//!
//! Names are resolved as QEMU and the kernel do it: a relative backing name is meant from the folder of the path that was
//! opened, links in between are followed. It knows nothing of the model that it tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::super::Format;
use super::*;
use crate::location::normalize;

pub const BLOCKS: usize = 4;

#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub qcow2: bool,
    pub blocks: Vec<Option<u8>>,
    pub backing: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    File(u64),
    Link(PathBuf),
    Text(PathBuf),
}

/// The paths by which the domain has its chain open, and the files behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    pub open: Vec<(PathBuf, u64)>,
}

#[derive(Clone, Debug)]
pub struct World {
    pub names: Names,
    pub style: Style,
    pub items: BTreeMap<PathBuf, Item>,
    pub images: BTreeMap<u64, Image>,
    pub folders: BTreeSet<PathBuf>,
    pub domain: Option<Domain>,
}

impl World {
    pub fn new(names: Names, style: Style) -> Self {
        let (items, images, folders) = Default::default();
        Self { names, style, items, images, folders, domain: None }
    }

    pub fn put(&mut self, path: impl Into<PathBuf>, image: Image) -> u64 {
        let inode = self.images.keys().last().map_or(1, |last| last + 1);
        self.images.insert(inode, image);
        self.items.insert(path.into(), Item::File(inode));
        inode
    }

    pub fn link(&mut self, link: impl Into<PathBuf>, target: &str) {
        self.items.insert(link.into(), Item::Link(target.into()));
    }

    /// The path behind links.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        let mut todo: Vec<OsString> = path.components().rev().map(|c| c.as_os_str().to_owned()).collect();
        let (mut at, mut links) = (PathBuf::from("/"), 0);
        while let Some(part) = todo.pop() {
            let next = normalize(&at.join(&part));
            match self.items.get(&next) {
                Some(Item::Link(text)) => {
                    links += 1;
                    assert!(links < 40, "links in a circle at {}", next.display());
                    todo.extend(
                        text.components().rev().filter(|c| *c != Component::CurDir).map(|c| c.as_os_str().to_owned()),
                    );
                }
                _ => at = next,
            }
        }
        at
    }

    pub fn inode(&self, path: &Path) -> Option<u64> {
        match self.items.get(&self.resolve(path)) {
            Some(Item::File(inode)) => Some(*inode),
            _ => None,
        }
    }

    /// The chain of a path that is opened: paths and files, the first on top.
    pub fn open(&self, path: &Path) -> Result<Vec<(PathBuf, u64)>, String> {
        let mut chain = Vec::new();
        let mut path = path.to_owned();
        loop {
            let inode = self.inode(&path).ok_or(format!("{} cannot be opened", path.display()))?;
            let image = &self.images[&inode];
            chain.push((path.clone(), inode));
            let Some((name, format)) = &image.backing else { return Ok(chain) };
            path = path.parent().expect("a folder").join(name);
            let below = self.inode(&path).ok_or(format!("backing file {} cannot be opened", path.display()))?;
            if (format == "qcow2") != self.images[&below].qcow2 {
                return Err(format!("{} is no {format}", path.display()));
            }
            if chain.len() > 60 {
                return Err("a circle".to_owned());
            }
        }
    }

    fn through(&self, chain: &[u64]) -> Vec<u8> {
        let size = self.images[&chain[0]].blocks.len();
        let block = |at: usize| {
            for inode in chain {
                let image = &self.images[inode];
                if at >= image.blocks.len() {
                    return 0;
                }
                if let Some(byte) = image.blocks[at] {
                    return byte;
                }
            }
            0
        };
        (0..size).map(block).collect()
    }

    /// What a guest would see of a file.
    pub fn visible(&self, path: &Path) -> Result<Vec<u8>, String> {
        let chain: Vec<u64> = self.open(path)?.into_iter().map(|(_, inode)| inode).collect();
        Ok(self.through(&chain))
    }

    /// What the guest sees now: of the running domain, or of the disk by its real path.
    pub fn current(&self) -> Result<Vec<u8>, String> {
        match &self.domain {
            Some(domain) => Ok(self.through(&domain.open.iter().map(|(_, inode)| *inode).collect::<Vec<_>>())),
            None => self.visible(&self.disk_path()),
        }
    }

    /// The path by which a program opens the disk: chains with bare names open only by their real path.
    fn disk_path(&self) -> PathBuf {
        let bare = self.style == Style::Layers(Manner::Bare);
        if bare { self.resolve(&self.names.disk) } else { self.names.disk.clone() }
    }

    pub fn boot(&mut self) {
        let open = self.open(&self.disk_path()).expect("the disk opens");
        self.domain = Some(Domain { open });
    }

    pub fn live(&self) -> Live {
        let domain = self.domain.as_ref().expect("it runs");
        Live { chain: domain.open.iter().map(|(path, _)| path.clone()).collect() }
    }

    pub fn write(&mut self, at: usize, byte: u8) {
        let inode = match &self.domain {
            Some(domain) => domain.open[0].1,
            None => self.inode(&self.names.disk).expect("the disk"),
        };
        self.images.get_mut(&inode).expect("there").blocks[at] = Some(byte);
    }

    fn entry(&self, path: &Path) -> Entry {
        let kind = match self.items.get(path) {
            Some(Item::Link(text)) => Kind::Link(text.clone()),
            Some(_) => Kind::File,
            None if self.folders.contains(path) => Kind::Folder,
            None => Kind::Absent,
        };
        let text = match self.items.get(path) {
            Some(Item::Text(text)) => Some(format!("{}\n", text.display()).into_bytes()),
            _ => None,
        };
        let inode = self.inode(path);
        let header = inode.map(|inode| {
            let image = &self.images[&inode];
            Header {
                format: if image.qcow2 && self.style != Style::Copies { Format::Qcow2 } else { Format::Raw },
                virtual_size: Some(image.blocks.len() as u64),
                backing: image.backing.clone().map(|(name, format)| Backing { name, format: Some(format) }),
                blank: Some(image.qcow2 && image.blocks.iter().all(Option::is_none)),
                fault: None,
            }
        });
        Entry { kind, inode: inode.map(|inode| (1, inode)), header, text }
    }

    pub fn facts(&self) -> Facts {
        let folder = self.names.folder();
        let inside = self.items.keys().filter(|path| path.parent() == Some(&folder));
        let entries = inside.map(|path| (path.file_name().expect("a name").to_owned(), self.entry(path)));
        Facts {
            names: self.names.clone(),
            style: self.style,
            disk: self.entry(&self.names.disk),
            origin: self.entry(&self.names.origin),
            folder: self.folders.contains(&folder).then(|| entries.collect()),
            others: Vec::new(),
            outside: BTreeMap::new(),
        }
    }

    pub fn chain(&self) -> Chain {
        Chain::of(&self.facts())
    }

    fn image_mut(&mut self, path: &Path) -> &mut Image {
        let inode = self.inode(path).unwrap_or_else(|| panic!("{} is missing", path.display()));
        self.images.get_mut(&inode).expect("there")
    }

    fn rebase(&mut self, file: &Path, onto: Option<&(PathBuf, String)>, copy: bool, blocks: usize) {
        assert!(
            self.domain.iter().all(|d| d.open.iter().all(|(_, open)| Some(*open) != self.inode(file))),
            "qemu-img may not write {}, the domain has it open",
            file.display()
        );
        if copy {
            let seen = self.visible(file).expect("the overlay opens");
            let below = match onto {
                Some((name, _)) => self.visible(&file.parent().expect("a folder").join(name)).expect("the base opens"),
                None => Vec::new(),
            };
            let image = self.image_mut(file);
            for (at, byte) in seen.into_iter().enumerate().take(blocks) {
                if image.blocks[at].is_none() && below.get(at).copied().unwrap_or(0) != byte {
                    image.blocks[at] = Some(byte);
                }
            }
        }
        if blocks == usize::MAX {
            self.image_mut(file).backing =
                onto.map(|(name, format)| (name.to_string_lossy().into_owned(), format.clone()));
        }
    }

    fn pull(&mut self, base: Option<&Open>, backing: Option<&PathBuf>, blocks: usize) {
        let open = self.domain.as_ref().expect("it runs").open.clone();
        let keep = base.map_or(open.len(), |base| base.at);
        assert!(
            base.is_none_or(|base| open.get(base.at).is_some_and(|(_, inode)| self.inode(&base.path) == Some(*inode)))
        );
        let above: Vec<u64> = open[..keep].iter().map(|(_, inode)| *inode).collect();
        for at in 0..self.images[&above[0]].blocks.len().min(blocks) {
            let found = above.iter().find_map(|inode| *self.images[inode].blocks.get(at)?);
            if found.is_some() {
                self.images.get_mut(&above[0]).expect("there").blocks[at] = found;
            }
        }
        if blocks == usize::MAX {
            let format = self.images[&above[keep - 1]].backing.clone().map(|(_, format)| format);
            let backing = backing.map(|name| (name.to_string_lossy().into_owned(), format.expect("an overlay")));
            self.images.get_mut(&above[0]).expect("there").backing = backing;
            self.domain.as_mut().expect("it runs").open.drain(1..keep);
        }
    }

    fn commit(&mut self, top: &Open, base: &Open, backing: &Path, blocks: usize) {
        let open = self.domain.as_ref().expect("it runs").open.clone();
        for file in [top, base] {
            assert_eq!(
                open.get(file.at).map(|(_, inode)| *inode),
                self.inode(&file.path),
                "position of {}",
                file.path.display()
            );
        }
        assert!(top.at > 0 && base.at == top.at + 1);
        // QEMU opens a file once more, by the name that it knows, when it has to write to it.
        for at in [base.at, top.at - 1].into_iter().filter(|at| *at > 0) {
            assert_eq!(self.inode(&open[at].0), Some(open[at].1), "QEMU would write to another file");
        }
        let upper = self.images[&open[top.at].1].clone();
        let lower = self.images.get_mut(&open[base.at].1).expect("there");
        for (at, byte) in upper.blocks.iter().enumerate().take(blocks) {
            if lower.blocks.len() <= at {
                lower.blocks.push(Some(0));
            }
            if byte.is_some() {
                lower.blocks[at] = *byte;
            }
        }
        if blocks == usize::MAX {
            let name = (backing.to_string_lossy().into_owned(), "qcow2".to_owned());
            self.images.get_mut(&open[top.at - 1].1).expect("there").backing = Some(name);
            self.domain.as_mut().expect("it runs").open.remove(top.at);
        }
    }

    /// Does a step; with fewer than all `blocks` only a part of those that move data.
    pub fn apply(&mut self, step: &Step, blocks: usize) {
        let part = blocks != usize::MAX;
        match step {
            Step::Rebase { file, onto, copy } => self.rebase(file, onto.as_ref(), *copy, blocks),
            Step::BlockPull { file, base, backing } => {
                let top = self.domain.as_ref().expect("it runs").open[0].1;
                assert_eq!(self.inode(file), Some(top), "the current file");
                self.pull(base.as_ref(), backing.as_ref(), blocks);
            }
            Step::BlockCommit { top, base, above, backing } => {
                let over = self.domain.as_ref().expect("it runs").open[top.at - 1].1;
                assert_eq!(self.inode(above), Some(over), "the file above");
                self.commit(top, base, backing, blocks);
            }
            _ if part => {}
            Step::MakeFolder { folder } => drop(self.folders.insert(folder.clone())),
            Step::DropFolder { folder } => drop(self.folders.remove(folder)),
            Step::Link { link, target } => drop(self.items.insert(link.clone(), Item::Link(target.clone()))),
            Step::SecondName { file, name } => {
                let inode = self.inode(file).expect("there");
                assert!(self.items.insert(name.clone(), Item::File(inode)).is_none(), "{} exists", name.display());
            }
            Step::PutOverlay { file, backing, format, size } => {
                assert!(!matches!(self.items.get(file), Some(Item::Link(_))), "{} is a link", file.display());
                let below = self.inode(&file.parent().expect("a folder").join(backing)).expect("the backing file");
                assert_eq!(self.images[&below].qcow2, *format == "qcow2");
                let size = usize::try_from(*size).expect("small");
                let backing = Some((backing.to_string_lossy().into_owned(), (*format).to_owned()));
                self.put(file.clone(), Image { qcow2: true, blocks: vec![None; size], backing });
            }
            Step::PutCopy { from, to } => {
                let image = self.images[&self.inode(from).expect("there")].clone();
                self.put(to.clone(), image);
            }
            Step::Remove { file } => assert!(self.items.remove(file).is_some(), "{} is not there", file.display()),
            Step::Mark { marker, names } => drop(self.items.insert(marker.clone(), Item::Text(names.clone()))),
            Step::LiveSnapshot { file } => {
                let inode = self.inode(file).expect("made before");
                let domain = self.domain.as_mut().expect("it runs");
                domain.open.insert(0, (file.clone(), inode));
                let [top, frozen] = [domain.open[0].1, domain.open[1].1];
                let below = self.open(file).expect("opens")[1].1;
                assert_eq!((self.images[&top].blocks.iter().flatten().count(), below), (0, frozen));
            }
        }
    }

    pub fn run(&mut self, plan: &Plan) {
        plan.steps.iter().for_each(|planned| self.apply(&planned.step, usize::MAX));
    }
}

pub fn full(byte: u8) -> Image {
    Image { qcow2: true, blocks: vec![Some(byte); BLOCKS], backing: None }
}

pub fn overlay(backing: &str) -> Image {
    Image { qcow2: true, blocks: vec![None; BLOCKS], backing: Some((backing.to_owned(), "qcow2".to_owned())) }
}

/// Every layout in which a disk may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Clone,
    Standalone,
    Persistent,
    Local,
    Plain,
    Raw,
    RawPersistent,
    PlainPersistent,
}

pub const STARTS: [Start; 8] = [
    Start::Clone,
    Start::Standalone,
    Start::Persistent,
    Start::Local,
    Start::Plain,
    Start::Raw,
    Start::RawPersistent,
    Start::PlainPersistent,
];

pub fn world(start: Start) -> World {
    let disk = PathBuf::from("/ds/0/7/disk.0");
    let image = PathBuf::from("/ds/1/abc");
    let own = Names::own(disk.clone());
    let in_place = Names { disk: disk.clone(), origin: image.clone() };
    let (names, style) = match start {
        Start::Clone | Start::Standalone | Start::Plain => (own, Style::Layers(Manner::Relative)),
        Start::Local => (own, Style::Layers(Manner::Bare)),
        Start::Persistent | Start::PlainPersistent => (in_place, Style::Layers(Manner::Absolute)),
        Start::Raw => (own, Style::Copies),
        Start::RawPersistent => (in_place, Style::Copies),
    };
    let mut world = World::new(names, style);
    let raw = Image { qcow2: false, ..full(9) };
    let folder = world.names.folder();
    world.put("/ds/1/image", full(1));
    match start {
        Start::Clone | Start::Standalone | Start::Local => {
            world.link(&disk, "disk.0.snap/0");
            world.put(folder.join("0"), if start == Start::Standalone { full(2) } else { overlay("/ds/1/image") });
            if start != Start::Local {
                world.link(folder.join("disk.0.snap"), ".");
            }
            world.folders.insert(folder);
        }
        Start::Persistent => {
            world.put(&image, full(3));
            world.link(folder.join("0"), "/ds/1/abc");
            world.link(folder.join("abc.snap"), ".");
            world.link(&disk, "/ds/1/abc.snap/0");
            world.folders.insert(folder);
        }
        Start::Plain => drop(world.put(&disk, full(4))),
        Start::Raw => drop(world.put(&disk, raw)),
        Start::RawPersistent => {
            world.put(&image, raw);
            world.link(&disk, "/ds/1/abc");
        }
        Start::PlainPersistent => {
            world.put(&image, full(5));
            world.link(&disk, "/ds/1/abc");
        }
    }
    world
}
