//! Exploration of the reference workloads within the time of a test, and replay of the cases in `corpus/crash`, each a
//! past bug.

use std::{collections::BTreeSet, fs, path::Path};

use shardex_sim::{
    case::{Case, Event, FAULT_CLASSES},
    explorer::{self, Limits, Report},
    mutant::{How, Mutant},
    mutation::{self, Fate},
    shrink, workload,
};

/// Limits below the defaults of the `explore` command in every field except the seed.
const LIMITS: Limits =
    Limits { states_per_point: 256, depth: 2, nested_states: 2, rotten_states: 4, sweep_stride: 3, seed: 1 };

fn total(reports: Vec<Report>) -> Report {
    let mut total = Report::default();
    reports.into_iter().for_each(|report| total.add(report));
    total
}

#[test]
fn the_reference_workloads_keep_every_promise_at_every_crash_point() {
    let mut workloads = workload::reference();
    assert!(workloads.len() >= 12);
    workloads.iter_mut().for_each(|workload| workload.small = false);
    let total = total(explorer::explore(&workloads, &LIMITS, 2));
    if let Some(first) = total.violations.first() {
        panic!("{} violations, the first: {first}", total.violations.len());
    }
    println!(
        "{} points, {} states, {} images, {} in recoveries, {} swept",
        total.crash_points, total.states, total.distinct_states, total.nested_states, total.sweep_cases
    );
    assert!(total.distinct_states >= 50_000, "{} images", total.distinct_states);
    assert_eq!(total.silent(), Vec::<&str>::new(), "never fired");
}

/// Each workload flushes at least twice. All but one split a shard, free a shard or a block of
/// payloads, or recycle a segment.
#[test]
fn the_reference_workloads_hold_what_matters() {
    let mut small = Vec::new();
    for workload in workload::reference() {
        let name = workload.name.clone();
        let events = workload.steps.iter().cloned().map(Event::Do).collect();
        let verdict = Case { workload, seed: 1, garbage: false, events }.run();
        assert_eq!((&verdict.broken, &verdict.detected), (&None, &None), "{name}");
        let flushes = verdict.trace.iter().filter(|entry| entry.purpose.0.starts_with("B2")).count();
        assert!(flushes >= 2, "{name}: {flushes} flushes");
        let busy = [
            "a shard was split",
            "a shard without postings was removed",
            "a segment was recycled",
            "the last payload of a block was removed",
        ];
        if !busy.iter().any(|mark| verdict.marks.contains_key(mark)) {
            small.push(name);
        }
    }
    assert!(small.len() <= 1, "these neither split, free nor recycle: {small:?}");
}

#[test]
fn an_exploration_is_the_same_for_any_number_of_threads() {
    let workloads: Vec<_> = workload::reference().into_iter().filter(|workload| !workload.small).take(3).collect();
    let limits = Limits { states_per_point: 8, sweep_stride: 40, ..LIMITS };
    let told = |threads| {
        let mut total = total(explorer::explore(&workloads, &limits, threads));
        total.checking = std::time::Duration::ZERO;
        format!("{total:?}")
    };
    assert_eq!(told(1), told(3));
}

/// The mutation run kills the first mutant and every mutant of the simulator. The command `mutants` runs all mutants.
#[test]
fn a_commit_without_its_sync_is_found_at_once_and_a_wrong_simulator_too() {
    let all = mutation::all();
    let first = all[0];
    assert!(matches!(first, Mutant::Call(call, How::Dropped) if call.purpose == "B1: commit"), "{first}");
    let simulator = all.iter().copied().filter(|mutant| matches!(mutant, Mutant::Simulator(_)));
    let chosen: Vec<Mutant> = std::iter::once(first).chain(simulator).collect();
    assert!(chosen.len() > 15);
    for row in mutation::run(&chosen, 50, 2, |_| ()) {
        assert!(matches!(row.fate, Fate::Killed { .. }), "{}: {:?}", row.mutant, row.fate);
    }
}

