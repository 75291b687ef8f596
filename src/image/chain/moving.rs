//! A disk that moves with its folder: names that have to fit the place before, or after.

use std::path::{Path, PathBuf};

use super::facts::Manner;
use super::finding::{Finding, Refusal};
use super::model::{Below, Chain, Node};
use super::plan::{Plan, Step};

impl Chain {
    /// Plans what puts a disk right that was moved with its folder while its layers name their siblings by the old path
    /// (as upstream's powered-off delete leaves them): only names change.
    ///
    /// # Errors
    /// See [`Refusal`]: the names may still lead to files, at the old place.
    pub fn repoint(&self) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        for finding in self.findings() {
            let Finding::OtherRoot { file, here, .. } = finding else { continue };
            let (Some(layer), Some(here)) = (self.locate(file), self.locate(here)) else { continue };
            if self.layers.contains_key(&layer) {
                let onto = Some((self.backing_name(&here), self.format(&here).to_owned()));
                plan.push(Step::Rebase { file: file.clone(), onto, copy: false });
            }
        }
        Ok(plan)
    }

    /// Plans what has to be done before the folder with the disk moves: names by which its files know each other become
    /// relative, and so hold at both places. Nothing for a disk whose layers stand beside an image: they stay.
    ///
    /// What is broken is left as it is, except names from before an earlier move.
    #[must_use]
    pub fn movable(&self) -> Plan {
        let mut plan = Plan::default();
        if self.names.disk != self.names.origin {
            return plan;
        }
        for (node, layer) in self.layers.iter().filter(|(_, layer)| layer.alias.is_none()) {
            let Some(backing) = &layer.header.backing else { continue };
            let below = match &layer.below {
                Below::Node(below) => Some(below.clone()),
                Below::Broken => self.moved_from(node),
                Below::Nothing | Below::Outside(_) => None,
            };
            let Some((below, name)) = below.and_then(|below| Some((below.clone(), self.relative(&below)?))) else {
                continue;
            };
            if Path::new(&backing.name).is_absolute() {
                let onto = Some((name, self.format(&below).to_owned()));
                plan.push(Step::Rebase { file: layer.path.clone(), onto, copy: false });
            }
        }
        let absolute = self.link.as_ref().is_some_and(|link| link.is_absolute());
        if let (true, Some(Node::Layer(name))) = (absolute, &self.active) {
            let target = Path::new(self.folder.file_name().unwrap_or_default()).join(name);
            plan.push(Step::Link { link: self.names.disk.clone(), target });
        }
        if plan.steps.is_empty() || self.manner == Manner::Bare || self.has_self_link {
            return plan;
        }
        // Before the first name that leads through it.
        let mut whole = Plan::default();
        self.link_to_self(&mut whole);
        whole.steps.extend(plan.steps);
        whole
    }

    /// How a file of the folder is named by its siblings, wherever the folder is.
    fn relative(&self, node: &Node) -> Option<PathBuf> {
        match (node, self.manner) {
            (Node::Origin, _) => None,
            (Node::Layer(name), Manner::Bare) => Some(name.into()),
            (Node::Layer(name), _) => Some(Path::new(self.folder.file_name().unwrap_or_default()).join(name)),
        }
    }

    /// The file that lies here and was meant by a name from before a move.
    fn moved_from(&self, node: &Node) -> Option<Node> {
        let path = self.path(node);
        let here = self.findings().find_map(|finding| match finding {
            Finding::OtherRoot { file, here, .. } if *file == path => Some(here),
            _ => None,
        });
        self.locate(here?)
    }
}
