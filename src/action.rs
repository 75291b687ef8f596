//! Every action that OpenNebula calls: its name, arguments, standard input and reply.
//!
//! Source: contract 01 §6–8 (what a running oned was seen to call). The table is the one place that knows the
//! arguments; argument counts are checked, `onestore actions`, the completions and `docs/actions.md` are made from it.

use std::fmt;

/// The two kinds of driver (`remotes/datastore`, `remotes/tm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Datastore driver: images, kernels and backups at rest.
    Datastore,
    /// Transfer manager: the disks of VMs.
    Tm,
}

impl Kind {
    /// The folder of `remotes/` (`datastore`, `tm`).
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Datastore => "datastore",
            Self::Tm => "tm",
        }
    }

    /// The kind of a folder name; `ds` is understood as well.
    #[must_use]
    pub fn of_folder(name: &str) -> Option<Self> {
        match name {
            "datastore" | "ds" => Some(Self::Datastore),
            "tm" => Some(Self::Tm),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// What stands on an action's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing: an empty pipe.
    Empty,
    /// The `DS_DRIVER_ACTION_DATA` document in Base64, in a few cases as plain XML.
    ActionData,
    /// The `VM` document, Base64 or plain.
    Vm,
}

impl Stdin {
    /// The word used in tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Empty => "–",
            Self::ActionData => "DS_DRIVER_ACTION_DATA",
            Self::Vm => "VM",
        }
    }
}

/// One action as OpenNebula calls it.
#[derive(Debug)]
pub struct Action {
    /// Datastore or transfer manager.
    pub kind: Kind,
    /// Name as oned calls it (`prebackup`).
    pub name: &'static str,
    /// Another name for it, as the public documentation writes it (`pre_backup`).
    pub alias: Option<&'static str>,
    /// Arguments after the program name. A trailing `…` marks one that repeats, brackets one that may be missing.
    pub args: &'static [&'static str],
    /// What stands on standard input.
    pub stdin: Stdin,
    /// What the reply on standard output holds.
    pub reply: &'static str,
    /// What it is for, in one sentence.
    pub what: &'static str,
}

impl Action {
    /// Least and most number of arguments; `None` means any number.
    #[must_use]
    pub fn arity(&self) -> (usize, Option<usize>) {
        let optional = self.args.iter().filter(|a| a.starts_with('[')).count();
        let repeats = self.args.iter().any(|a| a.ends_with('…') || a.ends_with("…]"));
        let most = self.args.len();
        (most - optional, if repeats { None } else { Some(most) })
    }

    /// The action of this name or alias.
    #[must_use]
    pub fn find(kind: Kind, name: &str) -> Option<&'static Self> {
        ACTIONS.iter().find(|a| a.kind == kind && (a.name == name || a.alias == Some(name)))
    }
}

/// Shorthand for a row of [`ACTIONS`].
const fn ds(name: &'static str, args: &'static [&'static str], reply: &'static str, what: &'static str) -> Action {
    Action { kind: Kind::Datastore, name, alias: None, args, stdin: Stdin::ActionData, reply, what }
}

/// Shorthand for a row of [`ACTIONS`].
const fn tm(
    name: &'static str,
    args: &'static [&'static str],
    stdin: Stdin,
    reply: &'static str,
    what: &'static str,
) -> Action {
    Action { kind: Kind::Tm, name, alias: None, args, stdin, reply, what }
}

/// Gives a row its documented alias.
const fn aka(mut action: Action, alias: &'static str) -> Action {
    action.alias = Some(alias);
    action
}

const BACKUP: &[&str] = &["HOST:SYSDIR", "DISKS", "DEPLOY_ID", "BACKUP_JOB_ID", "VM_ID", "DS_ID"];
const MIGRATE: &[&str] = &["SRC_HOST", "DST_HOST", "SYSDIR", "VM_ID", "DS_ID", "[CALLER_MAD]"];
const SNAPSHOT: &[&str] = &["HOST:SYSDIR/disk.N", "SNAPSHOT_ID", "VM_ID", "DS_ID"];

