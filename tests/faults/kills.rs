//! Actions that are killed at some moment, and what has to hold afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::house::{House, Ran, finish, new_files, was_killed};

/// One action on a datastore of its own.
pub struct Case {
    pub name: &'static str,
    pub action: &'static str,
    /// Makes what the action needs; gives the document.
    pub set_up: fn(&House, &str) -> String,
    /// Whether the action makes one new image.
    pub makes: bool,
}

type Content = BTreeMap<String, String>;

/// What a case comes to when nobody kills it.
pub struct Reference {
    pub before: Content,
    pub after: Content,
    pub took: Duration,
}

fn image_of(path: &std::path::Path, more: &str) -> String {
    format!("<SOURCE>{}</SOURCE>{more}", path.display())
}

fn bystander(house: &House) {
    house.raw(&house.base.join("bystander"), 1, 99);
}

fn cp_raw(house: &House, _: &str) -> String {
    bystander(house);
    house.raw(&house.path("users/disk.raw"), 16, 11);
    house.document(&format!("<PATH>{}</PATH>", house.path("users/disk.raw").display()), "")
}

fn cp_gzip_convert(house: &House, _: &str) -> String {
    bystander(house);
    let plain = house.path("users/disk.raw");
    house.raw(&plain, 4, 11);
    assert!(std::process::Command::new("gzip").arg("-1").arg(&plain).status().expect("gzip runs").success());
    house.document(&format!("<PATH>{}</PATH>", house.path("users/disk.raw.gz").display()), "<DRIVER>qcow2</DRIVER>")
}

fn cp_http(house: &House, url: &str) -> String {
    bystander(house);
    house.document(&format!("<PATH>{url}</PATH>"), "")
}

fn mkfs(house: &House, _: &str) -> String {
    bystander(house);
    house.document("<FORMAT>qcow2</FORMAT><FS>ext4</FS><SIZE>8</SIZE>", "")
}

fn clone(house: &House, _: &str) -> String {
    let image = house.copies();
    house.document(&format!("<PATH>{}</PATH>", image.display()), "<DRIVER>qcow2</DRIVER>")
}

fn rm(house: &House, _: &str) -> String {
    bystander(house);
    house.document(&image_of(&house.chain(), ""), "")
}

fn snapshot(house: &House, chain: bool, id: u32) -> String {
    bystander(house);
    let image = if chain { house.chain() } else { house.copies() };
    house.document(&image_of(&image, &format!("<TARGET_SNAPSHOT>{id}</TARGET_SNAPSHOT>")), "")
}

/// Every action that changes something, each on the layouts that it treats differently.
pub const CASES: &[Case] = &[
    Case { name: "cp a raw file", action: "cp", set_up: cp_raw, makes: true },
    Case { name: "cp a gzip and convert", action: "cp", set_up: cp_gzip_convert, makes: true },
    Case { name: "cp by http", action: "cp", set_up: cp_http, makes: true },
    Case { name: "mkfs qcow2 ext4", action: "mkfs", set_up: mkfs, makes: true },
    Case { name: "clone and convert", action: "clone", set_up: clone, makes: true },
    Case { name: "rm a chain", action: "rm", set_up: rm, makes: false },
    Case { name: "snap_delete from a chain", action: "snap_delete", set_up: |h, _| snapshot(h, true, 1), makes: false },
    Case { name: "snap_delete the first", action: "snap_delete", set_up: |h, _| snapshot(h, true, 0), makes: false },
    Case { name: "snap_revert a chain", action: "snap_revert", set_up: |h, _| snapshot(h, true, 1), makes: false },
    Case { name: "snap_revert a copy", action: "snap_revert", set_up: |h, _| snapshot(h, false, 0), makes: false },
    Case { name: "snap_flatten a chain", action: "snap_flatten", set_up: |h, _| snapshot(h, true, 2), makes: false },
    Case { name: "snap_flatten the first", action: "snap_flatten", set_up: |h, _| snapshot(h, true, 0), makes: false },
    Case { name: "snap_flatten a copy", action: "snap_flatten", set_up: |h, _| snapshot(h, false, 1), makes: false },
];

