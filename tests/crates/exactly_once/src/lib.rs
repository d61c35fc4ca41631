//! Example: an index that stays equal to a database, however often its process is killed.
//!
//! SQLite is the source. The table `notes` has the texts, and triggers log each change of it in the table `changes`, in the
//! same transaction. The [`Ingester`] reads the changes after the index's cursor and writes them as one batch that also
//! moves the cursor. So the index at cursor `n` equals the database at change `n`:
//!
//! 1. Each change is in the index exactly once: a batch and its cursor are accepted together, and a crash undoes both or
//!    neither.
//! 2. No change is forgotten too early: the log is trimmed only up to `durable_cursor`, which no crash can undo.
//! 3. The index is never ahead of the database: SQLite syncs each transaction before the ingester can read it.
//!
//! [`ingest`] is what an application would copy. The rest makes changes ([`writer`]), kills the process in the middle of
//! its work ([`demo`]), and compares the index with the database ([`check`]).

pub mod check;
pub mod demo;
pub mod ingest;
pub mod note;
pub mod run;
pub mod source;
pub mod writer;

pub use ingest::{IngestError, Ingester};
pub use note::{Note, NoteId};
pub use source::Source;
