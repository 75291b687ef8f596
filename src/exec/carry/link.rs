//! The near end of a stream to a peer: an ssh exec of [`Op::Attend`], driven by frames.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::frame::{self, Digest, GREETING, Head, Kind, PROTOCOL, Packed, bad};
use super::peer::{MOST, spans_of};
use super::{Begin, End, Failure, Identity, Known, NOT_HERE, Span, Why};
use crate::exec::control::Control;
use crate::exec::host::openssh::OpenSsh;
use crate::exec::host::wire::Delivery;
use crate::exec::host::{ErrorKind, Host, ScriptError};
use crate::exec::op::{Op, Script};

/// How long ssh may take to end and to say why, once its streams have ended.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Bytes that a pipe to or from ssh holds, if we may: with fewer, both sides take turns.
const PIPE: usize = 1 << 20;

/// Bytes that a login shell may print in front of the peer: 64 KiB, a long message of the day.
const NOISE: usize = 64 << 10;

/// A stream to a peer.
pub struct Link {
    host: String,
    to: Option<PipeWriter>,
    from: PipeReader,
    over: Receiver<Result<(), ScriptError>>,
    payload: Vec<u8>,
    /// The state of each file, for the length of its ranges.
    identities: Vec<(u16, Identity)>,
    asked: VecDeque<u64>,
    zip: bool,
}

impl Link {
    /// Logs in, and waits for the peer's greeting. `shared` is to go through a multiplexing master, if one is there.
    ///
    /// # Errors
    /// [`Why::Unreachable`] and [`Why::NotThere`] where nothing was touched; else as the peer has it.
    pub fn open(
        ssh: &Arc<OpenSsh>,
        (reads, writes): (Vec<PathBuf>, Vec<PathBuf>),
        (zip, shared): (bool, bool),
        control: &Control,
    ) -> Result<Self, Failure> {
        let host = ssh.name().to_owned();
        let script = Script::from(Op::Attend { reads, writes });
        let local = |e: io::Error| Failure::new(Why::Other, format!("Cannot open a stream to {host}: {e}"));
        let delivery = Delivery::of(&script).map_err(local)?;
        let (stdin, mut to) = io::pipe().map_err(local)?;
        let (from, stdout) = io::pipe().map_err(local)?;
        for pipe in [rustix::pipe::fcntl_setpipe_size(&to, PIPE), rustix::pipe::fcntl_setpipe_size(&from, PIPE)] {
            // A system that allows less has its reasons.
            let _ = pipe;
        }
        let ssh = Arc::clone(ssh);
        let (tell, over) = channel();
        let control = control.clone();
        let run = move || {
            let ends = (File::from(OwnedFd::from(stdin)), File::from(OwnedFd::from(stdout)));
            // Nobody may listen any more.
            let _ = tell.send(ssh.converse(&script, ends, shared, &control));
        };
        std::thread::Builder::new().name("stream".to_owned()).spawn(run).map_err(local)?;
        // Shorter than a pipe, but a path may be long: it fails like all else when ssh is gone.
        let sent = to.write_all(&delivery.head);
        let mut link = Self {
            host: host.clone(),
            to: Some(to),
            from,
            over,
            payload: Vec::new(),
            identities: Vec::new(),
            asked: VecDeque::new(),
            zip,
        };
        if let Err(error) = sent {
            return Err(link.broken(&error));
        }
        if !link.greeted()? {
            return Err(Failure::new(Why::NotThere, format!("{host}: {NOT_HERE}, or its login shell talks too much")));
        }
        let hello = link.read()?;
        if hello != (Head { kind: Kind::Hello, file: 0, at: PROTOCOL }) {
            return Err(Failure::new(Why::NotThere, format!("{host}: {NOT_HERE}")));
        }
        Ok(link)
    }

