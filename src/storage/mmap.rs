//! Storage on a real file system: files of one directory, written with `pwrite`, leased from shared read-only mappings.
//!
//! It owns the open files, their mappings and the directory's lock. It implements the unsafe functions of
//! [`StorageFile`], which only [`lease`](crate::lease) calls.
//!
//! # Invariants
//! 1. A store uses `pwrite`, never a mapping. So a full or failing disk gives an error, not a signal. The store is
//!    visible in the mappings at once, because the kernel serves both from one page cache (R1).
//! 2. No file is ever shortened, by this code or by any program that respects the directory's lock. So a byte below a
//!    length once read stays readable while a mapping of it lives, even after the file is removed.
//! 3. The regions of a file are strictly ordered by start and also by end. Each starts on a multiple of [`MAP_ALIGN`]
//!    and ends no later than the file. So the last region that starts at or before an offset reaches the furthest.
//! 4. The cached length never exceeds the length of the file.
//!
//! # Limits
//! * A file system without `fallocate` doesn't reserve space. [`allocate`](StorageFile::allocate) then writes zeros
//!   past the end and leaves holes below it. A store into a hole may fail with
//!   [`OutOfSpace`](crate::ShardexError::OutOfSpace). [`deallocate`](StorageFile::deallocate) then does nothing.
//! * An I/O error of the medium under a leased page raises a signal. No code can prevent that.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Deref,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    slice,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};
use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate},
    io::Errno,
};

use super::{Purpose, Storage, StorageFile, mmap_lock::MmapLock, regular};
use crate::{
    access::FileAccess,
    error::{Result, ShardexError},
};

const PAGE_SIZE: usize = 4096;
const SECTOR_SIZE: usize = 512;

/// Alignment of mappings in bytes: a multiple of every page size in use (4, 16 and 64 KiB).
const MAP_ALIGN: u64 = 64 << 10;

/// Bytes of zeros per write on a file system that can't allocate.
const ZEROS: usize = 256 << 10;

/// Storage in a directory of a local file system.
#[derive(Clone, Debug)]
pub struct MmapStorage {
    path: PathBuf,
    access: FileAccess,
}

impl MmapStorage {
    /// Creates a storage for the directory at `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), access: FileAccess::default() }
    }

    /// Sets who may use the directory and the files that this storage creates. Files that are added to an index later
    /// get the permissions of its root file.
    #[must_use]
    pub fn file_access(mut self, access: FileAccess) -> Self {
        self.access = access;
        self
    }

    fn opened(&self, op: &'static str, name: &str, file: io::Result<File>) -> Result<Arc<MmapFile>> {
        let path = self.path.join(name);
        let file = file.map_err(|e| regular::error(op, &path, e))?;
        let len = file.metadata().map_err(|e| ShardexError::io(op, &path, e))?.len();
        let (len, never_reserves) = (AtomicU64::new(len), AtomicBool::new(false));
        let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        Ok(Arc::new(MmapFile { path, absolute, file, len, never_reserves, regions: RwLock::default() }))
    }
}

impl Storage for MmapStorage {
    type File = MmapFile;
    type Lock = MmapLock;

    fn page_size(&self) -> usize {
        PAGE_SIZE
    }

    fn sector_size(&self) -> usize {
        SECTOR_SIZE
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn exists(&self) -> Result<bool> {
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => Ok(true),
            Ok(_) => Err(ShardexError::io("open", &self.path, io::ErrorKind::NotADirectory.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(ShardexError::io("open", &self.path, e)),
        }
    }

    fn make_dir(&self, _purpose: Purpose) -> Result<()> {
        regular::make_dir(&self.path, self.access)
    }

    fn sync_parent(&self, _purpose: Purpose) -> Result<()> {
        // If the path's last component is not a name ("x/..", "/", "."), the system resolves the parent.
        let parent = match (self.path.file_name(), self.path.parent()) {
            (Some(_), Some(parent)) if parent.as_os_str().is_empty() => PathBuf::from("."),
            (Some(_), Some(parent)) => parent.to_path_buf(),
            _ => self.path.join(".."),
        };
        sync_directory(&parent)
    }

    fn lock(&self, name: &str) -> Result<MmapLock> {
        MmapLock::take(&self.path, name, self.access)
    }

    fn list(&self) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            // A name that isn't UTF-8 is not Shardex's. It is listed nevertheless, because the directory is not empty.
            fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        let mut names = read().map_err(|e| ShardexError::io("list", &self.path, e))?;
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, name: &str, _purpose: Purpose) -> Result<Arc<MmapFile>> {
        let file = regular::create(OpenOptions::new().read(true).write(true), &self.path, name, self.access);
        self.opened("create", name, file)
    }

    fn open(&self, name: &str) -> Result<Arc<MmapFile>> {
        let file = regular::open(OpenOptions::new().read(true).write(true), &self.path.join(name));
        self.opened("open", name, file)
    }

    fn open_to_read(&self, name: &str) -> Result<Arc<MmapFile>> {
        let file = regular::open_linked(OpenOptions::new().read(true), &self.path.join(name));
        self.opened("open", name, file)
    }

    fn link_from(&self, from: &Self, name: &str, _purpose: Purpose) -> Result<bool> {
        match fs::hard_link(from.path.join(name), self.path.join(name)) {
            Ok(()) => Ok(true),
            // Another file system, one without links, too many links, or a file that this user may not link.
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::XDEV | Errno::PERM | Errno::ACCESS | Errno::MLINK | Errno::NOTSUP | Errno::NOSYS) => {
                    Ok(false)
                }
                _ => Err(ShardexError::io("link", self.path.join(name), e)),
            },
        }
    }

    fn rename(&self, from: &str, to: &str, _purpose: Purpose) -> Result<()> {
        let from = self.path.join(from);
        fs::rename(&from, self.path.join(to)).map_err(|e| ShardexError::io("rename", from, e))
    }

    fn remove(&self, name: &str, _purpose: Purpose) -> Result<()> {
        let path = self.path.join(name);
        fs::remove_file(&path).map_err(|e| ShardexError::io("remove", path, e))
    }

    fn sync_dir(&self, _purpose: Purpose) -> Result<()> {
        sync_directory(&self.path)
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| ShardexError::io("sync", path, e))
}

