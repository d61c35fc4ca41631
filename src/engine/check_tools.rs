//! Steps that the parts of a full check share.

use std::collections::BTreeSet;

use super::findings::{At, Component, ConsistencyReport};
use crate::{
    error::{Result, ShardexError},
    lease::PageRange,
    shard::DataFile,
    space::{SpaceMap, Use},
    storage::StorageFile,
};

/// Reads bytes of the data file by copying, and counts them.
pub(super) fn read<F: StorageFile>(
    report: &mut ConsistencyReport,
    data: &DataFile<F>,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    data.raw().read_at(offset, &mut bytes)?;
    report.bytes_read += len as u64;
    Ok(bytes)
}

/// Turns `Corruption` into a finding. All other errors are returned.
pub(super) fn note<T>(report: &mut ConsistencyReport, component: Component, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ShardexError::Corruption { file, offset, what }) => {
            report.add(At::new(component).location(file, offset), &what, "intact bytes", "damaged ones");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Marks a page range as used, unless that was done. A range that overlaps another is a finding.
pub(super) fn mark(
    report: &mut ConsistencyReport,
    space: &mut SpaceMap,
    seen: &mut BTreeSet<PageRange>,
    run: PageRange,
    used_as: Use,
) {
    if !seen.insert(run) {
        return;
    }
    let marked = match used_as {
        Use::Extent => space.mark_extent(run.page),
        Use::Meta => space.mark_meta(run),
    };
    if let Err(why) = marked {
        report.add(At::new(Component::Space), "an allocation belongs to one owner", "one", why);
    }
}
