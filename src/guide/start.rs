//! Start: create an index, add, search, close.
//!
//! An index is a directory. [`Shardex::create`](crate::Shardex::create) makes it, or opens it if it exists with the
//! same configuration. Its parent directory must exist.
//!
//! ```
//! use shardex::{DocumentId, Metric, Posting, PostingKey, SearchOptions, Shardex, ShardexConfig};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let config = ShardexConfig::new(&path).vector_size(3).metric(Metric::Cosine);
//! let index = Shardex::create(config).await?;
//!
//! // A batch is added as a whole or not at all.
//! let batch = (0..100u32).map(|n| Posting::new(PostingKey::new(n, 0, 1), vec![1.0, n as f32, 0.5]));
//! index.add_postings(batch.collect()).await?;
//!
//! // Searches see a write as soon as its call has returned.
//! let nearest = index.search(&[1.0, 42.0, 0.5], 3, None).await?;
//! assert_eq!(nearest[0].document_id, DocumentId(42));
//!
//! // All options of a search.
//! let answer = index.search_with(&[1.0, 7.0, 0.5], &SearchOptions::new(5).recall(0.99)).await?;
//! assert_eq!(answer.results.len(), 5);
//!
//! // Closing makes everything durable. Dropping the last handle tries to, unless durability is `Manual`.
//! index.close().await?;
//! # Ok::<(), shardex::ShardexError>(())
//! # }).unwrap();
//! ```
//!
//! The futures need no particular runtime: a writer on a thread of its own does the work. A search runs in the task
//! that awaits it, and takes tens of microseconds to milliseconds. A program without a runtime uses
//! [`blocking`](crate::blocking).
//!
//! A handle is cheap to clone. One process may have an index open once, with any number of clones.
