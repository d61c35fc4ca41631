//! Guide: how to use an index, in six chapters of prose with tested examples.
//!
//! 1. [`start`]: create an index, add, search, close.
//! 2. [`model`]: postings, documents, batches, metrics, encodings, snapshots, recall.
//! 3. [`durability`]: what survives which crash, and what it costs.
//! 4. [`tuning`]: recall against speed, memory, write throughput.
//! 5. [`operations`]: statistics, checks, backups, upgrades.
//! 6. [`failure`]: errors, full disks, damage, and how to recover.

pub mod durability;
pub mod failure;
pub mod model;
pub mod operations;
pub mod start;
pub mod tuning;
