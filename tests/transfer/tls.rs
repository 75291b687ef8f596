//! An https server on loopback with a certificate as the test wants it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

/// What is to be thought of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Signed by [`Server::authority`] and in force.
    Good,
    /// The same, but its time is over.
    Expired,
    /// Signed by itself.
    SelfSigned,
}

/// The server; ends when dropped.
pub struct Server {
    dir: TempDir,
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `body` under every path of a free port of 127.0.0.1.
    pub fn start(certificate: Certificate, body: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = make(dir.path(), certificate);
        let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, body) = (Arc::clone(&stop), body.to_vec());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                // A client that does not like the certificate goes away in the middle.
                let Ok(mut stream) = acceptor.accept(stream.unwrap()) else { continue };
                let _ = stream.read(&mut [0; 4096]);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
                let _ = stream.shutdown();
            }
        });
        Self { dir, address, stop, thread: Some(thread) }
    }

    /// An address at the server.
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.address.port())
    }

    /// The certificate of who signed the server's, for `SSL_CERT_FILE`.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn openssl(dir: &Path, args: &[&str]) {
    let out = Command::new("openssl").args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Keys and certificates by openssl(1): an authority, and a server that it signs or that signs itself.
fn make(dir: &Path, certificate: Certificate) -> native_tls::Identity {
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = ["-newkey", "rsa:2048", "-nodes"];
    let req = |args: &[&str]| openssl(dir, &[&["req"], &key[..], args].concat());
    req(&["-x509", "-days", "3", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"]);
    if certificate == Certificate::SelfSigned {
        let name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
        req(&[&["-x509", "-days", "3", "-keyout", "key", "-out", "pem"][..], &name].concat());
    } else {
        req(&["-subj", "/CN=127.0.0.1", "-keyout", "key", "-out", "csr"]);
        // `ca` is the one command of every openssl that takes dates.
        std::fs::write(dir.join("index"), "").unwrap();
        std::fs::write(dir.join("serial"), "1000\n").unwrap();
        std::fs::write(dir.join("conf"), CA).unwrap();
        let end = if certificate == Certificate::Expired { "20200102000000Z" } else { "20400101000000Z" };
        let dates = ["-startdate", "20200101000000Z", "-enddate", end];
        let sign = ["ca", "-batch", "-config", "conf", "-in", "csr", "-out", "pem", "-extfile", "san"];
        openssl(dir, &[&sign[..], &dates].concat());
    }
    openssl(dir, &["pkcs12", "-export", "-inkey", "key", "-in", "pem", "-out", "p12", "-passout", "pass:x"]);
    native_tls::Identity::from_pkcs12(&std::fs::read(dir.join("p12")).unwrap(), "x").unwrap()
}

const CA: &str = "[ca]\ndefault_ca = it\n[it]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ncertificate = ca.pem\n\
                  private_key = ca.key\ndefault_md = sha256\npolicy = any\n[any]\ncommonName = supplied\n";
