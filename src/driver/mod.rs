//! The storage families, one file or folder each, and the table of all of them.
//!
//! A driver reads like its contract page: what is read, what is decided, what is done. It talks to the world through
//! [`Cx`] alone. Adding a family: `docs/adding-a-backend.md`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::action::{Action, Kind};
use crate::context::Cx;
use crate::payload::{ActionData, FieldError};
use crate::report::Misuse;

mod common;
pub mod dummy;
pub mod fs;
pub mod local;
pub mod qcow2;
pub mod ssh;

#[cfg(any(test, fuzzing))]
pub use common::fuzz::places;
pub use common::{journey, live};

/// Every storage family, in the order in which tables show them.
pub static DRIVERS: &[&Driver] =
    &[&fs::DRIVER, &qcow2::DRIVER, &local::DRIVER, &ssh::DRIVER, &dummy::DATASTORE, &dummy::TM];

/// Programs that others call by their path beside the drivers: no action, no request.
pub static PROGRAMS: &[Program] = &[Program {
    path: "datastore/downloader.sh",
    about: "Fetches an image for markets, backups and the drivers of others",
    run: crate::downloader::run,
}];

/// A program in a folder of `remotes/` itself.
#[derive(Debug)]
pub struct Program {
    /// Where it stands, below `remotes/`.
    pub path: &'static str,
    /// What it is, in one sentence.
    pub about: &'static str,
    /// Serves a call: its arguments, and the `remotes` folder of the called path.
    pub run: fn(Vec<OsString>, &Path) -> ExitCode,
}

impl Program {
    /// The folder, which is its family's name.
    #[must_use]
    pub fn family(&self) -> &'static str {
        self.path.rsplit_once('/').map_or("", |(family, _)| family)
    }
}

/// Every link as `<kind>/<mad>/<entry>`, and the programs.
pub fn links() -> impl Iterator<Item = String> {
    DRIVERS.iter().flat_map(|driver| driver.links()).chain(PROGRAMS.iter().map(|program| program.path.to_owned()))
}

/// One storage family of one kind.
#[derive(Debug)]
pub struct Driver {
    /// Datastore or transfer manager.
    pub kind: Kind,
    /// Names under which it is called; `qcow2` and `shared` are one driver.
    pub mads: &'static [&'static str],
    /// What it is, in one sentence.
    pub about: &'static str,
    /// The entries it serves, which is to say the links that are made for it.
    pub entries: &'static [Entry],
    /// Entries that stay upstream's scripts also when the family is complete: they go on working beside ours.
    pub left: &'static [&'static str],
    /// Whether it serves every other entry that upstream has. A family that is not complete is never switched over.
    pub complete: bool,
}

/// One entry of a family: `clone`, `clone.ssh`.
#[derive(Debug)]
pub struct Entry {
    /// Name of the action, with the suffix of a mixed-mode entry.
    pub name: &'static str,
    /// What serves it.
    pub serve: Serve,
}

/// What serves an entry.
#[derive(Clone, Copy)]
pub enum Serve {
    /// Reads the `DS_DRIVER_ACTION_DATA` document and does something.
    Datastore(fn(&Cx<'_>, &Request) -> Result<Reply>),
    /// Takes a transfer manager's arguments and does something.
    Tm(fn(&Cx<'_>, &TmRequest) -> Result<Reply>),
    /// Answers this, whatever it is asked; standard input is read and ignored.
    Fixed(&'static str),
    /// Says `<action>: Operation not supported` and fails.
    NotSupported,
}

impl std::fmt::Debug for Serve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl Serve {
    /// The word used in tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Datastore(_) | Self::Tm(_) => "own",
            Self::Fixed("") => "no-op",
            Self::Fixed(_) => "fixed answer",
            Self::NotSupported => "not supported",
        }
    }
}

/// A request to a datastore driver: the first argument and the document.
#[derive(Debug)]
pub struct Request {
    /// The image, datastore or request number (`argv[1]`); what it counts depends on the action.
    pub id: u32,
    /// The document.
    pub data: ActionData,
}

/// A request to a transfer manager: how it was called and with what.
#[derive(Debug)]
pub struct TmRequest {
    /// The name it was called by (`shared`).
    pub mad: String,
    /// The action, without suffix.
    pub action: &'static str,
    /// The arguments; their number is right.
    pub args: Vec<std::ffi::OsString>,
    /// The VM as XML, for the actions that get it on standard input.
    pub vm: Option<String>,
}

/// An error of the payload is a call that was wrong in itself.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn misuse(error: FieldError) -> Misuse {
    Misuse(error.to_string())
}

/// What a driver answers. The type, not the driver, knows how stdout has to look (contract 01 §6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing is printed.
    Nothing,
    /// `cp`: where the image is and its format.
    Registered {
        /// What oned stores as SOURCE.
        source: String,
        /// The format (`raw`, `qcow2`).
        format: String,
    },
    /// `clone`: as above; without a format oned keeps the origin's.
    Cloned {
        /// What oned stores as SOURCE.
        source: String,
        /// The format, if it is known to differ.
        format: Option<String>,
    },
    /// `mkfs`: where the image is.
    Created {
        /// What oned stores as SOURCE.
        source: String,
    },
    /// `stat`: size in MiB, rounded up.
    Size {
        /// The size.
        mib: u64,
    },
    /// `monitor_ds`: one line for each VM.
    Lines(Vec<String>),
    /// `monitor`: space in MiB.
    Usage(crate::exec::op::Space),
    /// `export`: what a marketplace needs to fetch the image.
    Exported {
        /// Path or `ssh://HOST:PATH`.
        source: String,
        /// MD5 of the file, hexadecimal.
        md5: String,
        /// Size in MiB, as oned knows it.
        size_mib: String,
        /// The format.
        format: String,
    },
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Registered { source, format } | Self::Cloned { source, format: Some(format) } => {
                writeln!(f, "{source} {format}")
            }
            Self::Created { source } | Self::Cloned { source, format: None } => writeln!(f, "{source}"),
            Self::Size { mib } => writeln!(f, "{mib}"),
            Self::Lines(lines) => lines.iter().try_for_each(|line| writeln!(f, "{line}")),
            Self::Usage(space) => {
                writeln!(f, "USED_MB={}\nFREE_MB={}\nTOTAL_MB={}", space.used_mib, space.free_mib, space.total_mib)
            }
            Self::Exported { source, md5, size_mib, format } => writeln!(
                f,
                "<IMPORT_INFO><IMPORT_SOURCE>{}</IMPORT_SOURCE><MD5>{}</MD5><SIZE>{}</SIZE><FORMAT>{}</FORMAT>\
                 <DISPOSE>NO</DISPOSE></IMPORT_INFO>",
                cdata(source),
                cdata(md5),
                cdata(size_mib),
                cdata(format)
            ),
        }
    }
}

