//! Fuzz target: a valid index with arbitrary changes to its bytes. Opening it, searching it and writing to it must not
//! panic, hang, or serve postings that were never written.

use std::{cell::RefCell, collections::BTreeMap};

use shardex::{
    CheckLevel, Engine,
    format::{codec, header::CRC_AT, root::ROOT_BYTES},
    index::{self, SearchScope},
    storage::Storage as _,
};

use super::{
    Bytes,
    seal::{self, SealedBytes, SealedKind},
};
use crate::{
    model::{self, Model},
    storage::{Image, SimStorage},
    workload::{self, Runner, Workload, env},
};

/// Index as a workload left it, with the model of its contents.
struct Base {
    workload: Workload,
    image: Image,
    model: Model,
    sealed: Vec<SealedBytes>,
}

thread_local! {
    /// Bases by workload and number of steps. They are cached because building one takes longer than all that is done
    /// to it.
    static BASES: RefCell<BTreeMap<(usize, usize), std::rc::Rc<Base>>> = const { RefCell::new(BTreeMap::new()) };
}

fn base(which: usize, steps: usize) -> std::rc::Rc<Base> {
    BASES.with_borrow_mut(|bases| {
        std::rc::Rc::clone(bases.entry((which, steps)).or_insert_with(|| make(which, steps).into()))
    })
}

fn make(which: usize, steps: usize) -> Base {
    let workload = workload::reference().swap_remove(which);
    let sim = SimStorage::new(workload.page_size, workload.sector_size, 1);
    let mut runner = Runner::new(&workload, env());
    for step in workload.steps.iter().take(steps) {
        runner.step(&sim, step).unwrap_or_else(|e| panic!("{}: {e}", workload.name));
    }
    let sealed = seal::sealed(&sim);
    Base { workload, image: sim.image(), model: runner.model, sealed }
}

/// Values at which arithmetic may fail: bounds of number types, their neighbours, NaN and infinities.
pub const VALUES: [u64; 24] = [
    0,
    1,
    2,
    3,
    8,
    63,
    64,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64 - 1,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    (1 << 62) + 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
    0x7FC0_0000,
    0x7F80_0000,
    0xFF80_0000,
    0x7F7F_FFFF,
    0x7FEF_FFFF_FFFF_FFFF,
];

/// Value to write into a field of a structure. All checksums are corrected afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Hostile {
    /// Kind of the structure.
    pub kind: SealedKind,
    /// Index of the structure among those of its kind, modulo their number.
    pub which: usize,
    /// Offset in the structure, modulo its length. Offsets near `usize::MAX` count back from its last byte.
    pub offset: usize,
    /// Width of the field in bytes.
    pub width: usize,
    /// Value to write.
    pub value: u64,
}

impl Hostile {
    /// Decodes a value from an input.
    fn of(bytes: &mut Bytes<'_>) -> Self {
        let kind = SealedKind::ALL[bytes.below(SealedKind::ALL.len() as u64) as usize];
        let (which, offset) = (usize::from(bytes.byte()), usize::from(bytes.u16()));
        let width = [1, 2, 4, 8][bytes.below(4) as usize];
        let value = match usize::from(bytes.byte()) {
            named if named < VALUES.len() => VALUES[named],
            _ => (0..4).fold(0, |value, _| value << 16 | u64::from(bytes.u16())),
        };
        Self { kind, which, offset, width, value }
    }

    /// Returns the byte position within a structure of `len` bytes: modulo `len`, or counted from the end for offsets
    /// just below and at `usize::MAX`.
    fn at(&self, len: usize) -> usize {
        match usize::MAX - self.offset {
            back if back < len => len - 1 - back,
            _ => self.offset % len,
        }
    }

    /// Writes the value into the files, without correcting checksums. Does nothing if no structure has this kind.
    fn poke(&self, storage: &SimStorage, sealed: &[SealedBytes]) {
        let of_kind: Vec<&SealedBytes> = sealed.iter().filter(|structure| structure.kind == self.kind).collect();
        if let Some(structure) = of_kind.get(self.which % of_kind.len().max(1)) {
            seal::poke(storage, structure, self.at(structure.len), &self.value.to_le_bytes()[..self.width]);
        }
    }
}

/// Writes values into the index that a reference workload leaves after some steps, corrects all checksums, and uses the
/// index. Returns the error if it doesn't open.
///
/// # Panics
/// Panics if the engine panics.
pub fn serve(which: usize, steps: usize, values: &[Hostile]) -> Option<shardex::ShardexError> {
    let base = base(which, steps);
    let storage = SimStorage::from_image(&base.image);
    values.iter().for_each(|value| value.poke(&storage, &base.sealed));
    seal::seal(&storage, &base.sealed);
    let mut engine = match Engine::open(storage, base.workload.config.options.clone(), &env()) {
        Ok(engine) => engine,
        Err(error) => return Some(error),
    };
    use_all(&mut engine, base.workload.config.vector_size);
    None
}

