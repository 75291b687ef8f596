//! What `clone` and `ln` are asked for: an image, the place of a disk, and what oned wants of it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::VmPlace;
use crate::driver::common::disk::record;
use crate::driver::{TmRequest, misuse};
use crate::exec::host::Host;
use crate::exec::op::{Op, Sparse};
use crate::payload::{Disk as Record, Vm};
use crate::tool::qemu_img::{self, Growth};

/// See the module.
pub struct Order {
    /// The VM's id.
    pub id: u32,
    /// The VM.
    vm: Vm,
    /// The host that has the image.
    pub holder: Arc<dyn Host>,
    /// The image there.
    pub source: PathBuf,
    /// Where the disk is to be, or the kernel.
    pub to: VmPlace,
    /// Number of the disk; a kernel has none.
    number: Option<u32>,
    /// What the user reads first when something goes wrong.
    pub failure: String,
}

impl Order {
    /// By the arguments `FE:SOURCE HOST:SYSDIR/disk.N VM_ID DS_ID`.
    ///
    /// # Errors
    /// Arguments that are none; oned knows nothing of the VM or the disk.
    pub fn read(cx: &Cx<'_>, request: &TmRequest) -> Result<Self> {
        let id = request.number(2, "VM_ID")?;
        let _: u32 = request.number(3, "DS_ID")?;
        let to = request.place(cx, 1, id)?;
        let (holder, source) = (request.holder(cx, 0)?, request.path(0)?);
        let failure = format!("Error copying {} to {}", request.text(0), to.text);
        let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
        let number = if to.is_disk() { Some(to.clone().disk()?.number) } else { None };
        let order = Self { id, vm, holder, source, to, number, failure };
        if let Some(number) = number {
            record(&order.vm, id, number).with_context(|| order.failure.clone())?;
        }
        Ok(order)
    }

    /// oned's record of the disk; a kernel has none.
    pub fn disk(&self) -> Option<&Record> {
        self.vm.disk(self.number?)
    }

    /// Its format in oned's words.
    pub fn format(&self) -> Option<&str> {
        self.disk().and_then(|disk| disk.format.trimmed())
    }

    /// The system datastore that the VM is in, by oned's last word.
    ///
    /// # Errors
    /// It is no number.
    pub fn system_datastore(&self) -> Result<u32> {
        let last = match self.vm.last_history() {
            Some(history) => history.ds_id.get().map_err(misuse)?,
            None => None,
        };
        Ok(last.unwrap_or(self.to.datastore))
    }

    /// Whether recovery snapshots will be taken of it.
    ///
    /// # Errors
    /// The frequency is no number.
    pub fn is_recoverable(&self) -> Result<bool> {
        match self.disk() {
            Some(disk) => Ok(disk.recovery_snapshot_freq.get().map_err(misuse)?.is_some_and(|seconds| seconds > 0)),
            None => Ok(false),
        }
    }

    /// What becomes of zeroes.
    pub fn sparse(&self) -> Sparse {
        if self.disk().is_some_and(|disk| disk.sparse.is_no()) { Sparse::Allocate } else { Sparse::Holes }
    }

    /// MiB to enlarge it to, where oned wants more than the image has.
    ///
    /// # Errors
    /// Sizes that are no numbers.
    pub fn grow(&self) -> Result<Option<u64>> {
        let Some(disk) = self.disk() else { return Ok(None) };
        let (size, original) = (disk.size.get().map_err(misuse)?, disk.original_size.get().map_err(misuse)?);
        Ok(size.zip(original).filter(|(size, original)| size > original).map(|(size, _)| size))
    }

    /// Refuses to make the disk smaller than the image, which has this many bytes.
    ///
    /// # Errors
    /// It would become smaller; its format is needed and unknown.
    pub fn check(&self, bytes: Option<u64>) -> Result<()> {
        let Some(mib) = self.grow()? else { return Ok(()) };
        if self.format().is_none() {
            bail!("{}: oned does not say the disk's FORMAT", self.failure);
        }
        match bytes {
            Some(bytes) if mib.saturating_mul(1 << 20) < bytes => bail!(
                "{}: the image has {} MiB, more than the {mib} MiB of the disk",
                self.failure,
                bytes.div_ceil(1 << 20)
            ),
            _ => Ok(()),
        }
    }

    /// What enlarges the file `path` of this format, if that is wanted.
    ///
    /// # Errors
    /// Sizes that are no numbers.
    pub fn resize(&self, path: PathBuf, format: &str) -> Result<Vec<Op>> {
        let growth = if self.sparse() == Sparse::Allocate { Growth::Allocate } else { Growth::Sparse };
        Ok(match self.grow()? {
            Some(mib) => vec![Op::Run(qemu_img::resize(&path, format, mib, growth)), Op::Sync { path }],
            None => Vec::new(),
        })
    }
}
