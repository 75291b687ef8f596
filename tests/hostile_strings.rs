//! Every XML leaf of every recorded payload and every argument of every action, by the table of drivers, holding what no
//! honest one does; and links where there should be none. The real binary runs them, with traps around: nothing is
//! executed, nothing of somebody else's is read, changed or removed.
//!
//! `ONESTORE_HOSTILE=N` tries N instead of 160, `ONESTORE_HOSTILE_SEED=S` others, `ONESTORE_BIN=…` with another build of
//! the binary. With hosts behind a real sshd: `cargo test --test hostile_strings -- --ignored`.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use onestore::action::{ACTIONS, Action, Stdin};
use onestore::driver::{DRIVERS, Serve};

#[path = "hostile/ground.rs"]
#[allow(dead_code)]
mod ground;
#[path = "hostile/leaves.rs"]
mod leaves;
#[path = "common/noise.rs"]
mod noise;
#[path = "lab/sshd.rs"]
#[allow(dead_code)]
mod sshd;

use ground::{CANARY, Ground};
use leaves::{Leaf, leaves};
use noise::Noise;

/// Longest that an action may take, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(240);

/// What no honest value holds. Those that lead outside come last.
fn strings(ground: &Ground) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let touch = format!("touch {}", ground.text("executed"));
    let trap = ground.text("bin/trap");
    let secret = ground.text("outside/secret");
    let quoting = [
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("';{touch};'"),
        format!("\";{touch};\""),
        format!("\n{touch}\n"),
        format!("|{touch}"),
        format!("&{touch}&"),
        format!("$({trap})"),
        format!("\\$({trap})\\"),
        format!("'\"$({trap})\"'"),
        format!("-oProxyCommand={trap}"),
        format!("--checkpoint-action=exec={trap}"),
        format!("x\r\n\t{trap}\u{2028}"),
        format!("<![CDATA[{trap}]]>"),
        format!("]]>&{trap};"),
        format!("${{IFS}}{trap}"),
        format!("%s%n%{trap}"),
        format!("command={trap}"),
        "-rf".to_owned(),
        "--help".to_owned(),
        "-".to_owned(),
        "--".to_owned(),
        "-1".to_owned(),
        "99999999999999999999".to_owned(),
        "0x7".to_owned(),
        "*".to_owned(),
        "~".to_owned(),
        "\u{202e}\u{1b}[2J\u{7f}".to_owned(),
        "é\u{fffd}日本".to_owned(),
        " ".to_owned(),
        String::new(),
        "a".repeat(70_000),
        "/".repeat(5_000),
        "../".repeat(2_000),
        "x/".repeat(3_000),
    ];
    let outside = [
        secret.clone(),
        format!("node1:{secret}"),
        format!("ssh://node1{secret}"),
        format!("ssh://node1:{secret}"),
        format!("file://{secret}"),
        format!("json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{secret}\"}}}}"),
        format!("nbd:unix:{secret}"),
        "../outside/secret".to_owned(),
        "/../../outside/secret".to_owned(),
        "/../../../../outside/secret".to_owned(),
        "..".to_owned(),
        "/..".to_owned(),
        "../8/disk.0".to_owned(),
        ground.text("outside/dir"),
        ground.text("ds/103/8/disk.0"),
        format!("node1:{}", ground.text("ds/103/8/disk.0")),
        format!("node1:{}", ground.text("outside/dir/7")),
        ground.text("home/.one/one_auth"),
        ground.text("one/etc/oned.conf"),
        "/".to_owned(),
        "/etc".to_owned(),
    ];
    let mut quoting: Vec<Vec<u8>> = quoting.into_iter().map(String::into_bytes).collect();
    quoting.extend([b"\xff\xfe".to_vec(), b"\xc3('".to_vec(), b"a\0b".to_vec(), b"\0".to_vec(), b"&#0;".to_vec()]);
    (quoting, outside.into_iter().map(String::into_bytes).collect())
}

