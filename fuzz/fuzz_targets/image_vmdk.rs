#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| onestore::fuzz::image_vmdk(data));
