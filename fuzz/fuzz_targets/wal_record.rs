//! `cargo +nightly fuzz run wal_record corpus/fuzz/wal_record`, at the top of the repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::wal_record(bytes));
