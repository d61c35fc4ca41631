//! Crash conformance: the rules R1 to R10, R12 and R15 on a backend that can crash. This module tests R1 to R7, the state after a
//! power cut. The module `faults` tests the rest.
//!
//! Each rule is tested over many seeds in both directions. No outcome that the rule forbids may occur, and every
//! outcome that it allows must occur, because a state that never occurs tests nothing.

use std::{collections::BTreeMap, fmt::Debug, io};

use rand::{SeedableRng, rngs::ChaCha8Rng};
use shardex::storage::{Storage, StorageFile};

use super::{Raw as _, TEST, file_of, fresh, ok, read};
use crate::storage::{CrashKind, SimStorage};

/// Number of crashes per test.
pub(super) const SEEDS: u64 = 400;

/// Storage that can crash.
pub trait Crash: Storage {
    /// Crashes the machine. Afterwards this handle belongs to the new boot.
    fn crash(&mut self, kind: CrashKind, rng: &mut ChaCha8Rng);

    /// Makes the next sync fail (R8).
    fn fail_next_sync(&self, kind: io::ErrorKind);

    /// Makes every store and deallocation fail (R9, R15); `None` ends this.
    fn fail_stores(&self, kind: Option<io::ErrorKind>);

    /// Limits the bytes of all files together (R9).
    fn set_capacity(&self, bytes: Option<u64>);
}

impl Crash for SimStorage {
    fn crash(&mut self, kind: CrashKind, rng: &mut ChaCha8Rng) {
        Self::crash(self, kind, rng);
    }

    fn fail_next_sync(&self, kind: io::ErrorKind) {
        Self::fail_next_sync(self, kind);
    }

    fn fail_stores(&self, kind: Option<io::ErrorKind>) {
        Self::fail_stores(self, kind);
    }

    fn set_capacity(&self, bytes: Option<u64>) {
        Self::set_capacity(self, bytes);
    }
}

/// Runs the crash conformance suite. Each call of `make` returns a separate storage with random decisions from the
/// seed. Its directory does not exist but can be made.
///
/// # Panics
/// At the first breach of a rule.
pub fn conformance_crash<S: Crash>(make: &dyn Fn(u64) -> S) {
    let suite = Suite { make };
    suite.synced_bytes_survive();
    suite.sectors_are_independent();
    suite.every_version_may_survive();
    suite.a_range_sync_covers_its_pages_alone();
    suite.a_sync_covers_what_there_was_when_it_began();
    suite.length_is_durable_by_sync_all();
    suite.cut_off_bytes_do_not_come_back();
    suite.deallocated_bytes_are_old_or_zeros();
    suite.deallocated_space_comes_back_or_not();
    suite.entries_are_durable_by_sync_dir();
    suite.entries_keep_their_order();
    suite.a_rename_is_atomic();
    suite.the_directory_is_durable_by_sync_parent();
    suite.a_failed_sync_is_final();
    suite.a_failed_sync_of_length_and_entries_is_final();
    suite.a_failed_store_may_store_any_sector();
    suite.space_ends();
    suite.a_process_crash_keeps_the_cache();
    suite.a_process_crash_may_hide_a_failed_sync();
    suite.locks_and_handles_end();
    suite.crashes_repeat();
}

pub(super) struct Suite<'a, S> {
    pub(super) make: &'a dyn Fn(u64) -> S,
}

