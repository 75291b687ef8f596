//! The near end of a stream to a peer, driven by frames: an ssh exec of [`Op::Attend`], or a lane beside one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::frame::{self, Digest, GREETING, Head, Kind, PROTOCOL, Packed, bad};
use super::lane::{self, Key, Lane, Ports};
use super::peer::{MOST, spans_of};
use super::{Begin, End, Failure, Identity, Known, NOT_HERE, Span, Why, in_words};
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
    line: Line,
    /// Bytes of data that went through it.
    pub(super) worn: u64,
    payload: Vec<u8>,
    /// The state of each file, for the length of its ranges.
    identities: Vec<(u16, Identity)>,
    asked: VecDeque<u64>,
    zip: bool,
}

/// What carries the frames.
enum Line {
    /// The pipes of an ssh client, and what became of it.
    Ssh { to: Option<PipeWriter>, from: PipeReader, over: Receiver<Result<(), ScriptError>> },
    /// A connection beside it.
    Lane(Box<Lane>),
}

impl Read for Line {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Ssh { from, .. } => from.read(room),
            Self::Lane(lane) => lane.read(room),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Ssh { to: Some(to), .. } => to.write(bytes),
            Self::Ssh { to: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
            Self::Lane(lane) => lane.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Ssh { .. } => Ok(()),
            Self::Lane(lane) => lane.flush(),
        }
    }
}

impl Line {
    fn send(&mut self, packed: &Packed, file: u16, at: u64, zip: bool) -> io::Result<usize> {
        match self {
            Self::Ssh { to: Some(to), .. } => packed.send(to, file, at, zip),
            Self::Ssh { to: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
            Self::Lane(lane) => {
                let sent = packed.write(lane, file, at, zip)?;
                lane.flush().map(|()| sent)
            }
        }
    }
}

impl Link {
    /// A link over these.
    fn over(host: String, line: Line, zip: bool) -> Self {
        Self { host, line, worn: 0, payload: Vec::new(), identities: Vec::new(), asked: VecDeque::new(), zip }
    }

    /// Connects beside ssh, to where `ssh` goes, at the port that the peer named, and waits for the peer's greeting.
    ///
    /// # Errors
    /// [`Why::Unreachable`]: nobody is there within [`lane::REACH`] who knows the key.
    pub fn beside(ssh: &OpenSsh, (port, key): (u16, &Key), zip: bool, control: &Control) -> Result<Self, Failure> {
        let host = ssh.name().to_owned();
        let failed = |cause: &str| Failure::new(Why::Unreachable, format!("Cannot use port {port} of {host}: {cause}"));
        let config = ssh.config(control).ok_or_else(|| failed("ssh does not tell where it goes"))?;
        let lane = Lane::connect(config, port, key, control).map_err(|e| failed(&in_words(&e)))?;
        Self::along(lane, &host, zip)
    }

    /// The same over a lane that is there.
    ///
    /// # Errors
    /// It is not greeted by a peer of this version.
    pub fn along(lane: Lane, host: &str, zip: bool) -> Result<Self, Failure> {
        let mut link = Self::over(host.to_owned(), Line::Lane(Box::new(lane)), zip);
        link.hello()?;
        if let Line::Lane(lane) = &mut link.line {
            lane.calm();
        }
        Ok(link)
    }

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
        let mut link = Self::over(host, Line::Ssh { to: Some(to), from, over }, zip);
        if let Err(error) = sent {
            return Err(link.broken(&error));
        }
        link.hello().map(|()| link)
    }

    /// Waits for the peer, which has to be of this version.
    fn hello(&mut self) -> Result<(), Failure> {
        let not_there = |host: &str, more: &str| Failure::new(Why::NotThere, format!("{host}: {NOT_HERE}{more}"));
        if !self.greeted()? {
            return Err(not_there(&self.host, ", or its login shell talks too much"));
        }
        if self.read()? != (Head { kind: Kind::Hello, file: 0, at: PROTOCOL }) {
            return Err(not_there(&self.host, ""));
        }
        Ok(())
    }

    /// Skips what a login shell has to say, up to [`GREETING`].
    fn greeted(&mut self) -> Result<bool, Failure> {
        let mut last = VecDeque::with_capacity(GREETING.len());
        // One at a time: what follows is not ours to take.
        let mut byte = [0];
        for _ in 0..NOISE {
            if let Err(error) = self.line.read_exact(&mut byte) {
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
        if let Line::Ssh { to, .. } = &mut self.line {
            *to = None;
        }
        let mut said = Vec::new();
        // What it said before it ended may still lie in the pipe.
        while let Ok(head) = frame::read(&mut self.line, &mut said) {
            if head.kind == Kind::Failed {
                return failed(&self.host, &said);
            }
        }
        let over = match &self.line {
            Line::Ssh { over, .. } => over.recv_timeout(LAST_WORDS).ok(),
            Line::Lane(_) => None,
        };
        match over {
            Some(Err(error)) => {
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
        // Before the next answer is read, a lane sends what was gathered.
        frame::write(&mut self.line, head, &[payload]).map_err(|error| self.broken(&error))
    }

    fn read(&mut self) -> Result<Head, Failure> {
        match frame::read(&mut self.line, &mut self.payload) {
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
    Failure::new(Why::of(why), format!("{host}: {}", plain(text)))
}

/// What a peer said in words, as one line of at most 1000 characters.
fn plain(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(1000).collect()
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
        self.worn += self.payload.len() as u64;
        packed.unpack(&mut self.payload, identity.len_of(at)).map_err(|e| self.odd(&e))
    }

    fn begin(&mut self, file: u16, begin: Begin) -> Result<Known, Failure> {
        self.send(Kind::Begin, file, 0, &begin.to_bytes())?;
        let sure = self.answer(Kind::Begin, file)? == 1;
        self.know(file, begin.identity);
        Ok(Known { spans: spans_of(&self.payload), sure })
    }

    fn put(&mut self, file: u16, at: u64, packed: &Packed, zip: bool) -> Result<usize, Failure> {
        // ssh's pipe breaks when the peer ends; a peer beside it listens on for a while, so that its last word is heard.
        if matches!(&self.line, Line::Lane(lane) if lane.speaks()) {
            self.read()?;
            return Err(self.odd(&bad("an answer without a question")));
        }
        let sent = self.line.send(packed, file, at, zip).map_err(|error| self.broken(&error))?;
        self.worn += sent as u64;
        Ok(sent)
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

    fn listen(&mut self, ports: Ports, key: &Key) -> Result<Result<u16, String>, Failure> {
        let payload = [&ports.first.to_le_bytes()[..], &ports.last.to_le_bytes(), key.reveal()].concat();
        self.send(Kind::Listen, 0, 0, &payload)?;
        Ok(match u16::try_from(self.answer(Kind::Listen, 0)?) {
            Ok(0) | Err(_) => Err(plain(&self.payload)),
            Ok(port) => Ok(port),
        })
    }

    fn is_worn(&self) -> bool {
        matches!(self.line, Line::Lane(_)) && self.worn >= lane::MOST
    }
}

impl Drop for Link {
    /// The peer ends with its input; it is waited for, but not long.
    fn drop(&mut self) {
        if let Line::Ssh { to, over, .. } = &mut self.line {
            *to = None;
            let _ = over.recv_timeout(Duration::from_secs(2));
        }
    }
}
