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
    /// What all of it was copied from, where that goes too and is on the same machine.
    pub source: Vec<PathBuf>,
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
            let image = self.files.image.display();
            let what = if self.source.is_empty() {
                format!("Remove what was in the place of {image}")
            } else {
                format!("Remove what was in the place of {image}, and what it was copied from; this cannot be undone")
            };
            cx.after(Step::new(&self.folder.host, what, rest).best_effort());
        }
        Ok(())
    }

    /// What does it, what takes it back after any part of it, and what ends it.
    fn ops(&self) -> (Vec<Op>, Vec<Op>, Vec<Op>) {
        let (image, snapshots) = (&self.files.image, self.files.snapshots());
        let away =
            |path: &Path| self.folder.staging(with_suffix(Path::new(path.file_name().unwrap_or_default()), ".old"));
        let remove = |path: &Path, tree| Op::Remove { path: path.to_owned(), tree, must_exist: false };
        let rename = |from: &Path, to: &Path| Op::Rename { from: from.to_owned(), to: to.to_owned() };
        let back = |from: &Path, to: &Path| Op::PutBack { from: from.to_owned(), to: to.to_owned() };
        // First: a digest that outlives what it was made of makes a replica take old data for current.
        let mut done = vec![remove(&self.files.md5sum(), false)];
        let (mut undo, mut rest) = (Vec::new(), Vec::new());
        let drops = self.before.has_layers && (self.drops_layers || self.layers.is_some());
        if let Some(staged) = &self.layers {
            done.push(Op::Sync { path: staged.clone() });
            undo.push(back(&snapshots, staged));
        }
        if drops {
            let kept = away(&snapshots);
            undo.push(back(&kept, &snapshots));
            rest.push(remove(&kept, true));
            done.push(match &self.layers {
                Some(staged) => Op::Replace { from: staged.clone(), to: snapshots, kept },
                None => rename(&snapshots, &kept),
            });
        } else if let Some(staged) = &self.layers {
            done.push(rename(staged, &snapshots));
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
        let takes_back = match &self.before.image {
            Was::Nothing => Some(back(image, &self.image)),
            Was::File if keeps => Some(back(image, &self.image)),
            Was::Link(text) if keeps => Some(Op::Symlink { target: text.clone(), link: image.clone() }),
            _ => None,
        };
        undo.splice(0..0, takes_back);
        done.push(Op::Sync { path: self.files.base.clone() });
        if rest.is_empty() {
            done.extend(self.folder.leave());
            if !undo.is_empty() {
                undo.insert(0, self.folder.claim());
            }
        } else {
            rest.extend(self.folder.leave());
        }
        rest.extend(self.source.iter().map(|path| remove(path, true)));
        (done, undo, rest)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::exec::control::Control;
    use crate::exec::host::Host;
    use crate::exec::host::local::Local;
    use crate::exec::interpret::Io;
    use crate::exec::op::Script;
    use crate::exec::process::Programs;

    /// What an image is: nothing, a file, or a link to a layer.
    const KINDS: [&str; 3] = ["nothing", "file", "link"];

    /// Makes an image and its folder of layers, all of which say `text`.
    fn make(image: &Path, folder: &Path, (kind, layers): (&str, bool), text: &str) {
        if layers {
            fs::create_dir(folder).expect("makes a folder");
            fs::write(folder.join(text), text).expect("writes a layer");
        }
        match kind {
            "file" => fs::write(image, text).expect("writes the image"),
            "link" => symlink(Path::new("abc.snap").join(text), image).expect("links the image"),
            _ => {}
        }
    }

    /// All that is below a directory, with contents.
    fn seen(dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(dir).expect("is there").map(|entry| entry.expect("is there").path()) {
            let is_dir = entry.is_dir() && !entry.is_symlink();
            let what = fs::read_link(&entry).map_or_else(
                |_| if is_dir { seen(&entry).join(", ") } else { fs::read_to_string(&entry).unwrap_or_default() },
                |to| format!("to {}", to.display()),
            );
            lines.push(format!("{}: {what}", entry.file_name().unwrap_or_default().display()));
        }
        lines.sort();
        lines
    }

    /// Does the first `count` operations of a swap, and takes them back or, where all are done, ends it.
    fn after(was: (&str, bool), new: (&str, bool), count: usize) -> (Vec<String>, Vec<String>, usize) {
        let base = tempfile::tempdir().expect("a directory");
        let host: Arc<dyn Host> = Arc::new(Local::new(Programs::default()));
        let folder = Folder::of(&host, base.path(), &Value::Absent).expect("proc");
        let run = |ops: Vec<Op>| {
            let control = Control::only_within(Duration::from_secs(60));
            host.run(&Script::new(ops), Io::default(), &control).expect("runs")
        };
        let files = ImageFiles::new(base.path(), &base.path().join("abc")).expect("an image");
        make(&files.image, &files.snapshots(), was, "old");
        fs::write(base.path().join("source"), "x").expect("writes what it is copied from");
        let before = seen(base.path());
        let now = Before::read(&run(Before::questions(&files).into())).expect("answers");
        run(folder.prepare());
        let (image, layers) = (folder.staging("abc"), folder.staging("abc.snap"));
        make(&image, &layers, new, "new");
        let swap = Swap {
            folder: &folder,
            files: &files,
            before: &now,
            drops_layers: true,
            layers: new.1.then(|| layers.clone()),
            image: image.clone(),
            source: vec![base.path().join("source")],
        };
        let (mut done, undo, rest) = swap.ops();
        let all = done.len();
        done.truncate(count);
        run(done);
        if count < all {
            run(undo);
            // What the step before takes back.
            let remove = |path: &Path| Op::Remove { path: path.to_owned(), tree: true, must_exist: false };
            run([remove(&image), remove(&layers)].into_iter().chain(folder.leave()).collect());
        } else {
            run(rest);
        }
        (before, seen(base.path()), all)
    }

    #[test]
    fn whatever_it_comes_to_it_can_be_taken_back() {
        for was in KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            for new in [("file", false), ("file", true), ("link", true)] {
                let (_, made, all) = after(was, new, usize::MAX);
                let image = if new.0 == "file" { "abc: new" } else { "abc: to abc.snap/new" };
                let wanted: Vec<&str> = new.1.then_some("abc.snap: new: new").into_iter().chain([image]).collect();
                assert_eq!(made, wanted, "{was:?} became {new:?}");
                // Where the name alone changes, there is nothing to take back once it has changed.
                let keeps = was.1 || new.1 || was.0 == "nothing";
                for count in (0..all).take_while(|count| keeps || *count < 2) {
                    let (before, left, _) = after(was, new, count);
                    assert_eq!(left, before, "{was:?} to {new:?}, after {count} operations");
                }
            }
        }
    }
}
