//! Takes files from one end to the other: ranges that hold data, by as many streams as pay, compared at both ends.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::frame::{Digest, Packed, RANGE, digest_of, whole};
use super::lane::{Key, Ports};
use super::link::Link;
use super::store::{Store, ranges};
use super::{Arrived, Begin, Carry, End, Failure, Identity, Known, Report, Why};
use crate::exec::control::Control;
use crate::exec::host::config::SshConfig;
use crate::exec::host::openssh::OpenSsh;
use crate::exec::host::{Host as _, HostName};
use crate::exec::process::Programs;

/// Ranges that a stream takes at a time.
const UNIT: usize = 16;

/// How often it is told how far it is.
const EVERY: Duration = Duration::from_secs(10);

/// Ranges below which one stream is all that pays over a far link: it needs half a second for a login, and a stream
/// brings 32 MiB in that time.
const FAR_FEW: usize = 32;

/// The same over a near link: one stream brings 512 MiB while another one logs in and makes up for the processor time
/// that this took.
const FEW: usize = 512;

/// Ranges whose digests are asked for at a time where nothing has to be read for them.
const SURE: usize = 4096;

/// Such questions that are under way at once: a file in a thousand pieces would need a thousand round trips.
const UNDER_WAY: usize = 64;

/// A round trip from which on it is the window of a stream that limits it, and not the processors.
const FAR: Duration = Duration::from_millis(4);

/// Streams over such a link; more than ten that log in at once are refused by sshd's defaults.
const FAR_STREAMS: u32 = 8;

/// Streams over a near link: each is one thread of ssh at both ends.
const NEAR_STREAMS: u32 = 4;

/// Bytes a second of one stream below which the link is the bottleneck, and not the processors: compressing pays.
const SLOW: u64 = 60 << 20;

/// Ranges from which on a stream beside ssh pays: it costs a few milliseconds.
const WORTH_A_LANE: usize = 8;

/// Ranges from which on as many pay as there are processors: with fewer one is through before another has its share.
const WORTH_LANES: usize = 2 * UNIT;

/// How long the first stream leaves the data to a lane that is still connecting: no longer than a near one takes.
const PATIENCE: Duration = Duration::from_millis(100);

/// Both ends, for one stream.
struct Stream {
    source: Box<dyn End + Send>,
    target: Box<dyn End + Send>,
    packed: Packed,
    /// Whether it may go through the operator's multiplexing master: the first does, for it is there at once; what is much
    /// is left to connections of their own.
    shared: bool,
    /// Whether it goes beside ssh, as far as it goes anywhere.
    lane: bool,
}

/// Runs [`super::super::op::Op::Carry`], see there for what it writes.
///
/// # Errors
/// It had to stop, or `output` is gone. What became of the files is in the report.
pub fn run(carry: &Carry, programs: &Programs, control: &Control, output: &mut (dyn Write + Send)) -> io::Result<()> {
    let report = match all(carry, programs, control, output) {
        Ok(arrived) => Report::Done(arrived),
        Err(Failure { why, text }) => {
            control.check().map_err(io::Error::other)?;
            Report::Failed { why, text }
        }
    };
    // On a line of its own, whatever a login shell has said before.
    writeln!(output, "\nreport {}", serde_json::to_string(&report).map_err(io::Error::other)?)?;
    output.flush()
}

fn all(
    carry: &Carry,
    programs: &Programs,
    control: &Control,
    output: &mut (dyn Write + Send),
) -> Result<Vec<Arrived>, Failure> {
    let reads = carry.files.iter().map(|file| file.from.clone()).collect();
    let writes = carry.files.iter().map(|file| file.part.clone()).collect();
    let ends = Ends {
        source: Place::new((carry.source.as_deref(), None), (reads, Vec::new()), programs)?,
        target: Place::new((carry.target.as_deref(), carry.address), (Vec::new(), writes), programs)?,
        zip: carry.zip == Some(true),
        control,
        ports: carry.ports,
        asked: AtomicBool::new(false),
        notes: Mutex::default(),
    };
    let mut first = ends.open(true)?;
    let (most, few) = first.how_many(carry)?;
    let mut streams = vec![Some(first)];
    let mut arrived = Vec::new();
    for file in 0..carry.files.len() {
        let number = u16::try_from(file).map_err(|_| Failure::new(Why::Other, "Too many files for one journey"))?;
        let first = streams[0].as_mut().ok_or_else(gone)?;
        let identity = first.source.stat(number)?;
        let data = ranges(&first.source.map(number)?, &identity);
        let job = Job::new(carry, number, identity, &data, control);
        arrived.push(job.run(&ends, &mut streams, (most, few), &data, output)?);
    }
    Ok(arrived)
}

