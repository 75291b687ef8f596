//! `DATASTORE`: a datastore with the attributes that drivers read (contract 01 §6.1, 02, 04–07).

use super::field::{Field, Value};
use super::parser::Document;
use super::{All, FieldError, First, Parser, PayloadError, Record, SecretText, Text, record};

/// What a datastore holds (`DATASTORE/TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatastoreType {
    /// Images (0).
    Image,
    /// Disks of VMs (1).
    System,
    /// Kernels, ramdisks, context files (2).
    File,
    /// Backups (3).
    Backup,
}

impl Value for DatastoreType {
    const EXPECTED: &'static str = "a datastore type from 0 to 3";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "0" => Self::Image,
            "1" => Self::System,
            "2" => Self::File,
            "3" => Self::Backup,
            _ => return None,
        })
    }
}

/// A list of ids (`<ID>` elements). Errors name the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Ids {
    /// Each of them.
    pub ids: All<First<u32>>,
}

impl Ids {
    /// The ids as numbers, in the order of the document.
    ///
    /// # Errors
    /// [`FieldError::Unparsable`] when one is no number; empty ones are left out.
    pub fn numbers(&self) -> Result<Vec<u32>, FieldError> {
        self.ids.iter().filter_map(|id| id.get().transpose()).collect()
    }
}

impl Record for Ids {
    fn child(&mut self, name: &str, parser: &mut Parser<'_>) -> Result<(), PayloadError> {
        if name == "ID" { self.ids.take(parser, "ID") } else { parser.skip("a list of ids") }
    }
}

impl Field for Ids {
    fn absent(path: &'static str) -> Self {
        Self { ids: All::absent(path) }
    }

    fn take(&mut self, parser: &mut Parser<'_>, element: &'static str) -> Result<(), PayloadError> {
        parser.children(self, element)
    }
}

record! {
    /// A datastore.
    pub struct Datastore = "DATASTORE" {
        /// Its id.
        id: First<u32> = "ID",
        /// Its name.
        name: Text = "NAME",
        /// What it holds.
        datastore_type: First<DatastoreType> = "TYPE",
        /// Datastore driver; `-` for a system datastore.
        ds_mad: Text = "DS_MAD",
        /// Transfer driver; `-` for a backup datastore.
        tm_mad: Text = "TM_MAD",
        /// Its directory on the front-end, usually with a double slash.
        base_path: Text = "BASE_PATH",
        /// oned's number of how disks reach the hypervisor.
        disk_type: Text = "DISK_TYPE",
        /// `0` when it is enabled.
        state: First<u32> = "STATE",
        /// MiB in all, as last monitored.
        total_mb: First<u64> = "TOTAL_MB",
        /// MiB free, as last monitored.
        free_mb: First<u64> = "FREE_MB",
        /// MiB used, as last monitored.
        used_mb: First<u64> = "USED_MB",
        /// Clusters that use it.
        clusters: Ids = "CLUSTERS",
        /// Images in it.
        images: Ids = "IMAGES",
        /// Its attributes.
        template: DatastoreTemplate = "TEMPLATE",
    }
}

impl Document for Datastore {
    const ROOT: &'static str = "DATASTORE";
}

record! {
    /// All datastores that the caller may see.
    pub struct DatastorePool = "DATASTORE_POOL" {
        /// Each of them.
        datastores: All<Datastore> = "DATASTORE",
    }
}

impl Document for DatastorePool {
    const ROOT: &'static str = "DATASTORE_POOL";
}

