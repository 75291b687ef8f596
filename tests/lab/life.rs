//! One VM as oned, its hypervisor's driver and its user treat it: calls by the links, and after each of them a look at
//! everything it has.
//!
//! What is looked at ([`Vm::check`]): the numbered sectors of the boot disk, which has to be whole, as it was left, or
//! further on where the guest runs; a mark on every other disk; every snapshot; and every name in the datastores of all
//! machines, so that nothing is left over.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::hypervisors::{FRONT, Lab, within};
use crate::writer;

/// The VM.
pub const ID: u32 = 7;

/// Datastore of the images, and the one of plain files.
pub const IMAGES: u32 = 102;
const FILES: u32 = 2;

/// MiB of every disk but the guest's.
const SIZE: u64 = 16;

/// Where a disk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `CLONE=YES`.
    Clone,
    /// `CLONE=NO`, `SAVE=YES`.
    Persistent,
    /// `CLONE=NO`, `SAVE=NO`, read only.
    Cdrom,
    /// Made empty.
    Volatile,
    /// The same, as swap space.
    Swap,
}

/// A disk by its number, which is also its image's.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    origin: Origin,
    format: &'static str,
    target: &'static str,
}

/// The disks, `disk.0` first; [`CONTEXT`] comes after them.
pub const DISKS: [Disk; 7] = [
    Disk { origin: Origin::Clone, format: "qcow2", target: "hda" },
    Disk { origin: Origin::Persistent, format: "qcow2", target: "vda" },
    Disk { origin: Origin::Clone, format: "raw", target: "vdb" },
    Disk { origin: Origin::Persistent, format: "raw", target: "vdc" },
    Disk { origin: Origin::Volatile, format: "qcow2", target: "vdd" },
    Disk { origin: Origin::Swap, format: "raw", target: "vde" },
    Disk { origin: Origin::Cdrom, format: "raw", target: "hdb" },
];

/// Number of the CD-ROM with the context.
pub const CONTEXT: usize = DISKS.len();

/// What the CD-ROM holds all over.
const CDROM_MARK: u8 = 0xcd;

/// What the VM does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// Off, saved or undeployed: nothing writes to its disks.
    Still,
    /// Its disks are gone, or not made yet.
    Nowhere,
}

/// What a file must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Everything up to this number of the guest's.
    Number(u32),
    /// This byte where marks are.
    Mark(u8),
}

/// One line of the transcript.
struct Line {
    operation: String,
    call: String,
    host: String,
    seconds: f64,
    checked: String,
}

/// The VM, and what is expected of it.
pub struct Vm<'a> {
    lab: &'a Lab,
    mad: &'static str,
    /// `.ssh` where the hosts have system datastores of their own.
    suffix: &'static str,
    system: u32,
    /// The machine that has its directory.
    pub host: String,
    state: State,
    lcm: u32,
    history: Vec<String>,
    sizes: BTreeMap<usize, u64>,
    /// The guest's highest number when it was last looked at.
    pub last: u32,
    marks: BTreeMap<usize, u8>,
    marked: u8,
    snapshots: BTreeMap<(usize, u32), Content>,
    /// Names in the VM's directory with the targets of links; directories end with a slash.
    pub own: BTreeMap<String, String>,
    /// Names of everything else in the datastores.
    pub images: BTreeMap<String, String>,
    saved: u32,
    operation: String,
    lines: Vec<Line>,
}

