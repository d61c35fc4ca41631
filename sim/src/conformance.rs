//! Conformance suite for every [`Storage`]: tests of the contract on which the engine relies.
//!
//! The suite expects nothing beyond the contract. [`conformance`] tests a backend without faults. [`conformance_crash`]
//! tests the rules R1 to R10, R12 and R15 on a backend that can lose power. (R11, a crash in a recovery, concerns the engine.)
//! Each assertion names the rule or call that it checks.

mod crash;
mod faults;

use std::{io, sync::Arc};

use shardex::{
    error::{LockHolder, Result, ShardexError},
    storage::{Purpose, Storage, StorageFile, StorageLock as _},
};

pub use crash::{Crash, conformance_crash};

const TEST: Purpose = Purpose("conformance");

/// Safe wrappers of the unsafe functions of a file.
trait Raw: StorageFile {
    #[expect(unsafe_code, reason = "the suite itself keeps the contract")]
    fn store(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        // SAFETY: the suite stores to no byte that it has leased and not returned.
        unsafe { self.write_at(offset, bytes, purpose) }
    }

    #[expect(unsafe_code, reason = "the suite itself keeps the contract")]
    fn release(&self, offset: u64, len: u64) -> Result<bool> {
        // SAFETY: as in `store`.
        unsafe { self.deallocate(offset, len, TEST) }
    }

    #[expect(unsafe_code, reason = "the suite itself keeps the contract")]
    fn loan(&self, offset: u64, len: usize) -> Result<Self::Lent> {
        // SAFETY: as in `store`.
        unsafe { self.lend(offset, len) }
    }
}

impl<F: StorageFile> Raw for F {}

/// Runs the conformance suite without faults. Each call of `make` returns a separate storage whose directory does not
/// exist but can be made.
///
/// # Panics
/// At the first breach of the contract.
pub fn conformance<S: Storage>(make: &dyn Fn() -> S) {
    directory_is_made_once(&make());
    entries(&fresh(make));
    lock_is_exclusive(&fresh(make));
    lock_is_of_the_file(&fresh(make));
    allocation(&fresh(make));
    deallocation(&fresh(make));
    round_trips(&fresh(make));
    past_the_end(&fresh(make));
    loans(&fresh(make));
    loans_across_growth(&fresh(make));
    errors_name_the_file(&fresh(make));
}

/// Makes a storage whose directory exists.
fn fresh<S: Storage>(make: &dyn Fn() -> S) -> S {
    let storage = make();
    ok(storage.make_dir(TEST));
    ok(storage.sync_parent(TEST));
    storage
}

#[track_caller]
fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("a call failed that must not: {e}"))
}

/// Returns the kind of an `Io` error. Panics if the result is anything else.
#[track_caller]
fn io_kind<T>(result: Result<T>, what: &str) -> io::ErrorKind {
    match result {
        Err(ShardexError::Io { source, .. }) => source.kind(),
        Err(other) => panic!("{what}: expected an Io error, got: {other}"),
        Ok(_) => panic!("{what}: expected an Io error, got Ok"),
    }
}

#[track_caller]
fn read<F: StorageFile>(file: &F, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    ok(file.read_at(offset, &mut bytes));
    bytes
}

/// Creates a file of `len` allocated bytes.
fn file_of<S: Storage>(storage: &S, name: &str, len: u64) -> Arc<S::File> {
    let file = ok(storage.create(name, TEST));
    ok(file.allocate(0, len, TEST));
    file
}

/// Returns test bytes that depend on their offset and on `salt`, and are never 0.
fn pattern(offset: u64, len: usize, salt: u64) -> Vec<u8> {
    let byte = |at: u64| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    (offset..offset + len as u64).map(|at| byte(at ^ (salt << 40)) | 1).collect()
}

