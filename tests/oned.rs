//! Asking oned: against an HTTP server of our own, a directory, and commands that a test puts on a `PATH` of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use onestore::oned::{Cause, Object, OnedEnv, OnedError, connect};
use tempfile::TempDir;

const VM: &str = "<VM><ID>42</ID><NAME>a &amp; b</NAME><TEMPLATE><DISK><DISK_ID>0</DISK_ID></DISK></TEMPLATE></VM>";

/// A server that answers one connection and hands out what it was sent.
struct Server {
    url: String,
    requests: mpsc::Receiver<String>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Answers with these bytes and closes.
    fn raw(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::with(move |stream| {
            // The client may have stopped reading.
            let _ = stream.write_all(&answer);
        })
    }

    /// Answers with status 200 and this body.
    fn ok(body: &str) -> Self {
        Self::raw(http("200 OK", body))
    }

    fn with(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let url = format!("http://{}/RPC2", listener.local_addr().expect("address"));
        let (sender, requests) = mpsc::channel();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            sender.send(request(&stream)).expect("the test listens");
            answer(&mut stream);
        });
        Self { url, requests, thread }
    }

    /// The request, once the server has ended.
    fn request(self) -> String {
        self.thread.join().expect("the server ends well");
        self.requests.recv().expect("a request")
    }
}

/// Reads a request: head and as many bytes as it announces.
fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("reads");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        head += &line;
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("reads");
    head + std::str::from_utf8(&body).expect("UTF-8")
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn reply(values: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n\
         {values}</data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n"
    )
}

fn granted(xml: &str) -> String {
    let xml = xml.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    reply(&format!(
        "<value><boolean>1</boolean></value>\r\n<value><string>{xml}</string></value>\r\n\
         <value><i4>0</i4></value>\r\n<value><i4>-1</i4></value>\r\n"
    ))
}

fn denied(code: u32, message: &str) -> String {
    reply(&format!(
        "<value><boolean>0</boolean></value><value><string>{message}</string></value><value><i4>{code}</i4></value>"
    ))
}

/// An environment with credentials and short limits, and nothing of this machine's.
fn env(home: &TempDir, url: &str) -> OnedEnv {
    let auth = home.path().join("auth");
    fs::write(&auth, "oneadmin:can<ary&1\n").expect("writes");
    OnedEnv {
        endpoint: Some(url.to_owned()),
        auth: Some(auth),
        path: Some(home.path().join("bin").into()),
        connect_timeout: Duration::from_secs(5),
        total_timeout: Duration::from_secs(5),
        answer_limit: 10_000,
        ..OnedEnv::default()
    }
}

fn ask(url: &str) -> Result<String, OnedError> {
    ask_with(url, |_| ())
}

fn ask_with(url: &str, change: impl FnOnce(&mut OnedEnv)) -> Result<String, OnedError> {
    let home = tempfile::tempdir().expect("makes");
    let mut env = env(&home, url);
    change(&mut env);
    let oned = connect(&env);
    let name = oned.vm(42).map(|vm| vm.name.or("").to_owned());
    if let Err(error) = &name {
        let shown = format!("{error} {error:?} {env:?}");
        assert!(!shown.contains("can<ary") && !shown.contains("can&lt;ary"), "{shown}");
    }
    name
}

