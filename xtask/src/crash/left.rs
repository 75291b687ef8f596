//! What a killed run has left, as far as the next run can see it: two kills that leave the same need one repetition.
//!
//! More than [`State`] is looked at: owners, blocks, which names are of one file, and whether a file was written to. What
//! names a run only is left out: the process that owned a staging name, and names that are drawn by lot. Bytes that hold
//! any of it make it something else; then the action is repeated once too often.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use regex::Regex;

use super::report::Row;
use super::state::{Drawn, Kind, State};

/// The owner in a staging name (`src/exec/staging.rs`).
static OWNER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+").expect("the expression is constant")
});

/// A name that is drawn by lot; that of a journey tells what is carried, and is not.
static NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("(journey-)?([0-9a-f]{32})").expect("the expression is constant"));

/// What is left, in words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Left(String);

impl Left {
    /// Of what is below `root` and was looked at as `now`. How it was before lies in `kept`, and is `before`.
    ///
    /// # Errors
    /// Something is gone meanwhile.
    pub fn take(root: &Path, kept: &Path, now: &State, before: &State, drawn: &Drawn) -> Result<Self> {
        let mut new: Vec<String> = Vec::new();
        let mut names = |text: &str| {
            let text = OWNER.replace_all(text, |found: &regex::Captures<'_>| {
                let known = before.paths.keys().any(|name| name.contains(&found[0]));
                if known { found[0].to_owned() } else { "OWNER".to_owned() }
            });
            let text = drawn.replaced(&text);
            // A new image that has no name yet: that of its staging file is drawn by lot as well.
            NAME.replace_all(&text, |found: &regex::Captures<'_>| {
                if found.get(1).is_some() || before.paths.keys().any(|name| name.contains(&found[2])) {
                    return found[0].to_owned();
                }
                let at = new.iter().position(|name| *name == found[2]).unwrap_or_else(|| {
                    new.push(found[2].to_owned());
                    new.len() - 1
                });
                format!("STAGED{at}")
            })
            .into_owned()
        };
        let mut lines = Vec::new();
        let mut files: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
        for (path, entry) in &now.paths {
            let about = fs::symlink_metadata(root.join(path))?;
            let name = names(path);
            let kind = match &entry.kind {
                Kind::Link(to) => format!("to {}", names(to)),
                Kind::File { digest, size } => {
                    let was = fs::symlink_metadata(kept.join(path));
                    let time = |about: &fs::Metadata| (about.mtime(), about.mtime_nsec());
                    let old = was.is_ok_and(|was| time(&was) == time(&about));
                    files.entry((about.dev(), about.ino())).or_default().push(name.clone());
                    format!("{digest} {size} {} {old} {}", about.blocks(), about.nlink())
                }
                kind => format!("{kind:?}"),
            };
            lines.push(format!("{name:?} {:o} {} {} {kind}", entry.mode, about.uid(), about.gid()));
        }
        lines.sort();
        let mut one: Vec<String> =
            files.into_values().filter(|names| names.len() > 1).map(|names| format!("one file: {names:?}")).collect();
        one.sort();
        // Lock files are below the harness's own places.
        for name in fs::read_dir(root.join("bin/locks")).into_iter().flatten().flatten() {
            one.push(format!("lock {}", name.file_name().display()));
        }
        one.sort();
        Ok(Self([lines, one].concat().join("\n")))
    }
}

/// What the repetition came to, by what was left and what is to be expected of it.
#[derive(Default)]
pub struct Repeated(HashMap<(Left, bool, bool), Outcome>);

#[derive(Clone)]
struct Outcome {
    wrong: Vec<String>,
    counts: [usize; 3],
}

impl Repeated {
    /// What is wrong after a repetition; `repeat` does it, and counts in the row, unless an earlier kill has left the same.
    ///
    /// # Errors
    /// Those of `repeat`.
    pub fn once(
        &mut self,
        about: (Left, bool, bool),
        row: &mut Row,
        repeat: impl FnOnce(&mut Row) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        if let Some(Outcome { wrong, counts }) = self.0.get(&about) {
            row.done_already += counts[0];
            row.swept_later += counts[1];
            row.orphans += counts[2];
            return Ok(wrong.clone());
        }
        let counts = |row: &Row| [row.done_already, row.swept_later, row.orphans];
        let before = counts(row);
        let wrong = repeat(row)?;
        row.repeated += 1;
        let mut counts = counts(row);
        counts.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
        self.0.insert(about, Outcome { wrong: wrong.clone(), counts });
        Ok(wrong)
    }
}