fn directory_is_made_once<S: Storage>(storage: &S) {
    assert!(!ok(storage.exists()), "exists: not before make_dir");
    assert_eq!(io_kind(storage.list(), "list without a directory"), io::ErrorKind::NotFound);
    assert_eq!(io_kind(storage.create("a", TEST), "create without a directory"), io::ErrorKind::NotFound);
    ok(storage.make_dir(TEST));
    assert!(ok(storage.exists()), "exists: after make_dir");
    assert_eq!(io_kind(storage.make_dir(TEST), "make_dir of an existing one"), io::ErrorKind::AlreadyExists);
    ok(storage.sync_parent(TEST));
    ok(storage.sync_dir(TEST));
    assert!(ok(storage.list()).is_empty(), "list: a new directory is empty");
    let (page, sector) = (storage.page_size(), storage.sector_size());
    assert!(page.is_power_of_two() && sector.is_power_of_two() && sector <= page, "sizes: {page}, {sector}");
}

fn entries<S: Storage>(storage: &S) {
    for name in ["b", "c", "a"] {
        assert!(ok(ok(storage.create(name, TEST)).is_empty()), "create: a new file is empty");
    }
    assert_eq!(ok(storage.list()), ["a", "b", "c"], "list: sorted");
    assert_eq!(io_kind(storage.create("a", TEST), "create of an existing file"), io::ErrorKind::AlreadyExists);
    assert_eq!(io_kind(storage.open("d"), "open of a missing file"), io::ErrorKind::NotFound);
    assert_eq!(io_kind(storage.remove("d", TEST), "remove of a missing file"), io::ErrorKind::NotFound);
    assert_eq!(io_kind(storage.rename("d", "e", TEST), "rename of a missing file"), io::ErrorKind::NotFound);

    for (name, salt) in [("a", 1), ("b", 2)] {
        let file = ok(storage.open(name));
        ok(file.allocate(0, 100, TEST));
        ok(file.store(0, &pattern(0, 100, salt), TEST));
    }
    let open = ok(storage.open("a"));
    ok(storage.rename("a", "d", TEST));
    assert_eq!(ok(storage.list()), ["b", "c", "d"], "rename: to a new name");
    assert_eq!(read(&*open, 0, 100), pattern(0, 100, 1), "rename: an open file keeps its bytes");
    ok(storage.rename("d", "b", TEST));
    assert_eq!(ok(storage.list()), ["b", "c"], "rename: replaces");
    assert_eq!(read(&*ok(storage.open("b")), 0, 100), pattern(0, 100, 1), "rename: the bytes come along");
    ok(storage.remove("b", TEST));
    assert_eq!(ok(storage.list()), ["c"], "remove");
    assert_eq!(read(&*open, 0, 100), pattern(0, 100, 1), "remove: an open file keeps its bytes");
    ok(storage.create("b", TEST));
    assert!(ok(ok(storage.open("b")).is_empty()), "create: nothing of a removed file comes back");
    ok(storage.sync_dir(TEST));
}

fn lock_is_exclusive<S: Storage>(storage: &S) {
    let guard = ok(storage.lock("LOCK"));
    let locked = |result| matches!(result, Err(ShardexError::Locked { path, .. }) if path == storage.path());
    assert!(locked(storage.lock("LOCK").map(drop)), "R12: a second lock gets Locked");
    assert!(locked(storage.lock("LOCK").map(drop)), "R12: and a third, for the refused one released nothing");
    drop(guard);
    drop(ok(storage.lock("LOCK")));
    let _held = ok(storage.lock("LOCK"));
    assert!(locked(storage.lock("LOCK").map(drop)), "R12: a lock taken again is exclusive again");
    let files: Vec<_> = ok(storage.list()).into_iter().filter(|name| name != "LOCK").collect();
    assert!(files.is_empty(), "lock: leaves nothing but LOCK, found {files:?}");
}