/// What the error says, with the endpoint's port taken out.
fn says(result: Result<String, OnedError>) -> String {
    let text = result.expect_err("fails").to_string();
    assert!(!text.contains('\n'), "{text}");
    let Some((before, after)) = text.split_once("127.0.0.1:") else { return text };
    format!("{before}127.0.0.1{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
}

const ASKED: &str = "Cannot ask oned at http://127.0.0.1/RPC2 for VM 42: ";

#[test]
fn a_vm_is_asked_for_and_parsed() {
    let server = Server::ok(&granted(VM));
    assert_eq!(ask(&server.url).expect("answers"), "a & b");
    let request = server.request();
    assert!(request.starts_with("POST /RPC2 HTTP/1.1\r\n"), "{request}");
    assert!(
        request.ends_with(
            "<?xml version=\"1.0\"?><methodCall><methodName>one.vm.info</methodName><params>\
             <param><value><string>oneadmin:can&lt;ary&amp;1</string></value></param>\
             <param><value><int>42</int></value></param><param><value><boolean>0</boolean></value></param>\
             </params></methodCall>"
        ),
        "{request}"
    );
}

#[test]
fn every_object_has_its_method() {
    let home = tempfile::tempdir().expect("makes");
    for (object, method, params) in [
        (Object::Image(7), "one.image.info", "<int>7</int></value></param><param><value><boolean>0</boolean>"),
        (Object::Datastore(7), "one.datastore.info", "<int>7</int></value></param><param><value><boolean>1</boolean>"),
        (Object::Host(7), "one.host.info", "<int>7</int></value></param><param><value><boolean>0</boolean>"),
        (Object::HostPool, "one.hostpool.info", "can&lt;ary&amp;1</string></value></param></params>"),
        (Object::DatastorePool, "one.datastorepool.info", "can&lt;ary&amp;1</string></value></param></params>"),
    ] {
        let server = Server::ok(&granted("<X>1</X>"));
        assert_eq!(connect(&env(&home, &server.url)).xml(object).expect("answers"), "<X>1</X>");
        let request = server.request();
        assert!(request.contains(&format!("<methodName>{method}</methodName>")), "{request}");
        assert!(request.contains(params), "{request}");
    }
}

#[test]
fn a_refusal_is_told_as_oned_tells_it() {
    let server = Server::ok(&denied(0x400, "[one.vm.info] Error getting\nvirtual machine [42]."));
    let error = ask(&server.url).expect_err("fails");
    assert!(matches!(error.cause, Cause::Denied { code: 0x400, .. }));
    assert_eq!(says(Err(error)), format!("{ASKED}[one.vm.info] Error getting virtual machine [42]. (code 0x0400)"));
}

#[test]
fn wrong_credentials_are_told_without_them() {
    let server = Server::ok(&denied(
        0x100,
        "[one.vm.info] User couldn't be authenticated: oneadmin:can&lt;ary&amp;1, can&lt;ary&amp;1",
    ));
    assert_eq!(
        says(ask(&server.url)),
        format!(
            "{ASKED}[one.vm.info] User couldn't be authenticated: ***, *** (code 0x0100); \
             does the file ONE_AUTH hold valid credentials?"
        )
    );
}

#[test]
fn a_fault_is_told() {
    let server = Server::ok(
        "<?xml version=\"1.0\"?><methodResponse><fault><value><struct>\
         <member><name>faultCode</name><value><int>-506</int></value></member>\
         <member><name>faultString</name><value><string>Method 'one.vm.info' not defined</string></value></member>\
         </struct></value></fault></methodResponse>",
    );
    assert_eq!(
        says(ask(&server.url)),
        format!(
            "{ASKED}fault -506 (Method 'one.vm.info' not defined); \
             is ONE_XMLRPC the address of oned's API, such as http://localhost:2633/RPC2?"
        )
    );
}

#[test]
fn other_statuses_are_told() {
    for status in ["404 Not Found", "500 Internal Server Error", "301 Moved Permanently"] {
        let server = Server::raw(
            http(status, "<html>no</html>").replace("Connection:", "Location: http://127.0.0.1:1/\r\nConnection:"),
        );
        let text = says(ask(&server.url));
        assert!(text.starts_with(&format!("{ASKED}HTTP status {}; is ONE_XMLRPC the address", &status[..3])), "{text}");
    }
}

#[test]
fn answers_that_are_none_are_told() {
    for (body, what) in [
        ("hello", "the XML is malformed at byte 0: text outside of an element"),
        ("", "the XML is cut off at byte 0"),
        ("<html/>", "expected an XML document <methodResponse>, got <html>"),
        ("<methodResponse><params><par", "the XML is cut off at byte 28"),
        ("<!DOCTYPE x><methodResponse/>", "the XML has a DOCTYPE at byte 0, which is refused"),
        ("<methodResponse/>", "it is no list that begins with true or false"),
        (&reply("<value><boolean>1</boolean></value>"), "it holds no object"),
    ] {
        let server = Server::ok(body);
        let text = says(ask(&server.url));
        assert!(text.starts_with(&format!("{ASKED}the answer is not what oned sends ({what}); ")), "{text}");
    }
    let server = Server::raw(&b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n\xff"[..]);
    assert!(says(ask(&server.url)).contains("the answer is not what oned sends (it is not UTF-8)"));
    let server = Server::ok(&granted("<IMAGE/>"));
    assert_eq!(says(ask(&server.url)), format!("{ASKED}Expected an XML document <VM>, got <IMAGE>"));
}

#[test]
fn an_answer_that_is_cut_off_is_told() {
    let whole = http("200 OK", &granted(VM));
    for keep in [0, 20, whole.len() / 2, whole.len() - 5] {
        let server = Server::raw(&whole.as_bytes()[..keep]);
        let text = says(ask(&server.url));
        assert!(text.starts_with(&format!("{ASKED}the answer is not what oned sends (")), "{keep}: {text}");
    }
}

#[test]
fn an_answer_that_is_too_large_is_not_read() {
    let server = Server::ok(&granted(&"x".repeat(20_000)));
    assert_eq!(says(ask(&server.url)), format!("{ASKED}the answer is larger than 10000 bytes"));
    // Not even announced, and without an end.
    let server = Server::with(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    assert_eq!(says(ask(&server.url)), format!("{ASKED}the answer is larger than 10000 bytes"));
    server.request();
}

#[test]
fn a_slow_answer_is_not_waited_for() {
    let (done, wait) = mpsc::channel::<()>();
    let server = Server::with(move |stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        let _ = wait.recv();
    });
    let start = Instant::now();
    let result = ask_with(&server.url, |env| env.total_timeout = Duration::from_millis(200));
    assert!(start.elapsed() < Duration::from_secs(4));
    drop(done);
    assert_eq!(says(result), format!("{ASKED}no answer within 0.2 s; is oned overloaded, is ONE_XMLRPC right?"));
}

/// A URL at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    format!("http://{}/RPC2", listener.local_addr().expect("address"))
}

/// Held by every test that starts a process: one that is just being started holds the files open that another test is
/// writing, and a script that is open for writing cannot be run.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command(home: &Path, name: &str, script: &str) {
    let bin = home.join("bin");
    fs::create_dir_all(&bin).expect("makes");
    let path = bin.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
}

