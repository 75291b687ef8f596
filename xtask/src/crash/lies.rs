//! Tools that do not answer as they should: the N-th program that an action calls says nothing, half, too much, something
//! in another language, or dies.
//!
//! Over each of the programs a stand-in is mounted, in this program's own name space: the action looks them up in the
//! system's directories, whatever `PATH` says. The stand-in is this binary, by its `#!` line; it counts the calls in a file
//! as [`super::remote`] does, and becomes the program, except at the call that is disturbed.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};

use super::world::tool;

/// Begin of the word for the command line of this binary that makes it the stand-in; the file follows.
pub const WORD: &str = "crash-lie ";

/// What is exchanged, where it is installed.
const PROGRAMS: [&str; 13] = [
    "qemu-img",
    "mkfs",
    "mke2fs",
    "mkfs.xfs",
    "mkfs.fat",
    "mkswap",
    "xorriso",
    "genisoimage",
    "virsh",
    "df",
    "du",
    "findmnt",
    "fallocate",
];

/// More than any answer, and any line, may be.
const FLOOD: usize = 1 << 20;

/// How a program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Lie {
    /// Does nothing, says nothing, and fails
    Nothing,
    /// Does its work and answers nothing
    Empty,
    /// Does its work and breaks off in the middle of its answer
    Half,
    /// Does its work and answers `{}`
    Other,
    /// Does its work and answers a mebibyte of bytes
    Flood,
    /// Fails with words in another language and another encoding
    Foreign,
    /// Fails with a mebibyte of words
    Shout,
    /// Is killed
    Signal,
    /// Fails as a program that is not there
    Missing,
}

impl Lie {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "tool: no work, no word",
            Self::Empty => "tool: empty answer",
            Self::Half => "tool: half an answer",
            Self::Other => "tool: another answer",
            Self::Flood => "tool: 1 MiB of answer",
            Self::Foreign => "tool: foreign words",
            Self::Shout => "tool: 1 MiB of words",
            Self::Signal => "tool: killed",
            Self::Missing => "tool: status 127",
        }
    }
}

/// What all stand-ins of one run share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Number of the call that is disturbed; 0 for none.
    pub at: usize,
    /// How.
    pub lie: Option<Lie>,
    /// Calls so far.
    pub count: usize,
    /// The call that was disturbed.
    pub disturbed: Option<String>,
}

impl State {
    /// Reads it.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(file: &Path) -> Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    }

    /// Writes it anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        fs::write(file, serde_json::to_string(self)?).context("Cannot write the state of the tools")
    }
}

/// The stand-ins. They are mounted in this program's own name space, and go with it.
pub struct StandIns {
    dir: tempfile::TempDir,
}

impl StandIns {
    /// Mounts them.
    ///
    /// # Errors
    /// Mounting needs root.
    pub fn mount() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("crash-lies-").tempdir()?;
        let me = std::env::current_exe().context("Cannot find this binary")?;
        let new = Self { dir };
        State::default().save(&new.state())?;
        let text = format!("#!{} {WORD}{}\n", me.display(), new.state().display());
        let (real, stand_in) = (new.dir.path().join("real"), new.dir.path().join("stand-in"));
        fs::create_dir(&real)?;
        fs::write(&stand_in, text)?;
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755))?;
        for folder in ["/usr/sbin", "/usr/bin"] {
            for name in PROGRAMS {
                let Ok(program) = Path::new(folder).join(name).canonicalize() else { continue };
                let kept = real.join(program.file_name().context("A program without a name")?);
                if kept.exists() {
                    continue;
                }
                fs::copy(&program, &kept)?;
                tool(Command::new("mount").arg("--bind").arg(&stand_in).arg(&program))?;
            }
        }
        Ok(new)
    }

    /// Where calls are counted.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }
}

/// What a stand-in does; `words` are the path that it was called by, and its arguments.
///
/// # Errors
/// The real program is not there.
pub fn serve(state: &Path, words: &[OsString]) -> Result<ExitCode> {
    let (called, arguments) = words.split_first().context("No program")?;
    let name = Path::new(called).canonicalize()?;
    let real = state.with_file_name("real").join(name.file_name().context("A program without a name")?);
    let mut command = Command::new(real);
    command.arg0(called).args(arguments);
    let Some(lie) = turn(state, words)? else {
        return Err(command.exec()).context("Cannot become the program");
    };
    let does = matches!(lie, Lie::Empty | Lie::Half | Lie::Other | Lie::Flood);
    let mut answer = Vec::new();
    let mut code = 1;
    if does {
        let ran = command.stderr(Stdio::inherit()).stdin(Stdio::inherit()).output()?;
        code = ran.status.code().unwrap_or_else(|| 128 + ran.status.signal().unwrap_or(0));
        answer = ran.stdout;
    }
    let noise = || (0..FLOOD).map(|n: usize| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect::<Vec<u8>>();
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    // Nobody has to read it.
    let _ = match lie {
        Lie::Half => out.write_all(&answer[..answer.len() / 2]),
        Lie::Other => out.write_all(b"{}\n"),
        Lie::Flood => out.write_all(&noise()),
        Lie::Foreign => {
            err.write_all(b"Datei kann nicht ge\xf6ffnet werden: Kein Speicherplatz mehr verf\xc3\xbcgbar\n")
        }
        Lie::Shout => err.write_all(&noise()),
        Lie::Nothing | Lie::Empty | Lie::Signal | Lie::Missing => Ok(()),
    };
    match lie {
        Lie::Signal => raise(Signal::SIGKILL)?,
        Lie::Missing => code = 127,
        _ => {}
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
}

/// Counts this call; how it is disturbed, if it is its turn.
fn turn(file: &Path, words: &[OsString]) -> Result<Option<Lie>> {
    let lock = fs::File::open(file.parent().context("A file without a folder")?)?;
    lock.lock()?;
    let mut state = State::load(file)?;
    state.count += 1;
    let here = state.count == state.at;
    if here {
        let shown: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word.as_bytes()).into_owned()).collect();
        state.disturbed = Some(shown.join(" "));
    }
    state.save(file)?;
    Ok(state.lie.filter(|_| here))
}
