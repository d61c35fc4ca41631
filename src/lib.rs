//! Shardex is an embedded vector index on memory-mapped files that never loses what it acknowledged.
//!
//! A program adds postings (a document id, a range in the document, a vector) and searches for the nearest ones.
//! Postings are stored in many small shards. One-bit codes in small cells let a search scan few of them. A write-ahead
//! log records every write first.
//!
//! ```
//! use shardex::{DocumentId, Metric, Posting, PostingKey, Shardex, ShardexConfig};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let config = ShardexConfig::new(&path).vector_size(3).metric(Metric::Cosine);
//! let index = Shardex::create(config).await?;
//! let vector = vec![0.1, 0.2, 0.3];
//! index.add_postings(vec![Posting::new(PostingKey::new(7u32, 0, 42), vector)]).await?;
//! index.commit().await?; // durable from here on
//! let nearest = index.search(&[0.1, 0.2, 0.25], 10, None).await?;
//! assert_eq!(nearest[0].document_id, DocumentId(7));
//! println!("{}", index.flush().await?); // durable in the shards; recovery replays none of it
//! index.close().await?;
//! # Ok::<(), shardex::ShardexError>(())
//! # }).unwrap();
//! ```
//!
//! # Guide
//! [`guide`] explains the index in six chapters: start, model, durability, tuning, operations, failure.
//!
//! # The promise
//! What [`commit`](Shardex::commit) or [`flush`](Shardex::flush) acknowledged is there after any crash. Of what was
//! accepted and not yet committed a prefix is there, each batch whole. After a failed sync nothing more is
//! acknowledged.
//!
//! # Layers
//! Dependencies point down. A test reads the imports and fails on one that points up.
//! ```text
//! blocking            the API for programs without a runtime
//! shardex             the async API: when to commit, flush, retry, wait, refuse
//! observe             latencies, spans, metrics, stats file
//! engine              batches, flush, recovery, check
//! index               snapshots, routing, search
//! cells
//! payload
//! wal      shard      (neither depends on the other)
//! space
//! format              bytes ⇄ checked values
//! codes    distance   one-bit codes, kernels
//! lease               read access to bytes of the data file
//! storage             the contract, the mmap backend
//! batch config posting explain filter error id limits tuning env runtime failpoint
//! ```

#![cfg_attr(
    not(feature = "internals"),
    expect(dead_code, unused_imports, reason = "some items are used by the simulator, the tests and the fuzzers only")
)]

#[cfg(not(target_endian = "little"))]
compile_error!("Shardex needs a little-endian target: the files are mapped without conversion");

#[cfg(not(target_os = "linux"))]
compile_error!("Shardex runs on Linux only: other systems give weaker guarantees for allocation and syncs");

#[cfg(not(target_pointer_width = "64"))]
compile_error!("Shardex needs a 64-bit target: whole files are mapped, and offsets are 64 bits wide");

/// Declares modules that are public with the feature `internals` only, for the simulator, the tests and the fuzzers. A
/// program that uses them could change the files of an open index and break the engine's invariants.
macro_rules! internal {
    ($($module:ident)+) => {
        $(#[cfg(feature = "internals")]
        pub mod $module;
        #[cfg(not(feature = "internals"))]
        mod $module;)+
    };
}

internal! { batch cells codes distance engine error explain failpoint filter format index lease payload shard space storage tuning wal }
mod access;
pub mod blocking;
mod config;
pub mod env;
#[cfg(any(doc, doctest))]
pub mod guide;
mod id;
pub mod limits;
pub mod observe;
mod posting;
pub mod runtime;
mod shardex;

pub use access::FileAccess;
pub use batch::{WriteBatch, Written};
pub use config::{CheckLevel, Durability, Metric, OpenOptions, ShardexConfig, VectorEncoding};
#[cfg(feature = "internals")]
pub use engine::{BackupJob, Engine, FlushStep, restore, verify_backup};
pub use engine::{
    BackupStats, Component, ConsistencyReport, Finding, VerifyStats,
    stats::{
        BackgroundError, BackgroundWork, CompactionStats, FlushStats, IndexStats, LatencyStats, PurgeStats,
        ReachedRecall, RecallMeasurement, RecoveryStats,
    },
};
pub use error::{LockHolder, Result, ShardexError};
pub use explain::{CellStep, FilterStep, SearchPlan, ShardStep, StopReason};
pub use filter::Filter;
pub use id::{DocumentId, Generation, Lsn, ParseDocumentIdError, PostingKey, ShardId};
pub use index::{Hit, Hits, ScanPosition};
pub use posting::{Posting, SearchOptions, SearchResponse, SearchResult};
pub use shardex::{BackupOptions, IndexSnapshot, PostingScan, Shardex};

/// The program in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub mod readme {}
