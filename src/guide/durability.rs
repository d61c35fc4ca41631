//! Durability: what survives which crash, and what it costs.
//!
//! | call | when it returns | cost |
//! |---|---|---|
//! | `add_postings`, `remove_documents` | accepted: searches see it; it may be lost in a crash | memory, no sync |
//! | the same with [`Durability::Immediate`](crate::Durability) | durable | one sync, shared by concurrent writes |
//! | [`commit`](crate::Shardex::commit) | everything accepted before is durable | one sync of the WAL |
//! | [`flush`](crate::Shardex::flush) | everything accepted before is durable in the shards | three syncs, whatever the number of shards |
//!
//! After a crash the index holds what a prefix of the accepted batches leaves: every acknowledged batch, and possibly later ones, each whole
//! and in order. It does not matter whether the process, the operating system or the power failed.
//!
//! By default ([`Durability::Interval`](crate::Durability)) a timer commits every 100 ms, so a crash loses at most what was written since.
//! A flush happens every 30 seconds and when the WAL reaches 32 MiB. It bounds the time of a recovery.
//!
//! ```
//! use shardex::{DocumentId, Durability, OpenOptions, Posting, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let options = OpenOptions::default().durability(Durability::Manual);
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(1).options(options))?;
//! let posting = |n: u32| Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector: vec![n as f32 + 1.0] };
//! index.add_postings((0..10).map(posting).collect())?;
//! assert_eq!(index.stats()?.uncommitted_operations, 10);
//! index.commit()?;
//! assert_eq!(index.stats()?.uncommitted_operations, 0);
//! let cost = index.flush()?;
//! assert!(cost.barriers <= 3);
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! After a failed sync the index is *poisoned*. The kernel may have dropped the data that it could not write, so a second sync proves nothing.
//! Nothing more is acknowledged until the index is opened again, and searches continue on the last durable state.
