//! The page `docs/actions.md`, made from the tables of actions and drivers.

use std::fmt::Write as _;

use crate::action::{ACTIONS, Kind};
use crate::driver::{self, DRIVERS, PROGRAMS};

/// Upstream's entries: kind, mad, action and behaviour, one a line (contract `entry-points.tsv`).
const UPSTREAM: &str = include_str!("../tests/data/entry-points.tsv");

/// Upstream's entries as `<kind>/<mad>/<entry>`; a program beside the drivers has no mad.
pub fn upstream_entries() -> impl Iterator<Item = String> {
    UPSTREAM.lines().skip(1).filter_map(|line| {
        let mut cells = line.split('\t');
        let (kind, mad, entry) = (cells.next()?, cells.next()?, cells.next()?);
        Some(if mad.is_empty() { format!("{kind}/{entry}") } else { format!("{kind}/{mad}/{entry}") })
    })
}

/// The whole page.
#[must_use]
pub fn page() -> String {
    let served: Vec<String> = driver::links().collect();
    let all: Vec<String> = upstream_entries().collect();
    let count = all.iter().filter(|entry| served.contains(entry)).count();
    let mut out = String::from(
        "# Actions\n\nMade by `onestore actions --markdown`; a test fails when it is out of date.\n\n\
         ## Families served\n\n| family | entries | state | what it is |\n|---|---|---|---|\n",
    );
    for driver in DRIVERS {
        for mad in driver.mads {
            let state = if driver.complete { "complete" } else { "partial" };
            let _ =
                writeln!(out, "| `{}/{mad}` | {} | {state} | {} |", driver.kind, driver.entries.len(), driver.about);
        }
    }
    for program in PROGRAMS {
        let _ = writeln!(out, "| `{}` | 1 | complete | {} |", program.path, program.about);
    }
    let _ = writeln!(out, "\n{count} of upstream's {} entries are served.", all.len());
    for (kind, title) in [(Kind::Datastore, "Datastore actions"), (Kind::Tm, "Transfer manager actions")] {
        let _ = writeln!(
            out,
            "\n## {title}\n\n| action | arguments | standard input | reply | what it does | served by |\n|---|---|---|---|---|---|"
        );
        for action in ACTIONS.iter().filter(|a| a.kind == kind) {
            let drivers = DRIVERS.iter().filter(|d| d.kind == kind);
            let by: Vec<String> = drivers
                .flat_map(|d| d.entries.iter().filter(|e| e.name == action.name).map(move |e| (d, e)))
                .flat_map(|(d, e)| d.mads.iter().map(move |mad| format!("{mad} ({})", e.serve.word())))
                .collect();
            let name = match action.alias {
                Some(alias) => format!("`{}`, `{alias}`", action.name),
                None => format!("`{}`", action.name),
            };
            let _ = writeln!(
                out,
                "| {name} | {} | {} | {} | {} | {} |",
                code(&action.args.join(" ")),
                action.stdin.word(),
                code(action.reply),
                action.what,
                if by.is_empty() { "–".to_owned() } else { by.join(", ") }
            );
        }
    }
    let _ = writeln!(out, "\n## Entries of upstream that are not served yet\n\nThese stay upstream's scripts.\n");
    let mut group = String::new();
    for entry in all.iter().filter(|entry| !served.contains(entry)) {
        let (family, name) = entry.rsplit_once('/').unwrap_or_default();
        if family == group {
            let _ = write!(out, " `{name}`");
        } else {
            let gap = if group.is_empty() { "" } else { "\n" };
            let _ = write!(out, "{gap}- {family}: `{name}`");
            family.clone_into(&mut group);
        }
    }
    out.push('\n');
    out
}

fn code(text: &str) -> String {
    if text.is_empty() { "–".to_owned() } else { format!("`{}`", text.replace('|', "\\|")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_family_serves_every_entry_that_upstream_has() {
        let served: Vec<String> = driver::links().collect();
        for driver in DRIVERS.iter().filter(|d| d.complete) {
            for mad in driver.mads {
                let prefix = format!("{}/{mad}/", driver.kind);
                let left = |e: &str| e.strip_prefix(&prefix).is_some_and(|name| driver.left.contains(&name));
                let missing: Vec<String> =
                    upstream_entries().filter(|e| e.starts_with(&prefix) && !served.contains(e) && !left(e)).collect();
                assert!(missing.is_empty(), "{missing:?}");
            }
        }
    }

    #[test]
    fn we_make_no_link_that_upstream_does_not_know() {
        // An additional `clone.qcow2` would change what the driver process calls (contract 10).
        let upstream: Vec<String> = upstream_entries().collect();
        let aliases = ACTIONS.iter().filter_map(|a| a.alias).collect::<Vec<_>>();
        for link in driver::links() {
            let alias = aliases.iter().any(|a| link.ends_with(&format!("/{a}")));
            assert!(alias || upstream.contains(&link), "{link}");
        }
    }

    #[test]
    fn the_page_in_docs_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/actions.md");
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stored == page(), "docs/actions.md is out of date: onestore actions --markdown > docs/actions.md");
    }
}