/// All actions, datastore first, in the order in which an image and then a VM meets them.
#[rustfmt::skip]
pub static ACTIONS: &[Action] = &[
    ds("cp", &["IMAGE_ID"], "SOURCE FORMAT", "Register an image from a path or URL"),
    ds("mkfs", &["IMAGE_ID"], "SOURCE", "Create an empty image, or name the place of one to be saved"),
    ds("clone", &["IMAGE_ID"], "SOURCE [FORMAT]", "Copy an image into this datastore"),
    ds("stat", &["REQUEST_ID"], "SIZE_MB", "Tell how large an image would be"),
    ds("rm", &["IMAGE_ID"], "", "Remove an image with its snapshots"),
    ds("monitor", &["DATASTORE_ID"], "USED_MB= TOTAL_MB= FREE_MB=", "Tell the datastore's space"),
    ds("export", &["IMAGE_ID"], "IMPORT_INFO XML", "Describe an image for a marketplace"),
    ds("snap_delete", &["IMAGE_ID"], "", "Delete a snapshot of an image that is not in use"),
    ds("snap_revert", &["IMAGE_ID"], "", "Set an image that is not in use back to a snapshot"),
    ds("snap_flatten", &["IMAGE_ID"], "", "Make a snapshot the image and drop all snapshots"),
    ds("restore", &["REQUEST_ID"], "TEMPLATE_ID IMAGE_ID…", "Restore a backup into new images"),
    ds("backup", BACKUP, "BACKUP_ID SIZE_MB [FORMAT]", "Store the files of a backup"),
    ds("backup_cancel", &["HOST:SYSDIR", "DEPLOY_ID"], "", "Stop a running backup"),
    ds("increment_flatten", &["IMAGE_ID"], "SIZE_MB ID:SOURCE,…", "Merge increments into the full backup"),
    ds("ls", &["[-i]", "[INCREMENT_ID]"], "JSON", "List the files of a backup"),
    tm("clone", &["FE:SOURCE", "HOST:SYSDIR/disk.N", "VM_ID", "DS_ID", "[REPLICA_HOST]"], Stdin::Empty, "", "Give a VM its own copy of an image"),
    tm("ln", &["FE:SOURCE", "HOST:SYSDIR/disk.N", "VM_ID", "DS_ID", "[REPLICA_HOST]"], Stdin::Empty, "", "Give a VM a persistent image itself"),
    tm("mkimage", &["SIZE_MB", "FORMAT", "HOST:SYSDIR/disk.N", "VM_ID", "DS_ID"], Stdin::Empty, "", "Create a volatile disk"),
    tm("mkswap", &["SIZE_MB", "HOST:SYSDIR/disk.N", "VM_ID", "DS_ID"], Stdin::Empty, "", "Create a swap disk"),
    tm("context", &["CONTEXT_SH", "[FILE…]", "HOST:SYSDIR/disk.N", "VM_ID", "DS_ID"], Stdin::Empty, "", "Make the contextualisation CD-ROM"),
    tm("mv", &["HOST:PATH", "HOST:PATH", "VM_ID", "DS_ID"], Stdin::Empty, "", "Move a disk or a VM directory between hosts"),
    tm("mvds", &["HOST:SYSDIR/disk.N", "SOURCE", "VM_ID", "DS_ID"], Stdin::Empty, "", "Bring a persistent disk back into its image"),
    tm("cpds", &["HOST:SYSDIR/disk.N", "SOURCE", "SNAPSHOT_ID", "VM_ID", "DS_ID"], Stdin::Empty, "", "Save a disk as an image"),
    tm("delete", &["HOST:PATH", "VM_ID", "DS_ID"], Stdin::Empty, "", "Remove a disk or a VM directory"),
    tm("resize", &["HOST:SYSDIR/disk.N", "SIZE_MB", "VM_ID", "DS_ID"], Stdin::Empty, "", "Enlarge a disk"),
    tm("snap_create", SNAPSHOT, Stdin::Empty, "", "Snapshot a disk of a VM that is off"),
    tm("snap_create_live", SNAPSHOT, Stdin::Empty, "", "Snapshot a disk of a running VM"),
    tm("snap_revert", SNAPSHOT, Stdin::Empty, "", "Set a disk back to a snapshot"),
    tm("snap_delete", SNAPSHOT, Stdin::Empty, "", "Delete a snapshot of a disk"),
    tm("premigrate", MIGRATE, Stdin::Vm, "", "Prepare a live migration"),
    tm("postmigrate", MIGRATE, Stdin::Vm, "", "Clean up after a live migration"),
    tm("failmigrate", MIGRATE, Stdin::Vm, "", "Clean up after a failed live migration"),
    aka(tm("prebackup", BACKUP, Stdin::Vm, "", "Export the disks of a VM that is off"), "pre_backup"),
    aka(tm("prebackup_live", BACKUP, Stdin::Vm, "", "Export the disks of a running VM"), "pre_backup_live"),
    aka(tm("postbackup", BACKUP, Stdin::Vm, "", "Clean up after a backup"), "post_backup"),
    aka(tm("postbackup_live", BACKUP, Stdin::Vm, "", "Clean up after a backup of a running VM"), "post_backup_live"),
    tm("restore", &["HOST:SYSDIR", "VM_ID", "IMAGE_ID", "INCREMENT_ID", "DISK_ID"], Stdin::Empty, "", "Restore disks in place"),
    tm("monitor", &["DATASTORE_ID"], Stdin::ActionData, "USED_MB= TOTAL_MB= FREE_MB=", "Tell a shared system datastore's space"),
    tm("monitor_ds", &["DATASTORE_DIR"], Stdin::Empty, "VM = [ … ] lines", "Tell disk sizes on a host"),
    tm("recovery_snap_create_live", &["VM_ID", "DISK_PATH", "FREQUENCY", "REPLICA_HOST"], Stdin::Empty, "EPOCH", "Take a recovery snapshot on a host"),
    tm("activate", &["HOST:SYSDIR/disk.N", "VM_ID", "DS_ID"], Stdin::Empty, "", "Activate the volume of a disk"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_aliases_resolve() {
        for action in ACTIONS {
            let same = ACTIONS.iter().filter(|a| a.kind == action.kind && a.name == action.name);
            assert_eq!(same.count(), 1, "{}", action.name);
        }
        let found = Action::find(Kind::Tm, "pre_backup_live").map(|a| a.name);
        assert_eq!(found, Some("prebackup_live"));
    }

    #[test]
    fn arity_follows_the_argument_list() {
        let arity = |kind, name| Action::find(kind, name).map(Action::arity);
        assert_eq!(arity(Kind::Datastore, "cp"), Some((1, Some(1))));
        assert_eq!(arity(Kind::Tm, "clone"), Some((4, Some(5))));
        assert_eq!(arity(Kind::Tm, "context"), Some((4, None)));
    }
}
