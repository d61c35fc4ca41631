//! Shardex: a vector index that a program embeds, on memory-mapped files, that never loses what it acknowledged.
//!
//! Postings (a document id, a range in the document, a vector) lie in many small shards. An in-memory index of centroids
//! chooses the shards to scan, bloom filters find what is to be removed or replaced, and a write-ahead log takes every
//! write first.
//!
//! ```
//! use shardex::{DocumentId, Metric, Posting, Shardex, ShardexConfig};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let config = ShardexConfig::new(&path).vector_size(3).metric(Metric::Cosine);
//! let index = Shardex::create(config).await?;
//! let vector = vec![0.1, 0.2, 0.3];
//! index.add_postings(vec![Posting { document_id: DocumentId(7), start: 0, length: 42, vector }]).await?;
//! index.commit().await?; // durable from here on, whatever happens
//! let nearest = index.search(&[0.1, 0.2, 0.25], 10, None).await?;
//! assert_eq!(nearest[0].document_id, DocumentId(7));
//! println!("{}", index.flush().await?); // durable in the shards, and the log is let go
//! index.close().await?;
//! # Ok::<(), shardex::ShardexError>(())
//! # }).unwrap();
//! ```
//!
//! # The promise
//! What [`commit`](Shardex::commit) or [`flush`](Shardex::flush) returned for is there after any crash. What was accepted
//! and not yet committed is there up to some batch, each batch whole, or it is not. After a sync has failed nothing more is
//! acknowledged.
//!
//! # Layers
//! Arrows run down only; a test reads the imports and fails on any that runs up.
//! ```text
//! shardex             the async API: decides nothing
//! engine              batches, flush, recovery, check
//! index               snapshots, routing, search
//! wal      shard      (neither knows the other)
//! space
//! format              bytes ⇄ checked values          distance
//! lease               who may touch which bytes, and for how long
//! storage             the contract, the real backend
//! config posting error id limits env runtime site
//! ```

#![cfg_attr(
    not(feature = "internals"),
    expect(
        dead_code,
        unused_imports,
        reason = "what only the simulator, the tests and the fuzzers use is there without them"
    )
)]

#[cfg(not(target_endian = "little"))]
compile_error!("the files are mapped as they are, and they are little-endian");

#[cfg(not(target_os = "linux"))]
compile_error!(
    "Shardex runs on Linux only: elsewhere allocating space and syncing mean something else, so no promise holds"
);

#[cfg(not(target_pointer_width = "64"))]
compile_error!("Shardex needs a 64-bit target: whole files are mapped, and offsets are 64 bits wide");

/// Declares modules that are public with the feature `internals` only: the simulator, the tests and the fuzzers reach through
/// them. Through them a program could get at a file of an index, and break what the engine relies on.
macro_rules! internal {
    ($($module:ident)+) => {
        $(#[cfg(feature = "internals")]
        pub mod $module;
        #[cfg(not(feature = "internals"))]
        mod $module;)+
    };
}

internal! { cells codes distance engine error format index lease shard site space storage wal }
mod config;
pub mod env;
mod id;
pub mod limits;
mod posting;
pub mod runtime;
mod shardex;

pub use config::{CheckLevel, Durability, Metric, OpenOptions, ShardexConfig};
pub use engine::{
    Component, ConsistencyReport, Finding,
    stats::{BackgroundError, BackgroundWork, FlushStats, IndexStats, ReachedRecall, RecallProof, RecoveryStats},
};
#[cfg(feature = "internals")]
pub use engine::{Engine, FlushStep};
pub use error::{LockHolder, Result, ShardexError};
pub use id::{DocumentId, Generation, Lsn, ShardId};
pub use index::{Hit, Hits};
pub use posting::{Posting, SearchOptions, SearchResponse, SearchResult, Stopped};
pub use shardex::{IndexSnapshot, Shardex};
