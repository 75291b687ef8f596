//! The drivers as a front-end has them installed: entries that are links, called as oned's drivers call them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::hypervisors::Lab;

/// An installation in the lab's folder: `one/var/remotes`, with oned answering from `oned`.
pub struct Remotes<'a> {
    lab: &'a Lab,
}

impl<'a> Remotes<'a> {
    /// Makes it; the datastores are the lab's shared folder.
    pub fn new(lab: &'a Lab) -> Self {
        let var = lab.path("one/var");
        for folder in ["remotes/onestore", "remotes/tm", "remotes/datastore/fs", "remotes/etc/vmm/kvm", "vms/7"] {
            fs::create_dir_all(var.join(folder)).expect("makes");
        }
        symlink(lab.shared(), var.join("datastores")).expect("links");
        for folder in ["vm", "datastore"] {
            fs::create_dir_all(lab.path("oned").join(folder)).expect("makes");
        }
        fs::write(lab.path("oned/datastorepool.xml"), "<DATASTORE_POOL></DATASTORE_POOL>").expect("writes");
        let launch = Path::new(env!("CARGO_MANIFEST_DIR")).join("remotes/onestore/launch");
        fs::copy(launch, var.join("remotes/onestore/launch")).expect("copies");
        symlink(env!("CARGO_BIN_EXE_onestore"), var.join("remotes/onestore/onestore")).expect("links");
        Self { lab }
    }

    /// What the operator has in `kvmrc`.
    #[allow(dead_code)]
    pub fn kvmrc(&self, text: &str) {
        fs::write(self.lab.path("one/var/remotes/etc/vmm/kvm/kvmrc"), text).expect("writes");
    }

    /// What oned answers about an object: `vm/7`, `datastore/102`.
    pub fn tell(&self, object: &str, xml: &str) {
        fs::write(self.lab.path(&format!("oned/{object}.xml")), xml).expect("writes");
    }

    /// The call of an entry (`tm/qcow2/clone`), its output piped.
    pub fn call(&self, entry: &str, args: &[String]) -> Command {
        let link = self.lab.path("one/var/remotes").join(entry);
        if !link.exists() {
            fs::create_dir_all(link.parent().expect("a folder")).expect("makes");
            symlink("../../onestore/launch", &link).expect("links");
        }
        let mut command = Command::new(&link);
        command.args(args).env("ONE_LOCATION", self.lab.path("one")).env("LANG", "C").env_remove("ONESTORE_LOG");
        command.env("ONESTORE_ONED", format!("dir:{}", self.lab.path("oned").display()));
        command.env("ONESTORE_LOCK_DIR", self.lab.path("lock"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}
