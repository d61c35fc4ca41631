//! Model: postings, documents, batches, metrics, encodings, snapshots, recall.
//!
//! # Postings
//! A [`Posting`](crate::Posting) is a part of a document with a vector: a document id of 128 bits, the start and length
//! of the part in a unit that the program chooses, and the vector. A document may also have a payload, such as its text.
//! An id may be a number, a UUID, or the hash of a name: [`DocumentId::of_name`](crate::DocumentId::of_name).
//!
//! (document id, start, length) is the **key**. Adding a posting with a stored key replaces the stored posting, so
//! adding the same batch twice changes nothing. Removing a document removes all its postings, and its payload.
//!
//! Tags are 64 bits per posting for [filters](crate::Filter).
//!
//! ```
//! use shardex::{DocumentId, Posting, PostingKey, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(2))?;
//! let part = |start, vector: [f32; 2]| Posting::new(PostingKey::new(1u32, start, 10), vector.to_vec());
//! index.add_postings(vec![part(0, [1.0, 0.0]), part(10, [0.0, 1.0])])?;
//! index.add_postings(vec![part(10, [0.6, 0.8])])?; // replaces the second part
//! assert_eq!(index.stats()?.total_postings, 2);
//! assert_eq!(index.get(DocumentId(1))?[1].vector, [0.6, 0.8]); // read back as added, up to rounding under cosine
//! assert_eq!(index.remove_documents(vec![DocumentId(1)])?, 2);
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! A [`WriteBatch`](crate::WriteBatch) is a list of operations that takes effect as a whole. It may replace documents, set
//! their payloads, remove single postings or all that pass a filter, and move the application's cursor. No search and no
//! crash finds a part of it.
//!
//! ```
//! use shardex::{DocumentId, Posting, PostingKey, ShardexConfig, WriteBatch, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(2))?;
//! let mut batch = WriteBatch::new();
//! batch
//!     .replace_document(DocumentId(1), vec![Posting::new(PostingKey::new(1u32, 0, 5), vec![0.6, 0.8])])
//!     .set_payload(DocumentId(1), "hello")
//!     .set_cursor("event 17");
//! assert_eq!(index.write(batch)?.added, 1);
//! assert_eq!(index.payload(DocumentId(1))?, Some(b"hello".to_vec()));
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! # Metrics
//! | [`Metric`](crate::Metric) | score, higher is nearer | stored as |
//! |---|---|---|
//! | `Cosine` (default) | cosine | normalised, with its norm; a norm below 1.2e-38 is rejected |
//! | `L2` | negated squared Euclidean distance | as given |
//! | `Dot` | dot product | as given |
//!
//! A [`VectorEncoding`](crate::VectorEncoding) other than f32 rounds the stored vectors and saves half or three quarters of
//! their bytes. Scores are those of the rounded vectors. By cosine they may then be off by the error of a norm: see there.
//!
//! # Writes and snapshots
//! One writer applies writes in the order in which they were queued. A write that returned is **accepted**: every later
//! search sees it, unless a sync fails meanwhile (see [failure](super::failure)). A search runs on an
//! immutable snapshot and is never blocked by a write.
//! [`Shardex::snapshot`](crate::Shardex::snapshot) returns the snapshot itself, for searches that must agree with each
//! other.
//!
//! # Recall
//! **Recall** is the share of the true `k` nearest postings that a search finds, averaged over queries. Without further
//! options a search aims at 0.95. [`SearchOptions::recall`](crate::SearchOptions::recall) asks for another recall, and
//! [`SearchOptions::exact`](crate::SearchOptions::exact) compares every vector. The index calibrates itself on its own
//! data: [`IndexStats::recall`](crate::IndexStats::recall) shows the measured recalls and their LSN. A query unlike the
//! stored data is flagged: [`SearchResponse::calibrated`](crate::SearchResponse::calibrated) is false, unless the
//! search compared every vector or had no target recall.
