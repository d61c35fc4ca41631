//! Single flipped bits, a sample of them. `shardex-sim flips` flips every one.

use shardex_sim::flips::{FlipOutcome, flip};

#[test]
fn a_flipped_bit_is_found_or_changes_nothing() {
    let report = flip(211, 2).expect("the indexes are made");
    assert!(report.violations.is_empty(), "{:#?}", &report.violations[..report.violations.len().min(10)]);
    assert!(report.flips() >= 8 * report.bytes / 211, "{} of {} bytes", report.flips(), report.bytes);
    // Every way to find damage has found some, and what is free may change.
    for outcome in FlipOutcome::ALL {
        assert!(report.regions.values().any(|outcomes| outcomes.contains_key(&outcome)), "{outcome:?}");
    }
    // Everything that an answer may depend on is covered: nothing there is taken for harmless.
    let harmless = |region: &str| {
        report.regions.get(region).expect("it was flipped").get(&FlipOutcome::Harmless).copied().unwrap_or_default()
    };
    for part in
        ["shard states", "nodes", "codes", "table of the cells", "tags", "buckets of payloads", "payloads", "header"]
    {
        assert_eq!(harmless(&format!("closed: data, {part}")), 0, "{part}");
    }
    assert_eq!(harmless("closed: data, postings"), 0);
}
