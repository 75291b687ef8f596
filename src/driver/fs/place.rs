//! Which machine handles a datastore's files, and how a new file gets its name there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::bridges::{bridges_on, in_turn, reach};
use crate::driver::common::folder::Folder;
use crate::driver::misuse;
use crate::exec::host::Host;
use crate::exec::host::fenced::Fenced;
use crate::exec::op::{Op, Value};
use crate::exec::staging::{self, Owner};
use crate::exec::step::{Feed, Step};
use crate::location::ImageFiles;
use crate::location::normalize;
use crate::payload::Datastore;
use crate::report::Misuse;

/// A datastore's directory on the machine that handles it.
pub struct Place {
    /// `BASE_PATH`, normalised, on the front-end or the bridge that was chosen.
    folder: Folder,
    /// Name of the bridge, if there is one.
    pub bridge: Option<String>,
    /// `BASE_PATH` as oned has it (`/var/lib/one//datastores/1`): SOURCE repeats it to the letter.
    text: String,
    /// `STAGING_DIR`, where a bridge's streams land first, if the operator set one.
    pub landing: Option<PathBuf>,
}

impl std::ops::Deref for Place {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
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
        let bridges: Vec<&str> = datastore.template.bridge_list.words().collect();
        let landing = datastore.template.staging_dir.trimmed().filter(|_| !bridges.is_empty()).map(PathBuf::from);
        let folders: Vec<PathBuf> = std::iter::once(&base).chain(&landing).cloned().collect();
        let questions = || folders.iter().map(|folder| Op::List { path: staging::dir(folder) }).collect::<Vec<_>>();
        let place = |host, bridge, answers: Vec<Value>| {
            let clear = folders.iter().zip(answers).flat_map(|(folder, answer)| match answer {
                Value::Names(names) => staging::clear(folder, &names, &owner),
                _ => Vec::new(),
            });
            let host: Arc<dyn Host> = Arc::new(Fenced::new(host, folders.clone()));
            let folder = Folder::new(host, base.clone(), clear.collect(), owner.clone());
            Self { folder, bridge, text: text.clone(), landing: landing.clone() }
        };
        if bridges.is_empty() {
            let here = cx.here();
            let answers = cx.query(&here, questions())?;
            return Ok(place(here, None, answers));
        }
        let (host, name, answers) = reach(cx, in_turn(bridges_on(cx, &bridges)?, id), &questions)?;
        Ok(place(host, Some(name), answers))
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

    /// Where a stream for the file `name` lands first in `folder`, an operator's `STAGING_DIR`.
    pub fn landing(&self, folder: &Path, name: &OsStr) -> PathBuf {
        staging::staging_path(folder, self.owner(), name)
    }

    /// Gives a finished new image its name. The staging name goes when the reply is delivered.
    ///
    /// # Errors
    /// What the step says.
    pub fn publish(&self, cx: &Cx<'_>, new: &NewImage, failure: &str) -> Result<()> {
        let ops = [Op::Publish { from: new.staging.clone(), to: new.path.clone() }];
        // A name that was there before stays: only the same file is taken back.
        let dead = new.staging.file_name().map(OsStr::to_owned).into_iter().collect();
        let unpublish = Op::Sweep { staging: staging::dir(&self.base), dead };
        let what = format!("Give the image its name {}", new.path.display());
        cx.apply(Step::new(&self.host, &what, ops).undo([unpublish]).or_say(failure))?;
        // From now on the name is ours, also when the staging name is gone.
        let remove = Op::Remove { path: new.path.clone(), tree: false, must_exist: false };
        cx.on_failure(Step::new(&self.host, what, []).undo([remove]));

        let retire = staging::retire(&self.base, self.owner(), &new.staging, self.bridge.is_some());
        let what = "Once the reply is delivered, drop the staging name";
        cx.after(Step::new(&self.host, what, retire).or_say(failure));
        Ok(())
    }

    /// Puts a finished staging file in the place of an existing file, in one rename, and leaves the staging folder. Who
    /// cannot leave it has failed, and the same action again clears it: what stays after a success stays for long.
    ///
    /// # Errors
    /// What the step says.
    pub fn replace(&self, cx: &Cx<'_>, staging: &Path, path: &Path, failure: &str) -> Result<()> {
        // What is on its way to the disk can still be cancelled; what follows is quick.
        let sync = [Op::Sync { path: staging.to_owned() }];
        cx.apply(Step::new(&self.host, "Have it on the disk", sync).or_say(failure))?;
        let ops = [Op::Rename { from: staging.to_owned(), to: path.to_owned() }].into_iter().chain(self.leave());
        let what = format!("Put it in the place of {}", path.display());
        cx.apply(Step::new(&self.host, what, ops).or_say(failure).whole())?;
        Ok(())
    }

    /// Removes a folder as one change, and leaves the staging folder: it is moved out of the way first. Its parts go with
    /// the next sweep if we die.
    ///
    /// # Errors
    /// What the step says.
    pub fn drop_tree(&self, cx: &Cx<'_>, path: &Path, failure: &str) -> Result<()> {
        let away = self.staging(path.file_name().unwrap_or_default());
        let ops = [
            Op::Claim { path: staging::claim_path(&self.base, self.owner()) },
            Op::Rename { from: path.to_owned(), to: away.clone() },
            Op::Remove { path: away.clone(), tree: true, must_exist: false },
        ];
        let ops = ops.into_iter().chain(self.leave());
        let what = format!("Remove {}; this cannot be undone", path.display());
        // What is out of the way stays gone, also when the disk does not say that it is; and the claim is given up.
        let mut undo = vec![Op::Remove { path: away, tree: true, must_exist: false }];
        undo.extend(self.leave());
        cx.apply(Step::new(&self.host, what, ops).undo(undo).or_say(failure).whole())?;
        Ok(())
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
