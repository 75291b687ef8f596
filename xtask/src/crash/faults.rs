//! What has to hold after a fault, and after the same action was done again without it.
//!
//! - Success: the tree and the reply are those of an undisturbed run.
//! - Failure: one line that names an object and the cause; the tree is as before, but for folders without anything in
//!   them. What an action takes away or replaces may be so in part, as after a kill.
//! - Either way nothing is left behind, and the same action succeeds then.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;

use super::fault::Fault;
use super::report::Row;
use super::scenario::{By, Disturbed, again, left_behind, reply};
use super::state::{Entry, Kind, Reference, State, is_staging};
use super::tracer::Who;
use super::world::World;
use crate::conformance::expect::plain_lines;

/// Calls that remove something.
const REMOVES: [&str; 2] = [": unlink", ": rmdir"];
/// Calls that say whether the disk has something.
const SYNCS: [&str; 3] = [": fsync", ": fdatasync", ": syncfs"];

/// Bytes that a line for a person may have.
const MOST: usize = 4096;

/// A fault, and what undisturbed runs begin with and come to.
pub struct Faults<'a> {
    by: By,
    who: Who,
    reference: &'a Reference,
    /// The reference of an action that changes nothing.
    nothing: Reference,
    reply: String,
}

impl<'a> Faults<'a> {
    /// `whole` is an undisturbed run.
    pub fn new(by: By, who: Who, reference: &'a Reference, whole: &Disturbed) -> Self {
        let nothing = Reference {
            before: reference.before.clone(),
            guests: reference.guests.clone(),
            after: reference.before.clone(),
            guests_after: reference.guests.clone(),
            varying: Vec::new(),
        };
        Self { by, who, reference, nothing, reply: without_names(&whole.stdout) }
    }

    /// What is wrong after a run with a fault, and after the same action was done again.
    ///
    /// # Errors
    /// The tree cannot be read, or the action not started.
    pub fn judge(&self, world: &World<'_>, run: &Disturbed, row: &mut Row) -> Result<Vec<String>> {
        let root = world.root();
        let mut wrong = left_behind(world, run)?;
        if run.stderr.contains("panicked") {
            wrong.push("panics".to_owned());
        }
        let now = State::take(&root)?;
        let (named, drawn) = now.with_names(&self.reference.before, &reply(run.stdout.as_bytes()));
        let differences = self.reference.differences(&root, &named, &drawn);
        if run.trace.status == 0 {
            row.succeeded += usize::from(run.at.is_some());
            // What only had to be cleared away is not worth a failure, but a word.
            let was_there = |text: &str| {
                text.strip_prefix("stray: ").is_some_and(|name| self.reference.before.paths.contains_key(name))
            };
            // A cache that could not be filled is no reason that a VM does not start: it is as it was.
            let unfilled = |text: &str| {
                let name = text.split(" is ").next().filter(|name| name.starts_with("files/cache"));
                name.is_some_and(|name| now.paths.get(name) == self.reference.before.paths.get(name))
            };
            let harmless = |text: &String| is_staged(text) || was_there(text) || unfilled(text);
            let told = run.stderr.contains("WARN: ") && differences.iter().all(harmless);
            row.swept_later += usize::from(told && !differences.is_empty());
            let differences = if told { Vec::new() } else { differences };
            wrong.extend(differences.into_iter().map(|text| format!("said success, but {text}")));
            let said = without_names(&run.stdout);
            if said != self.reply {
                wrong.push(format!("said success and {said:?} instead of {:?}", self.reply));
            }
            return Ok(wrong);
        }
        wrong.extend(self.words(run));
        wrong.extend(self.reference.lost(&root, &named, &drawn));
        let mut named = named;
        let is_new = |name: &str| !self.reference.before.paths.contains_key(name);
        named
            .paths
            .retain(|name, entry| !is_new(name) || !(self.is_ground(name, entry) || self.is_second_name(&root, name)));
        if !self.nothing.differences(&root, &named, &drawn).is_empty() {
            let at = |calls: &[&str]| run.at.as_ref().is_some_and(|at| calls.iter().any(|call| at.contains(call)));
            let (removing, syncing) = (at(&REMOVES), at(&SYNCS));
            // What cannot be removed stays, below a name by which the next action removes it. And when a disk does not say
            // that it has something, going on from there is as good as going back; that it is whole was asked above.
            let accepted = |name: &str| {
                let made = self.reference.after.paths.contains_key(name) && !name.contains("NEW");
                (removing && is_staging(name)) || (syncing && made)
            };
            let strays: Vec<_> = named.paths.keys().filter(|name| is_new(name) && !accepted(name)).collect();
            wrong.extend(strays.into_iter().map(|name| format!("failed, and left {name}")));
            row.partly += 1;
        }
        wrong.extend(again(world, self.reference, differences.is_empty(), false, row, None)?);
        Ok(wrong)
    }

