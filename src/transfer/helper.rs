//! The programs `<scheme>_downloader` that stand in `remotes/datastore/`, for schemes that we do not serve ourselves.
//!
//! Contract 03 §2, §4. `restic`, `rsync`, `onebex` and whatever an operator puts there are asked with the address, and
//! print lines `command=<word>` and `clean_command=<word>`: `command` produces the stream, `clean_command` removes what it
//! needed. Upstream evaluates the lines; we take the quotes off (`word.rs`) and run what is inside, which is a
//! command line by contract and the operator's own. The address is a user's: it is one argument, and plain.
//! `lxd_downloader.sh` writes the stream itself.
//!
//! Unlike upstream we run `clean_command` after a failure as well: else each failed restore leaves a copy of the disk.

use std::ffi::OsString;
use std::io::{self, PipeWriter, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::url::redact;
use super::word::unquote;
use crate::exec::cmd::Secret;
use crate::exec::control::{Cancel, Control, Stopped};
use crate::exec::process::{self, ProcessError, ProcessErrorKind, ProcessIo, Programs, Spawn, Stdin, Stdout};
use crate::exec::relay::Relay;

/// How long `clean_command` may take.
const CLEANING: Duration = Duration::from_secs(300);

/// Bytes that a program may print besides the stream: 1 MiB.
const DEFINITIONS: usize = 1 << 20;

/// Exit status of one that is ended by SIGTERM, which is how a transfer of `OneBEX` ends.
const TERMINATED: i32 = 143;

/// Where the programs are, and what they have to be told.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// `<remotes>/datastore`.
    pub dir: PathBuf,
    /// The action's document in Base64 (`DRV_ACTION`); may be empty.
    pub action_data: Secret,
    /// Where programs may put an image on the way (`TMPDIR`), if not where they like.
    pub temp: Option<PathBuf>,
}

/// Why a program did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The address holds what a program might take for more than a name.
    #[error("Its address holds characters or parameters that {0} must not be given")]
    Address(String),
    /// It printed no command.
    #[error("{program} gave no command{}", said(.why))]
    NoCommand {
        /// The program.
        program: String,
        /// Its own words, if it had any.
        why: String,
    },
    /// The stream broke.
    #[error("Its command failed: {0}")]
    Command(Box<ProcessError>),
    /// The stream is whole, but the rest could not be cleared away.
    #[error("Its clean_command failed: {0}")]
    Clean(Box<ProcessError>),
}

fn said(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

impl HelperError {
    /// Exit status that upstream's `downloader.sh` has for it (contract 03 §1, §3).
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::NoCommand { .. } => 1,
            Self::Clean(error) => match error.kind {
                ProcessErrorKind::Status(status) => u8::try_from(status).unwrap_or(u8::MAX),
                _ => u8::MAX,
            },
            Self::Address(_) | Self::Command(_) => u8::MAX,
        }
    }
}

/// How a program delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// It prints the stream itself.
    Stream,
    /// It prints a command and one that cleans up.
    Commands,
    /// The same, and what cleans up prints the stream.
    Interactive,
}

/// Whether the address is a transfer that waits for its sender, so that nothing can be compared (`onebex://`).
#[must_use]
pub fn is_interactive(location: &str) -> bool {
    super::url::split_scheme(location).is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("onebex"))
}

impl Helpers {
    /// The program for a scheme in lower case: of that name, or of the part before a `+` (`restic+rbd`).
    fn program(&self, scheme: &str) -> Option<PathBuf> {
        let short = scheme.split('+').next().filter(|short| *short != scheme);
        let names = std::iter::once(scheme).chain(short);
        let paths =
            names.flat_map(|name| [".rb", ".sh", ""].map(|ext| self.dir.join(format!("{name}_downloader{ext}"))));
        let runs =
            |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        paths.into_iter().find(runs)
    }

