//! Whether two hosts see one directory, under one name or two: then it is neither copied onto itself nor removed.
//!
//! Device and inode numbers say nothing across hosts. A file that one host makes in the directory is looked for by the
//! other; its name is new, so that no host remembers from before that there is nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::Op;
use crate::exec::staging::Owner;
use crate::exec::step::Step;

/// A directory of a host.
pub type Place<'a> = (&'a Arc<dyn Host>, &'a Path);

/// Whether what `a` names, a directory that exists, is what `b` names.
///
/// # Errors
/// A host cannot be reached; nothing can be made in `a`.
pub fn is_one(cx: &Cx<'_>, a: Place<'_>, b: Place<'_>) -> Result<bool> {
    let owner = Owner::me().context("Cannot tell this process from others")?;
    let name = format!(".onestore-probe-{}", owner.tag());
    let remove = Op::Remove { path: a.1.join(&name), tree: false, must_exist: false };
    let make = [Op::Claim { path: a.1.join(&name) }];
    let what = "Make a file by which the other host can tell the directory";
    cx.apply(Step::new(a.0, what, make).undo([remove.clone()]))?;
    let seen = cx.ask(b.0, Op::Stat { path: b.1.join(&name), follow: false })?;
    cx.apply(Step::new(a.0, "Remove it", [remove]))?;
    Ok(seen.stat().is_some())
}
