//! A file of one host as a stream for another: what a host sends runs in a thread and comes out of a reader.

use std::io::{self, PipeReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::control::Control;
use super::host::{Host, ScriptError};
use super::interpret::Io;
use super::op::{Op, Script};

/// Opens the file `path` of `host` as a stream. Its end is only reached when the host said that all was sent.
///
/// # Errors
/// When no pipe or thread can be made. What goes wrong at the host is the error of the last read.
pub fn read(host: &Arc<dyn Host>, path: &Path, control: &Control) -> io::Result<Box<dyn Read + Send>> {
    let (reader, mut writer) = io::pipe()?;
    let script = Script::from(Op::Send { path: path.to_owned() });
    let (host, control) = (Arc::clone(host), control.clone());
    let sender = std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
        host.run(&script, Io { output: Some(&mut writer), ..Io::default() }, &control).map(drop)
    })?;
    Ok(Box::new(Relay { reader, sender: Some(sender) }))
}

struct Relay {
    reader: PipeReader,
    sender: Option<JoinHandle<Result<(), ScriptError>>>,
}

impl Read for Relay {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buf)?;
        if count == 0
            && !buf.is_empty()
            && let Some(sender) = self.sender.take()
        {
            sender.join().map_err(|_| io::Error::other("The sending thread panicked"))?.map_err(io::Error::other)?;
        }
        Ok(count)
    }
}