/// Open file of an [`MmapStorage`].
#[derive(Debug)]
pub struct MmapFile {
    path: PathBuf,
    /// Path that a change of the working directory does not affect.
    absolute: PathBuf,
    file: File,
    /// Cached length of the file in bytes (invariant 4).
    len: AtomicU64,
    /// Whether the file system has refused to reserve space.
    never_reserves: AtomicBool,
    /// Mapped regions (invariant 3). A lease of unmapped bytes adds one.
    regions: RwLock<Vec<Region>>,
}

/// Mapped region of a file.
#[derive(Debug)]
struct Region {
    start: u64,
    end: u64,
    map: Arc<MmapRaw>,
}

impl Region {
    /// Leases the bytes from `offset` to `end`, which must lie within the region.
    fn lend(&self, offset: u64, end: u64) -> MmapLent {
        assert!(self.start <= offset && offset <= end && end <= self.end, "a loan lies within its region");
        let (from, len) = ((offset - self.start) as usize, (end - offset) as usize);
        MmapLent { map: Some(Arc::clone(&self.map)), from, len }
    }
}

/// Returns the region that contains the bytes from `offset` to `end`, if there is one.
fn covering(regions: &[Region], offset: u64, end: u64) -> Option<&Region> {
    let after = regions.partition_point(|r| r.start <= offset);
    regions[..after].last().filter(|r| end <= r.end)
}

impl MmapFile {
    /// Returns the end of the range of `len` bytes at `offset`, or an error if it lies past the end of the file.
    fn end_of(&self, op: &'static str, offset: u64, len: usize) -> Result<u64> {
        let file_len = self.len.load(Ordering::Acquire);
        match offset.checked_add(len as u64) {
            Some(end) if end <= file_len => Ok(end),
            _ => {
                let what = format!("{len} bytes at {offset} end past the file's {file_len}");
                Err(ShardexError::io(op, &self.path, io::Error::new(io::ErrorKind::UnexpectedEof, what)))
            }
        }
    }

    /// Maps the missing part of a lease of `offset..end`. The caller has checked that no region covers it.
    fn map(&self, regions: &mut Vec<Region>, offset: u64, end: u64) -> io::Result<MmapLent> {
        let mapped = regions.last().map_or(0, |r| r.end);
        let (from, to) = if end > mapped {
            // The file has grown. Map all new bytes, so that each step of growth adds one mapping.
            (offset.min(mapped), self.len.load(Ordering::Acquire))
        } else {
            // The lease spans several regions. Map from its start to the end of the region that contains its end.
            (offset, regions[regions.partition_point(|r| r.end < end)].end)
        };
        let start = from / MAP_ALIGN * MAP_ALIGN;
        let len = usize::try_from(to - start).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().offset(start).len(len).map_raw_read_only(&self.file)?;
        let region = Region { start, end: to, map: Arc::new(map) };
        let lent = region.lend(offset, end);
        // Regions covered by the new one leave the list. Their leases keep their mappings alive.
        let first = regions.partition_point(|r| r.start < start);
        let last = regions.partition_point(|r| r.end <= to);
        regions.splice(first..last, [region]);
        assert!(regions.is_sorted_by(|a, b| a.start < b.start && a.end < b.end), "invariant 3");
        Ok(lent)
    }

