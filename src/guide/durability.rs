//! Durability: what survives which crash, and what it costs.
//!
//! | call | when it returns | cost |
//! |---|---|---|
//! | `write`, `add_postings`, `remove_documents` | accepted: searches see it; a crash may lose it | no sync |
//! | the same with [`Durability::Immediate`](crate::Durability) | durable | one sync, shared by concurrent writes |
//! | [`commit`](crate::Shardex::commit) | everything accepted before is durable | one sync of the WAL |
//! | [`flush`](crate::Shardex::flush) | everything accepted before is durable in the shards | at most three syncs |
//! | [`close`](crate::Shardex::close) | as `flush`, or `commit` without [`flush_on_close`](crate::OpenOptions::flush_on_close) | as theirs |
//!
//! An add stores its vectors in the file `data`, and a later sync makes them durable. Two writes cost more. The first
//! write after an open that found a cleanly closed index stores and syncs two roots (the first such write of an index also
//! replaces the root file). A write that finds the WAL full
//! (1 GiB by default) runs a flush first.
//!
//! After a crash the index holds the state after a prefix of the accepted batches: every acknowledged batch, and
//! possibly later ones, each whole and in order. It does not matter whether the process, the operating system or the
//! power failed.
//!
//! By default ([`Durability::Interval`](crate::Durability)) a timer commits every 100 ms, so a crash loses at most the
//! writes accepted since the last commit. A flush starts every 30 seconds and when the WAL reaches 32 MiB. It bounds
//! the time of a recovery.
//!
//! ```
//! use shardex::{Durability, OpenOptions, Posting, PostingKey, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let options = OpenOptions::default().durability(Durability::Manual);
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(1).options(options))?;
//! let posting = |n: u32| Posting::new(PostingKey::new(n, 0, 1), vec![n as f32 + 1.0]);
//! index.add_postings((0..10).map(posting).collect())?;
//! assert_eq!(index.stats()?.uncommitted_operations, 10);
//! index.commit()?;
//! assert_eq!(index.stats()?.uncommitted_operations, 0);
//! let cost = index.flush()?;
//! assert!(cost.barriers <= 3);
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! After a failed sync the index is *poisoned*. The kernel may have dropped the data that it could not write, so a
//! second sync proves nothing. Nothing more is acknowledged until the index is opened again. Searches fall back to the
//! state of the newest flushed root. Later commits are in the WAL, and the next open recovers them.
