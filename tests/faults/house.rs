//! A front-end of its own in a temporary folder, and calls of the real binary in it as oned makes them: by links in a
//! remotes tree, the document as Base64 on standard input.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine as _;
use md5::{Digest, Md5};
use tempfile::TempDir;

/// A front-end with the datastore `base`.
pub struct House {
    pub root: TempDir,
    /// The directory of the datastore.
    pub base: PathBuf,
    /// Environment on top of the usual.
    pub env: Vec<(String, String)>,
    /// Words before the entry: `strace …`, `setpriv …`.
    pub wrapper: Vec<String>,
}

/// What a call came to.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Ran {
    /// Its standard error as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The lines of standard error that oned takes for the message to the user.
    pub fn plain(&self) -> Vec<String> {
        let text = self.text();
        let log = |line: &&str| ["ERROR: ", "INFO: ", "WARN: ", "DEBUG: "].iter().any(|start| line.starts_with(start));
        text.lines().filter(|line| !log(line)).map(str::to_owned).collect()
    }

    /// The reply, of a call that has to succeed with a clean standard error.
    #[track_caller]
    pub fn reply(&self, about: &str) -> String {
        assert!(self.status.success(), "{about}: {:?}: {}", self.status, self.text());
        assert_eq!(self.plain(), Vec::<String>::new(), "{about}: a success has no plain line");
        self.stdout.trim_end().to_owned()
    }

    /// The message, of a call that has to fail as oned wants it: one plain line, nothing hidden in it.
    #[track_caller]
    pub fn failure(&self, about: &str) -> String {
        let shown = self.text();
        assert!(self.status.code().is_some_and(|code| code != 0), "{about}: {:?}: {shown}", self.status);
        let text = String::from_utf8(self.stderr.clone()).expect("standard error is UTF-8");
        assert!(text.ends_with('\n'), "{about}: {shown:?}");
        let odd = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(odd), "{about}: control characters in {shown:?}");
        let plain = self.plain();
        assert_eq!(plain.len(), 1, "{about}: not one plain line: {shown}");
        assert!(!plain[0].trim().is_empty() && !plain[0].contains("panicked"), "{about}: {shown}");
        plain[0].clone()
    }

    /// Where the reply says that the image is.
    #[track_caller]
    pub fn source(&self, about: &str) -> PathBuf {
        PathBuf::from(self.reply(about).split(' ').next().unwrap_or_default())
    }
}

impl House {
    /// A new one, its datastore inside.
    pub fn new() -> Self {
        Self::at(None)
    }

