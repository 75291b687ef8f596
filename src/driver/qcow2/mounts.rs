//! The first look at a host: the image, the place of the disk, and whether the datastores are mounted there.
//!
//! One round trip; another one where a datastore had to be mounted first, and the image can be seen only then.

use anyhow::{Result, bail};

use super::clone::Wanted;
use crate::context::Cx;
use crate::driver::common::args::VmPlace;
use crate::driver::common::disk::Target;
use crate::driver::common::image::{self, Image};
use crate::driver::common::layers::Layer;
use crate::driver::common::nfs_host::{self, Plan};
use crate::exec::op::{Op, Value};
use crate::image::Format;
use crate::location::ImageFiles;
use crate::payload::Datastore;

/// The datastores of which the host needs to have mounted those that ask for it.
pub struct Mounts {
    datastores: Vec<Datastore>,
}

impl Mounts {
    /// Asks oned about the image datastore, and about the system datastore where it is shared.
    ///
    /// # Errors
    /// oned does not answer.
    pub fn wanted(cx: &Cx<'_>, to: &VmPlace, image: u32, system: Option<u32>) -> Result<Self> {
        let failure = || format!("Error setting up NFS mounts on {}", to.host.name());
        let ids = std::iter::once(image).chain(system.filter(|id| *id != image));
        let datastores = ids.map(|id| {
            let datastore = cx.oned().datastore(id)?;
            // The path is made of the id that was asked for, whatever the answer says.
            Ok(datastore)
        });
        let datastores: Result<Vec<Datastore>> = datastores.collect();
        Ok(Self { datastores: anyhow::Context::with_context(datastores, failure)? })
    }
}

/// What the host said.
pub struct Looked {
    /// The place of the disk.
    pub target: Target,
    /// The image.
    pub image: Image,
    /// `.monitor` of the system datastore.
    pub monitor: Option<Vec<u8>>,
    /// `explain` has planned a mount: nothing can be said of the image yet.
    pub is_planned: bool,
}

impl Looked {
    /// The file that holds the image's current state.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn current(&self, cx: &Cx<'_>, to: &VmPlace, wanted: &Wanted<'_>) -> Result<Layer> {
        if self.is_planned {
            let mut layer = image::raw(self.image.files.image.clone(), wanted.original.unwrap_or(0));
            layer.format = Format::Qcow2;
            return Ok(layer);
        }
        // Not what oned says: a qcow2 disk may stand on a raw image.
        self.image.current(cx, &to.host, None)
    }
}

/// Looks, mounts what has to be mounted, and looks again then.
///
/// # Errors
/// The host cannot be reached; a mount fails.
pub fn look(cx: &Cx<'_>, mounts: &Mounts, to: &VmPlace, files: ImageFiles) -> Result<Looked> {
    let ask = |files: &ImageFiles| {
        let monitor = Op::Head { path: to.datastore_dir().join(".monitor"), len: 64 };
        let questions = Target::questions(to).into_iter().chain(Image::questions(files));
        cx.query(&to.host, questions.chain([monitor]).chain(nfs_host::questions()))
    };
    let read = |answers: &[Value], files: ImageFiles, is_planned: bool| -> Result<Looked> {
        let (target, rest) = Target::read(to, answers)?;
        let Some((image, rest)) = rest.split_first_chunk::<{ image::QUESTIONS }>() else {
            bail!("The host did not answer all questions");
        };
        let monitor = match rest.first() {
            Some(Value::Bytes(text)) => Some(text.clone()),
            _ => None,
        };
        Ok(Looked { target, image: Image::read(files, image), monitor, is_planned })
    };
    let answers = ask(&files)?;
    let found = answers.get(answers.len().saturating_sub(nfs_host::QUESTIONS)..).unwrap_or_default();
    match nfs_host::mount(cx, &to.host, &to.root, &mounts.datastores, found)? {
        Plan::Nothing => read(&answers, files, false),
        Plan::Planned => read(&answers, files, true),
        Plan::Mounted => read(&ask(&files)?, files, false),
    }
}
