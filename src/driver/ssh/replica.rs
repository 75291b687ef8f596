//! `clone.replica` and `ln.replica`: a VM is given a copy of an image by way of a replica host near it, which keeps the
//! image for the next one; a disk whose host has failed is made anew from what the replica host has of it.
//!
//! Source: contract 02 §7.1.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::cache;
use super::delivery::{Delivery, Shape};
use super::order::Order;
use super::recovery::{self, Kept};
use crate::context::Cx;
use crate::driver::common::disk::Target;
use crate::driver::common::monitored;
use crate::driver::{Reply, TmRequest};
use crate::exec::host::Host;

/// See the module.
pub fn clone(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let order = Order::read(cx, request)?;
    let given = Some(request.text(4)).filter(|name| !name.is_empty());
    let datastore = order.system_datastore()?;
    let replica = match given {
        Some(name) => Some(name),
        None => recovery::replica_of(cx, datastore).with_context(|| order.failure.clone())?,
    };
    match replica {
        Some(replica) => serve(cx, request, &order, &replica),
        None => bail!("No REPLICA_HOST in datastore {datastore} template"),
    }
}

/// Does it by way of the host called `replica`.
///
/// # Errors
/// What went wrong, under the order's words.
pub fn serve(cx: &Cx<'_>, request: &TmRequest, order: &Order, replica: &str) -> Result<Reply> {
    // What is read.
    let failure = || order.failure.clone();
    let kept = Kept::of(cx, replica, order.id)?;
    let name = order.to.name.clone().unwrap_or_default();
    Target::lock(cx, &order.to)?;
    let questions = Target::questions(&order.to).into_iter().chain([monitored::question(&order.to)]);
    let answers = cx.query(&order.to.host, questions).with_context(failure)?;
    let (target, rest) = Target::read(&order.to, &answers).with_context(failure)?;
    let monitor = monitored::by_host(&order.to.datastore_dir(), rest.first().and_then(monitored::content));
    let say = |from: &std::path::Path| {
        cx.info(format!("Cloning {} via replica {replica} in {}", from.display(), request.text(1)));
    };
    let base = Delivery {
        order,
        target: &target,
        from: &kept.host,
        shape: Shape::Recovered { from: kept.layers(&name) },
        snapshots: &[],
        self_link: true,
        monitor,
        address: storage_address(cx, &order.to.host),
    };

    // What is decided and done.
    let has = kept.has(cx, &name).with_context(failure)?;
    if has.whole {
        say(&kept.dir.join(&name));
        base.run(cx)?;
        return Ok(Reply::Nothing);
    }
    let image = super::goods::Found::look(cx, &order.holder, &order.source, order.format()).with_context(failure)?;
    order.check(image.bytes())?;
    let goods = cache::bring(cx, &image, &kept.host, &order.failure)?;
    say(&goods.current);
    let current = (goods.current.as_path(), goods.format);
    let shape = if order.is_recoverable()? {
        kept.forget_on_failure(cx, &name, has);
        kept.put_base(cx, &name, (&kept.host, &goods.current))?;
        let bytes = goods.bytes.with_context(|| format!("{}: the image's size is unknown", order.failure))?;
        Shape::Recovery { base: current, bytes }
    } else {
        Shape::File { current }
    };
    Delivery { shape, snapshots: &goods.snapshots, ..base }.run(cx)?;
    Ok(Reply::Nothing)
}

/// Where a host wants replicas to be copied to: `REPLICA_STORAGE_IP` of its template. Without it, or where oned does not
/// tell, they go to its name.
fn storage_address(cx: &Cx<'_>, host: &Arc<dyn Host>) -> Option<IpAddr> {
    let pool = match cx.oned().host_pool() {
        Ok(pool) => pool,
        Err(error) => {
            cx.warn(format!("REPLICA_STORAGE_IP of {} is not known: {error:#}", host.name()));
            return None;
        }
    };
    let found = pool.hosts.iter().find(|one| one.name.trimmed() == Some(host.name()))?;
    let text = found.template.replica_storage_ip.trimmed()?;
    let address = text.parse().ok();
    if address.is_none() {
        cx.warn(format!("REPLICA_STORAGE_IP of {} is no address: {text}", host.name()));
    }
    address
}
