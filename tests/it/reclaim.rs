//! The one lock-free protocol: a place is used again only when no snapshot holds it. Its steps, under a scheduler that tries
//! many interleavings.
//!
//! In the engine: `Shardex` loads the published snapshot, `Engine::publish` replaces it, and `Working::release` frees a place
//! whose `Arc` it can unwrap. Here the same steps on the scheduler's own `Arc`, with an atomic pointer's load and store
//! as single steps.

use shuttle::{
    sync::{Arc, Mutex},
    thread,
};

/// Pages of the file; few, so that they are used again soon.
const PAGES: usize = 4;
const WRITES: u64 = 5;

/// An extent's place.
struct Place(usize);

/// What a search sees: a place, and what its page held when this was published.
#[derive(Clone)]
struct Snapshot {
    place: Arc<Place>,
    value: u64,
}

/// How the writer finds out that a place is free.
#[derive(Clone, Copy)]
enum Free {
    /// As the engine does.
    Unwrapped,
    /// By counting, before the new snapshot is published: too early.
    Early,
}

fn run(free_by: Free) {
    let pages: Arc<Vec<Mutex<u64>>> = Arc::new((0..PAGES).map(|_| Mutex::new(0)).collect());
    let first = Snapshot { place: Arc::new(Place(0)), value: 0 };
    let published = Arc::new(Mutex::new(Arc::new(first)));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (pages, published) = (Arc::clone(&pages), Arc::clone(&published));
            thread::spawn(move || {
                for _ in 0..3 {
                    let snapshot = Arc::clone(&published.lock().expect("no panic"));
                    // A search reads while the writer goes on.
                    for _ in 0..2 {
                        let value = *pages[snapshot.place.0].lock().expect("no panic");
                        assert_eq!(value, snapshot.value, "a place was used again while a snapshot held it");
                    }
                }
            })
        })
        .collect();
    let mut free: Vec<usize> = (1..PAGES).collect();
    let mut limbo: Vec<Arc<Place>> = Vec::new();
    for value in 1..=WRITES {
        let Some(page) = free.pop() else { break };
        *pages[page].lock().expect("no panic") = value;
        let next = Arc::new(Snapshot { place: Arc::new(Place(page)), value });
        let old = std::mem::replace(&mut *published.lock().expect("no panic"), next);
        match free_by {
            Free::Unwrapped => limbo.push(Arc::clone(&old.place)),
            Free::Early => free.push(old.place.0),
        }
        drop(old);
        limbo = limbo
            .into_iter()
            .filter_map(|place| match Arc::try_unwrap(place) {
                Ok(place) => {
                    free.push(place.0);
                    None
                }
                Err(held) => Some(held),
            })
            .collect();
    }
    for reader in readers {
        reader.join().expect("a reader");
    }
}

#[test]
fn a_place_is_used_again_only_when_no_snapshot_holds_it() {
    shuttle::check_random(|| run(Free::Unwrapped), 5_000);
    shuttle::check_pct(|| run(Free::Unwrapped), 5_000, 3);
}

/// The scheduler finds the mistake that the protocol is there to prevent.
#[test]
#[should_panic(expected = "a place was used again while a snapshot held it")]
fn freeing_a_place_without_asking_its_holders_is_found() {
    shuttle::check_random(|| run(Free::Early), 5_000);
}
