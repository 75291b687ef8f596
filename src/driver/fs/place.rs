//! Which machine handles a datastore's files, and how a new file gets its name there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::misuse;
use crate::exec::host::{ErrorKind, Host};
use crate::exec::op::{Op, Value};
use crate::exec::staging::{self, Owner};
use crate::exec::step::{Feed, Step};
use crate::invocation::normalize;
use crate::location::ImageFiles;
use crate::payload::Datastore;
use crate::report::Misuse;

/// A datastore's directory on the machine that handles it.
pub struct Place {
    /// The front-end, or the bridge that was chosen.
    pub host: Arc<dyn Host>,
    /// Name of the bridge, if there is one.
    pub bridge: Option<String>,
    /// `BASE_PATH`, normalised.
    pub base: PathBuf,
    /// `BASE_PATH` as oned has it (`/var/lib/one//datastores/1`): SOURCE repeats it to the letter.
    text: String,
    /// Staging files whose owner died.
    dead: Vec<std::ffi::OsString>,
    owner: Owner,
}

impl Place {
    /// Finds the machine: the front-end, or of the bridges that oned does not hold for off, the one that `id` falls on;
    /// when it cannot be reached, the next.
    ///
    /// # Errors
    /// No usable `BASE_PATH`; all bridges off or out of reach.
    pub fn open(cx: &Cx<'_>, datastore: &Datastore, id: u32) -> Result<Self> {
        let text = datastore.base_path.required().map_err(misuse)?.to_owned();
        let base = normalize(Path::new(&text));
        if !base.is_absolute() || base.parent().is_none() {
            bail!(Misuse(format!("Bad BASE_PATH {text:?}: it has to be an absolute path below /")));
        }
        let owner = Owner::me().context("Cannot tell this process from others")?;
        let questions = || [Op::List { path: staging::dir(&base) }];
        let place = |host, bridge, answer: Option<Value>| {
            let names = match answer {
                Some(Value::Names(names)) => names,
                _ => Vec::new(),
            };
            let dead = staging::dead(&names, &owner);
            Self { host, bridge, base: base.clone(), text: text.clone(), dead, owner: owner.clone() }
        };
        let bridges: Vec<&str> = datastore.template.bridge_list.words().collect();
        if bridges.is_empty() {
            let here = cx.here();
            let answer = cx.query(&here, questions())?.pop();
            return Ok(place(here, None, answer));
        }
        let bridges = in_turn(bridges_on(cx, &bridges)?, id);
        let mut unreachable = Vec::new();
        for name in bridges {
            let host = cx.host(name)?;
            match cx.query(&host, questions()) {
                Ok(mut answers) => return Ok(place(host, Some(name.to_owned()), answers.pop())),
                Err(e) if e.kind == ErrorKind::Unreachable => {
                    cx.warn(format!("Bridge {name} is left out: {e}"));
                    unreachable.push(e);
                }
                Err(e) => return Err(e.into()),
            }
        }
        match unreachable.into_iter().next() {
            Some(first) => Err(anyhow::Error::new(first).context("No host of BRIDGE_LIST can be reached")),
            None => bail!("BRIDGE_LIST is empty"),
        }
    }

    /// The name under which messages mention a path of this place: upstream's `H:PATH`, or the path alone.
    pub fn show(&self, path: &Path) -> String {
        match &self.bridge {
            Some(bridge) => format!("{bridge}:{}", path.display()),
            None => path.display().to_string(),
        }
    }

    /// ` in H` for messages, or nothing.
    pub fn in_host(&self) -> String {
        self.bridge.as_ref().map_or_else(String::new, |bridge| format!(" in {bridge}"))
    }

    /// A new image file, not written yet.
    pub fn new_image(&self, cx: &Cx<'_>, id: u32) -> NewImage {
        let name = cx.new_name(id);
        NewImage {
            staging: self.staging(&name),
            path: self.base.join(&name),
            source: format!("{}/{name}", self.text.trim_end_matches('/')),
        }
    }

    /// Where the data of the file `name` of this place is written first.
    pub fn staging(&self, name: &str) -> PathBuf {
        staging::staging_path(&self.base, &self.owner, name.as_ref())
    }