impl<'a> Vm<'a> {
    /// A cloud with the images of the VM, whose transfer manager is called `mad`; its hosts have system datastores of their
    /// own if `mixed`.
    pub fn new(lab: &'a Lab, mad: &'static str, mixed: bool) -> Self {
        let suffix = if mixed { ".ssh" } else { "" };
        let system = if mixed { 101 } else { 103 };
        let (root, oned, var) = (lab.shared(), lab.path("oned"), lab.path("one/var"));
        for folder in [IMAGES, FILES, system].map(|id| root.join(id.to_string())) {
            fs::create_dir_all(folder).expect("makes");
        }
        for folder in ["remotes/onestore", "remotes/tm", "remotes/datastore/fs", "vms/7"] {
            fs::create_dir_all(var.join(folder)).expect("makes");
        }
        symlink(&root, var.join("datastores")).expect("links");
        for folder in ["vm", "datastore"] {
            fs::create_dir_all(oned.join(folder)).expect("makes");
        }
        let launch = Path::new(env!("CARGO_MANIFEST_DIR")).join("remotes/onestore/launch");
        fs::copy(launch, var.join("remotes/onestore/launch")).expect("copies");
        symlink(env!("CARGO_BIN_EXE_onestore"), var.join("remotes/onestore/onestore")).expect("links");
        for id in [IMAGES, FILES, system] {
            let own = if id == system && mixed { "ssh" } else { mad };
            let xml = format!(
                "<DATASTORE><ID>{id}</ID><NAME>ds{id}</NAME><DS_MAD>fs</DS_MAD><TM_MAD>{own}</TM_MAD>\
                 <BASE_PATH>{}//{id}</BASE_PATH><TYPE>{}</TYPE><TEMPLATE><TM_MAD>{own}</TM_MAD></TEMPLATE></DATASTORE>",
                root.display(),
                u32::from(id == system)
            );
            fs::write(oned.join(format!("datastore/{id}.xml")), xml).expect("writes");
        }
        fs::write(oned.join("datastorepool.xml"), "<DATASTORE_POOL></DATASTORE_POOL>").expect("writes");
        if mixed {
            for host in ["host1", "host2"] {
                let folder = root.join(system.to_string()).display().to_string();
                lab.must(host, &["mount", "-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", &folder]);
            }
        }
        let mut vm = Self {
            lab,
            mad,
            suffix,
            system,
            host: "host1".to_owned(),
            state: State::Nowhere,
            lcm: 1,
            history: vec!["host1".to_owned()],
            sizes: BTreeMap::from([(0, writer::SIZE >> 20), (6, 1)]),
            last: 0,
            marks: BTreeMap::from([(6, CDROM_MARK)]),
            marked: 0x10,
            snapshots: BTreeMap::new(),
            own: BTreeMap::new(),
            images: BTreeMap::new(),
            saved: 0,
            operation: String::new(),
            lines: Vec::new(),
        };
        vm.make_images();
        vm
    }

    fn make_images(&mut self) {
        for (number, disk) in DISKS.iter().enumerate() {
            let image = self.image(number);
            match disk.origin {
                Origin::Volatile | Origin::Swap => continue,
                Origin::Cdrom => fs::write(&image, vec![CDROM_MARK; 1 << 20]).expect("writes"),
                _ if number == 0 => writer::plant(&image, disk.format),
                _ => {
                    let image = image.display().to_string();
                    self.lab.must(FRONT.0, &["qemu-img", "create", "-q", "-f", disk.format, &image, "16M"]);
                    let mark = self.new_mark();
                    let write = format!("write -P {mark} 1M 64k");
                    self.lab.must(FRONT.0, &["qemu-io", "-f", disk.format, "-c", &write, &image]);
                    self.marks.insert(number, mark);
                }
            }
            self.images.insert(self.below_root(&image), String::new());
        }
        let init = self.lab.shared().join("2/4de2886bbfa25a8a643d50741cb95538");
        fs::write(&init, "#!/bin/sh\n").expect("writes");
        fs::write(self.lab.path("one/var/vms/7/context.sh"), "HELLO='world'\n").expect("writes");
        fs::write(self.lab.path("one/var/vms/7/token.txt"), "secret").expect("writes");
        for folder in [format!("{IMAGES}/"), format!("{FILES}/"), format!("{}/", self.system)] {
            self.images.insert(folder, String::new());
        }
        self.images.insert(self.below_root(&init), String::new());
    }

    fn below_root(&self, path: &Path) -> String {
        path.strip_prefix(self.lab.shared()).expect("a datastore's").display().to_string()
    }

    fn new_mark(&mut self) -> u8 {
        self.marked += 1;
        self.marked
    }

    /// The image of a disk, or one that was saved ([`Vm::new_image`]).
    pub fn image(&self, number: usize) -> PathBuf {
        self.lab.shared().join(format!("{IMAGES}/{:032x}", 0xf370_47b9 + number))
    }

    fn dir(&self) -> PathBuf {
        self.lab.shared().join(format!("{}/{ID}", self.system))
    }

    /// A disk's path, the same on all machines.
    pub fn disk(&self, number: usize) -> PathBuf {
        self.dir().join(format!("disk.{number}"))
    }

    /// Where the snapshots of a disk are.
    pub fn folder(&self, number: usize) -> PathBuf {
        let persistent = DISKS[number].origin == Origin::Persistent && self.suffix.is_empty();
        let base = if persistent { self.image(number) } else { self.disk(number) };
        PathBuf::from(format!("{}.snap", base.display()))
    }

