//! Operations on a disk that no domain has open: create, revert, delete, and what save-as reads.
//!
//! Source: contract 02 §5. Upstream stores absolute backing names when it deletes, and looks at one child only; we keep
//! names in the manner of the layout and put every child where it belongs.

use std::path::{Path, PathBuf};

use super::facts::{Manner, Style};
use super::finding::{Finding, Refusal};
use super::model::{Below, Chain, Node};
use super::plan::{Plan, Step};
use crate::location::normalize;

/// What save-as copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: &'static str,
    /// Bytes that a guest sees.
    pub virtual_size: Option<u64>,
    /// Whether it stands on other files, so that only a conversion gives all of it.
    pub layered: bool,
}

/// What a new layer needs.
pub(super) struct NewLayer {
    /// The file that becomes the snapshot.
    pub(super) frozen: Node,
    /// The new current file.
    pub(super) layer: Node,
    /// Whether the new file is there already, blank, from a try that was interrupted.
    pub(super) adopted: bool,
}

impl Chain {
    /// Plans snapshot `k` of the current state.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn create(&self, k: u32) -> Result<Plan, Refusal> {
        let active = self.current()?;
        self.sound(&active)?;
        if self.keeps_copies() {
            return self.create_copy(k, &active);
        }
        if let Some(note) = self.created_already(k, &active)? {
            return Ok(Plan::nothing(note));
        }
        let mut plan = self.tidied(Some(k), true)?;
        let new = self.new_layer(k, &active, &mut plan)?;
        if !new.adopted {
            plan.push_with(
                self.overlay(&new.layer, &new.frozen, &active)?,
                Step::Remove { file: self.path(&new.layer) },
            );
        }
        plan.push_with(self.point_to(&new.layer), self.point_back_to(&new.frozen));
        Ok(plan)
    }

    /// Whether snapshots of this disk are full copies.
    pub(super) fn keeps_copies(&self) -> bool {
        self.style == Style::Copies && !matches!(self.active, Some(Node::Layer(_)))
    }

    fn create_copy(&self, k: u32, active: &Node) -> Result<Plan, Refusal> {
        let node = Node::number(k);
        let to = self.path(&node);
        let mut plan = Plan::default();
        self.make_folder(&mut plan);
        let copy = Step::PutCopy { from: self.path(&self.behind(active)), to: to.clone() };
        match self.layers.get(&node) {
            _ if self.moved.contains_key(&k) => return Err(Refusal::Exists(to)),
            None => plan.push_with(copy, Step::Remove { file: to }),
            // A copy that nobody was told of: oned asks for one that it does not have.
            Some(layer) if layer.alias.is_none() && self.dependents(&node).is_empty() => plan.push(copy),
            Some(_) => return Err(Refusal::Exists(to)),
        }
        Ok(plan)
    }

    fn make_folder(&self, plan: &mut Plan) {
        if !self.has_folder {
            let folder = self.folder.clone();
            plan.push_with(Step::MakeFolder { folder: folder.clone() }, Step::DropFolder { folder });
        }
    }

    /// A note when snapshot `k` exists and nothing was written since; a refusal when something was.
    pub(super) fn created_already(&self, k: u32, active: &Node) -> Result<Option<String>, Refusal> {
        let Ok(data) = self.data(k) else { return Ok(None) };
        let is_next = k.checked_add(1).map(Node::number).as_ref() == Some(active);
        if is_next && self.below(active) == Below::Node(data) && self.blank(active) {
            return Ok(Some(format!("Snapshot {} exists already, nothing was written since", self.show(k))));
        }
        Err(Refusal::Exists(self.path(&Node::number(k))))
    }

    pub(super) fn show(&self, k: u32) -> String {
        self.path(&Node::number(k)).display().to_string()
    }

    /// The steps that make the current file the one that holds snapshot `k`, and the name of the next one.
    pub(super) fn new_layer(&self, k: u32, active: &Node, plan: &mut Plan) -> Result<NewLayer, Refusal> {
        let name = Node::number(k);
        let layer = Node::number(k.checked_add(1).ok_or_else(|| Refusal::Exists(self.path(&name)))?);
        let on_active = self.dependents(active);
        let adopted = on_active.contains(&layer);
        if self.moved.contains_key(&k.saturating_add(1)) {
            return Err(Refusal::Exists(self.marker(k.saturating_add(1))));
        }
        if !adopted && self.layers.contains_key(&layer) {
            return Err(Refusal::Exists(self.path(&layer)));
        }
        // Removed by the tidying: a blank layer that another try has left.
        let left = on_active.contains(&name);
        let taken = *active != name && !left && self.layers.contains_key(&name);
        let frozen = match active {
            Node::Origin => {
                if taken && self.behind(&name) != Node::Origin {
                    return Err(Refusal::Exists(self.path(&name)));
                }
                self.take_in(&name, plan)?;
                name
            }
            Node::Layer(file) => {
                if taken || self.moved.get(&k).is_some_and(|names| names != file) {
                    return Err(Refusal::Exists(self.path(&name)));
                }
                if *active != name && !self.moved.contains_key(&k) {
                    // Upstream counts on the current file being called `k`; after an interrupted or undone create it is not.
                    let marker = self.marker(k);
                    plan.push_with(
                        Step::Mark { marker: marker.clone(), names: self.path(active) },
                        Step::Remove { file: marker },
                    );
                }
                active.clone()
            }
        };
        Ok(NewLayer { frozen, layer, adopted })
    }

    /// Makes the origin a file of the folder under the name `node`: by a link where the VM uses an image in place, by a
    /// second name where the disk itself is the file.
    fn take_in(&self, node: &Node, plan: &mut Plan) -> Result<(), Refusal> {
        self.make_folder(plan);
        self.link_to_self(plan);
        // A blank layer of that name is removed by the tidying.
        if self.layers.contains_key(node) && self.behind(node) == Node::Origin {
            return Ok(());
        }
        let name = self.path(node);
        if self.names.disk != self.names.origin {
            let step = Step::Link { link: name.clone(), target: self.names.origin.clone() };
            plan.push_with(step, Step::Remove { file: name });
            return Ok(());
        }
        let backing = self.layers.get(&Node::Origin).and_then(|layer| layer.header.backing.as_ref());
        if let Some(backing) = backing.filter(|backing| Path::new(&backing.name).is_relative()) {
            return Err(Refusal::Unmovable { file: self.names.disk.clone(), name: backing.name.clone() });
        }
        // No undo: once the disk is a link, this is the only name of the data.
        plan.push(Step::SecondName { file: self.names.disk.clone(), name });
        Ok(())
    }

    /// `disk.N.snap/disk.N.snap -> .`, on which relative names depend.
    pub(super) fn link_to_self(&self, plan: &mut Plan) {
        if self.has_self_link || self.manner == Manner::Bare {
            return;
        }
        let link = self.folder.join(self.folder.file_name().unwrap_or_default());
        plan.push_with(Step::Link { link: link.clone(), target: ".".into() }, Step::Remove { file: link });
    }

    /// An empty layer on the file `on`, which is, or is to become, another name of `like`.
    pub(super) fn overlay(&self, layer: &Node, on: &Node, like: &Node) -> Result<Step, Refusal> {
        Ok(Step::PutOverlay {
            file: self.path(layer),
            backing: self.backing_name(on),
            format: self.format(like),
            size: self.size(like)?,
        })
    }

    pub(super) fn point_to(&self, node: &Node) -> Step {
        Step::Link { link: self.names.disk.clone(), target: self.link_text(node) }
    }

    /// The disk's link as it was: in its own words where it led to `frozen`, else to that file's name in the folder: also for
    /// a plain disk, which has become that file.
    pub(super) fn point_back_to(&self, frozen: &Node) -> Step {
        let disk = &self.names.disk;
        let leads_there = |text: &PathBuf| {
            let target = normalize(&disk.parent().unwrap_or(Path::new("/")).join(text));
            self.locate(&target).as_ref() == Some(frozen)
        };
        let text = self.link.clone().filter(leads_there);
        Step::Link { link: disk.clone(), target: text.unwrap_or_else(|| self.link_text(frozen)) }
    }

    /// The beginning of every plan: what interrupted operations left behind goes.
    ///
    /// `creating` spares what the creation of that snapshot goes on with; `strict` refuses when a layer with data stands
    /// on the current file.
    pub(super) fn tidied(&self, creating: Option<u32>, strict: bool) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        if self.has_folder && self.manner == Manner::Relative && matches!(self.active, Some(Node::Layer(_))) {
            self.link_to_self(&mut plan);
        }
        if let Some(active) = &self.active {
            self.tidy_above(active, creating, strict, &mut plan)?;
        }
        for (id, file) in &self.moved {
            let node = Node::Layer(file.clone());
            if self.active.as_ref() == Some(&node) && creating != Some(*id) {
                // A snapshot that did not come about.
                plan.push(Step::Remove { file: self.marker(*id) });
            }
            let old = Node::number(*id);
            let merged = self.layers.contains_key(&node) && old != node && self.below(&old) == Below::Node(node);
            if merged && self.active.as_ref() != Some(&old) && self.dependents(&old).is_empty() {
                // Its data was merged into the file that the marker names.
                plan.push(Step::Remove { file: self.path(&old) });
            }
        }
        for (_, top) in self.merged() {
            let step = Step::Remove { file: self.path(&top) };
            if !plan.steps.iter().any(|planned| planned.step == step) {
                plan.push(step);
            }
        }
        for id in self.deleting.keys() {
            if self.data(*id).is_err() {
                plan.push(Step::Remove { file: self.deleting_marker(*id) });
            }
        }
        Ok(plan)
    }

    /// New layers on the current file are from a creation that was interrupted: blank ones go.
    fn tidy_above(&self, active: &Node, creating: Option<u32>, strict: bool, plan: &mut Plan) -> Result<(), Refusal> {
        let next = creating.and_then(|k| k.checked_add(1)).map(Node::number);
        let mut clear = true;
        for layer in self.dependents(active) {
            let removable = self.blank(&layer) && self.dependents(&layer).is_empty() && layer.as_number().is_some();
            if removable && next.as_ref() != Some(&layer) {
                plan.push(Step::Remove { file: self.path(&layer) });
            } else if !removable {
                clear = false;
                if strict {
                    let (layer, active) = (self.path(&layer), self.path(active));
                    return Err(Refusal::Broken(Finding::DataAbove { layer, active }));
                }
            }
        }
        // Second names of a plain disk that did not become a chain.
        let second_name = |node: &&Node| {
            self.names.disk == self.names.origin && self.behind(node) == Node::Origin && **node != Node::Origin
        };
        let spared = creating.map(Node::number);
        if clear && *active == Node::Origin {
            for node in self.layers.keys().filter(second_name).filter(|node| spared.as_ref() != Some(node)) {
                plan.push(Step::Remove { file: self.path(node) });
            }
        }
        Ok(())
    }

    /// Plans the return to snapshot `k`: the current file begins anew on the snapshot's.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn revert(&self, k: u32) -> Result<Plan, Refusal> {
        let active = self.current()?;
        let data = self.content(k)?;
        self.sound(&data)?;
        let Node::Layer(_) = &active else { return self.revert_copy(&active, &data) };
        let file = self.behind(&active);
        if file != active || self.behind(&data) == file {
            return Err(Refusal::HoldsCurrent(self.path(&file)));
        }
        let mut plan = self.tidied(None, true)?;
        if let Some(above) = self.dependents(&active).first().filter(|above| !self.blank(above)) {
            return Err(Refusal::StandsOn { above: self.path(above), file: self.path(&active) });
        }
        if self.below(&active) == Below::Node(data.clone()) && self.blank(&active) {
            plan.note = Some(format!("Nothing was written since snapshot {}", self.show(k)));
            return Ok(plan);
        }
        plan.push(self.overlay(&active, &data, &data)?);
        Ok(plan)
    }

    fn revert_copy(&self, active: &Node, data: &Node) -> Result<Plan, Refusal> {
        if self.behind(data) == *active {
            return Err(Refusal::HoldsCurrent(self.path(active)));
        }
        if let Some(above) = self.dependents(active).first() {
            return Err(Refusal::StandsOn { above: self.path(above), file: self.path(active) });
        }
        if self.below(data) != Below::Nothing {
            let (disk, layer) = (self.names.disk.clone(), self.path(data));
            return Err(Refusal::Broken(Finding::DiskBeside { disk, layer }));
        }
        let mut plan = Plan::default();
        plan.push(Step::PutCopy { from: self.path(data), to: self.path(active) });
        Ok(plan)
    }

    /// Plans the end of snapshot `k`: what stands on it is put on what it stands on, then its file goes.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn delete(&self, k: u32) -> Result<Plan, Refusal> {
        let mut plan = self.tidied(None, false)?;
        let Some(data) = self.to_delete(k, &mut plan)? else { return Ok(plan) };
        let removed: Vec<PathBuf> = removed_files(&plan);
        for child in self.above(&data).iter().filter(|child| !removed.contains(&self.path(child))) {
            self.sound(child)?;
            plan.push(self.put_below(child, &data));
        }
        self.forget(k, &data, &mut plan);
        Ok(plan)
    }

    /// The file of the snapshot that is to go; `None` with a note in the plan where it is gone already.
    pub(super) fn to_delete(&self, k: u32, plan: &mut Plan) -> Result<Option<Node>, Refusal> {
        if !self.has_folder {
            return Err(Refusal::NoSnapshot(self.path(&Node::number(k))));
        }
        match self.data(k) {
            Ok(data) => {
                self.sound(&data)?;
                self.not_needed_by_broken(&data)?;
                Ok(Some(data))
            }
            Err(Refusal::HoldsCurrent(_)) if self.moved.contains_key(&k) => {
                // A snapshot that did not come about: its marker is among what is tidied away.
                plan.note = Some(format!("Snapshot {} is gone already", self.show(k)));
                Ok(None)
            }
            Err(Refusal::NoSnapshot(path)) => {
                let marker = self.marker(k);
                let stale = Step::Remove { file: marker };
                if self.moved.contains_key(&k) && !plan.steps.iter().any(|planned| planned.step == stale) {
                    plan.push(stale);
                }
                if let Some(finding) = self.findings().find(|finding| finding.misses(&path)) {
                    return Err(Refusal::Broken(finding.clone()));
                }
                plan.note = Some(format!("Snapshot {} is gone already", path.display()));
                Ok(None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Takes `data` out from under `child`. Behind another name lies the same content: then only the name changes.
    pub(super) fn put_below(&self, child: &Node, data: &Node) -> Step {
        let file = self.behind(data);
        if file != *data {
            let onto = Some((self.backing_name(&file), self.format(&file).to_owned()));
            return Step::Rebase { file: self.path(child), onto, copy: false };
        }
        Step::Rebase { file: self.path(child), onto: self.named_below(data), copy: true }
    }

    /// What `data` stands on, as a sibling of it names it.
    pub(super) fn named_below(&self, data: &Node) -> Option<(PathBuf, String)> {
        match self.below(data) {
            Below::Node(below) => Some((self.backing_name(&below), self.format(&below).to_owned())),
            Below::Outside(backing) => {
                let from = match data {
                    Node::Origin => self.names.origin.parent().unwrap_or(Path::new("/")),
                    Node::Layer(_) => &self.folder,
                };
                // Whole: QEMU opens the current file by the disk's link, and takes a relative name from there.
                let name = normalize(&from.join(&backing.name));
                Some((name, backing.format.unwrap_or_else(|| "raw".to_owned())))
            }
            Below::Nothing | Below::Broken => None,
        }
    }

    /// The end of every deletion: the file first, so that the markers that lead to it hold until it is gone.
    pub(super) fn forget(&self, k: u32, data: &Node, plan: &mut Plan) {
        plan.push(Step::Remove { file: self.path(data) });
        let Node::Layer(name) = data else { return };
        for id in self.moved.iter().filter(|(_, file)| *file == name).map(|(id, _)| *id) {
            plan.push(Step::Remove { file: self.marker(id) });
        }
        if self.deleting.contains_key(&k) {
            plan.push(Step::Remove { file: self.deleting_marker(k) });
        }
    }

    /// What save-as reads: snapshot `k`, or the current state.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn source(&self, k: Option<u32>) -> Result<Source, Refusal> {
        let node = match k {
            Some(k) => self.content(k)?,
            None => self.current()?,
        };
        self.sound(&node)?;
        let file = self.behind(&node);
        let layered = self.below(&file) != Below::Nothing;
        let virtual_size = self.layers.get(&file).and_then(|layer| layer.header.virtual_size);
        Ok(Source { path: self.path(&file), format: self.format(&file), virtual_size, layered })
    }
}

/// The files that a plan removes.
pub(super) fn removed_files(plan: &Plan) -> Vec<PathBuf> {
    let removed = |step: &Step| match step {
        Step::Remove { file } => Some(file.clone()),
        _ => None,
    };
    plan.steps.iter().filter_map(|planned| removed(&planned.step)).collect()
}

impl Finding {
    /// Whether a file is needed and missing.
    fn misses(&self, path: &Path) -> bool {
        match self {
            Self::MissingParent { name, .. } => {
                Path::new(name).file_name().is_some_and(|name| Some(name) == path.file_name())
            }
            _ => false,
        }
    }
}