    /// Calls `fallocate`. Returns false if the file system doesn't support the call.
    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        loop {
            match fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                // The two errors have the same value on some platforms.
                Err(e) if e == Errno::OPNOTSUPP || e == Errno::NOTSUP || e == Errno::NOSYS => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn grow(&self, offset: u64, len: u64) -> io::Result<()> {
        let never = &self.never_reserves;
        if !never.load(Ordering::Relaxed) && self.fallocate(FallocateFlags::empty(), offset, len)? {
            return Ok(());
        }
        never.store(true, Ordering::Relaxed);
        let (mut at, end) = (self.file.metadata()?.len(), offset.saturating_add(len));
        let zeros = vec![0; ZEROS.min(end.saturating_sub(at) as usize)];
        while at < end {
            let step = (end - at).min(ZEROS as u64);
            self.file.write_all_at(&zeros[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "the trait's unsafe functions")]
impl StorageFile for MmapFile {
    type Lent = MmapLent;

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len.load(Ordering::Acquire))
    }

    fn allocated(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(|e| ShardexError::io("open", &self.path, e))?;
        // `st_blocks` counts units of 512 bytes, whatever the block size of the file system is.
        Ok(metadata.blocks().saturating_mul(512))
    }

    fn is_in_place(&self) -> bool {
        let Ok(own) = self.file.metadata() else { return true };
        // Programs may change their root directory or their user, after which the path may lead nowhere.
        let named = fs::metadata(&self.absolute).ok();
        let is_same = |named: &fs::Metadata| (named.dev(), named.ino()) == (own.dev(), own.ino());
        own.nlink() > 0 && named.as_ref().is_none_or(is_same)
    }

    fn allocate(&self, offset: u64, len: u64, _purpose: Purpose) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let grown = self.grow(offset, len);
        // The length is read after a failure too, because the file may have grown partly.
        let found = self.file.metadata().map(|m| self.len.fetch_max(m.len(), Ordering::AcqRel));
        grown.and(found.map(drop)).map_err(|e| ShardexError::io("allocate", &self.path, e))
    }

    unsafe fn deallocate(&self, offset: u64, len: u64, _purpose: Purpose) -> Result<bool> {
        assert!((offset | len).is_multiple_of(PAGE_SIZE as u64), "{offset}+{len} are no whole pages");
        self.end_of("deallocate", offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        // Space that could not be reserved again is kept.
        if len == 0 || self.never_reserves.load(Ordering::Relaxed) {
            return Ok(len == 0);
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(hole, offset, len).map_err(|e| ShardexError::io("deallocate", &self.path, e))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.end_of("read", offset, buffer.len())?;
        self.file.read_exact_at(buffer, offset).map_err(|e| ShardexError::io("read", &self.path, e))
    }

    fn uncache(&self) {
        // A hint: what it can't do is no error.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    unsafe fn write_at(&self, offset: u64, bytes: &[u8], _purpose: Purpose) -> Result<()> {
        self.end_of("write", offset, bytes.len())?;
        self.file.write_all_at(bytes, offset).map_err(|e| ShardexError::io("write", &self.path, e))
    }

    fn sync_range(&self, _offset: u64, _len: u64, _purpose: Purpose) -> Result<()> {
        // Syncs more than the range, because `sync_file_range`, the only call for a range, makes nothing durable (R4).
        self.file.sync_data().map_err(|e| ShardexError::io("sync", &self.path, e))
    }

    fn sync_all(&self, _purpose: Purpose) -> Result<()> {
        self.file.sync_all().map_err(|e| ShardexError::io("sync", &self.path, e))
    }

    unsafe fn lend(&self, offset: u64, len: usize) -> Result<MmapLent> {
        let end = self.end_of("lend", offset, len)?;
        if len == 0 {
            return Ok(MmapLent { map: None, from: 0, len: 0 });
        }
        {
            let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(region) = covering(&regions, offset, end) {
                return Ok(region.lend(offset, end));
            }
        }
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have mapped the range between the two locks.
        if let Some(region) = covering(&regions, offset, end) {
            return Ok(region.lend(offset, end));
        }
        self.map(&mut regions, offset, end).map_err(|e| ShardexError::io("map", &self.path, e))
    }
}

/// Leased bytes of a file. Keeps their mapping alive.
#[derive(Clone, Debug)]
pub struct MmapLent {
    /// `None` for an empty lease, which needs no mapping.
    map: Option<Arc<MmapRaw>>,
    from: usize,
    len: usize,
}

impl Deref for MmapLent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        /// Empty bytes with the largest alignment of a lease.
        #[repr(align(64))]
        struct Nothing([u8; 0]);

        match &self.map {
            None => &const { &Nothing([]) }.0,
            #[expect(unsafe_code, reason = "the bytes of a mapping are reached by its address alone")]
            // SAFETY: `Region::lend` asserted that `from + len` lies within this mapping, and `self` keeps the mapping
            // alive. `end_of` checked that the range lay within the file at the time of the lease. The file never gets
            // shorter (invariant 2), so its pages stay readable. No reference to bytes beyond the lease is made. The
            // leased bytes don't change, because the caller of `StorageFile::lend` promised that nothing stores to them
            // during the lease.
            Some(map) => unsafe { slice::from_raw_parts(map.as_ptr().add(self.from), self.len) },
        }
    }
}