/// Elements that say where a datastore is and what may be read: the operator's, who may name any place.
const OPERATORS: &[&str] =
    &["BASE_PATH", "SAFE_DIRS", "RESTRICTED_DIRS", "STAGING_DIR", "DATASTORE_LOCATION", "MOUNT_POINT", "BRIDGE_LIST"];

/// Puts a string in the place of a value or behind it, or also before it and into it.
fn twisted(value: &[u8], string: &[u8], anywhere: bool, noise: &mut Noise) -> Vec<u8> {
    match noise.below(if anywhere { 5 } else { 3 }) {
        0 | 1 => string.to_vec(),
        2 => [value, string].concat(),
        3 => [string, value].concat(),
        _ => {
            let at = noise.below(value.len() + 1);
            [&value[..at], string, &value[at..]].concat()
        }
    }
}

/// A payload as it was recorded, its places moved here.
fn recorded(ground: &Ground) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads");
    for family in fs::read_dir(folder).unwrap() {
        for file in fs::read_dir(family.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let text = match base64::engine::general_purpose::STANDARD.decode(text.trim()) {
                Ok(bytes) => String::from_utf8(bytes).unwrap(),
                Err(_) => text,
            };
            found.push((path.display().to_string(), moved(&text, ground)));
        }
    }
    found.sort();
    found
}

/// Moves the places of a recorded document here.
fn moved(text: &str, ground: &Ground) -> String {
    let mut out = String::new();
    let mut parts = text.split("/var/lib/one//datastores/");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let name = digits.strip_prefix('/').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
        out.push_str(&ground.text(if name.is_some() { "ds/1/abc" } else { "ds/1" }));
        let rest = name.unwrap_or(digits);
        out.push_str(rest);
    }
    let restricted = "<RESTRICTED_DIRS>/</RESTRICTED_DIRS></TEMPLATE></DATASTORE>";
    out.replace("/srv/www/base.raw", &ground.text("users/in.raw"))
        .replace("/var/tmp /srv/www", &ground.text("users"))
        .replace("/var/lib/one//datastores", &ground.text("ds"))
        .replace("/var/lib/one/datastores", &ground.text("ds"))
        .replace("/var/lib/one", &ground.text("one/var"))
        .replace("</TEMPLATE></DATASTORE>", restricted)
}

/// What one run tries.
struct Try {
    about: String,
    words: Vec<OsString>,
    input: Vec<u8>,
    /// An object of the cloud that is not as it was.
    object: Option<Vec<u8>>,
    plant: Option<usize>,
    /// Whether what is planted comes and goes while the action runs.
    swapped: bool,
}

/// Places where a link may stand, and where it leads.
const PLANTS: &[(&str, &str)] = &[
    ("ds/1/abc", "outside/secret"),
    ("ds/1/abc.snap", "outside/dir"),
    ("ds/1/.onestore", "outside/dir"),
    ("ds/103/7", "outside/dir"),
    ("ds/103/7/disk.0", "outside/secret"),
    ("ds/103/7/disk.0.snap", "outside/dir"),
    ("ds/103/7/disk.0.snap/0", "outside/secret"),
    ("ds/103/7/disk.0.snap/1", "outside/secret"),
    ("ds/1/new", "outside/secret"),
    ("users/in.raw", "outside/secret"),
];

/// All entries that do something: `(kind, mad, entry)` with their action.
fn entries() -> Vec<(&'static str, &'static str, &'static str, &'static Action)> {
    let mut found = Vec::new();
    for driver in DRIVERS {
        for mad in driver.mads {
            for entry in driver.entries {
                let name = entry.name.split('.').next().unwrap();
                let action = ACTIONS.iter().find(|action| action.kind == driver.kind && action.name == name).unwrap();
                if matches!(entry.serve, Serve::Datastore(_) | Serve::Tm(_)) {
                    found.push((driver.kind.folder(), *mad, entry.name, action));
                }
            }
        }
    }
    found
}

