//! `DS_DRIVER_ACTION_DATA`: what every datastore action is handed (contract 01 §6.1, 07 §1).

use super::parser::Document;
use super::{Datastore, First, Image, SecretText, Text, Vm, record};
use crate::transfer::s3;

record! {
    /// The document of a datastore action.
    pub struct ActionData = "DS_DRIVER_ACTION_DATA" {
        /// The image acted upon; `stat` gets little more than its path.
        image: Option<Box<Image>> = "IMAGE",
        /// The datastore, decrypted.
        datastore: Datastore = "DATASTORE",
        /// The VM that is backed up (`backup`, `ls`).
        vm: Option<Box<Vm>> = "VM",
        /// `BRIDGE_LIST` of the datastore that a `clone` reads from, where it is another one.
        source_bridge_list: Text = "SOURCE_BRIDGE_LIST",
        /// oned's `DATASTORE_LOCATION` (`monitor` of a system datastore).
        datastore_location: Text = "DATASTORE_LOCATION",
        /// `1` when disk sizes of VMs are wanted as well (`monitor` of a system datastore).
        monitor_vm_disks: First<u32> = "MONITOR_VM_DISKS",
        /// Image datastore that a backup is restored to.
        destination_ds_id: First<u32> = "DESTINATION_DS_ID",
        /// Arguments of `increment_flatten`.
        extra_data: ExtraData = "EXTRA_DATA",
        /// Arguments of `restore`.
        template: RestoreTemplate = "TEMPLATE",
        /// The marketplace that the image comes from.
        marketplace: Option<Box<Marketplace>> = "MARKETPLACE",
        .. other
    }
}

impl Document for ActionData {
    const ROOT: &'static str = "DS_DRIVER_ACTION_DATA";
}

record! {
    /// Arguments of `increment_flatten` (07 §10).
    pub struct ExtraData = "EXTRA_DATA" {
        /// Number of increments that stay.
        keep_last: First<u32> = "KEEP_LAST",
        .. other
    }
}

record! {
    /// Arguments of `restore` (07 §9).
    pub struct RestoreTemplate = "TEMPLATE" {
        /// Base of the new names.
        name: Text = "NAME",
        /// Who owns what is made.
        username: Text = "USERNAME",
        /// Increment to restore; absent means the last.
        increment_id: First<i64> = "INCREMENT_ID",
        /// Single disk to restore.
        disk_id: Text = "DISK_ID",
        /// Whether addresses are left out.
        no_ip: Text = "NO_IP",
        /// Whether network interfaces are left out.
        no_nic: Text = "NO_NIC",
        .. other
    }
}

record! {
    /// A marketplace, as `cp` is told of it when the image comes from an app.
    pub struct Marketplace = "MARKETPLACE" {
        /// Its id.
        id: First<u32> = "ID",
        /// Its name.
        name: Text = "NAME",
        /// Its driver.
        market_mad: Text = "MARKET_MAD",
        /// Its attributes.
        template: MarketTemplate = "TEMPLATE",
    }
}

record! {
    /// Attributes of a marketplace that a download needs (03 §3).
    pub struct MarketTemplate = "MARKETPLACE/TEMPLATE" {
        /// S3 access key.
        access_key_id: SecretText = "ACCESS_KEY_ID",
        /// S3 secret key.
        secret_access_key: SecretText = "SECRET_ACCESS_KEY",
        /// S3 region.
        region: Text = "REGION",
        /// `no` when it is another service than Amazon's.
        aws: Text = "AWS",
        /// URL of that service.
        endpoint: Text = "ENDPOINT",
        /// Token that goes with temporary S3 keys (ours).
        session_token: SecretText = "SESSION_TOKEN",
        /// `yes`: buckets stand in the path, `no`: in the host name (ours).
        force_path_style: Text = "FORCE_PATH_STYLE",
        .. other
    }
}

impl MarketTemplate {
    /// What an import from S3 needs to know; nothing where the marketplace has no keys.
    #[must_use]
    pub fn s3(&self) -> Option<s3::Settings> {
        if self.access_key_id.get().is_none() && self.secret_access_key.get().is_none() {
            return None;
        }
        let text = |text: &Text| text.trimmed().map(str::to_owned);
        Some(s3::Settings {
            access_key: self.access_key_id.get().cloned(),
            secret_key: self.secret_access_key.get().cloned(),
            session_token: self.session_token.get().cloned(),
            region: text(&self.region),
            endpoint: text(&self.endpoint),
            foreign: self.aws.trimmed().is_some_and(|word| word.eq_ignore_ascii_case("no")),
            style: self.force_path_style.trimmed().map_or(s3::Style::Auto, s3::Style::forced),
        })
    }
}

/// Convenience for the many actions that cannot do without an image.
impl ActionData {
    /// The image.
    ///
    /// # Errors
    /// [`super::FieldError::Missing`] when the document has none.
    pub fn required_image(&self) -> Result<&Image, super::FieldError> {
        self.image.as_deref().ok_or_else(|| super::FieldError::Missing { path: "IMAGE".to_owned() })
    }

    /// The VM.
    ///
    /// # Errors
    /// [`super::FieldError::Missing`] when the document has none.
    pub fn required_vm(&self) -> Result<&Vm, super::FieldError> {
        self.vm.as_deref().ok_or_else(|| super::FieldError::Missing { path: "VM".to_owned() })
    }
}
