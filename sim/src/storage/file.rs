//! Handles of simulated files, and the bytes leased from them.

use std::{
    io,
    ops::Deref,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use rand::{RngExt, rngs::ChaCha8Rng};
use shardex::{
    error::{Result, ShardexError},
    storage::{Purpose, StorageFile},
};

use super::{
    directory::FileId,
    disk::Disk,
    fault::Fault,
    inode::Inode,
    locked,
    machine::{Flight, Machine, SyncFault, path_of},
    mutant::{SimMutant, wrong},
    trace::{Op, OpInfo},
};

/// Maximum alignment of a lease in bytes. Below it, a lease is aligned as its offset.
const LOAN_ALIGN: usize = 64;

/// Open file of a [`SimStorage`](super::SimStorage).
#[derive(Debug)]
pub struct SimFile {
    machine: Arc<Mutex<Machine>>,
    boot: u64,
    file: FileId,
    /// Name by which the file was opened or created.
    name: String,
}

impl SimFile {
    pub(super) fn new(machine: Arc<Mutex<Machine>>, boot: u64, file: FileId, name: &str) -> Self {
        Self { machine, boot, file, name: name.to_owned() }
    }

    fn error(&self, op: &'static str) -> impl Fn(io::Error) -> ShardexError {
        move |e| ShardexError::io(op, path_of(&self.name), e)
    }

    fn info(&self, op: Op, offset: u64, len: u64, purpose: Purpose) -> OpInfo {
        OpInfo::file(op, &self.name, offset, len, purpose)
    }

    /// Runs a sync: as it should be, or with the planned fault, which is a lie, a failure or a misdirected sector.
    fn sync(
        &self,
        info: OpInfo,
        good: impl FnOnce(&mut Inode),
        lie: impl FnOnce(&mut Inode),
        fail: impl FnOnce(&mut Inode, &mut ChaCha8Rng),
        misdirect: impl FnOnce(&mut Inode, &mut ChaCha8Rng),
    ) -> Result<()> {
        locked(&self.machine).run(self.boot, info, |machine, info, _| {
            let fault = machine.take_sync_fault(info.op);
            let inode = machine.disk.inode(self.file);
            match fault {
                None => good(inode),
                Some(SyncFault::Lie) => lie(inode),
                Some(SyncFault::Misdirect) => misdirect(inode, &mut machine.draws.next()),
                Some(SyncFault::Fail(kind)) => {
                    fail(inode, &mut machine.draws.next());
                    return Err(kind.into());
                }
            }
            Ok(())
        })
    }
}

#[expect(unsafe_code, reason = "the trait's unsafe functions")]
impl StorageFile for SimFile {
    type Lent = SimLent;

    fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    fn len(&self) -> Result<u64> {
        let machine = locked(&self.machine);
        machine.look(self.boot).map_err(self.error("open"))?;
        Ok(machine.disk.inodes[&self.file].cache().len() as u64)
    }

    fn allocated(&self) -> Result<u64> {
        let machine = locked(&self.machine);
        machine.look(self.boot).map_err(self.error("open"))?;
        Ok(machine.disk.inodes[&self.file].space().bytes())
    }

    fn is_in_place(&self) -> bool {
        let machine = locked(&self.machine);
        // The next operation of a machine that has stopped gives an error.
        machine.look(self.boot).is_err() || machine.find(&self.name).is_ok_and(|file| file == self.file)
    }

    /// Clean pages that the device does not hold show what it holds (R8, R10).
    fn uncache(&self) {
        let mut machine = locked(&self.machine);
        if machine.look(self.boot).is_ok() {
            let inode = machine.disk.inode(self.file);
            let stale: Vec<u64> = inode.stale().collect();
            stale.into_iter().for_each(|sector| inode.drop_stale(sector));
        }
    }

    fn allocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        let info = self.info(Op::Allocate, offset, len, purpose);
        locked(&self.machine).run(self.boot, info, |machine, _, _| {
            let range = offset..offset + len;
            let wanted = len - machine.disk.inodes[&self.file].space().within(&range);
            let free = match machine.once.take() {
                // Planned fault: a random part of the requested space is there, but not all.
                Some(_) => wanted.saturating_sub(1).min(machine.draws.next().random_range(0..=wanted)),
                None => machine.capacity.map_or(u64::MAX, |all| all.saturating_sub(machine.disk.used())),
            };
            if wanted <= free || wrong(SimMutant::SpaceWithoutEnd) {
                machine.counters.allocations += 1;
                machine.disk.inode(self.file).grow(range);
                return Ok(());
            }
            machine.counters.refused_allocations += 1;
            if machine.draws.next().random() {
                // The remaining space is allocated although the call fails (R9).
                let inode = machine.disk.inode(self.file);
                let end = inode.space().reach(&range, free);
                inode.grow(range.start..end);
            }
            Err(io::ErrorKind::StorageFull.into())
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut machine = locked(&self.machine);
        machine.counters.reads += 1;
        let range = machine.look(self.boot).and_then(|()| machine.end_of(self.file, offset, buffer.len() as u64));
        let end = range.map_err(self.error("read"))?;
        machine.note_read(self.file, offset..end, false);
        let mut bad = machine.unreadable.get(&self.file).into_iter().flatten();
        if bad.any(|bad| offset < bad.end && bad.start < end) {
            machine.counters.failed_reads += 1;
            machine.note_failure("read", &self.name);
            return Err(self.error("read")(io::Error::other("the medium cannot be read here")));
        }
        buffer.copy_from_slice(&machine.disk.inodes[&self.file].cache()[offset as usize..end as usize]);
        match machine.take_read_fault() {
            Some(Fault::FailRead) => {
                machine.counters.failed_reads += 1;
                machine.note_failure("read", &self.name);
                Err(self.error("read")(io::Error::other("the medium cannot be read here")))
            }
            Some(_) => {
                let mut rng = machine.draws.next();
                let size = machine.disk.geometry.sector as u64;
                if let Some((sector, old)) =
                    machine.disk.inodes[&self.file].stale_sector(offset, end - offset, &mut rng)
                {
                    machine.counters.stale_reads += 1;
                    let (from, to) = (offset.max(sector * size), end.min((sector + 1) * size));
                    buffer[(from - offset) as usize..(to - offset) as usize]
                        .copy_from_slice(&old[(from - sector * size) as usize..(to - sector * size) as usize]);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    unsafe fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        self.write_at(offset, bytes, purpose)
    }

    unsafe fn deallocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<bool> {
        self.deallocate(offset, len, purpose)
    }

    fn sync_range(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        self.sync(
            self.info(Op::SyncRange, offset, len, purpose),
            |inode| inode.sync_range(offset, len),
            |inode| inode.lie_about_sync_range(offset, len),
            |inode, rng| inode.fail_sync_range(offset, len, rng),
            |inode, rng| inode.misdirect(offset, len, rng),
        )
    }

    fn sync_all(&self, purpose: Purpose) -> Result<()> {
        self.sync(
            self.info(Op::SyncAll, 0, 0, purpose),
            Inode::sync_all,
            Inode::lie_about_sync_all,
            Inode::fail_sync_all,
            |inode, rng| {
                inode.misdirect(0, u64::MAX, rng);
                inode.sync_all();
            },
        )
    }

    fn sync_begin(&self, range: Option<(u64, u64)>, purpose: Purpose) -> Result<u64> {
        let info = match range {
            Some((offset, len)) => self.info(Op::SyncRange, offset, len, purpose),
            None => self.info(Op::SyncAll, 0, 0, purpose),
        };
        locked(&self.machine).run(self.boot, info, |machine, _, _| {
            let fault = machine.sync_fault.take();
            let captured = machine.disk.inode(self.file).capture(range);
            let token = machine.token();
            machine.flights.insert(token, Flight { file: self.file, captured, fault });
            Ok(token)
        })
    }

    fn sync_end(&self, begun: u64, range: Option<(u64, u64)>, _: Purpose) -> Result<()> {
        let mut guard = locked(&self.machine);
        let machine = &mut *guard;
        let gone = || io::Error::other("power lost");
        machine.look(self.boot).map_err(self.error("sync"))?;
        let flight = machine.flights.remove(&begun).filter(|_| !machine.stopped);
        let Some(Flight { file, captured, fault }) = flight else { return Err(self.error("sync")(gone())) };
        machine.count_sync(fault, if range.is_some() { Op::SyncRange } else { Op::SyncAll });
        let inode = machine.disk.inode(file);
        match fault {
            None if wrong(SimMutant::SyncCoversWhatComesMeanwhile) => match range {
                Some((offset, len)) => inode.sync_range(offset, len),
                None => inode.sync_all(),
            },
            None => inode.land(captured),
            // The misdirection also syncs state stored since the sync began. That is at most more than promised.
            Some(SyncFault::Misdirect) => {
                let (offset, len) = range.unwrap_or((0, u64::MAX));
                inode.misdirect(offset, len, &mut machine.draws.next());
                inode.land(captured);
            }
            Some(SyncFault::Lie) => inode.land_nowhere(&captured),
            Some(SyncFault::Fail(kind)) => {
                inode.crash_land(captured, &mut machine.draws.next());
                machine.note_failure("sync", &self.name);
                return Err(self.error("sync")(kind.into()));
            }
        }
        Ok(())
    }

    unsafe fn lend(&self, offset: u64, len: usize) -> Result<SimLent> {
        self.lend(offset, len)
    }
}

impl SimFile {
    /// Stores bytes, as [`StorageFile::write_at`]. It is safe here, because leased bytes are copies. A store to leased
    /// bytes panics nevertheless, because on a real disk it is undefined behaviour.
    ///
    /// # Errors
    /// Returns the errors of [`StorageFile::write_at`].
    ///
    /// # Panics
    /// If bytes of the range are leased, or lie in a hole.
    pub fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        let info = self.info(Op::Store, offset, bytes.len() as u64, purpose);
        locked(&self.machine).run(self.boot, info, |machine, info, torn| {
            machine.end_of(self.file, offset, info.len)?;
            machine.assert_may_store(self.file, info);
            let fault = machine.take_store_fault();
            let Machine { disk: Disk { inodes, .. }, draws, counters, .. } = machine;
            let Some(inode) = inodes.get_mut(&self.file) else { unreachable!("its length was just read") };
            if let Some(kind) = fault {
                counters.failed_stores += 1;
                let mut rng = draws.next();
                inode.store(offset, bytes, |_| rng.random() && !wrong(SimMutant::FailedStoreStoresNothing));
                return Err(kind.into());
            }
            let sectors = inode.sectors(offset, info.len);
            let end = if torn { draws.next().random_range(sectors.start..=sectors.end) } else { sectors.end };
            inode.store(offset, bytes, |sector| sector < end);
            counters.stores += 1;
            counters.bytes_stored += info.len;
            Ok(())
        })
    }

    /// Gives space back, as [`StorageFile::deallocate`]. It is safe here, because leased bytes are copies.
    ///
    /// # Errors
    /// Returns the errors of [`StorageFile::deallocate`].
    ///
    /// # Panics
    /// If bytes of the range are leased, or the range does not consist of whole pages.
    pub fn deallocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<bool> {
        let info = self.info(Op::Deallocate, offset, len, purpose);
        locked(&self.machine).run(self.boot, info, |machine, info, torn| {
            let page = machine.disk.geometry.page as u64;
            assert!((offset | len).is_multiple_of(page), "`{info}` is of no whole pages");
            machine.end_of(self.file, offset, len)?;
            machine.assert_not_lent(self.file, info);
            if machine.keeps_space {
                return Ok(false);
            }
            let fault = machine.take_store_fault();
            let Machine { disk: Disk { inodes, .. }, draws, counters, .. } = machine;
            let Some(inode) = inodes.get_mut(&self.file) else { unreachable!("its length was just read") };
            if let Some(kind) = fault {
                counters.failed_stores += 1;
                // A part is given back: whole pages from the start, and zeros in any sectors behind them.
                let done = offset + draws.next().random_range(0..=len / page) * page;
                inode.deallocate(offset..done, |_| true);
                let mut rng = draws.next();
                inode.store(done, &vec![0; (offset + len - done) as usize], |_| rng.random());
                return Err(kind.into());
            }
            let end = if torn { offset + draws.next().random_range(0..=len / page) * page } else { offset + len };
            inode.deallocate(offset..end, |_| true);
            counters.deallocations += 1;
            Ok(true)
        })
    }

    /// Leases bytes, as [`StorageFile::lend`]. It is safe here, because leased bytes are copies.
    ///
    /// # Errors
    /// Returns the errors of [`StorageFile::lend`].
    pub fn lend(&self, offset: u64, len: usize) -> Result<SimLent> {
        let mut machine = locked(&self.machine);
        machine.counters.loans += 1;
        let range = machine.look(self.boot).and_then(|()| machine.end_of(self.file, offset, len as u64));
        let end = range.map_err(self.error("lend"))?;
        machine.note_read(self.file, offset..end, true);
        // Leaves room to choose a start whose address equals the offset modulo 64, so the alignment is never better
        // than promised.
        let mut bytes = vec![0; len + LOAN_ALIGN];
        let above = bytes.as_ptr() as usize % LOAN_ALIGN;
        let start = (LOAN_ALIGN + offset as usize % LOAN_ALIGN - above) % LOAN_ALIGN;
        bytes[start..start + len]
            .copy_from_slice(&machine.disk.inodes[&self.file].cache()[offset as usize..end as usize]);
        let token = machine.token();
        if len > 0 {
            machine.loans.entry(self.file).or_default().insert(token, offset..end);
        }
        let loan = Loan { machine: Arc::clone(&self.machine), file: self.file, token, bytes, start, len };
        Ok(SimLent { loan: Arc::new(loan) })
    }
}

/// Bytes of a file as they were when leased. Until the last clone is dropped, a store to them panics.
#[derive(Clone, Debug)]
pub struct SimLent {
    loan: Arc<Loan>,
}

#[derive(Debug)]
struct Loan {
    machine: Arc<Mutex<Machine>>,
    file: FileId,
    token: u64,
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Deref for SimLent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.loan.bytes[self.loan.start..self.loan.start + self.loan.len]
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // A crash has removed all leases. Tokens are never reused, so this removes no lease of a later boot.
        if let Some(loans) = locked(&self.machine).loans.get_mut(&self.file) {
            loans.remove(&self.token);
        }
    }
}
