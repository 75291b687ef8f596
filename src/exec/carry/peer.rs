//! The far end of a journey: the files of this machine behind frames. Reads a request, answers it, until the input ends.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::door::{Door, Ends};
use super::frame::{self, GREETING, Head, Kind, PROTOCOL, Packed, bad};
use super::lane::{Key, Lane, Ports};
use super::store::Store;
use super::{Begin, End, Failure, Identity, Span, Why, in_words};
use crate::exec::control::Control;

/// Most digests that one request may ask for, and most spans that one answer holds: what a payload has room for.
pub const MOST: usize = 16_384;

/// How long a stream beside ssh waits for the other end to hear what was said last: ten seconds.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The files that are served.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// To be read.
    pub reads: Vec<PathBuf>,
    /// To be written.
    pub writes: Vec<PathBuf>,
}

/// What frames come from and answers go to.
trait Line {
    fn ear(&mut self) -> &mut dyn Read;
    fn mouth(&mut self) -> &mut dyn Write;
}

/// The streams of an ssh exec.
struct Pipes<'a>(&'a mut dyn Read, &'a mut dyn Write);

impl Line for Pipes<'_> {
    fn ear(&mut self) -> &mut dyn Read {
        self.0
    }

    fn mouth(&mut self) -> &mut dyn Write {
        self.1
    }
}

impl Line for Lane {
    fn ear(&mut self) -> &mut dyn Read {
        self
    }

    fn mouth(&mut self) -> &mut dyn Write {
        self
    }
}

/// Serves these files to whoever drives, over the streams of an ssh exec, and over others beside it once that is asked for
/// ([`Kind::Listen`]); these end with it. A failure is the last answer.
///
/// # Errors
/// The streams broke, or it had to stop. What was written stays, with its journal.
pub fn attend(
    reads: Vec<PathBuf>,
    writes: Vec<PathBuf>,
    input: &mut dyn Read,
    output: &mut dyn Write,
    control: &Control,
) -> io::Result<()> {
    let files = Files { reads, writes };
    let around = std::env::var("SSH_CONNECTION").ok().and_then(|text| Ends::of(&text));
    let mut door = None;
    let mut listen = |payload: &[u8]| {
        // An earlier one is closed first: there is never more than one.
        door = None;
        let opened = around.ok_or_else(|| "sshd does not tell who has connected".to_owned()).and_then(|around| {
            opened(payload, &files, around, control)
                .map_err(|e| format!("Cannot listen at {}: {}", around.here, in_words(&e)))
        });
        opened.map(|open| door.insert(open).port())
    };
    talk(&files, &mut Pipes(input, output), control, &mut listen)
}

/// Opens a port for what a payload of [`Kind::Listen`] names.
///
/// # Errors
/// The payload is none, or no port is free.
pub fn opened(payload: &[u8], files: &Files, around: Ends, control: &Control) -> io::Result<Door> {
    let (ports, key) = payload.split_first_chunk::<4>().ok_or_else(|| bad("no ports"))?;
    let [a, b, c, d] = *ports;
    let ports = Ports { first: u16::from_le_bytes([a, b]), last: u16::from_le_bytes([c, d]) };
    let key = Key::of_bytes(key.try_into().map_err(|_| bad("no key"))?);
    let (files, watch) = (files.clone(), control.clone());
    let serve = move |mut lane: Lane| {
        // Whatever became of it, whoever drives has been told, or is gone.
        let _ = talk(&files, &mut lane, &watch, &mut |_| Err("It is listened to already".to_owned()));
        lane.linger(LAST_WORDS);
    };
    Door::open(ports, around, key, Arc::new(serve), control.clone())
}

/// What a payload of [`Kind::Listen`] names: the port, or why there is none.
type Listen<'a> = dyn FnMut(&[u8]) -> Result<u16, String> + 'a;

fn talk(files: &Files, line: &mut dyn Line, control: &Control, listen: &mut Listen<'_>) -> io::Result<()> {
    let store = Store::new(files.reads.clone(), files.writes.clone());
    let mut peer = Peer { store, packed: Packed::default(), identities: Vec::new(), synced: 0 };
    let answer = |output: &mut dyn Write, head: Head, payload: &[u8]| -> io::Result<()> {
        frame::write(&mut &mut *output, head, &[payload])?;
        output.flush()
    };
    line.mouth().write_all(GREETING)?;
    answer(line.mouth(), Head { kind: Kind::Hello, file: 0, at: PROTOCOL }, &[])?;
    let mut payload = Vec::new();
    loop {
        control.check().map_err(io::Error::other)?;
        let head = match frame::read(&mut line.ear(), &mut payload) {
            // Whoever drives has all that he wanted, or is gone.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        if head.kind == Kind::Listen {
            let (at, text) = listen(&payload).map_or_else(|cause| (0, cause), |port| (port.into(), String::new()));
            answer(line.mouth(), Head { at, ..head }, text.as_bytes())?;
            continue;
        }
        let output = line.mouth();
        match peer.serve(head, &mut payload) {
            Ok(Answer::None) => {}
            Ok(Answer::Bytes(at, bytes)) => answer(output, Head { at, ..head }, &bytes)?,
            Ok(Answer::Range(zip)) => {
                peer.packed.write(&mut &mut *output, head.file, head.at, zip)?;
                output.flush()?;
            }
            Err(Failure { why, text }) => {
                let bytes = [&[why as u8][..], text.as_bytes()].concat();
                return answer(output, Head { kind: Kind::Failed, file: head.file, at: 0 }, &bytes);
            }
        }
    }
}