record! {
    /// Attributes of a datastore. Those with a driver's name in theirs (`LN_TARGET_SSH`, `RESTIC_NICE`) are in `other`.
    pub struct DatastoreTemplate = "DATASTORE/TEMPLATE" {
        /// Hosts that act for it, separated by blanks.
        bridge_list: Text = "BRIDGE_LIST",
        /// Directories that images may come from, separated by blanks.
        safe_dirs: Text = "SAFE_DIRS",
        /// Directories that images must not come from, separated by blanks.
        restricted_dirs: Text = "RESTRICTED_DIRS",
        /// Scratch directory on a bridge.
        staging_dir: Text = "STAGING_DIR",
        /// `yes`: compressed images stay so.
        no_decompress: Text = "NO_DECOMPRESS",
        /// Most bytes per second of a download, with curl's suffixes.
        limit_transfer_bw: Text = "LIMIT_TRANSFER_BW",
        /// `no`: images stay in the format in which they came.
        convert: Text = "CONVERT",
        /// Format that images are converted to.
        driver: Text = "DRIVER",
        /// `no`: every block is allocated.
        sparse: Text = "SPARSE",
        /// `SHARED` of a system datastore.
        shared: Text = "SHARED",
        /// How disks reach the hypervisor, as a word.
        disk_type: Text = "DISK_TYPE",
        /// Whether snapshots may outlive their parent.
        allow_orphans: Text = "ALLOW_ORPHANS",
        /// Whether snapshots are kept with the image.
        persistent_snapshots: Text = "PERSISTENT_SNAPSHOTS",
        /// `yes`: clones do not depend on the image.
        qcow2_standalone: Text = "QCOW2_STANDALONE",
        /// Where linked disks lie.
        ln_target: Text = "LN_TARGET",
        /// Where cloned disks lie.
        clone_target: Text = "CLONE_TARGET",
        /// System transfer drivers in mixed mode.
        tm_mad_system: Text = "TM_MAD_SYSTEM",
        /// Most MiB that may be used.
        limit_mb: First<u64> = "LIMIT_MB",
        /// `yes`: hosts mount it by themselves (02 §9).
        nfs_auto_enable: Text = "NFS_AUTO_ENABLE",
        /// NFS server.
        nfs_auto_host: Text = "NFS_AUTO_HOST",
        /// Exported path.
        nfs_auto_path: Text = "NFS_AUTO_PATH",
        /// Mount options.
        nfs_auto_opts: Text = "NFS_AUTO_OPTS",
        /// Host that keeps replicas of images (02 §7).
        replica_host: Text = "REPLICA_HOST",
        /// Whether the `local` driver caches images on hosts (02 §11).
        cache_enable: Text = "CACHE_ENABLE",
        /// Directory of that cache.
        cache_path: Text = "CACHE_PATH",
        /// Its largest size in per cent of the file system.
        cache_max_size: First<u64> = "CACHE_MAX_SIZE",
        /// Seconds for which an image stays in it.
        cache_min_age: First<u64> = "CACHE_MIN_AGE",
        /// Hosts to ask for images, separated by commas.
        cache_upstreams: Text = "CACHE_UPSTREAMS",
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
        /// Whether logical volumes are thin (05).
        lvm_thin_enable: Text = "LVM_THIN_ENABLE",
        /// Whether new volumes are zeroed.
        zero_lvm_on_create: Text = "ZERO_LVM_ON_CREATE",
        /// Whether removed volumes are zeroed.
        zero_lvm_on_delete: Text = "ZERO_LVM_ON_DELETE",
        /// iSCSI portal (06).
        iscsi_host: Text = "ISCSI_HOST",
        /// iSCSI CHAP user.
        iscsi_user: Text = "ISCSI_USER",
        /// UUID of libvirt's secret: a name, no secret itself.
        iscsi_usage: Text = "ISCSI_USAGE",
        /// Prefix of target names.
        iscsi_iqn: Text = "ISCSI_IQN",
        /// Backup server (07 §5).
        rsync_host: Text = "RSYNC_HOST",
        /// User on it.
        rsync_user: Text = "RSYNC_USER",
        /// Options of rsync.
        rsync_args: Text = "RSYNC_ARGS",
        /// Whether flattened disks are sparsified.
        rsync_sparsify: Text = "RSYNC_SPARSIFY",
        /// Scratch directory on it.
        rsync_tmp_dir: Text = "RSYNC_TMP_DIR",
        /// `SFTP` or `S3` (07 §6).
        restic_backend: Text = "RESTIC_BACKEND",
        /// Password of the repositories.
        restic_password: SecretText = "RESTIC_PASSWORD",
        /// SFTP server.
        restic_sftp_server: Text = "RESTIC_SFTP_SERVER",
        /// User on it.
        restic_sftp_user: Text = "RESTIC_SFTP_USER",
        /// Bandwidth in KiB/s.
        restic_bwlimit: Text = "RESTIC_BWLIMIT",
        /// `auto`, `off` or `max`.
        restic_compression: Text = "RESTIC_COMPRESSION",
        /// SFTP connections.
        restic_connections: First<u32> = "RESTIC_CONNECTIONS",
        /// Threads of restic.
        restic_maxproc: First<i64> = "RESTIC_MAXPROC",
        /// Scratch directory for restoring.
        restic_tmp_dir: Text = "RESTIC_TMP_DIR",
        /// Whether flattened disks are sparsified.
        restic_sparsify: Text = "RESTIC_SPARSIFY",
        /// `--max-repack-size`.
        restic_prune_max_repack: Text = "RESTIC_PRUNE_MAX_REPACK",
        /// `--max-unused`.
        restic_prune_max_unused: Text = "RESTIC_PRUNE_MAX_UNUSED",
        /// S3 access key.
        restic_s3_access_key_id: SecretText = "RESTIC_S3_ACCESS_KEY_ID",
        /// S3 secret key.
        restic_s3_secret_access_key: SecretText = "RESTIC_S3_SECRET_ACCESS_KEY",
        /// S3 bucket.
        restic_s3_bucket: Text = "RESTIC_S3_BUCKET",
        /// S3 region.
        restic_s3_region: Text = "RESTIC_S3_REGION",
        /// S3 end point.
        restic_s3_endpoint: Text = "RESTIC_S3_ENDPOINT",
        /// Whether buckets are addressed by path.
        restic_s3_force_path_style: Text = "RESTIC_S3_FORCE_PATH_STYLE",
        /// Path of a CA certificate.
        restic_s3_cacert: Text = "RESTIC_S3_CACERT",
        /// Whether certificates are not checked.
        restic_s3_insecure_tls: Text = "RESTIC_S3_INSECURE_TLS",
        /// Capacity in MiB that an S3 datastore reports.
        total_mb: First<u64> = "TOTAL_MB",
        .. other
    }
}