fn changed() -> Failure {
    Failure::new(Why::Changed, "The original was written to while it was copied")
}

/// The first stream is there from the start.
fn gone() -> Failure {
    Failure::new(Why::Lost, "The stream is gone")
}

/// Where one end is, and its files there.
struct Place {
    /// Nothing for this machine. One for all streams: it is asked for its configuration once.
    host: Option<Arc<OpenSsh>>,
    files: (Vec<PathBuf>, Vec<PathBuf>),
    /// Where the peer listens for lanes, and the key.
    door: OnceLock<(u16, Key)>,
    /// Nobody could get in there.
    shut: AtomicBool,
    /// Somebody did.
    used: AtomicBool,
}

impl Place {
    fn new(
        (host, address): (Option<&str>, Option<IpAddr>),
        files: (Vec<PathBuf>, Vec<PathBuf>),
        programs: &Programs,
    ) -> Result<Self, Failure> {
        let name = host.map(HostName::new).transpose().map_err(|e| Failure::new(Why::Other, e.to_string()))?;
        let host = name.map(|name| Arc::new(OpenSsh::new(name, programs.clone()).at_address(address)));
        Ok(Self { host, files, door: OnceLock::new(), shut: AtomicBool::default(), used: AtomicBool::default() })
    }

    /// Where a lane could go to.
    fn door(&self) -> Option<(&Arc<OpenSsh>, &(u16, Key))> {
        let door = self.door.get().filter(|_| !self.shut.load(Ordering::Relaxed))?;
        self.host.as_ref().map(|ssh| (ssh, door))
    }

    /// Has the peer listen, if it is one that can be connected to; says why there is no door.
    fn unlock(&self, end: &mut dyn End, ports: Ports, control: &Control) -> Result<Option<String>, Failure> {
        let Some(ssh) = &self.host else { return Ok(None) };
        let by_way =
            |config: &SshConfig| ["proxyjump", "proxycommand"].into_iter().find(|key| config.get(key).is_some());
        if let Some(key) = ssh.config(control).and_then(by_way) {
            return Ok(Some(format!("{} is reached by {key}, its data goes by ssh", ssh.name())));
        }
        let key = Key::new().map_err(|e| Failure::new(Why::Other, e.to_string()))?;
        Ok(match end.listen(ports, &key)? {
            Ok(port) => {
                // Asked once.
                let _ = self.door.set((port, key));
                None
            }
            Err(cause) => Some(format!("{}: {cause}; its data goes by ssh", ssh.name())),
        })
    }

    fn open(&self, zip: bool, shared: bool, control: &Control) -> Result<Box<dyn End + Send>, Failure> {
        let (reads, writes) = self.files.clone();
        Ok(match &self.host {
            Some(ssh) => Box::new(Link::open(ssh, (reads, writes), (zip, shared), control)?),
            None => Box::new(Store::new(reads, writes)),
        })
    }
}

/// Both ends of all streams.
struct Ends<'a> {
    source: Place,
    target: Place,
    zip: bool,
    control: &'a Control,
    ports: Option<Ports>,
    /// Whether the peers were asked for doors.
    asked: AtomicBool,
    /// What is to be told.
    notes: Mutex<Vec<String>>,
}

