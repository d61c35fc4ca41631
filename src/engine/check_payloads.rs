//! The parts of a full check that concern payloads and the cursor: their bytes, and the page ranges that roots name.

use std::collections::BTreeSet;

use super::{
    check_tools::{mark, note, read},
    core::{Engine, Lent},
    directory,
    findings::{At, Component, ConsistencyReport},
    load_payloads::{bucket_directory, ranges_of, read_bucket},
};
use crate::{
    env::Cancel,
    error::Result,
    failpoint::holds,
    format::{
        bucket::{PayloadBytes, PayloadEntry, PayloadOwner, PayloadRun},
        crc32c,
        root::Root,
    },
    lease::PageRange,
    payload::{PayloadIndex, name},
    shard::DataFile,
    space::{SpaceMap, Use},
    storage::{Storage, StorageFile},
};

/// Identity of the bytes of an entry: checksum and runs.
type ContentId = (u32, Vec<PayloadRun>);

/// Returns the identities of all contents in runs.
fn identities<L: std::ops::Deref<Target = [u8]> + Clone>(payloads: &PayloadIndex<L>) -> BTreeSet<ContentId> {
    let in_runs = payloads.iter().map(crate::payload::StoredPayload::entry).filter_map(|entry| id_of(&entry));
    in_runs.collect()
}

fn id_of(entry: &PayloadEntry) -> Option<ContentId> {
    match &entry.content {
        PayloadBytes::Inline(_) => None,
        PayloadBytes::Runs(runs) => Some((entry.crc, runs.clone())),
    }
}

/// Marks the page ranges of the buckets and payloads that a root names, and checks its buckets.
pub(super) fn check_buckets<S: Storage>(
    engine: &Engine<S>,
    report: &mut ConsistencyReport,
    root: &Root,
    space: &mut SpaceMap,
    seen: &mut BTreeSet<PageRange>,
) -> Result<()> {
    let data = &*engine.data;
    let Some(buckets) = note(report, Component::Directory, bucket_directory(root, data))? else { return Ok(()) };
    for entry in buckets.entries() {
        report.bytes_read += u64::from(entry.len);
        mark(report, space, seen, directory::run_of(entry, data.geometry()), Use::Meta);
    }
    let mut payloads = 0;
    for number in 0..root.payload.buckets {
        let bucket = read_bucket(&buckets.state(number as usize), number, root, data);
        let Some(bucket) = note(report, Component::Directory, bucket)? else { return Ok(()) };
        ranges_of(&bucket, data).into_iter().for_each(|run| mark(report, space, seen, run, Use::Meta));
        payloads += bucket.entries.iter().filter(|entry| entry.owner != PayloadOwner::Cursor).count() as u64;
    }
    let what = format!("payloads below root {}", root.generation);
    report.expect(At::new(Component::Directory), &what, root.payload.payloads, payloads);
    Ok(())
}

/// Checks the bytes of the payloads that a retained root names and the working state doesn't. A crash may bring them
/// back into use.
pub(super) fn check_payloads_of_roots<S: Storage>(engine: &Engine<S>, report: &mut ConsistencyReport) -> Result<()> {
    let data = &*engine.data;
    let mut checked = identities(&engine.work.payloads);
    for root in [Some(engine.roots.newest()), engine.roots.older()].into_iter().flatten() {
        // `check_buckets` has already reported damage in the directory and in buckets.
        let Ok(buckets) = bucket_directory(root, data) else { continue };
        for number in 0..root.payload.buckets {
            let bucket = read_bucket(&buckets.state(number as usize), number, root, data);
            for entry in bucket.iter().flat_map(|bucket| &bucket.entries) {
                if id_of(entry).is_none_or(|id| checked.insert(id)) {
                    check_bytes(report, entry, data)?;
                }
            }
        }
    }
    Ok(())
}

/// Checks the bytes of all payloads and of the cursor, as read from the disk.
pub(super) fn check_contents<S: Storage>(
    report: &mut ConsistencyReport,
    payloads: &PayloadIndex<Lent<S>>,
    data: &DataFile<S::File>,
    cancel: &dyn Cancel,
) -> Result<()> {
    for content in payloads.iter() {
        cancel.check()?;
        check_bytes(report, &content.entry(), data)?;
    }
    Ok(())
}

fn check_bytes<F: StorageFile>(report: &mut ConsistencyReport, entry: &PayloadEntry, data: &DataFile<F>) -> Result<()> {
    let (mut found, mut offset) = (0, 0);
    match &entry.content {
        PayloadBytes::Inline(bytes) => found = crc32c(found, bytes),
        PayloadBytes::Runs(runs) => {
            let at = |run: &PayloadRun| run.page * data.geometry().page_size as u64 + u64::from(run.offset);
            offset = runs.first().map_or(0, at);
            for run in runs {
                found = crc32c(found, &read(report, data, at(run), run.len as usize)?);
            }
        }
    }
    if !holds!(Checksum, found == entry.crc) {
        let at = At::new(Component::Payload).location(data.path(), offset);
        let what = format!("checksum of {}", name(entry.owner));
        report.add(at, &what, format!("{:08x}", entry.crc), format!("{found:08x}"));
    }
    Ok(())
}