    fn file_of(&self, number: usize, k: u32) -> PathBuf {
        let folder = self.folder(number);
        let current = folder.join(format!("{k}.current"));
        match self.lab.on(&self.host, &["cat", &current.display().to_string()]) {
            done if done.status.success() => {
                let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
                folder.join(Path::new(&text).file_name().expect("a name"))
            }
            _ => folder.join(k.to_string()),
        }
    }

    /// As oned writes paths: `HOST:<V>//datastores/…`.
    fn place(&self, host: &str, path: &Path) -> String {
        format!("{host}:{}", self.word(path))
    }

    fn word(&self, path: &Path) -> String {
        format!("{}//shared/{}", self.lab.path("").display().to_string().trim_end_matches('/'), self.below_root(path))
    }

    // What oned tells of the VM.

    fn xml(&self) -> String {
        let mut xml = format!(
            "<VM><ID>{ID}</ID><STATE>3</STATE><LCM_STATE>{}</LCM_STATE><DEPLOY_ID>one-{ID}</DEPLOY_ID><TEMPLATE>",
            self.lcm
        );
        for (number, disk) in DISKS.iter().enumerate() {
            let yes = |is: bool| if is { "YES" } else { "NO" };
            let kind = match disk.origin {
                Origin::Swap => "swap",
                Origin::Volatile => "fs",
                Origin::Cdrom => "CDROM",
                _ => "FILE",
            };
            let size = self.size(number);
            write!(
                xml,
                "<DISK><DISK_ID>{number}</DISK_ID><FORMAT>{0}</FORMAT><DRIVER>{0}</DRIVER><TARGET>{1}</TARGET>\
                 <TYPE>{kind}</TYPE><SIZE>{size}</SIZE>",
                disk.format, disk.target
            )
            .expect("writes");
            if matches!(disk.origin, Origin::Volatile | Origin::Swap) {
                let mad = if self.suffix.is_empty() { self.mad } else { "ssh" };
                write!(xml, "<TM_MAD>{mad}</TM_MAD><DATASTORE_ID>{}</DATASTORE_ID></DISK>", self.system)
                    .expect("writes");
                continue;
            }
            let suffix = self.suffix.strip_prefix('.').map(|mad| format!("<TM_MAD_SYSTEM>{mad}</TM_MAD_SYSTEM>"));
            write!(
                xml,
                "<CLONE>{}</CLONE><SAVE>{}</SAVE><SOURCE>{}</SOURCE><ORIGINAL_SIZE>{}</ORIGINAL_SIZE>\
                 <DATASTORE_ID>{IMAGES}</DATASTORE_ID><IMAGE_ID>{number}</IMAGE_ID><TM_MAD>{}</TM_MAD>{}</DISK>",
                yes(disk.origin == Origin::Clone),
                yes(disk.origin == Origin::Persistent),
                self.word(&self.image(number)),
                if number == 0 { writer::SIZE >> 20 } else { size },
                self.mad,
                suffix.unwrap_or_default()
            )
            .expect("writes");
        }
        write!(xml, "</TEMPLATE><HISTORY_RECORDS>").expect("writes");
        for (number, host) in self.history.iter().enumerate() {
            write!(
                xml,
                "<HISTORY><OID>{ID}</OID><SEQ>{number}</SEQ><HOSTNAME>{host}</HOSTNAME><VM_MAD>kvm</VM_MAD>\
                 <TM_MAD>{}</TM_MAD><DS_ID>{}</DS_ID></HISTORY>",
                self.mad, self.system
            )
            .expect("writes");
        }
        xml + "</HISTORY_RECORDS></VM>"
    }

    fn size(&self, number: usize) -> u64 {
        self.sizes.get(&number).copied().unwrap_or(SIZE)
    }

    // Calls.

    /// The operation of the user that the following calls belong to, and the `LCM_STATE` of the VM meanwhile.
    pub fn begin(&mut self, operation: &str, lcm: u32) {
        self.operation = operation.to_owned();
        self.lcm = lcm;
    }

