//! The far side of a script where this very binary stands on the host: `onestore agent <version>`.
//!
//! [`super::host::wire::COMMAND`] starts it and [`super::host::wire`] describes what it reads. It answers on stdout and
//! complains on stderr exactly as the sh form does, so that one reader ([`super::posix`]) serves both; what it does
//! better is locks, deadlines, errors, and not needing any tool of the host.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::fcntl_setpipe_size;

use super::control::{Cancel, Control};
use super::error::{OpError, OpErrorKind};
use super::host::wire::{CUT_OFF, DONE, Incoming, MARK_LEN, OTHER_VERSION, VERSION};
use super::interpret::{self, Input, Io};
use super::op::{FileKind, Op, Script, Value};
use super::posix::{BESIDES, END, tree_text};
use super::process::Programs;

/// Longest first line: two numbers and a mark.
const FIRST_LINE: u64 = 128;

/// Bytes that the pipes from and to sshd hold, if we may: 1 MiB, what an unprivileged user may have.
const PIPE: usize = 1 << 20;

/// Serves one script on this process's own standard streams; gives the exit status.
///
/// `version` is the caller's [`VERSION`]. Another one is refused before anything is read, so that sh can go on with the
/// very same input. A caller that goes away cancels the script: sshd itself would let it run on.
#[must_use]
pub fn serve(version: &OsStr) -> u8 {
    if version != VERSION {
        return OTHER_VERSION;
    }
    let cancel = match Cancel::on_signals() {
        Ok(cancel) => cancel,
        Err(error) => {
            eprintln!("Cannot install signal handlers: {error}");
            return 1;
        }
    };
    // sshd's pipes hold 64 KiB: with that little, it and we take turns. A system that allows less has its reasons.
    let _ = (fcntl_setpipe_size(io::stdin(), PIPE), fcntl_setpipe_size(io::stdout(), PIPE));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| cancel_when_unread(&io::stdout(), &cancel, &over));
        let status = serve_on(&mut io::stdin(), &mut io::stdout(), &mut io::stderr(), &Control::new(cancel.clone()));
        over.store(true, Ordering::SeqCst);
        // Wakes the watcher; nothing looks at the flag any more.
        cancel.set();
        status
    })
}

/// Sets the flag once nobody reads `output` any more: then the connection is gone.
fn cancel_when_unread(output: &impl AsFd, cancel: &Cancel, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let mut fds = [PollFd::new(output, PollFlags::empty()), PollFd::new(cancel, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
        let _ = poll(&mut fds, Some(&timeout));
        if !fds[0].revents().is_empty() {
            cancel.set();
        }
        if cancel.is_set() || !fds[1].revents().is_empty() {
            return;
        }
    }
}

/// The same on any streams.
fn serve_on(
    input: &mut (impl Read + Send),
    output: &mut (impl Write + Send),
    errors: &mut impl Write,
    control: &Control,
) -> u8 {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let (script, mark) = match read_script(&mut input) {
        Ok(read) => read,
        Err(error) => {
            let _ = writeln!(errors, "Cannot read the script: {error}");
            return CUT_OFF;
        }
    };
    // As in the sh form: from here on whatever fails is the script's failure.
    let _ = writeln!(errors, "@onestore-op 0");
    let mut data = Incoming::new(&mut input, &mark);
    // A conversation has no end mark: each frame says how long it is.
    let stream: Input<'_> = Input::Stream(if script.converses() { data.inner() } else { &mut data });
    let io = Io { input: Some(stream), output: Some(&mut *output), ..Io::default() };
    match interpret::run(&script, io, &Programs::from_env(), control) {
        Ok(values) => {
            let answers = if script.sends() { Vec::new() } else { encode(&script, &values) };
            match output.write_all(&answers).and_then(|()| output.flush()) {
                Ok(()) => {
                    let _ = write!(errors, "\n{DONE}\n");
                    0
                }
                Err(_) => 1,
            }
        }
        Err(error) => {
            let _ = errors.write_all(&complaint(&error));
            1
        }
    }
}

/// The first line, and the JSON behind the sh text.
pub(super) fn read_script(input: &mut impl BufRead) -> io::Result<(Script, Vec<u8>)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    input.take(FIRST_LINE).read_line(&mut line)?;
    let mut words = line.strip_suffix('\n').ok_or_else(|| bad("No first line"))?.split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or_else(|| bad("No length"));
    let (text_len, json_len) = (number()?, number()?);
    let mark = match words.next() {
        Some("-") => Vec::new(),
        Some(mark) if mark.len() == MARK_LEN => mark.as_bytes().to_vec(),
        _ => return Err(bad("No end mark")),
    };
    if io::copy(&mut input.take(text_len), &mut io::sink())? < text_len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut json = Vec::new();
    input.take(json_len).read_to_end(&mut json)?;
    let script = serde_json::from_slice(&json).map_err(io::Error::other)?;
    Ok((script, mark))
}

