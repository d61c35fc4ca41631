//! Judges how `data` is divided: overlaps, places, chunks, leaks.

use std::collections::BTreeMap;

use super::root::{Geometry, RootInfo};
use super::{Finding, Kind, Part, Report, Run, What};

/// A run of pages, whatever it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First page.
    pub page: u64,
    /// Pages.
    pub pages: u64,
}

fn chunk_of(page: u64, geometry: &Geometry) -> u64 {
    page.saturating_sub(1) / geometry.chunk_pages
}

/// Runs of one tree, ascending, share no pages and lie where their kind may lie.
pub(super) fn check_tree(
    runs: &[Run],
    root: &RootInfo,
    geometry: &Geometry,
    slot: Option<usize>,
    findings: &mut Vec<Finding>,
) {
    let mut find = |kind, run: &Run, what| {
        let offset = run.page.saturating_mul(root.page);
        findings.push(Finding { kind, part: run.what.part(), slot, file: "data", offset, what });
    };
    let mut last: Option<&Run> = None;
    for run in runs {
        if let Some(last) = last.filter(|last| last.end() > run.page) {
            find(Kind::Overlap, run, format!("{:?} and {:?} share page {}", last.what, run.what, run.page));
        }
        if last.is_none_or(|last| run.end() > last.end()) {
            last = Some(run);
        }
        let (first, end) = (chunk_of(run.page, geometry), chunk_of(run.end() - 1, geometry));
        if first != end {
            let what = format!("{:?} reaches from chunk {first} into chunk {end}", run.what);
            find(Kind::Misaligned, run, what);
        } else if run.what.is_extent() && !within(run.page, geometry).is_multiple_of(geometry.extent_pages) {
            let what = format!("{:?} is at page {} of its chunk", run.what, within(run.page, geometry));
            find(Kind::Misaligned, run, what);
        }
    }
    check_chunks([runs, &[]], root, geometry, slot, findings);
}

fn within(page: u64, geometry: &Geometry) -> u64 {
    page.saturating_sub(1) % geometry.chunk_pages
}

/// No chunk holds both extents and metadata.
fn check_chunks(
    trees: [&[Run]; 2],
    root: &RootInfo,
    geometry: &Geometry,
    slot: Option<usize>,
    findings: &mut Vec<Finding>,
) {
    let mut chunks: BTreeMap<u64, bool> = BTreeMap::new();
    for run in trees.into_iter().flatten() {
        let chunk = chunk_of(run.page, geometry);
        if *chunks.entry(chunk).or_insert(run.what.is_extent()) != run.what.is_extent() {
            let what = format!("chunk {chunk} holds extents and metadata: {:?}", run.what);
            let offset = run.page.saturating_mul(root.page);
            findings.push(Finding { kind: Kind::ChunkMixed, part: Part::Space, slot, file: "data", offset, what });
        }
    }
}

/// What two roots reach is the same at the same place, or apart. Of an extent, the newer root may use more slots.
pub(super) fn check_both(trees: [&[Run]; 2], root: &RootInfo, findings: &mut Vec<Finding>) {
    let geometry = root.geometry();
    let mut mixed = Vec::new();
    check_chunks(trees, root, &geometry, None, &mut mixed);
    // What a tree alone has shown is known.
    mixed.retain(|new| !findings.iter().any(|old| old.kind == Kind::ChunkMixed && old.offset == new.offset));
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
            let (kind, part) = (Kind::Overlap, Part::Space);
            findings.push(Finding { kind, part, slot: None, file: "data", offset, what });
        }
    }
}

/// Whether two roots may reach these runs, which share pages.
fn may_share(one: &Run, other: &Run) -> bool {
    match (one.what, other.what) {
        (What::Extent { used_slots, crc, .. }, What::Extent { used_slots: others, crc: sum, .. }) => {
            one.page == other.page && (used_slots != others || crc == sum)
        }
        // The same bytes; the number of a node's or a state's follows from where it is named.
        _ => one == other,
    }
}

/// P6: judges the engine's own map of used pages by what the roots reach.
///
/// `used` is what the engine holds for used, `readers` what readers hold, `working` what its working state holds that no
/// root names yet. A page that is used for nobody is a [`Kind::Leak`], a page that somebody needs and that is free
/// a [`Kind::FreeButLive`]: one finding per run of such pages.
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
    let leaked = leaked.iter().map(|span| find(Kind::Leak, span, "used by nobody"));
    leaked
        .chain(freed.iter().map(|span| find(Kind::FreeButLive, span, "needed, but free in the engine's map")))
        .collect()
}

/// The same pages as ascending runs with room between them. The header's page is nobody's.
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

/// The pages of `from` that `what` has not; both merged.
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