/// Text as a CDATA section; its end mark inside the text is split over two sections.
fn cdata(text: &str) -> String {
    format!("<![CDATA[{}]]>", text.replace("]]>", "]]]]><![CDATA[>"))
}

impl Driver {
    /// The driver called `mad` of a kind.
    #[must_use]
    pub fn find(kind: Kind, mad: &str) -> Option<&'static Self> {
        DRIVERS.iter().find(|d| d.kind == kind && d.mads.contains(&mad)).copied()
    }

    /// The entry for an action called with a suffix or without; a suffix that has no entry of its own falls back to the
    /// plain action, as the driver process does (contract 01 §6.2).
    #[must_use]
    pub fn entry(&self, action: &str, system: Option<&str>) -> Option<&'static Entry> {
        let exact = system.map(|s| format!("{action}.{s}"));
        let find = |name: &str| self.entries.iter().find(|e| e.name == name);
        exact.as_deref().and_then(find).or_else(|| find(action))
    }

    /// Every link of the family as `<kind>/<mad>/<entry>`, aliases included.
    pub fn links(&self) -> impl Iterator<Item = String> + '_ {
        self.mads.iter().flat_map(move |mad| {
            self.entries.iter().flat_map(move |entry| {
                let alias = Action::find(self.kind, entry.name).and_then(|a| a.alias);
                let names = std::iter::once(entry.name).chain(alias);
                names.map(move |name| format!("{}/{mad}/{name}", self.kind))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_an_action_and_stands_once() {
        for driver in DRIVERS {
            for entry in driver.entries {
                let action = entry.name.split('.').next().unwrap_or_default();
                assert!(Action::find(driver.kind, action).is_some(), "{}", entry.name);
                assert_eq!(driver.entries.iter().filter(|e| e.name == entry.name).count(), 1, "{}", entry.name);
            }
        }
    }

    #[test]
    fn every_file_of_this_folder_is_in_the_table() {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/driver");
        let table = std::fs::read_to_string(here.join("mod.rs")).expect("this file");
        let table = table.split("pub static DRIVERS").nth(1).and_then(|t| t.split(';').next()).expect("the table");
        for entry in std::fs::read_dir(here).expect("the folder") {
            let name = entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned();
            // What several families share is none.
            if name != "mod" && name != "common" {
                assert!(table.contains(&format!("&{name}::")), "{name} is not in DRIVERS");
            }
        }
    }

    #[test]
    fn a_suffix_without_an_entry_falls_back() {
        let dummy = Driver::find(Kind::Tm, "dummy").expect("dummy");
        assert_eq!(dummy.entry("clone", Some("ssh")).map(|e| e.name), Some("clone"));
        assert!(dummy.entry("nonsense", None).is_none());
    }

    #[test]
    fn replies_look_as_oned_expects() {
        let reply =
            Reply::Exported { source: "/a]]>b".into(), md5: "0".into(), size_mib: "1".into(), format: "raw".into() };
        assert!(reply.to_string().contains("<![CDATA[/a]]]]><![CDATA[>b]]>"));
        let reply = Reply::Cloned { source: "/a".into(), format: None };
        assert_eq!(reply.to_string(), "/a\n");
    }
}
