//! A small Linux guest with an agent: Debian's kernel for clouds, and a ramdisk of busybox and qemu-ga that is made here.
//!
//! It mounts the file system of each of its disks, and writes numbered lines to a log on each, for ever: line N+1 when line
//! N is written. Its agent calls a hook when it freezes and when it thaws, which says so on the console: a file that the
//! test reads. See docs/lab.md.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::hypervisors::{Domain, Kind, Lab, run};

/// Where `scripts/packages.sh hypervisor` puts the kernel.
const KERNEL: &str = "/usr/local/share/onestore-lab";

/// In the order in which they depend on each other.
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
];

/// MiB of a disk.
const SIZE: u64 = 24;

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in MODULES; do insmod /modules/$module.ko; done
while ! [ -e /sys/class/virtio-ports ] || ! [ -b /dev/vda ]; do usleep 20000; done
for disk in /dev/vd?; do
    mkdir -p /mnt/${disk##*/}
    mount -t ext4 $disk /mnt/${disk##*/}
done
echo "guest: $(ls /mnt)" >/dev/ttyS0
(n=0; while :; do n=$((n + 1)); for at in /mnt/*; do echo $n >>$at/log; done; usleep 10000; done) &
while :; do
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat $port/name)" = org.qemu.guest_agent.0 ] || continue
        qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -F/freeze -l /dev/null </dev/null >/dev/null 2>&1
    done
    usleep 100000
done
"#;

const HOOK: &str = "#!/bin/busybox sh\necho \"agent: $1\" >/dev/ttyS0\n";

/// The guest, which runs.
pub struct Linux<'a> {
    lab: &'a Lab,
    /// Its domain.
    pub domain: Domain<'a>,
}

impl<'a> Linux<'a> {
    /// Makes a disk with an empty file system.
    pub fn plant(path: &Path, format: &str) {
        let raw = path.with_extension("plant");
        fs::File::create(&raw).and_then(|file| file.set_len(SIZE << 20)).expect("creates");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&raw));
        run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", format]).arg(&raw).arg(path));
        fs::remove_file(raw).expect("removes");
    }

    /// Starts it, and waits until it writes and its agent answers.
    pub fn start(lab: &'a Lab, host: &str, id: u32, disks: &[(&Path, &str)]) -> Self {
        let ramdisk = lab.path("ramdisk");
        if !ramdisk.exists() {
            fs::write(&ramdisk, archive()).expect("writes");
        }
        let disk = |(at, (path, format)): (usize, &(&Path, &str))| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='vd{}' bus='virtio'/></disk>",
                path.display(),
                char::from(b'a' + u8::try_from(at).expect("few disks"))
            )
        };
        let disks: String = disks.iter().enumerate().map(disk).collect();
        let console = Self::console_of(lab, id);
        let _ = fs::remove_file(&console);
        let xml = format!(
            "<domain type='qemu'><name>one-{id}</name><memory unit='MiB'>160</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{KERNEL}/vmlinuz</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 quiet mitigations=off random.trust_cpu=on</cmdline></os>\
             <features><acpi/></features><cpu mode='maximum' check='none'/>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}\
             <serial type='file'><source path='{}'/></serial>\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
            ramdisk.display(),
            console.display()
        );
        let domain = lab.start_domain(host, id, &xml, Kind::Transient);
        let linux = Self { lab, domain };
        let ready =
            crate::hypervisors::within(240, || linux.console().contains("guest: ") && linux.agent("guest-ping"));
        assert!(ready, "{}", linux.console());
        linux
    }

    fn console_of(lab: &Lab, id: u32) -> PathBuf {
        lab.path(&format!("tmp/console-{id}"))
    }

    /// What it has said.
    pub fn console(&self) -> String {
        let id = self.domain.name.trim_start_matches("one-").parse().expect("a number");
        fs::read(Self::console_of(self.lab, id))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// How often its agent has begun to freeze, and has thawed.
    pub fn states(&self) -> (usize, usize) {
        let console = self.console();
        (console.matches("agent: freeze").count(), console.matches("agent: thaw").count())
    }

    /// Whether the agent answers this.
    pub fn agent(&self, command: &str) -> bool {
        let command = format!("{{\"execute\":\"{command}\"}}");
        self.domain.virsh("qemu-agent-command", &[&command, "--timeout", "5"]).status.success()
    }

    /// `frozen` or `thawed`, as its agent sees it.
    pub fn freeze_status(&self) -> String {
        let told =
            self.domain.virsh("qemu-agent-command", &["{\"execute\":\"guest-fsfreeze-status\"}", "--timeout", "5"]);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        if told.contains("thawed") {
            "thawed"
        } else if told.contains("frozen") {
            "frozen"
        } else {
            "unknown"
        }
        .to_owned()
    }

    /// Has it run a shell command, and does not wait for that.
    pub fn shell(&self, command: &str) {
        let exec = serde_json::json!({
            "execute": "guest-exec",
            "arguments": { "path": "/bin/sh", "arg": ["-c", command] },
        });
        let done = self.domain.virsh("qemu-agent-command", &[&exec.to_string()]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// How a file system was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing is in its journal; it is whole without it.
    Clean,
    /// As after a power failure: whole once the journal was read.
    Journal,
}

/// Looks at the file system in an image of a host: how it was left, and the last line of its log, whose lines must be all
/// there.
pub fn judge(lab: &Lab, host: &str, image: &Path) -> (Left, u32) {
    let raw = tempfile::Builder::new().suffix(".raw").tempfile_in(lab.path("tmp")).expect("a file");
    let to = raw.path().display().to_string();
    lab.must(host, &["qemu-img", "convert", "-U", "-O", "raw", &image.display().to_string(), &to]);
    let text = |command: &mut Command| {
        let done = command.output().expect("e2fsprogs");
        (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let (_, head) = text(Command::new("dumpe2fs").arg("-h").arg(raw.path()));
    let features = head.lines().find(|line| line.starts_with("Filesystem features")).expect("features");
    let left = if features.contains("needs_recovery") { Left::Journal } else { Left::Clean };
    if left == Left::Journal {
        let (code, told) = text(Command::new("e2fsck").arg("-p").arg(raw.path()));
        assert!(code == Some(0) || code == Some(1), "{told}");
    }
    let (code, told) = text(Command::new("e2fsck").arg("-fn").arg(raw.path()));
    assert_eq!(code, Some(0), "{}: {told}", image.display());
    let (_, log) = text(Command::new("debugfs").args(["-R", "cat /log"]).arg(raw.path()));
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.parse().ok()).collect();
    // What was not on the disk yet may be missing at the end, and a file may be longer than what was.
    let last = numbers.len();
    assert!(numbers.iter().copied().eq((1..).take(last)), "{log}");
    if left == Left::Clean {
        assert!(log.ends_with(&format!("{last}\n")), "{log}");
    }
    (left, u32::try_from(last).expect("few lines"))
}

/// The ramdisk: a cpio archive of the new format, which the kernel unpacks.
fn archive() -> Vec<u8> {
    let mut files: Vec<(String, u32, Vec<u8>)> = Vec::new();
    let mut folders = BTreeSet::new();
    let mut add = |name: &str, content: Vec<u8>| {
        let parts: Vec<&str> = name.split('/').collect();
        for end in 1..parts.len() {
            folders.insert(parts[..end].join("/"));
        }
        files.push((name.to_owned(), 0o100_755, content));
    };
    add("init", INIT.replace("MODULES", &MODULES.join(" ")).into_bytes());
    add("freeze", HOOK.into());
    for module in MODULES {
        add(&format!("modules/{module}.ko"), read(&Path::new(KERNEL).join(format!("modules/{module}.ko"))));
    }
    let mut libraries = BTreeSet::new();
    for program in ["busybox", "qemu-ga"] {
        let path = which::which_in(program, Some("/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"), "/").expect(program);
        add(&format!("bin/{program}"), read(&path));
        // A static one has none, and ldd says so by its status.
        let list = Command::new("ldd").arg(&path).output().expect("ldd");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        libraries.extend(list.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for library in libraries {
        add(library.trim_start_matches('/'), read(Path::new(&library)));
    }
    let more = ["proc", "sys", "dev", "run", "mnt", "etc", "tmp"].map(str::to_owned);
    let folders = folders.into_iter().chain(more).map(|name| (name, 0o040_755, Vec::new()));
    let mut out = Vec::new();
    let end = ("TRAILER!!!".to_owned(), 0, Vec::new());
    for (inode, (name, mode, content)) in (1u32..).zip(folders.chain(files).chain([end])) {
        let (size, length) = (content.len(), name.len() + 1);
        let head = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{length:08x}{0:08x}",
            0, 1
        );
        out.extend(head.into_bytes());
        out.extend(name.into_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(content);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}; run scripts/packages.sh hypervisor", path.display()))
}
