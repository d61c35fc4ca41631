//! Fuzz target of crash cases. Run `cargo +nightly fuzz run crash corpus/fuzz/crash` in the root of the repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::crash(bytes));
