//! `cargo +nightly fuzz run open_image corpus/fuzz/open_image`, at the top of the repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::open_image(bytes));
