//! Test driver: reports operations to a monitor and keeps the files as they are afterwards.

use super::{Breach, Event, Monitor, MonitorMutant, Rule};
use crate::fsck::build::{
    Head, ID, Image, LOG_END, LOG_START, PAGE, SECTOR, SEGMENT, Shard, Tweaks, add_payload, created, frame, image,
    padding, put_tree, segment_header, shards,
};

pub type Outcome = Result<(), Breach>;

/// Test sequence: its name, whether it starts with an index, its operations, and the rule that it breaks.
pub type Case = (&'static str, bool, fn(&mut Scene) -> Outcome, Option<Rule>);

/// Storage with its monitor.
#[derive(Clone)]
pub struct Scene {
    pub monitor: Monitor,
    pub image: Image,
    syncs: u64,
}

/// Range of a sync of the whole file.
pub const ALL: Option<(u64, u64)> = None;

/// Returns the offset and the length of a range of pages.
pub fn pages(first: usize, pages: usize) -> Option<(u64, u64)> {
    Some(((first * PAGE) as u64, (pages * PAGE) as u64))
}

/// Returns a root of generation 7 in slot 1, with checkpoint 9 at the end of the WAL of [`image`].
pub fn next_head() -> Head {
    Head {
        slot: 1,
        generation: 7,
        epoch: 2,
        checkpoint: 9,
        segment: 2,
        offset: 2 * SECTOR as u64,
        cells: crate::fsck::Entry::default(),
        nodes: [28, 26, 29],
    }
}

/// Returns the shards of the root of [`next_head`]: shard 0 has one more posting.
pub fn next_shards() -> Vec<Shard> {
    let [_, mut next] = shards();
    next[0].state = 27;
    next[0].slots.push((60, false));
    next
}

impl Scene {
    /// Creates an empty storage.
    pub fn empty(mutant: Option<MonitorMutant>) -> Self {
        let monitor = Monitor::new(PAGE, SECTOR);
        let monitor = mutant.map_or(monitor.clone(), |mutant| monitor.with_mutant(mutant));
        let nothing = Image { root: Vec::new(), data: Vec::new(), wal: Vec::new() };
        Self { monitor, image: nothing, syncs: 0 }
    }

    /// Creates the index of [`image`] after a power cut, so that all of it is durable. LSN 9 is acknowledged.
    pub fn open(mutant: Option<MonitorMutant>) -> Self {
        let mut scene = Self::empty(mutant);
        scene.image = image();
        scene.power_cut().expect("an open breaks no rule");
        scene.ack(9).expect("LSN 9 is durable");
        scene
    }

    pub fn see(&mut self, event: &Event<'_>) -> Outcome {
        self.monitor.see(event)
    }

    fn file(&mut self, name: &str) -> &mut Vec<u8> {
        match name {
            "data" => &mut self.image.data,
            "wal" => &mut self.image.wal,
            _ => &mut self.image.root,
        }
    }

    /// Cuts the power, lets all cached bytes survive, and opens the index.
    pub fn power_cut(&mut self) -> Outcome {
        self.see(&Event::Crash { power: true })?;
        let Image { root, data, wal } = self.image.clone();
        for (file, bytes) in [("root", root), ("data", data), ("wal", wal)] {
            self.see(&Event::Contents { file, bytes: &bytes })?;
        }
        self.see(&Event::Opened)
    }

    /// Crashes the process and opens the index.
    pub fn process_crash(&mut self) -> Outcome {
        self.see(&Event::Crash { power: false })?;
        self.see(&Event::Opened)
    }

    pub fn allocate(&mut self, file: &str, len: usize) -> Outcome {
        let bytes = self.file(file);
        bytes.resize(bytes.len().max(len), 0);
        self.see(&Event::Allocate { file, len: len as u64 })
    }

    pub fn store(&mut self, file: &str, offset: usize, bytes: &[u8]) -> Outcome {
        self.file(file)[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.see(&Event::Store { file, offset: offset as u64, bytes, ok: true })
    }

    pub fn sync_with(&mut self, file: &str, range: Option<(u64, u64)>, ok: bool) -> Outcome {
        let id = self.begin(file, range)?;
        self.see(&Event::SyncEnd { id, ok })
    }

    pub fn begin(&mut self, file: &str, range: Option<(u64, u64)>) -> Result<u64, Breach> {
        self.syncs += 1;
        self.see(&Event::SyncBegin { file, id: self.syncs, range })?;
        Ok(self.syncs)
    }

    pub fn sync(&mut self, file: &str, range: Option<(u64, u64)>) -> Outcome {
        self.sync_with(file, range, true)
    }

    pub fn sync_dir(&mut self, ok: bool) -> Outcome {
        self.see(&Event::SyncDirBegin)?;
        self.see(&Event::SyncDirEnd { ok })
    }

    pub fn ack(&mut self, lsn: u64) -> Outcome {
        self.see(&Event::Acknowledge { lsn })
    }

    /// Stores the bytes of `data` that a root reaches and that differ from those present. Returns the bytes of the
    /// root.
    pub fn tree(&mut self, head: Head, shards: &[Shard]) -> Result<Vec<u8>, Breach> {
        let mut next = self.image.clone();
        put_tree(&mut next, head, shards, &Tweaks::default());
        for page in 0..next.data.len() / PAGE {
            let range = page * PAGE..(page + 1) * PAGE;
            let (old, new) = (&self.image.data[range.clone()], &next.data[range]);
            let Some(first) = (0..PAGE).find(|at| old[*at] != new[*at]) else { continue };
            let end = (0..PAGE).rfind(|at| old[*at] != new[*at]).map_or(PAGE, |last| last + 1);
            let bytes = new[first..end].to_vec();
            self.store("data", page * PAGE + first, &bytes)?;
        }
        Ok(next.root[head.slot * PAGE..head.slot * PAGE + 192].to_vec())
    }

    pub fn root(&mut self, slot: usize, bytes: &[u8]) -> Outcome {
        self.store("root", slot * PAGE, bytes)
    }

    pub fn sync_root(&mut self, slot: usize) -> Outcome {
        self.sync("root", pages(slot, 1))
    }

    /// Performs a flush to a root with this head, without the sync of the WAL.
    pub fn flush(&mut self, head: Head, shards: &[Shard]) -> Outcome {
        let root = self.tree(head, shards)?;
        self.sync("data", ALL)?;
        self.root(head.slot, &root)?;
        self.sync_root(head.slot)
    }

    /// Appends an add at offset `at` of `wal` in one store, padded to its sector. Returns the offset of the next frame.
    pub fn append(&mut self, at: usize, epoch: u64, lsn: u64, durable: u64, document: u128) -> Result<usize, Breach> {
        let mut bytes = frame(epoch, 1, 3, lsn, durable, &add_payload(&[document]));
        bytes.extend(padding(epoch, lsn, durable, bytes.len()));
        self.store("wal", at, &bytes)?;
        Ok(at + bytes.len())
    }

    /// Appends LSN 10, syncs and acknowledges it.
    pub fn commit_ten(&mut self) -> Outcome {
        self.append(LOG_END, 2, 10, 9, 70)?;
        self.sync("wal", Some((LOG_END as u64, 128)))?;
        self.ack(10)
    }

    /// Stores a segment header at position `slot` of the file.
    pub fn segment(&mut self, slot: usize, epoch: u64, number: u64, first: u64) -> Outcome {
        self.store("wal", PAGE + slot * SEGMENT, &segment_header(ID, epoch, number, first))
    }

    /// Creates an index without the named steps.
    pub fn create(&mut self, without: &[&str]) -> Outcome {
        let new = created();
        let does = |step| !without.contains(&step);
        self.see(&Event::MakeDir)?;
        if does("parent") {
            self.see(&Event::SyncParentBegin)?;
            self.see(&Event::SyncParentEnd { ok: true })?;
        }
        for (name, bytes, sync) in [("data", &new.data, "C1 data"), ("wal", &new.wal, "C1 wal")] {
            self.see(&Event::Create { name })?;
            self.allocate(name, bytes.len())?;
            self.store(name, 0, &bytes[..32])?;
            if does(sync) {
                self.sync(name, ALL)?;
            }
        }
        self.root_file(&new.root, does("C2"), does("C3"))?;
        if does("C4") { self.sync_dir(true) } else { Ok(()) }
    }

    /// Creates a new root file and renames it to `root`.
    pub fn root_file(&mut self, roots: &[u8], sync: bool, sync_dir: bool) -> Outcome {
        let name = "root.new";
        self.see(&Event::Create { name })?;
        self.allocate(name, 2 * PAGE)?;
        for at in [0, PAGE] {
            self.store(name, at, &roots[at..at + 192])?;
        }
        if sync {
            self.sync(name, ALL)?;
        }
        if sync_dir {
            self.sync_dir(true)?;
        }
        self.see(&Event::Rename { from: name, to: "root" })
    }

    /// Recovers to epoch 3 with this checkpoint. Stores the twin root too if `twin` is set.
    pub fn recover(&mut self, checkpoint: u64, twin: bool) -> Outcome {
        let head = Head { epoch: 3, checkpoint, segment: 1, offset: SECTOR as u64, ..next_head() };
        self.flush(head, &next_shards())?;
        if twin {
            self.flush(Head { slot: 0, generation: 8, ..head }, &next_shards())?;
        }
        Ok(())
    }

    /// Commits LSN 10 as the first of epoch 3, in the last segment of the file, and acknowledges it.
    pub fn commit_in_epoch_three(&mut self) -> Outcome {
        self.segment(3, 3, 1, 10)?;
        self.append(PAGE + 3 * SEGMENT + SECTOR, 3, 10, 9, 70)?;
        self.sync("wal", ALL)?;
        self.ack(10)
    }

    /// Returns the offset of the part of the WAL that only the older root needs.
    pub fn old_log() -> usize {
        LOG_START
    }
}
