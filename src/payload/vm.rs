//! `VM`: a virtual machine as transfer and backup actions see it (contract 02 §4–10, 04, 05, 07 §2, 08).

use super::parser::Document;
use super::{All, First, Ids, SecretText, Snapshots, Text, record};

/// `ACTION` of a history record when the VM is deleted and created anew (02 §7, delete).
pub const HISTORY_ACTION_DELETE_RECREATE: u32 = 14;

record! {
    /// A virtual machine.
    pub struct Vm = "VM" {
        /// Its id.
        id: First<u32> = "ID",
        /// Its name.
        name: Text = "NAME",
        /// Its owner's name.
        uname: Text = "UNAME",
        /// oned's number of its state.
        state: First<u32> = "STATE",
        /// oned's number of its life cycle state: 26 hot save-as, 59 snapshot delete, 62 resize, 69 backup …
        lcm_state: First<u32> = "LCM_STATE",
        /// Name of its domain in the hypervisor.
        deploy_id: Text = "DEPLOY_ID",
        /// Its attributes.
        template: VmTemplate = "TEMPLATE",
        /// Attributes that its owner made up, and oned's last `ERROR`.
        user_template: UserTemplate = "USER_TEMPLATE",
        /// Where it ran, oldest first.
        history_records: HistoryRecords = "HISTORY_RECORDS",
        /// Snapshots, per disk that has some.
        snapshots: All<Snapshots> = "SNAPSHOTS",
        /// Its backups.
        backups: Backups = "BACKUPS",
        /// `FAILURE` when the post-backup action cleans up after a failed one (08 §1).
        backup_result: Text = "BACKUP_RESULT",
    }
}

impl Document for Vm {
    const ROOT: &'static str = "VM";
}

impl Vm {
    /// The disk of this id; one whose `DISK_ID` is no number is never it.
    #[must_use]
    pub fn disk(&self, id: u32) -> Option<&Disk> {
        self.template.disks.iter().find(|disk| disk.disk_id.get() == Ok(Some(id)))
    }

    /// Snapshots of the disk of this id.
    #[must_use]
    pub fn disk_snapshots(&self, id: u32) -> Option<&Snapshots> {
        self.snapshots.iter().find(|snapshots| snapshots.disk_id.get() == Ok(Some(id)))
    }

    /// Where it runs, or ran last (`HISTORY[last()]`).
    #[must_use]
    pub fn last_history(&self) -> Option<&History> {
        self.history_records.histories.last()
    }

    /// Where it ran before that (`HISTORY[last()-1]`).
    #[must_use]
    pub fn previous_history(&self) -> Option<&History> {
        self.history_records.histories.iter().nth_back(1)
    }
}

record! {
    /// Attributes that the owner of a VM made up.
    pub struct UserTemplate = "VM/USER_TEMPLATE" {
        .. attributes
    }
}

record! {
    /// Attributes of a VM.
    pub struct VmTemplate = "VM/TEMPLATE" {
        /// Its disks.
        disks: All<Disk> = "DISK",
        /// Its context, and the disk that carries it; absent when it has none.
        context: Option<Box<Context>> = "CONTEXT",
        /// How it boots.
        os: Os = "OS",
        /// Its TPM; absent when it has none.
        tpm: Option<Box<Tpm>> = "TPM",
        /// Transfer driver of the system datastore in mixed mode (01 §15).
        tm_mad_system: Text = "TM_MAD_SYSTEM",
        .. other
    }
}

record! {
    /// Kernel and ramdisk of a VM.
    pub struct Os = "VM/TEMPLATE/OS" {
        /// Image of the kernel in a files datastore, as `$FILE[IMAGE_ID=n]`.
        kernel_ds: Text = "KERNEL_DS",
        /// Image of the ramdisk.
        initrd_ds: Text = "INITRD_DS",
        /// Name of the machine model.
        machine: Text = "MACHINE",
        /// The VM's UUID.
        uuid: Text = "UUID",
        .. other
    }
}

