//! How the files of an image get into a VM's directory: under staging names, and into their places by renames when all of
//! them are there.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::order::Order;
use crate::context::Cx;
use crate::driver::common::disk::Target;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::exec::host::Host;
use crate::exec::op::Op;
use crate::tool::qemu_img::{self, CreateOptions};

/// What the disk looks like in the end (contract 02 §1).
pub enum Shape<'a> {
    /// One file, with snapshots beside it.
    File {
        /// The file on the host that it comes from, and its format.
        current: (&'a Path, &'a str),
    },
    /// The image as `base`, and an empty layer on it, `base.1`, that the VM writes to: recovery snapshots are copies of that.
    Recovery {
        /// The file on the host that it comes from, and its format.
        base: (&'a Path, &'a str),
        /// Bytes that a guest sees of it.
        bytes: u64,
    },
    /// The same two as they were saved.
    Recovered {
        /// Directory that holds them.
        from: PathBuf,
    },
}

/// What is delivered.
pub struct Delivery<'a> {
    /// What was asked for.
    pub order: &'a Order,
    /// Where it goes.
    pub target: &'a Target,
    /// The host that has the files.
    pub from: &'a Arc<dyn Host>,
    /// What the disk looks like.
    pub shape: Shape<'a>,
    /// Snapshots on the host that they come from.
    pub snapshots: &'a [(u32, PathBuf)],
    /// Whether the directory of snapshots has a link to itself.
    pub self_link: bool,
    /// What has the host tell the disk's size.
    pub monitor: Option<Op>,
    /// Where its host is reached from there, if not at its name.
    pub address: Option<IpAddr>,
}

/// Name of the layer that the VM writes to.
const TOP: &str = "base.1";

impl Delivery<'_> {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, under the order's words; then all is as it was.
    pub fn run(self, cx: &Cx<'_>) -> Result<()> {
        let (order, target) = (self.order, self.target);
        let layers = target.staged_layers();
        let staged = target.staged_file();
        let load = |from: &Path, to: PathBuf| Load { from: from.to_owned(), to };
        let mut loads = match &self.shape {
            Shape::File { current } => vec![load(current.0, staged.clone())],
            Shape::Recovery { base, .. } => vec![load(base.0, layers.join("base"))],
            Shape::Recovered { from } => {
                ["base", TOP].iter().map(|name| load(&from.join(name), layers.join(name))).collect()
            }
        };
        loads.extend(self.snapshots.iter().map(|(number, path)| load(path, layers.join(number.to_string()))));
        let is_file = matches!(self.shape, Shape::File { .. });
        let has_layers = !is_file || !self.snapshots.is_empty();

        // Room first: the files come one by one.
        let mut ops = target.begin();
        if has_layers {
            ops.push(Op::MakeDir { path: layers.clone() });
            if self.self_link {
                let name = target.snapshots().file_name().map(ToOwned::to_owned).unwrap_or_default();
                ops.push(Op::Symlink { target: ".".into(), link: layers.join(name) });
            }
        }
        let room = crate::exec::step::Step::new(&target.folder.host, "Make room for the disk", ops);
        cx.apply(room.undo(target.undo()).or_say(&order.failure))?;
        let journey =
            Journey { from: self.from, to: &target.folder.host, sparse: order.sparse(), address: self.address };
        carry(cx, &journey, &loads, &order.failure)?;

        let mut ops = Vec::new();
        match self.shape {
            Shape::File { current } => {
                ops.extend(order.resize(staged, qemu_img::written(order.format().or(Some(current.1))))?);
                ops.extend(target.put_file());
                if has_layers {
                    ops.push(Op::Rename { from: layers, to: target.snapshots() });
                }
            }
            Shape::Recovery { base, bytes } => {
                let top = layers.join(TOP);
                let backing = Path::new(target.snapshots().file_name().unwrap_or_default()).join("base");
                let create = qemu_img::create_overlay_with(&top, &backing, base.1, bytes, &CreateOptions::default());
                ops.extend([Op::Run(create), Op::Sync { path: top.clone() }]);
                ops.extend(order.resize(top, "qcow2")?);
                ops.extend(target.put_layers(TOP));
            }
            Shape::Recovered { .. } => ops.extend(target.put_layers(TOP)),
        }
        ops.extend(self.monitor);
        cx.apply(target.step("All of it is there: put it in its place", ops).or_say(&order.failure))?;
        Ok(())
    }
}
