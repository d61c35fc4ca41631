//! Write-ahead log (WAL): the accepted batches in order. A commit makes batches durable here, until a flush makes
//! them durable in the shards.
//!
//! The WAL is one file: a header page, then segments of equal size. A segment is reused when no retained root needs it.
//! Invariants:
//! 1. A commit ends on a sector boundary, so no store touches an acknowledged sector again.
//! 2. Within an epoch an LSN is never assigned to different bytes: a failed store is repeated with the same bytes at
//!    the same position.
//! 3. A segment belongs to one epoch. Appends after an open start a new epoch in a free segment, so no frame behind a
//!    torn tail can continue a chain.
//! 4. Every segment except the newest of its epoch is filled with frames to its last byte.
//!
//! This module does not interpret the payloads of frames.

mod growth;
mod layout;
mod reader;
mod segments;
mod trim;
mod wipe;
mod writer;

pub use layout::WalLayout;
pub use reader::{Record, Tail, has_segments, replay};
pub use writer::{WalLimits, WalWriter};
