//! A real disk in a temporary folder, operated on by us and by upstream's commands, and what a guest sees of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, anyhow};
use onestore::chains::{self, Phase, Query, Staging};
use onestore::exec::cmd::Cmd;
use onestore::exec::control::Control;
use onestore::exec::interpret::{self, Io};
use onestore::exec::op::{Op, Script, Value};
use onestore::exec::posix;
use onestore::exec::process::{self, ProcessIo, Programs, Spawn, Stdin};
use onestore::image::chain::{Chain, Manner, Names, Plan, Refusal, Style};

/// Blocks of a disk: one cluster each.
pub const BLOCKS: usize = 16;
const BLOCK: usize = 64 << 10;

/// Who runs our scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Process,
    Shell,
}

/// How the disk came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Clone,
    Standalone,
    Persistent,
    Local,
    Plain,
    Raw,
}

pub const STARTS: [Start; 6] =
    [Start::Clone, Start::Standalone, Start::Persistent, Start::Local, Start::Plain, Start::Raw];

pub fn tool(program: &str, args: &[&str], cwd: &Path) {
    let out = Command::new(program).args(args).current_dir(cwd).stdin(Stdio::null()).output().expect("runs");
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain")
}

pub struct Disk {
    _temp: tempfile::TempDir,
    pub root: PathBuf,
    pub start: Start,
    pub names: Names,
    pub by: By,
    pub current: Vec<u8>,
    pub snapshots: BTreeMap<u32, Vec<u8>>,
    pub next: u32,
}

impl Disk {
    /// Made by upstream's commands (contract 02 §1, §5).
    pub fn new(start: Start, by: By) -> Self {
        let temp = tempfile::tempdir().expect("a folder");
        let root = temp.path().canonicalize().expect("real");
        let (vm, ds) = (root.join("0/7"), root.join("1"));
        fs::create_dir_all(&vm).expect("mkdir");
        fs::create_dir_all(&ds).expect("mkdir");
        let (disk, image) = (vm.join("disk.0"), ds.join("abc"));
        let folder = vm.join("disk.0.snap");
        let format = if start == Start::Raw { "raw" } else { "qcow2" };
        tool("qemu-img", &["create", "-q", "-f", format, text(&image), "1M"], &ds);
        let write = format!("write -q -P 7 0 {}", BLOCKS * BLOCK);
        tool("qemu-io", &["-f", format, "-c", &write, text(&image)], &ds);
        let layered = |link: &str| {
            fs::create_dir(&folder).expect("mkdir");
            symlink(link, &disk).expect("ln");
        };
        let convert = |to: &Path| tool("qemu-img", &["convert", "-q", "-O", "qcow2", text(&image), text(to)], &vm);
        match start {
            Start::Clone => {
                layered("disk.0.snap/0");
                symlink(".", folder.join("disk.0.snap")).expect("ln");
                let to = folder.join("0");
                let create = ["create", "-q", "-o", "backing_fmt=qcow2", "-b", text(&image), "-f", "qcow2", text(&to)];
                tool("qemu-img", &create, &vm);
            }
            Start::Standalone => {
                layered("disk.0.snap/0");
                symlink(".", folder.join("disk.0.snap")).expect("ln");
                convert(&folder.join("0"));
            }
            Start::Local => {
                layered("disk.0.snap/0");
                convert(&folder.join("0"));
            }
            Start::Plain => convert(&disk),
            Start::Raw => drop(fs::copy(&image, &disk).expect("cp")),
            Start::Persistent => {
                let snaps = ds.join("abc.snap");
                fs::create_dir(&snaps).expect("mkdir");
                symlink(".", snaps.join("abc.snap")).expect("ln");
                symlink(&image, snaps.join("0")).expect("ln");
                symlink(snaps.join("0"), &disk).expect("ln");
            }
        }
        let names = if start == Start::Persistent { Names { disk, origin: image } } else { Names::own(disk) };
        let snapshots = BTreeMap::new();
        Self { _temp: temp, root, start, names, by, current: vec![7; BLOCKS], snapshots, next: 0 }
    }

    fn style(&self) -> Style {
        match self.start {
            Start::Raw => Style::Copies,
            Start::Local => Style::Layers(Manner::Bare),
            Start::Persistent => Style::Layers(Manner::Absolute),
            _ => Style::Layers(Manner::Relative),
        }
    }

