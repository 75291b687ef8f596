//! The cache of images on a host: a second VM of an image is made from a file that is there already.
//!
//! Source: contract 02 §11. The directory is the one that upstream's `tm_cache.rb` keeps, with its names, its YAML and its
//! locks, so that both can use it at a time: `<image>`, `<image>-metadata`, `<image>-lock`, `.lock`. Ours is worked from the
//! front-end: it needs no program on the host and no trust between hosts.
//!
//! An image is valid when oned's `MODTIME` is the one that it was fetched with, and its size is the image's. A cache is
//! never the reason that a VM does not start: whoever asks takes the image from where it comes from instead.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use super::metadata::{self, Metadata};
use crate::context::Cx;
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::driver::misuse;
use crate::exec::cmd::Secret;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Node, Op, Space, Sparse, Stat, Value};
use crate::exec::staging::{self, Owner};
use crate::exec::step::Step;
use crate::location::normalize;
use crate::payload::Datastore;
use crate::report::Misuse;

/// Where it is unless the datastore says otherwise.
const PATH: &str = "/var/lib/one/cache";

/// Per cent of the file system that it may take, unless the datastore says otherwise.
const PERCENT: u64 = 10;

/// Seconds for which an image that was asked for stays, unless the datastore says otherwise.
const MIN_AGE: u64 = 900;

/// Bytes of a metadata file that are read.
const METADATA: u64 = 4096;

/// How long an action waits for another one of this front-end that fetches the same image.
const FETCH_WAIT: Duration = Duration::from_secs(3600);

/// Seconds that a step waits for whoever fetches the same image.
const LOCK_WAIT: u64 = 600;

/// Seconds that making room waits for whoever uses the image that is to go.
const EVICT_WAIT: u64 = 5;

/// The cache of a datastore's images, the same on every host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    path: PathBuf,
    percent: u64,
    min_age: Duration,
    /// Hosts whose cache is asked before the front-end.
    peers: Vec<String>,
}

/// The image that is wanted.
pub struct Wanted<'a> {
    /// Its file name in the datastore, which is its name in the cache.
    pub name: &'a str,
    /// oned's `MODTIME`.
    pub modtime: String,
    /// Where it comes from.
    pub origin: &'a Arc<dyn Host>,
    /// Its path there.
    pub path: &'a Path,
    /// Its size there, in bytes.
    pub size: u64,
}

/// An image in the cache of a host.
#[derive(Debug)]
pub struct Cached {
    /// Where it is on the host.
    pub path: PathBuf,
    stat: Stat,
}

/// What a host says of its cache.
struct Seen {
    hit: Option<Cached>,
    space: Space,
    /// Bytes that everything in it has together, as `du -sb` counts, but for what runs have left that are dead.
    used: u64,
    /// Images by name, with their sizes. What neither we nor upstream have put there is none.
    images: Vec<(String, u64)>,
    /// What runs have left that are dead, and the bytes that it occupies.
    dead: Vec<PathBuf>,
    dead_bytes: u64,
    staging: Value,
}

impl Cache {
    /// The cache of a datastore's images, if it has one.
    ///
    /// # Errors
    /// Attributes that mean nothing.
    pub fn of(datastore: &Datastore) -> Result<Option<Self>> {
        let template = &datastore.template;
        if !template.cache_enable.is_yes_any_case() {
            return Ok(None);
        }
        let path = normalize(Path::new(template.cache_path.or(PATH)));
        let up = path.components().any(|part| part == std::path::Component::ParentDir);
        if !path.is_absolute() || path.parent().is_none() || up {
            bail!(Misuse(format!("Bad CACHE_PATH {}: it has to be an absolute path below /", path.display())));
        }
        let percent = template.cache_max_size.get().map_err(misuse)?.unwrap_or(PERCENT);
        if percent > 100 {
            bail!(Misuse(format!("Bad CACHE_MAX_SIZE {percent}: it has to be 0 to 100 per cent of the file system")));
        }
        let min_age = template.cache_min_age.get().map_err(misuse)?.unwrap_or(MIN_AGE);
        let peers = template.cache_upstreams.items().map(str::to_owned).collect();
        Ok(Some(Self { path, percent, min_age: Duration::from_secs(min_age), peers }))
    }

