//! `clone` and `ln`: a VM is given a copy of an image on its host. Which of the two it is makes no difference: a persistent
//! one is copied back in the end (`mvds`).
//!
//! Source: contract 02 §7.

use anyhow::{Context as _, Result};

use super::delivery::{Delivery, Shape};
use super::goods::Found;
use super::order::Order;
use super::{recovery, replica};
use crate::context::Cx;
use crate::driver::common::disk::Target;
use crate::driver::common::monitored;
use crate::driver::{Reply, TmRequest};

/// See the module.
pub fn clone(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let order = Order::read(cx, request)?;
    let failure = || order.failure.clone();
    let replica = recovery::replica_of(cx, order.system_datastore()?).with_context(failure)?;
    if let Some(replica) = replica {
        return replica::serve(cx, request, &order, &replica);
    }
    Target::lock(cx, &order.to)?;
    let image = Found::look(cx, &order.holder, &order.source, order.format()).with_context(failure)?;
    let questions = Target::questions(&order.to).into_iter().chain([monitored::question(&order.to)]);
    let answers = cx.query(&order.to.host, questions).with_context(failure)?;
    let (target, rest) = Target::read(&order.to, &answers).with_context(failure)?;
    let monitor = monitored::by_host(&order.to.datastore_dir(), rest.first().and_then(monitored::content));

    // What is decided.
    order.check(image.bytes())?;

    // What is done.
    cx.info(format!("Cloning {} in {}", request.text(0), order.to.path().display()));
    let goods = image.goods(cx, &order.failure)?;
    let delivery = Delivery {
        order: &order,
        target: &target,
        from: &goods.host,
        shape: Shape::File { current: (&goods.current, goods.format) },
        snapshots: &goods.snapshots,
        self_link: false,
        monitor,
        address: None,
    };
    delivery.run(cx)?;
    Ok(Reply::Nothing)
}
