//! Random trees and random operations, killed after every step: what a guest sees stays what it was.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::simulator::{BLOCKS, Item, STARTS, Start, World, world};
use super::*;

#[derive(Clone, Debug)]
enum Act {
    Write(usize, u8),
    Create,
    Revert(usize),
    Delete(usize),
    Power,
}

/// What is done after a kill, besides repeating the operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    /// It was not killed.
    Whole,
    /// Killed after this many steps and never repeated; something else comes next.
    Abandon(usize),
}

/// What OpenNebula and the guest know.
#[derive(Clone, Debug)]
struct Model {
    world: World,
    current: Vec<u8>,
    snapshots: BTreeMap<u32, Vec<u8>>,
    next: u32,
    /// Snapshots that may be there although nobody knows of them: creations that were given up.
    stray: BTreeSet<u32>,
    /// Snapshots whose deletion was given up: they may be there, refused, or gone.
    dying: BTreeSet<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Create(u32),
    Revert(u32),
    Delete(u32),
}

fn plan(world: &World, operation: Operation) -> Result<Plan, Refusal> {
    let chain = world.chain();
    match (operation, &world.domain) {
        (Operation::Create(k), None) => chain.create(k),
        (Operation::Create(k), Some(_)) => chain.create_live(k, &world.live()),
        (Operation::Revert(k), _) => chain.revert(k),
        (Operation::Delete(k), None) => chain.delete(k),
        (Operation::Delete(k), Some(_)) => chain.delete_live(k, &world.live()),
    }
}

impl Model {
    fn new(start: Start) -> Self {
        let world = world(start);
        let current = world.current().expect("opens");
        let (snapshots, stray, dying) = Default::default();
        Self { world, current, snapshots, next: 0, stray, dying }
    }

    fn finish(&mut self, operation: Operation) {
        match operation {
            Operation::Create(k) => drop(self.snapshots.insert(k, self.current.clone())),
            Operation::Revert(k) => self.current = self.snapshots[&k].clone(),
            Operation::Delete(k) => {
                self.snapshots.remove(&k);
                self.dying.remove(&k);
            }
        }
    }

    fn give_up(&mut self, operation: Operation) {
        match operation {
            Operation::Create(k) => drop(self.stray.insert(k)),
            Operation::Delete(k) => {
                self.snapshots.remove(&k);
                self.dying.insert(k);
            }
            Operation::Revert(_) => {}
        }
    }

    /// What holds at every moment: the guest and every snapshot see what they should.
    fn check_content(&self, besides: Option<u32>) {
        let chain = self.world.chain();
        assert_eq!(self.world.current().as_ref(), Ok(&self.current), "the guest's disk\n{}", self.tree());
        for (id, content) in self.snapshots.iter().filter(|(id, _)| Some(**id) != besides) {
            let node = chain.content(*id).unwrap_or_else(|refusal| panic!("snapshot {id}: {refusal}\n{}", self.tree()));
            assert_eq!(self.world.visible(&chain.path(&node)).as_ref(), Ok(content), "snapshot {id}\n{}", self.tree());
        }
        for layer in chain.layers().values() {
            self.world
                .visible(&layer.path)
                .unwrap_or_else(|e| panic!("{}: {e}\n{}", layer.path.display(), self.tree()));
        }
        assert_eq!(self.world.visible("/ds/1/image".as_ref()), Ok(vec![1; BLOCKS]), "the image that was cloned");
    }