impl Ends<'_> {
    /// Has the peers open their doors, once, and says whether there is one.
    fn unlock(&self, first: &mut Stream) -> Result<bool, Failure> {
        if let Some(ports) = self.ports.filter(|_| !self.asked.swap(true, Ordering::Relaxed)) {
            let ends = [(&self.target, &mut first.target), (&self.source, &mut first.source)];
            for (place, end) in ends {
                let note = place.unlock(&mut **end, ports, self.control)?;
                lock(&self.notes).extend(note);
            }
        }
        Ok(self.has_door())
    }

    fn has_door(&self) -> bool {
        self.target.door().is_some() || self.source.door().is_some()
    }

    /// A further stream: beside ssh where there are doors, else by ssh where that pays too.
    fn more(&self, by_ssh: bool) -> Option<Stream> {
        let one = |place: &Place| -> Option<(Box<dyn End + Send>, bool)> {
            if let Some((ssh, (port, key))) = place.door() {
                match Link::beside(ssh, (*port, key), self.zip, self.control) {
                    Ok(link) => {
                        if !place.used.swap(true, Ordering::Relaxed) {
                            lock(&self.notes).push(format!("{}: the data goes beside ssh, at port {port}", ssh.name()));
                        }
                        return Some((Box::new(link), true));
                    }
                    Err(failure) if !place.shut.swap(true, Ordering::Relaxed) => {
                        lock(&self.notes).push(format!("{failure}; its data goes by ssh"));
                    }
                    Err(_) => {}
                }
            }
            let near = place.host.is_none();
            let end = if near || by_ssh { place.open(self.zip, false, self.control).ok() } else { None };
            end.map(|end| (end, near))
        };
        let (target, source) = (one(&self.target)?, one(&self.source)?);
        let lane = target.1 && source.1;
        Some(Stream { source: source.0, target: target.0, packed: Packed::default(), shared: false, lane })
    }

    fn open(&self, shared: bool) -> Result<Stream, Failure> {
        // The target first: where it cannot be reached, nothing else has to be.
        let target = self.target.open(self.zip, shared, self.control)?;
        let source = self.source.open(self.zip, shared, self.control)?;
        let by_master =
            |host: &Option<Arc<OpenSsh>>| host.as_ref().is_some_and(|ssh| ssh.has_live_master(self.control));
        let shared = shared && (by_master(&self.source.host) || by_master(&self.target.host));
        Ok(Stream { source, target, packed: Packed::default(), shared, lane: false })
    }
}

impl Stream {
    fn is_worn(&self) -> bool {
        self.source.is_worn() || self.target.is_worn()
    }

    /// Streams at most, and up to how many ranges one is enough.
    fn how_many(&mut self, carry: &Carry) -> Result<(usize, usize), Failure> {
        let mut trip = Duration::MAX;
        for _ in 0..2 {
            let begun = Instant::now();
            self.source.ping()?;
            self.target.ping()?;
            trip = trip.min(begun.elapsed());
        }
        let processors = thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let most = match carry.streams {
            0 if trip >= FAR => FAR_STREAMS,
            0 => processors.min(NEAR_STREAMS),
            fixed => fixed.min(FAR_STREAMS),
        };
        Ok((most as usize, if trip >= FAR { FAR_FEW } else { FEW }))
    }
}

/// Ranges that a stream takes next.
enum Unit {
    /// Said to be there: digests are compared.
    Known(u64, u32),
    /// To be sent.
    New(Vec<u64>),
}

/// One file on its way.
struct Job<'a> {
    file: u16,
    identity: Identity,
    begin: Begin,
    zip: Option<bool>,
    rate: Option<u64>,
    control: &'a Control,
    known: Mutex<VecDeque<Unit>>,
    new: Mutex<VecDeque<Unit>>,
    digests: Mutex<BTreeMap<u64, Digest>>,
    due: Mutex<Instant>,
    over: AtomicBool,
    /// Whether a stream with a connection of its own is at work.
    joined: AtomicBool,
    /// Whether one is that goes beside ssh.
    lane: AtomicBool,
    done: AtomicU64,
    data: u64,
    resumed: AtomicU64,
    sent: AtomicU64,
}