    /// The image in the cache of `host`, fetched from the cache of a peer or from where it comes from if it is not there;
    /// nothing where it does not fit.
    ///
    /// # Errors
    /// What went wrong; nothing is left of it but what was valid before.
    pub fn get(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, wanted: &Wanted<'_>) -> Result<Option<Cached>> {
        self.get_by_way_of(cx, host, wanted, &self.peers)
    }

    fn get_by_way_of(
        &self,
        cx: &Cx<'_>,
        host: &Arc<dyn Host>,
        wanted: &Wanted<'_>,
        peers: &[String],
    ) -> Result<Option<Cached>> {
        let seen = self.look(cx, host, wanted)?;
        if seen.hit.is_some() {
            cx.info(format!("{} is in the cache of {}", wanted.path.display(), host.name()));
            // A run that was killed right behind the image's name comes again, and finds it here.
            if let Some(step) = Folder::of(host, &self.path, &seen.staging)?.tidy(&seen.staging) {
                cx.apply(step)?;
            }
            return Ok(seen.hit);
        }
        // One action fetches it, the others wait and find it.
        let _held = cx.hold(&format!("onestore-cache-{}-{}", host.name(), wanted.name), FETCH_WAIT)?;
        let seen = self.look(cx, host, wanted)?;
        if seen.hit.is_some() {
            return Ok(seen.hit);
        }
        let Some(evicted) = self.room(cx, host, wanted, &seen)? else {
            cx.info(format!("{} does not fit into the cache of {}", wanted.path.display(), host.name()));
            return Ok(None);
        };
        if !seen.dead.is_empty() && wanted.size > seen.space.free_mib << 20 {
            // Also what could be gone on with: it is in the way now.
            let remove = |path: &PathBuf| Op::Remove { path: path.clone(), tree: true, must_exist: false };
            let what = "Make room in the cache: what runs have left that are dead goes";
            cx.apply(Step::new(host, what, seen.dead.iter().map(remove)))?;
        }
        for name in &evicted {
            self.evict(cx, host, name)?;
        }
        for peer in peers.iter().filter(|peer| *peer != host.name()) {
            match cx.host(peer).and_then(|peer| Ok((self.get_by_way_of(cx, &peer, wanted, &[])?, peer))) {
                Ok((Some(there), peer)) => return self.fetch(cx, (&peer, &there.path), host, wanted, &seen).map(Some),
                Ok((None, _)) => {}
                Err(error) => {
                    cx.control.check()?;
                    cx.warn(format!("The cache of {peer} is of no use: {error:#}"));
                }
            }
        }
        self.fetch(cx, (wanted.origin, wanted.path), host, wanted, &seen).map(Some)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn metadata(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}-metadata"))
    }

    /// The lock under which upstream fetches an image.
    fn lock(&self, name: &str, wait_seconds: u64) -> Op {
        Op::Lock { name: self.path.join(format!("{name}-lock")).to_string_lossy().into_owned(), wait_seconds }
    }

    /// What tells whether the image is valid.
    fn questions(&self, name: &str) -> [Op; 2] {
        [Op::Head { path: self.metadata(name), len: METADATA }, Op::Stat { path: self.file(name), follow: false }]
    }

    fn hit(&self, wanted: &Wanted<'_>, metadata: &Value, stat: &Value) -> Option<Cached> {
        let metadata = Metadata::parse(&metadata.text())?;
        let stat = stat.stat().filter(|stat| stat.kind == FileKind::File && stat.size == wanted.size)?;
        (metadata.modtime == wanted.modtime).then(|| Cached { path: self.file(wanted.name), stat })
    }

