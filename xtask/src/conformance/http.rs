//! A small web server on loopback: the routes of one case, and a log of what was asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::case::{self, Route};

/// Bytes sent between two pauses.
const CHUNK: usize = 64 << 10;

/// A port on loopback whose connections are served, each by a thread of its own. It is closed when this is dropped.
pub struct Listener {
    stop: Arc<AtomicBool>,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
}

impl Listener {
    /// Serves every connection by `serve`.
    ///
    /// Fails if there is no free port.
    pub fn start(serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("Cannot open a port")?;
        let started = Self { stop: Arc::default(), url: format!("http://{}", listener.local_addr()?) };
        let (stop, serve) = (Arc::clone(&started.stop), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (Ok(stream), serve) = (stream, Arc::clone(&serve)) else {
                    continue;
                };
                // A client that goes away is none of the server's business.
                std::thread::spawn(move || drop(serve(stream)));
            }
        });
        Ok(started)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

/// A running server. It stops when this is dropped.
pub struct Server {
    shared: Arc<Shared>,
    _listener: Listener,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
}

struct Shared {
    routes: HashMap<String, Route>,
    log: Mutex<Vec<(String, String)>>,
}

impl Server {
    /// Serves these routes, whose file names are final.
    pub fn start(routes: Vec<Route>) -> Result<Self> {
        let routes = routes.into_iter().map(|route| (route.path.clone(), route)).collect();
        let shared = Arc::new(Shared { routes, log: Mutex::default() });
        let own = Arc::clone(&shared);
        let listener = Listener::start(move |stream| serve(stream, &own)).context("Cannot start the web server")?;
        Ok(Self { shared, url: listener.url.clone(), _listener: listener })
    }

    /// How often `method` was used on `path`.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|(m, p)| m == method && p == path).count()
    }
}

/// One request per connection.
fn serve(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    let Request { method, path, from, login } = request(&stream)?;
    shared.log.lock().unwrap_or_else(PoisonError::into_inner).push((method.clone(), path.clone()));
    let Some(route) = shared.routes.get(&path) else {
        return Ok(write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?);
    };
    if route.login.as_ref().is_some_and(|wanted| login != format!("Basic {}", STANDARD.encode(wanted))) {
        let head =
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\nWWW-Authenticate: Basic realm=kit";
        return Ok(write!(stream, "{head}\r\n\r\n")?);
    }
    if let Some(place) = &route.redirect {
        let head = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation:";
        return Ok(write!(stream, "{head} {place}\r\n\r\n")?);
    }
    if let Some(status) = route.status {
        return Ok(write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?);
    }
    let mut file = File::open(route.file.as_deref().context("A route without a file")?)?;
    let size = file.metadata()?.len();
    let from = from.filter(|from| *from < size);
    let start = from.unwrap_or(0);
    file.seek(SeekFrom::Start(start))?;
    match from {
        Some(_) => write!(stream, "HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{}/{size}\r\n", size - 1)?,
        None => write!(stream, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\n")?,
    }
    if !route.no_length {
        let length = route.length.as_deref().map_or(Ok(size - start), case::bytes)?;
        write!(stream, "Content-Length: {length}\r\n")?;
    }
    write!(stream, "Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n")?;
    if method != "HEAD" {
        body(&mut stream, file, route)?;
    }
    stream.flush()?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn body(stream: &mut TcpStream, file: File, route: &Route) -> Result<()> {
    let limit = route.truncate.as_deref().map(case::bytes).transpose()?.unwrap_or(u64::MAX);
    let mut file = file.take(limit);
    let mut chunk = vec![0; CHUNK];
    loop {
        let got = file.read(&mut chunk)?;
        if got == 0 {
            return Ok(());
        }
        stream.write_all(&chunk[..got])?;
        if route.pause_ms > 0 {
            stream.flush()?;
            std::thread::sleep(Duration::from_millis(route.pause_ms));
        }
    }
}

/// What is asked for.
struct Request {
    method: String,
    /// The whole address where we are asked as a proxy.
    path: String,
    /// The start of the wanted range.
    from: Option<u64>,
    /// What `Authorization` says.
    login: String,
}

fn request(stream: &TcpStream) -> Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().context("An empty request")??;
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let mut request = Request { method, path, from: None, login: String::new() };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let range = value.trim().strip_prefix("bytes=").unwrap_or_default();
                request.from = range.split('-').next().and_then(|start| start.parse().ok());
            }
            "authorization" => value.trim().clone_into(&mut request.login),
            _ => {}
        }
    }
    Ok(request)
}
