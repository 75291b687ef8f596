//! A small cloud for plan snapshots of transfer managers: an image datastore (1), system datastores (103, 104) and one VM
//! (7), in a temporary folder. Hosts are this machine under other names; every script that reaches one is counted.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use onestore::action::{Action, Kind};
use onestore::context::{Cx, Hosts};
use onestore::driver::{Driver, Reply, Request, Serve, TmRequest};
use onestore::exec::control::{Cancel, Control};
use onestore::exec::host::local::Local;
use onestore::exec::host::{Host, ScriptError};
use onestore::exec::interpret::Io;
use onestore::exec::op::{Script, Value};
use onestore::exec::process::Programs;

#[path = "calls.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod calls;

use calls::Calls;

/// This machine under the name of a host; counts what reaches it.
struct Named {
    name: String,
    local: Local,
    runs: Arc<Mutex<Vec<String>>>,
}

impl Host for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        self.runs.lock().expect("counts").push(self.name.clone());
        self.local.run(script, io, control)
    }
}

struct ThisMachine {
    runs: Arc<Mutex<Vec<String>>>,
}

impl Hosts for ThisMachine {
    fn local(&self) -> Arc<dyn Host> {
        Arc::new(Local::new(Programs::from_env()))
    }

    fn remote(&self, name: &str) -> anyhow::Result<Arc<dyn Host>> {
        let (name, runs) = (name.to_owned(), Arc::clone(&self.runs));
        Ok(Arc::new(Named { name, local: Local::new(Programs::from_env()), runs }))
    }
}

/// A cloud with an image datastore (1), system datastores (103, 104) and one VM (7), in a temporary folder.
pub struct Cloud {
    mad: &'static str,
    root: tempfile::TempDir,
    runs: Arc<Mutex<Vec<String>>>,
    pub conf: Rc<RefCell<Vec<(&'static str, &'static str)>>>,
}

impl Cloud {
    pub fn new(mad: &'static str) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["ds/1", "ds/103/7", "vms", "oned/vm", "oned/datastore", "oned/image", "remotes"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let cloud = Self { mad, root, runs: Arc::default(), conf: Rc::default() };
        cloud.vm("");
        cloud.datastores("");
        cloud
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// The VM: disk 0 a clone, 1 a larger clone that is allocated, 2 raw, 3 persistent, 4 persistent and raw, 5 volatile.
    pub fn vm(&self, state: &str) {
        let source = format!("{}//ds/1/abc", self.root.path().display());
        let disk = |id: u32, more: &str| {
            format!(
                "<DISK><DISK_ID>{id}</DISK_ID><IMAGE_ID>3</IMAGE_ID><DATASTORE_ID>1</DATASTORE_ID><SOURCE>{source}</SOURCE>{more}</DISK>"
            )
        };
        let disks = [
            disk(0, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><SIZE>1</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE>"),
            disk(
                1,
                "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><SIZE>2</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE><SPARSE>no</SPARSE>\
                 <QCOW2_STANDALONE>yes</QCOW2_STANDALONE>",
            ),
            disk(2, "<FORMAT>raw</FORMAT><CLONE>YES</CLONE><SIZE>2</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE>"),
            disk(3, "<FORMAT>qcow2</FORMAT><CLONE>NO</CLONE>"),
            disk(4, "<FORMAT>raw</FORMAT><CLONE>NO</CLONE>"),
            "<DISK><DISK_ID>5</DISK_ID><FS>ext4</FS></DISK>".to_owned(),
        ];
        let history = "<HISTORY_RECORDS><HISTORY><DS_ID>104</DS_ID></HISTORY><HISTORY><DS_ID>103</DS_ID><VM_MAD>kvm</VM_MAD>\
                       </HISTORY></HISTORY_RECORDS>";
        let xml = format!("<VM><ID>7</ID>{state}<TEMPLATE>{}</TEMPLATE>{history}</VM>", disks.concat());
        fs::write(self.path("oned/vm/7.xml"), xml).expect("the VM");
    }

    /// Image 3, of which the clones are.
    pub fn image(&self, attributes: &str) {
        let xml = format!("<IMAGE><ID>3</ID>{attributes}</IMAGE>");
        fs::write(self.path("oned/image/3.xml"), xml).expect("the image");
    }

    pub fn datastores(&self, image: &str) {
        let mut pool = String::new();
        for (id, template) in [(1, image), (103, ""), (104, "")] {
            let xml = format!("<DATASTORE><ID>{id}</ID><TEMPLATE>{template}</TEMPLATE></DATASTORE>");
            fs::write(self.path(&format!("oned/datastore/{id}.xml")), &xml).expect("a datastore");
            pool += &xml;
        }
        let pool = format!("<DATASTORE_POOL>{pool}</DATASTORE_POOL>");
        fs::write(self.path("oned/datastorepool.xml"), pool).expect("the datastores");
    }

    pub fn raw(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, vec![1; 1 << 20]).expect("a raw image");
        path
    }

    pub fn qcow2(&self, below: &str, backing: Option<&str>) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        let mut cmd = Command::new("qemu-img");
        cmd.args(["create", "-q", "-f", "qcow2"]);
        if let Some(backing) = backing {
            cmd.args(["-u", "-F", "qcow2", "-b"]).arg(backing);
        }
        assert!(cmd.arg(&path).arg("1M").status().expect("qemu-img").success());
        path
    }

