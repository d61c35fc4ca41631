//! Interleaving tests of the only lock-free protocol: an allocation is reused only when no reader holds it. The
//! reclaimer itself runs under a scheduler that tries many interleavings of a writer and readers.
//!
//! The handle of an allocation is the only object that both sides use, so the scheduler must control it. The reclaimer
//! therefore runs on handles made of the scheduler's own `Arc`. A mutex stands for the atomic pointer to the snapshot,
//! because a load and a store of that pointer are single steps.

use shardex::{
    Generation, ShardexConfig,
    format::geometry::IndexParams,
    lease::{Allocation, IndexLock},
    space::{Reclaimer, Shared, Use},
};
use shuttle::{
    sync::{Arc, Mutex},
    thread,
};

const WRITES: u64 = 9;

/// Handle as in the engine, but on the scheduler's `Arc`.
#[derive(Clone)]
struct Counted(Arc<Allocation>);

impl Shared for Counted {
    fn new(allocation: Allocation) -> Self {
        Self(Arc::new(allocation))
    }

    fn allocation(&self) -> &Allocation {
        &self.0
    }

    fn into_allocation(self) -> Result<Allocation, Self> {
        Arc::try_unwrap(self.0).map_err(Self)
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Handle that gives away its allocation while others hold it: the mistake that the protocol prevents.
#[derive(Clone)]
struct Careless {
    allocation: std::sync::Arc<std::sync::Mutex<Option<Allocation>>>,
    // Allocation that readers use after the real one was given away.
    shown: std::sync::Arc<Allocation>,
}

impl Shared for Careless {
    fn new(allocation: Allocation) -> Self {
        let geometry = geometry();
        // A second allocation of the same page range, which real handles never have (invariant 5 of the reclaimer).
        let mut other = Reclaimer::<std::sync::Arc<Allocation>>::new(&geometry, 1, Generation(0), IndexLock::none());
        let shown = other.adopt(&[(allocation.run(), Use::Extent)]).expect("it is an extent").remove(0);
        Self { allocation: std::sync::Arc::new(std::sync::Mutex::new(Some(allocation))), shown }
    }

    fn allocation(&self) -> &Allocation {
        &self.shown
    }

    fn into_allocation(self) -> Result<Allocation, Self> {
        let taken = self.allocation.lock().expect("no panic").take();
        taken.ok_or(self)
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// Returns the geometry of a data file whose chunks have eight extents, so that allocations are reused soon.
fn geometry() -> IndexParams {
    IndexParams::of(&ShardexConfig::new("x").vector_size(16).shard_size(8).wal_segment_size(4096), 512, 64)
}

/// Snapshot that a search uses: an allocation, and the content of its page when the snapshot was published.
struct Snapshot<P> {
    allocation: P,
    value: u64,
}

fn run<P: Shared + Clone + Send + Sync + 'static>() {
    let geometry = geometry();
    let pages: Arc<Vec<Mutex<u64>>> = Arc::new((0..=geometry.chunk_pages()).map(|_| Mutex::new(0)).collect());
    let mut space: Reclaimer<P> = Reclaimer::new(&geometry, 1, Generation(1), IndexLock::none());
    let allocation = space.take_extent().expect("room");
    let published = Arc::new(Mutex::new(Arc::new(Snapshot { allocation, value: 0 })));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (pages, published) = (Arc::clone(&pages), Arc::clone(&published));
            thread::spawn(move || {
                for _ in 0..3 {
                    let snapshot = Arc::clone(&published.lock().expect("no panic"));
                    // A search reads while the writer continues, and a hit outlives its snapshot.
                    for hit in [snapshot.allocation.clone(), snapshot.allocation.clone()] {
                        let value = *pages[hit.allocation().run().page as usize].lock().expect("no panic");
                        assert_eq!(value, snapshot.value, "a place was used again while a reader held it");
                    }
                }
            })
        })
        .collect();
    for value in 1..=WRITES {
        let Some(allocation) = space.take_extent() else { break };
        *pages[allocation.allocation().run().page as usize].lock().expect("no panic") = value;
        let next = Arc::new(Snapshot { allocation: allocation.clone(), value });
        let old = std::mem::replace(&mut *published.lock().expect("no panic"), next);
        space.retire(old.allocation.clone(), Use::Extent);
        drop(old);
        // The flush of the next root.
        let root = Generation(value + 1);
        space.begin(root);
        space.made_durable(root);
    }
    for reader in readers {
        reader.join().expect("a reader");
    }
}

#[test]
fn a_place_is_used_again_only_when_no_reader_holds_it() {
    shuttle::check_random(run::<Counted>, 3_000);
    shuttle::check_pct(run::<Counted>, 3_000, 3);
}

/// The scheduler finds the mistake that the protocol prevents.
#[test]
#[should_panic(expected = "a place was used again while a reader held it")]
fn freeing_a_place_without_asking_its_holders_is_found() {
    shuttle::check_random(run::<Careless>, 5_000);
}
