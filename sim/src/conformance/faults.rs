//! The rules R8 to R10, R12 and R15 of the crash conformance suite: failed syncs and stores, lack of space, process crashes, locks.

use std::{collections::BTreeMap, io};

use rand::{SeedableRng, rngs::ChaCha8Rng};
use shardex::{error::ShardexError, storage::StorageFile};

use super::{
    Raw as _, TEST,
    crash::{Crash, SEEDS, Suite},
    fresh, io_kind, ok, read,
};
use crate::storage::CrashKind;

impl<S: Crash> Suite<'_, S> {
    pub(super) fn a_failed_sync_is_final(&self) {
        for whole in [false, true] {
            let seen = self.outcomes(
                CrashKind::Power,
                |storage| {
                    let sector = storage.sector_size();
                    let file = Self::durable(storage, "a", 2 * sector as u64);
                    ok(file.store(0, &vec![1; 2 * sector], TEST));
                    let sync = || if whole { file.sync_all(TEST) } else { file.sync_range(0, 2 * sector as u64, TEST) };
                    storage.fail_next_sync(io::ErrorKind::StorageFull);
                    // A full disk at a sync is an `Io` error too, because freeing space would not repair it.
                    assert_eq!(io_kind(sync(), "R8: a failed sync"), io::ErrorKind::StorageFull);
                    ok(sync());
                    ok(file.sync_all(TEST));
                },
                |storage| Self::firsts(storage, 2, storage.sector_size()),
            );
            let expected = [[0, 0], [0, 1], [1, 0], [1, 1]].map(Vec::from);
            Self::expect(&seen, expected, "R8: after a failed sync a good one makes nothing durable");
        }
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", sector as u64);
                ok(file.store(0, &vec![1; sector], TEST));
                storage.fail_next_sync(io::ErrorKind::Other);
                io_kind(file.sync_all(TEST), "R8: a failed sync");
                ok(file.store(0, &vec![1; sector], TEST));
                ok(file.sync_range(0, 1, TEST));
            },
            |storage| Self::firsts(storage, 1, storage.sector_size()),
        );
        Self::expect(&seen, [vec![1]], "R10: what is stored anew and synced is durable");
    }

    pub(super) fn a_failed_sync_of_length_and_entries_is_final(&self) {
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                let file = Self::durable(storage, "a", 100);
                ok(file.allocate(0, 200, TEST));
                storage.fail_next_sync(io::ErrorKind::Other);
                io_kind(file.sync_all(TEST), "R8: a failed sync");
                ok(file.sync_all(TEST));
            },
            |storage| ok(ok(storage.open("a")).len()),
        );
        Self::expect(&seen, [100, 200], "R8: nor a length");
        let seen = self.outcomes(
            CrashKind::Power,
            |storage| {
                Self::durable(storage, "a", 1);
                ok(storage.rename("a", "b", TEST));
                storage.fail_next_sync(io::ErrorKind::Other);
                io_kind(storage.sync_dir(TEST), "R8: a failed sync");
                ok(storage.sync_dir(TEST));
            },
            |storage| ok(storage.list()).concat(),
        );
        Self::expect(&seen, ["a", "b"].map(String::from), "R8: nor an entry");
    }

    pub(super) fn a_failed_store_may_store_any_sector(&self) {
        let mut seen = BTreeMap::new();
        for seed in 0..SEEDS {
            let storage = fresh(&|| (self.make)(seed));
            let sector = storage.sector_size();
            let file = Self::durable(&storage, "a", 2 * sector as u64);
            storage.fail_stores(Some(io::ErrorKind::Other));
            io_kind(file.store(0, &vec![1; 2 * sector], TEST), "R9: a failed store");
            storage.fail_stores(None);
            *seen.entry(Self::firsts(&storage, 2, sector)).or_insert(0) += 1;
            ok(file.store(0, &vec![2; 2 * sector], TEST));
            assert_eq!(Self::firsts(&storage, 2, sector), [2, 2], "R9: the next store is done");
        }
        let expected = [[0, 0], [0, 1], [1, 0], [1, 1]].map(Vec::from);
        Self::expect(&seen, expected, "R9: a store that fails may have stored any of its sectors");
        let storage = fresh(&|| (self.make)(0));
        let file = Self::durable(&storage, "a", 100);
        storage.fail_stores(Some(io::ErrorKind::StorageFull));
        let full = file.store(0, &[1], TEST);
        assert!(full.is_err_and(|e| e.is_out_of_space()), "R9: a store on a full disk is OutOfSpace");
    }

    pub(super) fn space_ends(&self) {
        let mut partly = 0;
        for seed in 0..SEEDS {
            let storage = fresh(&|| (self.make)(seed));
            let file = Self::durable(&storage, "a", 100);
            ok(file.store(0, &[1; 100], TEST));
            storage.set_capacity(Some(150));
            let short = file.allocate(0, 151, TEST);
            assert!(short.is_err_and(|e| e.is_out_of_space()), "R9: an allocation beyond the space is OutOfSpace");
            let len = ok(file.len());
            assert!(len == 100 || len == 150, "R9: of a refused allocation nothing is done, or what there was: {len}");
            partly += usize::from(len == 150);
            assert_eq!(read(&*file, 0, 100), vec![1; 100], "R9: a refused allocation changes no byte");
            storage.set_capacity(None);
            ok(file.allocate(0, 151, TEST));
            ok(file.store(150, &[1], TEST));
        }
        assert!(partly > 0, "R9: a refused allocation may be done in part");
    }

    pub(super) fn deallocated_bytes_are_old_or_zeros(&self) {
        let before = |syncs: bool| {
            move |storage: &S| {
                let page = storage.page_size();
                let file = Self::durable(storage, "a", 2 * page as u64);
                ok(file.store(0, &vec![1; 2 * page], TEST));
                ok(file.sync_all(TEST));
                assert!(ok(file.release(0, page as u64)), "deallocate: this storage can do it");
                if syncs {
                    ok(file.sync_all(TEST));
                }
            }
        };
        let look = |storage: &S| {
            let (page, sector) = (storage.page_size(), storage.sector_size());
            let sectors = Self::firsts(storage, 2 * page / sector, sector);
            let (released, kept) = sectors.split_at(page / sector);
            assert!(kept.iter().all(|&byte| byte == 1), "R15: bytes beside the range stay: {kept:?}");
            (released.contains(&0), released.contains(&1))
        };
        let seen = self.outcomes(CrashKind::Power, before(false), look);
        let both = seen.keys().any(|&(zeros, _)| zeros) && seen.keys().any(|&(_, old)| old);
        let storage = (self.make)(0);
        let sectors = storage.page_size() > storage.sector_size();
        assert!(both && seen.contains_key(&(true, true)) == sectors, "R15, R3: each sector by itself: {seen:?}");
        Self::expect(
            &self.outcomes(CrashKind::Power, before(true), look),
            [(true, false)],
            "R15, R5: zeros are durable",
        );
        Self::expect(&self.outcomes(CrashKind::Process, before(false), look), [(true, false)], "R15, R10: the cache");
    }

    pub(super) fn deallocated_space_comes_back_or_not(&self) {
        let before = |syncs: bool| {
            move |storage: &S| {
                let page = storage.page_size() as u64;
                let file = Self::durable(storage, "a", 3 * page);
                assert!(ok(file.release(page, page)), "deallocate: this storage can do it");
                assert_eq!(ok(file.allocated()), 2 * page, "deallocate: the space is given back at once");
                if syncs {
                    ok(file.sync_all(TEST));
                }
            }
        };
        let pages = |storage: &S| ok(ok(storage.open("a")).allocated()) / storage.page_size() as u64;
        Self::expect(&self.outcomes(CrashKind::Power, before(false), pages), [2, 3], "R15: it comes back or not");
        Self::expect(&self.outcomes(CrashKind::Power, before(true), pages), [2], "R5: the allocation is durable");
        let mut partly = 0;
        for seed in 0..SEEDS {
            let storage = fresh(&|| (self.make)(seed));
            let page = storage.page_size() as u64;
            let file = Self::durable(&storage, "a", 2 * page);
            storage.set_capacity(Some(2 * page));
            let short = file.allocate(2 * page, page, TEST);
            assert!(short.is_err_and(|e| e.is_out_of_space()), "R9: no space is left");
            assert!(ok(file.release(0, page)), "deallocate: this storage can do it");
            ok(file.allocate(2 * page, page, TEST));
            ok(file.store(page, &vec![1; 2 * page as usize], TEST));
            storage.set_capacity(None);
            ok(file.allocate(0, page, TEST));
            ok(file.store(0, &vec![1; page as usize], TEST));
            storage.fail_stores(Some(io::ErrorKind::Other));
            io_kind(file.release(page, 2 * page), "R15: a failed deallocation");
            storage.fail_stores(None);
            let sectors = Self::firsts(&storage, 3 * page as usize / storage.sector_size(), storage.sector_size());
            let (beside, within) = sectors.split_at(page as usize / storage.sector_size());
            assert!(
                beside.iter().all(|&byte| byte == 1),
                "R15: a failure changes nothing beside the range: {sectors:?}"
            );
            partly += usize::from(within.contains(&0) && within.contains(&1));
        }
        assert!(partly > 0, "R15: a deallocation that fails may be done in part");
    }

    pub(super) fn a_process_crash_keeps_the_cache(&self) {
        let before = |storage: &S| {
            let sector = storage.sector_size();
            let file = Self::durable(storage, "a", sector as u64);
            ok(file.allocate(0, 2 * sector as u64, TEST));
            ok(file.store(0, &vec![1; 2 * sector], TEST));
            ok(storage.create("b", TEST));
        };
        let look = |storage: &S| {
            let len = ok(ok(storage.open("a")).len()) as usize;
            (Self::firsts(storage, len / storage.sector_size(), storage.sector_size()), ok(storage.list()).concat())
        };
        let seen = self.outcomes(CrashKind::Process, before, look);
        Self::expect(&seen, [(vec![1, 1], "ab".to_owned())], "R10: the page cache outlives the process");

        // The cache is as dirty as before: a power cut may still lose each part of it, and a sync still saves it.
        for sync in [false, true] {
            let (mut lost_bytes, mut lost_lengths, mut lost_entries) = (0, 0, 0);
            for seed in 0..SEEDS {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let mut storage = fresh(&|| (self.make)(seed));
                before(&storage);
                storage.crash(CrashKind::Process, &mut rng);
                if sync {
                    ok(ok(storage.open("a")).sync_all(TEST));
                    ok(storage.sync_dir(TEST));
                }
                storage.crash(CrashKind::Power, &mut rng);
                let (bytes, names) = look(&storage);
                lost_bytes += usize::from(bytes.contains(&0));
                lost_lengths += usize::from(bytes.len() < 2);
                lost_entries += usize::from(names != "ab");
            }
            for (lost, what) in [(lost_bytes, "bytes"), (lost_lengths, "lengths"), (lost_entries, "entries")] {
                assert_eq!(lost > 0, !sync, "R10: {lost} times {what} lost after a process crash; synced: {sync}");
            }
        }
    }

    pub(super) fn a_process_crash_may_hide_a_failed_sync(&self) {
        let mut hidden = 0;
        let mut seen = BTreeMap::new();
        for seed in 0..SEEDS {
            let storage = fresh(&|| (self.make)(seed));
            let sector = storage.sector_size();
            let file = Self::durable(&storage, "a", sector as u64);
            ok(file.store(0, &vec![1; sector], TEST));
            storage.fail_next_sync(io::ErrorKind::Other);
            io_kind(file.sync_range(0, 1, TEST), "R8: a failed sync");
            *seen.entry(Self::firsts(&storage, 1, sector)).or_insert(0) += 1;
        }
        Self::expect(&seen, [vec![0], vec![1]], "R8: the cache holds the new or the old bytes at once");
        let seen = self.outcomes(
            CrashKind::Process,
            |storage| {
                let sector = storage.sector_size();
                let file = Self::durable(storage, "a", sector as u64);
                ok(file.store(0, &vec![1; sector], TEST));
                storage.fail_next_sync(io::ErrorKind::Other);
                io_kind(file.sync_all(TEST), "R8: a failed sync");
            },
            |storage| Self::firsts(storage, 1, storage.sector_size()),
        );
        Self::expect(&seen, [vec![0], vec![1]], "R8: the cache falls back, or not");

        for seed in 0..SEEDS {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut storage = fresh(&|| (self.make)(seed));
            let sector = storage.sector_size();
            let file = Self::durable(&storage, "a", sector as u64);
            ok(file.store(0, &vec![1; sector], TEST));
            storage.fail_next_sync(io::ErrorKind::Other);
            io_kind(file.sync_all(TEST), "R8: a failed sync");
            storage.crash(CrashKind::Process, &mut rng);
            ok(ok(storage.open("a")).sync_all(TEST));
            let read = Self::firsts(&storage, 1, sector);
            storage.crash(CrashKind::Power, &mut rng);
            hidden += usize::from(read == [1] && Self::firsts(&storage, 1, sector) == [0]);
        }
        assert!(hidden > 0, "R10: what recovery read and synced may not be on the device");
    }

    pub(super) fn locks_and_handles_end(&self) {
        for kind in [CrashKind::Process, CrashKind::Power] {
            let mut storage = fresh(&|| (self.make)(0));
            let file = Self::durable(&storage, "a", 100);
            let (guard, lent) = (ok(storage.lock("LOCK")), ok(file.loan(0, 100)));
            assert!(matches!(storage.lock("LOCK").map(drop), Err(ShardexError::Locked { .. })), "R12: locked");
            storage.crash(kind, &mut ChaCha8Rng::seed_from_u64(0));
            let again = ok(storage.lock("LOCK"));
            drop(guard);
            assert!(storage.lock("LOCK").is_err(), "R12: a guard of before the crash releases no lock of after");
            drop(again);
            io_kind(file.store(0, &[1], TEST), "R12: a store through a handle of before the crash");
            io_kind(file.sync_all(TEST), "R12: a sync through a handle of before the crash");
            io_kind(file.read_at(0, &mut [0]), "R12: a read through a handle of before the crash");
            // Leases from before the crash no longer forbid stores.
            let file = ok(storage.open("a"));
            ok(file.allocate(0, 100, TEST));
            ok(file.store(0, &[1; 100], TEST));
            drop(lent);
        }
    }

    pub(super) fn crashes_repeat(&self) {
        let run = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut storage = fresh(&|| (self.make)(seed));
            let mut history = Vec::new();
            for round in 1..4 {
                if !ok(storage.list()).contains(&"a".to_owned()) {
                    Self::durable(&storage, "a", 1);
                }
                let file = ok(storage.open("a"));
                ok(file.allocate(0, 4000 * u64::from(round), TEST));
                ok(file.store(0, &vec![round; 4000 * usize::from(round)], TEST));
                storage.fail_next_sync(io::ErrorKind::Other);
                let _ = file.sync_range(0, 2000, TEST);
                storage.crash(CrashKind::Power, &mut rng);
                let file = ok(storage.open("a"));
                history.push(read(&*file, 0, ok(file.len()) as usize));
            }
            history
        };
        assert_eq!(run(1), run(1), "the same seed gives the same crashes");
        assert_ne!(run(1), run(2), "another seed gives others");
    }
}
