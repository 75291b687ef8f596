//! A disk that remembers every write and every flush: one file of a FUSE file system, for a loop device.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

/// Name of the file.
pub const NAME: &str = "disk";

const TTL: Duration = Duration::from_secs(5000);
const FILE: INodeNo = INodeNo(2);

/// What the file system above asked for.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes at a place. They may be in the disk's memory only.
    Write(u64, Vec<u8>),
    /// Everything before it is on the disk.
    Flush,
}

/// The disk's content and what was done to it since recording began.
#[derive(Default)]
pub struct Record {
    data: Vec<u8>,
    events: Option<Vec<Event>>,
}

/// A mounted disk; it is unmounted when this is dropped.
pub struct Disk {
    record: Arc<Mutex<Record>>,
    _session: BackgroundSession,
}

impl Disk {
    /// Mounts it at `at`, with this content.
    ///
    /// # Errors
    /// FUSE is not there, or we are not root.
    pub fn mount(at: &Path, data: Vec<u8>) -> Result<Self> {
        let record = Arc::new(Mutex::new(Record { data, events: None }));
        let files = Files { record: Arc::clone(&record) };
        let session = fuser::spawn_mount(files, at, &fuser::Config::default());
        Ok(Self { record, _session: session.context("Cannot mount a FUSE file system")? })
    }

    /// Begins to record; gives the content of this moment.
    pub fn begin(&self) -> Vec<u8> {
        let mut record = lock(&self.record);
        record.events = Some(Vec::new());
        record.data.clone()
    }

    /// Number of events so far.
    pub fn events(&self) -> usize {
        lock(&self.record).events.as_ref().map_or(0, Vec::len)
    }

    /// Ends the recording, and gives what happened.
    pub fn end(&self) -> Vec<Event> {
        lock(&self.record).events.take().unwrap_or_default()
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Files {
    record: Arc<Mutex<Record>>,
}

impl Files {
    fn attributes(&self, of: INodeNo) -> FileAttr {
        let size = if of == FILE { lock(&self.record).data.len() as u64 } else { 0 };
        FileAttr {
            ino: of,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if of == FILE { FileType::RegularFile } else { FileType::Directory },
            perm: if of == FILE { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

/// Bytes `offset..offset + len` of a slice, as far as there are.
fn range(whole: usize, offset: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap_or(whole).min(whole);
    start..start.saturating_add(len).min(whole)
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let record = lock(&self.record);
        reply.data(&record.data[range(record.data.len(), offset, size as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut record = lock(&self.record);
        let range = range(record.data.len(), offset, data.len());
        let data = &data[..range.len()];
        record.data[range].copy_from_slice(data);
        if let Some(events) = &mut record.events {
            events.push(Event::Write(offset, data.to_vec()));
        }
        reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Some(events) = &mut lock(&self.record).events {
            events.push(Event::Flush);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
