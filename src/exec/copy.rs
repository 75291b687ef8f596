//! Moves the bytes of disk images between files without touching what is not there: reflinks, holes, blocks of zeroes.
//!
//! Nothing here syncs, names or removes a file: the caller stages, syncs and renames. Buffers stay at [`BUFFER`] bytes
//! whatever the size of the image, and every loop asks [`Control`] whether it has to stop.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, fstatfs, ioctl_ficlone, seek};
use rustix::io::{Errno, retry_on_intr};

use super::ahead::{Ahead, on_ext4};
use super::holes::{Extents, is_zero, runs};
use super::writeback::WriteBack;
use crate::exec::control::Control;
use crate::exec::op::Sparse;

/// Bytes that are moved at a time: 1 MiB.
pub const BUFFER: usize = 1 << 20;

/// Granularity in which zeroes become holes: 4 KiB, the block size of every file system in question.
pub const BLOCK: usize = 4096;

/// The most that one `copy_file_range` is asked for, so that a cancel is noticed: 16 MiB.
const RANGE: u64 = 16 << 20;

static ZEROES: [u8; BUFFER] = [0; BUFFER];

/// What [`copy_file`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Apparent size of the copy in bytes.
    pub size: u64,
    /// Bytes that were really written; 0 for a reflink.
    pub written: u64,
    /// Whether the copy shares its blocks with the source (`ioctl_ficlone(2)`).
    pub reflinked: bool,
}

/// Makes the content of `to` that of `from`: a reflink where the file system can, else data extents only.
///
/// `from` is a regular file or a block device; its file offset is moved. What `to` held before is gone. With
/// [`Sparse::Holes`] blocks of zeroes are left out; with [`Sparse::Allocate`] every block of `to` is allocated, and
/// nothing is shared with the source. A target that is no regular file gets every byte written, because what it held
/// before cannot be dropped.
///
/// On network file systems whose server can copy by itself (NFS 4.2, SMB, Ceph) data extents are moved by
/// `copy_file_range(2)` and not looked into: reading them for zeroes would pull and push all of them over the network.
///
/// # Errors
/// What the system answers; [`io::ErrorKind::UnexpectedEof`] where the source becomes shorter meanwhile;
/// [`io::ErrorKind::InvalidInput`] where both are the same file or the source is of another kind; [`io::ErrorKind::Other`]
/// with [`crate::exec::control::Stopped`] inside when it had to stop. `to` then holds a part.
pub fn copy_file(from: &File, to: &File, sparse: Sparse, control: &Control) -> io::Result<Copied> {
    control.check().map_err(io::Error::other)?;
    let source = from.metadata()?;
    let target = to.metadata()?;
    if (source.dev(), source.ino()) == (target.dev(), target.ino()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "Source and target are the same file"));
    }
    let size = if source.is_file() {
        source.len()
    } else if source.file_type().is_block_device() {
        seek(from, SeekFrom::End(0))?
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "Source is neither a regular file nor a block device"));
    };
    if !target.is_file() {
        let mut job = Job { from, to, control, gaps: Gaps::Write, written: 0, back: None, ahead: Ahead::never() };
        job.extents(size, Mover::Buffer)?;
        return Ok(Copied { size, written: job.written, reflinked: false });
    }

    to.set_len(0)?;
    if sparse == Sparse::Holes && source.is_file() && ioctl_ficlone(to, from).is_ok() {
        return Ok(Copied { size, written: 0, reflinked: true });
    }
    to.set_len(size)?;
    let gaps = match sparse {
        Sparse::Holes => Gaps::Hole,
        // Allocated but unwritten extents read as zeroes, so that holes cost no writing.
        Sparse::Allocate if size == 0 => Gaps::Allocated,
        Sparse::Allocate => match retry_on_intr(|| fallocate(to, FallocateFlags::empty(), 0, size)) {
            Ok(()) => Gaps::Allocated,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Gaps::Write,
            Err(error) => return Err(error.into()),
        },
    };
    // The source is read once, from front to end. That this is only advice makes a failure unimportant.
    let _ = fadvise(from, 0, None, Advice::Sequential);
    let ahead = if gaps == Gaps::Hole && on_ext4(to) { Ahead::new() } else { Ahead::never() };
    let mut job = Job { from, to, control, gaps, written: 0, back: Some(WriteBack::new(to)), ahead };
    let mover = if source.dev() == target.dev() && server_can_copy(to) { Mover::Kernel } else { Mover::Buffer };
    job.extents(size, mover)?;
    if source.is_file() && from.metadata()?.len() < size {
        return Err(shrunk(size));
    }
    Ok(Copied { size, written: job.written, reflinked: false })
}

