//! Decompression: the method is told by the first bytes of the stream, never by a name.
//!
//! Sources of the magics: RFC 1952 (gzip), the bzip2 format, the xz format 1.1, RFC 8878 (zstd), the LZ4 frame format.

use std::io::{self, BufRead, BufReader, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use lz4_flex::frame::FrameDecoder;
use serde::Serialize;

/// Bytes that suffice to tell the method.
pub const MAGIC: usize = 10;

/// Bytes that an xz decoder may use: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 100 << 20;

/// Binary logarithm of the largest window of a zstd frame: 128 MiB, as of `zstd --long`.
const ZSTD_WINDOW: u32 = 27;

/// Bytes of encoded data read at a time.
const BUFFER: usize = 64 << 10;

/// A compression method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip, any number of members.
    Gzip,
    /// bzip2, any number of streams.
    Bzip2,
    /// xz, any number of streams.
    Xz,
    /// zstd, any number of frames, windows up to 128 MiB.
    Zstd,
    /// LZ4 frames, any number.
    Lz4,
}

impl Compression {
    /// What the first bytes of a stream say.
    #[must_use]
    pub fn detect(start: &[u8]) -> Option<Self> {
        const BZIP2: [&[u8]; 2] = [&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], &[0x17, 0x72, 0x45, 0x38, 0x50, 0x90]];
        if start.starts_with(&[0x1F, 0x8B, 8]) {
            return Some(Self::Gzip);
        }
        if let [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] = start
            && BZIP2.iter().any(|magic| rest.starts_with(magic))
        {
            return Some(Self::Bzip2);
        }
        if start.starts_with(b"\xFD7zXZ\0") {
            return Some(Self::Xz);
        }
        if start.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
            return Some(Self::Zstd);
        }
        if start.starts_with(&[0x04, 0x22, 0x4D, 0x18]) {
            return Some(Self::Lz4);
        }
        None
    }

    /// The name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    /// A reader of the decoded data.
    ///
    /// Cut or damaged data, and bytes behind the last member that are no member, are errors of the reader.
    ///
    /// # Errors
    /// Where the decoder cannot get memory.
    pub fn decoder(self, reader: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
        let reader = BufReader::with_capacity(BUFFER, reader);
        let decoder: Box<dyn Read + Send> = match self {
            Self::Gzip => Box::new(Gzip::new(reader)),
            Self::Bzip2 => Box::new(MultiBzDecoder::new(reader)),
            Self::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(io::Error::from)?;
                Box::new(XzDecoder::new_stream(reader, stream))
            }
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(reader)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Box::new(decoder)
            }
            Self::Lz4 => Box::new(Lz4::new(reader)),
        };
        Ok(Box::new(Plain { decoder, kind: self }))
    }

    /// What a decoder's error means, for people.
    fn explain(self, error: &io::Error) -> io::Error {
        let (name, text) = (self.name(), error.to_string());
        let memory = ["memory limit", "too much memory", "Memory limit"].iter().any(|part| text.contains(part));
        let meaning = if memory {
            let most = if self == Self::Xz { XZ_MEMORY >> 20 } else { 1 << (ZSTD_WINDOW - 20) };
            format!("The {name} data need more than {most} MiB of memory to unpack")
        } else if error.kind() == io::ErrorKind::UnexpectedEof || text.contains("incomplete frame") {
            format!("The {name} data end too early, it is cut short")
        } else {
            format!("The {name} data are damaged: {text}")
        };
        io::Error::new(error.kind(), meaning)
    }
}

/// A decoder whose errors say what is wrong with what.
struct Plain {
    decoder: Box<dyn Read + Send>,
    kind: Compression,
}

impl Read for Plain {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => self.kind.explain(&error),
        })
    }
}

/// Member after member; zeroes behind the last one are padding, as gzip(1) takes them.
struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Gzip<R> {
    fn new(reader: R) -> Self {
        Self(Some(GzDecoder::new(reader)))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = self.0.as_mut().filter(|_| !buf.is_empty()) {
            let n = decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(mut rest) = self.0.take().map(GzDecoder::into_inner) else { break };
            loop {
                let bytes = rest.fill_buf()?;
                if bytes.is_empty() {
                    return Ok(0);
                }
                let zeroes = bytes.iter().take_while(|byte| **byte == 0).count();
                let more = zeroes == bytes.len();
                rest.consume(zeroes);
                if !more {
                    break;
                }
            }
            self.0 = Some(GzDecoder::new(rest));
        }
        Ok(0)
    }
}

/// Frame after frame, each with a decoder of its own: the library's stops after one, takes a stream that is cut between
/// two blocks for a whole one, and cannot go on with a frame of another block size.
struct Lz4<R: Read>(Option<FrameDecoder<Watched<R>>>);

impl<R: BufRead> Lz4<R> {
    fn new(reader: R) -> Self {
        Self(Some(FrameDecoder::new(Watched { inner: reader, ended: false })))
    }
}

impl<R: BufRead> Read for Lz4<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = self.0.as_mut().filter(|_| !buf.is_empty()) {
            let n = decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            // The end mark of a frame is read without looking behind it.
            let reader = decoder.get_mut();
            if reader.ended {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "LZ4 frame is cut short"));
            }
            let more = !reader.inner.fill_buf()?.is_empty();
            self.0 = self.0.take().filter(|_| more).map(|decoder| FrameDecoder::new(decoder.into_inner()));
        }
        Ok(0)
    }
}