fn lock_is_of_the_file<S: Storage>(storage: &S) {
    let holder = |result: Result<S::Lock>| match result.map(drop) {
        Err(ShardexError::Locked { holder, .. }) => Some(holder),
        other => ok(other.map(|()| None)),
    };
    let guard = ok(storage.lock("LOCK"));
    assert_eq!(holder(storage.lock("LOCK")), Some(LockHolder::Handle), "lock: says that this process holds it");
    guard.owner_left();
    assert_eq!(holder(storage.lock("LOCK")), Some(LockHolder::Reader), "lock: says that a reader holds it");
    // A new file of the same name has a lock of its own. The first lock is still held.
    ok(storage.rename("LOCK", "aside", TEST));
    let other = ok(storage.lock("LOCK"));
    assert_eq!(holder(storage.lock("aside")), Some(LockHolder::Reader), "lock: goes with the file, not the name");
    guard.withdraw();
    assert_eq!(ok(storage.list()), ["LOCK", "aside"], "withdraw: not another's file of that name");
    other.withdraw();
    assert_eq!(ok(storage.list()), ["aside"], "withdraw: the file that the lock made");
    drop((guard, other));
    ok(storage.lock("aside")).withdraw();
    assert_eq!(ok(storage.list()), ["aside"], "withdraw: not a file that was there");
    ok(storage.remove("aside", TEST));
}

fn allocation<S: Storage>(storage: &S) {
    let page = storage.page_size() as u64;
    let file = ok(storage.create("a", TEST));
    ok(file.allocate(0, 0, TEST));
    assert_eq!(ok(file.len()), 0, "allocate: of nothing");
    for (asked, expected) in [(10, 10), (page + 3, page + 3), (5, page + 3), (page + 3, page + 3), (3 * page, 3 * page)]
    {
        ok(file.allocate(0, asked, TEST));
        assert_eq!(ok(file.len()), expected, "allocate: grows to {asked}, and never shortens");
    }
    assert_eq!(read(&*file, 0, 3 * page as usize), vec![0; 3 * page as usize], "R6: new bytes are zeros");
    let bytes = pattern(0, 3 * page as usize, 1);
    ok(file.store(0, &bytes, TEST));
    for asked in [5, 5 * page] {
        ok(file.allocate(0, asked, TEST));
        assert_eq!(read(&*file, 0, bytes.len()), bytes, "allocate: to {asked} keeps what was stored");
    }
    assert_eq!(read(&*file, 3 * page, 2 * page as usize), vec![0; 2 * page as usize], "R6: new bytes are zeros");
    assert_eq!(ok(ok(storage.open("a")).len()), 5 * page, "len: the same through another handle");
}

fn deallocation<S: Storage>(storage: &S) {
    // Large enough for several blocks of any file system.
    let page = storage.page_size().max(64 << 10) as u64;
    let file = file_of(storage, "a", 8 * page);
    let mut expected = pattern(0, 8 * page as usize, 1);
    ok(file.store(0, &expected, TEST));
    ok(file.sync_all(TEST));
    let before = ok(file.allocated());
    assert!(before >= 8 * page, "allocated: {before} of {} bytes that are stored", 8 * page);
    let lent = (ok(file.loan(0, page as usize)), ok(file.loan(4 * page, page as usize)));
    let releases = ok(file.release(page, 3 * page));
    ok(file.release(8 * page, 0));
    if releases {
        expected[page as usize..4 * page as usize].fill(0);
    }
    assert_eq!(read(&*file, 0, expected.len()), expected, "R15: the bytes of the range are zeros, and no others");
    assert_eq!(*ok(file.loan(0, expected.len())), *expected, "R15: the same by a lease");
    assert_eq!((&*lent.0, &*lent.1), (&expected[..page as usize], &expected[4 * page as usize..5 * page as usize]));
    assert_eq!(ok(file.len()), 8 * page, "deallocate: the length stays");
    let less = ok(file.allocated());
    let given_back = if releases { 3 * page } else { 0 };
    assert!(less + given_back <= before, "allocated: {less} after {before}, for {given_back} bytes were given back");
    let again = ok(file.release(page, 3 * page));
    assert_eq!(again, releases, "deallocate: twice");
    for (offset, len) in [(8 * page, page), (7 * page, 2 * page), (page.wrapping_neg(), page)] {
        io_kind(file.release(offset, len), &format!("deallocate of {offset}+{len}, past the end"));
    }
    // What is allocated again reads as zeros and can be stored to.
    ok(file.allocate(2 * page, page, TEST));
    assert_eq!(read(&*file, 0, expected.len()), expected, "R6: allocated again, the bytes are zeros");
    expected[2 * page as usize..3 * page as usize].copy_from_slice(&pattern(2 * page, page as usize, 2));
    ok(file.store(2 * page, &expected[2 * page as usize..3 * page as usize], TEST));
    assert_eq!(read(&*file, 0, expected.len()), expected, "R1: a store into space that was allocated again");
    // A range behind the end leaves a hole before it.
    ok(file.allocate(10 * page, page, TEST));
    assert_eq!(ok(file.len()), 11 * page, "allocate: grows to the end of the range");
    assert_eq!(read(&*file, 8 * page, 3 * page as usize), vec![0; 3 * page as usize], "R6: new bytes are zeros");
}