#[test]
fn where_nobody_listens_the_commands_are_tried() {
    let _turn = one_at_a_time();
    assert_eq!(says(ask(&nobody())), format!("{ASKED}connection refused; is oned running, is ONE_XMLRPC right?"));

    let home = tempfile::tempdir().expect("makes");
    command(home.path(), "onevm", &format!("[ \"$*\" = 'show -x 42' ] && [ \"$LC_ALL\" = C ] && echo '{VM}'"));
    let oned = connect(&env(&home, &nobody()));
    assert_eq!(oned.vm(42).expect("answers").name.get(), Some("a & b"));
    // The command for images is not there, so it is not tried.
    let error = oned.image(1).expect_err("fails").to_string();
    assert!(error.contains("for image 1: connection refused; is oned running"), "{error}");

    command(home.path(), "onevm", "echo first >&2; echo 'no auth' >&2; exit 255");
    let error = oned.vm(42).expect_err("fails").to_string();
    assert!(error.contains("for VM 42: connection refused, and onevm failed: no auth; is oned running"), "{error}");
}

#[test]
fn without_credentials_the_commands_are_tried() {
    let _turn = one_at_a_time();
    let home = tempfile::tempdir().expect("makes");
    let bare = OnedEnv { auth: None, ..env(&home, "http://127.0.0.1:1/RPC2") };
    assert_eq!(
        connect(&bare).vm(42).expect_err("fails").to_string(),
        "Cannot ask oned at http://127.0.0.1:1/RPC2 for VM 42: no credentials: neither ONE_AUTH nor HOME is set; \
         set ONE_AUTH to a file that holds user:password"
    );
    command(home.path(), "onevm", &format!("echo '{VM}'"));
    assert!(connect(&bare).vm(42).is_ok());
    fs::write(home.path().join("auth"), "token without user").expect("writes");
    let odd = OnedEnv { auth: Some(home.path().join("auth")), path: None, ..bare };
    let error = connect(&odd).vm(42).expect_err("fails").to_string();
    assert!(error.contains("does not hold user:password") && !error.contains("without user"), "{error}");
}

