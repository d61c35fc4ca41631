//! Tuning: recall against speed, memory, write throughput.
//!
//! # Search speed
//! The target recall decides the speed: a search at 0.8 scans a fraction of what a search at 0.99 scans. Set
//! [`OpenOptions::default_recall`](crate::OpenOptions::default_recall) or
//! [`SearchOptions::recall`](crate::SearchOptions::recall).
//!
//! *Cells* make searches fast. Without cells a search for a target recall is exhaustive: it compares every vector. The
//! index builds cells in the background once it holds 4,096 postings in more than 8 dimensions, if they make searches
//! cheaper, and again when much has changed. After a clean close the first write may start a build; the open alone
//! does so only if cells are damaged or unfinished. After a large load [`optimize`](crate::Shardex::optimize) builds them at
//! once.
//!
//! For many queries at once use [`search_many`](crate::Shardex::search_many), which runs on all cores and answers several
//! queries per task, and
//! [`search_in_place`](crate::Shardex::search_in_place), which copies no f32 vector. The first search that reads a part of
//! the file verifies its checksum. [`IndexSnapshot::warm`](crate::IndexSnapshot::warm) does that ahead of time.
//!
//! # Write throughput
//! Larger batches are cheaper: one record in the WAL, one new snapshot, fewer syncs. Concurrent writes share a sync, so with
//! [`Durability::Immediate`](crate::Durability) several tasks that write at once are faster than one.
//!
//! ```
//! use shardex::{DocumentId, OpenOptions, Posting, PostingKey, SearchOptions, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let options = OpenOptions::default().default_recall(0.9).flush_interval_ms(5_000);
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(16).options(options))?;
//! let vector = |n: u32| (0..16).map(|i| ((n * 31 + i * 17) % 101) as f32 + 1.0).collect::<Vec<_>>();
//! for first in (0..1_000).step_by(250) {
//!     let posting = |n: u32| Posting::new(PostingKey::new(n, 0, 1), vector(n));
//!     let batch = (first..first + 250).map(posting);
//!     index.add_postings(batch.collect())?;
//! }
//! let answer = index.search_with(&vector(77), &SearchOptions::new(10))?;
//! assert_eq!(answer.results[0].document_id, DocumentId(77));
//! println!("{} postings scanned, {} distances computed", answer.scanned, answer.computed);
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! # Memory
//! [`IndexStats::memory_usage`](crate::IndexStats::memory_usage) counts what lookups and searches need in memory.
//! Vectors are mapped, and the page cache holds those that are used. [`VectorEncoding::F16`](crate::VectorEncoding::F16)
//! and [`Int8`](crate::VectorEncoding::Int8) make them half and a quarter as large.
//!
//! # Recovery time
//! An open replays the WAL written since the last flush. A smaller
//! [`flush_wal_bytes`](crate::OpenOptions::flush_wal_bytes) shortens it.
