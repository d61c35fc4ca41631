//! Tests of `shardex-columns`. The files are built with the writers of the `arrow` and `parquet` crates, and each test has
//! its own directory.

mod cli;
mod damage;
mod refused;
mod resume;
mod round_trip;
mod support;