/// The answers as the sh form writes them, see [`super::posix`].
pub(super) fn encode(script: &Script, values: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, (op, value)) in script.ops.iter().zip(values).enumerate() {
        let payload = match value {
            Value::Done | Value::Unknown => continue,
            Value::Absent => "-".into(),
            Value::Stat(stat) => {
                let mode = kind_bits(stat.kind) | stat.mode;
                format!(":{mode:x} {} {} {}", stat.size, stat.dev, stat.ino)
            }
            Value::Space(space) => {
                let text = format!("as df\n{} {} {}\n", space.total_mib, space.used_mib, space.free_mib);
                BASE64.encode(text)
            }
            Value::Number(number) => format!(":{number}"),
            Value::Bytes(bytes) => BASE64.encode(bytes),
            Value::Tree(nodes) => BASE64.encode(tree_text(nodes)),
            Value::Names(names) => {
                let list: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
                BASE64.encode(list)
            }
        };
        debug_assert!(!matches!(op, Op::Send { .. }), "a script that sends answers nothing");
        out.extend_from_slice(format!("{index} {payload}\n").as_bytes());
    }
    out.extend_from_slice(format!("{END}\n").as_bytes());
    out
}

/// `S_IFMT` bits of `inode(7)`.
fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => 0o100_000,
        FileKind::Dir => 0o040_000,
        FileKind::Link => 0o120_000,
        FileKind::Block => 0o060_000,
        FileKind::Other => 0o010_000,
    }
}

/// A failure as the sh form would report it: whose it is, what was said, and the status.
fn complaint(error: &OpError) -> Vec<u8> {
    let index = error.index.unwrap_or_default();
    let (message, besides) = error.parts();
    let (said, status) = match &error.kind {
        OpErrorKind::Program { status, stderr } => (stderr.clone(), status.unwrap_or(1)),
        OpErrorKind::MissingProgram => (format!("{message}: not found"), 127),
        _ => (message.to_owned(), 1),
    };
    let besides: Vec<String> = besides.map(|other| format!("{BESIDES}{other}\n")).collect();
    let besides = besides.concat();
    format!("\n@onestore-op {index}\n{}\n{besides}@onestore-failed {index} {status}\n", said.trim_end()).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::exec::cmd::Cmd;
    use crate::exec::host::failure::judge;
    use crate::exec::host::wire::{Delivery, Outgoing};
    use crate::exec::op::Sparse;

    /// Serves a script, and reads the answers as the near side would.
    fn answered(script: &Script, data: Option<&[u8]>) -> Result<Vec<Value>, String> {
        let mut reader = data.unwrap_or_default();
        let input = data.is_some().then_some(Input::Stream(&mut reader));
        let mut sent = Vec::new();
        Outgoing::new(Delivery::of(script).expect("delivers"), input).read_to_end(&mut sent).expect("reads");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let control = Control::only_within(Duration::from_secs(60));
        let status = serve_on(&mut &sent[..], &mut out, &mut err, &control);
        judge("node3", script, Some(status.into()), &out, &err).map_err(|error| error.to_string())
    }

    #[test]
    fn answers_are_those_of_the_interpreter() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("it's\n"), "x").expect("writes");
        let questions = Script::new([
            Op::Stat { path: at(""), follow: true },
            Op::Stat { path: at("none"), follow: false },
            Op::List { path: dir.path().to_owned() },
            Op::Read { path: at("it's\n"), offset: 0, len: 9 },
            Op::TreeSize { path: dir.path().to_owned() },
            Op::Tree { path: dir.path().to_owned(), depth: 1 },
            Op::Head { path: at("it's\n"), len: 1 },
            Op::Head { path: at("none"), len: 1 },
            Op::Md5 { path: at("it's\n") },
            Op::Run(Cmd::new("printf").arg("\\0\\377")),
            Op::MakeDir { path: at("a/b") },
        ]);
        let here = interpret::run(&questions, Io::default(), &Programs::default(), &Control::new(Cancel::new()));
        std::fs::remove_dir_all(at("a")).expect("removes");
        assert_eq!(answered(&questions, None), Ok(here.expect("runs")));
        let receive = Script::from(Op::Receive { path: at("c"), sparse: Sparse::Holes });
        assert_eq!(answered(&receive, Some(b"abc")), Ok(vec![Value::Number(3)]));
        assert_eq!(std::fs::read(at("c")).expect("reads"), b"abc");
    }

    #[test]
    fn failures_read_as_those_of_the_interpreter() {
        let scripts = [
            Script::from(Op::Sync { path: "/none/at/all".into() }),
            Script::from(Op::Run(Cmd::new("sh").args(["-c", "echo oh no >&2; exit 255"]))),
            Script::from(Op::Run(Cmd::new("no-such-program-here"))),
            Script::new([Op::MakeDir { path: "/".into() }, Op::Sync { path: "relative".into() }]),
        ];
        for script in scripts {
            let here = interpret::run(&script, Io::default(), &Programs::default(), &Control::new(Cancel::new()));
            assert_eq!(answered(&script, None), Err(format!("node3: {}", here.expect_err("fails"))));
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_is_a_failure() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = Script::from(Op::Receive { path: dir.path().join("part"), sparse: Sparse::Holes });
        let mut sent = Vec::new();
        let mut data = &[7_u8; 1000][..];
        let delivery = Delivery::of(&script).expect("delivers");
        Outgoing::new(delivery, Some(Input::Stream(&mut data))).read_to_end(&mut sent).expect("reads");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let control = Control::only_within(Duration::from_secs(60));
        assert_eq!(serve_on(&mut &sent[..sent.len() - 40], &mut out, &mut err, &control), 1);
        assert_eq!(serve_on(&mut &sent[..200], &mut out, &mut err, &control), CUT_OFF);
    }

    #[test]
    fn another_version_is_refused() {
        assert_eq!(serve(OsStr::new("0.0.0/0")), OTHER_VERSION);
    }
}