impl<'a> Job<'a> {
    fn new(carry: &Carry, file: u16, identity: Identity, data: &[u64], control: &'a Control) -> Self {
        let allocate = carry.sparse == crate::exec::op::Sparse::Allocate;
        Self {
            file,
            identity,
            begin: Begin { identity, allocate, first: true },
            zip: carry.zip,
            rate: carry.rate.filter(|rate| *rate > 0),
            control,
            known: Mutex::default(),
            new: Mutex::default(),
            digests: Mutex::default(),
            due: Mutex::new(Instant::now()),
            over: AtomicBool::new(false),
            joined: AtomicBool::new(false),
            lane: AtomicBool::new(false),
            done: AtomicU64::new(0),
            data: data.iter().map(|at| identity.len_of(*at) as u64).sum(),
            resumed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    fn run(
        self,
        ends: &Ends<'_>,
        streams: &mut Vec<Option<Stream>>,
        (most, few): (usize, usize),
        data: &[u64],
        output: &mut (dyn Write + Send),
    ) -> Result<Arrived, Failure> {
        let first = streams[0].as_mut().ok_or_else(gone)?;
        let mut known = first.target.begin(self.file, self.begin)?;
        if known.sure {
            self.believe(first, &mut known, data)?;
        }
        let rest = Begin { first: false, ..self.begin };
        let left = self.plan(data, &ranges(&known.spans, &self.identity));
        let much = left > few && most > 1;
        // Streams by ssh, if it comes to that.
        let by_ssh = if much { most + usize::from(first.shared) } else { 1 };
        let lanes = left >= WORTH_A_LANE && ends.unlock(first)?;
        // The first is by ssh, and leaves the data to lanes.
        let wanted = match lanes {
            true if left > WORTH_LANES => 1 + most,
            true => 2,
            false => by_ssh,
        };
        streams.resize_with(wanted.max(streams.len()), || None);
        let done = self.work(ends, streams, (rest, by_ssh), output).and_then(|()| self.finish(streams));
        for note in std::mem::take(&mut *lock(&ends.notes)) {
            // If nobody listens any more, that is found by whoever has something to say.
            let _ = writeln!(output, "\nnote {note}");
        }
        if let Err(failure) = done {
            return Err(self.why(streams, failure));
        }
        self.settle(streams[0].as_mut().ok_or_else(gone)?)?;
        let digests = lock(&self.digests);
        let digest = whole(self.identity.size, digests.iter());
        Ok(Arrived {
            size: self.identity.size,
            digest: blake3::Hash::from(digest).to_hex().to_string(),
            data: self.data,
            resumed: self.resumed.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
        })
    }

    /// Bytes that are not what was announced were written to on their way, if the source is not what it was.
    fn why(&self, streams: &mut [Option<Stream>], failure: Failure) -> Failure {
        let first = streams.iter_mut().flatten().next().filter(|_| failure.why == Why::Differs);
        match first.map(|first| first.source.stat(self.file)) {
            Some(Ok(now)) if !now.same_content(&self.identity) => changed(),
            _ => failure,
        }
    }

    /// Takes the digests of the ranges of which the target is sure; what it cannot tell is compared or sent.
    fn believe(&self, first: &mut Stream, known: &mut Known, data: &[u64]) -> Result<(), Failure> {
        let known = std::mem::take(known);
        let there = ranges(&known.spans, &self.identity);
        let there = there.into_iter().filter(|at| data.binary_search(at).is_ok());
        let mut questions = Vec::new();
        for (at, count) in super::journal::spans(there) {
            let pieces = (at..at + count).step_by(SURE);
            questions.extend(pieces.map(|first_of| {
                let count = (at + count - first_of).min(SURE as u64);
                (first_of, u32::try_from(count).unwrap_or(0))
            }));
        }
        for questions in questions.chunks(UNDER_WAY) {
            for (at, count) in questions {
                first.target.tell(self.file, *at, *count)?;
            }
            for (at, count) in questions {
                for (at, digest) in (*at..).zip(first.target.told(self.file, *at, *count)?) {
                    self.resume(at, digest);
                }
            }
        }
        Ok(())
    }

    fn resume(&self, at: u64, digest: Digest) {
        let len = self.identity.len_of(at) as u64;
        lock(&self.digests).insert(at, digest);
        self.resumed.fetch_add(len, Ordering::Relaxed);
        self.done.fetch_add(len, Ordering::Relaxed);
    }

    /// Units in the order of the file; what is said to be there comes first. Tells how many ranges there are left.
    fn plan(&self, data: &[u64], known: &[u64]) -> usize {
        let data: Vec<u64> = {
            let digests = lock(&self.digests);
            data.iter().copied().filter(|at| !digests.contains_key(at)).collect()
        };
        let (old, new): (Vec<u64>, Vec<u64>) = data.iter().partition(|at| known.binary_search(at).is_ok());
        let mut units = lock(&self.known);
        for (at, count) in super::journal::spans(old) {
            let pieces = (at..at + count).step_by(UNIT);
            units.extend(pieces.map(|first| {
                let left = (at + count - first).min(UNIT as u64);
                Unit::Known(first, u32::try_from(left).unwrap_or(0))
            }));
        }
        lock(&self.new).extend(new.chunks(UNIT).map(|ranges| Unit::New(ranges.to_vec())));
        data.len()
    }

    /// All streams at once, until there is nothing left, or one has failed.
    fn work(
        &self,
        ends: &Ends<'_>,
        streams: &mut [Option<Stream>],
        (rest, by_ssh): (Begin, usize),
        output: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let (tell, told) = channel();
        let may_wait = streams.len() > 1 && ends.has_door();
        thread::scope(|scope| {
            for (number, stream) in streams.iter_mut().enumerate() {
                let tell = tell.clone();
                scope.spawn(move || {
                    if number == 0 && may_wait {
                        self.await_lane(ends);
                    }
                    // Each logs in by itself, while the first is at work. Fewer streams are slower, and no failure.
                    if stream.is_none() {
                        *stream = ends.more(number < by_ssh);
                    }
                    let mut result = Ok(());
                    while let Some(this) = stream {
                        result = self.stream(this, (number > 0).then_some(rest));
                        if result.is_err() || !this.is_worn() {
                            break;
                        }
                        // The others go on with what is left, if there is no other.
                        *stream = ends.more(true);
                    }
                    let failed = result.is_err();
                    // The receiver waits for all of them, and takes the first failure for the cause of the others.
                    let _ = tell.send(result);
                    if failed {
                        self.over.store(true, Ordering::Relaxed);
                    }
                });
            }
            drop(tell);
            let mut first = Ok(());
            loop {
                match told.recv_timeout(EVERY) {
                    Ok(result) => first = first.and(result),
                    Err(RecvTimeoutError::Disconnected) => return first,
                    Err(RecvTimeoutError::Timeout) => {
                        let line = format!("\nprogress {} {}\n", self.done.load(Ordering::Relaxed), self.data);
                        if output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_err() {
                            self.over.store(true, Ordering::Relaxed);
                        }
                    }
                }
            }
        })
    }

    /// What nobody took any more: a stream that found another one at work left it to that, which had ended.
    fn finish(&self, streams: &mut [Option<Stream>]) -> Result<(), Failure> {
        self.joined.store(false, Ordering::Relaxed);
        self.lane.store(false, Ordering::Relaxed);
        if lock(&self.new).is_empty() {
            return Ok(());
        }
        self.stream(streams.first_mut().and_then(Option::as_mut).ok_or_else(gone)?, None)
    }

    /// Gives a lane that is about to be there the time that it takes: the first stream has nothing to do then.
    fn await_lane(&self, ends: &Ends<'_>) {
        let until = Instant::now() + PATIENCE;
        let there = || self.lane.load(Ordering::Relaxed) || self.over.load(Ordering::Relaxed);
        while !there() && ends.has_door() && Instant::now() < until {
            thread::sleep(Duration::from_micros(500));
        }
    }

    fn stream(&self, stream: &mut Stream, begin: Option<Begin>) -> Result<(), Failure> {
        if let Some(begin) = begin {
            stream.target.begin(self.file, begin)?;
            stream.source.stat(self.file)?;
            self.joined.store(true, Ordering::Relaxed);
            self.lane.fetch_or(stream.lane, Ordering::Relaxed);
        }
        while let Some(Unit::Known(at, count)) = next(&self.known) {
            self.check()?;
            self.compare(stream, at, count)?;
        }
        let mut pace = Pace { zip: self.zip == Some(true), begun: Instant::now(), sent: 0, told: 0 };
        let mut current = self.ask(stream)?;
        while let Some(unit) = current {
            // What comes next is asked for before this is taken, so that a peer never waits for us.
            current = self.ask(stream)?;
            for at in unit {
                self.check()?;
                self.bring(stream, at, &mut pace)?;
            }
        }
        stream.target.sync()
    }

    fn ask(&self, stream: &mut Stream) -> Result<Option<Vec<u64>>, Failure> {
        let others = (stream.shared && self.joined.load(Ordering::Relaxed))
            || (!stream.lane && self.lane.load(Ordering::Relaxed));
        if others || stream.is_worn() {
            return Ok(None);
        }
        match next(&self.new) {
            Some(Unit::New(ranges)) => stream.source.ask(self.file, &ranges).map(|()| Some(ranges)),
            _ => Ok(None),
        }
    }

    fn check(&self) -> Result<(), Failure> {
        self.control.check().map_err(|why| Failure::new(Why::Lost, why.to_string()))?;
        if self.over.load(Ordering::Relaxed) {
            return Err(Failure::new(Why::Lost, "Another stream has failed"));
        }
        Ok(())
    }

    fn bring(&self, stream: &mut Stream, at: u64, pace: &mut Pace) -> Result<(), Failure> {
        let packed = &mut stream.packed;
        stream.source.take(self.file, at, packed)?;
        if !packed.runs.is_empty() {
            let data = packed.data().len() as u64;
            self.wait_for(data)?;
            let sent = stream.target.put(self.file, at, packed, pace.zip)? as u64;
            self.sent.fetch_add(sent, Ordering::Relaxed);
            pace.went(self.zip, data, sent);
        }
        lock(&self.digests).insert(at, packed.digest);
        self.done.fetch_add(self.identity.len_of(at) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// What an earlier journey brought is read again at both ends; what differs is sent.
    fn compare(&self, stream: &mut Stream, at: u64, count: u32) -> Result<(), Failure> {
        stream.target.tell(self.file, at, count)?;
        stream.source.tell(self.file, at, count)?;
        let ours = stream.source.told(self.file, at, count)?;
        let theirs = stream.target.told(self.file, at, count)?;
        let mut differs = Vec::new();
        for ((at, ours), theirs) in (at..).zip(ours).zip(theirs) {
            if ours == theirs {
                self.resume(at, ours);
            } else {
                differs.push(at);
            }
        }
        if !differs.is_empty() {
            lock(&self.new).push_back(Unit::New(differs));
        }
        Ok(())
    }

    /// All is there: no more than it should be, of the right size, and the source is what it was.
    fn settle(&self, stream: &mut Stream) -> Result<(), Failure> {
        let empty = digest_of(&[]);
        let there = ranges(&stream.target.map(self.file)?, &self.identity);
        let wanted = |at: &u64| lock(&self.digests).get(at).is_some_and(|digest| *digest != empty);
        for at in there.iter().filter(|at| !wanted(at)) {
            stream.target.tell(self.file, *at, 1)?;
            if stream.target.told(self.file, *at, 1)? != [empty] {
                let mut zeroes = Packed::default();
                zeroes.pack();
                stream.target.put(self.file, *at, &zeroes, false)?;
                stream.target.sync()?;
            }
        }
        let size = stream.target.stat(self.file)?.size;
        if size != self.identity.size {
            let text = format!("{size} bytes have arrived, the original has {}", self.identity.size);
            return Err(Failure::new(Why::Differs, text));
        }
        if !stream.source.stat(self.file)?.same_content(&self.identity) {
            return Err(changed());
        }
        Ok(())
    }

    /// Waits until so many more bytes are due.
    fn wait_for(&self, bytes: u64) -> Result<(), Failure> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mine = {
            let mut due = lock(&self.due);
            let mine = (*due).max(Instant::now());
            let micros = u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(rate)).unwrap_or(u64::MAX / 4);
            *due = mine + Duration::from_micros(micros);
            mine
        };
        while let Some(left) = mine.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.check()?;
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }
}

/// How fast a stream is, and whether compressing makes it faster.
struct Pace {
    zip: bool,
    begun: Instant,
    /// Bytes of data since then.
    sent: u64,
    /// Bytes that they became.
    told: u64,
}

impl Pace {
    fn went(&mut self, fixed: Option<bool>, data: u64, sent: u64) {
        self.sent += data;
        self.told += sent;
        if fixed.is_some() || self.sent < (UNIT * RANGE) as u64 {
            return;
        }
        // What compressed to less than nine tenths goes on; else it is tried again when the link is found slow again.
        let speed = u128::from(self.sent) * 1000 / self.begun.elapsed().as_millis().max(1);
        let pays = self.told < self.sent - self.sent / 10;
        self.zip = if self.zip { pays } else { speed < u128::from(SLOW) };
        (self.begun, self.sent, self.told) = (Instant::now(), 0, 0);
    }
}

fn next(units: &Mutex<VecDeque<Unit>>) -> Option<Unit> {
    lock(units).pop_front()
}

/// A thread that panicked has left nothing half done in what these locks guard.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