#[test]
fn credentials_are_found_at_home() {
    let home = tempfile::tempdir().expect("makes");
    fs::create_dir(home.path().join(".one")).expect("makes");
    fs::write(home.path().join(".one/one_auth"), "me:mine\n").expect("writes");
    let server = Server::ok(&granted(VM));
    let env = OnedEnv { auth: None, home: Some(home.path().to_owned()), ..env(&home, &server.url) };
    assert!(connect(&env).vm(42).is_ok());
    assert!(server.request().contains("<string>me:mine</string>"));
}

#[test]
fn an_explicit_choice_is_the_only_one() {
    let _turn = one_at_a_time();
    let home = tempfile::tempdir().expect("makes");
    command(home.path(), "onevm", &format!("echo '{VM}'"));
    let chosen = |choice: &str| connect(&OnedEnv { choice: Some(choice.into()), ..env(&home, &nobody()) }).vm(42);
    let error = chosen(&nobody()).expect_err("does not fall back");
    assert!(matches!(error.cause, Cause::Refused), "{error}");
    assert!(chosen("cli").is_ok());
    let server = Server::ok(&granted(VM));
    assert!(chosen(&server.url).is_ok());
    for (choice, says) in [
        (
            "ftp://x:secret@y",
            "Cannot ask oned for VM 42: ONESTORE_ONED is not understood; set it to dir:PATH, a URL or cli",
        ),
        (
            "dir:/nowhere",
            "Cannot ask the directory /nowhere for VM 42: there is no /nowhere/vm/42.xml; \
             save the object there, as `onevm show -x` and its like print it",
        ),
    ] {
        assert_eq!(chosen(choice).expect_err("fails").to_string(), says);
    }
    let url = "http://me:secret@127.0.0.1:1/RPC2?x";
    let shown = format!("{:?}", OnedEnv { choice: Some(url.into()), ..env(&home, url) });
    assert!(shown.contains("http://127.0.0.1:1/RPC2") && !shown.contains("secret"), "{shown}");
    let error = chosen(url).expect_err("fails").to_string();
    assert!(error.contains("oned at http://127.0.0.1:1/RPC2 for") && !error.contains("secret"), "{error}");
}

