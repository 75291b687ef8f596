//! Bridges: hosts that act for a datastore (`BRIDGE_LIST`).

use std::sync::Arc;

use anyhow::{Result, bail};

use crate::context::Cx;
use crate::exec::host::{ErrorKind, Host};
use crate::exec::op::{Op, Value};

/// The first of the hosts that can be reached, and what it answered to the first questions.
///
/// # Errors
/// None can be reached, or one that can does not answer.
pub fn reach(
    cx: &Cx<'_>,
    names: Vec<&str>,
    questions: &dyn Fn() -> Vec<Op>,
) -> Result<(Arc<dyn Host>, String, Vec<Value>)> {
    let mut unreachable = None;
    for name in names {
        let host = cx.host(name)?;
        match cx.query(&host, questions()) {
            Ok(answers) => return Ok((host, name.to_owned(), answers)),
            Err(e) if e.kind == ErrorKind::Unreachable => {
                cx.warn(format!("Bridge {name} is left out: {e}"));
                unreachable.get_or_insert(e);
            }
            Err(e) => return Err(e.into()),
        }
    }
    match unreachable {
        Some(first) => Err(anyhow::Error::new(first).context("No host of BRIDGE_LIST can be reached")),
        None => bail!("BRIDGE_LIST is empty"),
    }
}

/// The bridges that oned does not hold for off, in error or disabled. When oned cannot be asked, all of them.
pub fn bridges_on<'b>(cx: &Cx<'_>, bridges: &[&'b str]) -> Result<Vec<&'b str>> {
    let pool = match cx.oned().host_pool() {
        Ok(pool) => pool,
        Err(e) => {
            cx.warn(format!("Cannot tell which bridges are off, all are taken: {e}"));
            return Ok(bridges.to_vec());
        }
    };
    let usable = |name: &str| {
        pool.hosts.iter().find(|h| h.name.trimmed() == Some(name)).is_none_or(crate::payload::Host::is_usable)
    };
    let on: Vec<&str> = bridges.iter().copied().filter(|name| usable(name)).collect();
    if on.is_empty() {
        bail!("All hosts from 'BRIDGE_LIST' are offline, error or disabled");
    }
    Ok(on)
}

/// The list, beginning with the one that `id` falls on.
pub fn in_turn(mut list: Vec<&str>, id: u32) -> Vec<&str> {
    let length = list.len().max(1);
    list.rotate_left(usize::try_from(id).unwrap_or_default() % length);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_chooses_the_bridge_and_the_others_follow() {
        assert_eq!(in_turn(vec!["a", "b", "c"], 4), ["b", "c", "a"]);
        assert!(in_turn(vec![], 4).is_empty());
    }
}
