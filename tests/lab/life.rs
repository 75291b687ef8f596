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
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::hypervisors::{FRONT, Lab};
use crate::remotes::Remotes;
use crate::writer;

#[path = "life_look.rs"]
mod look;
#[path = "life_operations.rs"]
mod operations;

pub use look::publish;

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

/// Where the VM's disks are, and the transfer manager that brings them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// `qcow2` on storage that all machines share.
    Shared,
    /// `shared` images, disks on the hosts' own storage: mixed mode.
    Mixed,
    /// `local`: layers on the hosts' own storage.
    Local,
    /// `ssh`: full copies on the hosts' own storage.
    Ssh,
}

impl Storage {
    /// Transfer manager of the images.
    fn mad(self) -> &'static str {
        match self {
            Self::Shared => "qcow2",
            Self::Mixed => "shared",
            Self::Local => "local",
            Self::Ssh => "ssh",
        }
    }

    /// Transfer manager of the system datastore.
    fn of_system(self) -> &'static str {
        if self == Self::Mixed { "ssh" } else { self.mad() }
    }

    /// What actions on disks from images are called by.
    fn suffix(self) -> &'static str {
        if self == Self::Mixed { ".ssh" } else { "" }
    }

    /// Whether snapshots of a qcow2 disk are layers.
    fn has_layers(self) -> bool {
        self != Self::Ssh
    }
}

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
    remotes: Remotes<'a>,
    storage: Storage,
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
    /// A cloud with the images of the VM.
    pub fn new(lab: &'a Lab, storage: Storage) -> Self {
        let system = if storage == Storage::Shared { 103 } else { 101 };
        let root = lab.shared();
        for folder in [IMAGES, FILES, system].map(|id| root.join(id.to_string())) {
            fs::create_dir_all(folder).expect("makes");
        }
        let remotes = Remotes::new(lab);
        for id in [IMAGES, FILES, system] {
            let mad = if id == system { storage.of_system() } else { storage.mad() };
            let xml = format!(
                "<DATASTORE><ID>{id}</ID><NAME>ds{id}</NAME><DS_MAD>fs</DS_MAD><TM_MAD>{mad}</TM_MAD>\
                 <BASE_PATH>{}//{id}</BASE_PATH><TYPE>{}</TYPE><TEMPLATE><TM_MAD>{mad}</TM_MAD></TEMPLATE></DATASTORE>",
                root.display(),
                u32::from(id == system)
            );
            remotes.tell(&format!("datastore/{id}"), &xml);
        }
        if storage != Storage::Shared {
            for host in ["host1", "host2"] {
                let folder = root.join(system.to_string()).display().to_string();
                lab.must(host, &["mount", "-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", &folder]);
            }
        }
        let mut vm = Self {
            lab,
            remotes,
            storage,
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
        let persistent = DISKS[number].origin == Origin::Persistent && self.storage == Storage::Shared;
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
                let mad = self.storage.of_system();
                write!(xml, "<TM_MAD>{mad}</TM_MAD><DATASTORE_ID>{}</DATASTORE_ID></DISK>", self.system)
                    .expect("writes");
                continue;
            }
            let suffix =
                self.storage.suffix().strip_prefix('.').map(|mad| format!("<TM_MAD_SYSTEM>{mad}</TM_MAD_SYSTEM>"));
            write!(
                xml,
                "<CLONE>{}</CLONE><SAVE>{}</SAVE><SOURCE>{}</SOURCE><ORIGINAL_SIZE>{}</ORIGINAL_SIZE>\
                 <DATASTORE_ID>{IMAGES}</DATASTORE_ID><IMAGE_ID>{number}</IMAGE_ID><TM_MAD>{}</TM_MAD>{}</DISK>",
                yes(disk.origin == Origin::Clone),
                yes(disk.origin == Origin::Persistent),
                self.word(&self.image(number)),
                if number == 0 { writer::SIZE >> 20 } else { size },
                self.storage.mad(),
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
                self.storage.of_system(),
                self.system
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
        operation.clone_into(&mut self.operation);
        self.lcm = lcm;
    }

    /// One call as oned's drivers make it. Its words are a status line in the log, never an error or a warning.
    fn call(&mut self, entry: &str, args: &[String], stdin: Option<String>) -> String {
        self.remotes.tell("vm/7", &self.xml());
        let mut command = self.remotes.call(entry, args);
        if stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let begun = Instant::now();
        let mut child = command.spawn().expect("starts");
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

    /// `tm/<mad>/<action>`: for a disk from an image the transfer manager of that, with the suffix of mixed mode; for the
    /// VM's directory and disks of no image that of the system datastore.
    fn tm(&mut self, action: &str, args: &[String], datastore: u32) {
        let suffix = self.storage.suffix();
        let entry = if datastore == self.system {
            format!("tm/{}/{}", self.storage.of_system(), action.strip_suffix(suffix).unwrap_or(action))
        } else {
            format!("tm/{}/{action}", self.storage.mad())
        };
        let args: Vec<String> = args.iter().cloned().chain([ID.to_string(), datastore.to_string()]).collect();
        self.call(&entry, &args, None);
    }
}
