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
//! storage             the contract, the real backend
//! config posting error id limits env site
//! ```

#[cfg(not(target_endian = "little"))]
compile_error!("the files are mapped as they are, and they are little-endian");

pub mod cells;
pub mod codes;
mod config;
pub mod distance;
pub mod engine;
pub mod env;
pub mod error;
pub mod format;
mod id;
pub mod index;
pub mod limits;
mod posting;
pub mod shard;
mod shardex;
pub mod site;
pub mod space;
pub mod storage;
pub mod wal;

pub use config::{CheckLevel, Durability, Metric, OpenOptions, ShardexConfig};
pub use engine::{
    Component, ConsistencyReport, Engine, Finding, FlushStep,
    stats::{BackgroundError, BackgroundWork, FlushStats, IndexStats, RecoveryStats},
};
pub use error::{Result, ShardexError};
pub use id::{DocumentId, Generation, Lsn, ShardId};
pub use index::{Hit, Hits};
pub use posting::{Posting, SearchOptions, SearchResponse, SearchResult};
pub use shardex::{IndexSnapshot, Shardex};
