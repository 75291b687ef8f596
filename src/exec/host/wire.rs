//! How a script travels over one ssh exec, whichever client carries it and whichever interpreter takes it there.
//!
//! What goes to standard input of [`COMMAND`]:
//!
//! ```text
//! <bytes of the sh text> <bytes of the JSON> <end mark, or -> <descriptor of the watcher>\n
//! the script as sh text (super::super::posix), the same as JSON (super::super::agent)
//! the data that Op::Receive takes, then the end mark
//! ```
//!
//! The command line is constant, so nothing of the script is in an argument list. It hands everything to this very
//! binary where it stands in the host's copy of the remotes tree and is of the same version, which it says before it
//! reads anything; everywhere else sh reads on (rule 5 of `docs/architecture.md`).
//!
//! Two things a pipe through ssh does not tell the far side, and this does:
//!
//! - Whether the data ended or the connection did: both look like the end of a file. The end mark is random, is sent
//!   only after the last byte, and is what makes the far side believe that it has everything.
//! - Whether anybody still waits: sshd lets the commands of a broken connection run on. A watcher writes a NUL byte
//!   every two seconds, and ends the whole process group when that fails. It writes to stdout, where no answer holds a
//!   NUL, for a multiplexing master whose client is gone keeps reading stderr; beside data it writes to stderr, which
//!   does there, for data has a connection of its own.

use std::fs::File;
use std::io::{self, Read};

use super::super::interpret::Input;
use super::super::op::Script;
use super::super::posix;

/// Version of the agent and of what this page describes: both sides must have the same.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/3");

/// Exit status of an agent of another version; it has read nothing.
pub const OTHER_VERSION: u8 = 75;

/// Exit status of a far side whose script did not arrive whole; nothing ran.
pub const CUT_OFF: u8 = 74;

/// What the far side says on stderr when the whole script has run.
pub const DONE: &str = "@onestore-done";

/// Bytes of an end mark.
pub const MARK_LEN: usize = 32;

/// The remote command line. Any login shell hands it to sh; it holds neither `'` nor a line break inside.
///
/// Statuses 2, 126 and 127 are those of a binary that is too old to know the verb, or that does not run there.
pub const COMMAND: &str = concat!(
    "exec sh -c 'a=${SCRIPTS_REMOTE_DIR:-/var/tmp/one}/onestore/onestore; if [ -x \"$a\" ]; then \"$a\" agent ",
    env!("CARGO_PKG_VERSION"),
    "/3; s=$?; case $s in 2|75|126|127) ;; *) exit $s ;; esac; fi; ",
    "IFS=\" \" read -r n j os_end b || exit 74; t=$(head -c \"$n\"); head -c \"$j\" >/dev/null; ",
    "[ \"${#t}\" = \"$n\" ] || exit 74; ",
    "(trap \"\" PIPE; while sleep 2 </dev/null >/dev/null 2>&1; do printf \"\\0\" >&$b || break; done; ",
    "trap \"\" TERM; kill -TERM 0; sleep 3; kill -KILL 0) & w=$!; ",
    "(eval \"$t\"); s=$?; kill $w; [ $s = 0 ] && printf \"\\n@onestore-done\\n\" >&2; exit $s'"
);

/// A script ready to be sent.
#[derive(Debug)]
pub struct Delivery {
    /// What comes first on standard input.
    pub head: Vec<u8>,
    /// What follows the data; empty for a script that receives none.
    pub mark: Vec<u8>,
}

impl Delivery {
    /// Renders the script for both interpreters.
    ///
    /// # Errors
    /// When there are no random bytes, or the script cannot be written as JSON.
    pub fn of(script: &Script) -> io::Result<Self> {
        let text = posix::render(script);
        // `$(…)` drops line breaks at the end, and the length has to match.
        let text = text.trim_end_matches('\n');
        let json = serde_json::to_string(script).map_err(io::Error::other)?;
        let mark = if script.receives() { random_mark()? } else { Vec::new() };
        let shown = if mark.is_empty() { "-".into() } else { String::from_utf8_lossy(&mark).into_owned() };
        let watched = if script.sends() { 2 } else { 1 };
        let head = format!("{} {} {shown} {watched}\n{text}{json}", text.len(), json.len()).into_bytes();
        Ok(Self { head, mark })
    }
}

/// 16 random bytes in hexadecimal.
fn random_mark() -> io::Result<Vec<u8>> {
    let mut bytes = [0_u8; MARK_LEN / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect())
}