    /// A disk with one snapshot: `0` on the image, `1` on that.
    pub fn layered(&self, disk: &str) {
        let dir = format!("ds/103/7/{disk}.snap");
        let image = self.path("ds/1/abc").display().to_string();
        self.qcow2(&format!("{dir}/0"), Some(&image));
        symlink(".", self.path(&format!("{dir}/{disk}.snap"))).expect("the self link");
        self.qcow2(&format!("{dir}/1"), Some(&format!("{disk}.snap/0")));
        symlink(format!("{disk}.snap/1"), self.path(&format!("ds/103/7/{disk}"))).expect("the disk");
    }

    fn args(&self, words: &[&str]) -> Vec<OsString> {
        let root = self.root.path().display().to_string();
        words.iter().map(|word| word.replace("{ds}", &format!("{root}//ds")).replace("{cloud}", &root).into()).collect()
    }

    /// Does an action, in the context of calls to this cloud.
    fn serve(&self, cx: &Cx<'_>, action: &str, words: &[&str], stdin: &str) -> anyhow::Result<Reply> {
        let driver = Driver::find(Kind::Tm, self.mad).expect("the driver");
        let (name, system) = action.split_once('.').map_or((action, None), |(name, system)| (name, Some(system)));
        match driver.entry(name, system).expect("the action").serve {
            Serve::Tm(serve) => {
                let action = Action::find(Kind::Tm, name).expect("the action").name;
                let vm = (!stdin.is_empty()).then(|| stdin.to_owned());
                serve(cx, &TmRequest { mad: self.mad.to_owned(), action, args: self.args(words), vm })
            }
            Serve::Datastore(serve) => {
                let xml = stdin.replace("{ds}", &self.path("ds").display().to_string());
                let id = words[0].parse().expect("an id");
                serve(cx, &Request { id, data: onestore::payload::parse(&xml).expect("a document") })
            }
            other => panic!("{action} is {other:?}"),
        }
    }

    fn calls<T>(&self, body: impl FnOnce(&Calls<'_>) -> T) -> T {
        body(&Calls {
            mad: self.mad,
            remotes: self.path("remotes"),
            datastores: Some(self.path("ds")),
            oned: Some(self.path("oned")),
            settings: &self.conf.borrow(),
            hosts: &ThisMachine { runs: Arc::clone(&self.runs) },
        })
    }

    /// What the action would do, in words without anything of this machine.
    pub fn explain_with(&self, action: &str, words: &[&str], stdin: &str) -> String {
        let call = format!("tm/{}/{action}", self.mad);
        let text =
            self.calls(|calls| calls.explain(&call, self.root.path(), |cx| self.serve(cx, action, words, stdin)));
        without_digests(&text)
    }

    pub fn explain(&self, action: &str, words: &[&str]) -> String {
        self.explain_with(action, words, "")
    }

    /// Does the action, and gives how many scripts each host ran.
    pub fn scripts(&self, action: &str, words: &[&str]) -> usize {
        self.reached(action, words, "").len()
    }

    /// Does the action, and gives the hosts that ran a script, in order.
    pub fn reached(&self, action: &str, words: &[&str], stdin: &str) -> Vec<String> {
        self.runs.lock().expect("counts").clear();
        let control = Control::new(Cancel::new());
        self.calls(|calls| calls.run(control, |cx| self.serve(cx, action, words, stdin))).expect(action);
        self.runs.lock().expect("counts").clone()
    }
}

/// A journey's name is a digest of its ends, which are in the temporary folder.
fn without_digests(text: &str) -> String {
    let mut parts = text.split(".journey-");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(".journey-DIGEST");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    out
}