#[test]
fn mutants_come_from_all_kinds_of_code() {
    let mut kinds = std::collections::BTreeMap::new();
    mutation::all().iter().for_each(|mutant| *kinds.entry(mutant.kind()).or_insert(0) += 1);
    for kind in ["sync", "directory sync", "allocation", "checksum", "error check", "ordering"] {
        assert!(kinds.get(kind).is_some_and(|&n| n >= 5), "{kind}: {kinds:?}");
    }
}

#[test]
fn a_case_is_the_same_when_written_and_read() {
    for seed in 1..300 {
        let case = Case::generated(seed);
        let read: Case = case.to_string().parse().expect("a case reads what it writes");
        assert_eq!(read.to_string(), case.to_string());
        assert_eq!(read.events, case.events, "seed {seed}");
    }
    for (text, what) in [
        ("jump over", "`over` is no key=value"),
        ("jump height=3", "`jump` is no step"),
        ("add first=1", "needs count="),
        ("crash after=1 stop=Never kind=Power picks=", "no way to stop"),
        ("fault after=1 what=flood", "`flood` is no fault"),
    ] {
        let refused = text.parse::<Case>().expect_err(text);
        assert!(refused.contains("line 1") && refused.contains(what), "{refused}");
    }
}

#[test]
fn a_failure_shrinks_to_little() {
    // The failure is a removal after a flush.
    let fails = |case: &Case| {
        let steps: Vec<String> = case.events.iter().map(|event| format!("{event:?}")).collect();
        let flush = steps.iter().position(|step| step.contains("Flush"))?;
        steps[flush..].iter().any(|step| step.contains("Remove")).then(|| "as planned".to_owned())
    };
    let seed = (1..).find(|&seed| fails(&Case::generated(seed)).is_some()).expect("some seed");
    let (shrunk, why) = shrink::shrink_by(&Case::generated(seed), fails);
    assert_eq!(why, "as planned");
    assert_eq!(shrunk.events.len(), 2, "{shrunk}");
}

#[test]
fn every_class_of_faults_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = FAULT_CLASSES.into_iter().collect();
    assert_eq!(names.len(), FAULT_CLASSES.len());
}

/// Replays one file of `corpus/crash`, and panics if the case breaks a promise.
fn crash(name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/crash").join(name);
    let text = fs::read_to_string(&file).expect("the case is there");
    let case: Case = text.parse().expect("a case");
    if let Some(broken) = case.run().broken {
        panic!("{name}: {broken}\n{text}");
    }
}