    fn look(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, wanted: &Wanted<'_>) -> Result<Seen> {
        let there = cx.ask(host, Op::Stat { path: self.path.clone(), follow: true })?.stat();
        // Where there is no cache yet its file system is that of the directory which it will be made in.
        let base = if there.is_some() { self.path.as_path() } else { Path::new("/") };
        let [metadata, stat] = self.questions(wanted.name);
        let space = Op::Space { path: base.to_owned() };
        let tree = Op::Tree { path: self.path.clone(), depth: 2 };
        let answers = cx.query(host, [metadata, stat, space, tree, Folder::question(&self.path)])?;
        let [metadata, stat, Value::Space(space), tree, staging] = answers.as_slice() else {
            bail!("The host did not answer all questions")
        };
        let nodes = if let Value::Tree(nodes) = tree { nodes.as_slice() } else { &[] };
        let sizes = |node: &Node| (node.path.to_str().map(str::to_owned), node.size);
        let images = nodes.iter().filter(|node| node.kind == FileKind::File).map(sizes);
        let named = |name: String| nodes.iter().any(|node| node.path.as_os_str() == name.as_str());
        let ours =
            |name: &String| is_image(name) && ["lock", "metadata"].iter().any(|end| named(format!("{name}-{end}")));
        let images = images.filter_map(|(name, size)| Some((name.filter(ours)?, size)));
        let me = Owner::me().context("Cannot tell this process from others")?;
        let is_dead = |node: &Node| {
            let mut parts = node.path.iter();
            parts.next() == Some(staging::DIR.as_ref())
                && parts.next().is_some_and(|name| staging::is_abandoned(name, &me))
        };
        Ok(Seen {
            hit: self.hit(wanted, metadata, stat),
            space: *space,
            used: nodes.iter().filter(|node| !is_dead(node)).map(|node| node.size).fold(0, u64::saturating_add),
            images: images.collect(),
            dead: nodes.iter().filter(|node| is_dead(node)).map(|node| self.path.join(&node.path)).collect(),
            dead_bytes: nodes
                .iter()
                .filter(|node| is_dead(node))
                .map(|node| node.allocated)
                .fold(0, u64::saturating_add),
            staging: staging.clone(),
        })
    }

    /// The images that have to go for the wanted one, least recently asked for first; nothing where it cannot fit.
    fn room(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, wanted: &Wanted<'_>, seen: &Seen) -> Result<Option<Vec<String>>> {
        let limit = (seen.space.total_mib << 20) / 100 * self.percent;
        // What is there of the image itself is replaced.
        let own = seen.images.iter().find(|(name, _)| name == wanted.name).map_or(0, |(_, size)| *size);
        let free = limit
            .saturating_sub(seen.used.saturating_sub(own))
            .min((seen.space.free_mib << 20).saturating_add(seen.dead_bytes));
        if wanted.size > limit {
            return Ok(None);
        }
        if wanted.size <= free {
            return Ok(Some(Vec::new()));
        }
        let others: Vec<&(String, u64)> = seen.images.iter().filter(|(name, _)| name != wanted.name).collect();
        let questions = others.iter().map(|(name, _)| Op::Head { path: self.metadata(name), len: METADATA });
        let answers = cx.query(host, questions)?;
        let known = others.iter().zip(answers).map(|((name, size), answer)| Candidate {
            name: name.clone(),
            size: *size,
            // Of use to nobody, and of no age: upstream leaves these for ever.
            last_used: Metadata::parse(&answer.text()).map_or(0, |metadata| metadata.last_used),
        });
        Ok(least_used(known.collect(), wanted.size - free, self.min_age, SystemTime::now()))
    }

    fn evict(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, name: &str) -> Result<()> {
        let remove = |path| Op::Remove { path, tree: false, must_exist: false };
        let all = Op::Lock { name: self.path.join(".lock").to_string_lossy().into_owned(), wait_seconds: LOCK_WAIT };
        // The lock file stays: without it two could hold two locks of one name.
        let ops = [all, self.lock(name, EVICT_WAIT), remove(self.metadata(name)), remove(self.file(name))];
        cx.apply(Step::new(host, format!("Make room in the cache: {name} goes"), ops)).map(drop)
    }

