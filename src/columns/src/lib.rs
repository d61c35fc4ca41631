//! Arrow and Parquet files for [Shardex](shardex): [`ingest`] adds the rows of a file to an index, [`export`] writes all
//! postings of an index to one.
//!
//! This is a crate of its own, so that the library depends on neither format. The program `shardex-columns` does the same
//! on the command line.
//!
//! ```
//! use shardex::{ShardexConfig, blocking::Shardex};
//! use shardex_columns::{ColumnNames, ExportOptions, IngestOptions, Table, export, ingest};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let index = Shardex::create(ShardexConfig::new(dir.path().join("a")).vector_size(2))?;
//! # index.add_postings(vec![shardex::Posting::new(shardex::PostingKey::new(7u32, 0, 1), vec![0.6, 0.8])])?;
//! # let file = dir.path().join("out.parquet");
//! export(&index, &file, &ExportOptions::default(), &mut ())?;
//!
//! let table = Table::open(&file)?;
//! let names = ColumnNames { start: Some("start".into()), length: Some("length".into()), ..ColumnNames::default() };
//! # let config = ShardexConfig::new(dir.path().join("b"));
//! let copy = Shardex::create(config.vector_size(table.dimension(&names)?))?;
//! let ingested = ingest(&copy, &table, &IngestOptions::new(names), &mut ())?;
//! assert_eq!((ingested.added, ingested.unread), (1, vec!["tags".to_owned()]));
//! # Ok(())
//! # }
//! ```

mod columns;
mod cursor;
mod error;
mod export;
mod ingest;
mod keys;
mod observer;
mod table;
mod target;
mod values;

pub use columns::ColumnNames;
pub use error::{ColumnsError, IngestError, Result};
pub use export::{ExportOptions, Exported, export};
pub use ingest::{IngestOptions, Ingested, ResumePolicy, ingest};
pub use observer::Observer;
pub use table::{Table, TableFormat};