fn pick(number: usize, seed: u64, ground: &Ground, payloads: &[(String, String)]) -> Try {
    let mut noise = Noise(seed ^ (number as u64).wrapping_mul(0x1_0000_0001));
    let all = entries();
    // Every entry in turn.
    let (kind, mad, name, action) = all[number % all.len()];
    let (quoting, outside) = strings(ground);
    let everything: Vec<&Vec<u8>> = quoting.iter().chain(&outside).collect();
    let fits: Vec<&(String, String)> = payloads
        .iter()
        .filter(|(_, xml)| match action.stdin {
            Stdin::ActionData => xml.starts_with("<DS_DRIVER_ACTION_DATA"),
            _ => xml.starts_with("<VM>"),
        })
        .collect();
    let (file, document) = *noise.one_of(&fits);
    let mut args = ground.arguments(action.args);
    let mut input = document.clone().into_bytes();
    let mut object = None;
    let mut about = format!("{number}: {kind}/{mad}/{name} {file}");
    let twist = |document: &str, noise: &mut Noise, about: &mut String| {
        let all = leaves(document);
        let leaf: &Leaf = noise.one_of(&all);
        let list = if OPERATORS.contains(&leaf.name.as_str()) { quoting.iter().collect() } else { everything.clone() };
        let string = noise.one_of(&list);
        let _ = write!(about, " {} {:?}", leaf.name, String::from_utf8_lossy(&string[..string.len().min(120)]));
        leaf.replaced(document, &twisted(leaf.value(document).as_bytes(), string, true, noise))
    };
    let by_argument = action.stdin == Stdin::Empty && noise.below(3) > 0;
    if by_argument && !args.is_empty() {
        let at = noise.below(args.len());
        // Which file goes into the context is oned's word, and any file of the front-end may.
        let named = action.args.get(at).is_some_and(|name| name.contains("CONTEXT_SH") || name.contains("FILE"));
        let list = if named { quoting.iter().collect() } else { everything.clone() };
        let string = *noise.one_of(&list);
        // Where the datastores of a host are is oned's word: a place in front of an honest one is one.
        let anywhere = quoting.contains(string) && !string.contains(&b'/');
        let bytes = twisted(args[at].as_bytes(), string, anywhere, &mut noise);
        let bytes: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
        let _ = write!(about, " argument {at} {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(160)]));
        args[at] = OsString::from_vec(bytes);
    } else if action.stdin == Stdin::Empty {
        let vm = if noise.below(2) == 0 { ground.vm() } else { document.clone() };
        object = Some(twist(&vm, &mut noise, &mut about));
    } else {
        input = twist(document, &mut noise, &mut about);
    }
    let plain = noise.below(3) == 0 || action.stdin == Stdin::Empty;
    let input = match action.stdin {
        Stdin::Empty => Vec::new(),
        _ if plain => input,
        _ => base64::engine::general_purpose::STANDARD.encode(input).into_bytes(),
    };
    let plant = (noise.below(4) == 0).then(|| noise.below(PLANTS.len()));
    if let Some(plant) = plant {
        let _ = write!(about, " with {} a link to {}", PLANTS[plant].0, PLANTS[plant].1);
    }
    let mut words: Vec<OsString> = [kind, mad, name].map(OsString::from).to_vec();
    if action.stdin == Stdin::ActionData && kind == "datastore" {
        args = vec!["7".into()];
    }
    words.extend(args);
    Try { about, words, input, object, plant, swapped: kind == "datastore" && noise.below(2) == 0 }
}

/// Puts a link in the place of what is there, which goes aside.
fn plant(ground: &Ground, at: usize) {
    let (place, target) = PLANTS[at];
    let place = ground.path(place);
    let _ = fs::rename(&place, aside(&place));
    if place.parent().is_some_and(Path::exists) {
        let _ = symlink(ground.path(target), &place);
    }
}

/// Takes the link away again.
fn dig(ground: &Ground, at: usize) {
    let place = ground.path(PLANTS[at].0);
    if place.is_symlink() {
        let _ = fs::remove_file(&place);
    }
    let _ = fs::rename(aside(&place), &place);
}

fn aside(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".aside");
    name.into()
}