impl<S: Crash> Suite<'_, S> {
    /// Counts the outcomes of a crash. `before` acts on a fresh storage, and `after` returns the outcome that the crash
    /// left.
    pub(super) fn outcomes<T: Ord + Debug>(
        &self,
        kind: CrashKind,
        before: impl Fn(&S),
        after: impl Fn(&S) -> T,
    ) -> BTreeMap<T, usize> {
        let mut seen = BTreeMap::new();
        for seed in 0..SEEDS {
            let mut storage = fresh(&|| (self.make)(seed));
            before(&storage);
            storage.crash(kind, &mut ChaCha8Rng::seed_from_u64(seed));
            *seen.entry(after(&storage)).or_insert(0) += 1;
        }
        seen
    }

    /// Asserts that exactly the `expected` outcomes were seen.
    #[track_caller]
    pub(super) fn expect<T: Ord + Debug>(seen: &BTreeMap<T, usize>, expected: impl IntoIterator<Item = T>, rule: &str) {
        let mut expected: Vec<T> = expected.into_iter().collect();
        expected.sort();
        assert!(seen.keys().eq(&expected), "{rule}: seen {seen:?}, expected exactly {expected:?}");
    }

    /// Creates a durable file of `len` zeros.
    pub(super) fn durable(storage: &S, name: &str, len: u64) -> std::sync::Arc<S::File> {
        let file = file_of(storage, name, len);
        ok(file.sync_all(TEST));
        ok(storage.sync_dir(TEST));
        file
    }

    /// Returns the first byte of each of `count` pieces of `step` bytes. Panics if the bytes of a piece differ.
    pub(super) fn firsts(storage: &S, count: usize, step: usize) -> Vec<u8> {
        let bytes = read(&*ok(storage.open("a")), 0, count * step);
        let pieces = bytes.chunks(step);
        pieces
            .map(|piece| {
                assert!(piece.iter().all(|byte| *byte == piece[0]), "R3: a sector is torn: {piece:?}");
                piece[0]
            })
            .collect()
    }

    fn synced_bytes_survive(&self) {
        for whole in [false, true] {
            let seen = self.outcomes(
                CrashKind::Power,
                |storage| {
                    let page = storage.page_size();
                    let file = Self::durable(storage, "a", 3 * page as u64);
                    ok(file.store(0, &vec![1; page], TEST));
                    ok(file.store(page as u64, &vec![2; 2 * page], TEST));
                    if whole {
                        ok(file.sync_all(TEST));
                    } else {
                        ok(file.sync_range(0, 3 * page as u64, TEST));
                    }
                },
                |storage| Self::firsts(storage, 3, storage.page_size()),
            );
            Self::expect(&seen, [vec![1, 2, 2]], if whole { "R5: sync_all" } else { "R4: sync_range" });
        }
    }

    fn sectors_are_independent(&self) {
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", 3 * sector as u64);
                ok(file.store(0, &vec![1; 2 * sector], TEST));
            },
            |storage| Self::firsts(storage, 3, storage.sector_size()),
        );
        // No store touched the third sector.
        let expected = [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]].map(Vec::from);
        Self::expect(&seen, expected, "R1, R3: each sector survives or not, by itself");
    }

    fn every_version_may_survive(&self) {
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", sector as u64);
                for version in 1..=3 {
                    ok(file.store(0, &vec![version; sector], TEST));
                }
            },
            |storage| Self::firsts(storage, 1, storage.sector_size()),
        );
        Self::expect(&seen, [0, 1, 2, 3].map(|v| vec![v]), "R2, R3: any version since the durable one");

        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", sector as u64);
                ok(file.store(0, &vec![1; sector], TEST));
                ok(file.store(0, &vec![2; sector], TEST));
                ok(file.sync_range(0, 1, TEST));
                ok(file.store(0, &vec![3; sector], TEST));
            },
            |storage| Self::firsts(storage, 1, storage.sector_size()),
        );
        Self::expect(&seen, [2, 3].map(|v| vec![v]), "R4: nothing of before a good sync comes back");
    }

    fn a_range_sync_covers_its_pages_alone(&self) {
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let page = storage.page_size();
                let file = Self::durable(storage, "a", 4 * page as u64);
                ok(file.store(0, &vec![1; 4 * page], TEST));
                // From the last byte of page 1 to the first byte of page 2.
                ok(file.sync_range(2 * page as u64 - 1, 2, TEST));
            },
            |storage| {
                let page = storage.page_size();
                let bytes = read(&*ok(storage.open("a")), 0, 4 * page);
                assert!(bytes[page..3 * page].iter().all(|b| *b == 1), "R4: the covering pages are durable whole");
                (bytes[0], bytes[4 * page - 1])
            },
        );
        Self::expect(&seen, [(0, 0), (0, 1), (1, 0), (1, 1)], "R4: pages beside the range are not durable");
    }

    fn a_sync_covers_what_there_was_when_it_began(&self) {
        for whole in [false, true] {
            let seen = |ends: bool| {
                self.outcomes(
                    CrashKind::Power,
                    |storage| {
                        let sector = storage.sector_size() as u64;
                        let range = (!whole).then_some((0, 2 * sector));
                        let file = Self::durable(storage, "a", 2 * sector);
                        ok(file.store(0, &vec![1; 2 * sector as usize], TEST));
                        let begun = ok(file.sync_begin(range, TEST));
                        ok(file.store(sector, &vec![2; sector as usize], TEST));
                        if ends {
                            ok(file.sync_end(begun, range, TEST));
                        }
                    },
                    |storage| Self::firsts(storage, 2, storage.sector_size()),
                )
            };
            Self::expect(
                &seen(true),
                [[1, 1], [1, 2]].map(Vec::from),
                "R4: what comes while a sync runs is not covered",
            );
            let any = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]].map(Vec::from);
            Self::expect(&seen(false), any, "R4: a sync that has not ended promises nothing");
        }
        // Covered bytes are durable even if they are stored again while the sync runs. A length set while it runs is
        // not durable.
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", sector as u64);
                ok(file.store(0, &vec![1; sector], TEST));
                let begun = ok(file.sync_begin(None, TEST));
                ok(file.store(0, &vec![2; sector], TEST));
                ok(file.store(0, &vec![1; sector], TEST));
                ok(file.allocate(0, 2 * sector as u64, TEST));
                ok(file.sync_end(begun, None, TEST));
            },
            |storage| (Self::firsts(storage, 1, storage.sector_size()), ok(ok(storage.open("a")).len())),
        );
        let first =
            |seen: &BTreeMap<(Vec<u8>, u64), usize>| seen.keys().map(|(first, _)| first.clone()).collect::<Vec<_>>();
        assert!(first(&seen).iter().all(|first| *first == [1] || *first == [2]), "R4: {seen:?}");
        assert!(seen.keys().any(|(first, _)| *first == [2]), "R3: {seen:?}");
        let lengths: std::collections::BTreeSet<u64> = seen.keys().map(|(_, len)| *len).collect();
        assert_eq!(lengths.len(), 2, "R6: {seen:?}");
    }

    fn length_is_durable_by_sync_all(&self) {
        let len = |storage: &S| ok(ok(storage.open("a")).len());
        let grow = |sync: fn(&S::File)| {
            move |storage: &S| {
                let file = Self::durable(storage, "a", 100);
                ok(file.allocate(0, 200, TEST));
                ok(file.allocate(0, 300, TEST));
                ok(file.store(0, &[1; 300], TEST));
                sync(&file);
            }
        };
        let seen = self.outcomes(CrashKind::Power, grow(|_| {}), len);
        Self::expect(&seen, [100, 200, 300], "R6: a pending length survives or not");
        let seen = self.outcomes(CrashKind::Power, grow(|file| ok(file.sync_range(0, 300, TEST))), len);
        Self::expect(&seen, [100, 200, 300], "R4: a range sync makes no length durable");
        let seen = self.outcomes(CrashKind::Power, grow(|file| ok(file.sync_all(TEST))), len);
        Self::expect(&seen, [300], "R5: sync_all makes the length durable");

        // The length is independent of the data, and lost data reads as zeros.
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", sector as u64);
                ok(file.allocate(0, 2 * sector as u64, TEST));
                ok(file.store(0, &vec![1; 2 * sector], TEST));
            },
            |storage| {
                let sector = storage.sector_size();
                let count = ok(ok(storage.open("a")).len()) as usize / sector;
                Self::firsts(storage, count, sector)
            },
        );
        let expected: [&[u8]; 6] = [&[0], &[1], &[0, 0], &[0, 1], &[1, 0], &[1, 1]];
        Self::expect(&seen, expected.map(Vec::from), "R6: the length is independent of the data");
    }

    fn cut_off_bytes_do_not_come_back(&self) {
        let mut seen = [false; 2];
        for seed in 0..SEEDS {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut storage = fresh(&|| (self.make)(seed));
            let file = Self::durable(&storage, "a", 100);
            ok(file.allocate(0, 5000, TEST));
            ok(file.store(0, &[1; 5000], TEST));
            ok(file.sync_range(0, 5000, TEST));
            storage.crash(CrashKind::Power, &mut rng);
            let file = ok(storage.open("a"));
            let len = ok(file.len()) as usize;
            seen[usize::from(len == 5000)] = true;
            ok(file.allocate(0, 5000, TEST));
            let check = |bytes: Vec<u8>| {
                assert!(bytes[..len].iter().all(|b| *b == 1), "R4: what is synced survives");
                assert!(bytes[len..].iter().all(|b| *b == 0), "R6: what a lost length cut off reads as zeros");
            };
            check(read(&*file, 0, 5000));
            ok(file.sync_all(TEST));
            storage.crash(CrashKind::Power, &mut rng);
            check(read(&*ok(storage.open("a")), 0, 5000));
        }
        assert_eq!(seen, [true; 2], "R6: a pending length survives or not");
    }

    fn entries_are_durable_by_sync_dir(&self) {
        let names = |storage: &S| ok(storage.list()).concat();
        let change = |sync: bool| {
            move |storage: &S| {
                Self::durable(storage, "a", 10);
                Self::durable(storage, "b", 10);
                let file = file_of(storage, "c", 10);
                ok(storage.remove("a", TEST));
                ok(storage.rename("b", "d", TEST));
                // A sync of a file makes no entry durable.
                ok(file.sync_all(TEST));
                if sync {
                    ok(storage.sync_dir(TEST));
                }
            }
        };
        let seen = self.outcomes(CrashKind::Power, change(false), names);
        let expected = ["ab", "abc", "ad", "acd", "b", "bc", "d", "cd"].map(String::from);
        Self::expect(&seen, expected, "R7: any subset of the pending changes survives");
        let seen = self.outcomes(CrashKind::Power, change(true), names);
        Self::expect(&seen, ["cd".to_owned()], "R7: sync_dir makes them durable");

        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let file = file_of(storage, "a", 10);
                ok(file.store(0, &[1; 10], TEST));
                ok(storage.sync_dir(TEST));
            },
            |storage| {
                let file = ok(storage.open("a"));
                let len = ok(file.len()) as usize;
                read(&*file, 0, len).first().copied()
            },
        );
        Self::expect(&seen, [None, Some(0), Some(1)], "R7: an entry may survive without length and data");
    }

    fn entries_keep_their_order(&self) {
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                for (name, version) in [("a", 0), ("b", 1), ("c", 2)] {
                    let file = Self::durable(storage, name, 1);
                    ok(file.store(0, &[version], TEST));
                    ok(file.sync_all(TEST));
                }
                ok(storage.rename("b", "a", TEST));
                ok(storage.rename("c", "a", TEST));
            },
            |storage| (read(&*ok(storage.open("a")), 0, 1)[0], ok(storage.list()).concat()),
        );
        assert!(
            !seen.contains_key(&(1, "a".to_owned())),
            "R7: the changes of one name survive in their order: {seen:?}"
        );
        for outcome in [(0, "abc"), (1, "ac"), (2, "a")] {
            assert!(seen.contains_key(&(outcome.0, outcome.1.to_owned())), "R7: {outcome:?} may survive: {seen:?}");
        }
        let last = seen.keys().all(|(version, names)| match version {
            0 => names == "abc",
            1 => names == "ac",
            _ => names == "a" || names == "ab",
        });
        assert!(last, "R7: a rename is atomic: {seen:?}");
    }

    fn a_rename_is_atomic(&self) {
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let old = Self::durable(storage, "a", 1);
                ok(old.store(0, &[1], TEST));
                ok(old.sync_all(TEST));
                let new = file_of(storage, "b", 1);
                ok(new.store(0, &[2], TEST));
                ok(new.sync_all(TEST));
                ok(storage.rename("b", "a", TEST));
            },
            |storage| (read(&*ok(storage.open("a")), 0, 1)[0], ok(storage.list()).concat()),
        );
        let expected = [(1, "a"), (1, "ab"), (2, "a")].map(|(v, names)| (v, names.to_owned()));
        Self::expect(&seen, expected, "R7: the old file or the new one, never none");
    }

    fn the_directory_is_durable_by_sync_parent(&self) {
        let mut seen = [false; 2];
        for seed in 0..SEEDS {
            let mut storage = (self.make)(seed);
            ok(storage.make_dir(TEST));
            file_of(&storage, "a", 10);
            ok(storage.sync_dir(TEST));
            storage.crash(CrashKind::Power, &mut ChaCha8Rng::seed_from_u64(seed));
            let exists = ok(storage.exists());
            seen[usize::from(exists)] = true;
            if exists {
                assert_eq!(ok(storage.list()), ["a"], "R7: what sync_dir made durable survives with the directory");
            } else {
                ok(storage.make_dir(TEST));
                assert!(ok(storage.list()).is_empty(), "R7: a lost directory is empty when made again");
            }
        }
        assert_eq!(seen, [true; 2], "R7: a directory whose parent was not synced survives or not");
    }
}
