//! Tests of an open without room for its recovery.

use super::*;

#[test]
fn without_room_to_recover_reads_are_served_and_writes_refused_and_nothing_is_lost() {
    let plain = SimStorage::new(512, 64, 1);
    let mut engine = Engine::create(plain.clone(), &config("sim", 2048), &env()).expect("made");
    let mut model = Model::default();
    for n in 0..9 {
        apply(&mut engine, &batch(n)).expect("accepted");
        model.accept(batch(n));
        if n == 4 {
            engine.flush().expect("flushed");
        }
    }
    engine.commit().expect("durable");
    model.acknowledge();
    drop(engine);
    let mut crashed = SimStorage::from_image(&plain.image());
    crashed.crash(CrashKind::Power, &mut ChaCha8Rng::seed_from_u64(3));
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let storage = HookStorage::new(crashed.clone(), move |info| {
        let data = info.file == "data" && !info.op.is_sync();
        if is_full.load(Ordering::Relaxed) && data {
            HookAction::Fail(ErrorKind::StorageFull)
        } else {
            HookAction::Proceed
        }
    });
    let mut engine = Engine::open(storage.clone(), OpenOptions::default(), &env()).expect("it serves reads");
    let some = engine.snapshot().live;
    assert!(some > 0, "the durable root's state at least");
    let refused = apply(&mut engine, &batch(1)).expect_err("it only reads");
    assert!(matches!(&refused, ShardexError::ReadOnly { cause } if cause.is_out_of_space()), "{refused}");
    assert!(refused.is_out_of_space() && refused.to_string().contains("open it again"), "{refused}");
    assert!(matches!(engine.flush(), Err(ShardexError::ReadOnly { .. })));
    drop(engine);
    full.store(false, Ordering::Relaxed);
    let mut engine = Engine::open(storage, OpenOptions::default(), &env()).expect("there is room again");
    model.recovered(&engine).expect("nothing is lost");
    clean(&engine, "after the recovery");
    apply(&mut engine, &batch(1)).expect("accepted");
}

/// A compaction changes no posting. So a replay that finds no room for one goes on to the records after it.
#[test]
fn without_room_for_a_compaction_the_records_after_it_are_replayed() {
    let plain = SimStorage::new(512, 64, 1);
    let mut engine = Engine::create(plain.clone(), &config("sim", 2048), &env()).expect("made");
    let postings: Vec<Posting> =
        (0..64u64).map(|id| crate::support::posting(id.into(), 0, vector(id, DIMENSION))).collect();
    engine.add(&postings).expect("accepted");
    engine.flush().expect("flushed");
    let all: Vec<DocumentId> = (0..64u64).map(|id| DocumentId(id.into())).collect();
    let live = |engine: &Engine<_>| engine.snapshot().live;
    engine.remove(&all[11..12]).expect("removed");
    assert!(engine.compact_step(64, u64::MAX).expect("rewritten") > 0);
    let before = live(&engine);
    engine.remove(&all[20..21]).expect("removed");
    engine.commit().expect("durable");
    let after = live(&engine);
    assert!(after < before && after > 0);
    drop(engine);
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let storage = HookStorage::new(SimStorage::from_image(&plain.image()), move |info| {
        let data = info.file == "data" && !info.op.is_sync();
        if is_full.load(Ordering::Relaxed) && data {
            HookAction::Fail(ErrorKind::StorageFull)
        } else {
            HookAction::Proceed
        }
    });
    let engine = Engine::open(storage.clone(), OpenOptions::default(), &env()).expect("it serves reads");
    assert!(engine.is_read_only());
    assert_eq!(engine.snapshot().live, after);
    drop(engine);
    full.store(false, Ordering::Relaxed);
    let engine = Engine::open(storage, OpenOptions::default(), &env()).expect("there is room again");
    assert_eq!((engine.is_read_only(), engine.snapshot().live), (false, after));
    clean(&engine, "after the recovery");
}

/// Regression: closing such an index was refused like a write. A caller that opened it to read or to check it got an
/// error.
#[test]
fn an_index_without_room_to_recover_can_be_searched_checked_and_closed() {
    // The disk is full for the first store of the open: the replacement root file, the roots stored again, or the
    // replay.
    for (batches, full_file) in [(0, "root.new"), (3, "root"), (9, "data")] {
        let plain = SimStorage::new(512, 64, 1);
        let mut engine = Engine::create(plain.clone(), &config("sim", 2048), &env()).expect("made");
        for n in 0..batches {
            apply(&mut engine, &batch(n)).expect("accepted");
        }
        engine.commit().expect("durable");
        drop(engine);
        let mut crashed = SimStorage::from_image(&plain.image());
        crashed.crash(CrashKind::Process, &mut ChaCha8Rng::seed_from_u64(3));
        let (full, met) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (is_full, is_met) = (Arc::clone(&full), Arc::clone(&met));
        let storage = HookStorage::new(crashed.clone(), move |info| {
            let hit = info.file == full_file && !info.op.is_sync() && is_full.load(Ordering::Relaxed);
            is_met.fetch_or(hit, Ordering::Relaxed);
            if hit { HookAction::Fail(ErrorKind::StorageFull) } else { HookAction::Proceed }
        });
        let read = async |storage: HookStorage<SimStorage>| {
            let index = Shardex::open_on(storage, OpenOptions::default(), env()).await?;
            let stats = index.stats().await?;
            let report = index.check(CheckLevel::Full).await?;
            assert!(report.is_clean(), "{full_file}: {report}");
            let hits = index.search(&vector(1, DIMENSION), 1000, None).await?.len() as u64;
            assert_eq!(hits, stats.total_postings, "{full_file}");
            index.close().await?;
            Ok::<_, ShardexError>(stats)
        };
        let stats = crate::support::block_on(read(storage.clone())).expect("it is read without room");
        assert!(met.load(Ordering::Relaxed), "{full_file}: nobody asked for room");
        assert!(stats.read_only.is_some_and(|why| why.contains(full_file)), "{full_file}");
        full.store(false, Ordering::Relaxed);
        let stats = crate::support::block_on(read(storage)).expect("there is room again");
        assert_eq!((stats.read_only, stats.recovery.records_replayed), (None, batches), "{full_file}");
    }
}
