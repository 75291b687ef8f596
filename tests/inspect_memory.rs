//! How much the inspector allocates: what it reads, whatever a header claims.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "inspect/hostile.rs"]
#[allow(dead_code)]
mod hostile;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use onestore::image::source::BUDGET;
use onestore::image::{FileSource, Prefix, inspect};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test for all: others would count in.
#[test]
fn no_header_makes_the_inspector_allocate_more_than_four_mebibytes() {
    let mut cases = hostile::all();
    let json = format!(r#"{{"segments":{{"0":{{"offset":"16777216","x":"{}"}}}}}}"#, "y".repeat((1 << 20) - 200));
    cases.push(("luks2-full-of-text", hostile::luks2(&json, 4096 + (1 << 20), 20 << 20)));
    let deep = "[".repeat(1 << 20);
    cases.push(("luks2-deep", hostile::luks2(&deep, 4096 + (1 << 20), 20 << 20)));
    let extents = "RW 1 FLAT \"x\" 0\n".repeat(4000);
    cases.push(("vmdk-many-extents", hostile::descriptor("custom", "", &extents).into_bytes()));
    let extension = [0x12u8, 0x34, 0x56, 0x78, 0, 0, 0, 0].repeat(8000);
    cases.push(("many-extensions", hostile::Qcow2 { extension, ..hostile::Qcow2::default() }.build()));

    let dir = tempfile::tempdir().unwrap();
    let mut largest = (0, "");
    for (name, bytes) in &cases {
        let path = dir.path().join("image");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        let file = File::open(&path).unwrap();
        let before = ALLOCATED.current_usage();
        ALLOCATED.reset_peak_usage();
        inspect(&mut FileSource::new(&file).unwrap()).unwrap();
        inspect(&mut Prefix::whole(bytes)).unwrap();
        inspect(&mut Prefix::new(&bytes[..bytes.len().min(65536)], None)).unwrap();
        largest = largest.max((ALLOCATED.peak_usage() - before, name));
    }
    println!("at most {} bytes, for {}", largest.0, largest.1);
    // What is read, and a little for names and reasons.
    assert!(largest.0 < BUDGET + (128 << 10), "{} bytes for {}", largest.0, largest.1);

    // Every number in the first kilobytes as large as it can be, one after the other.
    let mut seeds: Vec<Vec<u8>> = cases.into_iter().map(|(_, bytes)| bytes).collect();
    seeds.retain(|bytes| bytes.len() <= 1 << 20);
    let file = tempfile::tempfile().unwrap();
    for bytes in &seeds {
        for at in (0..bytes.len().min(640)).step_by(8) {
            file.write_all_at(bytes, 0).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.write_all_at(&[0xFF; 8], at as u64).unwrap();
            let before = ALLOCATED.current_usage();
            ALLOCATED.reset_peak_usage();
            inspect(&mut FileSource::new(&file).unwrap()).unwrap();
            let used = ALLOCATED.peak_usage() - before;
            assert!(used < BUDGET + (128 << 10), "{used} bytes");
        }
    }
}
