//! The write-ahead log: batches in the order in which they were accepted, durable before anything else is.
//!
//! One file: a header page, then segments of equal size, used again when no retained root needs them. Invariants:
//! 1. A commit ends on a sector boundary, so no acknowledged sector is ever stored to again.
//! 2. Within an epoch an LSN never gets other bytes: a store that failed is repeated with the same bytes in the same
//!    place.
//! 3. A segment belongs to one epoch; appends after an open start a new epoch in a free segment, so nothing behind a torn
//!    tail can ever continue a chain.
//! 4. Every segment but the newest is filled with frames to its last byte.
//!
//! This module knows frames, not what is in them.

mod layout;
mod reader;
mod writer;

pub use layout::WalLayout;
pub use reader::{Record, Tail, has_segment, replay};
pub use writer::WalWriter;
