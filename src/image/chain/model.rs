//! Layers, their parents, the current one, and where snapshots live: what the facts mean.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::facts::{Backing, Entry, Facts, Header, Inode, Kind, Manner, Names, Style};
use super::finding::{Finding, Refusal};
use crate::location::normalize;

/// One file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// What the folder stands beside: a plain disk, or a persistent image.
    Origin,
    /// A file of the folder.
    Layer(OsString),
}

impl Node {
    /// The layer whose file is called `number`.
    #[must_use]
    pub fn number(number: u32) -> Self {
        Self::Layer(number.to_string().into())
    }

    /// The number that the file is called.
    #[must_use]
    pub fn as_number(&self) -> Option<u32> {
        match self {
            Self::Origin => None,
            Self::Layer(name) => number(name),
        }
    }
}

/// A number as a file name: digits without leading zeroes.
fn number(name: &OsStr) -> Option<u32> {
    let text = name.to_str()?;
    text.parse().ok().filter(|n: &u32| n.to_string() == text)
}

/// The layer that a backing name ends in.
fn named(name: &Path) -> Node {
    Node::Layer(name.file_name().unwrap_or_default().to_owned())
}

/// One file and what it stands on.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// What its header says; behind a link, the header of the file that it leads to.
    pub header: Header,
    /// The file that it is only another name for: `0 -> <image>`, or a second name of a plain disk.
    pub alias: Option<Node>,
    /// The file, to tell whether another path leads to it.
    pub inode: Option<Inode>,
    /// What it stands on. Always [`Below::Nothing`] for another name.
    pub below: Below,
}

/// What a layer stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// Nothing: it stands alone.
    Nothing,
    /// A file of the disk.
    Node(Node),
    /// A file outside, as the layer names it: the image that the disk was cloned from.
    Outside(Backing),
    /// Something that cannot be used; a [`Finding`] says why.
    Broken,
}

/// The snapshot chain of one disk.
#[derive(Clone, Debug)]
pub struct Chain {
    pub(super) names: Names,
    pub(super) folder: PathBuf,
    pub(super) has_folder: bool,
    pub(super) has_self_link: bool,
    pub(super) style: Style,
    pub(super) manner: Manner,
    pub(super) layers: BTreeMap<Node, Layer>,
    pub(super) active: Option<Node>,
    /// Text of the disk's link, where it is one.
    pub(super) link: Option<PathBuf>,
    /// `k.current`: snapshot to the name of a file.
    pub(super) moved: BTreeMap<u32, OsString>,
    /// `k.deleting`: snapshots whose file another one is merged into, and the name of that other file.
    pub(super) deleting: BTreeMap<u32, OsString>,
    findings: Vec<(Option<Node>, Finding)>,
    outside: BTreeMap<PathBuf, Option<Inode>>,
}