#[test]
fn a_directory_answers_as_oned_would() {
    let root = tempfile::tempdir().expect("makes");
    let put = |name: &str, xml: &str| {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
        fs::write(path, xml).expect("writes");
    };
    put("vm/42.xml", VM);
    put("image/1.xml", "<IMAGE><SIZE>3</SIZE></IMAGE>");
    put("datastore/1.xml", "<DATASTORE><TYPE>1</TYPE></DATASTORE>");
    put("host/1.xml", "<HOST><TEMPLATE><REPLICA_STORAGE_IP>10.0.0.1</REPLICA_STORAGE_IP></TEMPLATE></HOST>");
    put("hostpool.xml", "<HOST_POOL><HOST><STATE>2</STATE></HOST><HOST><STATE>3</STATE></HOST></HOST_POOL>");
    put("datastorepool.xml", "<DATASTORE_POOL><DATASTORE/><DATASTORE/></DATASTORE_POOL>");
    let mut choice = std::ffi::OsString::from("dir:");
    choice.push(root.path());
    let oned = connect(&OnedEnv { choice: Some(choice), ..OnedEnv::default() });
    assert_eq!(oned.vm(42).expect("answers").id.get(), Ok(Some(42)));
    assert_eq!(oned.image(1).expect("answers").size.get(), Ok(Some(3)));
    assert!(oned.datastore(1).is_ok());
    assert_eq!(oned.host(1).expect("answers").template.replica_storage_ip.get(), Some("10.0.0.1"));
    let hosts = oned.host_pool().expect("answers");
    assert_eq!(hosts.hosts.iter().map(onestore::payload::Host::is_usable).collect::<Vec<_>>(), [true, false]);
    assert_eq!(oned.datastore_pool().expect("answers").datastores.len(), 2);
    assert_eq!(oned.xml(Object::Vm(42)).expect("answers"), VM);
    put("vm/43.xml", "<VM>");
    assert!(
        oned.vm(43).expect_err("fails").to_string().ends_with("for VM 43: The XML is cut off at byte 4 inside <VM>")
    );
}

#[test]
fn commands_are_limited_in_time_and_size() {
    let _turn = one_at_a_time();
    let home = tempfile::tempdir().expect("makes");
    let mut env = OnedEnv { choice: Some("cli".into()), ..env(&home, "") };
    assert_eq!(
        connect(&env).host(1).expect_err("fails").to_string(),
        "Cannot ask OpenNebula's commands for host 1: onehost is not in PATH; \
         install opennebula-tools or set ONE_XMLRPC and ONE_AUTH"
    );
    command(home.path(), "onehost", "[ \"$1\" = list ] && echo '<HOST_POOL/>' || exit 3");
    assert!(connect(&env).host_pool().is_ok());
    let error = connect(&env).host(1).expect_err("fails").to_string();
    assert_eq!(error, "Cannot ask OpenNebula's commands for host 1: onehost failed: exit status: 3");

    command(home.path(), "onehost", "exec cat /dev/zero");
    env.total_timeout = Duration::from_millis(200);
    assert!(matches!(connect(&env).host(1).expect_err("fails").cause, Cause::Timeout(_)));
    command(home.path(), "onehost", "exec sleep 60");
    let start = Instant::now();
    assert!(matches!(connect(&env).host(1).expect_err("fails").cause, Cause::Timeout(_)));
    assert!(start.elapsed() < Duration::from_secs(10));
    env.total_timeout = Duration::from_secs(20);
    command(home.path(), "onehost", "exec head -c 20000 /dev/zero");
    assert!(matches!(connect(&env).host(1).expect_err("fails").cause, Cause::TooLarge { limit: 10_000 }));
}

#[test]
fn a_certificate_that_nobody_signed_is_refused() {
    let _turn = one_at_a_time();
    let home = tempfile::tempdir().expect("makes");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(home.path())
        .stderr(Stdio::null())
        .status()
        .expect("this test needs the openssl command");
    assert!(made.success());
    let mut identity = fs::read(home.path().join("key.pem")).expect("reads");
    let cert = fs::read(home.path().join("cert.pem")).expect("reads");
    let identity = native_tls::Identity::from_pkcs8(&cert, &std::mem::take(&mut identity)).expect("an identity");
    let acceptor = native_tls::TlsAcceptor::new(identity).expect("an acceptor");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("https://{}/RPC2", listener.local_addr().expect("address"));
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accepts");
        // The client must break off before it has sent anything.
        let mut sent = Vec::new();
        match acceptor.accept(stream) {
            Ok(mut tls) => {
                let _ = tls.read_to_end(&mut sent);
            }
            Err(_) => return sent,
        }
        sent
    });
    let text = says(ask(&url));
    assert!(text.starts_with("Cannot ask oned at https://127.0.0.1/RPC2 for VM 42: no secure connection ("), "{text}");
    assert!(text.ends_with("; does this machine trust the certificate there?"), "{text}");
    assert_eq!(server.join().expect("the server ends well"), b"");
}