    pub fn ask(&self, ops: Vec<Op>) -> Result<Vec<Value>> {
        let script = Script::new(ops);
        let control = Control::only_within(Duration::from_secs(120));
        if self.by == By::Process {
            return Ok(interpret::run(&script, Io::default(), &Programs::default(), &control)?);
        }
        let (command, line) = posix::delivery(&script);
        let spawn = Spawn::of(&Cmd::new("sh").arg("-c").arg(command), &Programs::default())?;
        let mut input = line.as_slice();
        let io = ProcessIo { stdin: Stdin::Stream(&mut input), ..ProcessIo::default() };
        let done = process::run(&spawn, io, &control).map_err(|e| anyhow!("{e}: {}", e.stderr))?;
        posix::parse(&script, &done.stdout).map_err(|e| anyhow!("{e}"))
    }

    /// How many times the host was asked, and the chain.
    pub fn read(&self) -> (usize, Chain, Vec<std::ffi::OsString>) {
        let raw = self.start == Start::Raw;
        let images = vec![self.root.join("1/abc")];
        let query = Query { names: self.names.clone(), style: self.style(), raw, images };
        let mut trips = 0;
        let mut ask = |ops| {
            trips += 1;
            self.ask(ops)
        };
        let reading = chains::read(&query, &mut ask).expect("it can be read");
        (trips, Chain::of(&reading.facts), reading.staged.unwrap_or_default())
    }

    pub fn chain(&self) -> Chain {
        self.read().1
    }

    /// All operations of a plan.
    pub fn ops(&self, plan: &Plan, staged: &[std::ffi::OsString]) -> Vec<Op> {
        let staging = Staging::of(&self.names).expect("proc");
        let mut ops = staging.prepare(staged);
        for phase in chains::phases(plan, &staging) {
            match phase {
                Phase::Files(files) => ops.extend(files.ops()),
                Phase::Domain(step) => panic!("no domain is there: {step}"),
            }
        }
        ops.extend(staging.leave());
        ops
    }

    /// Plans and does something; killed after `kill` operations if there are as many.
    pub fn run(&self, plan: impl Fn(&Chain) -> Result<Plan, Refusal>, kill: Option<usize>) {
        let (_, chain, staged) = self.read();
        let plan = plan(&chain).unwrap_or_else(|refusal| panic!("refused: {refusal}"));
        let mut ops = self.ops(&plan, &staged);
        if let Some(kill) = kill {
            ops.truncate(kill);
        }
        self.ask(ops).unwrap_or_else(|error| panic!("{error:#}\n{plan}"));
    }

