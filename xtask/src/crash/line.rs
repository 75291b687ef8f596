//! A line between ssh and its server that breaks after so many bytes: a relay that counts, and then closes both ends.
//!
//! All connections of one run count together; the one that has the byte breaks, and later ones are let through.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// Which bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Those to the host
    To,
    /// Those from the host
    From,
}

impl Way {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::To => "ssh: cut, sending",
            Self::From => "ssh: cut, receiving",
        }
    }
}

#[derive(Default)]
struct Count {
    to: usize,
    from: usize,
    cut: Option<(Way, usize)>,
}

impl Count {
    /// Takes so many bytes; how many of them still get through, if the line breaks at one of them.
    fn take(&mut self, way: Way, bytes: usize) -> Option<usize> {
        let so_far = if way == Way::To { &mut self.to } else { &mut self.from };
        let before = *so_far;
        *so_far += bytes;
        let (_, at) = self.cut.filter(|(cut, at)| *cut == way && before < *at && *at <= before + bytes)?;
        Some(at - before - 1)
    }
}

/// A relay to a server on loopback.
#[derive(Clone)]
pub struct Line {
    count: Arc<Mutex<Count>>,
}

impl Line {
    /// Puts a relay before the server whose client's files are in `dir`, and has them lead to it.
    ///
    /// # Errors
    /// The files are not as [`crate::conformance::sshd`] writes them, or there is no port.
    pub fn before(dir: &Path) -> Result<Self> {
        let config = fs::read_to_string(dir.join("config"))?;
        let port = config.lines().find_map(|line| line.trim().strip_prefix("Port ")).context("No port")?.to_owned();
        let server: u16 = port.parse()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let own = listener.local_addr()?.port();
        fs::write(dir.join("config"), config.replacen(&format!("Port {port}\n"), &format!("Port {own}\n"), 1))?;
        let known = fs::read_to_string(dir.join("known_hosts"))?;
        fs::write(dir.join("known_hosts"), known.replace(&format!("]:{port} "), &format!("]:{own} ")))?;
        let line = Self { count: Arc::default() };
        let relay = line.clone();
        // It ends with this program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(host) = TcpStream::connect(("127.0.0.1", server)) {
                    let _ = relay.carry(&client, &host);
                }
            }
        });
        Ok(line)
    }

    /// Counts anew; the line breaks instead of carrying the byte of this number, where there is one.
    pub fn begin(&self, cut: Option<(Way, usize)>) {
        *self.lock() = Count { cut, ..Count::default() };
    }

    /// Bytes so far.
    pub fn bytes(&self, way: Way) -> usize {
        let count = self.lock();
        if way == Way::To { count.to } else { count.from }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry(&self, client: &TcpStream, host: &TcpStream) -> Result<()> {
        for (way, from, to) in [(Way::To, client, host), (Way::From, host, client)] {
            let (line, mut from, mut to) = (self.clone(), from.try_clone()?, to.try_clone()?);
            std::thread::spawn(move || {
                let mut block = vec![0; 64 << 10];
                loop {
                    let length = from.read(&mut block).unwrap_or(0);
                    let cut = line.lock().take(way, length);
                    let sent = to.write_all(&block[..cut.unwrap_or(length)]);
                    if cut.is_some() {
                        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    }
                    if cut.is_some() || sent.is_err() || length == 0 {
                        let _ = to.shutdown(Shutdown::Write);
                        return;
                    }
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_breaks_at_one_byte_of_one_way() {
        let mut count = Count { cut: Some((Way::To, 5)), ..Count::default() };
        assert_eq!(count.take(Way::From, 10), None);
        assert_eq!(count.take(Way::To, 4), None);
        assert_eq!(count.take(Way::To, 4), Some(0));
        assert_eq!(count.take(Way::To, 4), None);
        let mut count = Count { cut: Some((Way::From, 3)), ..Count::default() };
        assert_eq!(count.take(Way::From, 3), Some(2));
    }
}