    /// Brings the image into the cache of `host`.
    fn fetch(
        &self,
        cx: &Cx<'_>,
        (from, path): (&Arc<dyn Host>, &Path),
        host: &Arc<dyn Host>,
        wanted: &Wanted<'_>,
        seen: &Seen,
    ) -> Result<Cached> {
        let failure = format!("Cannot cache {} on {}", path.display(), host.name());
        let folder = Folder::of(host, &self.path, &seen.staging)?;
        let staged = folder.staging(wanted.name);
        let fetched = (|| -> Result<Option<Stat>> {
            cx.apply(folder.prepared_step("Make the cache ready", folder.prepare()).or_say(&failure))?;
            let load = Load { from: path.to_owned(), to: staged.clone() };
            carry(cx, &Journey { from, to: host, sparse: Sparse::Holes, address: None }, &[load], &failure)?;
            let content = Secret::new(Metadata::now(&wanted.modtime).to_string());
            let mut ops = vec![
                self.lock(wanted.name, LOCK_WAIT),
                Op::Rename { from: staged.clone(), to: self.file(wanted.name) },
                Op::Write { path: self.metadata(wanted.name), content, mode: 0o644 },
                Op::Stat { path: self.file(wanted.name), follow: false },
            ];
            ops.extend(folder.leave());
            let what = format!("Give it its name {}", self.file(wanted.name).display());
            let values = cx.apply(Step::new(host, what, ops).or_say(&failure))?;
            Ok(values.get(3).and_then(Value::stat))
        })();
        let stat = match fetched {
            Ok(stat) => stat,
            Err(error) => {
                // The action may go on without the cache: then nothing else would clear this away.
                let names = cx.ask(host, Folder::question(&self.path)).ok();
                let names = if let Some(Value::Names(names)) = names { names } else { Vec::new() };
                let mine = names.into_iter().filter(|name| staging::owner_of(name).as_ref() == Some(folder.owner()));
                let mine = mine.map(|name| staging::dir(&self.path).join(name));
                let remove = |path| Op::Remove { path, tree: false, must_exist: false };
                let ops: Vec<Op> = mine.chain([staged]).map(remove).chain(folder.leave()).collect();
                cx.apply(Step::new(host, "Clear away what there is of it", ops).best_effort()).ok();
                return Err(error);
            }
        };
        let planned = Stat { kind: FileKind::File, size: wanted.size, mode: 0o644, dev: 0, ino: 0 };
        match stat.or((!cx.is_real()).then_some(planned)) {
            Some(stat) if stat.size == wanted.size => Ok(Cached { path: self.file(wanted.name), stat }),
            _ => bail!("{failure}: it is not what was fetched"),
        }
    }

    /// Says that the image was used, if it still is what was found: then what was copied of it is right.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn used(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, wanted: &Wanted<'_>, cached: &Cached) -> Result<bool> {
        if !cx.is_real() {
            return Ok(true);
        }
        let lock = self.lock(wanted.name, LOCK_WAIT);
        let answers = cx.query(host, [lock.clone()].into_iter().chain(self.questions(wanted.name)))?;
        let [_, metadata, stat] = answers.as_slice() else { bail!("The host did not answer all questions") };
        let now = self.hit(wanted, metadata, stat);
        let same = now.is_some_and(|now| (now.stat.dev, now.stat.ino) == (cached.stat.dev, cached.stat.ino));
        if same && let Err(error) = self.note_use(cx, host, wanted, cached) {
            cx.control.check()?;
            cx.warn(format!("{error:#}"));
        }
        Ok(same)
    }

    /// Writes down that the image was used now.
    fn note_use(&self, cx: &Cx<'_>, host: &Arc<dyn Host>, wanted: &Wanted<'_>, cached: &Cached) -> Result<()> {
        let lock = self.lock(wanted.name, LOCK_WAIT);
        let path = self.metadata(wanted.name);
        let content = Secret::new(Metadata::now(&wanted.modtime).to_string());
        let write = Op::Write { path: path.clone(), content, mode: 0o644 };
        let question = Op::Stat { path: self.file(wanted.name), follow: false };
        let what = "Note that the cached image was used";
        let values = cx.apply(Step::new(host, what, [lock.clone(), write, question]))?;
        let now = values.get(2).and_then(Value::stat);
        if now.is_none_or(|now| (now.dev, now.ino) != (cached.stat.dev, cached.stat.ino)) {
            // Another one came in between: this is not known of it.
            let remove = Op::Remove { path, tree: false, must_exist: false };
            cx.apply(Step::new(host, "What was noted is of an image that is gone", [lock, remove]))?;
        }
        Ok(())
    }
}