    /// What killed runs left in another directory of this machine where staging files land first: their names.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn dead_in(&self, cx: &Cx<'_>, dir: &Path) -> Result<Vec<std::ffi::OsString>> {
        Ok(match cx.ask(&self.host, Op::List { path: dir.to_owned() })? {
            Value::Names(names) => staging::dead(&names, &self.owner),
            _ => Vec::new(),
        })
    }

    /// What every change begins with: the directories, and the end of what killed runs left.
    pub fn prepare(&self) -> Vec<Op> {
        let dir = staging::dir(&self.base);
        let mut ops = vec![Op::MakeDir { path: self.base.clone() }];
        if !self.dead.is_empty() {
            ops.push(Op::Sweep { staging: dir.clone(), dead: self.dead.clone() });
        }
        ops.push(Op::MakeDir { path: dir });
        ops
    }

    /// A step of this place that writes the staging file `staging`, which goes again when anything fails.
    pub fn staging_step(&self, what: impl Into<String>, staging: &Path, ops: impl IntoIterator<Item = Op>) -> Step {
        Step::new(&self.host, what, ops).undo([Op::Remove { path: staging.to_owned(), tree: false, must_exist: false }])
    }

    /// Gives a finished new image its name. The staging name goes when the reply is delivered.
    ///
    /// # Errors
    /// What the step says.
    pub fn publish(&self, cx: &Cx<'_>, new: &NewImage, failure: &str) -> Result<()> {
        let ops = [Op::Publish { from: new.staging.clone(), to: new.path.clone() }];
        let step = Step::new(&self.host, format!("Give the image its name {}", new.path.display()), ops)
            .undo([self.unpublish(&new.staging)])
            .or_say(failure);
        cx.apply(step)?;
        let what = "Once the reply is delivered, drop the staging name";
        // Whole: without its staging name the image could not be taken back.
        cx.after(Step::new(&self.host, what, staging::retire(&new.staging).ops).whole());
        Ok(())
    }

    /// Takes a staging file back with its final name, if that is the same file: a name that was there before stays.
    fn unpublish(&self, staging: &Path) -> Op {
        let dead = staging.file_name().map(std::ffi::OsStr::to_owned).into_iter().collect();
        Op::Sweep { staging: staging::dir(&self.base), dead }
    }

    /// Puts a finished staging file in the place of an existing file, in one rename, with what comes `before` and `then`:
    /// all of it or nothing, as far as only a kill can come in between.
    ///
    /// # Errors
    /// What the step says.
    pub fn replace(
        &self,
        cx: &Cx<'_>,
        (staging, path): (&Path, &Path),
        before: Vec<Op>,
        then: Vec<Op>,
        failure: &str,
    ) -> Result<()> {
        // What is on its way to the disk now can still be cancelled; what follows is quick.
        cx.apply(
            Step::new(&self.host, "Have it on the disk", [Op::Sync { path: staging.to_owned() }]).or_say(failure),
        )?;
        let rename = Op::Rename { from: staging.to_owned(), to: path.to_owned() };
        let ops = [before, vec![rename], then].concat();
        let what = format!("Put it in the place of {}", path.display());
        cx.apply(Step::new(&self.host, what, ops).or_say(failure).whole())?;
        Ok(())
    }

    /// Drops the directory `path` in one rename. Emptying it is left to the next action if this one does not live to do it.
    pub fn drop_tree(&self, path: &Path) -> Vec<Op> {
        let to = self.staging(&path.file_name().unwrap_or_default().to_string_lossy());
        let dead = to.file_name().map(std::ffi::OsStr::to_owned).into_iter().collect();
        vec![Op::Rename { from: path.to_owned(), to }, Op::Sweep { staging: staging::dir(&self.base), dead }]
    }

    /// The files of an existing image of this place.
    ///
    /// # Errors
    /// The source is not a file directly in the datastore.
    pub fn image(&self, source: &str) -> Result<ImageFiles> {
        Ok(ImageFiles::new(&self.base, Path::new(source))?)
    }

    /// A step that receives `feed` into a new staging file.
    pub fn receive(&self, what: String, staging: &Path, sparse: crate::exec::op::Sparse, feed: Feed) -> Step {
        let mut ops = self.prepare();
        ops.push(Op::Receive { path: staging.to_owned(), sparse });
        self.staging_step(what, staging, ops).feed(feed)
    }
}

/// A new image file on its way.
pub struct NewImage {
    /// Where it is written.
    pub staging: PathBuf,
    /// Where it will be.
    pub path: PathBuf,
    /// SOURCE for oned.
    pub source: String,
}

/// The bridges that oned does not hold for off, in error or disabled. When oned cannot be asked, all of them.
pub fn bridges_on<'b>(cx: &Cx<'_>, bridges: &[&'b str]) -> Result<Vec<&'b str>> {
    let pool = match cx.oned().host_pool() {
        Ok(pool) => pool,
        Err(e) => {
            cx.warn(format!("Cannot tell which bridges are off, all are taken: {e}"));
            return Ok(bridges.to_vec());
        }
    };
    let usable = |name: &str| {
        pool.hosts.iter().find(|h| h.name.trimmed() == Some(name)).is_none_or(crate::payload::Host::is_usable)
    };
    let on: Vec<&str> = bridges.iter().copied().filter(|name| usable(name)).collect();
    if on.is_empty() {
        bail!("All hosts from 'BRIDGE_LIST' are offline, error or disabled");
    }
    Ok(on)
}

/// The list, beginning with the one that `id` falls on.
fn in_turn(mut list: Vec<&str>, id: u32) -> Vec<&str> {
    let length = list.len().max(1);
    list.rotate_left(usize::try_from(id).unwrap_or_default() % length);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_chooses_the_bridge_and_the_others_follow() {
        assert_eq!(in_turn(vec!["a", "b", "c"], 4), ["b", "c", "a"]);
        assert!(in_turn(vec![], 4).is_empty());
    }
}