    /// Opens `location`; tells also whether its bytes are to be taken as they are. `None` where there is no program.
    ///
    /// # Errors
    /// An address that no program may be given, or where no thread can be made. What goes wrong later is the error of a
    /// read: a [`HelperError`].
    pub(super) fn open(&self, location: &str, scheme: &str, control: &Control) -> Option<io::Result<(Stream, bool)>> {
        let program = self.program(scheme)?;
        let rest = location.split_once("://").map_or("", |(_, rest)| rest);
        if !is_plain(scheme, rest) {
            return Some(Err(io::Error::other(HelperError::Address(program.display().to_string()))));
        }
        let protocol = match scheme {
            "lxd" => Protocol::Stream,
            "onebex" => Protocol::Interactive,
            _ => Protocol::Commands,
        };
        let mut argv: Vec<OsString> = vec![program.clone().into(), location.into()];
        if protocol == Protocol::Interactive {
            argv.push("-".into());
        }
        let mut env = vec![("DRV_ACTION".to_owned(), self.action_data.clone())];
        if let Some(temp) = self.temp.as_deref().and_then(Path::to_str) {
            env.push(("TMPDIR".to_owned(), Secret::new(temp)));
        }
        let spawn = Spawn {
            argv,
            env,
            shown: format!("{} {}", program.display(), redact(location)),
            also_ok: Vec::new(),
            hidden: Some(&self.action_data).filter(|data| !data.reveal().is_empty()).cloned().into_iter().collect(),
            on_leash: true,
        };
        let opened = Stream::start(Job { spawn, protocol }, control);
        Some(opened.map(|stream| (stream, protocol != Protocol::Commands)))
    }
}

/// What the thread does that feeds a [`Stream`].
struct Job {
    /// The program with its arguments.
    spawn: Spawn,
    protocol: Protocol,
}

impl Job {
    fn run(&self, mut writer: PipeWriter, control: &Control) -> Result<(), HelperError> {
        if self.protocol == Protocol::Stream {
            return self.pass(&self.spawn, &mut writer, control).map_err(HelperError::Command);
        }
        let (command, clean) = self.ask(control)?;
        let done = command.and_then(|command| match self.pass(&self.shell(command, "command"), &mut writer, control) {
            Err(error) if self.protocol == Protocol::Interactive && was_terminated(&error) => Ok(()),
            result => result.map_err(HelperError::Command),
        });
        let Some(clean) = clean.map(|clean| self.shell(clean, "clean_command")) else { return done };
        if self.protocol == Protocol::Interactive {
            done?;
            return self.pass(&clean, &mut writer, control).map_err(HelperError::Clean);
        }
        // Also when we were told to stop: that is when most is left over.
        let cleaned = process::run(&clean, ProcessIo::default(), &Control::only_within(CLEANING));
        done.and(cleaned.map(drop).map_err(|error| HelperError::Clean(Box::new(error))))
    }

    /// Runs what writes the stream.
    #[expect(clippy::unused_self, reason = "reads as one of the job's steps")]
    fn pass(&self, spawn: &Spawn, writer: &mut PipeWriter, control: &Control) -> Result<(), Box<ProcessError>> {
        let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Writer(writer) };
        process::run(spawn, io, control).map(drop).map_err(Box::new)
    }

    /// The command, or why there is none, and what cleans up: that is due even where the command is of no use.
    fn ask(&self, control: &Control) -> Result<(Result<OsString, HelperError>, Option<OsString>), HelperError> {
        let program = self.spawn.argv.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let none = |why: String| HelperError::NoCommand { program: program.clone(), why };
        // A program that fails may have printed what cleans up.
        let spawn = Spawn { also_ok: (1..=255).collect(), ..self.spawn.clone() };
        let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Capture(DEFINITIONS) };
        let ended = process::run(&spawn, io, control).map_err(|error| none(error.to_string()))?;
        let word = |name: &str| {
            let lines = ended.stdout.split(|byte| *byte == b'\n');
            let text = lines.filter_map(|line| line.strip_prefix(name.as_bytes())).next_back()?;
            Some(unquote(text).map_err(|why| none(format!("{name} {why}"))))
        };
        let clean = match word("clean_command=") {
            Some(Ok(text)) if !text.is_empty() => Some(OsString::from_vec(text)),
            Some(Err(error)) => return Err(error),
            _ => None,
        };
        let command = match word("command=") {
            _ if ended.status != 0 => {
                let words = process::last_words(&ended.stderr).map(|words| format!(": {words}")).unwrap_or_default();
                Err(none(format!("exit status {}{words}", ended.status)))
            }
            Some(Ok(text)) if !text.is_empty() => Ok(OsString::from_vec(text)),
            Some(Err(error)) => Err(error),
            _ => Err(none(process::last_words(&ended.stderr).unwrap_or_default())),
        };
        Ok((command, clean))
    }

    /// A command line of the program.
    fn shell(&self, line: OsString, name: &str) -> Spawn {
        let argv = Programs::from_env().command_line(line);
        let shown = format!("{name} of {}", self.spawn.shown);
        Spawn { argv, shown, ..self.spawn.clone() }
    }
}