/// Writes a stream to `to`, from its first byte; answers the number of bytes received.
///
/// With [`Sparse::Holes`] blocks of zeroes become holes. What `to` held before is gone; into a target that is no regular
/// file every byte is written.
///
/// # Errors
/// Those of the reader and of the system, and as of [`copy_file`] when it had to stop. `to` then holds a part.
pub fn receive(reader: &mut dyn Read, to: &File, sparse: Sparse, control: &Control) -> io::Result<u64> {
    let regular = to.metadata()?.is_file();
    if regular {
        to.set_len(0)?;
    }
    let holes = regular && sparse == Sparse::Holes;
    let mut back = regular.then(|| WriteBack::new(to));
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    loop {
        let mut filled = 0;
        // The buffer is filled up, so that blocks are looked at where they will lie in the file.
        while filled < buffer.len() {
            control.check().map_err(io::Error::other)?;
            match reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let data = &buffer[..filled];
        let written = if holes {
            write_data(to, data, offset)?
        } else {
            to.write_all_at(data, offset)?;
            as_u64(filled)
        };
        offset += as_u64(filled);
        if let Some(back) = &mut back {
            back.wrote(written, offset);
        }
        if filled < buffer.len() {
            break;
        }
    }
    if holes {
        to.set_len(offset)?;
    }
    Ok(offset)
}

/// Reads a file or block device from its first byte to its last and hands over what it reads; holes are not read, only
/// told as zeroes.
///
/// # Errors
/// What the system answers, and as of [`copy_file`] when it had to stop.
pub fn read_all(file: &File, control: &Control, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut buffer = vec![0; BUFFER];
    let mut extents = Extents::new(file, size);
    let mut at = 0;
    // What is behind the size, of a device or of a file that grew, is read to its end.
    loop {
        let (start, end) = match extents.next()? {
            Some(extent) => extent,
            None => (size.max(at), u64::MAX),
        };
        while at < start {
            control.check().map_err(io::Error::other)?;
            let len = ZEROES.len().min(as_usize(start - at));
            take(&ZEROES[..len]);
            at += as_u64(len);
        }
        while at < end {
            control.check().map_err(io::Error::other)?;
            let want = buffer.len().min(as_usize(end - at));
            let n = read_full(file, &mut buffer[..want], at)?;
            take(&buffer[..n]);
            at += as_u64(n);
            if n < want {
                return Ok(());
            }
        }
    }
}

/// Turns blocks of zeroes inside a file into holes, as `fallocate -d` does; answers the bytes given back.
///
/// Best effort: a file system that cannot punch holes is no failure and answers 0.
///
/// # Errors
/// What the system answers to reading, and as of [`copy_file`] when it had to stop. The content stays the same in any case.
pub fn punch_zeroes(file: &File, control: &Control) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut buffer = vec![0; BUFFER];
    let mut punched = 0;
    let mut extents = Extents::new(file, size);
    while let Some((start, end)) = extents.next()? {
        let mut at = start - start % as_u64(BLOCK);
        while at < end {
            control.check().map_err(io::Error::other)?;
            let want = buffer.len().min(as_usize(end - at));
            let n = read_full(file, &mut buffer[..want], at)?;
            if n == 0 {
                return Ok(punched);
            }
            for run in runs(&buffer[..n]).filter(|run| run.zero) {
                let (offset, len) = (at + as_u64(run.start), as_u64(run.len));
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match retry_on_intr(|| fallocate(file, flags, offset, len)) {
                    Ok(()) => punched += len,
                    Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(punched),
                    Err(error) => return Err(error.into()),
                }
            }
            at += as_u64(n);
        }
    }
    Ok(punched)
}

/// What becomes of a hole in the source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gaps {
    /// The target is a hole there already; blocks of zeroes in data are left out too.
    Hole,
    /// The target is allocated there already; all data are written.
    Allocated,
    /// Zeroes have to be written.
    Write,
}

