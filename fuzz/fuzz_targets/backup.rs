//! Fuzz target of backups. Run `cargo +nightly fuzz run backup corpus/fuzz/backup` in the root of the repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::backup(bytes));
