//! Failure: errors, full disks, damage, and how to recover.
//!
//! Every error is a [`ShardexError`](crate::ShardexError). It names its cause: the file and offset, the argument, or the
//! index of the posting.
//!
//! | error | state of the index | what to do |
//! |---|---|---|
//! | `InvalidDimension`, `InvalidVector`, `InvalidPosting`, `InvalidOperation` | unchanged | correct the posting, operation or query that it names |
//! | `CursorMismatch` | unchanged: another ingester has moved the cursor | continue from `cursor()` |
//! | `InvalidArgument`, `Config` | unchanged | correct the argument or field that it names |
//! | `NotFound`, `AlreadyExists`, `NotAnIndex` | unchanged | pass the right directory; the error says what is wrong with it |
//! | `ConfigMismatch` | unchanged | open the index with its stored configuration |
//! | `UnsupportedVersion` | unchanged | use a build that reads the version |
//! | `BatchTooLarge` | unchanged | split the batch |
//! | `Io` | a rejected write changed nothing; accepted ones stay accepted | fix the cause, repeat the call; after a failed sync open the index again |
//! | `ReadOnly` | unchanged: the open found no space for its recovery | free space, open the index again |
//! | `Inconsistent` | the flush stopped; the old root and the WAL are kept | open the index again, and run a full check |
//! | `OutOfSpace` | a rejected write changed nothing; accepted ones stay accepted | free space, repeat the call |
//! | `Undurable` | writes are rejected because background commits or flushes fail | see `stats().background_error` |
//! | `Poisoned` | a sync failed or a file was replaced, and searches see the last flushed state; or the writer panicked, and searches see the last published state; nothing is acknowledged | open the index again |
//! | `Corruption` | damaged bytes, with file and offset; not part of an answer | restore a copy of the index |
//! | `FileReplaced` | a file of the open index was removed or replaced; nothing is acknowledged, and the handle is poisoned | put the file back, open the index again |
//! | `HeldByReaders` | a purge has rewritten what it could; readers hold the rest | drop the snapshots and hits, purge again |
//! | `Locked` | another handle, process or reader holds the index | close it |
//! | `Closed` | the handle was closed | open the index again |
//!
//! ```
//! use shardex::{Posting, PostingKey, ShardexConfig, ShardexError, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(2))?;
//! let posting = |vector| Posting::new(PostingKey::new(1u32, 0, 1), vector);
//! let batch = vec![posting(vec![1.0, 2.0]), posting(vec![1.0, f32::NAN])];
//! match index.add_postings(batch) {
//!     Err(error @ ShardexError::InvalidVector { .. }) => println!("{error}"), // names posting 1
//!     other => panic!("{other:?}"),
//! }
//! assert_eq!(index.stats()?.total_postings, 0); // the batch changed nothing
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! # A full disk
//! A write that finds no space is rejected as a whole. A background commit that fails is retried, and `stats` shows the
//! error. An open that finds no space for its recovery serves reads only. Its searches see the last flush, and a part of the WAL
//! at most: test [`read_only`](crate::IndexStats::read_only) before you rely on answers. Nothing durable is lost.
//!
//! # A crash
//! Nothing needs to be done. The next open recovers, and [`RecoveryStats`](crate::RecoveryStats) describes the
//! recovery.