    /// One call as oned's drivers make it. Its words are a status line in the log, never an error or a warning.
    fn call(&mut self, entry: &str, args: &[String], stdin: Option<String>) -> String {
        fs::write(self.lab.path("oned/vm/7.xml"), self.xml()).expect("writes");
        let remotes = self.lab.path("one/var/remotes");
        let link = remotes.join(entry);
        if !link.exists() {
            fs::create_dir_all(link.parent().expect("a folder")).expect("makes");
            symlink("../../onestore/launch", &link).expect("links");
        }
        let mut command = Command::new(&link);
        command.args(args).env("ONE_LOCATION", self.lab.path("one")).env("LANG", "C").env_remove("ONESTORE_LOG");
        command.env("ONESTORE_ONED", format!("dir:{}", self.lab.path("oned").display()));
        command.env("ONESTORE_LOCK_DIR", self.lab.path("lock"));
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let begun = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), stdin) {
            // `mvds` and others read nothing.
            let _ = pipe.write_all(text.as_bytes());
        }
        let done = child.wait_with_output().expect("ends");
        let seconds = begun.elapsed().as_secs_f64();
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        let shown = format!("{entry} {}", args.join(" "));
        print!("{shown}: {seconds:.2} s\n{told}");
        assert!(done.status.success(), "{shown}: {told}");
        assert!(told.lines().all(|line| line.starts_with("INFO: ") || line.starts_with("DEBUG: ")), "{shown}: {told}");
        let at = format!("{}//shared/", self.lab.path("").display().to_string().trim_end_matches('/'));
        let vms = self.lab.path("one/var/vms").display().to_string();
        let call = shown.replace(&at, "$D/").replace(&vms, "$V/vms");
        self.line(call, "front", seconds);
        String::from_utf8(done.stdout).expect("text")
    }

    fn line(&mut self, call: String, host: &str, seconds: f64) {
        let operation = self.operation.clone();
        self.lines.push(Line { operation, call, host: host.to_owned(), seconds, checked: String::new() });
    }

    /// `tm/<mad>/<action>`: an action for a disk from an image, with the suffix of mixed mode.
    fn tm(&mut self, action: &str, args: &[String], datastore: u32) {
        let entry = format!("tm/{}/{action}", self.mad);
        let args: Vec<String> = args.iter().cloned().chain([ID.to_string(), datastore.to_string()]).collect();
        self.call(&entry, &args, None);
    }

    /// Everything that oned does to run the VM for the first time.
    pub fn instantiate(&mut self) {
        self.begin("instantiate", 1);
        let host = self.host.clone();
        self.own.insert(String::new(), String::new());
        for (number, disk) in DISKS.iter().enumerate() {
            let to = self.place(&host, &self.disk(number));
            let from = self.place(FRONT.0, &self.image(number));
            let (name, image) = (format!("disk.{number}"), self.image(number).display().to_string());
            let mixed = !self.suffix.is_empty();
            match disk.origin {
                Origin::Clone => self.tm(&format!("clone{}", self.suffix), &[from, to], IMAGES),
                Origin::Persistent | Origin::Cdrom => self.tm(&format!("ln{}", self.suffix), &[from, to], IMAGES),
                Origin::Volatile => {
                    self.tm("mkimage", &[SIZE.to_string(), disk.format.to_owned(), to], self.system);
                }
                Origin::Swap => self.tm("mkswap", &[SIZE.to_string(), to], self.system),
            }
            let in_folder = matches!((disk.origin, disk.format), (Origin::Clone, "qcow2"))
                || (mixed && matches!((disk.origin, disk.format), (Origin::Persistent, "qcow2")));
            let linked = !mixed && matches!(disk.origin, Origin::Persistent | Origin::Cdrom);
            let target = match (in_folder, linked, disk.format) {
                (true, ..) => {
                    self.own.insert(format!("{name}.snap/"), String::new());
                    self.own.insert(format!("{name}.snap/{name}.snap"), ".".to_owned());
                    self.own.insert(format!("{name}.snap/0"), String::new());
                    format!("{name}.snap/0")
                }
                (_, true, "qcow2") => {
                    let below = self.below_root(&self.folder(number));
                    let plain = below.rsplit('/').next().expect("a name").to_owned();
                    self.images.insert(format!("{below}/"), String::new());
                    self.images.insert(format!("{below}/{plain}"), ".".to_owned());
                    self.images.insert(format!("{below}/0"), image.clone());
                    format!("{image}.snap/0")
                }
                (_, true, _) => image,
                _ => String::new(),
            };
            self.own.insert(name, target);
            self.check_names();
        }
        let swap = self.disk(5).display().to_string();
        let label =
            self.lab.must(&host, &["dd", &format!("if={swap}"), "bs=1", "skip=4086", "count=10", "status=none"]);
        assert_eq!(label, "SWAPSPACE2");
        self.deploy();
    }

    /// The context, and the hypervisor's own deployment.
    pub fn deploy(&mut self) {
        let host = self.host.clone();
        self.context();
        self.write_deployment();
        let file = self.dir().join("deployment.0").display().to_string();
        self.hypervisor(&["create", &file]);
        self.state = State::Running;
        if self.marks.get(&4).is_none() {
            for number in [4, 5] {
                self.mark(number);
            }
        }
        assert_eq!(self.lab.domain(&host, ID).state(), "running");
        self.check();
    }

    fn context(&mut self) {
        let vms = self.lab.path("one/var/vms/7");
        let args = [
            vms.join("context.sh").display().to_string(),
            format!("{}:'initsh'", self.word(&self.lab.shared().join("2/4de2886bbfa25a8a643d50741cb95538"))),
            vms.join("token.txt").display().to_string(),
            self.place(&self.host, &self.disk(CONTEXT)),
        ];
        self.tm("context", &args, self.system);
        self.own.insert(format!("disk.{CONTEXT}"), String::new());
        self.images.insert(".isofiles/".to_owned(), String::new());
        // What xorriso says of it: names, and that the token is nobody's but root's.
        let disk = self.disk(CONTEXT).display().to_string();
        let list = self.lab.must(&self.host, &["xorriso", "-indev", &disk, "-lsl", "/"]);
        for name in ["context.sh", "initsh", "token.txt"] {
            assert!(list.contains(&format!("'{name}'")), "{list}");
        }
        assert!(list.lines().any(|line| line.contains("token.txt") && line[..10].ends_with("---")), "{list}");
        self.check_names();
    }

    /// What the hypervisor's driver writes before it starts a domain.
    fn write_deployment(&mut self) {
        let mut devices = String::new();
        for number in 0..=CONTEXT {
            let (format, target, cdrom) = match DISKS.get(number) {
                Some(disk) => (disk.format, disk.target, disk.origin == Origin::Cdrom),
                None => ("raw", "hdc", true),
            };
            let (device, end) = if cdrom { ("cdrom", "<readonly/>") } else { ("disk", "") };
            let bus = if target.starts_with("hd") { "ide" } else { "virtio" };
            write!(
                devices,
                "<disk type='file' device='{device}'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='{target}' bus='{bus}'/>{end}</disk>",
                self.disk(number).display()
            )
            .expect("writes");
        }
        let xml = format!(
            "<domain type='qemu'><name>one-{ID}</name><uuid>3b26750e-7dea-4a9d-bd47-72413{ID:07x}</uuid>\
             <memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        );
        for (name, text) in [("deployment.0", xml), ("vm.xml", self.xml()), ("ds.xml", "<DATASTORE/>".to_owned())] {
            let here = self.lab.path(name);
            fs::write(&here, text).expect("writes");
            let there = self.dir().join(name).display().to_string();
            self.lab.must(&self.host, &["cp", &here.display().to_string(), &there]);
            self.own.insert(name.to_owned(), String::new());
        }
    }

    /// `virsh` as the hypervisor's driver calls it.
    fn hypervisor(&mut self, words: &[&str]) {
        let begun = Instant::now();
        let host = self.host.clone();
        self.lab.must(&host, &[&["virsh", "-q"], words].concat());
        let at = format!("{}/", self.lab.shared().display());
        self.line(format!("virsh {}", words.join(" ").replace(&at, "$D/")), &host, begun.elapsed().as_secs_f64());
    }

    /// Writes a new mark to a disk as the guest would.
    pub fn mark(&mut self, number: usize) {
        let mark = self.new_mark();
        let target = DISKS[number].target;
        let device = u32::from(target.as_bytes()[2] - b'a');
        let command =
            format!("qemu-io -d /machine/peripheral/virtio-disk{device}/virtio-backend \"write -P {mark} 1M 64k\"");
        // What it says goes to QEMU's own log; the next look tells.
        self.lab.must(&self.host, &["virsh", "qemu-monitor-command", "--hmp", &format!("one-{ID}"), &command]);
        self.marks.insert(number, mark);
    }

    /// Pulls the plug: what is on the disks stays as it is from now on.
    pub fn power_off(&mut self) {
        self.begin("power off", 18);
        self.hypervisor(&["destroy", &format!("one-{ID}")]);
        self.stands_still();
    }

    fn stands_still(&mut self) {
        self.state = State::Still;
        let now = self.lab.highest(&self.host, &self.disk(0));
        assert!(now >= self.last, "{now} < {}", self.last);
        self.last = now;
        self.check();
    }

    /// `snap_create[_live]`, and what the snapshot holds.
    pub fn snapshot(&mut self, number: usize, k: u32) {
        let live = self.state == State::Running;
        self.begin(
            if live { "disk-snapshot-create, live" } else { "disk-snapshot-create" },
            if live { 57 } else { 51 },
        );
        let action = if live { "snap_create_live" } else { "snap_create" };
        let to = self.place(&self.host, &self.disk(number));
        self.tm(&format!("{action}{}", self.suffix), &[to, k.to_string()], IMAGES);
        let file = self.file_of(number, k);
        let content = match number {
            0 => Content::Number(self.lab.highest(&self.host, &file)),
            _ => Content::Mark(self.marks[&number]),
        };
        if let Content::Number(moment) = content {
            assert!(moment >= self.last, "{moment} < {}", self.last);
        }
        self.snapshots.insert((number, k), content);
        let made = if DISKS[number].format == "raw" { k } else { k + 1 };
        self.expect_layer(number, made, DISKS[number].format != "raw");
        self.check();
    }

    /// From now on there is a layer of this number, which is the current one if `current`.
    fn expect_layer(&mut self, number: usize, layer: u32, current: bool) {
        let folder = self.folder(number);
        let persistent = folder.starts_with(self.lab.shared().join(IMAGES.to_string()));
        let name = format!("disk.{number}");
        let link = if persistent {
            let below = self.below_root(&folder);
            self.images.insert(format!("{below}/"), String::new());
            self.images.insert(format!("{below}/{layer}"), String::new());
            folder.join(layer.to_string()).display().to_string()
        } else {
            self.own.insert(format!("{name}.snap/"), String::new());
            self.own.insert(format!("{name}.snap/{layer}"), String::new());
            format!("{name}.snap/{layer}")
        };
        if current {
            self.own.insert(name, link);
        }
    }

    /// `snap_delete`; `gone` are the files that are no more, `new` those that are new.
    pub fn delete_snapshot(&mut self, number: usize, k: u32, gone: &[&str], new: &[&str]) {
        let live = self.state == State::Running;
        self.begin(
            if live { "disk-snapshot-delete, live" } else { "disk-snapshot-delete" },
            if live { 59 } else { 53 },
        );
        self.snapshots.remove(&(number, k));
        let to = self.place(&self.host, &self.disk(number));
        self.tm(&format!("snap_delete{}", self.suffix), &[to, k.to_string()], IMAGES);
        let folder = self.folder(number);
        let persistent = folder.starts_with(self.lab.shared().join(IMAGES.to_string()));
        let below = if persistent { self.below_root(&folder) } else { format!("disk.{number}.snap") };
        let names = if persistent { &mut self.images } else { &mut self.own };
        for name in gone {
            names.remove(&format!("{below}/{name}")).unwrap_or_else(|| panic!("{name} was not expected"));
        }
        for name in new {
            names.insert(format!("{below}/{name}"), String::new());
        }
        self.check();
    }

    /// `snap_revert`: the disk is as it was.
    pub fn revert(&mut self, number: usize, k: u32) {
        self.begin("disk-snapshot-revert", 52);
        let to = self.place(&self.host, &self.disk(number));
        self.tm(&format!("snap_revert{}", self.suffix), &[to, k.to_string()], IMAGES);
        match self.snapshots[&(number, k)] {
            Content::Number(moment) => self.last = moment,
            Content::Mark(mark) => drop(self.marks.insert(number, mark)),
        }
        self.check();
    }

    /// `disk-saveas`: the image gets its name, and then its content. Gives the image.
    pub fn save_as(&mut self, number: usize, snapshot: i64) -> PathBuf {
        let live = self.state == State::Running;
        self.begin(if live { "disk-saveas, live" } else { "disk-saveas" }, if live { 26 } else { 27 });
        let base = self.word(&self.lab.shared().join(IMAGES.to_string()));
        let payload = format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><ID>{0}</ID><FORMAT>save_as</FORMAT><SIZE>{1}</SIZE></IMAGE><DATASTORE>\
             <ID>{IMAGES}</ID><BASE_PATH>{base}</BASE_PATH><TEMPLATE/></DATASTORE></DS_DRIVER_ACTION_DATA>",
            29 + self.saved,
            self.size(number)
        );
        self.saved += 1;
        let id = (28 + self.saved).to_string();
        let image = PathBuf::from(self.call("datastore/fs/mkfs", &[id], Some(BASE64.encode(payload))).trim());
        let (from, to) = (self.place(&self.host, &self.disk(number)), image.display().to_string());
        let to = self.word(Path::new(&to.replace("//", "/")));
        self.tm(&format!("cpds{}", self.suffix), &[from, to, snapshot.to_string()], IMAGES);
        let image = PathBuf::from(image.display().to_string().replace("//", "/"));
        self.images.insert(self.below_root(&image), String::new());
        let content = u32::try_from(snapshot).ok().map(|k| self.snapshots[&(number, k)]);
        let content = content.or_else(|| self.marks.get(&number).map(|mark| Content::Mark(*mark)));
        match content {
            Some(Content::Mark(mark)) => self.check_marks(&[(image.clone(), DISKS[number].format, mark)]),
            Some(Content::Number(moment)) => assert_eq!(self.lab.highest(&self.host, &image), moment),
            None => {
                let saved = self.lab.highest(&self.host, &image);
                assert!(if live { saved >= self.last } else { saved == self.last }, "{saved} {}", self.last);
            }
        }
        let info = self.lab.must(&self.host, &["qemu-img", "info", "-U", &image.display().to_string()]);
        assert!(!info.contains("backing file"), "{info}");
        self.check();
        image
    }

    /// `disk-resize`: by QEMU where the VM runs, else by us.
    pub fn resize(&mut self, number: usize, mib: u64) {
        let live = self.state == State::Running;
        self.begin(if live { "disk-resize, live" } else { "disk-resize" }, if live { 62 } else { 63 });
        let to = self.place(&self.host, &self.disk(number));
        self.tm(&format!("resize{}", if live { "" } else { self.suffix }), &[to, mib.to_string()], IMAGES);
        if live {
            self.hypervisor(&["blockresize", &format!("one-{ID}"), DISKS[number].target, &format!("{mib}M")]);
        }
        self.sizes.insert(number, mib);
        let info = ["qemu-img", "info", "-U", "--output=json", &self.disk(number).display().to_string()].join(" ");
        let info = self.lab.must(&self.host, &info.split(' ').collect::<Vec<_>>());
        let info: serde_json::Value = serde_json::from_str(&info).expect("json");
        assert_eq!(info["virtual-size"], mib << 20);
        self.check();
    }

    /// `virsh save`, the files to another host, and on.
    pub fn migrate_saved(&mut self, to: &str) {
        self.begin("migrate, saved", 7);
        let checkpoint = self.dir().join("checkpoint").display().to_string();
        self.hypervisor(&["save", &format!("one-{ID}"), &checkpoint]);
        self.own.insert("checkpoint".to_owned(), String::new());
        self.stands_still();
        self.lcm = 8;
        self.move_to(to);
        self.history.push(to.to_owned());
        self.lcm = 9;
        self.context();
        self.hypervisor(&["restore", &checkpoint]);
        let _ = self.lab.must(to, &["rm", &checkpoint]);
        self.own.remove("checkpoint");
        self.state = State::Running;
        self.check();
    }

    /// `virsh migrate --live`, between `premigrate` and `postmigrate`.
    pub fn migrate_live(&mut self, to: &str) {
        self.begin("migrate, live", 4);
        let from = self.host.clone();
        let args = |vm: &Self| {
            let words = [from.clone(), to.to_owned(), vm.word(&vm.dir()), ID.to_string(), vm.system.to_string()];
            (words, Some(BASE64.encode(vm.xml())))
        };
        let (words, stdin) = args(self);
        self.call(&format!("tm/{}/premigrate", self.mad), &words, stdin);
        self.check();
        let (uri, migrate) = (format!("qemu+ssh://{to}/system"), format!("tcp://{to}"));
        self.hypervisor(&["migrate", "--live", "--unsafe", &format!("one-{ID}"), &uri, "--migrateuri", &migrate]);
        to.clone_into(&mut self.host);
        self.history.push(to.to_owned());
        self.check();
        let (words, stdin) = args(self);
        self.call(&format!("tm/{}/postmigrate", self.mad), &words, stdin);
        self.check();
    }

    /// `mv` for each disk, then for the directory.
    fn move_to(&mut self, to: &str) {
        let from = self.host.clone();
        let action = format!("mv{}", self.suffix);
        for number in (0..DISKS.len()).filter(|number| DISKS[*number].origin != Origin::Cdrom) {
            let words = [self.place(&from, &self.disk(number)), self.place(to, &self.disk(number))];
            let datastore =
                if matches!(DISKS[number].origin, Origin::Volatile | Origin::Swap) { self.system } else { IMAGES };
            self.tm(&action, &words, datastore);
            self.check_names();
        }
        let words = [self.place(&from, &self.dir()), self.place(to, &self.dir())];
        self.tm(&action, &words, self.system);
        to.clone_into(&mut self.host);
        self.check();
    }

    /// The VM leaves its host; its files go to the front-end.
    pub fn undeploy(&mut self) {
        self.begin("undeploy", 30);
        self.hypervisor(&["destroy", &format!("one-{ID}")]);
        self.stands_still();
        self.move_to(FRONT.0);
    }

    /// And back.
    pub fn resume_on(&mut self, host: &str) {
        self.begin("resume from undeploy", 31);
        self.history.push(host.to_owned());
        self.move_to(host);
        self.deploy();
    }

    /// Ends it: persistent disks go back where they came from, everything else goes.
    pub fn terminate(&mut self) {
        self.begin("terminate", 11);
        self.hypervisor(&["destroy", &format!("one-{ID}")]);
        self.stands_still();
        for (number, disk) in DISKS.iter().enumerate() {
            let from = self.place(&self.host, &self.disk(number));
            match disk.origin {
                Origin::Persistent => {
                    let to = self.word(&self.image(number));
                    self.tm(&format!("mvds{}", self.suffix), &[from, to], IMAGES);
                }
                Origin::Volatile | Origin::Swap => self.tm("delete", &[from], self.system),
                _ => self.tm("delete", &[from], IMAGES),
            }
        }
        let dir = self.place(&self.host, &self.dir());
        self.tm("delete", &[dir], self.system);
        self.state = State::Nowhere;
        self.own.clear();
        if !self.suffix.is_empty() {
            // Brought back with its layers, the image is a link to the newest.
            let (image, folder) = (self.below_root(&self.image(1)), format!("{:032x}.snap", 0xf370_47b9_u32 + 1));
            for (name, link) in [("/", ""), ("/0", ""), ("/1", ""), (&format!("/{folder}"), ".")] {
                self.images.insert(format!("{image}.snap{name}"), link.to_owned());
            }
            self.images.insert(image, format!("{folder}/1"));
        }
        let kept: Vec<_> =
            [1, 3].map(|number| (self.image_now(number), DISKS[number].format, self.marks[&number])).into();
        self.check_marks(&kept);
        self.check_names();
        self.told("persistent images");
    }

    /// The file that a new VM with the image of this disk would get.
    fn image_now(&self, number: usize) -> PathBuf {
        let image = self.image(number);
        let folder = PathBuf::from(format!("{}.snap", image.display()));
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        let newest = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
        newest.map_or(image, |newest| folder.join(newest.to_string()))
    }

    // Looking.

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
            let mut now = look(self);
            assert!(domain.virsh("resume", &[]).status.success());
            assert!(now >= self.last, "{now} < {}", self.last);
            // It lives: it writes something new.
            let lives = within(120, || {
                if now <= self.last {
                    now = domain.highest();
                }
                now > self.last
            });
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

    fn told(&mut self, text: &str) {
        if let Some(line) = self.lines.last_mut() {
            line.checked = format!("{text}, names");
        }
    }

    /// Files with their formats, and the mark that each must have.
    fn check_marks(&self, files: &[(PathBuf, &'static str, u8)]) {
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

    /// Every name in the datastores, on all machines.
    fn check_names(&mut self) {
        self.told("");
        let mut expected = self.images.clone();
        for (name, link) in &self.own {
            expected.insert(format!("{}/{ID}/{name}", self.system), link.clone());
        }
        let alone = self.suffix.is_empty();
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
Marks: what was written to the other disks, the CD-ROM included. Names: every name and link in all datastores of all\n\
machines is an expected one.\n";
