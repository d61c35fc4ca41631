//! The one lock-free protocol: a place is used again only when no reader holds it. The reclaimer itself, under a scheduler
//! that tries many interleavings of a writer and readers.
//!
//! The handle on a place is the only thing that both sides touch, so it is what the scheduler must see: the reclaimer runs on
//! handles of the scheduler's own `Arc`. An atomic pointer's load and store are single steps.

use shardex::{
    Generation, ShardexConfig,
    format::geometry::Geometry,
    lease::{IndexLock, Place},
    space::{Reclaimer, Shared, Use},
};
use shuttle::{
    sync::{Arc, Mutex},
    thread,
};

const WRITES: u64 = 9;

/// The handle of the engine, on the scheduler's `Arc`.
#[derive(Clone)]
struct Counted(Arc<Place>);

impl Shared for Counted {
    fn new(place: Place) -> Self {
        Self(Arc::new(place))
    }

    fn place(&self) -> &Place {
        &self.0
    }

    fn into_place(self) -> Result<Place, Self> {
        Arc::try_unwrap(self.0).map_err(Self)
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// A handle that gives its place away without asking who else holds it: the mistake that the protocol prevents.
#[derive(Clone)]
struct Careless {
    place: std::sync::Arc<std::sync::Mutex<Option<Place>>>,
    // What a reader may look at while the place is given away.
    shown: std::sync::Arc<Place>,
}

impl Shared for Careless {
    fn new(place: Place) -> Self {
        let geometry = geometry();
        // A second place of the same run, which a real handle could never have.
        let mut other = Reclaimer::<std::sync::Arc<Place>>::new(&geometry, 1, Generation(0), IndexLock::none());
        let shown = other.adopt(&[(place.run(), Use::Extent)]).expect("it is an extent").remove(0);
        Self { place: std::sync::Arc::new(std::sync::Mutex::new(Some(place))), shown }
    }

    fn place(&self) -> &Place {
        &self.shown
    }

    fn into_place(self) -> Result<Place, Self> {
        let taken = self.place.lock().expect("no panic").take();
        taken.ok_or(self)
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// A data file of one chunk: eight extents, so that places are used again soon.
fn geometry() -> Geometry {
    Geometry::of(&ShardexConfig::new("x").vector_size(16).shard_size(8).wal_segment_size(4096), 256, 64)
}

/// What a search sees: a place, and what its page held when this was published.
struct Snapshot<P> {
    place: P,
    value: u64,
}

fn run<P: Shared + Clone + Send + Sync + 'static>() {
    let geometry = geometry();
    let pages: Arc<Vec<Mutex<u64>>> = Arc::new((0..=geometry.chunk_pages()).map(|_| Mutex::new(0)).collect());
    let mut space: Reclaimer<P> = Reclaimer::new(&geometry, 1, Generation(1), IndexLock::none());
    let place = space.take_extent().expect("room");
    let published = Arc::new(Mutex::new(Arc::new(Snapshot { place, value: 0 })));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (pages, published) = (Arc::clone(&pages), Arc::clone(&published));
            thread::spawn(move || {
                for _ in 0..3 {
                    let snapshot = Arc::clone(&published.lock().expect("no panic"));
                    // A search reads while the writer goes on, and a hit outlives its snapshot.
                    for hit in [snapshot.place.clone(), snapshot.place.clone()] {
                        let value = *pages[hit.place().run().page as usize].lock().expect("no panic");
                        assert_eq!(value, snapshot.value, "a place was used again while a reader held it");
                    }
                }
            })
        })
        .collect();
    for value in 1..=WRITES {
        let Some(place) = space.take_extent() else { break };
        *pages[place.place().run().page as usize].lock().expect("no panic") = value;
        let next = Arc::new(Snapshot { place: place.clone(), value });
        let old = std::mem::replace(&mut *published.lock().expect("no panic"), next);
        space.retire(old.place.clone(), Use::Extent);
        drop(old);
        // A flush.
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

/// The scheduler finds the mistake that the protocol is there to prevent.
#[test]
#[should_panic(expected = "a place was used again while a reader held it")]
fn freeing_a_place_without_asking_its_holders_is_found() {
    shuttle::check_random(run::<Careless>, 5_000);
}
