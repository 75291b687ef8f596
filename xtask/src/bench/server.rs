//! A small HTTP server on loopback that serves one file: what a datastore downloads from in the bench.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A running server. It ends with this value.
pub struct Server {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `file` under every path of a free port of 127.0.0.1, to any number of clients at a time.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(file: &Path) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("Cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let ending = Arc::new(AtomicBool::new(false));
        let (file, flag) = (file.to_owned(), Arc::clone(&ending));
        let thread = thread::spawn(move || accept(&listener, &file, &flag));
        Ok(Self { address, ending, thread: Some(thread) })
    }

    /// An address of the file.
    pub fn url(&self) -> String {
        format!("http://{}/image.raw.gz", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // `accept` sleeps until somebody comes.
        let came = TcpStream::connect(self.address).is_ok();
        if came && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, file: &Path, ending: &AtomicBool) {
    for stream in listener.incoming() {
        if ending.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(stream) = stream {
            let file: PathBuf = file.to_owned();
            // A client that hangs up early (a look at the header) is none of our concern.
            thread::spawn(move || answer(&stream, &file));
        }
    }
}

/// Answers one `GET` or `HEAD`; a `Range: bytes=A-B` is honoured, for clients that look at the beginning only.
fn answer(mut stream: &TcpStream, path: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut range = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = parse_range(value.trim());
        }
    }
    let mut file = File::open(path)?;
    let total = file.metadata()?.len();
    let (status, first, last) = match range {
        Some((first, last)) if first < total => ("206 Partial Content", first, last.min(total - 1)),
        _ => ("200 OK", 0, total.saturating_sub(1)),
    };
    let length = if total == 0 { 0 } else { last - first + 1 };
    let partial = if status.starts_with("206") {
        format!("Content-Range: bytes {first}-{last}/{total}\r\n")
    } else {
        String::new()
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n\
         Content-Length: {length}\r\n{partial}Connection: close\r\n\r\n"
    )?;
    if request.starts_with("GET ") {
        io::Seek::seek(&mut file, io::SeekFrom::Start(first))?;
        io::copy(&mut io::Read::take(file, length), &mut stream)?;
    }
    Ok(())
}

/// First and last byte of `bytes=A-B` or `bytes=A-`.
fn parse_range(value: &str) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
    let first = first.parse().ok()?;
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::{Server, parse_range};

    #[test]
    fn ranges_are_read_or_ignored() {
        assert_eq!(parse_range("bytes=0-99"), Some((0, 99)));
        assert_eq!(parse_range("bytes=5-"), Some((5, u64::MAX)));
        assert_eq!(parse_range("bytes=9-5"), None);
        assert_eq!(parse_range("bytes=-5"), None);
    }

    #[test]
    fn serves_the_file_and_parts_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"0123456789").unwrap();
        let server = Server::start(&file).unwrap();
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let whole = ask("GET / HTTP/1.1\r\n\r\n");
        assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("\r\n\r\n0123456789"), "{whole}");
        let part = ask("GET / HTTP/1.1\r\nRange: bytes=2-4\r\n\r\n");
        assert!(part.contains("Content-Range: bytes 2-4/10") && part.ends_with("\r\n\r\n234"), "{part}");
        assert!(ask("HEAD / HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
    }
}
