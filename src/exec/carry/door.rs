//! The far end's port for streams beside ssh: open while a journey runs, at the address that ssh was reached at, for the
//! host that came by ssh, and for nobody who has not got the journey's key.

use std::io;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lane::{Key, Lane, Ports};
use crate::exec::control::Control;

/// Connections at once, of those that shake hands and those that did: twice the streams of a journey. More are turned away.
const MOST: usize = 16;

/// Ports that are tried, from a random one of the range on.
const TRIES: u32 = 64;

/// How long a handshake may take: two seconds, twice what the near end waits.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// How often it is looked whether the journey is over.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Which two machines are at the ends of the connection that ssh uses: this one and the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The address of this one.
    pub here: IpAddr,
    /// The address that the other one is seen by.
    pub there: IpAddr,
}

impl Ends {
    /// Of what sshd tells in `SSH_CONNECTION`: address and port of the client, address and port of the server (ssh(1)).
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (there, _, here) = (words.next()?, words.next()?, words.next()?);
        Some(Self { here: here.parse().ok()?, there: there.parse().ok()? })
    }
}

/// What is done with a stream of somebody who knows the key.
pub type Serve = dyn Fn(Lane) + Send + Sync;

/// An open port. Closed, with all its streams, when it is dropped.
pub struct Door {
    port: u16,
    hall: Arc<Hall>,
    porter: Option<JoinHandle<()>>,
}

/// Where they come in, and who is inside.
struct Hall {
    listener: TcpListener,
    over: AtomicBool,
    guests: Mutex<Vec<(u64, TcpStream)>>,
}

impl Hall {
    fn guests(&self) -> std::sync::MutexGuard<'_, Vec<(u64, TcpStream)>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one in, unless there are too many or it is over.
    fn enter(&self, number: u64, socket: &TcpStream) -> bool {
        let mut guests = self.guests();
        let room = guests.len() < MOST && !self.over.load(Ordering::Relaxed);
        match socket.try_clone() {
            Ok(socket) if room => guests.push((number, socket)),
            _ => return false,
        }
        true
    }

    fn leave(&self, number: u64) {
        self.guests().retain(|(of, _)| *of != number);
    }
}

impl Door {
    /// Listens at a port of the range that is free.
    ///
    /// # Errors
    /// None of those that were tried is free, or there are no threads.
    pub fn open(ports: Ports, ends: Ends, key: Key, serve: Arc<Serve>, control: Control) -> io::Result<Self> {
        let listener = listen(ports, ends.here)?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let hall = Arc::new(Hall { listener, over: AtomicBool::default(), guests: Mutex::default() });
        let porter = {
            let hall = Arc::clone(&hall);
            let work = move || keep(&hall, ends.there, &key, &*serve, &control);
            thread::Builder::new().name("door".to_owned()).spawn(work)?
        };
        Ok(Self { port, hall, porter: Some(porter) })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.hall.over.store(true, Ordering::Relaxed);
        for (_, socket) in &*self.hall.guests() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        // The porter wakes up: a journey that has arrived waits for nobody. Else he does at his next look around.
        let _ = rustix::net::shutdown(&self.hall.listener, rustix::net::Shutdown::Both);
        if let Some(porter) = self.porter.take() {
            let _ = porter.join();
        }
    }
}

fn listen(ports: Ports, here: IpAddr) -> io::Result<TcpListener> {
    let count = u32::from(ports.last.saturating_sub(ports.first)) + 1;
    let mut random = [0; 2];
    openssl::rand::rand_bytes(&mut random)?;
    let begin = u32::from(u16::from_le_bytes(random)) % count;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for step in 0..count.min(TRIES) {
        let Ok(port) = u16::try_from(u32::from(ports.first) + (begin + step) % count) else { break };
        match TcpListener::bind((here, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Lets in whoever may come in, until it is over; then all have left.
fn keep(hall: &Hall, there: IpAddr, key: &Key, serve: &Serve, control: &Control) {
    thread::scope(|scope| {
        for number in 0.. {
            let mut fds = [PollFd::new(&hall.listener, PollFlags::IN)];
            let knocked = poll(&mut fds, Some(&TICK)) != Ok(0);
            if hall.over.load(Ordering::Relaxed) || control.check().is_err() {
                return;
            }
            if !knocked {
                continue;
            }
            let Ok((socket, from)) = hall.listener.accept() else {
                // Out of descriptors, or it has gone again: not as fast as the processor can.
                thread::sleep(Duration::from_millis(10));
                continue;
            };
            if from.ip().to_canonical() != there.to_canonical() || !hall.enter(number, &socket) {
                continue;
            }
            let guest = move || {
                if let Ok(lane) = Lane::accept(socket, key, Instant::now() + HANDSHAKE, control) {
                    serve(lane);
                }
                hall.leave(number);
            };
            if thread::Builder::new().name("guest".to_owned()).spawn_scoped(scope, guest).is_err() {
                hall.leave(number);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_those_of_the_ssh_connection() {
        let ends = Ends::of("10.0.0.1 55555 10.0.0.2 22").expect("two addresses");
        assert_eq!((ends.there, ends.here), ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
        assert!(Ends::of("fe80::1%eth0 1 fe80::2%eth0 22").is_none());
        assert!(Ends::of("").is_none());
    }

    #[test]
    fn ranges_of_ports() {
        assert_eq!("49152-49215".parse(), Ok(Ports { first: 49152, last: 49215 }));
        assert_eq!(" 2000 ".parse(), Ok(Ports { first: 2000, last: 2000 }));
        for bad in ["", "22", "1023-2000", "2000-1999", "2000-70000", "a-b", "2000-2001-2002", "-"] {
            let error = bad.parse::<Ports>().expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