fn was_terminated(error: &ProcessError) -> bool {
    matches!(error.kind, ProcessErrorKind::Status(TERMINATED) | ProcessErrorKind::Signal(15))
}

/// What a program delivers. Its end is only reached when everything went well; when it is dropped before, the command is
/// ended and what cleans up is waited for.
pub(super) struct Stream {
    relay: Option<Relay>,
    /// Ends the command; the caller's own flag would end more.
    cancel: Cancel,
    control: Control,
}

impl Stream {
    fn start(job: Job, control: &Control) -> io::Result<Self> {
        let cancel = Cancel::new();
        let own = Control { cancel: cancel.clone(), deadline: control.deadline };
        let relay = Relay::start(move |writer| job.run(writer, &own).map_err(io::Error::other))?;
        Ok(Self { relay: Some(relay), cancel, control: control.clone() })
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(relay) = &mut self.relay else { return Ok(0) };
        if let Some(pipe) = relay.pipe() {
            let mut fds = [PollFd::new(pipe, PollFlags::IN), PollFd::new(&self.control.cancel, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if self.control.cancel.is_set() {
                self.cancel.set();
                return Err(io::Error::other(Stopped::Cancelled));
            }
        }
        relay.read(buf)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancel.set();
        if let Some(relay) = self.relay.take() {
            relay.end_within(process::GRACE + CLEANING);
        }
    }
}

/// Whether what follows the scheme is a plain address. Programs put some of it before a shell unquoted, make variables of a
/// query, and give hosts to ssh as they are: so there are no characters that mean anything to a shell, no part that
/// begins like an option, and only the queries that are known.
pub(super) fn is_plain(scheme: &str, rest: &str) -> bool {
    let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
    let word = |text: &str, marks: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c));
    let known: &[&str] = match scheme {
        "lxd" => &["size", "filesystem", "format"],
        _ => &[],
    };
    let pair = |pair: &str| {
        pair.split_once('=')
            .is_some_and(|(key, value)| known.contains(&key) && word(value, "._/-") && !value.starts_with('-'))
    };
    word(address, "._:/@+,-")
        && !address.split(['/', '@', ':', ',']).any(|part| part.starts_with('-'))
        && query.is_none_or(|query| query.split('&').all(pair))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with a program in it.
    fn with(name: &str, script: &str) -> (tempfile::TempDir, Helpers) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let program = dir.path().join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("the program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        let helpers = Helpers { dir: dir.path().to_owned(), action_data: Secret::new("canary"), temp: None };
        (dir, helpers)
    }

    fn read(helpers: &Helpers, location: &str) -> Result<String, io::Error> {
        let control = Control::new(Cancel::new());
        let scheme = location.split(':').next().expect("a scheme");
        let opened = helpers.open(location, scheme, &control);
        let (mut stream, _) = opened.ok_or_else(|| io::Error::other("no program"))??;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    }

    fn cause(error: &io::Error) -> &HelperError {
        error.get_ref().and_then(|inner| inner.downcast_ref()).expect("an error of ours")
    }

    #[test]
    fn the_command_makes_the_stream_and_the_other_one_cleans_up() {
        let (dir, helpers) =
            with("tape_downloader.rb", "echo \"command='echo $1 $DRV_ACTION'\"\necho 'clean_command=\"rm '$0.temp'\"'");
        fs::write(dir.path().join("tape_downloader.rb.temp"), "").expect("a file");
        assert_eq!(read(&helpers, "tape://a/b").expect("a stream"), "tape://a/b canary\n");
        assert!(!dir.path().join("tape_downloader.rb.temp").exists());
    }