    /// What holds when an operation is complete: nothing is left over, and all names are in the layout's manner.
    fn check_tidy(&self) {
        self.check_content(None);
        let (world, chain) = (&self.world, self.world.chain());
        // A deletion that was given up after the file had gone leaves the marker to its own repetition.
        let given_up = |finding: &Finding| match finding {
            Finding::DanglingCurrent { marker, .. } => {
                self.dying.iter().any(|id| marker.ends_with(format!("{id}.current")))
            }
            _ => false,
        };
        let findings: Vec<_> = chain.findings().filter(|finding| !given_up(finding)).map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:?}\n{}", self.tree());
        let known = |id: &u32| self.snapshots.contains_key(id) || self.stray.contains(id) || self.dying.contains(id);
        for node in chain.layers().keys().filter(|node| **node != Node::Origin) {
            let is_active = chain.active() == Some(node);
            let used = is_active || chain.owner(node).is_some_and(|id| known(&id));
            assert!(used, "{} is left over\n{}", chain.path(node).display(), self.tree());
        }
        for (path, item) in world.items.iter().filter(|(path, _)| path.parent() == Some(&world.names.folder())) {
            let Item::Text(names) = item else { continue };
            let name = path.file_name().and_then(|name| name.to_str()).expect("text");
            let (id, kind) = name.split_once('.').expect("a marker");
            assert!(known(&id.parse().expect("a number")), "{name} is left over\n{}", self.tree());
            assert!(kind == "current" || !self.dying.is_empty(), "{name} is left over\n{}", self.tree());
            let given_up = id.parse().is_ok_and(|id| self.dying.contains(&id));
            assert!(given_up || world.inode(names).is_some(), "{name} names {}", names.display());
        }
        let manner = chain.manner();
        for image in world.images.values().filter_map(|image| image.backing.as_ref()) {
            let (name, _) = image;
            let sibling = !name.starts_with('/') || name.contains(".snap/");
            match manner {
                _ if !sibling => {}
                Manner::Relative => assert!(name.starts_with("disk.0.snap/"), "{name}"),
                Manner::Bare => assert!(!name.contains('/'), "{name}"),
                Manner::Absolute => assert!(name.starts_with("/ds/1/abc.snap/"), "{name}"),
            }
        }
    }

    fn tree(&self) -> String {
        let show = |(path, item): (&std::path::PathBuf, &Item)| match item {
            Item::File(inode) => format!("{} {inode} {:?}\n", path.display(), self.world.images[inode]),
            other => format!("{} {other:?}\n", path.display()),
        };
        let domain = format!("{:?}", self.world.domain);
        self.world.items.iter().map(show).collect::<String>() + &domain
    }

    /// Kills the operation at every step, looks, and repeats it.
    fn kill_everywhere(&self, operation: Operation, plan_of_it: &Plan) {
        let besides = match operation {
            Operation::Delete(k) => Some(k),
            _ => None,
        };
        let mut done = self.clone();
        done.finish(operation);
        for steps in 0..=plan_of_it.steps.len() {
            for blocks in 0..=BLOCKS / 2 {
                if blocks > 0 && steps == plan_of_it.steps.len() {
                    continue;
                }
                let mut killed = self.clone();
                plan_of_it.steps[..steps].iter().for_each(|one| killed.world.apply(&one.step, usize::MAX));
                if blocks > 0 {
                    killed.world.apply(&plan_of_it.steps[steps].step, blocks);
                }
                let reverted =
                    matches!(operation, Operation::Revert(_)) && killed.world.current() != Ok(self.current.clone());
                if reverted {
                    killed.current = done.current.clone();
                }
                killed.check_content(besides);
                // Switched off as well, except where the disk's link was behind the domain before: then nobody could tell.
                let ends = if self.leads_to_domain() { &[false, true][..] } else { &[false] };
                for off in ends {
                    let mut again = killed.clone();
                    if *off {
                        again.world.domain = None;
                    }
                    again.repeat(operation);
                }
            }
        }
    }

    /// Whether a domain runs and the disk is a link to the file that it writes to.
    fn leads_to_domain(&self) -> bool {
        let top = self.world.domain.as_ref().map(|domain| domain.open[0].1);
        top.is_some() && self.world.inode(&self.world.names.disk) == top
    }

    fn repeat(mut self, operation: Operation) {
        match plan(&self.world, operation) {
            Ok(plan) => self.world.run(&plan),
            // Done but for the reply; what the guest wrote since is the new current state.
            Err(Refusal::Exists(_)) if matches!(operation, Operation::Create(_)) => {}
            Err(refusal) => panic!("{operation:?} cannot be done again: {refusal}\n{}", self.tree()),
        }
        self.finish(operation);
        self.check_tidy();
    }

    fn operate(&mut self, operation: Operation, after: After) {
        let plan = match plan(&self.world, operation) {
            Ok(plan) => plan,
            Err(refusal) => return self.refused(operation, &refusal),
        };
        self.kill_everywhere(operation, &plan);
        match after {
            After::Abandon(steps) if steps < plan.steps.len() => {
                plan.steps[..steps].iter().for_each(|one| self.world.apply(&one.step, usize::MAX));
                self.give_up(operation);
                self.check_content(None);
            }
            _ => {
                self.world.run(&plan);
                self.finish(operation);
                self.check_tidy();
            }
        }
    }

    /// The refusals that are right.
    fn refused(&self, operation: Operation, refusal: &Refusal) {
        let fine = match (operation, refusal) {
            // Given up in a live creation, and the VM was switched off since.
            (Operation::Create(_) | Operation::Revert(_), Refusal::Broken(Finding::DataAbove { .. })) => {
                !self.stray.is_empty()
            }
            _ => false,
        };
        assert!(fine, "{operation:?} refused: {refusal}\n{}", self.tree());
    }

    fn pick(&self, at: usize) -> Option<u32> {
        let ids: Vec<u32> = self.snapshots.keys().chain(&self.dying).copied().collect();
        (!ids.is_empty()).then(|| ids[at % ids.len()])
    }

    fn act(&mut self, act: &Act, after: After) {
        match act {
            Act::Write(at, byte) => {
                self.world.write(*at, *byte);
                self.current[*at] = *byte;
            }
            Act::Create => {
                let k = self.next;
                self.next += 1;
                self.operate(Operation::Create(k), after);
            }
            Act::Revert(at) => {
                let Some(k) = self.pick(*at).filter(|k| self.world.domain.is_none() && !self.dying.contains(k)) else {
                    return;
                };
                self.operate(Operation::Revert(k), after);
            }
            Act::Delete(at) => {
                let Some(k) = self.pick(*at) else { return };
                self.operate(Operation::Delete(k), after);
            }
            Act::Power if self.world.domain.is_some() => {
                // What a domain wrote to a layer that the disk does not lead to is refused.
                if self.leads_to_domain() {
                    self.world.domain = None;
                }
            }
            Act::Power => self.world.boot(),
        }
        self.check_content(None);
    }
}

fn acts() -> impl Strategy<Value = Vec<(Act, After)>> {
    let act = prop_oneof![
        3 => (0..BLOCKS, 10u8..).prop_map(|(at, byte)| Act::Write(at, byte)),
        4 => Just(Act::Create),
        2 => any::<usize>().prop_map(Act::Revert),
        3 => any::<usize>().prop_map(Act::Delete),
        1 => Just(Act::Power),
    ];
    let after = prop_oneof![4 => Just(After::Whole), 1 => (0..6usize).prop_map(After::Abandon)];
    prop::collection::vec((act, after), 1..16)
}

fn check(start: Start, acts: &[(Act, After)], kills: bool) {
    let mut model = Model::new(start);
    for (act, after) in acts {
        model.act(act, if kills { *after } else { After::Whole });
    }
}

/// More of them than in every day's run with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn content_survives_every_kill(acts in acts(), start in prop::sample::select(STARTS.to_vec())) {
        check(start, &acts, false);
    }

    #[test]
    fn operations_that_were_given_up_harm_no_others(acts in acts(), start in prop::sample::select(STARTS.to_vec())) {
        check(start, &acts, true);
    }
}
