//! Secrets stay where they are: every field that the payload types know as a secret, and what else looks like one, holds
//! a canary. While all actions run with it, no process has one in its arguments; no reply, error, log or explanation
//! shows one; and no file that others may read holds one.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use onestore::action::{ACTIONS, Stdin};
use onestore::driver::{DRIVERS, Serve};

#[path = "hostile/ground.rs"]
#[allow(dead_code)]
mod ground;

use ground::Ground;

/// Stands in every secret.
const SECRET: &str = "S3CR3T";

/// Names of all elements whose field is a `SecretText`, as the records declare them; and what users and operators call
/// such things in attributes of which nothing is known here.
fn names() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| line.contains(": SecretText = \"")) {
            found.extend(line.split('"').nth(1).map(str::to_owned));
        }
    }
    assert!(found.contains("RESTIC_PASSWORD") && found.contains("SECRET_ACCESS_KEY") && found.len() >= 6, "{found:?}");
    let more =
        ["LUKS_PASSPHRASE", "S3_SECRET_ACCESS_KEY", "VCENTER_PASSWORD", "CEPH_KEY", "TOKEN", "API_KEY", "PASSWORD"];
    found.extend(more.map(str::to_owned));
    found
}

/// All of them with their canaries.
fn elements(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("<{name}>{SECRET}-{name}</{name}>")).collect::<Vec<_>>().concat()
}

/// A document with secrets in every place that may hold attributes, and an image at this address.
fn document(ground: &Ground, path: &str, names: &BTreeSet<String>) -> String {
    let secrets = elements(names);
    format!(
        "<DS_DRIVER_ACTION_DATA><IMAGE><ID>7</ID><PATH>{path}</PATH><SOURCE>{}</SOURCE><FORMAT>raw</FORMAT><SIZE>1</SIZE>\
         <TARGET_SNAPSHOT>0</TARGET_SNAPSHOT><TEMPLATE>{secrets}</TEMPLATE></IMAGE><DATASTORE><ID>1</ID><TYPE>0</TYPE>\
         <BASE_PATH>{}</BASE_PATH><TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS>{secrets}</TEMPLATE></DATASTORE>{}\
         <MARKETPLACE><ID>1</ID><MARKET_MAD>s3</MARKET_MAD><TEMPLATE>{secrets}<AWS>no</AWS></TEMPLATE></MARKETPLACE>\
         </DS_DRIVER_ACTION_DATA>",
        ground.text("ds/1/abc"),
        ground.text("ds/1"),
        ground.text("users"),
        vm(ground, names)
    )
}

/// VM 7 with secrets.
fn vm(ground: &Ground, names: &BTreeSet<String>) -> String {
    let secrets = elements(names);
    let user = format!("<USER_TEMPLATE>{secrets}</USER_TEMPLATE></VM>");
    ground.vm().replace("<CONTEXT>", &format!("<TPM>{secrets}</TPM><CONTEXT>{secrets}")).replace("</VM>", &user)
}

/// A server that answers as little helpful as can be, and repeats what it is told.
fn serve(listener: &TcpListener, over: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !over.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        answer(stream);
    }
}

fn answer(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(300)));
    let mut asked = Vec::new();
    let mut block = [0; 8192];
    while let Ok(len @ 1..) = stream.read(&mut block) {
        asked.extend_from_slice(&block[..len]);
        let text = String::from_utf8_lossy(&asked).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let len = head
                .to_lowercase()
                .split_once("content-length: ")
                .and_then(|(_, rest)| rest.lines().next()?.parse().ok());
            body.len() >= len.unwrap_or(0)
        });
        if whole {
            break;
        }
    }
    let asked = String::from_utf8_lossy(&asked).replace(['<', '&'], " ");
    let path = asked.split(' ').nth(1).unwrap_or("/");
    let (status, more, body) = match path {
        path if path.starts_with("/image") => ("200 OK", String::new(), "x".repeat(70_000)),
        path if path.starts_with("/away") => {
            ("302 Found", format!("Location: /gone?token={SECRET}-location\r\n"), String::new())
        }
        "/RPC2" => (
            "200 OK",
            String::new(),
            format!(
                "<methodResponse><params><param><value><array><data><value><boolean>0</boolean></value><value><string>No {asked}\
                 </string></value><value><int>256</int></value></data></array></value></param></params></methodResponse>"
            ),
        ),
        _ => (
            "403 Forbidden",
            String::new(),
            format!("<Error><Code>{SECRET}-code</Code><Message>{asked}</Message></Error>"),
        ),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n", body.len());
    // Slow enough to be seen while it runs.
    let _ = stream.write_all(head.as_bytes());
    for part in body.as_bytes().chunks(20_000) {
        std::thread::sleep(Duration::from_millis(3));
        let _ = stream.write_all(part);
    }
}

/// Looks at the arguments of all processes, and at files that others may read, until it is told that all is over.
fn watch(ground: &Ground, over: &AtomicBool, seen: &Mutex<BTreeSet<String>>) -> u64 {
    let mut looks = 0_u64;
    while !over.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&format!("{SECRET}-")) {
                seen.lock().unwrap().insert(format!("arguments: {line}"));
            }
        }
        // Files stay longer than processes.
        if looks.is_multiple_of(8) {
            open_files(ground, seen);
        }
        looks += 1;
    }
    looks
}

/// Files that hold a secret and that others may read.
fn open_files(ground: &Ground, seen: &Mutex<BTreeSet<String>>) {
    let mut todo: Vec<_> = ["ds", "tmp", "locks", "one", "home"].iter().map(|name| ground.path(name)).collect();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else { continue };
            if meta.is_dir() {
                todo.push(path);
            } else if meta.is_file() && meta.len() < 4 << 20 && meta.permissions().mode() & 0o077 != 0 {
                let bytes = fs::read(&path).unwrap_or_default();
                if bytes.windows(SECRET.len() + 1).any(|part| part == format!("{SECRET}-").as_bytes()) {
                    seen.lock().unwrap().insert(format!("{} has mode {:o}", path.display(), meta.permissions().mode()));
                }
            }
        }
    }
}