/// Runs one and says what is wrong.
fn wrong(ground: &Ground, this: &Try, before: &BTreeMap<PathBuf, String>) -> Option<String> {
    if let Some(object) = &this.object {
        fs::write(ground.path("oned/vm/7.xml"), object).unwrap();
    }
    // A name that is too long to be started with is no call.
    let mut child = ground.command(&this.words).env("ONESTORE_LOG", ground.path("tmp/log")).spawn().ok()?;
    let over = &AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        if let Some(at) = this.plant {
            plant(ground, at);
            if this.swapped {
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        dig(ground, at);
                        std::thread::sleep(Duration::from_micros(300));
                        plant(ground, at);
                        std::thread::sleep(Duration::from_micros(300));
                    }
                });
            }
        }
        let mut input = child.stdin.take().unwrap();
        let bytes = this.input.clone();
        scope.spawn(move || drop(input.write_all(&bytes)));
        let pid = rustix::process::Pid::from_child(&child);
        scope.spawn(move || {
            let begin = Instant::now();
            while !over.load(Ordering::Relaxed) {
                if begin.elapsed() > PATIENCE {
                    let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let ran = child.wait_with_output().unwrap();
        over.store(true, Ordering::Relaxed);
        ran
    });
    if let Some(at) = this.plant {
        dig(ground, at);
    }
    let said = [&ran.stdout[..], &ran.stderr, &fs::read(ground.path("tmp/log")).unwrap_or_default()].concat();
    let said = String::from_utf8_lossy(&said);
    let short: String = said.chars().take(600).collect();
    if ground.path("executed").exists() {
        return Some(format!("something was executed: {short}"));
    }
    if said.contains(CANARY) {
        return Some(format!("it says what is somebody else's: {short}"));
    }
    if said.contains("panicked") || ran.status.code().is_none() {
        return Some(format!("{:?}: {short}", ran.status));
    }
    let leaks = ground.leaks(&["ds", "tmp"]);
    if !leaks.is_empty() {
        return Some(format!("copied from outside: {leaks:?}: {short}"));
    }
    let after = ground.others();
    if after != *before {
        let differ = before.iter().filter(|(path, what)| after.get(*path) != Some(*what)).map(|(path, _)| path);
        let new = after.keys().filter(|path| !before.contains_key(*path));
        return Some(format!("changed: {:?}: {short}", differ.chain(new).collect::<Vec<_>>()));
    }
    None
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Tries that many; gives how many there were, and fails with all that is wrong.
fn drive(make: impl Fn(usize) -> Ground + Sync, default: u64) {
    let wanted = usize::try_from(number("ONESTORE_HOSTILE", default)).unwrap();
    let seed = number("ONESTORE_HOSTILE_SEED", 1);
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let wrongs: Mutex<Vec<String>> = Mutex::default();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (make, next, done, wrongs) = (&make, &next, &done, &wrongs);
            scope.spawn(move || {
                let ground = make(worker);
                let payloads = recorded(&ground);
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= wanted {
                        return;
                    }
                    ground.reset();
                    let before = ground.others();
                    let this = pick(n, seed, &ground, &payloads);
                    if let Some(why) = wrong(&ground, &this, &before) {
                        println!("WRONG {}: {why}", this.about);
                        wrongs.lock().unwrap().push(format!("{}: {why}", this.about));
                        let _ = fs::remove_file(ground.path("executed"));
                        for (place, _) in PLANTS.iter().filter(|(place, _)| place.starts_with("users")) {
                            fs::write(ground.path(place), vec![7; 64 << 10]).unwrap();
                        }
                    }
                    // A long run that is broken off is counted as far as it came.
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if done.is_multiple_of(100) {
                        let wrong = wrongs.lock().unwrap().len();
                        println!("{done} of {wanted}, {wrong} wrong, {:.0} s", begin.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let wrongs = wrongs.into_inner().unwrap();
    println!("{wanted} strings tried in {} entries, {} wrong", entries().len(), wrongs.len());
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
}

#[test]
fn nothing_that_is_said_leads_outside_or_is_executed() {
    let make = |worker: usize| {
        let ground = Ground::new();
        // One of them as hosts are without this binary.
        if worker == 0 {
            ground.with_agent();
        }
        ground
    };
    drive(make, 160);
}

/// Every action of every transfer manager, honestly called, with a link in the place of a directory of the VM or the image.
#[test]
fn a_link_in_the_place_of_a_directory_leads_nowhere() {
    let ground = Ground::new();
    ground.with_agent();
    let mut wrongs = Vec::new();
    for (kind, mad, name, action) in entries().into_iter().filter(|(kind, mad, ..)| *kind == "tm" && *mad != "shared") {
        // A directory, the disk, a layer, and the folder of the image's layers.
        let places = [("disk.0", 3), ("disk.0", 5), ("disk.2", 3), ("", 3), ("disk.0", 7), ("disk.0", 1)];
        for (disk, at) in places {
            ground.reset();
            let before = ground.others();
            let mut words: Vec<OsString> = [kind, mad, name].map(OsString::from).to_vec();
            let with_disk =
                |word: OsString| word.into_string().unwrap().replace("103/7/disk.0", &format!("103/7/{disk}"));
            words.extend(ground.arguments(action.args).into_iter().map(with_disk).map(OsString::from));
            let input = if action.stdin == Stdin::Vm { ground.vm().into_bytes() } else { Vec::new() };
            let about = format!("{kind}/{mad}/{name} {disk} with {} a link", PLANTS[at].0);
            let this = Try { about, words, input, object: None, plant: Some(at), swapped: false };
            wrongs.extend(wrong(&ground, &this, &before).map(|why| format!("{}: {why}", this.about)));
        }
    }
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
}

#[test]
#[ignore = "needs sshd"]
fn the_same_through_ssh() {
    let labs = [sshd::Sshd::start(""), sshd::Sshd::start("")];
    let make = |worker: usize| {
        let mut ground = Ground::new();
        labs[worker].configure("Host node1\n HostName 127.0.0.1\nMatch originalhost node1\n");
        let config = fs::read_to_string(labs[worker].path("ssh_config")).unwrap();
        let config = config.replace("Host lab*", "Host node1 lab*").replace("Match originalhost node1\n", "");
        fs::write(labs[worker].path("ssh_config"), config).unwrap();
        ground.ssh = format!("ssh -F {}", labs[worker].path("ssh_config").display());
        ground
    };
    drive(make, 60);
}

#[test]
fn the_traps_are_sharp() {
    // What is looked for would be found.
    let ground = Ground::new();
    let before = ground.others();
    fs::copy(ground.path("outside/secret"), ground.path("ds/1/leak")).unwrap();
    assert_eq!(ground.leaks(&["ds"]), [ground.path("ds/1/leak")]);
    fs::write(ground.path("outside/dir/0"), "x").unwrap();
    assert_ne!(ground.others(), before);
    assert!(std::process::Command::new(ground.path("bin/trap")).status().unwrap().success());
    assert!(ground.path("executed").exists());
    let ran = ground.command([OsStr::new("tm"), OsStr::new("qcow2"), OsStr::new("snap_create")]);
    drop(ran);
    let mut honest: Vec<OsString> = ["tm", "qcow2", "snap_create"].map(OsString::from).to_vec();
    honest.extend(ground.arguments(&["HOST:SYSDIR/disk.N"]));
    honest.extend(["1", "7", "1"].map(OsString::from));
    let ran = ground.command(&honest).output().unwrap();
    assert!(ran.status.success(), "an honest call does something: {}", String::from_utf8_lossy(&ran.stderr));
    let document = moved("<A><B>/var/lib/one//datastores/100/0af</B><C/></A>", &ground);
    assert_eq!(leaves(&document).len(), 1);
    assert!(document.contains(&ground.text("ds/1/abc")));
}
