//! Target "undo".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mirrorfs_fuzz_targets::run_bytes("undo", bytes));