/// Whether a file of the cache's directory is an image.
fn is_image(name: &str) -> bool {
    !name.starts_with('.') && !name.contains('/') && !name.ends_with("-metadata") && !name.ends_with("-lock")
}

/// An image that may have to go.
struct Candidate {
    name: String,
    size: u64,
    /// In seconds since 1970.
    last_used: u64,
}

/// The least recently used images that are older than `min_age` and make `need` bytes together; nothing where they do not.
fn least_used(mut all: Vec<Candidate>, need: u64, min_age: Duration, now: SystemTime) -> Option<Vec<String>> {
    all.retain(|one| metadata::is_older(one.last_used, min_age, now));
    all.sort_by_key(|one| one.last_used);
    let mut gone = Vec::new();
    let mut bytes: u64 = 0;
    for one in all {
        bytes = bytes.saturating_add(one.size);
        gone.push(one.name);
        if bytes >= need {
            return Some(gone);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::payload;

    fn cache(attributes: &str) -> Result<Option<Cache>> {
        let xml = format!("<DATASTORE><ID>1</ID><TEMPLATE>{attributes}</TEMPLATE></DATASTORE>");
        Cache::of(&payload::parse(&xml).expect("a datastore"))
    }

    #[test]
    fn attributes_are_read_as_upstream_reads_them() {
        assert_eq!(cache("").expect("none"), None);
        assert_eq!(cache("<CACHE_ENABLE>no</CACHE_ENABLE>").expect("none"), None);
        let plain = cache("<CACHE_ENABLE>Yes</CACHE_ENABLE>").expect("reads").expect("a cache");
        assert_eq!((plain.path.as_path(), plain.percent, plain.min_age.as_secs()), (Path::new(PATH), 10, 900));
        let all = cache(
            "<CACHE_ENABLE>YES</CACHE_ENABLE><CACHE_PATH>/c//x/</CACHE_PATH><CACHE_MAX_SIZE>0</CACHE_MAX_SIZE>\
             <CACHE_MIN_AGE>0</CACHE_MIN_AGE><CACHE_UPSTREAMS>a, b,,</CACHE_UPSTREAMS>",
        );
        let all = all.expect("reads").expect("a cache");
        assert_eq!((all.path.as_path(), all.percent, all.peers), (Path::new("/c/x"), 0, vec!["a".into(), "b".into()]));
        for bad in ["<CACHE_PATH>c</CACHE_PATH>", "<CACHE_PATH>/</CACHE_PATH>", "<CACHE_MAX_SIZE>101</CACHE_MAX_SIZE>"]
        {
            assert!(cache(&format!("<CACHE_ENABLE>YES</CACHE_ENABLE>{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_least_recently_used_go_and_no_more_than_needed() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000);
        let one = |name: &str, size, last_used| Candidate { name: name.into(), size, last_used };
        let all = || vec![one("new", 9, 9_950), one("old", 4, 100), one("older", 4, 50), one("mid", 4, 5_000)];
        let gone = |need| least_used(all(), need, Duration::from_secs(900), now);
        assert_eq!(gone(4), Some(vec!["older".into()]));
        assert_eq!(gone(5), Some(vec!["older".into(), "old".into()]));
        assert_eq!(gone(12), Some(vec!["older".into(), "old".into(), "mid".into()]));
        // What was asked for just now stays, also if then nothing fits.
        assert_eq!(gone(13), None);
    }

    #[test]
    fn only_images_are_images() {
        assert!(is_image("abc"));
        for other in ["abc-metadata", "abc-lock", ".lock", ".onestore", ".onestore/x"] {
            assert!(!is_image(other), "{other}");
        }
    }
}
