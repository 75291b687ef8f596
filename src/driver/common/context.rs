//! `context`: the CD-ROM with what a VM is told about itself.
//!
//! Source: contract 02 §4. It is made on the front-end in a directory of this run alone, so that two runs for one VM do
//! not meet, and put in place on the host by a rename.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::args::VmPlace;
use super::disk::Target;
use super::folder::Folder;
use crate::context::Cx;
use crate::driver::{Reply, TmRequest};
use crate::exec::error::OpErrorKind;
use crate::exec::host::ScriptError;
use crate::exec::op::{Op, Sparse, Value};
use crate::exec::relay;
use crate::exec::step::{Feed, Step};
use crate::report::Misuse;
use crate::tool::{coreutils, mkisofs};
use crate::transfer::{http, import};

/// The file by which a VM proves who it is; nobody but its root may read it.
const TOKEN: &str = "token.txt";

/// See the module.
pub fn context(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let last = request.args.len().saturating_sub(1);
    let id = request.number(last - 1, "VM_ID")?;
    let _: u32 = request.number(last, "DS_ID")?;
    let to = request.disk(cx, last - 2, id)?.place;
    let sources = sources(&request.args[..last - 2])?;
    Target::lock(cx, &to)?;
    let answers = cx.query(&to.host, Target::questions(&to)).with_context(|| failure(&to))?;
    let (target, _) = Target::read(&to, &answers).with_context(|| failure(&to))?;
    let base = cx.layout.datastores.join(".isofiles");
    let here = cx.here();
    let folder = Folder::of(&here, &base, &cx.ask(&here, Folder::question(&base))?)?;
    let work = Work { dir: folder.staging(id.to_string()), folder };

    // What is done.
    cx.info(format!("Generating context block device at {}", to.text));
    work.begin(cx)?;
    for source in &sources {
        work.add(cx, source)?;
    }
    let iso = work.finish(cx)?;
    send(cx, &target, &to, &iso)?;
    work.end(cx)?;
    Ok(Reply::Nothing)
}

fn failure(to: &VmPlace) -> String {
    format!("Error copying context ISO to {}", to.text)
}

/// Something that goes into the CD-ROM.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    /// A path of the front-end, or an http or https address.
    location: OsString,
    /// Its name there.
    name: OsString,
    is_url: bool,
}

/// The sources: paths, addresses, and `PATH:'NAME'` for images of a files datastore. A name with blanks comes in pieces.
fn sources(args: &[OsString]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut word = word.as_bytes().to_vec();
        while let Some(at) = word.windows(2).position(|two| two == b":'") {
            if word.len() > at + 2 && word.ends_with(b"'") {
                break;
            }
            let Some(more) = words.next() else { bail!(bad(&word, "its quote has no end")) };
            word.push(b' ');
            word.extend_from_slice(more.as_bytes());
        }
        sources.push(source(&word)?);
    }
    Ok(sources)
}

fn bad(word: &[u8], why: &str) -> Misuse {
    Misuse(format!("Bad context file {:?}: {why}", String::from_utf8_lossy(word)))
}

fn source(word: &[u8]) -> Result<Source> {
    let text = String::from_utf8_lossy(word);
    let is_url = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    let (location, name) = if is_url {
        let path = text.split(['?', '#']).next().unwrap_or_default();
        let name = path.splitn(4, '/').nth(3).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        (word.to_vec(), if name.is_empty() { "index.html".into() } else { name.as_bytes().to_vec() })
    } else {
        let colon = word.iter().position(|byte| *byte == b':');
        if let Some(at) = colon {
            let name = &word[at + 1..];
            let quoted = name.strip_prefix(b"'").and_then(|name| name.strip_suffix(b"'"));
            (word[..at].to_vec(), quoted.unwrap_or(name).to_vec())
        } else {
            let name = Path::new(OsStr::from_bytes(word)).file_name().unwrap_or_default();
            (word.to_vec(), name.as_bytes().to_vec())
        }
    };
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        bail!(bad(word, "it has no name that a file can have"));
    }
    if !is_url && !location.starts_with(b"/") {
        bail!(bad(word, "expected an absolute path, http:// or https://"));
    }
    Ok(Source { location: OsString::from_vec(location), name: OsString::from_vec(name), is_url })
}

/// The directory of this run on the front-end.
struct Work {
    folder: Folder,
    /// Holds `root/`, which becomes the CD-ROM, and the CD-ROM.
    dir: PathBuf,
}

impl Work {
    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn begin(&self, cx: &Cx<'_>) -> Result<()> {
        let mut ops = self.folder.prepare();
        ops.push(Op::MakeDir { path: self.dir.clone() });
        // It will hold secrets of the VM.
        ops.push(Op::Run(coreutils::chmod("0700", &self.dir)));
        ops.push(Op::MakeDir { path: self.root() });
        let undo = [Op::Remove { path: self.dir.clone(), tree: true, must_exist: false }];
        let step = Step::new(&self.folder.host, "Make a directory for this run", ops);
        let undo = undo.into_iter().chain(self.folder.leave());
        cx.apply(step.undo(undo).or_say("Could not create temp. dir to make context dev"))?;
        Ok(())
    }