fn round_trips<S: Storage>(storage: &S) {
    let (page, sector) = (storage.page_size() as u64, storage.sector_size() as u64);
    let file = file_of(storage, "a", 8 * page);
    let mut expected = vec![0; 8 * page as usize];
    let ranges = [
        (0, 1),
        (1, sector),
        (sector - 1, 2),
        (page - 1, 2),
        (page, page),
        (2 * page - sector, 3 * page),
        (8 * page - 1, 1),
        (8 * page, 0),
        (3, 8 * page - 3),
    ];
    for (salt, (offset, len)) in ranges.into_iter().enumerate() {
        let bytes = pattern(offset, len as usize, salt as u64);
        ok(file.store(offset, &bytes, TEST));
        expected[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        assert_eq!(read(&*file, offset, len as usize), bytes, "R1: a store of {offset}+{len} is visible at once");
        assert_eq!(read(&*file, 0, expected.len()), expected, "a store of {offset}+{len} changes nothing else");
        ok(file.sync_range(offset, len, TEST));
    }
    ok(file.sync_range(0, page, TEST));
    ok(file.sync_all(TEST));
    assert_eq!(read(&*ok(storage.open("a")), 0, expected.len()), expected, "another handle reads the same");
}

fn past_the_end<S: Storage>(storage: &S) {
    let len = storage.page_size() as u64 + 100;
    let file = file_of(storage, "a", len);
    let bytes = pattern(0, len as usize, 1);
    ok(file.store(0, &bytes, TEST));
    for (offset, size) in [(len, 1), (len - 1, 2), (0, len + 1), (len + 1, 0), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        let what = format!("{offset}+{size}, past the end of {len}");
        io_kind(file.store(offset, &vec![7; size as usize], TEST), &format!("write of {what}"));
        let mut buffer = vec![7; size as usize];
        io_kind(file.read_at(offset, &mut buffer), &format!("read of {what}"));
        io_kind(file.loan(offset, size as usize), &format!("loan of {what}"));
        assert_eq!(ok(file.len()), len, "a refused call changes no length");
    }
    assert_eq!(read(&*file, 0, bytes.len()), bytes, "a refused store changes no byte");
}

fn loans<S: Storage>(storage: &S) {
    // At least 256 bytes, so that the longest lease below fits even with a small simulated page.
    let page = storage.page_size().max(256) as u64;
    let file = file_of(storage, "a", 4 * page);
    let bytes = pattern(0, 4 * page as usize, 1);
    ok(file.store(0, &bytes, TEST));
    let all = ok(file.loan(0, bytes.len()));
    assert_eq!(*all, *bytes, "lend: sees every store of before");
    for offset in (0..130).chain(page - 70..page + 70) {
        for len in [0, 1, 64, 200] {
            let lent = ok(file.loan(offset, len));
            assert_eq!(*lent, bytes[offset as usize..][..len], "lend: {offset}+{len}");
            let address = lent.as_ptr() as usize;
            let align = 1 << offset.trailing_zeros().min(6);
            assert_eq!(address % align, 0, "lend: {address:#x} for offset {offset} is not aligned to {align}");
        }
    }
    assert!(ok(file.loan(4 * page, 0)).is_empty(), "lend: nothing, at the end");
    assert!(ok(ok(storage.create("empty", TEST)).loan(0, 0)).is_empty(), "lend: nothing, of an empty file");

    let clones: Vec<_> = (0..3).map(|_| all.clone()).collect();
    drop(all);
    drop(file);
    ok(storage.remove("a", TEST));
    ok(storage.sync_dir(TEST));
    assert!(clones.iter().all(|lent| **lent == *bytes), "lend: readable after the file's removal");

    // After a lease ends, its bytes may be stored to, and a new lease reads the new bytes.
    let file = file_of(storage, "b", page);
    drop(ok(file.loan(0, 100)));
    let lent = ok(file.loan(100, 100));
    ok(file.store(0, &pattern(0, 100, 2), TEST));
    ok(file.store(200, &pattern(200, 56, 2), TEST));
    assert_eq!(*ok(file.loan(0, 100)), *pattern(0, 100, 2), "lend: sees a store after an older loan ended");
    assert_eq!(*lent, [0; 100], "lend: a store beside a loan does not touch it");
}

fn loans_across_growth<S: Storage>(storage: &S) {
    // Steps within a page, of several pages, and up to and beyond a multiple of 64 KiB, at which a mapping may start.
    let steps = [100, 4000, 5000, 56_436, 65_536, 65_536, 1, 131_072, 200_000, 64];
    let file = ok(storage.create("a", TEST));
    let (mut len, mut kept) = (0, Vec::new());
    for (turn, step) in steps.into_iter().enumerate() {
        ok(file.allocate(0, len + step, TEST));
        let bytes = pattern(len, step as usize, 3);
        ok(file.store(len, &bytes, TEST));
        len += step;
        // The new part, the border with the old part, the whole file, and ranges across all earlier borders.
        let border = (len - step).saturating_sub(50);
        let mut ranges = vec![(len - step, len), (border, len.min(border + 100)), (0, len)];
        // Each turn starts with another range, because the first lease of the new part finds it unmapped.
        ranges.rotate_left(turn % 3);
        ranges.extend((0..len).step_by(10_007).map(|from| (from, len.min(from + 30_011))));
        for (from, to) in ranges {
            kept.push((from, ok(file.loan(from, (to - from) as usize))));
        }
        for (from, lent) in &kept {
            assert_eq!(**lent, *pattern(*from, lent.len(), 3), "lend: {from}+{} in a file of {len}", lent.len());
        }
    }
    assert!(kept.len() > 100, "many loans at once");
}

fn errors_name_the_file<S: Storage>(storage: &S) {
    let file = file_of(storage, "data", 10);
    assert_eq!(file.path(), storage.path().join("data"), "path of a file");
    let mut buffer = [0; 11];
    let results = [
        ("write", file.store(5, &buffer, TEST)),
        ("read", file.read_at(0, &mut buffer)),
        ("lend", file.loan(0, 11).map(drop)),
        ("create", storage.create("data", TEST).map(drop)),
    ];
    for (expected, result) in results {
        match result {
            Err(ShardexError::Io { op, path, .. }) => {
                assert_eq!((op, path), (expected, storage.path().join("data")), "an error names operation and file");
            }
            other => panic!("{expected}: expected an Io error, got {other:?}"),
        }
    }
    match storage.open("missing").map(drop) {
        Err(ShardexError::Io { path, .. }) => {
            assert_eq!(path, storage.path().join("missing"), "an error names the file")
        }
        other => panic!("open: expected an Io error, got {other:?}"),
    }
}
