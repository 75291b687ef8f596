#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| onestore::fuzz::answers(data));
