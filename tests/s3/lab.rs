//! A real S3 server on loopback that verifies every signature, and a line to it that logs, rewrites and cuts.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::host::SingleDomain;
use s3s::path::S3Path;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The name of the service; nothing resolves it, the line is a proxy for it.
pub const SERVICE: &str = "s3.test";
/// A key for good.
pub const KEY: (&str, &str) = ("AKEXAMPLE", "canary/secret+key");
/// A temporary key and its token.
pub const TEMPORARY: (&str, &str, &str) = ("AKTEMPORARY", "canary/temporary+key", "canary/token+of==session");

/// The server; ends when dropped. Buckets are folders, objects are files in them.
pub struct S3 {
    root: TempDir,
    address: SocketAddr,
    /// Dropped with everything that runs in it.
    _runtime: Runtime,
}

impl S3 {
    pub fn start() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("starts");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).expect("a file system"));
        let mut keys = SimpleAuth::from_single(KEY.0, KEY.1);
        keys.register(TEMPORARY.0.to_owned(), TEMPORARY.1.into());
        builder.set_auth(keys);
        builder.set_host(SingleDomain::new(SERVICE).expect("a name"));
        builder.set_access(Tokens(root.path().to_owned()));
        let service = builder.build().into_shared();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                let builder = Builder::new(TokioExecutor::new());
                // A client that goes away in the middle is part of some tests.
                tokio::spawn(async move { builder.serve_connection(TokioIo::new(socket), service).await.ok() });
            }
        });
        Self { root, address, _runtime: runtime }
    }

    /// Stores an object.
    pub fn put(&self, bucket: &str, key: &str, content: &[u8]) -> PathBuf {
        put(self.root.path(), bucket, key, content)
    }

    /// The folder of all buckets.
    pub fn root(&self) -> PathBuf {
        self.root.path().to_owned()
    }
}

/// Stores an object below the folder of all buckets.
pub fn put(root: &Path, bucket: &str, key: &str, content: &[u8]) -> PathBuf {
    let path = root.join(bucket).join(key);
    std::fs::create_dir_all(path.parent().expect("a bucket")).expect("a folder");
    std::fs::write(&path, content).expect("an object");
    path
}

/// What the server's sample of a file system leaves out: session tokens, which have to come and be signed, and the
/// difference between a missing bucket and a missing object.
struct Tokens(PathBuf);

#[async_trait::async_trait]
impl S3Access for Tokens {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = cx.credentials() else {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        };
        if credentials.access_key == TEMPORARY.0 {
            let header = |name: &str| cx.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let signed = header("authorization").contains(";x-amz-security-token,");
            if !signed || header("x-amz-security-token") != TEMPORARY.2 {
                return Err(s3_error!(InvalidToken));
            }
        }
        match cx.s3_path() {
            S3Path::Object { bucket, .. } if !self.0.join(&**bucket).is_dir() => Err(s3_error!(NoSuchBucket)),
            _ => Ok(()),
        }
    }
}

/// What the line does with a request.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Hands it on.
    Pass,
    /// Hands it on, and cuts the connection after so many bytes of the answer's body.
    Cut(usize),
    /// Hands it on with this piece of its head replaced.
    Replace(String, String),
    /// Answers by itself.
    Answer(String),
}

type Script = Box<dyn FnMut(usize, &str) -> Deed + Send>;

/// The line to a server: a proxy that connects every name to it. Ends when dropped.
pub struct Line {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// Starts; the script gets the number of the request, from 0, and its head.
    pub fn to(server: &S3, script: impl FnMut(usize, &str) -> Deed + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (own_log, own_stop, target) = (Arc::clone(&log), Arc::clone(&stop), server.address);
        let mut script: Script = Box::new(script);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own_stop.load(Ordering::SeqCst) {
                    return;
                }
                let _ = carry(&stream.expect("a connection"), target, &own_log, &mut script);
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }

    /// A line that changes nothing.
    pub fn plain(server: &S3) -> Self {
        Self::to(server, |_, _| Deed::Pass)
    }

    /// Heads of the requests so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("locks").clone()
    }

    /// This line as a proxy.
    pub fn proxy(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A header of a logged head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// One request, one connection.
fn carry(
    mut client: &TcpStream,
    target: SocketAddr,
    log: &Mutex<Vec<String>>,
    script: &mut Script,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut head = read_head(client)?;
    if head.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        head = read_head(client)?;
    }
    if head.is_empty() {
        return Ok(());
    }
    let number = {
        let mut log = log.lock().expect("locks");
        log.push(head.clone());
        log.len() - 1
    };
    let mut most = usize::MAX;
    match script(number, &head) {
        Deed::Pass => {}
        Deed::Cut(bytes) => most = bytes,
        Deed::Replace(old, new) => head = head.replace(&old, &new),
        Deed::Answer(text) => {
            client.write_all(text.as_bytes())?;
            return client.shutdown(Shutdown::Write);
        }
    }
    // Nobody signs this header; with it the answer ends with the connection.
    let head = head.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    let mut server = TcpStream::connect(target)?;
    server.set_read_timeout(Some(Duration::from_secs(10)))?;
    server.write_all(head.as_bytes())?;
    let answer = read_head(&server)?;
    client.write_all(answer.as_bytes())?;
    let mut block = vec![0; 64 << 10];
    while most > 0 {
        let room = block.len().min(most);
        match server.read(&mut block[..room])? {
            0 => break,
            len => {
                client.write_all(&block[..len])?;
                most -= len;
            }
        }
    }
    client.shutdown(Shutdown::Both)
}

/// Up to the empty line, byte by byte: what follows is not ours.
fn read_head(mut stream: &TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