/// Remembers whether its end was met.
struct Watched<R> {
    inner: R,
    ended: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.ended |= n == 0 && !buf.is_empty();
        Ok(n)
    }
}

/// The most that may come, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Bytes that somebody granted.
    Granted(u64),
    /// Bytes that there is space for.
    Space(u64),
}

impl Allowance {
    /// The bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Granted(bytes) | Self::Space(bytes) => bytes,
        }
    }
}

/// A reader that fails once more than so many bytes come: a guard against decompression bombs.
pub struct Bounded<R> {
    inner: R,
    left: u64,
    limit: Allowance,
}

impl<R: Read> Bounded<R> {
    /// Lets as many bytes pass.
    pub fn new(inner: R, limit: Allowance) -> Self {
        Self { inner, left: limit.bytes(), limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            let text = format!("It unpacks to more than {} MiB", self.limit.bytes() >> 20);
            match self.limit {
                Allowance::Granted(_) => {
                    io::Error::new(io::ErrorKind::FileTooLarge, format!("{text}, the most that is granted"))
                }
                Allowance::Space(_) => {
                    let text = format!("No space left on device: {}{}", text[..1].to_lowercase(), &text[1..]);
                    io::Error::new(io::ErrorKind::StorageFull, text)
                }
            }
        })?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const ALL: [Compression; 5] =
        [Compression::Gzip, Compression::Bzip2, Compression::Xz, Compression::Zstd, Compression::Lz4];

    fn encode(kind: Compression, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match kind {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap();
            }
            Compression::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(&mut out, bzip2::Compression::fast());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap();
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(&mut out, 1);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap();
            }
            Compression::Zstd => out = zstd::encode_all(data, 1).unwrap(),
            Compression::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(&mut out);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap();
            }
        }
        out
    }

    fn decode(kind: Compression, data: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        kind.decoder(Box::new(io::Cursor::new(data)))?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn sample() -> Vec<u8> {
        (0..300_000u32).flat_map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()).collect()
    }

    #[test]
    fn each_method_is_told_by_its_magic_and_undone() {
        let data = sample();
        for kind in ALL {
            for data in [&data[..], b"", b"x"] {
                let encoded = encode(kind, data);
                assert_eq!(Compression::detect(&encoded[..MAGIC.min(encoded.len())]), Some(kind));
                assert!(decode(kind, encoded).unwrap() == data, "{kind:?}");
            }
        }
        assert_eq!(Compression::detect(b""), None);
        assert_eq!(Compression::detect(b"BZh9 is how this text begins"), None);
    }

    #[test]
    fn members_are_joined() {
        let data = sample();
        for kind in ALL {
            let encoded = [encode(kind, &data), encode(kind, b""), encode(kind, b"end")].concat();
            assert!(decode(kind, encoded).unwrap() == [&data[..], b"end"].concat(), "{kind:?}");
        }
    }

    #[test]
    fn cut_data_is_an_error() {
        let data = sample();
        for kind in ALL {
            let encoded = encode(kind, &data);
            for cut in [MAGIC, encoded.len() / 4, encoded.len() / 2, encoded.len() - 5, encoded.len() - 1] {
                assert!(decode(kind, encoded[..cut].to_vec()).is_err(), "{kind:?} cut at {cut} of {}", encoded.len());
            }
        }
    }

    #[test]
    fn garbage_behind_the_data_is_an_error() {
        for kind in ALL {
            for garbage in [&b"garbage"[..], b"\0\0\0\0\0\0\0", b"x", b"\0"] {
                if kind == Compression::Gzip && garbage.contains(&0) {
                    continue;
                }
                let encoded = [&encode(kind, b"some data")[..], garbage].concat();
                assert!(decode(kind, encoded).is_err(), "{kind:?} {garbage:?}");
            }
        }
    }

    #[test]
    fn damaged_data_is_an_error() {
        let data = sample();
        for kind in ALL {
            // A flipped bit in the middle; LZ4's encoder writes no checksum unless told.
            if kind == Compression::Lz4 || kind == Compression::Zstd {
                continue;
            }
            let mut encoded = encode(kind, &data);
            let middle = encoded.len() / 2;
            encoded[middle] ^= 0x10;
            assert!(decode(kind, encoded).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn bombs_are_stopped() {
        let encoded = encode(Compression::Gzip, &vec![0; 10 << 20]);
        let decoder = Compression::Gzip.decoder(Box::new(io::Cursor::new(encoded))).unwrap();
        let error = io::copy(&mut Bounded::new(decoder, Allowance::Granted(1 << 20)), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("more than 1 MiB"), "{error}");
    }

    #[test]
    fn zeroes_behind_a_gzip_are_padding() {
        let mut data = encode(Compression::Gzip, b"one ");
        data.extend(encode(Compression::Gzip, b"two"));
        data.resize(data.len() + 70_000, 0);
        let read = |data: &[u8]| {
            let reader: Box<dyn Read + Send> = Box::new(io::Cursor::new(data.to_vec()));
            io::read_to_string(Compression::Gzip.decoder(reader).unwrap())
        };
        assert_eq!(read(&data).unwrap(), "one two");
        data.extend(b"not a member");
        assert!(read(&data).is_err());
    }
}