    fn add(&self, cx: &Cx<'_>, source: &Source) -> Result<()> {
        let to = self.root().join(&source.name);
        let shown = import::shown(&source.location);
        if source.is_url {
            let failure = format!("Error downloading {shown}");
            let options = import::Options {
                decompress: false,
                http: http::Options { verify_tls: cx.settings.tls_verify(), ..http::Options::default() },
                ..import::Options::default()
            };
            let reader: Box<dyn io::Read + Send> = if cx.is_real() {
                let incoming = import::open(&source.location, &options, &cx.control);
                Box::new(incoming.with_context(|| failure.clone())?)
            } else {
                Box::new(io::empty())
            };
            let ops = [Op::Receive { path: to, sparse: Sparse::Holes }];
            let step = Step::new(&self.folder.host, format!("Download {shown}"), ops);
            cx.apply(step.feed(Feed::Stream(reader)).or_say(failure))?;
            return Ok(());
        }
        let mut ops = vec![Op::Run(coreutils::copy_into(Path::new(&source.location), &to))];
        if source.name == TOKEN {
            ops.push(Op::Run(coreutils::chmod("o=", &to)));
        }
        let failure = format!("Error copying {shown} to {}", self.root().display());
        cx.apply(Step::new(&self.folder.host, format!("Add {shown}"), ops).or_say(failure))?;
        Ok(())
    }

    /// Makes the CD-ROM and gives its path.
    fn finish(&self, cx: &Cx<'_>) -> Result<PathBuf> {
        let iso = self.dir.join("context.iso");
        let step = |cmd| {
            let what = "Make a CD-ROM of all that";
            Step::new(&self.folder.host, what, [Op::Run(cmd)]).or_say("Error creating iso fs")
        };
        match cx.apply(step(mkisofs::xorriso(&self.root(), &iso))) {
            Err(error) if is_missing(&error) => cx.apply(step(mkisofs::genisoimage(&self.root(), &iso)))?,
            result => result?,
        };
        Ok(iso)
    }

    fn end(&self, cx: &Cx<'_>) -> Result<()> {
        let mut ops = vec![Op::Remove { path: self.dir.clone(), tree: true, must_exist: false }];
        ops.extend(self.folder.leave());
        let step = Step::new(&self.folder.host, "Remove the directory of this run", ops);
        cx.apply(step.or_say("Could not delete temp. to make context dev"))?;
        Ok(())
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let failed = error.chain().find_map(|cause| cause.downcast_ref::<ScriptError>());
    failed.and_then(|e| e.failure.as_ref()).is_some_and(|e| e.kind == OpErrorKind::MissingProgram)
}

/// Brings the CD-ROM to the host and puts it in place.
fn send(cx: &Cx<'_>, target: &Target, to: &VmPlace, iso: &Path) -> Result<()> {
    let failure = failure(to);
    let here = cx.here();
    let (reader, size): (Box<dyn io::Read + Send>, Option<u64>) = if cx.is_real() {
        let stat = cx.ask(&here, Op::Stat { path: iso.to_owned(), follow: false })?.stat();
        let relay = relay::file_of(&here, iso, &cx.control).with_context(|| failure.clone())?;
        (Box::new(relay), stat.map(|stat| stat.size))
    } else {
        (Box::new(io::empty()), None)
    };
    let mut ops = target.begin();
    ops.push(Op::Receive { path: target.staged_file(), sparse: Sparse::Holes });
    let step = Step::new(&to.host, "Send it to the host", ops).undo(target.undo());
    let answers = cx.apply(step.feed(Feed::Stream(reader)).or_say(&failure))?;
    let arrived = answers.iter().find_map(Value::number);
    if cx.is_real() && arrived != size {
        bail!("{failure}: {} bytes of {} arrived", arrived.unwrap_or(0), size.unwrap_or(0));
    }
    cx.apply(target.step("Put it in its place", target.put_file()).or_say(failure))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Option<Vec<(String, String)>> {
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        let text = |text: &OsString| text.to_string_lossy().into_owned();
        Some(sources(&args).ok()?.iter().map(|s| (text(&s.location), text(&s.name))).collect())
    }

    #[test]
    fn names_are_what_a_user_called_them() {
        let one = |word: &str, location: &str, name: &str| {
            assert_eq!(list(&[word]), Some(vec![(location.to_owned(), name.to_owned())]), "{word}");
        };
        one("/v/7/context.sh", "/v/7/context.sh", "context.sh");
        one("/ds/2/4de:'initsh'", "/ds/2/4de", "initsh");
        one("/ds/2/4de:name", "/ds/2/4de", "name");
        one("/ds/2/4de:'a:b'", "/ds/2/4de", "a:b");
        one("https://h/a/b.tgz?x=/y", "https://h/a/b.tgz?x=/y", "b.tgz");
        one("http://h:80/", "http://h:80/", "index.html");
        one("http://h", "http://h", "index.html");
        let two = list(&["/ds/2/4de:'my", "long", "name'", "/v/token.txt"]).expect("sources");
        assert_eq!(two[0].1, "my long name");
        assert_eq!(two[1].1, "token.txt");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["relative", "/a:'../../x'", "/a:'..'", "/a:''", "/a:'", "/", "/a:x/y", "ftp://h/x", "-x"] {
            assert_eq!(list(&[bad]), None, "{bad}");
        }
    }
}