    /// A new one, its datastore in this directory.
    pub fn at(base: Option<&Path>) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let remotes = root.path().join("one/var/remotes");
        for folder in ["one/etc", "one/var/remotes/onestore", "one/var/remotes/datastore/fs", "users", "oned", "home"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        // As install.sh lays it out; a link where the folder lies on another file system than the build.
        let (built, here) = (env!("CARGO_BIN_EXE_onestore"), remotes.join("onestore/onestore"));
        fs::hard_link(built, &here).or_else(|_| symlink(built, &here)).expect("the binary");
        let launch = remotes.join("onestore/launch");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("remotes/onestore/launch"), &launch).expect("the launcher");
        fs::set_permissions(&launch, fs::Permissions::from_mode(0o755)).expect("executable");
        for entry in onestore::driver::fs::DRIVER.links() {
            symlink("../../onestore/launch", remotes.join(entry)).expect("an entry");
        }
        fs::write(root.path().join("oned/hostpool.xml"), "<HOST_POOL></HOST_POOL>").expect("the hosts");
        fs::write(root.path().join("oned/datastorepool.xml"), "<DATASTORE_POOL></DATASTORE_POOL>").expect("the pool");
        let base = base.map_or_else(|| root.path().join("ds/1"), Path::to_owned);
        fs::create_dir_all(&base).expect("the datastore");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("readable");
        Self { root, base, env: Vec::new(), wrapper: Vec::new() }
    }

    /// A path in its folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// The document for this datastore; `image` and `template` are XML.
    pub fn document(&self, image: &str, template: &str) -> String {
        self.document_of(image, template, &xml(self.base.as_os_str()), "")
    }

    /// The same with another `BASE_PATH`, and what stands beside the datastore.
    pub fn document_of(&self, image: &str, template: &str, base: &str, beside: &str) -> String {
        format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><ID>7</ID>{image}</IMAGE><DATASTORE><ID>1</ID><TYPE>0</TYPE><BASE_PATH>{base}\
             </BASE_PATH><TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS>{template}</TEMPLATE></DATASTORE>{beside}\
             </DS_DRIVER_ACTION_DATA>",
            self.path("users").display()
        )
    }

    /// Calls an action with a document, to its end.
    pub fn call(&self, action: &str, document: &str) -> Ran {
        self.call_bytes(action, base64::engine::general_purpose::STANDARD.encode(document).as_bytes())
    }

    /// Calls an action with an image and nothing special in the datastore.
    pub fn act(&self, action: &str, image: &str) -> Ran {
        self.call(action, &self.document(image, ""))
    }

    /// Calls an action with these bytes on standard input, to its end.
    pub fn call_bytes(&self, action: &str, input: &[u8]) -> Ran {
        finish(self.start(action, input))
    }

    /// The command of an action, not started.
    pub fn command(&self, action: &str) -> Command {
        let entry = self.path("one/var/remotes/datastore/fs").join(action);
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&entry),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&entry);
                command
            }
        };
        command.arg("7").env_clear().current_dir(self.path("home"));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.path("home")).env("ONE_LOCATION", self.path("one"));
        command.env("ONESTORE_LOCK_DIR", self.path("locks")).env("ONESTORE_ONED", self.oned());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // As oned's driver process does: it signals the group.
        command.process_group(0);
        command
    }

    fn oned(&self) -> String {
        format!("dir:{}", self.path("oned").display())
    }

    /// Starts an action.
    pub fn start(&self, action: &str, input: &[u8]) -> Started {
        let begin = Instant::now();
        let mut child = self.command(action).spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        // A child that was killed does not read.
        std::thread::spawn(move || stdin.write_all(&input));
        Started { child, begin }
    }

    /// Starts an action with a document.
    pub fn start_call(&self, action: &str, document: &str) -> Started {
        self.start(action, base64::engine::general_purpose::STANDARD.encode(document).as_bytes())
    }

    /// What is in the datastore beside the staging directory, each file by the digest of its content.
    pub fn content(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        describe(&self.base, &self.base, &mut found);
        found
    }

    /// Names in the staging directory.
    pub fn staged(&self) -> Vec<String> {
        let entries = fs::read_dir(self.base.join(".onestore")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Waits for the end of all processes that have this datastore or folder in their arguments; what is left.
    pub fn processes_left(&self, seconds: u64) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let names = [self.base.display().to_string(), self.root.path().display().to_string()];
        loop {
            let left = with_argument(&names);
            if left.is_empty() || Instant::now() >= until {
                return left;
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// A raw image of `mib` MiB whose data does not compress, with a hole in the middle.
    #[expect(clippy::unused_self, reason = "reads well where it is called")]
    pub fn raw(&self, path: &Path, mib: u64, seed: u64) {
        let file = File::create(path).expect("creates");
        file.set_len(mib << 20).expect("sets the length");
        let mut state = seed | 1;
        let mut block = vec![0_u8; 64 << 10];
        for at in 0..(mib << 4) {
            if at % 16 >= 4 && at % 16 < 8 {
                continue;
            }
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            std::os::unix::fs::FileExt::write_all_at(&file, &block, at << 16).expect("writes");
        }
    }

    /// A qcow2 chain as the `shared` transfer manager makes it: the image, `0 -> image`, 1, 2; each layer with data of
    /// its own. Gives the image.
    pub fn chain(&self) -> PathBuf {
        let image = self.base.join("abc");
        let snapshots = self.base.join("abc.snap");
        fs::create_dir(&snapshots).expect("snapshots");
        Self::qcow2(&image, None);
        fill(&image, 1, 0);
        symlink(&image, snapshots.join("0")).expect("the link 0");
        symlink(".", snapshots.join("abc.snap")).expect("the self link");
        Self::qcow2(&snapshots.join("1"), Some(&snapshots.join("0")));
        fill(&snapshots.join("1"), 2, 1);
        Self::qcow2(&snapshots.join("2"), Some(&snapshots.join("1")));
        fill(&snapshots.join("2"), 3, 2);
        fs::write(self.base.join("abc.md5sum"), "0\n").expect("a digest");
        image
    }

    /// An image whose snapshots are full copies. Gives the image.
    pub fn copies(&self) -> PathBuf {
        let image = self.base.join("abc");
        fs::create_dir(self.base.join("abc.snap")).expect("snapshots");
        self.raw(&image, 2, 3);
        self.raw(&self.base.join("abc.snap/0"), 2, 5);
        self.raw(&self.base.join("abc.snap/1"), 2, 7);
        fs::write(self.base.join("abc.md5sum"), "0\n").expect("a digest");
        image
    }

    fn qcow2(path: &Path, backing: Option<&Path>) {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if let Some(backing) = backing {
            create.args(["-F", "qcow2", "-b"]).arg(backing);
        }
        create.arg(path).arg("4M");
        assert!(create.status().expect("qemu-img runs").success());
    }
}

/// Writes 1 MiB of one byte at a MiB of a qcow2.
fn fill(path: &Path, byte: u8, at: u8) {
    let mut io = Command::new("qemu-io");
    io.args(["-f", "qcow2", "-c", &format!("write -q -P {byte} {at}M 1M")]).arg(path);
    let done = io.stdout(Stdio::null()).status().expect("qemu-io runs");
    assert!(done.success());
}

/// What a guest would see of a qcow2, or the file's own digest.
pub fn guest(path: &Path) -> String {
    let head = File::open(path).map(|mut file| {
        let mut head = [0; 4];
        let _ = file.read(&mut head);
        head
    });
    match head {
        Ok(head) if &head == b"QFI\xfb" => {
            let to = tempfile::NamedTempFile::new().expect("a file");
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]).arg(path).arg(to.path());
            let done = convert.output().expect("qemu-img runs");
            // Half of an image that is being removed cannot be read; everywhere else this differs from what was there.
            if done.status.success() {
                format!("guest {}", digest(to.path()))
            } else {
                format!("unreadable: {}", String::from_utf8_lossy(&done.stderr))
            }
        }
        Ok(_) => digest(path),
        Err(error) => format!("unreadable: {error}"),
    }
}

/// MD5 of a file.
pub fn digest(path: &Path) -> String {
    let mut file = File::open(path).expect("opens");
    let mut digest = Md5::new();
    let mut block = vec![0; 256 << 10];
    loop {
        match file.read(&mut block).expect("reads") {
            0 => break,
            len => digest.update(&block[..len]),
        }
    }
    let digest = digest.finalize();
    format!("{:032x}", u128::from_be_bytes(digest.into()))
}

fn describe(top: &Path, dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(top).expect("below").to_string_lossy().into_owned();
        if name == ".onestore" {
            continue;
        }
        let data = fs::symlink_metadata(&path).expect("is there");
        let text = if data.is_symlink() {
            format!("-> {}", fs::read_link(&path).expect("a link").display())
        } else if data.is_dir() {
            describe(top, &path, found);
            "directory".to_owned()
        } else {
            guest(&path)
        };
        found.insert(name, text);
    }
}

