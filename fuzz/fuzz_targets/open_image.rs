//! Fuzz target of indexes with changed bytes. Run `cargo +nightly fuzz run open_image corpus/fuzz/open_image` in the
//! root of the repository.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardex_sim::fuzz::open_image(bytes));
