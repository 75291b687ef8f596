//! An image that has come back with its layers takes the place of the one that is there, with a way back.
//!
//! Two names change, that of the image and that of its folder of layers, and no file system changes both at once. So what was
//! there is kept until the action has succeeded: the folder under a staging name, an image that is a file by a second
//! name, one that is a link by its text. Whatever fails in between, both are put back; killed in between, the disk that all
//! of it came from is still there, and the same action ends it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::folder::Folder;
use crate::context::Cx;
use crate::exec::op::{FileKind, Op, Value};
use crate::exec::step::Step;
use crate::location::{ImageFiles, with_suffix};

/// What is in the place of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    image: Was,
    /// Whether it has a folder of layers.
    pub has_layers: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Was {
    Nothing,
    File,
    /// A link with this text.
    Link(PathBuf),
    /// What a rename refuses to replace, so that nothing has to be put back.
    Other,
}

impl Before {
    /// What has to be asked of the machine that has the image.
    #[must_use]
    pub fn questions(files: &ImageFiles) -> [Op; 3] {
        [
            Op::Stat { path: files.image.clone(), follow: false },
            Op::ReadLink { path: files.image.clone() },
            Op::Stat { path: files.snapshots(), follow: false },
        ]
    }

    /// What was answered.
    ///
    /// # Errors
    /// Answers are missing.
    pub fn read(answers: &[Value]) -> Result<Self> {
        let [image, link, layers] = answers else { bail!("The host did not answer all questions") };
        let image = match (image.stat().map(|stat| stat.kind), link) {
            (None, _) => Was::Nothing,
            (Some(FileKind::File), _) => Was::File,
            (Some(FileKind::Link), Value::Bytes(text)) => Was::Link(Path::new(OsStr::from_bytes(text)).to_owned()),
            _ => Was::Other,
        };
        Ok(Self { image, has_layers: layers.stat().is_some() })
    }
}

/// See the module.
pub struct Swap<'a> {
    /// The image's directory.
    pub folder: &'a Folder,
    /// The image's names.
    pub files: &'a ImageFiles,
    /// What is there.
    pub before: &'a Before,
    /// Whether the layers that are there go when none come.
    pub drops_layers: bool,
    /// The staging name of the folder of layers that comes; it is there before the step begins.
    pub layers: Option<PathBuf>,
    /// The staging name of what the image becomes, a file or a link. It is there before the step begins: so what is at the
    /// image's name is known to be the new one when this is gone.
    pub image: PathBuf,
}

impl Swap<'_> {
    /// Does it, and leaves the staging directory; what was there is removed when the action has succeeded. `what` is done
    /// as a sentence, `failure` what the user reads first when it fails.
    ///
    /// # Errors
    /// What went wrong; then it is taken back.
    pub fn run(self, cx: &Cx<'_>, what: String, failure: &str) -> Result<()> {
        let (done, undo, rest) = self.ops();
        let step = Step::new(&self.folder.host, what, done).undo(undo).or_say(failure);
        cx.apply(step.whole())?;
        if !rest.is_empty() {
            let what = format!("Remove what was in the place of {}", self.files.image.display());
            cx.after(Step::new(&self.folder.host, what, rest).best_effort());
        }
        Ok(())
    }

    /// What does it, what takes it back after any part of it, and what ends it.
    fn ops(&self) -> (Vec<Op>, Vec<Op>, Vec<Op>) {
        let (image, snapshots) = (&self.files.image, self.files.snapshots());
        let away = |path: &Path| self.folder.staging(with_suffix(Path::new(path.file_name().unwrap_or_default()), ".old"));
        let remove = |path: &Path, tree| Op::Remove { path: path.to_owned(), tree, must_exist: false };
        let rename = |from: &Path, to: &Path| Op::Rename { from: from.to_owned(), to: to.to_owned() };
        let back = |from: &Path, to: &Path| Op::PutBack { from: from.to_owned(), to: to.to_owned() };
        // First: a digest that outlives what it was made of makes a replica take old data for current.
        let mut done = vec![remove(&self.files.md5sum(), false)];
        let (mut undo, mut rest) = (Vec::new(), Vec::new());
        let drops = self.before.has_layers && (self.drops_layers || self.layers.is_some());
        if drops {
            let kept = away(&snapshots);
            done.push(rename(&snapshots, &kept));
            undo.push(back(&kept, &snapshots));
            rest.push(remove(&kept, true));
        }
        if let Some(staged) = &self.layers {
            done.extend([Op::Sync { path: staged.clone() }, rename(staged, &snapshots)]);
            undo.insert(0, back(&snapshots, staged));
        }
        // Where the image's name is all that changes, it changes at once, and nothing has to be kept.
        let keeps = drops || self.layers.is_some();
        if keeps && self.before.image == Was::File {
            let kept = away(image);
            done.push(Op::Publish { from: image.clone(), to: kept.clone() });
            // That is the old one in any case: what has taken its place goes first.
            undo.splice(0..0, [back(&kept, image), remove(&kept, false)]);
            rest.push(remove(&kept, false));
        }
        done.push(rename(&self.image, image));
        if keeps {
            let takes_back = match &self.before.image {
                Was::Link(text) => Some(Op::Symlink { target: text.clone(), link: image.clone() }),
                Was::File | Was::Nothing => Some(back(image, &self.image)),
                Was::Other => None,
            };
            undo.splice(0..0, takes_back);
        }
        done.push(Op::Sync { path: self.files.base.clone() });
        if rest.is_empty() {
            done.extend(self.folder.leave());
            if !undo.is_empty() {
                undo.insert(0, self.folder.claim());
            }
        } else {
            rest.extend(self.folder.leave());
        }
        (done, undo, rest)
    }
}