record! {
    /// A virtual TPM.
    pub struct Tpm = "VM/TEMPLATE/TPM" {
        /// Its model; absent means that there is none.
        model: Text = "MODEL",
        /// Its state as Base64 of a tar.gz archive, when it was restored.
        tpm_state: SecretText = "TPM_STATE",
        .. other
    }
}

record! {
    /// Contextualisation. Everything that the user put in is in `other`, and may be secret.
    pub struct Context = "VM/TEMPLATE/CONTEXT" {
        /// Number of the disk that carries it.
        disk_id: First<u32> = "DISK_ID",
        /// Name of the disk in the guest.
        target: Text = "TARGET",
        .. other
    }
}

record! {
    /// A disk.
    pub struct Disk = "VM/TEMPLATE/DISK" {
        /// Its number.
        disk_id: First<u32> = "DISK_ID",
        /// Image that it was made from; absent for a volatile disk.
        image_id: First<u32> = "IMAGE_ID",
        /// Name of that image.
        image: Text = "IMAGE",
        /// State of that image when the disk was made.
        image_state: First<u32> = "IMAGE_STATE",
        /// Datastore of that image.
        datastore_id: First<u32> = "DATASTORE_ID",
        /// Name of that datastore.
        datastore: Text = "DATASTORE",
        /// The image's source.
        source: Text = "SOURCE",
        /// What it is: `FILE`, `BLOCK`, `RBD`, `CDROM`, `SWAP`, `FS`, `FILESYSTEM` …, in any case.
        disk_type_word: Text = "TYPE",
        /// How it reaches the hypervisor: `FILE`, `BLOCK`, `RBD` ….
        disk_type: Text = "DISK_TYPE",
        /// Format of its data.
        format: Text = "FORMAT",
        /// Format that the hypervisor is told.
        driver: Text = "DRIVER",
        /// File system to make on a volatile disk.
        fs: Text = "FS",
        /// Size in MiB.
        size: First<u64> = "SIZE",
        /// Size of the image in MiB.
        original_size: First<u64> = "ORIGINAL_SIZE",
        /// MiB that its snapshots occupy.
        disk_snapshot_total_size: First<u64> = "DISK_SNAPSHOT_TOTAL_SIZE",
        /// `YES` when it is a copy of the image, `NO` when it is the image.
        clone: Text = "CLONE",
        /// Where a clone lies: `SYSTEM`, `SELF` or `NONE`.
        clone_target: Text = "CLONE_TARGET",
        /// Where a linked disk lies.
        ln_target: Text = "LN_TARGET",
        /// `YES` when it goes back to the image at the end.
        save: Text = "SAVE",
        /// `YES` when the image is persistent.
        persistent: Text = "PERSISTENT",
        /// `YES` when it cannot be written.
        readonly: Text = "READONLY",
        /// Name of the disk in the guest.
        target: Text = "TARGET",
        /// Bus prefix.
        dev_prefix: Text = "DEV_PREFIX",
        /// Transfer driver of its image.
        tm_mad: Text = "TM_MAD",
        /// Transfer driver of the system datastore, when another.
        tm_mad_system: Text = "TM_MAD_SYSTEM",
        /// Whether snapshots may outlive their parent.
        allow_orphans: Text = "ALLOW_ORPHANS",
        /// Whether snapshots are kept with the image.
        persistent_snapshots: Text = "PERSISTENT_SNAPSHOTS",
        /// `yes`: does not depend on the image.
        qcow2_standalone: Text = "QCOW2_STANDALONE",
        /// `no`: every block is allocated.
        sparse: Text = "SPARSE",
        /// Seconds between recovery snapshots (02 §7.1).
        recovery_snapshot_freq: First<u64> = "RECOVERY_SNAPSHOT_FREQ",
        /// `yes` when oned does not look after it.
        opennebula_managed: Text = "OPENNEBULA_MANAGED",
        /// Ceph pool (04).
        pool_name: Text = "POOL_NAME",
        /// Erasure-coded data pool.
        ec_pool_name: Text = "EC_POOL_NAME",
        /// Ceph monitors.
        ceph_host: Text = "CEPH_HOST",
        /// UUID of libvirt's secret: a name, no secret itself.
        ceph_secret: Text = "CEPH_SECRET",
        /// Ceph user.
        ceph_user: Text = "CEPH_USER",
        /// Path of the key file.
        ceph_key: Text = "CEPH_KEY",
        /// Path of the configuration.
        ceph_conf: Text = "CEPH_CONF",
        /// Whether images go to the trash.
        ceph_trash: Text = "CEPH_TRASH",
        /// Version of the image format.
        rbd_format: Text = "RBD_FORMAT",
        /// Whether its logical volume is thin (05).
        lvm_thin_enable: Text = "LVM_THIN_ENABLE",
        /// iSCSI portal (06).
        iscsi_host: Text = "ISCSI_HOST",
        /// iSCSI CHAP user.
        iscsi_user: Text = "ISCSI_USER",
        /// UUID of libvirt's secret: a name, no secret itself.
        iscsi_usage: Text = "ISCSI_USAGE",
        /// iSCSI target.
        iscsi_iqn: Text = "ISCSI_IQN",
        .. other
    }
}

