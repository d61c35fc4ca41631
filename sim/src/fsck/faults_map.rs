//! Planted faults in the engine's map of used pages.

use super::build::image;
use super::faults::at_page;
use super::*;

fn spans(runs: &[(u64, u64)]) -> Vec<Span> {
    runs.iter().map(|(page, pages)| Span { page: *page, pages: *pages }).collect()
}

fn live(report: &Report) -> Vec<Span> {
    report.used_pages().into_iter().map(|page| Span { page, pages: 1 }).collect()
}

#[test]
fn exactly_the_live_pages_are_right() {
    let report = image().check();
    assert_eq!(used_map(&report, &live(&report), &[], &[]), []);
}

#[test]
fn a_page_that_nobody_needs_leaks() {
    let report = image().check();
    let mut used = live(&report);
    used.extend(spans(&[(7, 2), (27, 1)]));
    let found: Vec<_> = used_map(&report, &used, &[], &[]).iter().map(|f| (f.kind, f.offset)).collect();
    assert_eq!(found, [(FindingKind::Leak, at_page(7)), (FindingKind::Leak, at_page(27))]);
    // A reader pins one of the page ranges, and the working state needs the other.
    assert_eq!(used_map(&report, &used, &spans(&[(7, 2)]), &spans(&[(27, 1)])), []);
    let found: Vec<_> =
        used_map(&report, &used, &spans(&[(7, 1)]), &spans(&[(27, 1)])).iter().map(|f| f.offset).collect();
    assert_eq!(found, [at_page(8)]);
}

#[test]
fn a_live_page_that_is_free_is_worse() {
    let report = image().check();
    let used: Vec<Span> = live(&report).into_iter().filter(|span| span.page != 18).collect();
    let found: Vec<_> = used_map(&report, &used, &[], &[]).iter().map(|f| (f.kind, f.offset)).collect();
    // Only the older root reaches the page.
    assert_eq!(found, [(FindingKind::FreeButLive, at_page(18))]);
}