/// Declares a test for each bug found by the simulation: its post-mortem and the case that reproduces it.
macro_rules! post_mortems {
    ($($(#[doc = $text:literal])+ $name:ident: $file:literal;)+) => {
        $($(#[doc = $text])+
        #[test]
        fn $name() {
            crash($file);
        })+

        /// Corpus files that have a test.
        const FILES: &[&str] = &[$($file),+];
    };
}

post_mortems! {
    /// One slot reverted to a root from before an earlier crash. The generation of that root had been assigned again
    /// since, in a later epoch. Roots were compared by generation alone, so the old one could count as the newest.
    /// Roots are now compared by epoch first.
    a_root_of_an_earlier_epoch_is_not_the_newest: "stale-root-of-an-earlier-epoch.case";
    /// The newest root reverted to one of an earlier epoch, without a tie of generations. The other root and the
    /// closing mark were intact, so the clean open left the roots unchanged. When the other slot rotted later, only the
    /// old root remained, and its WAL no longer existed. An open is now clean only if both roots belong to one epoch
    /// and have consecutive generations. Otherwise both are stored again.
    a_clean_open_mends_a_root_that_went_back: "stale-root-left-by-a-clean-open.case";
    /// The newest root reverted by one store, to the root before the other one. These two were consecutive, so the
    /// clean open left them unchanged. But both original roots had covered every record, so the WAL behind the older
    /// one had been freed, and the closing mark lay there. If the other slot had rotted, nothing would have led to the
    /// index. An open is now clean only if the WAL behind the older root still exists.
    a_root_that_went_back_may_still_follow: "stale-root-that-still-follows.case";
    /// An open had replaced the root file and crashed before the directory entry was durable. The newest root of the
    /// new file then reverted to the root of `create`. The next recovery relied on it and replayed the WAL into page
    /// ranges that were free according to it. A power cut brought back the old root file, which referred to those page
    /// ranges. A recovery now replaces the root file before it stores anything else.
    a_recovery_stores_nothing_before_its_root_file_is_there: "old-root-file-behind-a-recovery.case";
    /// The root file was cut behind its first slot. A recovery restored its pages and stored both roots, but its syncs
    /// made no length durable. A power cut tore the next store of the first slot, and the second slot was lost. Storing
    /// the roots again now makes the length durable too.
    a_cut_root_file_gets_a_durable_length: "cut-root-file-that-is-long-in-the-cache.case";
    /// A bit rotted after the first read of its extent. The next split relied on the first check and copied the bytes
    /// under a new checksum, so the damage could no longer be found. Bytes are now checked when they are copied.
    a_split_does_not_hide_rot: "rot-copied-by-a-split.case";
    /// A full check inside a flush missed the page ranges that this flush had just allocated, and reported them as
    /// unused.
    a_full_check_knows_the_flush_it_is_in: "full-check-in-a-flush.case";
    /// The store of a root failed and left its slot torn. The full check of the next attempt expected the older root
    /// there, and refused every flush from then on.
    a_torn_root_does_not_stop_full_checks: "full-check-after-a-torn-root.case";
    /// An index was copied with holes onto a full disk. The allocation failed and the open had to be read-only, but
    /// replay stored postings into the holes nevertheless.
    an_index_with_holes_and_no_room_only_reads: "holes-without-room.case";
    /// A device reported a sync that it had not done, and returned the previous root. The new epoch was counted from
    /// that root, and had been used before: after the next crash its old records were replayed. An epoch that appears
    /// in a segment is now never used again.
    an_epoch_is_never_used_twice: "epoch-used-twice.case";
    /// A sync of a purge failed. Its zeros stayed in the page cache, and the next purge found nothing to wipe there. After its
    /// own successful sync a power cut brought the removed bytes back. A wipe now stores zeros without looking.
    a_purge_trusts_no_zeros_in_memory: "purge-after-a-failed-sync.case";
    /// No bug: the shortest case that shows what the syncs of a purge are for. Their mutants survived long explorations.
    a_power_cut_after_a_purge_brings_nothing_back: "power-cut-after-a-purge.case";
    /// No bug: as above, if the sync of the wiped WAL fails.
    a_failed_wipe_of_the_wal_is_reported: "power-cut-after-a-failed-wipe-of-the-wal.case";
    /// A purge stored zeros into holes of a copied file. It now allocates their space first.
    a_purge_allocates_what_it_stores: "purge-of-a-copy-with-holes.case";
    /// The root file was missing. `create` took the other files for an interrupted `create` and removed them, with
    /// every acknowledged write. Files whose WAL was written to no longer count as an interrupted `create`.
    create_does_not_clear_an_index_without_its_root: "lost-root-cleared-by-create.case";
    /// The WAL file was cut at a position that had held records. Its chain ended early, which looks like a torn tail.
    /// Each root now contains the minimum length of the WAL.
    a_log_that_was_cut_is_refused: "cut-log.case";
    /// A root of an earlier epoch came back into one slot. It led to a shard state in a page range that the tree of the
    /// newest root has since reused. The two were taken for the same state, so the old tree passed for whole. Every
    /// full check, also the one inside a flush, found the damage of the old tree and refused. They are now the same
    /// only if length and checksum are equal.
    a_place_used_again_is_not_the_state_it_was: "stale-root-with-a-place-used-again.case";
    /// The sync of `create`'s rename failed. By R8 the entry is then clean and possibly not durable. A second `create`
    /// synced the directory, which had no effect, and continued. A power cut removed the root file. A root file that
    /// nothing has relied on yet is now replaced.
    a_root_whose_entry_is_in_doubt_is_made_anew: "failed-sync-of-the-rename.case";
    /// The sync of a commit failed, and the page cache reverted to an empty WAL. The next open took the index for one
    /// without a write, renamed a new root file into place, and crashed before it synced the entry. The open after that
    /// read the used WAL from the device and left the entry alone. A power cut brought back the old root file. An open
    /// now replaces a root file of epoch 1 regardless of the WAL.
    an_open_makes_the_entry_durable_whatever_the_log_says: "root-file-replaced-and-not-synced.case";
    /// The sector of a segment header reverted to the previous use of its slot. The acknowledged frames of the segment
    /// were never read, and the WAL ended early, as with a torn tail. Frames under a foreign header now prove that
    /// records are missing.
    frames_under_a_header_of_before_are_not_a_torn_tail: "stale-segment-header.case";
    /// The only segment header had rotted, and later the root file was missing. `create` read only the headers to find
    /// out whether the WAL was written to, and removed everything. An interrupted `create` has stored only file
    /// headers, so files with more content are now kept.
    create_clears_nothing_but_headers: "index-without-root-and-log-header.case";
    /// The sync of a root failed. The page cache reverted to the previous root, while the device held the new one. The
    /// recovery in the same process overwrote page ranges that only the new root referred to, before it overwrote that
    /// root. A power cut in between left a newest root that referred to foreign bytes. Recovery now stores both slots
    /// again before anything else. The protocol monitor found this bug. The crashes tried did not.
    a_recovery_stores_over_a_newer_root_first: "newer-root-behind-the-cache.case";
    /// The WAL between the checkpoints of the two roots had rotted before a clean open. The full check read that part
    /// only after a write, so the damage was found only when the newest root reverted.
    a_full_check_after_a_clean_open_reads_the_log_between_the_roots: "rot-before-a-clean-open.case";
    /// A root reverts after a clean close, and the previous root refers to a WAL that has been reused since. The full
    /// check in the flush of the recovery required that WAL, although the recovery makes both roots independent of it.
    a_full_check_in_a_recovery_needs_no_log_of_before: "full-check-after-a-stale-root.case";
    /// Bug in the checkers: a replacement root file that has its name but no durable entry yet leads to the same state
    /// as the previous file. State that both files lead to may be acknowledged.
    what_both_root_files_lead_to_may_be_acknowledged: "root-file-under-either-name.case";
    /// Bug in the checkers: several prefixes of the batches left the same postings, and the first of them was taken for
    /// the recovered one. The LSN now distinguishes them.
    of_prefixes_that_leave_the_same_the_lsn_tells: "prefixes-that-leave-the-same.case";
    /// Bug in the checkers: a rotten directory node hides a rotten vector below it from the independent checker, which
    /// has only the files.
    rot_below_a_rotten_node_is_an_excuse: "rot-below-a-rotten-node.case";
    /// Bug in the checkers: a planned crash can occur in a call that the checks themselves make.
    a_crash_may_come_while_the_judge_asks: "stop-while-the-judge-asks.case";
    /// The page of tags that only the older root named was rotten, and the open kept that root as a good one.
    tags_of_the_older_root_are_read_by_the_open: "rot-in-tags-of-the-older-root.case";
    /// The same before a full check, which found it after the open had not.
    tags_of_the_older_root_are_read_before_a_full_check: "rot-in-tags-before-a-full-check.case";
    /// Bug in the monitor: it took the bytes behind a root of version 1, which a failed upgrade had left, for a part of it.
    what_lies_behind_a_root_of_version_1_is_no_part_of_it: "older-version-over-a-failed-upgrade.case";
    /// Kills a mutant: an open must not take an acknowledged frame of a later version for a torn end.
    a_frame_of_a_later_version_is_refused: "frame-of-a-later-version.case";
    /// Kills a mutant: a rotten cursor is an error of the call that returns it.
    a_rotten_cursor_is_an_error: "rot-in-the-cursor.case";
    /// Kills a mutant: a cell build that reads vectors first compares their checksum.
    a_cell_build_compares_checksums: "rot-read-first-by-a-cell-build.case";
}

#[test]
fn every_case_in_the_corpus_is_named_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/crash");
    let found: BTreeSet<String> = fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|file| file.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, FILES.iter().map(|&file| file.to_owned()).collect());
}
