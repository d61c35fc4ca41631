//! Checks the allocation of pages in `data`: overlaps, alignment, chunks and leaks.

use std::collections::BTreeMap;

use super::root::{Parameters, RootInfo};
use super::{Finding, FindingKind, PageSpan, Part, Report, What};

/// Page range without regard to its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First page.
    pub page: u64,
    /// Number of pages.
    pub pages: u64,
}

fn chunk_of(page: u64, geometry: &Parameters) -> u64 {
    page.saturating_sub(1) / geometry.chunk_pages
}

/// Checks that the allocations of one tree, in ascending order, share no pages and are aligned as their kind requires.
pub(super) fn check_tree(
    runs: &[PageSpan],
    root: &RootInfo,
    geometry: &Parameters,
    slot: Option<usize>,
    findings: &mut Vec<Finding>,
) {
    let mut find = |kind, run: &PageSpan, what| {
        let offset = run.page.saturating_mul(root.page);
        findings.push(Finding { kind, part: run.what.part(), slot, file: "data", offset, what });
    };
    let mut last: Option<&PageSpan> = None;
    for run in runs {
        if let Some(last) = last.filter(|last| last.end() > run.page) {
            find(FindingKind::Overlap, run, format!("{:?} and {:?} share page {}", last.what, run.what, run.page));
        }
        if last.is_none_or(|last| run.end() > last.end()) {
            last = Some(run);
        }
        let (first, end) = (chunk_of(run.page, geometry), chunk_of(run.end() - 1, geometry));
        if first != end {
            let what = format!("{:?} reaches from chunk {first} into chunk {end}", run.what);
            find(FindingKind::Misaligned, run, what);
        } else if run.what.is_extent() && !within(run.page, geometry).is_multiple_of(geometry.extent_pages) {
            let what = format!("{:?} is at page {} of its chunk", run.what, within(run.page, geometry));
            find(FindingKind::Misaligned, run, what);
        }
    }
    check_chunks([runs, &[]], root, geometry, slot, findings);
}

fn within(page: u64, geometry: &Parameters) -> u64 {
    page.saturating_sub(1) % geometry.chunk_pages
}

/// Checks that no chunk holds both extents and metadata.
fn check_chunks(
    trees: [&[PageSpan]; 2],
    root: &RootInfo,
    geometry: &Parameters,
    slot: Option<usize>,
    findings: &mut Vec<Finding>,
) {
    let mut chunks: BTreeMap<u64, bool> = BTreeMap::new();
    for run in trees.into_iter().flatten() {
        let chunk = chunk_of(run.page, geometry);
        if *chunks.entry(chunk).or_insert(run.what.is_extent()) != run.what.is_extent() {
            let what = format!("chunk {chunk} holds extents and metadata: {:?}", run.what);
            let offset = run.page.saturating_mul(root.page);
            findings.push(Finding {
                kind: FindingKind::ChunkMixed,
                part: Part::Space,
                slot,
                file: "data",
                offset,
                what,
            });
        }
    }
}

/// Checks that allocations of two roots are either equal or disjoint. The two roots may use different numbers of slots
/// of one extent.
pub(super) fn check_both(trees: [&[PageSpan]; 2], root: &RootInfo, findings: &mut Vec<Finding>) {
    let geometry = root.geometry();
    let mut mixed = Vec::new();
    check_chunks(trees, root, &geometry, None, &mut mixed);
    // Drops findings that the check of a single tree has already reported.
    mixed.retain(|new| !findings.iter().any(|old| old.kind == FindingKind::ChunkMixed && old.offset == new.offset));
    findings.append(&mut mixed);
    let [first, second] = trees;
    let mut others = second.iter().peekable();
    for run in first {
        while others.peek().is_some_and(|other| other.end() <= run.page) {
            others.next();
        }
        let overlapping = others.clone().take_while(|other| other.page < run.end());
        for other in overlapping.filter(|other| !may_share(run, other)) {
            let what = format!("the roots disagree: {run:?} and {other:?}");
            let offset = run.page.max(other.page).saturating_mul(root.page);
            let (kind, part) = (FindingKind::Overlap, Part::Space);
            findings.push(Finding { kind, part, slot: None, file: "data", offset, what });
        }
    }
}

/// Reports whether two roots may both reach these two allocations, which share pages.
fn may_share(one: &PageSpan, other: &PageSpan) -> bool {
    match (one.what, other.what) {
        (What::Extent { used_slots, crc, .. }, What::Extent { used_slots: others, crc: sum, .. }) => {
            one.page == other.page && (used_slots != others || crc == sum)
        }
        (What::Block, What::Block) => (one.page, one.pages) == (other.page, other.pages),
        // Both roots must reach the same bytes with the same meaning. The number of a node or state follows from the
        // referring entry.
        _ => one == other,
    }
}

/// Compares the engine's map of used pages with the pages that the roots reach (P6).
///
/// `used` holds the pages that the engine counts as used. `readers` holds the pages that readers pin, and `working`
/// those of the working state that no root names yet. A used page that nothing needs is a [`FindingKind::Leak`]. A
/// needed page that is free is a [`FindingKind::FreeButLive`]. Each contiguous range of such pages gives one finding.
#[must_use]
pub fn used_map(report: &Report, used: &[Span], readers: &[Span], working: &[Span]) -> Vec<Finding> {
    let Some(root) = report.root() else { return Vec::new() };
    let live = report.trees.iter().flatten().flat_map(|tree| &tree.runs);
    let live = merged(live.map(|run| Span { page: run.page, pages: run.pages }));
    let needed = merged(live.iter().chain(readers).chain(working).copied());
    let used = merged(used.iter().copied());
    let find = |kind, span: &Span, what: &str| Finding {
        kind,
        part: Part::Space,
        slot: None,
        file: "data",
        offset: span.page.saturating_mul(root.page),
        what: format!("pages {} to {} are {what}", span.page, span.page.saturating_add(span.pages)),
    };
    let leaked = minus(&used, &needed);
    let freed = minus(&needed, &used);
    let leaked = leaked.iter().map(|span| find(FindingKind::Leak, span, "used by nobody"));
    leaked
        .chain(freed.iter().map(|span| find(FindingKind::FreeButLive, span, "needed, but free in the engine's map")))
        .collect()
}

/// Merges page ranges into ascending ranges that neither overlap nor touch.
fn merged(spans: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut spans: Vec<Span> = spans.filter(|span| span.pages > 0).collect();
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        let end = span.page.saturating_add(span.pages);
        match merged.last_mut() {
            Some(last) if last.page.saturating_add(last.pages) >= span.page => {
                last.pages = last.pages.max(end - last.page);
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// Returns the pages of `from` that are not in `what`. Both must be merged.
fn minus(from: &[Span], what: &[Span]) -> Vec<Span> {
    let mut left = Vec::new();
    for span in from {
        let (mut page, end) = (span.page, span.page.saturating_add(span.pages));
        let first = what.partition_point(|hole| hole.page.saturating_add(hole.pages) <= span.page);
        for hole in what.iter().skip(first).take_while(|hole| hole.page < end) {
            if hole.page > page {
                left.push(Span { page, pages: hole.page - page });
            }
            page = page.max(hole.page.saturating_add(hole.pages));
        }
        if page < end {
            left.push(Span { page, pages: end - page });
        }
    }
    left
}
