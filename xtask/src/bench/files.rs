//! The images that are copied: sparse, dense and huge ones, made without holding their data in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::stop::Stop;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// An image to copy. The name says its length and how much of it is data, spread evenly over it in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// 64 MiB, all data.
    Dense64M,
    /// 256 MiB, all data, half of it compressible.
    Dense256M,
    /// 512 MiB, all data.
    Dense512M,
    /// 1 GiB with 64 MiB of data.
    Sparse1G,
    /// 1 GiB, all data.
    Dense1G,
    /// 2 GiB, all data.
    Dense2G,
    /// 8 GiB, all data, made of eight clones of 1 GiB: only where files can share data.
    Dense8G,
    /// 8 TiB with 1.5 GiB of data.
    Sparse8T,
    /// 1.5 GiB, all data.
    Dense1536M,
}

impl Source {
    /// File name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense64M => "dense-64m.raw",
            Self::Dense256M => "dense-256m.raw",
            Self::Dense512M => "dense-512m.raw",
            Self::Dense2G => "dense-2g.raw",
            Self::Sparse1G => "sparse-1g.raw",
            Self::Dense1G => "dense-1g.raw",
            Self::Dense8G => "dense-8g.raw",
            Self::Sparse8T => "sparse-8t.raw",
            Self::Dense1536M => "dense-1536m.raw",
        }
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        match self {
            Self::Dense64M => 64 * MIB,
            Self::Dense256M => 256 * MIB,
            Self::Dense512M => 512 * MIB,
            Self::Sparse1G | Self::Dense1G => GIB,
            Self::Dense2G => 2 * GIB,
            Self::Dense8G => 8 * GIB,
            Self::Sparse8T => 8 * TIB,
            Self::Dense1536M => 1536 * MIB,
        }
    }

    /// Number of pieces and bytes in each; pieces begin at equal distances.
    fn pieces(self) -> (u64, u64) {
        match self {
            Self::Dense64M | Self::Dense256M | Self::Dense512M | Self::Dense1G | Self::Dense2G | Self::Dense1536M => {
                (1, self.len())
            }
            // The rest are clones of it.
            Self::Dense8G => (1, GIB),
            Self::Sparse1G => (16, 4 * MIB),
            Self::Sparse8T => (24, 64 * MIB),
        }
    }
}

/// Makes `source` at `path` and brings it to the disk, so that nothing of it is written while something is measured.
///
/// # Errors
/// The disk is full, the file system does not take files of this length, a signal asked for the end.
pub fn make(source: Source, path: &Path, stop: &Stop) -> Result<()> {
    write(source, path, stop).with_context(|| format!("Cannot make {}", path.display()))
}

fn write(source: Source, path: &Path, stop: &Stop) -> Result<()> {
    let file = File::options().create_new(true).read(true).write(true).open(path)?;
    let mut noise = Noise::new();
    let mut block = vec![0; usize::try_from(MIB)?];
    let (pieces, length) = source.pieces();
    for piece in 0..pieces {
        let start = source.len() / pieces * piece;
        for at in (0..length).step_by(block.len()) {
            stop.check()?;
            noise.fill(&mut block);
            file.write_all_at(&block, start + at)?;
        }
    }
    if source == Source::Dense8G {
        file.sync_all()?;
        share_first_gib(&file, source.len(), stop)?;
    }
    file.set_len(source.len())?;
    file.sync_all()?;
    Ok(())
}

/// Repeats the first GiB up to `length`: on a file system with reflink, `copy_file_range` shares the data.
fn share_first_gib(file: &File, length: u64, stop: &Stop) -> Result<()> {
    for turn in (GIB..length).step_by(usize::try_from(GIB)?) {
        let (mut from, mut to) = (0, turn);
        while from < GIB {
            stop.check()?;
            let left = usize::try_from(GIB - from)?;
            rustix::fs::copy_file_range(file, Some(&mut from), file, Some(&mut to), left)?;
        }
    }
    Ok(())
}

/// Writes `bytes` letters, never the same run of them twice: filler for a payload.
///
/// # Errors
/// As the writer's.
pub fn letters(out: &mut impl Write, bytes: u64) -> Result<()> {
    let mut out = BufWriter::new(out);
    let mut noise = Noise::new();
    for _ in 0..bytes {
        out.write_all(&[b'a' + u8::try_from(noise.next() % 26)?])?;
    }
    Ok(out.flush()?)
}

/// Pseudo-random numbers (xorshift64*, Vigna 2016), the same in every run.
struct Noise(u64);

impl Noise {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// Fills a block: half noise, half a repeated word, so that it compresses to about a half as real images do.
    fn fill(&mut self, block: &mut [u8]) {
        for (i, chunk) in block.chunks_mut(4096).enumerate() {
            let word = self.next();
            for eight in chunk.chunks_exact_mut(8) {
                let value = if i % 2 == 0 { self.next().rotate_left(7) } else { word };
                eight.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::{GIB, MIB, Source, make};
    use crate::bench::stop::Stop;

    #[test]
    fn a_sparse_source_has_its_length_and_little_more_than_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        make(Source::Sparse1G, &path, &Stop::install().unwrap()).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), GIB);
        let data = metadata.blocks() * 512;
        assert!((64 * MIB..66 * MIB).contains(&data), "{data}");
    }
}