enum Answer {
    None,
    Bytes(u64, Vec<u8>),
    /// What is packed, compressed or not.
    Range(bool),
}

struct Peer {
    store: Store,
    packed: Packed,
    /// What the files to be written will be copies of.
    identities: Vec<(u16, Identity)>,
    synced: u64,
}

impl Peer {
    fn serve(&mut self, head: Head, payload: &mut Vec<u8>) -> Result<Answer, Failure> {
        let Head { kind, file, at } = head;
        let wrong = |error: io::Error| Failure::new(Why::Other, error.to_string());
        Ok(match kind {
            Kind::Ping => Answer::Bytes(at, Vec::new()),
            Kind::Stat => Answer::Bytes(0, self.store.stat(file)?.to_bytes()),
            Kind::Map => {
                let (at, bytes) = page(&self.store.map(file)?, at);
                Answer::Bytes(at, bytes)
            }
            Kind::Get => {
                self.store.take(file, at, &mut self.packed)?;
                Answer::Range(payload.as_slice() == [1])
            }
            Kind::Range => {
                let known = self.identities.iter().find(|(of, _)| *of == file).map(|(_, identity)| *identity);
                let identity = known.ok_or_else(|| wrong(bad("a range in front of its file")))?;
                self.packed.unpack(payload, identity.len_of(at)).map_err(wrong)?;
                self.store.put(file, at, &self.packed, false)?;
                self.synced += 1;
                Answer::None
            }
            Kind::Begin => {
                let begin = Begin::of_bytes(payload).ok_or_else(|| wrong(bad("no file to begin")))?;
                let known = self.store.begin(file, begin)?;
                self.identities.retain(|(of, _)| *of != file);
                self.identities.push((file, begin.identity));
                Answer::Bytes(known.sure.into(), page(&known.spans, 0).1)
            }
            Kind::Digests => {
                let count =
                    payload.as_slice().try_into().map(u32::from_le_bytes).ok().filter(|count| *count as usize <= MOST);
                let count = count.ok_or_else(|| wrong(bad("no number of digests")))?;
                Answer::Bytes(at, self.store.told(file, at, count)?.concat())
            }
            Kind::Sync => {
                self.store.sync()?;
                Answer::Bytes(self.synced, Vec::new())
            }
            Kind::Hello | Kind::Failed | Kind::Listen => return Err(wrong(bad("an answer as a question"))),
        })
    }
}

/// The spans from range `at` on, as many as an answer holds, and where to go on; 0 for nowhere.
fn page(spans: &[Span], at: u64) -> (u64, Vec<u8>) {
    let mut bytes = Vec::new();
    for (count, (first, long)) in spans.iter().filter(|(first, _)| *first >= at).enumerate() {
        if count == MOST {
            return (*first, bytes);
        }
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&long.to_le_bytes());
    }
    (0, bytes)
}

/// The spans of an answer.
pub(super) fn spans_of(bytes: &[u8]) -> Vec<Span> {
    let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
    numbers.as_chunks::<2>().0.iter().map(|[first, count]| (*first, *count)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_asked_is_answered_or_refused(kind in 1..13_u8, file in 0..3_u16, at: u64, payload in prop::collection::vec(any::<u8>(), 0..80), begin: bool) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("f");
            std::fs::write(&path, [7; 5000]).expect("writes");
            let mut input = Vec::new();
            if begin {
                let identity = Identity { size: 5000, ino: 1, mtime: 1, ctime: 1, mode: 0o600 };
                let begin = Begin { identity, allocate: false, first: true };
                frame::write(&mut input, Head { kind: Kind::Begin, file: 0, at: 0 }, &[&begin.to_bytes()]).expect("writes");
            }
            input.extend([kind]);
            input.extend(file.to_le_bytes());
            input.extend(at.to_le_bytes());
            input.extend(u32::try_from(payload.len()).expect("short").to_le_bytes());
            input.extend(&payload);
            let mut output = Vec::new();
            let control = Control::only_within(std::time::Duration::from_secs(60));
            let _ = attend(vec![path.clone()], vec![dir.path().join("t")], &mut &input[..], &mut output, &control);
            prop_assert_eq!(std::fs::read(&path).expect("reads"), vec![7; 5000]);
            let names = std::fs::read_dir(dir.path()).expect("lists").count();
            prop_assert!(names <= 3);
        }
    }
}
