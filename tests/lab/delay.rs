//! A link that takes its time, where the kernel has no netem: a TCP proxy that hands on every byte so much later, and no
//! less of them a second. What is on its way is as much as was sent: no queue is ever full.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Accepts until it is dropped; connections end with either of their ends.
pub struct Delay {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Delay {
    /// Before 127.0.0.1:`to`, so much in each direction.
    pub fn before(to: u16, each_way: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        thread::spawn(move || {
            for near in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(near) = near else { continue };
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for end in [&near, &far] {
                    end.set_nodelay(true).expect("TCP");
                }
                let back = (far.try_clone().expect("a descriptor"), near.try_clone().expect("a descriptor"));
                later((near, far), each_way);
                later(back, each_way);
            }
        });
        Self { port, over }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn later((mut from, mut to): (TcpStream, TcpStream), delay: Duration) {
    let (tell, told) = channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut bytes = vec![0; 256 << 10];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            if tell.send((Instant::now() + delay, bytes[..len].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in told {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
