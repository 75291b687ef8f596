//! Takes files from one end to the other: ranges that hold data, by as many streams as pay, compared at both ends.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::frame::{Digest, Packed, RANGE, digest_of, whole};
use super::link::Link;
use super::store::{Store, ranges};
use super::{Arrived, Begin, Carry, End, Failure, Identity, Known, Report, Why};
use crate::exec::control::Control;
use crate::exec::host::HostName;
use crate::exec::host::openssh::OpenSsh;
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

/// Both ends, for one stream.
struct Stream {
    source: Box<dyn End + Send>,
    target: Box<dyn End + Send>,
    packed: Packed,
    /// Whether it may go through the operator's multiplexing master: the first does, for it is there at once; what is much
    /// is left to connections of their own.
    shared: bool,
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
        source: Place::new(carry.source.as_deref(), (reads, Vec::new()), programs)?,
        target: Place::new(carry.target.as_deref(), (Vec::new(), writes), programs)?,
        zip: carry.zip == Some(true),
        control,
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
}

impl Place {
    fn new(host: Option<&str>, files: (Vec<PathBuf>, Vec<PathBuf>), programs: &Programs) -> Result<Self, Failure> {
        let name = host.map(HostName::new).transpose().map_err(|e| Failure::new(Why::Other, e.to_string()))?;
        Ok(Self { host: name.map(|name| Arc::new(OpenSsh::new(name, programs.clone()))), files })
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
}

impl Ends<'_> {
    fn open(&self, shared: bool) -> Result<Stream, Failure> {
        // The target first: where it cannot be reached, nothing else has to be.
        let target = self.target.open(self.zip, shared, self.control)?;
        let source = self.source.open(self.zip, shared, self.control)?;
        let by_master =
            |host: &Option<Arc<OpenSsh>>| host.as_ref().is_some_and(|ssh| ssh.has_live_master(self.control));
        let shared = shared && (by_master(&self.source.host) || by_master(&self.target.host));
        Ok(Stream { source, target, packed: Packed::default(), shared })
    }
}

impl Stream {
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
        if left > few && most > 1 {
            let wanted = most + usize::from(first.shared);
            streams.resize_with(wanted.max(streams.len()), || None);
        }
        if let Err(failure) = self.work(ends, streams, rest, output) {
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
        rest: Begin,
        output: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let (tell, told) = channel();
        thread::scope(|scope| {
            for (number, stream) in streams.iter_mut().enumerate() {
                let tell = tell.clone();
                scope.spawn(move || {
                    // Each logs in by itself, while the first is at work. Fewer streams are slower, and no failure.
                    if stream.is_none() {
                        *stream = ends.open(false).ok();
                    }
                    let result = match stream {
                        Some(stream) => self.stream(stream, (number > 0).then_some(rest)),
                        None => Ok(()),
                    };
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

    fn stream(&self, stream: &mut Stream, begin: Option<Begin>) -> Result<(), Failure> {
        if let Some(begin) = begin {
            stream.target.begin(self.file, begin)?;
            stream.source.stat(self.file)?;
            self.joined.store(true, Ordering::Relaxed);
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
        if stream.shared && self.joined.load(Ordering::Relaxed) {
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
