//! Testing one's own program on the simulated disk: power cuts at every operation of a small program.
//!
//! `shardex-sim` has a `Storage` in memory that loses what a power cut may lose. A program that takes its storage as a parameter
//! runs on it unchanged.
//!
//! `cargo run --example simulated_disk --features internals`

use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{DocumentId, Engine, OpenOptions, Posting, ShardexConfig, storage::Storage};
use shardex_sim::{CrashKind, SimStorage, Stop, workload};

fn posting(n: u64) -> Posting {
    Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector: vec![n as f32, 1.0], tags: 0 }
}

/// The program under test: adds postings, commits every third, and reports how many are durable.
fn program<S: Storage>(storage: S, durable: &mut u64) -> shardex::Result<()> {
    let config = ShardexConfig::new("simulated").vector_size(2).wal_segment_size(4 * storage.page_size());
    let mut engine = Engine::create(storage, &config, &workload::env())?;
    for n in 0..10 {
        engine.add(&[posting(n)])?;
        if n % 3 == 2 {
            engine.commit()?;
            *durable = n + 1;
        }
    }
    engine.close()?;
    *durable = 10;
    Ok(())
}

/// Runs the example.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Once without a crash, to count the operations of the storage.
    let storage = SimStorage::new(512, 64, 1);
    program(storage.clone(), &mut 0)?;
    let operations = storage.operations();

    let mut recovered = 0;
    for after in 1..=operations {
        for seed in 0..8 {
            let mut storage = SimStorage::new(512, 64, seed);
            storage.crash_after(after, Stop::Torn);
            let mut durable = 0;
            let stopped = program(storage.clone(), &mut durable);
            assert!(stopped.is_err() || durable == 10, "the power went");
            // Each dirty sector keeps any of the versions it had.
            storage.crash(CrashKind::Power, &mut ChaCha8Rng::seed_from_u64(seed));
            match Engine::open(storage, OpenOptions::default(), &workload::env()) {
                Ok(engine) => {
                    let found = engine.stats()?.total_postings;
                    assert!(found >= durable, "operation {after}: {found} postings, {durable} were durable");
                    recovered += 1;
                }
                // The power went before the index was complete.
                Err(shardex::ShardexError::NotFound { .. }) => assert_eq!(durable, 0),
                Err(error) => return Err(error.into()),
            }
        }
    }
    println!("{operations} crash points, {} power cuts, {recovered} recoveries, nothing lost", operations * 8);
    Ok(())
}