    /// Skips what a login shell has to say, up to [`GREETING`].
    fn greeted(&mut self) -> Result<bool, Failure> {
        let mut last = VecDeque::with_capacity(GREETING.len());
        // One at a time: what follows is not ours to take.
        let mut byte = [0];
        for _ in 0..NOISE {
            if let Err(error) = self.from.read_exact(&mut byte) {
                return Err(self.broken(&error));
            }
            if last.len() == GREETING.len() {
                last.pop_front();
            }
            last.push_back(byte[0]);
            if last.iter().eq(GREETING) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Why the stream ended: what the peer said last, or what ssh did.
    fn broken(&mut self, error: &io::Error) -> Failure {
        self.to = None;
        let mut said = Vec::new();
        // What it said before it ended may still lie in the pipe.
        while let Ok(head) = frame::read(&mut self.from, &mut said) {
            if head.kind == Kind::Failed {
                return failed(&self.host, &said);
            }
        }
        match self.over.recv_timeout(LAST_WORDS) {
            Ok(Err(error)) => {
                let text = error.to_string();
                let why = match error.kind {
                    ErrorKind::Unreachable => Why::Unreachable,
                    _ if text.contains(NOT_HERE) => Why::NotThere,
                    ErrorKind::Lost | ErrorKind::Stopped(_) | ErrorKind::Protocol | ErrorKind::Stream => Why::Lost,
                    ErrorKind::Failed => Why::Other,
                };
                Failure::new(why, text)
            }
            _ => Failure::new(Why::Lost, format!("Lost the connection to {}: {error}", self.host)),
        }
    }

    fn send(&mut self, kind: Kind, file: u16, at: u64, payload: &[u8]) -> Result<(), Failure> {
        let head = Head { kind, file, at };
        self.write(|to| frame::write(to, head, &[payload]))
    }

    fn write<T>(&mut self, write: impl FnOnce(&mut PipeWriter) -> io::Result<T>) -> Result<T, Failure> {
        let done = match &mut self.to {
            Some(to) => write(to),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        done.map_err(|error| self.broken(&error))
    }

    fn read(&mut self) -> Result<Head, Failure> {
        match frame::read(&mut self.from, &mut self.payload) {
            Ok(head) if head.kind == Kind::Failed => Err(failed(&self.host, &self.payload)),
            Ok(head) => Ok(head),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(self.odd(&error)),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn odd(&self, error: &io::Error) -> Failure {
        Failure::new(Why::Other, format!("Cannot understand {}: {error}", self.host))
    }

    fn answer(&mut self, kind: Kind, file: u16) -> Result<u64, Failure> {
        let head = self.read()?;
        if (head.kind, head.file) == (kind, file) { Ok(head.at) } else { Err(self.odd(&bad("another answer"))) }
    }

    fn identity(&self, file: u16) -> Result<Identity, Failure> {
        let known = self.identities.iter().find(|(of, _)| *of == file);
        known.map(|(_, identity)| *identity).ok_or_else(|| Failure::new(Why::Other, "There is no file of this number"))
    }

    fn know(&mut self, file: u16, identity: Identity) {
        self.identities.retain(|(of, _)| *of != file);
        self.identities.push((file, identity));
    }
}

fn failed(host: &str, payload: &[u8]) -> Failure {
    let (why, text) = payload.split_first().map_or((0, &[][..]), |(why, text)| (*why, text));
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(1000).collect();
    Failure::new(Why::of(why), format!("{host}: {text}"))
}

impl End for Link {
    fn stat(&mut self, file: u16) -> Result<Identity, Failure> {
        self.send(Kind::Stat, file, 0, &[])?;
        self.answer(Kind::Stat, file)?;
        let identity = Identity::of_bytes(&self.payload).ok_or_else(|| self.odd(&bad("no identity")))?;
        self.know(file, identity);
        Ok(identity)
    }

    fn map(&mut self, file: u16) -> Result<Vec<Span>, Failure> {
        let (mut spans, mut at) = (Vec::new(), 0);
        loop {
            self.send(Kind::Map, file, at, &[])?;
            let next = self.answer(Kind::Map, file)?;
            spans.extend(spans_of(&self.payload));
            match next {
                0 => return Ok(spans),
                next if next > at => at = next,
                _ => return Err(self.odd(&bad("a map without an end"))),
            }
        }
    }

    fn ask(&mut self, file: u16, ranges: &[u64]) -> Result<(), Failure> {
        for at in ranges {
            self.send(Kind::Get, file, *at, &[u8::from(self.zip)])?;
            self.asked.push_back(*at);
        }
        Ok(())
    }

    fn take(&mut self, file: u16, at: u64, packed: &mut Packed) -> Result<(), Failure> {
        let identity = self.identity(file)?;
        let head = self.read()?;
        if head != (Head { kind: Kind::Range, file, at }) || self.asked.pop_front() != Some(at) {
            return Err(self.odd(&bad("another range than asked for")));
        }
        packed.unpack(&mut self.payload, identity.len_of(at)).map_err(|e| self.odd(&e))
    }

    fn begin(&mut self, file: u16, begin: Begin) -> Result<Known, Failure> {
        self.send(Kind::Begin, file, 0, &begin.to_bytes())?;
        let sure = self.answer(Kind::Begin, file)? == 1;
        self.know(file, begin.identity);
        Ok(Known { spans: spans_of(&self.payload), sure })
    }

    fn put(&mut self, file: u16, at: u64, packed: &Packed, zip: bool) -> Result<usize, Failure> {
        self.write(|to| packed.send(to, file, at, zip))
    }

    fn tell(&mut self, file: u16, at: u64, count: u32) -> Result<(), Failure> {
        self.send(Kind::Digests, file, at, &count.to_le_bytes())
    }

    fn told(&mut self, file: u16, at: u64, count: u32) -> Result<Vec<Digest>, Failure> {
        let answered = self.answer(Kind::Digests, file)?;
        if answered != at || self.payload.len() != count as usize * 32 || count as usize > MOST {
            return Err(self.odd(&bad("other digests than asked for")));
        }
        Ok(self.payload.as_chunks::<32>().0.to_vec())
    }

    fn sync(&mut self) -> Result<(), Failure> {
        self.send(Kind::Sync, 0, 0, &[])?;
        self.answer(Kind::Sync, 0).map(drop)
    }

    fn ping(&mut self) -> Result<(), Failure> {
        self.send(Kind::Ping, 0, 0, &[])?;
        self.answer(Kind::Ping, 0).map(drop)
    }
}

impl Drop for Link {
    /// The peer ends with its input; it is waited for, but not long.
    fn drop(&mut self) {
        self.to = None;
        let _ = self.over.recv_timeout(Duration::from_secs(2));
    }
}