    pub fn format(&self) -> &'static str {
        if self.start == Start::Raw { "raw" } else { "qcow2" }
    }

    /// The path by which a VM opens the disk: with bare names only the real one.
    pub fn opened(&self) -> PathBuf {
        match self.start {
            Start::Local => self.names.disk.canonicalize().expect("there"),
            _ => self.names.disk.clone(),
        }
    }

    pub fn write(&mut self, block: usize, byte: u8) {
        let command = format!("write -q -P {byte} {} {BLOCK}", block * BLOCK);
        tool("qemu-io", &["-f", self.format(), "-c", &command, text(&self.opened())], &self.root);
        self.current[block] = byte;
    }

    fn seen(&self, path: &Path) -> Vec<u8> {
        let out = self.root.join("seen");
        tool("qemu-img", &["convert", "-q", "-f", self.format(), "-O", "raw", text(path), text(&out)], &self.root);
        let bytes = fs::read(&out).expect("readable");
        assert_eq!(bytes.len(), BLOCKS * BLOCK);
        let block = |block: &[u8]| {
            assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
            block[0]
        };
        bytes.chunks(BLOCK).map(block).collect()
    }

    /// The guest and every snapshot see what they should, nothing is wrong, and nothing is left over.
    pub fn check(&self, when: &str) {
        assert_eq!(self.seen(&self.opened()), self.current, "the disk, {when}");
        let chain = self.chain();
        let findings: Vec<String> = chain.findings().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:?}, {when}");
        for (id, content) in &self.snapshots {
            let source = chain.source(Some(*id)).unwrap_or_else(|refusal| panic!("{refusal}, {when}"));
            assert_eq!(self.seen(&source.path), *content, "snapshot {id}, {when}");
        }
        let kept: Vec<u32> = self.snapshots.keys().copied().collect();
        assert_eq!(chain.snapshots(), kept, "{when}");
        assert!(!self.root.join("0/7/.onestore").exists(), "staging is left, {when}");
    }

    // --- upstream's commands (contract 02 §5) ---

    fn link(&self) -> String {
        text(&fs::read_link(&self.names.disk).expect("a link")).to_owned()
    }

    /// What stands before a number in names of siblings.
    fn prefix(&self) -> String {
        match self.start {
            Start::Local => String::new(),
            Start::Persistent => format!("{}/", text(&self.names.folder())),
            _ => "disk.0.snap/".to_owned(),
        }
    }

    pub fn upstream_create(&self, k: u32) {
        let folder = self.names.folder();
        let old = match self.start {
            Start::Local => self.link().rsplit('/').next().expect("a name").to_owned(),
            _ => self.link(),
        };
        let new = folder.join((k + 1).to_string());
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "backing_fmt=qcow2", "-b", &old, text(&new)], &folder);
        let link =
            if self.start == Start::Persistent { text(&new).to_owned() } else { format!("disk.0.snap/{}", k + 1) };
        tool("ln", &["-sf", &link, text(&self.names.disk)], &folder);
    }

    /// The file of a snapshot as upstream finds it.
    fn upstream_file(&self, k: u32) -> String {
        let marker = self.names.folder().join(format!("{k}.current"));
        match fs::read_to_string(marker) {
            Ok(text) => text.trim().rsplit('/').next().expect("a name").to_owned(),
            Err(_) => k.to_string(),
        }
    }

    pub fn upstream_revert(&self, k: u32) {
        let folder = self.names.folder();
        let short = format!("{}{}", self.prefix(), self.upstream_file(k));
        let active = self.names.disk.canonicalize().expect("there");
        let create = ["create", "-q", "-f", "qcow2", "-o", "backing_fmt=qcow2", "-b", &short, text(&active)];
        tool("qemu-img", &create, &folder);
    }

    fn upstream_files(&self) -> BTreeMap<String, Option<String>> {
        let folder = self.names.folder();
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let regular = fs::symlink_metadata(&path).expect("there").is_file();
            if regular && path.extension().is_none() {
                let out =
                    Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(&path).output().expect("runs");
                let info: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
                let backing = info.get("backing-filename").and_then(|name| name.as_str());
                let name = |text: &str| text.rsplit('/').next().expect("a name").to_owned();
                files.insert(name(text(&path)), backing.map(str::to_owned));
            }
        }
        files
    }

    fn upstream_children(&self, data: &str) -> Vec<String> {
        let files = self.upstream_files();
        let on_it =
            |backing: &Option<String>| backing.as_ref().is_some_and(|name| name.rsplit('/').next() == Some(data));
        files.iter().filter(|(_, backing)| on_it(backing)).map(|(name, _)| name.clone()).collect()
    }

    /// Its powered-off delete stores the absolute path. Answers whether it could do it: it handles one child.
    pub fn upstream_delete(&self, k: u32) -> bool {
        let (folder, data) = (self.names.folder(), self.upstream_file(k));
        let children = self.upstream_children(&data);
        if children.len() > 1 || fs::symlink_metadata(folder.join(&data)).expect("there").is_symlink() {
            return false;
        }
        let absolute = |name: &str| {
            if name.starts_with('/') {
                return name.to_owned();
            }
            text(&folder.join(name.rsplit('/').next().expect("a name"))).to_owned()
        };
        let base = self.upstream_files()[&data].as_deref().map(absolute).unwrap_or_default();
        for child in children {
            tool("qemu-img", &["rebase", "-q", "-U", "-F", "qcow2", "-b", &base, &child], &folder);
        }
        fs::remove_file(folder.join(&data)).expect("rm");
        drop(fs::remove_file(folder.join(format!("{k}.current"))));
        true
    }

    /// Its live delete of a snapshot in the middle, with the domain's part done by `qemu-img`: the child is merged into the
    /// snapshot's file, `.current` says so. Answers whether it could do it.
    pub fn upstream_merge(&self, k: u32) -> bool {
        let (folder, data) = (self.names.folder(), self.upstream_file(k));
        let active = self.names.disk.canonicalize().expect("there");
        let children = self.upstream_children(&data);
        let [child] = children.as_slice() else { return false };
        let above = self.upstream_children(child);
        if folder.join(child) == active || above.len() != 1 {
            return false;
        }
        tool("qemu-img", &["commit", "-q", "-f", "qcow2", "-d", child], &folder);
        let base = format!("{}{data}", self.prefix());
        tool("qemu-img", &["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &base, &above[0]], &folder);
        let owner = (0..self.next).find(|id| self.snapshots.contains_key(id) && self.upstream_file(*id) == *child);
        let owner = owner.expect("a snapshot");
        fs::write(folder.join(format!("{owner}.current")), format!("{}\n", text(&folder.join(&data)))).expect("write");
        fs::remove_file(folder.join(child)).expect("rm");
        if owner != k {
            drop(fs::remove_file(folder.join(format!("{k}.current"))));
        }
        true
    }
}
