//! An HTTP server with a script: it answers each request as the test says and keeps a log of what was asked.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One request: its first line and its headers, names in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// First byte of a `Range` header.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// The `Content-Length` of a reply.
#[derive(Clone, Copy, Debug, Default)]
pub enum Length {
    #[default]
    True,
    Lie(usize),
    Unsaid,
}

/// What is sent for a request.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// What is announced.
    pub length: Length,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Wait before the body.
    pub delay: Option<Duration>,
}

impl Reply {
    pub fn ok(body: &[u8]) -> Self {
        Self { status: "200 OK", body: body.to_vec(), ..Self::default() }
    }

    pub fn status(status: &'static str) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }
}

/// The part of `body` that a request with `Range` wants, as a good server answers.
pub fn ranged(request: &Request, body: &[u8], etag: &str) -> Reply {
    let same = request.header("if-range").is_none_or(|value| value == etag);
    let reply = match request.range().filter(|_| same) {
        Some(at) if at < body.len() => Reply { status: "206 Partial Content", ..Reply::ok(&body[at..]) }
            .with("Content-Range", format!("bytes {at}-{}/{}", body.len() - 1, body.len())),
        _ => Reply::ok(body),
    };
    reply.with("ETag", etag)
}

type Script = Box<dyn FnMut(usize, &Request) -> Reply + Send>;

/// The server; ends when dropped.
pub struct Server {
    pub address: String,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts on a free port; the script gets the number of the request, from 0.
    pub fn start(script: impl FnMut(usize, &Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (own_log, own_stop) = (Arc::clone(&log), Arc::clone(&stop));
        let mut script: Script = Box::new(script);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own_stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away in the middle is part of some tests.
                let _ = serve(&stream.unwrap(), &own_log, &mut script, &own_stop);
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    mut stream: &TcpStream,
    log: &Mutex<Vec<Request>>,
    script: &mut Script,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let request = Request { line, headers };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    let reply = script(number, &request);
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", reply.status);
    let length = match reply.length {
        Length::True => Some(reply.body.len()),
        Length::Lie(length) => Some(length),
        Length::Unsaid => None,
    };
    if let Some(length) = length {
        let _ = write!(head, "Content-Length: {length}\r\n");
    }
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let end = std::time::Instant::now() + reply.delay.unwrap_or_default();
    while std::time::Instant::now() < end && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(20));
    }
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())])?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}
