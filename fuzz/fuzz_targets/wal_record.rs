//! Fuzz target of WAL structures. Run `cargo +nightly fuzz run wal_record corpus/fuzz/wal_record` in the root of the
//! repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::wal_record(bytes));
