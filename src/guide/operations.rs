//! Operations: statistics, checks, backups, upgrades.
//!
//! # Statistics
//! [`Shardex::stats`](crate::Shardex::stats) reads no vector. Watch
//! [`uncommitted_for`](crate::IndexStats::uncommitted_for) (age of the oldest write that is not durable),
//! [`background_error`](crate::IndexStats::background_error), [`poisoned`](crate::IndexStats::poisoned) and
//! [`read_only`](crate::IndexStats::read_only).
//!
//! The latencies of searches, writes, commits and flushes are there, too: see [`observe`](crate::observe), which also lists
//! the spans and metrics of the features `tracing` and `metrics`, and says how another process can watch an open index.
//!
//! # Checks
//! [`Shardex::check`](crate::Shardex::check) compares the parts of an index with each other. `Quick` compares counts and
//! LSNs in memory. `Full` reads every byte in use: metadata, the WAL, and what only the older root names while other
//! calls wait, then vectors and codes
//! beside running writes. Each flush runs a `Quick` check of the shards that changed, or a
//! `Full` check of the index if [`flush_check`](crate::OpenOptions::flush_check) is `Full`.
//!
//! ```
//! use shardex::{CheckLevel, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(3))?;
//! let report = index.check(CheckLevel::Full)?;
//! assert!(report.is_clean(), "{report}");
//! let stats = index.stats()?;
//! assert!(stats.background_error.is_none() && stats.poisoned.is_none() && stats.read_only.is_none());
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! # Disk space
//! [`disk_bytes`](crate::IndexStats::disk_bytes) is the space that the files take, which is less than their lengths where
//! they have holes. A second after the last write, and at a close, an index gives back what it does not need
//! ([`reclaimable_bytes`](crate::IndexStats::reclaimable_bytes)), except for a 32nd part, and a mebibyte at most.
//!
//! The slots of removed postings come back when their shards are rewritten. That happens in the background from an eighth of
//! the slots on ([`compaction_bytes_per_second`](crate::OpenOptions::compaction_bytes_per_second)), or at once by
//! [`compact`](crate::Shardex::compact). Cells keep the postings of rewritten shards, so searches stay as fast. While writes go on, it keeps up to four times [`flush_wal_bytes`](crate::OpenOptions::flush_wal_bytes) of
//! free space. Until a flush, the older of the two roots needs what was removed since
//! ([`held_bytes`](crate::IndexStats::held_bytes)), and so does a snapshot until it is dropped
//! ([`held_by_readers_bytes`](crate::IndexStats::held_by_readers_bytes)).
//!
//! # Erasure
//! A removal hides a posting at once. Its bytes stay in the files until they are overwritten by chance: in slots, free pages, the
//! WAL, the sum and centroid of its shard, its codes. [`purge`](crate::Shardex::purge) removes them all before it returns, and
//! waits for readers as long as it is told to. It says which snapshots are still held.
//!
//! ```
//! use std::time::Duration;
//! use shardex::{DocumentId, Posting, PostingKey, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(2))?;
//! index.add_postings(vec![Posting::new(PostingKey::new(7u32, 0, 1), vec![0.25, 0.5])])?;
//! index.remove_documents(vec![DocumentId(7)])?;
//! let report = index.purge(Duration::from_secs(10))?; // waits for readers up to ten seconds
//! println!("{} bytes wiped", report.wiped_bytes);
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! It reaches the files of the index and nothing else. File systems with snapshots, journals with data, spare blocks of flash
//! memory, swap, core dumps, backups and copies may keep bytes. Where that matters, encrypt the device, and erase the copies too.
//!
//! # Backups
//! [`backup_to`](crate::Shardex::backup_to) makes a backup while others write and search: the state of one flush.
//! [`backup_with`](crate::Shardex::backup_with) against an earlier backup stores only what is new.
//! [`restore`](crate::Shardex::restore) makes an index of a backup, and [`verify_backup`](crate::Shardex::verify_backup) reads one
//! and compares every byte with its hash.
//!
//! ```
//! use shardex::{BackupOptions, DocumentId, Posting, PostingKey, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let at = |name: &str| dir.path().join(name);
//! let index = Shardex::create(ShardexConfig::new(at("index")).vector_size(2))?;
//! index.add_postings(vec![Posting::new(PostingKey::new(7u32, 0, 1), vec![0.25, 0.5])])?;
//! index.backup_to(at("monday"))?;
//! index.add_postings(vec![Posting::new(PostingKey::new(8u32, 0, 1), vec![0.5, 0.5])])?;
//! index.backup_with(at("tuesday"), &BackupOptions::default().base(at("monday")))?;
//! std::fs::remove_dir_all(at("monday")).unwrap(); // does no harm to the later one
//!
//! Shardex::restore(at("tuesday"), at("restored"))?;
//! let restored = Shardex::open(at("restored"))?;
//! assert!(restored.contains(DocumentId(8))?);
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! A backup keeps what a later purge erases in the index: remove the backups of before as well. The index and one restored from its
//! backup have the same id, and go on by themselves: a backup of one may serve as the base of the other's.
//!
//! A closed index can also be backed up by copying its directory. A copy opens on any Linux file system that supports file locks.
//!
//! # Versions
//! This build reads indexes of format versions 1 to 3. The first write to one of version 1 or 2 upgrades it, which can't be
//! undone: earlier builds then reject it with [`UnsupportedVersion`](crate::ShardexError::UnsupportedVersion), as this
//! one rejects an index of a later version. An open or a search converts nothing.