/// One call; what it says must hold no secret.
fn call(
    ground: &Ground,
    about: &str,
    words: &[OsString],
    input: &str,
    env: &[(&str, String)],
    seen: &Mutex<BTreeSet<String>>,
) -> Output {
    let log = ground.path("tmp/log");
    let mut command = ground.command(words);
    command.env("ONESTORE_LOG", &log).env("ONE_AUTH", ground.path("home/auth")).env("RUST_BACKTRACE", "full");
    command.envs(env.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().unwrap();
    let input = base64::engine::general_purpose::STANDARD.encode(input);
    // An action that takes no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let ran = child.wait_with_output().unwrap();
    let logged = fs::read(&log).unwrap_or_default();
    for (where_, bytes) in [("stdout", &ran.stdout), ("stderr", &ran.stderr), ("log", &logged)] {
        let text = String::from_utf8_lossy(bytes);
        if let Some(at) = text.find(&format!("{SECRET}-")) {
            let around: String = text.chars().skip(text[..at].chars().count().saturating_sub(80)).take(160).collect();
            seen.lock().unwrap().insert(format!("{where_} of {about}: …{around}…"));
        }
    }
    let _ = fs::remove_file(log);
    ran
}

#[test]
fn no_secret_is_seen() {
    let ground = Ground::new();
    ground.with_agent();
    let names = names();
    fs::write(ground.path("home/auth"), format!("user:{SECRET}-auth\n")).unwrap();
    fs::set_permissions(ground.path("home/auth"), fs::Permissions::from_mode(0o600)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    let addresses = [
        ground.text("users/in.raw"),
        format!("http://u:{SECRET}-login@{here}/image?sig={SECRET}-query"),
        format!("http://u:{SECRET}-login@{here}/none?sig={SECRET}-query"),
        format!("http://u:{SECRET}-login@{here}/away?sig={SECRET}-query#{SECRET}-part"),
        format!("s3://bucket/key?{SECRET}-query"),
    ];
    let keys = [
        ("AWS_ACCESS_KEY_ID", format!("{SECRET}-id")),
        ("AWS_SECRET_ACCESS_KEY", format!("{SECRET}-key")),
        ("AWS_SESSION_TOKEN", format!("{SECRET}-session")),
        ("AWS_ENDPOINT_URL_S3", format!("http://{here}")),
        ("RESTIC_PASSWORD", format!("{SECRET}-restic")),
    ];
    let oned = [("ONESTORE_ONED", format!("http://u:{SECRET}-endpoint@{here}/RPC2")), ("NO_RETRY", "yes".to_owned())];
    let over = AtomicBool::new(false);
    let seen: Mutex<BTreeSet<String>> = Mutex::default();
    let (mut calls, mut succeeded) = (0, 0);
    let looks = std::thread::scope(|scope| {
        scope.spawn(|| serve(&listener, &over));
        let watcher = scope.spawn(|| watch(&ground, &over, &seen));
        for driver in DRIVERS {
            let mad = driver.mads[0];
            for entry in driver.entries.iter().filter(|entry| matches!(entry.serve, Serve::Datastore(_) | Serve::Tm(_)))
            {
                let name = entry.name.split('.').next().unwrap();
                let action = ACTIONS.iter().find(|action| action.kind == driver.kind && action.name == name).unwrap();
                let about = format!("{}/{mad}/{}", driver.kind, entry.name);
                let mut words: Vec<OsString> = [driver.kind.folder(), mad, entry.name].map(OsString::from).to_vec();
                words.extend(match action.stdin {
                    Stdin::ActionData => vec![OsString::from("7")],
                    _ => ground.arguments(action.args),
                });
                // What the image's address is matters to few.
                let takes_address = action.stdin == Stdin::ActionData && ["cp", "stat", "clone"].contains(&name);
                let some = if takes_address { &addresses[..] } else { &addresses[..1] };
                for address in some {
                    ground.reset();
                    fs::write(ground.path("oned/vm/7.xml"), vm(&ground, &names)).unwrap();
                    let input = match action.stdin {
                        Stdin::ActionData => document(&ground, address, &names),
                        Stdin::Vm => vm(&ground, &names),
                        Stdin::Empty => String::new(),
                    };
                    let ran = call(&ground, &about, &words, &input, &keys, &seen);
                    succeeded += u32::from(ran.status.success());
                    let json: Vec<OsString> =
                        ["explain", "--json"].map(OsString::from).into_iter().chain(words.clone()).collect();
                    let plain: Vec<OsString> = [OsString::from("explain")].into_iter().chain(words.clone()).collect();
                    call(&ground, &format!("explain {about}"), &plain, &input, &keys, &seen);
                    call(&ground, &format!("explain --json {about}"), &json, &input, &keys, &seen);
                    calls += 3;
                }
                if driver.kind.folder() == "tm" {
                    ground.reset();
                    call(&ground, &format!("{about} with oned refusing"), &words, &vm(&ground, &names), &oned, &seen);
                    calls += 1;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    let seen = seen.into_inner().unwrap();
    println!(
        "{} names of secrets, {calls} calls, {succeeded} did their work, {looks} looks at all processes",
        names.len()
    );
    assert!(succeeded >= 10 && looks >= 100, "the calls do something: {succeeded}, {looks}");
    assert!(seen.is_empty(), "{}", seen.into_iter().collect::<Vec<_>>().join("\n"));
}