/// Calls every function that reads stored bytes. Any result is allowed, but not a panic.
fn use_all(engine: &mut Engine<SimStorage>, dimension: usize) {
    let _ = engine.stats();
    let _ = engine.check(CheckLevel::Full);
    let _ = model::contents(engine);
    let query: Vec<f32> = (0..engine.geometry().dimension).map(|i| (i % 3) as f32 + 0.5).collect();
    let breadths =
        [SearchScope { slop: None, recall: Some(0.9), by_cells: true, ..SearchScope::slop(2) }, SearchScope::slop(2)];
    for scope in breadths {
        let _ = index::search(&engine.snapshot(), engine.data(), &query, 3, scope);
    }
    if let Some(job) = engine.encode_begin()
        && let Ok(coded) = job.run()
    {
        engine.install_codes(&coded);
    }
    if engine.geometry().dimension == dimension {
        let _ = engine.add(&workload::postings(0..12, 0, 1, dimension));
    }
    let _ = engine.remove(&[shardex::DocumentId(1)]);
    let _ = engine.optimize();
    let _ = engine.flush();
    let _ = engine.close();
}

/// Changes an index as the input describes, and uses it.
///
/// # Panics
/// Panics if the engine panics. Panics if a full check is clean although the index serves postings that no prefix of
/// the written batches leaves, unless the roots were sealed again.
pub fn open_image(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let workloads = workload::reference();
    let which = bytes.below(workloads.len() as u64) as usize;
    let steps = 1 + bytes.below(workloads[which].steps.len() as u64) as usize;
    // Modes 0 and 1 change any bytes, and mode 1 seals the roots again. Modes 2 and 3 write values into structures and
    // seal all of them.
    let mode = bytes.below(4);
    if mode >= 2 {
        let mut values = Vec::new();
        while !bytes.is_empty() && values.len() < 16 {
            values.push(Hostile::of(&mut bytes));
        }
        let _ = serve(which, steps, &values);
        return;
    }
    let seal = mode == 1;
    let base = base(which, steps);
    let storage = SimStorage::from_image(&base.image);
    while !bytes.is_empty() {
        change(&storage, &mut bytes, seal);
    }
    let Ok(mut engine) = Engine::open(storage.clone(), base.workload.config.options.clone(), &env()) else { return };
    // No checksum can detect changes in roots that were sealed again. Any contents are allowed then, but not a panic.
    let held = model::contents(&engine);
    let clean = engine.check(CheckLevel::Full).is_ok_and(|report| report.is_clean());
    if let Ok(held) = held
        && clean
        && !seal
    {
        let metric = engine.geometry().metric;
        let fits = |n: &usize| model::same(&held, &base.model.state(*n), metric);
        assert!((0..=base.model.accepted()).any(|n| fits(&n)), "served what no prefix holds");
    }
    let mut runner = Runner::new(&base.workload, env());
    let Ok(dimension) = u16::try_from(engine.geometry().dimension) else { return };
    if usize::from(dimension) != base.workload.config.vector_size {
        return;
    }
    let _ = engine.flush();
    drop(engine);
    for step in &base.workload.steps {
        if runner.step(&storage, step).is_err() {
            break;
        }
    }
}

/// Applies one change: adds a value to a few bytes, or truncates or extends a file.
fn change(storage: &SimStorage, bytes: &mut Bytes<'_>, seal: bool) {
    let names: Vec<String> = storage.files().into_iter().filter(|(_, b)| !b.is_empty()).map(|(name, _)| name).collect();
    if names.is_empty() {
        return;
    }
    let name = &names[bytes.below(names.len() as u64) as usize];
    let (what, at, value, run) = (bytes.byte(), usize::from(bytes.u16()), bytes.byte(), 1 + bytes.below(8) as usize);
    let page = storage.page_size();
    storage.tamper(name, |file| {
        match what % 16 {
            0 => file.truncate(at % (file.len() + 1)),
            1 => file.resize(file.len() + at % 5000, value),
            _ => {
                let at = at % file.len();
                let end = (at + run).min(file.len());
                file[at..end].iter_mut().for_each(|byte| *byte = byte.wrapping_add(value));
            }
        }
        if seal && name == "root" {
            for slot in 0..2 {
                if let Some(root) = file.get_mut(slot * page..slot * page + ROOT_BYTES) {
                    codec::seal(root, CRC_AT, 0);
                }
            }
        }
    });
}
