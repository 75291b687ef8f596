//! A directory of XML files that answers as oned would: `vm/<id>.xml`, `image/<id>.xml`, `datastore/<id>.xml`,
//! `host/<id>.xml`, `hostpool.xml`, `datastorepool.xml`, each as `onevm show -x` and its like print it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::{Cause, Object, Oned, OnedError};
use crate::payload::DEFAULT_LIMIT;

/// See the module.
#[derive(Clone, Debug)]
pub struct Dir {
    root: PathBuf,
}

impl Dir {
    /// Answers from this directory.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn file(&self, object: Object) -> PathBuf {
        self.root.join(match object {
            Object::Vm(id) => format!("vm/{id}.xml"),
            Object::Image(id) => format!("image/{id}.xml"),
            Object::Datastore(id) => format!("datastore/{id}.xml"),
            Object::Host(id) => format!("host/{id}.xml"),
            Object::HostPool => "hostpool.xml".to_owned(),
            Object::DatastorePool => "datastorepool.xml".to_owned(),
        })
    }
}

impl Oned for Dir {
    fn xml(&self, object: Object) -> Result<String, OnedError> {
        read(&self.file(object)).map_err(|cause| OnedError::new(self.place(), object, cause))
    }

    fn place(&self) -> String {
        format!("the directory {}", self.root.display())
    }
}

fn read(path: &Path) -> Result<String, Cause> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Cause::NoFile(path.to_owned()),
        _ => Cause::File { path: path.to_owned(), error },
    };
    let mut xml = String::new();
    let limit = u64::try_from(DEFAULT_LIMIT).unwrap_or(u64::MAX);
    let got = File::open(path).and_then(|file| file.take(limit + 1).read_to_string(&mut xml)).map_err(failed)?;
    if got > DEFAULT_LIMIT { Err(Cause::TooLarge { limit: DEFAULT_LIMIT }) } else { Ok(xml) }
}
