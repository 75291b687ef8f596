//! What users and operators do with the VM, each as the calls that oned makes for it, in its order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{CONTEXT, Content, DISKS, FRONT, ID, IMAGES, Origin, SIZE, State, Storage, Vm};

impl Vm<'_> {
    /// Everything that oned does to run the VM for the first time.
    pub fn instantiate(&mut self) {
        self.begin("instantiate", 1);
        let host = self.host.clone();
        self.own.insert(String::new(), String::new());
        for (number, disk) in DISKS.iter().enumerate() {
            let to = self.place(&host, &self.disk(number));
            let from = self.place(FRONT.0, &self.image(number));
            let (name, image) = (format!("disk.{number}"), self.image(number).display().to_string());
            let shared = self.storage == Storage::Shared;
            match disk.origin {
                Origin::Clone => self.tm(&format!("clone{}", self.storage.suffix()), &[from, to], IMAGES),
                Origin::Persistent | Origin::Cdrom => {
                    self.tm(&format!("ln{}", self.storage.suffix()), &[from, to], IMAGES)
                }
                Origin::Volatile => {
                    self.tm("mkimage", &[SIZE.to_string(), disk.format.to_owned(), to], self.system);
                }
                Origin::Swap => self.tm("mkswap", &[SIZE.to_string(), to], self.system),
            }
            let in_folder = self.storage.has_layers()
                && (matches!((disk.origin, disk.format), (Origin::Clone, "qcow2"))
                    || (!shared && matches!((disk.origin, disk.format), (Origin::Persistent, "qcow2"))));
            let linked = shared && matches!(disk.origin, Origin::Persistent | Origin::Cdrom);
            let target = match (in_folder, linked, disk.format) {
                (true, ..) => {
                    self.own.insert(format!("{name}.snap/"), String::new());
                    if self.storage != Storage::Local {
                        self.own.insert(format!("{name}.snap/{name}.snap"), ".".to_owned());
                    }
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
            if !matches!(disk.origin, Origin::Volatile | Origin::Swap) {
                self.same_content((FRONT.0, &self.image(number)), (&host, &self.disk(number)), disk.format);
            }
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
        if !self.marks.contains_key(&4) {
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
        self.tm(&format!("{action}{}", self.storage.suffix()), &[to, k.to_string()], IMAGES);
        let file = self.file_of(number, k);
        let content = match number {
            0 => Content::Number(self.lab.highest(&self.host, &file)),
            _ => Content::Mark(self.marks[&number]),
        };
        if let Content::Number(moment) = content {
            assert!(moment >= self.last, "{moment} < {}", self.last);
        }
        self.snapshots.insert((number, k), content);
        let layer = self.storage.has_layers() && DISKS[number].format != "raw";
        self.expect_layer(number, if layer { k + 1 } else { k }, layer);
        self.check();
        if !live {
            let (host, disk) = (self.host.clone(), self.disk(number));
            self.same_content((&host, &file), (&host, &disk), DISKS[number].format);
        }
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
            if !persistent {
                // Layers name each other by it.
                self.own.insert(format!("{name}.snap/{name}.snap"), ".".to_owned());
            }
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
        self.tm(&format!("snap_delete{}", self.storage.suffix()), &[to, k.to_string()], IMAGES);
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
        self.tm(&format!("snap_revert{}", self.storage.suffix()), &[to, k.to_string()], IMAGES);
        match self.snapshots[&(number, k)] {
            Content::Number(moment) => self.last = moment,
            Content::Mark(mark) => drop(self.marks.insert(number, mark)),
        }
        self.check();
        let (host, snapshot, disk) = (self.host.clone(), self.file_of(number, k), self.disk(number));
        self.same_content((&host, &snapshot), (&host, &disk), DISKS[number].format);
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
        self.tm(&format!("cpds{}", self.storage.suffix()), &[from, to, snapshot.to_string()], IMAGES);
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
        let saved = u32::try_from(snapshot).map_or_else(|_| self.disk(number), |k| self.file_of(number, k));
        if !live || snapshot >= 0 {
            let host = self.host.clone();
            self.same_content((&host, &saved), (FRONT.0, &image), DISKS[number].format);
        }
        image
    }

    /// `disk-resize`: by QEMU where the VM runs, else by us.
    pub fn resize(&mut self, number: usize, mib: u64) {
        let live = self.state == State::Running;
        self.begin(if live { "disk-resize, live" } else { "disk-resize" }, if live { 62 } else { 63 });
        let to = self.place(&self.host, &self.disk(number));
        self.tm(&format!("resize{}", if live { "" } else { self.storage.suffix() }), &[to, mib.to_string()], IMAGES);
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
        self.restore();
    }

    /// The files of a VM that is off go to another host.
    pub fn migrate_off(&mut self, to: &str) {
        self.begin("migrate, off", 43);
        self.history.push(to.to_owned());
        self.move_to(to);
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
        self.call(&format!("tm/{}/premigrate", self.storage.of_system()), &words, stdin);
        self.check();
        let (domain, uri, address) = (format!("one-{ID}"), format!("qemu+ssh://{to}/system"), format!("tcp://{to}"));
        let words = ["migrate", "--live", "--unsafe", &domain, &uri, "--migrateuri", &address];
        let written: Vec<&str> =
            DISKS.iter().filter(|disk| disk.origin != Origin::Cdrom).map(|disk| disk.target).collect();
        let written = written.join(",");
        if self.storage == Storage::Shared {
            self.hypervisor(&words);
        } else {
            // The hypervisor's driver has the files made over there; QEMU brings what is in them.
            let dir = self.dir().display().to_string();
            self.lab.must(&from, &["rsync", "-a", &format!("{dir}/"), &format!("{to}:{dir}/")]);
            self.hypervisor(&[&words[..], &["--copy-storage-all", "--migrate-disks", &written]].concat());
        }
        to.clone_into(&mut self.host);
        self.history.push(to.to_owned());
        if self.storage == Storage::Shared {
            self.check();
        }
        let (words, stdin) = args(self);
        self.call(&format!("tm/{}/postmigrate", self.storage.of_system()), &words, stdin);
        self.check();
    }

    /// `mv` for each disk, then for the directory.
    fn move_to(&mut self, to: &str) {
        let from = self.host.clone();
        let action = format!("mv{}", self.storage.suffix());
        for number in (0..DISKS.len()).filter(|number| DISKS[*number].origin != Origin::Cdrom) {
            let words = [self.place(&from, &self.disk(number)), self.place(to, &self.disk(number))];
            let datastore =
                if matches!(DISKS[number].origin, Origin::Volatile | Origin::Swap) { self.system } else { IMAGES };
            self.tm(&action, &words, datastore);
            self.check_names();
        }
        let words = [self.place(&from, &self.dir()), self.place(to, &self.dir())];
        let before = self.contents();
        self.tm(&action, &words, self.system);
        to.clone_into(&mut self.host);
        self.check();
        assert_eq!(self.contents(), before, "what {to} has is not what {from} had");
        self.digests_told();
    }

    /// `virsh save`; its files go to the front-end.
    pub fn stop(&mut self) {
        self.begin("stop", 5);
        let checkpoint = self.dir().join("checkpoint").display().to_string();
        self.hypervisor(&["save", &format!("one-{ID}"), &checkpoint]);
        self.own.insert("checkpoint".to_owned(), String::new());
        self.stands_still();
        self.lcm = 10;
        self.move_to(FRONT.0);
    }

    /// A stopped VM goes on, on this host.
    pub fn resume_stopped_on(&mut self, host: &str) {
        self.begin("resume on the other host", 9);
        self.history.push(host.to_owned());
        self.move_to(host);
        self.restore();
    }

    fn restore(&mut self) {
        let host = self.host.clone();
        let checkpoint = self.dir().join("checkpoint").display().to_string();
        self.context();
        self.hypervisor(&["restore", &checkpoint]);
        self.lab.must(&host, &["rm", &checkpoint]);
        self.own.remove("checkpoint");
        self.state = State::Running;
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
                    let (host, file) = (self.host.clone(), (self.disk(number), disk.format));
                    let before = self.digests(&host, &[file]);
                    let words = [from, to];
                    self.tm(&format!("mvds{}", self.storage.suffix()), &words, IMAGES);
                    if matches!(self.storage, Storage::Local | Storage::Ssh) {
                        // An epilog that failed at another disk is done again.
                        self.tm("mvds", &words, IMAGES);
                    }
                    let file = (self.image_now(number), disk.format);
                    assert_eq!(self.digests(FRONT.0, &[file]), before, "disk.{number} and its image");
                    self.digests_told();
                }
                Origin::Volatile | Origin::Swap => self.tm("delete", &[from], self.system),
                _ => self.tm("delete", &[from], IMAGES),
            }
        }
        let dir = self.place(&self.host, &self.dir());
        self.tm("delete", &[dir], self.system);
        self.state = State::Nowhere;
        let own = std::mem::take(&mut self.own);
        if self.storage != Storage::Shared {
            self.brought_back(&own);
        }
        let kept: Vec<_> =
            [1, 3].map(|number| (self.image_now(number), DISKS[number].format, self.marks[&number])).into();
        self.check_marks(&kept);
        self.check_names();
        self.told("persistent images");
    }

    /// Another VM gets the persistent images, with the snapshots that have come back with them.
    pub fn lend_again(&mut self) {
        self.begin("instantiate again", 1);
        let host = "host1".to_owned();
        for number in (0..DISKS.len()).filter(|number| DISKS[*number].origin == Origin::Persistent) {
            let (format, image, disk) = (DISKS[number].format, self.image_now(number), self.disk(number));
            let words = [self.place(FRONT.0, &self.image(number)), self.place(&host, &disk)];
            self.tm("ln", &words, IMAGES);
            self.same_content((FRONT.0, &image), (&host, &disk), format);
            let of = |path: &Path| PathBuf::from(format!("{}.snap/0", path.display()));
            self.same_content((FRONT.0, &of(&self.image(number))), (&host, &of(&disk)), format);
        }
        let dir = self.place(&host, &self.dir());
        self.tm("delete", &[dir], self.system);
        self.check_names();
    }

    /// Persistent images have the snapshots now that the VM's disks had; with layers they are links to the newest.
    fn brought_back(&mut self, own: &BTreeMap<String, String>) {
        for number in (0..DISKS.len()).filter(|number| DISKS[*number].origin == Origin::Persistent) {
            let (disk, image) = (format!("disk.{number}"), self.below_root(&self.image(number)));
            let plain = format!("{}.snap", image.rsplit('/').next().expect("a name"));
            let renamed = |name: &str| name.replace(&format!("{disk}.snap"), &plain);
            for (name, link) in own.iter().filter(|(name, _)| name.starts_with(&format!("{disk}.snap/"))) {
                self.images.insert(format!("{IMAGES}/{}", renamed(name)), renamed(link));
            }
            self.images.insert(image, renamed(&own[&disk]));
        }
    }

    /// The file that a new VM with the image of this disk would get.
    fn image_now(&self, number: usize) -> PathBuf {
        let image = self.image(number);
        let folder = PathBuf::from(format!("{}.snap", image.display()));
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        let newest = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
        newest
            .filter(|_| self.storage.has_layers() && DISKS[number].format == "qcow2")
            .map_or(image, |newest| folder.join(newest.to_string()))
    }
}
