//! `IMAGE`: an image of a datastore (contract 01 §6.1, 02 §2, 07 §2).

use super::datastore::Ids;
use super::field::Value;
use super::parser::Document;
use super::{All, First, Text, record};

/// What an image is for (`IMAGE/TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageType {
    /// A disk with an operating system (0).
    Os,
    /// An ISO image (1).
    Cdrom,
    /// A disk with data (2).
    Datablock,
    /// A kernel (3).
    Kernel,
    /// A ramdisk (4).
    Ramdisk,
    /// A context file (5).
    Context,
    /// A backup (6).
    Backup,
    /// A shared directory (7).
    Filesystem,
}

impl Value for ImageType {
    const EXPECTED: &'static str = "an image type from 0 to 7";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "0" => Self::Os,
            "1" => Self::Cdrom,
            "2" => Self::Datablock,
            "3" => Self::Kernel,
            "4" => Self::Ramdisk,
            "5" => Self::Context,
            "6" => Self::Backup,
            "7" => Self::Filesystem,
            _ => return None,
        })
    }
}

record! {
    /// An image.
    pub struct Image = "IMAGE" {
        /// Its id.
        id: First<u32> = "ID",
        /// Its name.
        name: Text = "NAME",
        /// Its owner's name.
        uname: Text = "UNAME",
        /// What it is for.
        image_type: First<ImageType> = "TYPE",
        /// How disks of it reach the hypervisor (`FILE`, `BLOCK`, `RBD` … as oned's number).
        disk_type: Text = "DISK_TYPE",
        /// `1` when changes are kept.
        persistent: First<u32> = "PERSISTENT",
        /// When it was registered, in seconds since 1970.
        regtime: First<u64> = "REGTIME",
        /// When its data last changed, in seconds since 1970.
        modtime: First<u64> = "MODTIME",
        /// Where it lies: what `cp`, `clone` or `mkfs` answered, word for word.
        source: Text = "SOURCE",
        /// Where it comes from: path or URL for `cp`, the origin's source for `clone`.
        path: Text = "PATH",
        /// Format of its data; `save_as` when a disk is about to be saved to it.
        format: Text = "FORMAT",
        /// File system to make.
        fs: Text = "FS",
        /// Size in MiB.
        size: First<u64> = "SIZE",
        /// oned's number of its state.
        state: First<u32> = "STATE",
        /// VMs that use it.
        running_vms: First<u32> = "RUNNING_VMS",
        /// Id of its datastore.
        datastore_id: First<u32> = "DATASTORE_ID",
        /// Name of its datastore.
        datastore: Text = "DATASTORE",
        /// Backup job that it belongs to (`stat`).
        backup_job_id: First<u32> = "BACKUP_JOB_ID",
        /// Snapshot that `snap_delete`, `snap_revert`, `snap_flatten` act upon; -1 in every other action.
        target_snapshot: First<i64> = "TARGET_SNAPSHOT",
        /// Ids of VMs: of a backup, the one that was backed up.
        vms: Ids = "VMS",
        /// Disks that a backup holds.
        backup_disk_ids: Ids = "BACKUP_DISK_IDS",
        /// Increments of a backup.
        backup_increments: Increments = "BACKUP_INCREMENTS",
        /// Its snapshots.
        snapshots: Snapshots = "SNAPSHOTS",
        /// Its attributes.
        template: ImageTemplate = "TEMPLATE",
    }
}

impl Document for Image {
    const ROOT: &'static str = "IMAGE";
}

record! {
    /// Attributes of an image.
    pub struct ImageTemplate = "IMAGE/TEMPLATE" {
        /// MD5 of the file at the image's path, in hexadecimal.
        md5: Text = "MD5",
        /// SHA-1 of it.
        sha1: Text = "SHA1",
        /// SHA-256 of it.
        sha256: Text = "SHA256",
        /// SHA-512 of it.
        sha512: Text = "SHA512",
        /// Driver that the user asked for.
        driver: Text = "DRIVER",
        /// Bus prefix of its disks.
        dev_prefix: Text = "DEV_PREFIX",
        /// Backup job that it belongs to.
        backup_job_id: First<u32> = "BACKUP_JOB_ID",
        /// `YES` when a backup holds chosen disks only.
        backup_selected_disks: Text = "BACKUP_SELECTED_DISKS",
        /// Backup datastore that its path points into.
        from_backup_ds: First<u32> = "FROM_BACKUP_DS",
        /// App that it was made from.
        from_app: First<u32> = "FROM_APP",
        .. other
    }
}

record! {
    /// Increments of a backup, oldest first.
    pub struct Increments = "BACKUP_INCREMENTS" {
        /// Each of them.
        increments: All<Increment> = "INCREMENT",
    }
}

record! {
    /// One increment of a backup (07 §2). Ids need not start at 0.
    pub struct Increment = "BACKUP_INCREMENTS/INCREMENT" {
        /// Its id.
        id: First<i64> = "ID",
        /// `FULL` or `INCREMENT`.
        increment_type: Text = "TYPE",
        /// The increment that it builds on; -1 for the first.
        parent_id: First<i64> = "PARENT_ID",
        /// What the backup driver calls it.
        source: Text = "SOURCE",
        /// Size in MiB.
        size: First<u64> = "SIZE",
        /// When it was made, in seconds since 1970.
        date: First<u64> = "DATE",
    }
}

record! {
    /// Snapshots of an image, or of one disk of a VM.
    pub struct Snapshots = "SNAPSHOTS" {
        /// The disk, in a VM.
        disk_id: First<u32> = "DISK_ID",
        /// `YES`, `NO`, `MIXED` or `FORMAT`.
        allow_orphans: Text = "ALLOW_ORPHANS",
        /// The snapshot that new data builds on.
        current_base: First<i64> = "CURRENT_BASE",
        /// Id of the next one.
        next_snapshot: First<u32> = "NEXT_SNAPSHOT",
        /// Each of them.
        snapshots: All<Snapshot> = "SNAPSHOT",
    }
}

record! {
    /// One snapshot.
    pub struct Snapshot = "SNAPSHOTS/SNAPSHOT" {
        /// Its id.
        id: First<u32> = "ID",
        /// Its name.
        name: Text = "NAME",
        /// `YES` for the one in use.
        active: Text = "ACTIVE",
        /// The snapshot that it builds on; -1 for none.
        parent: First<i64> = "PARENT",
        /// Snapshots that build on it, separated by commas.
        children: Text = "CHILDREN",
        /// Size in MiB.
        size: First<u64> = "SIZE",
        /// When it was taken, in seconds since 1970.
        date: First<u64> = "DATE",
    }
}
