//! The engine: joins WAL, shards and index. It is synchronous, single-writer and deterministic. The async API drives
//! it.
//!
//! The life of a batch: checked → applied to copies of shards, its bytes stored in free slots → recorded in the WAL
//! buffer → published. From then on searches see it. A commit makes it durable in the WAL, a flush makes its shards
//! durable.
//!
//! Invariants:
//! 1. A batch is accepted as a whole or changes nothing.
//! 2. Nothing durable is overwritten: stores go to free slots, to free pages and to the slot of the older root. One
//!    store is an exception: a recovery stores the newest root again into its own slot, with the same bytes (B4).
//! 3. After a failed sync nothing is acknowledged (P5).

mod apply;
mod assemble;
mod backup;
mod backup_files;
mod backup_target;
mod barriers;
pub mod batch;
mod cell_build;
mod cell_store;
mod check;
mod check_files;
mod check_payloads;
mod check_tools;
mod commit;
mod compact;
mod contents;
mod core;
mod create;
mod cursor;
mod directory;
mod figures;
mod findings;
mod flush;
mod free_space;
mod index_files;
mod index_stats;
mod load_payloads;
mod lock;
mod names;
mod open;
mod payload_changes;
mod pending_flush;
mod place_payloads;
mod places;
mod plan;
mod prepare;
mod purge;
mod purposes;
mod quick_check;
mod rebalance;
mod recovery;
mod resolve;
mod restore;
mod roots;
mod shard_numbers;
mod state_blocks;
pub mod stats;
mod stats_file;
mod unindexed;
mod working;
mod writes;

pub use backup::{BackupJob, BackupStats};
pub use backup_files::{VerifyStats, verify as verify_backup};
pub use barriers::{B1, B2, B3, BARRIERS, Barrier, CLOSE, COMMIT};
pub use cell_build::CellBuildJob;
pub use contents::CheckJob;
pub use core::{Engine, Lent};
pub use findings::{Component, ConsistencyReport, Finding};
pub use flush::FlushStep;
pub use purge::PurgeStep;
pub use restore::restore;
pub use stats_file::StatsFile;
pub use unindexed::EncodeJob;