/// Who moves the data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mover {
    /// `copy_file_range(2)`, as far as it goes.
    Kernel,
    /// Our buffer.
    Buffer,
}

struct Job<'a> {
    from: &'a File,
    to: &'a File,
    control: &'a Control,
    gaps: Gaps,
    written: u64,
    back: Option<WriteBack<'a>>,
    ahead: Ahead,
}

impl Job<'_> {
    fn extents(&mut self, size: u64, mut mover: Mover) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut extents = Extents::new(self.from, size);
        let mut at = 0;
        while let Some((start, end)) = extents.next()? {
            self.gap(at, start)?;
            at = start;
            if mover == Mover::Kernel {
                at = self.kernel(start, end)?;
                if at < end {
                    mover = Mover::Buffer;
                }
            }
            self.buffer(at, end, &mut buffer)?;
            at = end;
        }
        self.gap(at, size)
    }

    /// Copies as much of the extent as the kernel is willing to; answers where it stopped.
    fn kernel(&mut self, start: u64, end: u64) -> io::Result<u64> {
        let mut at = start;
        while at < end {
            self.control.check().map_err(io::Error::other)?;
            let (mut here, mut there) = (at, at);
            let want = as_usize((end - at).min(RANGE));
            match rustix::fs::copy_file_range(self.from, Some(&mut here), self.to, Some(&mut there), want) {
                Ok(n) if n > 0 => {
                    at += as_u64(n);
                    self.wrote(as_u64(n), at);
                }
                Err(Errno::INTR) => {}
                // 0 is not always the end of the file: some file systems answer it where they cannot. Reading tells.
                Ok(_)
                | Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::BADF) => {
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(at)
    }

    fn buffer(&mut self, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = start;
        while at < end {
            self.control.check().map_err(io::Error::other)?;
            // Up to the next multiple of the buffer, so that blocks are aligned after the first round.
            let room = as_u64(buffer.len()) - at % as_u64(BLOCK);
            let want = as_usize(room.min(end - at));
            let n = read_full(self.from, &mut buffer[..want], at)?;
            if n < want {
                return Err(shrunk(end));
            }
            let data = &buffer[..n];
            let written = if self.gaps == Gaps::Hole {
                self.ahead.reach(self.to, at, as_u64(n), end);
                let written = write_data(self.to, data, at)?;
                if written < as_u64(n) {
                    self.ahead.give_back(self.to, data, at)?;
                }
                written
            } else {
                self.to.write_all_at(data, at)?;
                as_u64(n)
            };
            at += as_u64(n);
            self.wrote(written, at);
        }
        Ok(())
    }

    fn gap(&mut self, start: u64, end: u64) -> io::Result<()> {
        if self.gaps != Gaps::Write {
            return Ok(());
        }
        let mut at = start;
        while at < end {
            self.control.check().map_err(io::Error::other)?;
            let n = ZEROES.len().min(as_usize(end - at));
            self.to.write_all_at(&ZEROES[..n], at)?;
            at += as_u64(n);
            self.wrote(as_u64(n), at);
        }
        Ok(())
    }

    /// Counts `count` bytes written before `end`.
    fn wrote(&mut self, count: u64, end: u64) {
        self.written += count;
        if let Some(back) = &mut self.back {
            back.wrote(count, end);
        }
    }
}

/// Writes the blocks of `data` that are not zero; answers how many bytes that were.
fn write_data(to: &File, data: &[u8], offset: u64) -> io::Result<u64> {
    let mut written = 0;
    // An extent may begin inside a block where the file system's blocks are smaller than ours.
    let misfit = as_usize(offset % as_u64(BLOCK));
    let head = if misfit == 0 { 0 } else { (BLOCK - misfit).min(data.len()) };
    if !is_zero(&data[..head]) {
        to.write_all_at(&data[..head], offset)?;
        written += as_u64(head);
    }
    for run in runs(&data[head..]).filter(|run| !run.zero) {
        let start = head + run.start;
        to.write_all_at(&data[start..start + run.len], offset + as_u64(start))?;
        written += as_u64(run.len);
    }
    Ok(written)
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + as_u64(filled)) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn shrunk(expected: u64) -> io::Error {
    let text = format!("Source became shorter while it was copied: {expected} bytes expected");
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// Whether the file lies on a network file system where `copy_file_range` may be done by the server (`statfs(2)`).
fn server_can_copy(file: &File) -> bool {
    const NFS: i64 = 0x6969;
    const CIFS: i64 = 0xFF53_4D42;
    const SMB2: i64 = 0xFE53_4D42;
    const CEPH: i64 = 0x00C3_6400;
    fstatfs(file).is_ok_and(|fs| {
        // The width and sign of `f_type` differ between architectures.
        #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
        let kind = fs.f_type as i64;
        [NFS, CIFS, SMB2, CEPH].contains(&(kind & 0xFFFF_FFFF))
    })
}

/// Lossless on every platform that Rust's standard library serves.
pub(super) fn as_u64(n: usize) -> u64 {
    n as u64
}

/// Saturates where `usize` is smaller; callers only ever want "at most this much".
pub(super) fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::control::{Cancel, Stopped};
    use proptest::prelude::*;
    use std::io::Write;

    fn control() -> Control {
        Control::new(Cancel::new())
    }

    fn temp() -> File {
        tempfile::tempfile().unwrap()
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; as_usize(file.metadata().unwrap().len())];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn allocated(file: &File) -> u64 {
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * 512
    }

    /// A piece of a file: data, a block of zeroes that is written, or a hole; and its length in bytes.
    #[derive(Clone, Debug)]
    enum Piece {
        Data(u32),
        Zeroes(u32),
        Hole(u32),
    }

    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        // Multiples of the block, and lengths that are not.
        let len = prop_oneof![(1u32..40).prop_map(|n| n * 4096), 1u32..9000, Just(1_048_577u32)];
        let piece = prop_oneof![
            len.clone().prop_map(Piece::Data),
            len.clone().prop_map(Piece::Zeroes),
            len.prop_map(Piece::Hole)
        ];
        prop::collection::vec(piece, 0..8)
    }

    fn build(pieces: &[Piece]) -> (File, Vec<u8>) {
        let (file, mut bytes) = (temp(), Vec::new());
        for (n, piece) in pieces.iter().enumerate() {
            let at = bytes.len() as u64;
            match *piece {
                Piece::Data(len) => {
                    // Mostly data, with a zero byte now and then.
                    bytes.extend((0..len as usize).map(|i| u8::try_from((i * 7 + n) % 251).unwrap()));
                    file.write_all_at(&bytes[as_usize(at)..], at).unwrap();
                }
                Piece::Zeroes(len) => {
                    bytes.resize(bytes.len() + len as usize, 0);
                    file.write_all_at(&bytes[as_usize(at)..], at).unwrap();
                }
                Piece::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
            }
        }
        file.set_len(bytes.len() as u64).unwrap();
        (file, bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_copy_has_the_content_of_its_source(pieces in pieces(), allocate: bool, stale: bool) {
            let (from, bytes) = build(&pieces);
            let to = temp();
            if stale {
                to.write_all_at(&vec![0xAA; 50_000], 10).unwrap();
            }
            let sparse = if allocate { Sparse::Allocate } else { Sparse::Holes };
            let copied = copy_file(&from, &to, sparse, &control()).unwrap();
            prop_assert_eq!(copied.size, bytes.len() as u64);
            prop_assert!(content(&to) == bytes);
        }

        #[test]
        fn every_way_of_moving_gives_the_same(pieces in pieces(), kernel: bool, gaps in 0..3) {
            let (from, bytes) = build(&pieces);
            let to = temp();
            let size = bytes.len() as u64;
            to.set_len(size).unwrap();
            let gaps = [Gaps::Hole, Gaps::Allocated, Gaps::Write][usize::try_from(gaps).unwrap()];
            let control = control();
            let mut job = Job { from: &from, to: &to, control: &control, gaps, written: 0, back: None, ahead: Ahead::never() };
            job.extents(size, if kernel { Mover::Kernel } else { Mover::Buffer }).unwrap();
            prop_assert!(content(&to) == bytes);
        }

        #[test]
        fn a_received_stream_is_what_was_sent(pieces in pieces(), step in 1usize..70_000, allocate: bool) {
            let (_, bytes) = build(&pieces);
            let to = temp();
            to.write_all_at(&vec![0xAA; 50_000], 10).unwrap();
            let sparse = if allocate { Sparse::Allocate } else { Sparse::Holes };
            let n = receive(&mut Drip(&bytes, step), &to, sparse, &control()).unwrap();
            prop_assert_eq!(n, bytes.len() as u64);
            prop_assert!(content(&to) == bytes);
        }

        #[test]
        fn punching_keeps_the_content(pieces in pieces()) {
            let (file, bytes) = build(&pieces);
            punch_zeroes(&file, &control()).unwrap();
            prop_assert!(content(&file) == bytes);
        }
    }

    /// Answers at most so many bytes a call.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(self.1);
            self.0.read(&mut buf[..n])
        }
    }

    #[test]
    fn zeroes_become_holes_and_allocate_fills_them() {
        let (from, _) = build(&[Piece::Zeroes(4 << 20), Piece::Data(8192), Piece::Hole(4 << 20)]);
        let to = temp();
        let copied = copy_file(&from, &to, Sparse::Holes, &control()).unwrap();
        if !copied.reflinked {
            assert_eq!(copied.written, 8192);
            assert!(allocated(&to) <= 64 << 10, "{} bytes allocated", allocated(&to));
        }
        copy_file(&from, &to, Sparse::Allocate, &control()).unwrap();
        assert!(allocated(&to) >= (8 << 20) + 8192);

        let freed = punch_zeroes(&to, &control()).unwrap();
        assert!(freed >= 4 << 20, "{freed}");
        // What is allocated but was never written stays, as with `fallocate -d`.
        assert!(allocated(&to) <= (4 << 20) + (64 << 10));

        let mut stream = &content(&from)[..];
        receive(&mut stream, &to, Sparse::Holes, &control()).unwrap();
        assert!(allocated(&to) <= 64 << 10);
    }

    #[test]
    fn a_hole_of_eight_tebibytes_costs_nothing() {
        let from = temp();
        if from.set_len(8 << 40).is_err() {
            // The limit of the file system under the temporary directory.
            from.set_len(1 << 40).unwrap();
        }
        let size = from.metadata().unwrap().len();
        from.write_all_at(b"x", size / 2).unwrap();
        let to = temp();
        let start = std::time::Instant::now();
        let copied = copy_file(&from, &to, Sparse::Holes, &control()).unwrap();
        assert_eq!(copied.size, size);
        assert!(start.elapsed().as_secs() < 5);
        let mut byte = [0];
        to.read_exact_at(&mut byte, size / 2).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_file_is_not_copied_onto_itself() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"content").unwrap();
        let again = File::options().write(true).open(file.path()).unwrap();
        let error = copy_file(file.as_file(), &again, Sparse::Holes, &control()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"content");
    }

    #[test]
    fn a_source_that_shrinks_is_an_error() {
        let (from, bytes) = build(&[Piece::Data(100_000)]);
        let to = temp();
        let size = bytes.len() as u64 + 5000;
        let control = control();
        let mut job = Job {
            from: &from,
            to: &to,
            control: &control,
            gaps: Gaps::Hole,
            written: 0,
            back: None,
            ahead: Ahead::never(),
        };
        let error = job.buffer(0, size, &mut vec![0; BUFFER]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("shorter"));
    }

    #[test]
    fn a_cancel_stops_every_loop() {
        let (from, _) = build(&[Piece::Data(100_000)]);
        let control = control();
        control.cancel.set();
        let stopped = |error: io::Error| *error.get_ref().unwrap().downcast_ref::<Stopped>().unwrap();
        let error = copy_file(&from, &temp(), Sparse::Holes, &control).unwrap_err();
        assert_eq!(stopped(error), Stopped::Cancelled);
        let error = receive(&mut io::repeat(0), &temp(), Sparse::Holes, &control).unwrap_err();
        assert_eq!(stopped(error), Stopped::Cancelled);
        assert_eq!(stopped(punch_zeroes(&from, &control).unwrap_err()), Stopped::Cancelled);
    }

    #[test]
    fn a_target_that_is_no_file_gets_every_byte() {
        let (from, _) = build(&[Piece::Data(5000), Piece::Hole(100_000)]);
        let null = File::options().write(true).open("/dev/null").unwrap();
        let copied = copy_file(&from, &null, Sparse::Holes, &control()).unwrap();
        assert_eq!(copied.written, 105_000);
    }
}