/// Runs a case undisturbed. `wrapper` is kept out of it.
pub fn reference(case: &Case, url: &str) -> Reference {
    let house = House::new();
    let document = (case.set_up)(&house, url);
    let before = relative(&house, house.content());
    let ran = house.call(case.action, &document);
    ran.reply(case.name);
    assert_eq!(house.staged(), Vec::<String>::new(), "{}", case.name);
    Reference { before, after: relative(&house, house.content()), took: ran.took }
}

/// Contents of two houses differ in where absolute links lead.
fn relative(house: &House, content: Content) -> Content {
    let base = house.base.display().to_string();
    content.into_iter().map(|(name, text)| (name, text.replace(&base, "BASE"))).collect()
}

/// Checks what a disturbed run left, does the action again, and checks again.
///
/// `ran` is how the disturbed run ended.
pub fn check(case: &Case, house: &House, document: &str, reference: &Reference, ran: &Ran, about: &str) {
    let about = &format!("{}, {about}: {:?} {}", case.name, ran.status, ran.text());
    assert_eq!(house.processes_left(5), Vec::<String>::new(), "{about}: a process lives on");
    let now = relative(house, house.content());
    let first = &reference.before;
    let staged_then = !house.staged().is_empty();
    let whole = |content: &Content| case.makes || *content == reference.after;
    if case.makes {
        // What was there is there; a new image that has its name already is whole.
        for (name, text) in first {
            assert_eq!(now.get(name), Some(text), "{about}: {name} was changed");
        }
        let expected = made_content(&reference.before, &reference.after);
        for name in new_files(first, &now) {
            if case.action != "mkfs" {
                assert_eq!(now.get(&name), expected.as_ref(), "{about}: {name} is half an image");
            }
        }
    }
    if ran.status.success() {
        assert!(whole(&now), "{about}: it said success: {now:#?}");
    }
    let again = house.call(case.action, document);
    let finished = !case.makes && now == reference.after;
    if finished && !again.status.success() {
        // It was over before it could say so. Doing it again finds nothing to do, and says that.
        let line = again.failure(about);
        assert!(line.contains("does not exist") || line.contains("no layer"), "{about}: {line}");
        // The next action that writes clears away what is left.
        let made = house.act("mkfs", "<FORMAT>raw</FORMAT><SIZE>1</SIZE>").source(about);
        house.act("rm", &image_of(&made, "")).reply(about);
    } else {
        again.reply(&format!("{about}: again"));
    }
    assert_eq!(house.staged(), Vec::<String>::new(), "{about}: a stray in the staging directory");
    let then = relative(house, house.content());
    if case.makes {
        let made = PathBuf::from(again.stdout.split_whitespace().next().unwrap_or_default());
        let made = made.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut expected = first.keys().cloned().collect::<std::collections::BTreeSet<_>>();
        expected.insert(made.clone());
        // The last instant: the reply is out and the staging name gone, only the exit status is missing. The image is
        // whole, and nothing tells it from one that was registered.
        if ran.status.success() || (was_killed(ran) && !staged_then) {
            let own = ran.stdout.split_whitespace().next().unwrap_or_default();
            expected.extend(PathBuf::from(own).file_name().map(|name| name.to_string_lossy().into_owned()));
        }
        assert_eq!(then.keys().cloned().collect::<std::collections::BTreeSet<_>>(), expected, "{about}: strays");
        if case.action != "mkfs" {
            assert_eq!(then.get(&made), made_content(&reference.before, &reference.after).as_ref(), "{about}");
        }
    } else {
        assert_eq!(then, reference.after, "{about}: done again it comes to something else");
    }
    assert_eq!(house.processes_left(5), Vec::<String>::new(), "{about}: a process lives on");
}

fn made_content(before: &Content, after: &Content) -> Option<String> {
    new_files(before, after).into_iter().find_map(|name| after.get(&name).cloned())
}

/// Starts a case in a house of its own, sends `signal` after `delay`, and gives what became of it.
pub fn disturbed(case: &Case, url: &str, signal: Signal, delay: Duration) -> (House, String, Ran) {
    let house = House::new();
    let document = (case.set_up)(&house, url);
    let started = house.start_call(case.action, &document);
    std::thread::sleep(delay.saturating_sub(started.begin.elapsed()));
    started.signal(signal);
    let ran = finish(started);
    (house, document, ran)
}
