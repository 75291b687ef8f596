//! Operations on a disk that a running domain has open: create and delete.
//!
//! Source: contract 02 §5. Files in the domain's chain are changed by the domain alone; files beside it as when it is off.
//! Where several layers stand on one file, upstream merges into it and destroys what the others show; we put the others
//! elsewhere first.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::finding::{Finding, Refusal};
use super::model::{Below, Chain, Node};
use super::offline::removed_files;
use super::plan::{Open, Plan, Step};
use crate::location::normalize;

/// What the running domain has open for one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The file that it writes to, then what that stands on, and so on, as absolute paths.
    pub chain: Vec<PathBuf>,
}

/// The chain as the domain has it.
struct Running {
    chain: Chain,
    /// The files that it has open, the current one first; those outside of the disk left out.
    open: Vec<Node>,
    /// The position of the file that it opened by the disk's link, if that is not the current one: QEMU knows the file by
    /// that name, and would open by it whatever the link leads to now.
    by_link: Option<usize>,
    /// Points the disk to the domain's current file, where an interrupted snapshot has left it behind.
    relink: Option<Step>,
}

/// A merge in the domain's chain.
struct Merge<'a> {
    /// Stands on the child.
    above: &'a Node,
    /// Is merged.
    child: &'a Node,
    /// Position of the file that it is merged into.
    at: usize,
    /// That file.
    data: &'a Node,
}

impl Chain {
    fn running(&self, live: &Live) -> Result<Running, Refusal> {
        let paths: Vec<PathBuf> = live.chain.iter().map(|path| normalize(path)).collect();
        let differs = |files: &[Node]| {
            let show = |paths: Vec<PathBuf>| {
                let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                if names.is_empty() { "no file".to_owned() } else { names.join(" on ") }
            };
            let files = show(files.iter().map(|node| self.path(node)).collect());
            Refusal::Broken(Finding::LiveDiffers { domain: show(paths.clone()), files })
        };
        let top = paths.first().and_then(|path| self.locate(path)).filter(|node| self.layers.contains_key(node));
        let Some(top) = top else { return Err(differs(&self.active.iter().cloned().collect::<Vec<_>>())) };
        let mut chain = self.clone();
        let relink = (self.active.as_ref() != Some(&top)).then(|| self.point_to(&top));
        if relink.is_some() {
            chain.lead_to(top.clone());
        }
        chain.current()?;
        chain.sound(&top)?;
        let by_headers: Vec<Node> =
            chain.ancestry(&top).into_iter().filter(|node| chain.behind(node) == *node).collect();
        let is_disk = |path: &Path| path == self.names.disk;
        let open = paths.iter().enumerate().filter_map(|(at, path)| match by_headers.get(at) {
            // The name by which it was opened; the link has moved on since.
            Some(file) if at > 0 && is_disk(path) => Some(file.clone()),
            _ => chain.locate(path).map(|node| chain.behind(&node)),
        });
        let open: Vec<Node> = open.collect();
        if open != by_headers {
            return Err(differs(&by_headers));
        }
        let by_link = paths.iter().skip(1).position(|path| is_disk(path)).map(|at| at + 1);
        Ok(Running { chain, open, by_link, relink })
    }