    #[test]
    fn it_cleans_up_when_nobody_reads_on_and_when_it_is_called_off() {
        for called_off in [false, true] {
            let (dir, helpers) = with(
                "tape_downloader",
                "echo 'command=\"echo begin; sleep 100\"'\necho \"clean_command='touch $0.cleaned'\"",
            );
            let control = Control::new(Cancel::new());
            let opened = helpers.open("tape://a/b", "tape", &control).expect("a program");
            let (mut stream, opaque) = opened.expect("a stream");
            assert!(!opaque);
            stream.read_exact(&mut [0; 6]).expect("the beginning");
            if called_off {
                control.cancel.set();
                assert!(stream.read(&mut [0; 6]).is_err());
            }
            drop(stream);
            assert!(dir.path().join("tape_downloader.cleaned").exists());
        }
    }

    #[test]
    fn failures_have_upstreams_status() {
        let (_dir, helpers) = with("tape_downloader", "echo 'no such key canary' >&2; exit 9");
        let error = read(&helpers, "tape://a").expect_err("a failure");
        assert_eq!(cause(&error).status(), 1);
        assert!(error.to_string().contains("exit status 9: no such key ***"), "{error}");
        let (_dir, helpers) = with("tape_downloader", "echo command=true; echo \"clean_command='exit 7'\"");
        assert_eq!(cause(&read(&helpers, "tape://a").expect_err("a failure")).status(), 7);
        let (_dir, helpers) = with("tape_downloader", "echo \"command='exit 7'\"; echo clean_command=true");
        assert_eq!(cause(&read(&helpers, "tape://a").expect_err("a failure")).status(), 255);
        let (_dir, helpers) = with("tape_downloader", "echo 'command=a b'");
        let error = read(&helpers, "tape://a").expect_err("a failure");
        assert!(error.to_string().contains("it holds ' ' outside of quotes"), "{error}");
    }

    #[test]
    fn a_waiting_transfer_is_made_by_what_cleans_up() {
        let script =
            "[ \"$2\" = - ] || exit 3\necho \"command='kill -TERM \\$\\$'\"\necho \"clean_command='echo $TMPDIR'\"";
        let (_dir, mut helpers) = with("onebex_downloader.rb", script);
        helpers.temp = Some("/room".into());
        assert_eq!(read(&helpers, "onebex://100:1").expect("a stream"), "/room\n");
        assert!(is_interactive("ONEBEX://100:1") && !is_interactive("http://host/onebex://"));
    }

    #[test]
    fn what_a_shell_might_take_for_more_than_a_name_is_refused() {
        let (dir, helpers) = with("lxd_downloader.sh", "echo \"$*\"");
        for name in ["tape", "restic"] {
            let script = "#!/bin/sh\necho \"command='echo called'\"\n";
            let program = dir.path().join(format!("{name}_downloader.rb"));
            fs::write(&program, script).expect("a program");
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        for location in [
            "lxd://x/$(id)",
            "tape://h:/a b",
            "tape://b/'x'",
            "tape://b/`x`",
            "tape://b/a;b",
            "tape://b/a\nb",
            "tape://-oProxyCommand=x:/y",
            "tape://u@-oX:/y",
            "lxd://x?size=1&PATH=/var/tmp",
            "lxd://x?size=$(id)",
            "tape://b/a?x=1",
            "tape://h:/~root/x",
        ] {
            let error = read(&helpers, location).expect_err("refused");
            assert!(matches!(cause(&error), HelperError::Address(_)), "{location}: {error}");
        }
        let lxd = "lxd://images.example.org/a/rootfs.tar.xz?size=2048&filesystem=ext4&format=raw";
        assert_eq!(read(&helpers, lxd).expect("a stream"), format!("{lxd}\n"));
        for good in ["restic+rbd://100/1/0:25f4b298,1:6968545c//var/lib/one/datastores/0/0/backup/disk.0", "tape://a"] {
            assert_eq!(read(&helpers, good).expect("a stream"), "called\n", "{good}");
        }
        assert_eq!(read(&helpers, "ftp://h/a").expect_err("nobody").to_string(), "no program");
    }
}
