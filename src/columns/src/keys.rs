//! Keys of the rows of one table, to find duplicates.
//!
//! Keys that ascend need no memory. At the first one that does not, the keys before it are read again and kept: 33 bytes
//! per place of a hash table, so 38 to 75 bytes per row.

use std::collections::{HashMap, hash_map::Entry};

use shardex::PostingKey;

use crate::{
    columns::{ColumnNames, Layout, Part},
    error::Result,
    table::Table,
};

/// Rows read at once when keys are read again.
const ROWS: usize = 8_192;

/// Keys seen so far.
#[derive(Debug)]
pub(crate) enum SeenKeys {
    /// All keys ascend. The value is the last one.
    Ascending(Option<PostingKey>),
    /// Row of each key.
    Rows(HashMap<PackedKey, PackedRow>),
}

/// Key without padding.
type PackedKey = [u32; 6];
/// Row number without padding.
type PackedRow = [u32; 2];

fn pack(key: PostingKey) -> PackedKey {
    let id = key.document_id.0;
    [id as u32, (id >> 32) as u32, (id >> 64) as u32, (id >> 96) as u32, key.start, key.length]
}

impl SeenKeys {
    /// Returns the keys of the first `rows` rows of a table.
    ///
    /// # Errors
    /// Returns those of a pass over the keys.
    pub(crate) fn of(table: &Table, names: &ColumnNames, rows: u64) -> Result<Self> {
        let mut seen = Self::Ascending(None);
        each(table, names, rows, |row, key| seen.add(table, names, row, key).map(drop))?;
        Ok(seen)
    }

    /// Adds the key of the next row. Returns the earlier row with this key, if there is one.
    ///
    /// # Errors
    /// Returns those of a pass over the keys.
    pub(crate) fn add(&mut self, table: &Table, names: &ColumnNames, row: u64, key: PostingKey) -> Result<Option<u64>> {
        if let Self::Ascending(last) = self {
            match last {
                Some(last) if *last == key => return Ok(Some(row - 1)),
                Some(last) if *last > key => {
                    let mut rows = HashMap::new();
                    each(table, names, row, |row, key| {
                        // The first row of a key is named.
                        rows.entry(pack(key)).or_insert([row as u32, (row >> 32) as u32]);
                        Ok(())
                    })?;
                    *self = Self::Rows(rows);
                }
                _ => {
                    *last = Some(key);
                    return Ok(None);
                }
            }
        }
        let Self::Rows(rows) = self else { return Ok(None) };
        match rows.entry(pack(key)) {
            Entry::Occupied(earlier) => {
                let [low, high] = *earlier.get();
                Ok(Some(u64::from(low) | u64::from(high) << 32))
            }
            Entry::Vacant(place) => {
                place.insert([row as u32, (row >> 32) as u32]);
                Ok(None)
            }
        }
    }
}

/// Calls `visit` with the keys of the first `rows` rows.
fn each(
    table: &Table,
    names: &ColumnNames,
    rows: u64,
    mut visit: impl FnMut(u64, PostingKey) -> Result<()>,
) -> Result<()> {
    let layout = Layout::of(table, names, Part::Keys)?;
    for batch in table.batches(&layout.projection, 0, rows, ROWS)? {
        let (first, batch) = batch?;
        let columns = layout.columns(first, batch.columns())?;
        for i in 0..batch.num_rows() {
            visit(first + i as u64, columns.key(i)?)?;
        }
    }
    Ok(())
}