impl Chain {
    /// The model of what was seen. A chain that is broken has [`Chain::findings`].
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        let mut chain = Self {
            folder: facts.names.folder(),
            names: facts.names.clone(),
            has_folder: facts.folder.is_some(),
            has_self_link: false,
            style: facts.style,
            manner: Manner::Absolute,
            layers: BTreeMap::new(),
            active: None,
            link: None,
            moved: BTreeMap::new(),
            deleting: BTreeMap::new(),
            findings: Vec::new(),
            outside: facts.outside.clone(),
        };
        chain.take_files(facts);
        chain.find_active(facts);
        chain.manner = chain.find_manner();
        chain.find_parents();
        chain.find_circles();
        chain.check_markers();
        chain
    }

    fn find(&mut self, node: impl Into<Option<Node>>, finding: Finding) {
        self.findings.push((node.into(), finding));
    }

    /// Every file that is or should be a layer, and the markers.
    fn take_files(&mut self, facts: &Facts) {
        let origin_inode = (facts.origin.kind == Kind::File).then_some(facts.origin.inode).flatten();
        if facts.origin.kind == Kind::File {
            self.take(Node::Origin, &facts.origin, None);
        }
        for (name, entry) in facts.folder.iter().flatten() {
            let text = name.to_str().unwrap_or_default();
            let marker = |suffix: &str| text.strip_suffix(suffix).and_then(|id| number(OsStr::new(id)));
            let words = entry.text.as_deref().unwrap_or_default().trim_ascii();
            let names = || Path::new(OsStr::from_bytes(words)).file_name().unwrap_or_default().to_owned();
            if let Some(id) = marker(".current") {
                self.moved.insert(id, names());
            } else if let Some(id) = marker(".deleting") {
                self.deleting.insert(id, names());
            } else {
                self.take_entry(name, entry, origin_inode);
            }
        }
    }

    fn take_entry(&mut self, name: &OsStr, entry: &Entry, origin: Option<Inode>) {
        let node = Node::Layer(name.to_owned());
        let is_origin = origin.is_some() && entry.inode == origin;
        match &entry.kind {
            Kind::Link(text) => {
                let path = normalize(&self.folder.join(text));
                if Some(name) == self.folder.file_name() {
                    self.has_self_link = path == self.folder;
                } else if is_origin {
                    self.take(node, entry, Some(Node::Origin));
                } else if let Some(target) = self.locate(&path).filter(|target| *target != node) {
                    self.take(node, entry, Some(target));
                } else {
                    let (file, name) = (self.path(&node), text.to_string_lossy().into_owned());
                    let finding = match self.under_another_root(&path) {
                        Some(here) => Finding::OtherRoot { file, name, here: self.path(&here) },
                        None if entry.header.is_none() => Finding::MissingParent { file, name },
                        None => Finding::Unusable { file, why: format!("it is a link to {name}, outside of the disk") },
                    };
                    self.find(node, finding);
                }
            }
            Kind::File => self.take(node, entry, is_origin.then_some(Node::Origin)),
            Kind::Folder | Kind::Other if number(name).is_some() => {
                let path = self.path(&node);
                self.find(node, Finding::NotAFile(path));
            }
            Kind::Folder | Kind::Other | Kind::Absent => {}
        }
    }

    fn take(&mut self, node: Node, entry: &Entry, alias: Option<Node>) {
        let path = self.path(&node);
        let Some(header) = entry.header.clone() else {
            // A link whose file is gone has no header.
            let text = match &entry.kind {
                Kind::Link(text) => text.to_string_lossy().into_owned(),
                _ => String::new(),
            };
            return self.find(node, Finding::MissingParent { file: path, name: text });
        };
        if let Some(why) = &header.fault {
            self.find(node.clone(), Finding::Unusable { file: path.clone(), why: why.clone() });
        }
        self.layers.insert(node, Layer { path, header, alias, inode: entry.inode, below: Below::Nothing });
    }

    /// The file that the VM writes to.
    fn find_active(&mut self, facts: &Facts) {
        let disk = self.names.disk.clone();
        match &facts.disk.kind {
            Kind::File if disk == self.names.origin => {
                self.active = Some(Node::Origin);
                let own = |layer: &Layer| layer.alias.is_none() && layer.header.backing.is_some();
                let beside = self.layers.iter().find(|(node, layer)| **node != Node::Origin && own(layer));
                // A chain that stands on a second name of the disk is one that is just being made.
                let second_name = self.layers.values().any(|layer| layer.alias == Some(Node::Origin));
                if let Some((_, layer)) = beside.filter(|_| !second_name) {
                    let layer = layer.path.clone();
                    self.find(None, Finding::DiskBeside { disk, layer });
                }
            }
            Kind::File => {
                let image = self.names.origin.clone();
                self.find(None, Finding::DiskCut { disk, image });
            }
            Kind::Link(text) => {
                self.link = Some(text.clone());
                let target = normalize(&disk.parent().unwrap_or(Path::new("/")).join(text));
                self.active = self.locate(&target).filter(|node| self.layers.contains_key(node));
                if self.active.is_none() {
                    let own = target.parent() == Some(self.folder.as_path()) || target == self.names.origin;
                    let target = text.clone();
                    let finding = if own {
                        Finding::ActiveMissing { disk, target }
                    } else {
                        Finding::DiskElsewhere { disk, target }
                    };
                    self.find(None, finding);
                }
            }
            Kind::Absent => self.find(None, Finding::DiskMissing(disk)),
            Kind::Folder | Kind::Other => self.find(None, Finding::NotAFile(disk)),
        }
        for (other, text) in &facts.others {
            let target = normalize(&other.parent().unwrap_or(Path::new("/")).join(text));
            let node = if *other == self.names.disk { None } else { self.locate(&target) };
            if let Some(node) = node {
                let node = self.behind(&node);
                let file = self.path(&node);
                self.find(node, Finding::TwoDisks { file, other: other.clone() });
            }
        }
    }

    /// How siblings are named: as the disk's link is, and where that leaves a doubt, as names in headers are.
    fn find_manner(&self) -> Manner {
        let by_style = match self.style {
            Style::Layers(manner) => manner,
            Style::Copies => Manner::Relative,
        };
        let Some(link) = &self.link else { return by_style };
        if link.is_absolute() {
            return Manner::Absolute;
        }
        let names = || self.layers.values().filter_map(|layer| Some(Path::new(&layer.header.backing.as_ref()?.name)));
        let sibling = |name: &&Path| name.is_relative() && self.layers.contains_key(&named(name));
        if self.has_self_link || names().filter(sibling).any(|name| name.components().count() > 1) {
            return Manner::Relative;
        }
        if by_style == Manner::Relative && !names().any(|name| sibling(&name)) {
            return Manner::Relative;
        }
        Manner::Bare
    }

    fn find_parents(&mut self) {
        let nodes: Vec<Node> =
            self.layers.iter().filter(|(_, layer)| layer.alias.is_none()).map(|(node, _)| node.clone()).collect();
        for node in nodes {
            let Some(layer) = self.layers.get(&node) else { continue };
            let below = match &layer.header.backing {
                Some(backing) => self.parent(&node, layer, backing),
                None => Ok(Below::Nothing),
            };
            let below = below.unwrap_or_else(|finding| {
                self.find(node.clone(), finding);
                Below::Broken
            });
            if let Some(layer) = self.layers.get_mut(&node) {
                layer.below = below;
            }
        }
    }

    /// What a backing name stands for, seen from its layer.
    fn parent(&self, node: &Node, layer: &Layer, backing: &Backing) -> Result<Below, Finding> {
        let (file, name) = (layer.path.clone(), backing.name.clone());
        // A colon in the first component makes it a protocol to QEMU (`nbd:…`, `json:{…}`).
        let protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
        if name.is_empty() || protocol || name.contains(char::REPLACEMENT_CHARACTER) {
            return Err(Finding::BadName { file, name });
        }
        let Some(format) = &backing.format else { return Err(Finding::NoBackingFormat(file)) };
        let folder = match node {
            Node::Origin => self.names.origin.parent().unwrap_or(Path::new("/")),
            Node::Layer(_) => &self.folder,
        };
        let path = normalize(&folder.join(&name));
        let found = match self.locate(&path) {
            Some(found) if self.layers.contains_key(&found) => found,
            Some(_) => return Err(Finding::MissingParent { file, name }),
            None => match self.under_another_root(&path) {
                Some(found) if self.same_file(&path, &found) => found,
                Some(found) => return Err(Finding::OtherRoot { file, name, here: self.path(&found) }),
                None if self.outside.get(&path) == Some(&None) => return Err(Finding::MissingParent { file, name }),
                None => return Ok(Below::Outside(backing.clone())),
            },
        };
        match self.layers.get(&found) {
            Some(_) if self.format(&found) != format => {
                Err(Finding::WrongFormat { file, says: format.clone(), is: self.format(&found) })
            }
            _ => Ok(Below::Node(found)),
        }
    }

    /// The file of ours that a path under another root would be, by its last two names.
    fn under_another_root(&self, path: &Path) -> Option<Node> {
        let (name, parent) = (path.file_name()?, path.parent()?.file_name()?);
        let layer = Node::Layer(name.to_owned());
        if Some(parent) == self.folder.file_name() && self.layers.contains_key(&layer) {
            return Some(layer);
        }
        let origin = &self.names.origin;
        let same = Some(name) == origin.file_name() && Some(parent) == origin.parent().and_then(Path::file_name);
        (same && self.layers.contains_key(&Node::Origin)).then_some(Node::Origin)
    }

    fn same_file(&self, path: &Path, node: &Node) -> bool {
        let known = self.layers.get(node).and_then(|layer| layer.inode);
        known.is_some() && self.outside.get(path).copied().flatten() == known
    }

    fn find_circles(&mut self) {
        let mut circles: BTreeSet<BTreeSet<Node>> = BTreeSet::new();
        for node in self.layers.keys() {
            let (mut seen, mut at) = (vec![node.clone()], node.clone());
            while let Some(below) = self.step_down(&at) {
                if let Some(start) = seen.iter().position(|one| *one == below) {
                    circles.insert(seen[start..].iter().cloned().collect());
                    break;
                }
                seen.push(below.clone());
                at = below;
            }
        }
        for circle in circles {
            let files: Vec<PathBuf> = circle.iter().map(|node| self.path(node)).collect();
            for node in circle {
                self.find(node, Finding::Cycle(files.clone()));
            }
        }
    }

    fn check_markers(&mut self) {
        let dangling: Vec<(u32, OsString)> = self
            .moved
            .iter()
            .filter(|(_, name)| !self.layers.contains_key(&Node::Layer((*name).clone())))
            .map(|(k, n)| (*k, n.clone()))
            .collect();
        for (id, name) in dangling {
            let finding = Finding::DanglingCurrent { marker: self.marker(id), names: name.into() };
            self.find(Node::number(id), finding);
        }
        let mut claims: BTreeMap<OsString, Vec<u32>> = BTreeMap::new();
        for (id, name) in &self.moved {
            claims.entry(name.clone()).or_default().push(*id);
        }
        for (name, snapshots) in claims.into_iter().filter(|(_, ids)| ids.len() > 1) {
            let file = self.folder.join(&name);
            self.find(Node::Layer(name), Finding::SharedFile { file, snapshots });
        }
    }

    // --- questions ---

    /// Everything that is wrong.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().map(|(_, finding)| finding)
    }

    /// Every file with what it stands on.
    #[must_use]
    pub fn layers(&self) -> &BTreeMap<Node, Layer> {
        &self.layers
    }

    /// The file that the VM writes to, by the disk's link.
    #[must_use]
    pub fn active(&self) -> Option<&Node> {
        self.active.as_ref()
    }

    /// How siblings name each other here.
    #[must_use]
    pub fn manner(&self) -> Manner {
        self.manner
    }

    /// Where a file is, or would be.
    #[must_use]
    pub fn path(&self, node: &Node) -> PathBuf {
        match node {
            Node::Origin => self.names.origin.clone(),
            Node::Layer(name) => self.folder.join(name),
        }
    }

    /// `k.current` of a snapshot.
    pub(super) fn marker(&self, snapshot: u32) -> PathBuf {
        self.folder.join(format!("{snapshot}.current"))
    }

    /// `k.deleting` of a snapshot.
    pub(super) fn deleting_marker(&self, snapshot: u32) -> PathBuf {
        self.folder.join(format!("{snapshot}.deleting"))
    }

    /// The file of ours that an absolute, normalised path stands for, whether it is there or not.
    #[must_use]
    pub fn locate(&self, path: &Path) -> Option<Node> {
        if let Ok(rest) = path.strip_prefix(&self.folder) {
            // The self link may stand in between any number of times.
            let me = self.folder.file_name().unwrap_or_default();
            let mut parts = rest.components().map(Component::as_os_str).skip_while(|part| *part == me);
            return match (parts.next(), parts.next()) {
                (Some(name), None) => Some(Node::Layer(name.to_owned())),
                _ => None,
            };
        }
        if path == self.names.origin && self.layers.contains_key(&Node::Origin) {
            return Some(Node::Origin);
        }
        (path == self.names.disk).then(|| self.active.clone()).flatten()
    }

    /// The file itself, behind other names of it.
    #[must_use]
    pub fn behind(&self, node: &Node) -> Node {
        let mut at = node;
        // As many times as there are names, against links in a circle.
        for _ in 0..self.layers.len() {
            match self.layers.get(at).and_then(|layer| layer.alias.as_ref()) {
                Some(next) => at = next,
                None => break,
            }
        }
        at.clone()
    }

    /// What the file stands on, other names followed.
    #[must_use]
    pub fn below(&self, node: &Node) -> Below {
        self.layers.get(&self.behind(node)).map_or(Below::Nothing, |layer| layer.below.clone())
    }

    /// One step down: from a name to its file, from a file to its parent.
    fn step_down(&self, node: &Node) -> Option<Node> {
        let layer = self.layers.get(node)?;
        match (&layer.alias, &layer.below) {
            (Some(alias), _) => Some(alias.clone()),
            (None, Below::Node(below)) => Some(below.clone()),
            (None, _) => None,
        }
    }

    /// A file and all below it.
    #[must_use]
    pub fn ancestry(&self, node: &Node) -> Vec<Node> {
        let mut all = vec![node.clone()];
        let mut at = node.clone();
        while let Some(below) = self.step_down(&at).filter(|below| !all.contains(below)) {
            all.push(below.clone());
            at = below;
        }
        all
    }

    /// The layers that name exactly this file as their backing file.
    #[must_use]
    pub fn above(&self, node: &Node) -> Vec<Node> {
        let on_it = |layer: &Layer| layer.below == Below::Node(node.clone());
        self.layers.iter().filter(|(_, layer)| on_it(layer)).map(|(node, _)| node.clone()).collect()
    }

    /// Refuses when a layer that is broken may stand on this file: its backing name ends in the file's.
    ///
    /// # Errors
    /// [`Refusal::Broken`].
    pub(super) fn not_needed_by_broken(&self, node: &Node) -> Result<(), Refusal> {
        let path = self.path(node);
        let may_stand = |layer: &Layer| {
            let name = layer.header.backing.as_ref().map(|backing| Path::new(&backing.name));
            layer.below == Below::Broken && name.is_some_and(|name| name.file_name() == path.file_name())
        };
        match self.layers.iter().find(|(_, layer)| may_stand(layer)) {
            Some((above, _)) => self.sound(above),
            None => Ok(()),
        }
    }

    /// The layers that stand on this file, under whichever of its names.
    #[must_use]
    pub fn dependents(&self, node: &Node) -> Vec<Node> {
        let file = self.behind(node);
        let on_it = |layer: &Layer| matches!(&layer.below, Below::Node(below) if self.behind(below) == file);
        self.layers.iter().filter(|(_, layer)| on_it(layer)).map(|(node, _)| node.clone()).collect()
    }

    /// Whether it is the file that the VM writes to, under whichever name.
    fn is_current(&self, node: &Node) -> bool {
        self.active.as_ref().is_some_and(|active| self.behind(active) == self.behind(node))
    }

    /// Deletions of ours that were interrupted after the merge: the snapshot, and the file that was merged and is only
    /// left over. What says so is that a later snapshot has the deleted one's file.
    pub(super) fn merged(&self) -> impl Iterator<Item = (u32, Node)> + '_ {
        self.deleting.iter().filter_map(|(id, top)| {
            let file = self.moved.get(id).cloned().unwrap_or_else(|| id.to_string().into());
            let taken = self.moved.iter().any(|(other, name)| other > id && *name == file);
            let top = Node::Layer(top.clone());
            let left = self.below(&top) == Below::Node(Node::Layer(file)) && self.dependents(&top).is_empty();
            (taken && left && self.active.as_ref() != Some(&top)).then_some((*id, top))
        })
    }

    /// The snapshot that a file holds: what a `k.current` says (the highest, if several do), else its own number.
    ///
    /// The current file holds none, nor does what stands on it: a layer that is not in use yet.
    #[must_use]
    pub fn owner(&self, node: &Node) -> Option<u32> {
        let Node::Layer(name) = node else { return None };
        if self.merged().any(|(_, top)| top == *node) {
            return None;
        }
        let active = self.active.as_ref().map(|active| self.behind(active));
        if self.ancestry(node).iter().any(|one| Some(one) == active.as_ref()) {
            return None;
        }
        let moved_here = self.moved.iter().rev().find(|(_, file)| *file == name).map(|(id, _)| *id);
        moved_here.or_else(|| number(name).filter(|id| !self.moved.contains_key(id)))
    }

    /// The snapshots whose data is there.
    #[must_use]
    pub fn snapshots(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.layers.keys().filter_map(|node| self.owner(node)).collect();
        ids.sort_unstable();
        ids
    }

    /// The file that holds a snapshot.
    ///
    /// # Errors
    /// There is no such file; it is the file that the VM writes to.
    pub fn data(&self, snapshot: u32) -> Result<Node, Refusal> {
        let node = match self.moved.get(&snapshot) {
            Some(name) => Node::Layer(name.clone()),
            None => Node::number(snapshot),
        };
        if !self.layers.contains_key(&node) {
            return Err(match self.fault_at(&node) {
                Some(finding) => Refusal::Broken(finding.clone()),
                None => Refusal::NoSnapshot(self.folder.join(snapshot.to_string())),
            });
        }
        if self.is_current(&node) {
            return Err(Refusal::HoldsCurrent(self.path(&node)));
        }
        if self.owner(&node) == Some(snapshot) {
            return Ok(node);
        }
        Err(Refusal::NoSnapshot(self.folder.join(snapshot.to_string())))
    }

    /// As [`Chain::data`], for those who want the content: not of a snapshot that is half deleted.
    ///
    /// # Errors
    /// See there.
    pub fn content(&self, snapshot: u32) -> Result<Node, Refusal> {
        let node = self.data(snapshot)?;
        if self.deleting.contains_key(&snapshot) {
            return Err(Refusal::Broken(Finding::HalfDeleted { snapshot, file: self.path(&node) }));
        }
        Ok(node)
    }

    /// What stands in the way at one file, if anything does.
    fn fault_at(&self, node: &Node) -> Option<&Finding> {
        self.findings.iter().find(|(at, finding)| at.as_ref() == Some(node) && !finding.is_settled()).map(|(_, f)| f)
    }

    /// Refuses when a file, or one below it, is broken.
    ///
    /// # Errors
    /// [`Refusal::Broken`] with the first finding.
    pub(super) fn sound(&self, node: &Node) -> Result<(), Refusal> {
        let fault = self.ancestry(node).iter().find_map(|one| self.fault_at(one).cloned());
        fault.map_or(Ok(()), |finding| Err(Refusal::Broken(finding)))
    }

    /// The current file, where nothing is wrong with the disk itself.
    ///
    /// # Errors
    /// [`Refusal::Broken`].
    pub(super) fn current(&self) -> Result<Node, Refusal> {
        match self.findings.iter().find(|(at, _)| at.is_none()) {
            Some((_, finding)) => Err(Refusal::Broken(finding.clone())),
            None => self.active.clone().ok_or_else(|| Refusal::Broken(Finding::DiskMissing(self.names.disk.clone()))),
        }
    }

    /// Takes `node` for the current file, whatever the disk's link says.
    pub(super) fn lead_to(&mut self, node: Node) {
        self.active = Some(node);
        self.findings.retain(|(_, finding)| !matches!(finding, Finding::ActiveMissing { .. }));
    }

    /// The name under which a layer has `node` as its backing file.
    #[must_use]
    pub fn backing_name(&self, node: &Node) -> PathBuf {
        match (node, self.manner) {
            (Node::Layer(name), Manner::Bare) => name.into(),
            (Node::Layer(name), Manner::Relative) => Path::new(self.folder.file_name().unwrap_or_default()).join(name),
            _ => self.path(node),
        }
    }

    /// The text of the disk's link to a layer.
    #[must_use]
    pub fn link_text(&self, node: &Node) -> PathBuf {
        match (node, self.manner) {
            (Node::Layer(name), Manner::Bare | Manner::Relative) => {
                Path::new(self.folder.file_name().unwrap_or_default()).join(name)
            }
            _ => self.path(node),
        }
    }

    /// Bytes that a guest sees of a file.
    pub(super) fn size(&self, node: &Node) -> Result<u64, Refusal> {
        let size = self.layers.get(node).and_then(|layer| layer.header.virtual_size);
        size.ok_or_else(|| Refusal::NoSize(self.path(node)))
    }

    /// The format of a file, as `qemu-img` wants it: an encrypted volume is raw data to it.
    #[must_use]
    pub fn format(&self, node: &Node) -> &'static str {
        match self.layers.get(node).map(|layer| layer.header.format) {
            Some(super::super::Format::Luks) | None => "raw",
            Some(format) => format.name(),
        }
    }

    /// Whether nothing was ever written to a layer, for certain.
    pub(super) fn blank(&self, node: &Node) -> bool {
        self.layers.get(node).is_some_and(|layer| layer.header.blank == Some(true))
    }
}

impl Finding {
    /// Whether the model knows what is meant although it is not as it should be.
    fn is_settled(&self) -> bool {
        matches!(self, Self::SharedFile { .. } | Self::DanglingCurrent { .. })
    }
}
