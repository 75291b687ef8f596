//! `HOST`: a hypervisor, with its state and what drivers ask of its attributes.

use super::parser::Document;
use super::{All, First, Text, record};

record! {
    /// A host.
    pub struct Host = "HOST" {
        /// Its id.
        id: First<u32> = "ID",
        /// Its name, under which it is reached.
        name: Text = "NAME",
        /// oned's number of its state.
        state: First<u32> = "STATE",
        /// Id of its cluster; -1 for none.
        cluster_id: First<i64> = "CLUSTER_ID",
        /// Name of its cluster.
        cluster: Text = "CLUSTER",
        /// Virtualisation driver.
        vm_mad: Text = "VM_MAD",
        /// What it has and what of it is used.
        share: HostShare = "HOST_SHARE",
        /// Its attributes.
        template: HostTemplate = "TEMPLATE",
    }
}

impl Document for Host {
    const ROOT: &'static str = "HOST";
}

impl Host {
    /// Whether oned would give it work: neither in error (3) nor disabled (4, 7) nor off line (8).
    ///
    /// These are the states that upstream leaves out of a `BRIDGE_LIST` (contract 01 §9); one that is merely being retried
    /// (5) stays in. A host whose state is unknown
    /// is usable, as a name of which oned knows nothing would be.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !matches!(self.state.get(), Ok(Some(3 | 4 | 7 | 8)))
    }
}

record! {
    /// All hosts that the caller may see.
    pub struct HostPool = "HOST_POOL" {
        /// Each of them.
        hosts: All<Host> = "HOST",
    }
}

impl Document for HostPool {
    const ROOT: &'static str = "HOST_POOL";
}

record! {
    /// Attributes of a host.
    pub struct HostTemplate = "HOST/TEMPLATE" {
        /// Address that replicas are copied to.
        replica_storage_ip: Text = "REPLICA_STORAGE_IP",
        /// Name that it has itself.
        hostname: Text = "HOSTNAME",
        /// Hypervisor.
        hypervisor: Text = "HYPERVISOR",
        /// Version of the drivers on it.
        version: Text = "VERSION",
        .. other
    }
}

record! {
    /// What a host has and what of it is used.
    pub struct HostShare = "HOST/HOST_SHARE" {
        /// Storage.
        datastores: HostDatastores = "DATASTORES",
        /// VMs on it.
        running_vms: First<u32> = "RUNNING_VMS",
    }
}

record! {
    /// Storage of a host.
    pub struct HostDatastores = "HOST/HOST_SHARE/DATASTORES" {
        /// MiB of its datastores directory.
        max_disk: First<u64> = "MAX_DISK",
        /// MiB free there.
        free_disk: First<u64> = "FREE_DISK",
        /// MiB used there.
        used_disk: First<u64> = "USED_DISK",
        /// Datastores that it monitors by itself.
        datastores: All<HostDatastore> = "DS",
    }
}

record! {
    /// A datastore as a host sees it (contract 01 §16).
    pub struct HostDatastore = "HOST/HOST_SHARE/DATASTORES/DS" {
        /// Its id.
        id: First<u32> = "ID",
        /// MiB in all.
        total_mb: First<u64> = "TOTAL_MB",
        /// MiB free.
        free_mb: First<u64> = "FREE_MB",
        /// MiB used.
        used_mb: First<u64> = "USED_MB",
        /// `YES` where a replica cache lies.
        replica_cache: Text = "REPLICA_CACHE",
    }
}