record! {
    /// Where a VM ran.
    pub struct HistoryRecords = "VM/HISTORY_RECORDS" {
        /// Each record, oldest first.
        histories: All<History> = "HISTORY",
    }
}

record! {
    /// One stay of a VM on a host.
    pub struct History = "VM/HISTORY_RECORDS/HISTORY" {
        /// Its number, from 0.
        seq: First<u32> = "SEQ",
        /// Name of the host.
        hostname: Text = "HOSTNAME",
        /// Id of the host.
        hid: First<i64> = "HID",
        /// Id of the cluster; -1 for none.
        cid: First<i64> = "CID",
        /// System datastore.
        ds_id: First<u32> = "DS_ID",
        /// Virtualisation driver.
        vm_mad: Text = "VM_MAD",
        /// Transfer driver of the system datastore.
        tm_mad: Text = "TM_MAD",
        /// oned's number of the operation that ended it.
        action: First<u32> = "ACTION",
    }
}

record! {
    /// Backups of a VM.
    pub struct Backups = "VM/BACKUPS" {
        /// How they are made.
        config: BackupConfig = "BACKUP_CONFIG",
        /// The backup images.
        backup_ids: Ids = "BACKUP_IDS",
    }
}

record! {
    /// How backups of a VM are made (07 §2).
    pub struct BackupConfig = "VM/BACKUPS/BACKUP_CONFIG" {
        /// Number of backups or increments that stay; 0 or absent: all.
        keep_last: First<u64> = "KEEP_LAST",
        /// Whether volatile disks are included.
        backup_volatile: Text = "BACKUP_VOLATILE",
        /// Chosen disks, separated by commas; absent: all.
        disk_ids: Text = "DISK_IDS",
        /// `NONE`, `AGENT` or `SUSPEND`.
        fs_freeze: Text = "FS_FREEZE",
        /// `FULL` or `INCREMENT`.
        mode: Text = "MODE",
        /// `CBT` or `SNAPSHOT`.
        increment_mode: Text = "INCREMENT_MODE",
        /// Whether another program collects the data.
        interactive: Text = "INTERACTIVE",
        /// Increment that the next builds on; -1: the next is a full one.
        last_increment_id: First<i64> = "LAST_INCREMENT_ID",
        /// Image with the active chain; -1 for none.
        incremental_backup_id: First<i64> = "INCREMENTAL_BACKUP_ID",
        /// Backup datastore, during a backup.
        last_datastore_id: First<i64> = "LAST_DATASTORE_ID",
        /// Bridge chosen for this backup.
        last_bridge: Text = "LAST_BRIDGE",
        /// Backup job that the VM belongs to.
        backup_job_id: First<u32> = "BACKUP_JOB_ID",
        /// `YES` while increments are merged.
        active_flatten: Text = "ACTIVE_FLATTEN",
        .. other
    }
}
