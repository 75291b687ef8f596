//! What has to hold after a fault, and after the same action was done again without it.
//!
//! - Success: the tree and the reply are those of an undisturbed run.
//! - Failure: one line that names an object and the cause; the tree is as before, but for folders without anything in
//!   them. What an action takes away or replaces may be so in part, as after a kill.
//! - Either way nothing is left behind, and the same action succeeds then.

use anyhow::Result;

use super::fault::Fault;
use super::report::Row;
use super::scenario::{Disturbed, again, left_behind, reply};
use super::state::{Entry, Kind, Reference, State, is_staging};
use super::tracer::Who;
use super::world::World;
use crate::conformance::expect::plain_lines;

/// Calls that remove something.
const REMOVES: [&str; 2] = [": unlink", ": rmdir"];

/// A fault, and what undisturbed runs begin with and come to.
pub struct Faults<'a> {
    fault: Fault,
    who: Who,
    reference: &'a Reference,
    /// The reference of an action that changes nothing.
    nothing: Reference,
    reply: String,
}

impl<'a> Faults<'a> {
    /// `whole` is an undisturbed run.
    pub fn new(fault: Fault, who: Who, reference: &'a Reference, whole: &Disturbed) -> Self {
        let nothing = Reference {
            before: reference.before.clone(),
            guests: reference.guests.clone(),
            after: reference.before.clone(),
            guests_after: reference.guests.clone(),
            varying: Vec::new(),
        };
        Self { fault, who, reference, nothing, reply: without_names(&whole.stdout) }
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
            row.succeeded += 1;
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
        named.paths.retain(|name, entry| !self.is_ground(name, entry));
        if !self.nothing.differences(&root, &named, &drawn).is_empty() {
            // What cannot be removed stays, below a name by which the next action removes it.
            let removing = run.at.as_ref().is_some_and(|at| REMOVES.iter().any(|call| at.contains(call)));
            let strays: Vec<_> = named
                .paths
                .keys()
                .filter(|name| !self.reference.before.paths.contains_key(*name) && !(removing && is_staging(name)))
                .collect();
            wrong.extend(strays.into_iter().map(|name| format!("failed, and left {name}")));
            row.partly += 1;
        }
        wrong.extend(again(world, self.reference, differences.is_empty(), false, row, None)?);
        Ok(wrong)
    }

    /// Whether it is a folder that the complete action makes too: others may work in it already, so that it stays.
    fn is_ground(&self, name: &str, entry: &Entry) -> bool {
        let made = |entry: &Entry| entry.kind == Kind::Dir;
        made(entry)
            && !self.reference.before.paths.contains_key(name)
            && self.reference.after.paths.get(name).is_some_and(made)
    }

    /// What is wrong with the message of a run that failed.
    fn words(&self, run: &Disturbed) -> Vec<String> {
        let mut wrong = Vec::new();
        let lines = plain_lines(run.stderr.as_bytes());
        let [line] = &lines[..] else {
            wrong.push(format!("says {} lines instead of one", lines.len()));
            return wrong;
        };
        if self.who == Who::Itself && matches!(self.fault, Fault::Eintr | Fault::Short) {
            wrong.push("fails, though the call had only to be made again".to_owned());
        }
        // What another program says of it is its affair, so long as it is handed on.
        let cause = self.fault.errno().map(|errno| std::io::Error::from(errno).to_string()).unwrap_or_default();
        let cause = cause.split(" (os error").next().unwrap_or_default();
        if self.who == Who::Itself && !line.contains(cause) {
            wrong.push(format!("does not say {cause:?}"));
        }
        if !line.contains('/') {
            wrong.push("names no object".to_owned());
        }
        wrong
    }
}

/// Standard output with names that are drawn by lot left out.
fn without_names(stdout: &str) -> String {
    let words = stdout.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 32);
    words.fold(stdout.to_owned(), |text, word| text.replace(word, "NEW"))
}