/// An action on its way.
pub struct Started {
    pub child: Child,
    pub begin: Instant,
}

impl Started {
    /// Sends a signal to the action's process, as `kill` does.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may be over.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Waits for the end.
pub fn finish(mut started: Started) -> Ran {
    let (mut out, mut err) = (started.child.stdout.take(), started.child.stderr.take().expect("a pipe"));
    let reader = std::thread::spawn(move || {
        let mut stdout = Vec::new();
        if let Some(out) = &mut out {
            let _ = out.read_to_end(&mut stdout);
        }
        stdout
    });
    // Orphans may hold the pipe: only what there is when the child has ended.
    let mut stderr = Vec::new();
    let errors = std::thread::spawn(move || {
        let _ = err.read_to_end(&mut stderr);
        stderr
    });
    let status = started.child.wait().expect("waits");
    let took = started.begin.elapsed();
    let stdout = String::from_utf8_lossy(&reader.join().expect("no panic")).into_owned();
    Ran { status, stdout, stderr: errors.join().expect("no panic"), took }
}

/// Whether a signal that could not be caught ended it.
pub fn was_killed(ran: &Ran) -> bool {
    ran.status.signal() == Some(9) || ran.status.code() == Some(137)
}

fn with_argument(texts: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != std::process::id() && texts.iter().any(|text| line.contains(text)) {
            found.push(format!("{pid}: {line}"));
        }
    }
    found
}

/// A byte string as XML text.
pub fn xml(text: &OsStr) -> String {
    text.to_string_lossy().replace('&', "&amp;").replace('<', "&lt;")
}

/// The images (files directly in the datastore) that are in `after` and not in `before`.
pub fn new_files(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> BTreeSet<String> {
    after.keys().filter(|name| !before.contains_key(*name)).cloned().collect()
}

/// Allocated bytes of a file.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("is there").blocks() * 512
}