    /// Plans snapshot `k` of a running VM's disk. The domain has to be frozen or suspended around the plan's
    /// [`Step::LiveSnapshot`] or [`Step::PutCopy`].
    ///
    /// The new layer is not taken back with the files: once the domain writes to it, only the domain can put it away again,
    /// and before that it is blank and the next operation uses or removes it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn create_live(&self, k: u32, live: &Live) -> Result<Plan, Refusal> {
        let running = self.running(live)?;
        let chain = &running.chain;
        if let Some(relink) = &running.relink
            && chain.active.as_ref().and_then(Node::as_number) == k.checked_add(1)
            && chain.data(k).is_ok_and(|data| chain.below(&chain.open_top()) == Below::Node(data))
        {
            let mut plan = Plan::default();
            plan.push(relink.clone());
            return Ok(plan);
        }
        let active = chain.current()?;
        if chain.keeps_copies() {
            return chain.create(k);
        }
        if chain.data(k).is_ok() {
            return Err(Refusal::Exists(chain.path(&Node::number(k))));
        }
        let mut plan = Plan::default();
        if let Some(relink) = running.relink {
            plan.push(relink);
        }
        plan.steps.extend(chain.tidied(Some(k), true)?.steps);
        let new = chain.new_layer(k, &active, &mut plan)?;
        if !new.adopted {
            plan.push(chain.overlay(&new.layer, &new.frozen, &active)?);
        }
        plan.push(Step::LiveSnapshot { file: chain.path(&new.layer) });
        plan.push_with(chain.point_to(&new.layer), chain.point_back_to(&new.frozen));
        Ok(plan)
    }

    fn open_top(&self) -> Node {
        self.active.clone().unwrap_or(Node::Origin)
    }

    /// Plans the end of snapshot `k` while the VM runs.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn delete_live(&self, k: u32, live: &Live) -> Result<Plan, Refusal> {
        let Running { chain, open, by_link, relink } = self.running(live)?;
        let mut plan = Plan::default();
        if let Some(relink) = relink {
            plan.push(relink);
        }
        let tidied = chain.tidied(None, false)?;
        let removed = removed_files(&tidied);
        plan.steps.extend(tidied.steps);
        let Some(data) = chain.to_delete(k, &mut plan)? else { return Ok(plan) };
        let file = chain.behind(&data);
        let at = open.iter().position(|node| *node == file);
        let child = match at {
            Some(0) => return Err(Refusal::HoldsCurrent(chain.path(&data))),
            Some(at) => open.get(at - 1).cloned(),
            None => None,
        };
        let on_top = child.is_some() && child.as_ref() == open.first();
        // What a merge writes to besides: the file above, its new backing name; the current file is open for writing.
        let written = [at, at.and_then(|at| at.checked_sub(2)).filter(|above| *above > 0)];
        let base = chain.path_below(&file);
        let pull = |at: usize| {
            let base = base.map(|base| Open { path: base, at });
            let backing = chain.named_below(&file).map(|(name, _)| name);
            Step::BlockPull { file: chain.path(&chain.open_top()), base, backing }
        };
        let beside: Vec<Node> = chain
            .dependents(&data)
            .into_iter()
            .filter(|node| Some(node) != child.as_ref() && !removed.contains(&chain.path(node)))
            .collect();
        match (child, at) {
            (Some(child), Some(at)) if !on_top && by_link.is_none_or(|link| !written.contains(&Some(link))) => {
                for other in &beside {
                    // The merge changes what is behind every name of the file.
                    chain.sound(other)?;
                    plan.push(chain.put_apart(other, &file));
                }
                let Some(above) = at.checked_sub(2).and_then(|above| open.get(above)) else {
                    return Err(Refusal::NotLive { file: chain.path(&data), why: "nothing stands on its layer above" });
                };
                return chain.merge(k, &Merge { above, child: &child, at, data: &data }, plan);
            }
            (Some(child), Some(at)) => {
                // The file leaves the domain's chain; what lies between becomes a branch like any other.
                plan.push(pull(at + 1));
                if !on_top && chain.below(&child) == Below::Node(data.clone()) {
                    plan.push(chain.put_below(&child, &data));
                }
            }
            _ => {}
        }
        for other in beside.iter().filter(|other| chain.below(other) == Below::Node(data.clone())) {
            chain.sound(other)?;
            plan.push(chain.put_below(other, &data));
        }
        chain.forget(k, &data, &mut plan);
        Ok(plan)
    }

    /// Puts a layer on what `file` itself stands on, with a copy of what `file` holds.
    fn put_apart(&self, layer: &Node, file: &Node) -> Step {
        Step::Rebase { file: self.path(layer), onto: self.named_below(file), copy: true }
    }

    /// What `file` stands on, as a path for the domain.
    fn path_below(&self, file: &Node) -> Option<PathBuf> {
        match self.below(file) {
            Below::Node(below) => Some(self.path(&below)),
            Below::Outside(backing) => Some(normalize(&self.folder.join(Path::new(&backing.name)))),
            Below::Nothing | Below::Broken => None,
        }
    }

    /// Merges the child into the file of snapshot `k`, which then holds the child's snapshot.
    fn merge(&self, k: u32, merge: &Merge<'_>, mut plan: Plan) -> Result<Plan, Refusal> {
        let Merge { above, child, at, data } = *merge;
        let (top, base) = (self.path(child), self.path(data));
        let Some(owner) = self.owner(child) else {
            return Err(Refusal::NotLive { file: top, why: "its layer above is no snapshot" });
        };
        // What is half merged must not be taken for the snapshot, nor what was merged for another one.
        if self.deleting.get(&k).map(OsString::as_os_str) != top.file_name() {
            plan.push(Step::Mark { marker: self.deleting_marker(k), names: top.clone() });
        }
        let open = |path: &PathBuf, at| Open { path: path.clone(), at };
        plan.push(Step::BlockCommit {
            top: open(&top, at - 1),
            base: open(&base, at),
            above: self.path(above),
            backing: self.backing_name(data),
        });
        // What else stands on the child: its content is in the file below now. The domain has put its own layer there.
        let open_above = |node: &Node| self.ancestry(&self.open_top()).contains(node);
        for other in self.dependents(child).iter().filter(|other| !open_above(other)) {
            self.sound(other)?;
            let onto = Some((self.backing_name(data), self.format(data).to_owned()));
            plan.push(Step::Rebase { file: self.path(other), onto, copy: false });
        }
        plan.push(Step::Mark { marker: self.marker(owner), names: base });
        plan.push(Step::Remove { file: top });
        if self.moved.contains_key(&k) {
            plan.push(Step::Remove { file: self.marker(k) });
        }
        plan.push(Step::Remove { file: self.deleting_marker(k) });
        Ok(plan)
    }
}
