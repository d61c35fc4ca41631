//! The exploration of the reference workloads, as far as a test may take; and the cases in `corpus/crash`, each a bug that
//! once was.

use std::{collections::BTreeSet, fs, path::Path};

use shardex_sim::{
    case::{Case, Event, FAULT_CLASSES},
    explorer::{self, Limits, Report},
    mutant::{How, Mutant},
    mutation::{self, Fate},
    shrink, workload,
};

/// Less than the command does, in each dimension.
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

/// Each flushes twice at least, and all but one split a shard, free one or recycle a segment.
#[test]
fn the_reference_workloads_hold_what_matters() {
    let mut small = 0;
    for workload in workload::reference() {
        let name = workload.name.clone();
        let events = workload.steps.iter().cloned().map(Event::Do).collect();
        let verdict = Case { workload, seed: 1, garbage: false, events }.run();
        assert_eq!((&verdict.broken, &verdict.detected), (&None, &None), "{name}");
        let flushes = verdict.trace.iter().filter(|entry| entry.purpose.0.starts_with("B2")).count();
        assert!(flushes >= 2, "{name}: {flushes} flushes");
        let busy = ["a shard was split", "a shard without a posting went", "a segment was recycled"];
        small += usize::from(!busy.iter().any(|mark| verdict.marks.contains_key(mark)));
    }
    assert!(small <= 1, "{small} workloads neither split, free nor recycle");
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

/// The tester tested: the first mutant of all, and those of the simulator. The command `mutants` runs all.
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
    // As if a removal after a flush were a failure.
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

/// Replays one file of `corpus/crash`.
fn crash(name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/crash").join(name);
    let text = fs::read_to_string(&file).expect("the case is there");
    let case: Case = text.parse().expect("a case");
    if let Some(broken) = case.run().broken {
        panic!("{name}: {broken}\n{text}");
    }
}

/// Declares a test for each bug that the simulation has found: what happened, and the case that shows it.
macro_rules! post_mortems {
    ($($(#[doc = $text:literal])+ $name:ident: $file:literal;)+) => {
        $($(#[doc = $text])+
        #[test]
        fn $name() {
            crash($file);
        })+

        /// Every file has its test.
        const FILES: &[&str] = &[$($file),+];
    };
}

post_mortems! {
    /// One slot went back to a root of before an earlier crash. Its generation had been given out again since, in a later
    /// epoch; the roots were compared by generation alone, so the old one could count as the newest. They are compared
    /// by epoch first.
    a_root_of_an_earlier_epoch_is_not_the_newest: "stale-root-of-an-earlier-epoch.case";
    /// The same without a tie: the newest root went back, the other one and the closing mark were fine, and the clean open
    /// left it at that. When the other slot rotted later, the old root was all there was, and its log was gone. An open is
    /// clean only if both roots are of one epoch and follow one another; else both are stored anew.
    a_clean_open_mends_a_root_that_went_back: "stale-root-left-by-a-clean-open.case";
    /// The newest root went back by one store, to the root before the other one: these two followed one another, and the clean
    /// open left it at that. But both of the roots that there had been knew all, so the log behind the older one was let go,
    /// and the closing mark lay there; had the other slot rotted, nothing would have led to the index. An open is clean only
    /// if the log behind the older root is still there.
    a_root_that_went_back_may_still_follow: "stale-root-that-still-follows.case";
    /// An open had made the root file anew and died before its entry was durable; the new file's newest root then went back to
    /// the one of `create`. The next recovery believed it, replayed the log into places that it knew nobody to use, and a power
    /// cut brought the old file back, which named them. A recovery makes the file anew before it stores anything else.
    a_recovery_stores_nothing_before_its_root_file_is_there: "old-root-file-behind-a-recovery.case";
    /// The root file was cut behind its first slot. A recovery gave it its pages back and stored both roots, but its syncs made no
    /// length durable; the next store of the first slot was torn by a power cut, and the second was gone. What stores the roots
    /// again makes the length durable with them.
    a_cut_root_file_gets_a_durable_length: "cut-root-file-that-is-long-in-the-cache.case";
    /// A bit rotted after the first read of its extent. The split that came next trusted the first check and copied the
    /// bytes under a new checksum: nobody could find the damage any more. What is copied is checked when it is.
    a_split_does_not_hide_rot: "rot-copied-by-a-split.case";
    /// A full check inside a flush did not know the places that this flush had just taken, and called them used by nobody.
    a_full_check_knows_the_flush_it_is_in: "full-check-in-a-flush.case";
    /// The store of a root failed and left its slot torn. The full check of the next try expected the older root there,
    /// and refused every flush from then on.
    a_torn_root_does_not_stop_full_checks: "full-check-after-a-torn-root.case";
    /// An index copied with holes onto a full disk: allocating failed, the open was to read only, and replay stored
    /// postings all the same, into the holes.
    an_index_with_holes_and_no_room_only_reads: "holes-without-room.case";
    /// A device lied about a sync and gave back the root of before. The new epoch counted from that root, and was one that
    /// had been used: after the next crash its old records were replayed. No epoch that a segment names is used again.
    an_epoch_is_never_used_twice: "epoch-used-twice.case";
    /// The root file was gone. `create` took the rest for an interrupted create and cleared it, with everything that had
    /// been acknowledged. It is none if the log was written to.
    create_does_not_clear_an_index_without_its_root: "lost-root-cleared-by-create.case";
    /// The log file was cut where records had been. Its chain just ended early, which looks like a torn tail. Each root
    /// names the length that the log has at least.
    a_log_that_was_cut_is_refused: "cut-log.case";
    /// A root of an earlier epoch came back into one slot. A state below it lay in a place that the newest root's tree uses by
    /// now; the two were taken for one, so that the old tree passed for whole, and every full check, also the one inside
    /// a flush, found its damage and refused. They are the same only if length and checksum are.
    a_place_used_again_is_not_the_state_it_was: "stale-root-with-a-place-used-again.case";
    /// The sync of `create`'s rename failed. By R8 the entry is clean then and perhaps not durable; `create` was called again,
    /// synced the directory, which did nothing, and went on. The power cut took the root file. A root file that nobody
    /// has relied on yet is made anew.
    a_root_whose_entry_is_in_doubt_is_made_anew: "failed-sync-of-the-rename.case";
    /// A commit's sync failed and the page cache fell back to an empty log. The next open took the index for one that nobody
    /// had written to, renamed a new root file into place, and died before it synced the entry. The open after that saw the
    /// used log, which the device had, and left the entry alone: a power cut brought the old root file back. An open now
    /// replaces a root file of epoch 1 whatever it believes of the log.
    an_open_makes_the_entry_durable_whatever_the_log_says: "root-file-replaced-and-not-synced.case";
    /// The sector of a segment's header went back to the slot's use before. Its acknowledged frames were never looked at,
    /// and the log ended early, like a torn tail. Frames under a header that is not theirs now prove that records are missing.
    frames_under_a_header_of_before_are_not_a_torn_tail: "stale-segment-header.case";
    /// The only segment header had rotten, and later the root file was gone. `create` asked the headers whether the log was
    /// written to, and cleared everything. An interrupted `create` has stored file headers alone: what holds more is kept.
    create_clears_nothing_but_headers: "index-without-root-and-log-header.case";
    /// A root's sync failed. The page cache fell back to the root before it, and the device held the new one. The recovery in
    /// the same process stored over places that only the new one named, before it stored over that root: a power cut between
    /// left a newest root of foreign bytes. Recovery stores both slots anew before anything else. The protocol monitor
    /// found it; of the crashes tried, none did.
    a_recovery_stores_over_a_newer_root_first: "newer-root-behind-the-cache.case";
    /// The log between the checkpoints of the two roots had rotten before a clean open. The full check looked there only once
    /// something was written, so that the damage was found when the newest root went back.
    a_full_check_after_a_clean_open_reads_the_log_between_the_roots: "rot-before-a-clean-open.case";
    /// A root goes back after a clean close, and the one before it names a log that was used again since. A full check in the
    /// flush of the recovery, which makes both roots do without that log, asked for it.
    a_full_check_in_a_recovery_needs_no_log_of_before: "full-check-after-a-stale-root.case";
    /// The judges: a root file that is made anew and has its name, but not yet its entry, leads where the one before leads.
    what_both_root_files_lead_to_may_be_acknowledged: "root-file-under-either-name.case";
    /// Two prefixes that leave the same are told apart by the LSN.
    of_prefixes_that_leave_the_same_the_lsn_tells: "prefixes-that-leave-the-same.case";
    /// A directory node that rots hides a vector below it that rots, too, from who has only the files.
    rot_below_a_rotten_node_is_an_excuse: "rot-below-a-rotten-node.case";
    /// A planned crash comes in the judge's own question.
    a_crash_may_come_while_the_judge_asks: "stop-while-the-judge-asks.case";
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