    /// Whether it is a second name of a file that was there: it takes no room, and the same action goes on with it. Once a
    /// disk has become a link it is the only name of its data, so that nothing takes it back (`src/image/chain`).
    fn is_second_name(&self, root: &Path, name: &str) -> bool {
        let inode = |name: &str| fs::symlink_metadata(root.join(name)).ok().map(|about| (about.dev(), about.ino()));
        let own = inode(name);
        let files = self.reference.before.paths.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }));
        !is_staging(name) && own.is_some() && files.into_iter().any(|(other, _)| inode(other) == own)
    }

    /// Whether it serves later actions too, and is left by the complete one as well: a folder, a lock file of the cache, the
    /// mark of a datastore, the digest of an image. What has arrived of a journey stays for the run that goes on with it.
    fn is_ground(&self, name: &str, entry: &Entry) -> bool {
        let journeys = |name: &str| is_staging(name) && name.contains(".journey-");
        let serves = |entry: &Entry| match entry.kind {
            Kind::Dir => true,
            Kind::File { size, .. } => {
                (size == 0 && name.ends_with("-lock")) || name.ends_with("/.monitor") || name.ends_with(".md5sum")
            }
            _ => false,
        };
        let left = self.reference.after.paths.get(name).is_some_and(serves);
        let holds_one = entry.kind == Kind::Dir && name.ends_with("/.onestore");
        journeys(name) || (serves(entry) && (left || holds_one))
    }

    /// What is wrong with the message of a run that failed.
    fn words(&self, run: &Disturbed) -> Vec<String> {
        let mut wrong = Vec::new();
        let lines = plain_lines(run.stderr.as_bytes());
        let [line] = &lines[..] else {
            wrong.push(format!("says {} lines instead of one", lines.len()));
            return wrong;
        };
        // What another program says of it is its affair, so long as it is handed on.
        if let By::Fault(fault) = self.by
            && self.who == Who::Itself
        {
            if matches!(fault, Fault::Eintr | Fault::Short) {
                wrong.push("fails, though the call had only to be made again".to_owned());
            }
            let cause = fault.errno().map(|errno| std::io::Error::from(errno).to_string()).unwrap_or_default();
            let cause = cause.split(" (os error").next().unwrap_or_default();
            if !line.contains(cause) {
                wrong.push(format!("does not say {cause:?}"));
            }
        }
        if line.len() > MOST || line.chars().any(char::is_control) {
            wrong.push(format!("says {} bytes, or what no terminal should get", line.len()));
        }
        // A host is one too.
        if !line.contains('/') && !line.contains("bridge") {
            wrong.push("names no object".to_owned());
        }
        wrong
    }
}

fn is_staged(difference: &str) -> bool {
    difference.strip_prefix("stray: ").is_some_and(is_staging)
}

/// Standard output with names that are drawn by lot left out.
fn without_names(stdout: &str) -> String {
    let words = stdout.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 32);
    words.fold(stdout.to_owned(), |text, word| text.replace(word, "NEW"))
}
