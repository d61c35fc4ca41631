//! `cargo +nightly fuzz run crash corpus/fuzz/crash`, at the top of the repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::crash(bytes));
