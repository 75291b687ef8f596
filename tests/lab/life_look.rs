//! Looking at the VM after a call, and the transcript of what was seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CDROM_MARK, Content, DISKS, FRONT, ID, State, Storage, Vm};
use crate::hypervisors::within;

impl Vm<'_> {
    /// Looks at everything; see the module.
    pub fn check(&mut self) {
        let running = self.state == State::Running;
        let domain = self.lab.domain(&self.host, ID);
        let mut numbers = Vec::new();
        let look = |vm: &Self| {
            let mut all: Vec<(PathBuf, &'static str, u8)> =
                vm.marks.iter().map(|(number, mark)| (vm.disk(*number), DISKS[*number].format, *mark)).collect();
            for ((number, k), content) in &vm.snapshots {
                let file = vm.file_of(*number, *k);
                match content {
                    Content::Mark(mark) => all.push((file, DISKS[*number].format, *mark)),
                    Content::Number(moment) => {
                        assert_eq!(vm.lab.highest(&vm.host, &file), *moment, "{}", file.display());
                    }
                }
            }
            vm.check_marks(&all);
            vm.lab.highest(&vm.host, &vm.disk(0))
        };
        if running {
            assert_eq!(domain.state(), "running");
            assert!(domain.virsh("suspend", &[]).status.success());
            let now = look(self);
            let written = domain.writes();
            assert!(domain.virsh("resume", &[]).status.success());
            assert!(now >= self.last, "{now} < {}", self.last);
            // It lives: it writes something new.
            let lives = within(120, || domain.writes() > written);
            assert!(lives, "the guest stays at {now}, {}", domain.state());
            self.last = now;
        } else {
            assert_eq!(look(self), self.last);
        }
        numbers.push(format!("guest {} {}", if running { "runs, at" } else { "as left, at" }, self.last));
        let moments: Vec<String> = self.snapshots.keys().map(|(number, k)| format!("{number}/{k}")).collect();
        if !moments.is_empty() {
            numbers.push(format!("snapshots {}", moments.join(" ")));
        }
        numbers.push(format!("{} marks", self.marks.len()));
        self.check_names();
        self.told(&numbers.join(", "));
    }

    pub(super) fn told(&mut self, text: &str) {
        if let Some(line) = self.lines.last_mut() {
            line.checked = if text.is_empty() { "names".to_owned() } else { format!("{text}, names") };
        }
    }

    /// Files with their formats, and the mark that each must have.
    pub(super) fn check_marks(&self, files: &[(PathBuf, &'static str, u8)]) {
        let mut script = String::new();
        for (file, format, mark) in files {
            let (file, length) = (file.display(), if *mark == CDROM_MARK { "0 1M" } else { "1M 64k" });
            writeln!(script, "echo {file}; qemu-io -r -U -f {format} -c 'read -P {mark} {length}' {file} 2>&1 || exit")
                .expect("writes");
        }
        let done = self.lab.on(&self.host, &["sh", "-c", &script]);
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && !told.contains("failed"), "{told}");
        assert_eq!(told.matches("read ").count(), files.len(), "{told}");
    }

    /// Digests of what a guest reads of files, all their layers taken together.
    pub(super) fn digests(&self, machine: &str, files: &[(PathBuf, &'static str)]) -> Vec<String> {
        let raw = self.lab.path("tmp/content.raw").display().to_string();
        let mut script = String::from("set -e\n");
        for (file, format) in files {
            writeln!(
                script,
                "qemu-img convert -U -f {format} -O raw {} {raw}; sha256sum <{raw}; rm {raw}",
                file.display()
            )
            .expect("writes");
        }
        let told = self.lab.must(machine, &["sh", "-c", &script]);
        assert_eq!(told.lines().count(), files.len(), "{told}");
        told.lines().map(str::to_owned).collect()
    }

    /// Digests of all disks and snapshots of a VM that stands still.
    pub(super) fn contents(&self) -> Vec<String> {
        let disks = DISKS.iter().enumerate().map(|(number, disk)| (self.disk(number), disk.format));
        let snapshots = self.snapshots.keys().map(|(number, k)| (self.file_of(*number, *k), DISKS[*number].format));
        self.digests(&self.host, &disks.chain(snapshots).collect::<Vec<_>>())
    }

    /// Two files, each on its machine, of which a guest must read the same.
    pub(super) fn same_content(&mut self, a: (&str, &Path), b: (&str, &Path), format: &'static str) {
        let [one, two] = [a, b].map(|(machine, file)| self.digests(machine, &[(file.to_owned(), format)]));
        assert_eq!(one, two, "{a:?} and {b:?}");
        self.digests_told();
    }

    pub(super) fn digests_told(&mut self) {
        if let Some(line) = self.lines.last_mut() {
            line.checked += ", digests";
        }
    }

    /// Every name in the datastores, on all machines.
    pub(super) fn check_names(&mut self) {
        self.told("");
        let mut expected = self.images.clone();
        for (name, link) in &self.own {
            expected.insert(format!("{}/{ID}/{name}", self.system), link.clone());
        }
        let alone = self.storage == Storage::Shared;
        for machine in [FRONT.0, "host1", "host2"] {
            if machine != self.host && alone {
                continue;
            }
            let root = self.lab.shared().display().to_string();
            let list = self.lab.must(machine, &["find", &root, "-mindepth", "1", "-printf", "%y %P\\t%l\\n"]);
            let found: BTreeMap<String, String> = list
                .lines()
                .map(|line| {
                    let (name, link) = line.split_once('\t').unwrap_or((line, ""));
                    let end = if name.starts_with('d') { "/" } else { "" };
                    (format!("{}{end}", &name[2..]), link.to_owned())
                })
                // How the host tells sizes, once it has had a VM.
                .filter(|(name, _)| !name.ends_with("/.monitor"))
                .collect();
            let expected: BTreeMap<String, String> =
                if machine == self.host { expected.clone() } else { self.images.clone() };
            assert_eq!(found, expected, "on {machine}");
        }
    }

    // The transcript.

    /// The transcript as a table in Markdown.
    pub fn transcript(&self) -> String {
        let total: f64 = self.lines.iter().map(|line| line.seconds).sum();
        let mut text = String::from("| operation | call | on | s | looked at afterwards |\n|---|---|---|---|---|\n");
        let mut before = "";
        for line in &self.lines {
            let operation = if line.operation == before { "" } else { line.operation.as_str() };
            before = &line.operation;
            writeln!(
                text,
                "| {operation} | `{}` | {} | {:.2} | {} |",
                line.call, line.host, line.seconds, line.checked
            )
            .expect("writes");
        }
        writeln!(text, "\n{} calls, {total:.1} s.", self.lines.len()).expect("writes");
        text
    }
}

/// Writes a section of docs/lab-transcript.md, where `ONESTORE_TRANSCRIPT` is set, and prints it.
pub fn publish(title: &str, table: &str) {
    println!("## {title}\n\n{table}");
    if std::env::var_os("ONESTORE_TRANSCRIPT").is_none() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lab-transcript.md");
    let old = fs::read_to_string(&path).unwrap_or_default();
    let mut sections: BTreeMap<String, String> = old
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .map(|(title, text)| (title.to_owned(), text.trim().to_owned()))
        .collect();
    sections.insert(title.to_owned(), table.trim().to_owned());
    let mut text = String::from(HEAD);
    for (title, table) in sections {
        write!(text, "\n## {title}\n\n{table}\n").expect("writes");
    }
    fs::write(path, text).expect("writes");
}

const HEAD: &str = "# One VM's life, call by call\n\n\
Written by `ONESTORE_TRANSCRIPT=1 cargo test --test lab_life -- --ignored --test-threads 1`, as root; see [lab.md](lab.md).\n\
The calls are those of a running oned, in its order; `$D` is the datastores' folder, `$V` `/var/lib/one`.\n\
A debug build made them, on two busy cores: durations say which call is the slow one, not how fast it is.\n\n\
After each call the test looks at the VM. `guest runs, at N`: the guest stands still for a moment; its disk holds every\n\
sector that it has written up to number N, and N grows. `as left, at N`: not one sector differs from when it stopped.\n\
Marks: what was written to the other disks, the CD-ROM included. Digests: a guest reads the same, byte by byte, of what\n\
was copied and of its copy; after a move, of every disk and snapshot. Names: every name and link in all datastores of all\n\
machines is an expected one.\n";