/// What has to be written to standard input: head, data, mark. A reader that fails ends it without the mark.
pub struct Outgoing<'a> {
    head: io::Cursor<Vec<u8>>,
    data: Option<Input<'a>>,
    mark: io::Cursor<Vec<u8>>,
    failed: bool,
}

impl<'a> Outgoing<'a> {
    /// Of a delivery and the data that the script receives.
    #[must_use]
    pub fn new(delivery: Delivery, data: Option<Input<'a>>) -> Self {
        Self { head: io::Cursor::new(delivery.head), data, mark: io::Cursor::new(delivery.mark), failed: false }
    }
}

impl Read for Outgoing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failed || buf.is_empty() {
            return Ok(0);
        }
        let len = self.head.read(buf)?;
        if len > 0 {
            return Ok(len);
        }
        if let Some(data) = &mut self.data {
            let read = match data {
                Input::Stream(reader) => reader.read(buf),
                Input::File(file) => (&**file).read(buf),
            };
            match read {
                Ok(0) => self.data = None,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    self.failed = true;
                    return Err(error);
                }
                done => return done,
            }
        }
        self.mark.read(buf)
    }
}

/// The other end: data up to the mark. A stream that ends without it is an error, never a short file.
pub struct Incoming<R> {
    inner: R,
    mark: Vec<u8>,
    held: Vec<u8>,
    ended: bool,
}

impl<R: Read> Incoming<R> {
    /// Expects `mark` after the data; an empty mark means that there is no data.
    pub fn new(inner: R, mark: &[u8]) -> Self {
        Self { inner, mark: mark.to_vec(), held: Vec::new(), ended: mark.is_empty() }
    }

    /// What is behind it.
    pub fn inner(&mut self) -> &mut R {
        &mut self.inner
    }
}

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while !self.ended && self.held.len() <= self.mark.len() {
            let mut block = vec![0; 256 << 10];
            match self.inner.read(&mut block) {
                Ok(0) if self.held == self.mark => self.ended = true,
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "The stream was cut off"));
                }
                Ok(len) => self.held.extend_from_slice(&block[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.ended {
            return Ok(0);
        }
        let len = buf.len().min(self.held.len() - self.mark.len());
        buf[..len].copy_from_slice(&self.held[..len]);
        self.held.drain(..len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exec::op::{Op, Sparse};

    #[test]
    fn the_command_can_stand_in_single_quotes_of_any_shell() {
        let inner = COMMAND.strip_prefix("exec sh -c '").and_then(|rest| rest.strip_suffix('\'')).expect("its form");
        assert!(!inner.contains(['\'', '\n']));
        assert!(inner.contains(&format!("agent {VERSION};")));
        assert!(
            inner.contains(&OTHER_VERSION.to_string())
                && inner.contains(&format!("exit {CUT_OFF}"))
                && inner.contains(DONE)
        );
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_and_a_part_is_an_error(data in prop::collection::vec(any::<u8>(), 0..400), cut in 1..432_usize) {
            let script = Script::from(Op::Receive { path: "/a".into(), sparse: Sparse::Holes });
            let delivery = Delivery::of(&script).expect("delivers");
            let (head, mark) = (delivery.head.len(), delivery.mark.clone());
            let mut sent = Vec::new();
            let mut reader = &data[..];
            Outgoing::new(delivery, Some(Input::Stream(&mut reader))).read_to_end(&mut sent).expect("reads");
            let stream = &sent[head..];
            let mut arrived = Vec::new();
            Incoming::new(stream, &mark).read_to_end(&mut arrived).expect("arrives");
            prop_assert_eq!(&arrived, &data);
            let part = &stream[..stream.len().saturating_sub(cut)];
            prop_assert!(Incoming::new(part, &mark).read_to_end(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn a_reader_that_fails_sends_no_mark() {
        struct Bad;
        impl Read for Bad {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no more"))
            }
        }
        let script = Script::from(Op::Receive { path: "/a".into(), sparse: Sparse::Holes });
        let delivery = Delivery::of(&script).expect("delivers");
        let head = delivery.head.len();
        let mut bad = Bad;
        let mut outgoing = Outgoing::new(delivery, Some(Input::Stream(&mut bad)));
        let mut sent = Vec::new();
        assert!(outgoing.read_to_end(&mut sent).is_err());
        assert!(outgoing.read_to_end(&mut sent).is_ok());
        assert_eq!(sent.len(), head);
    }
}
