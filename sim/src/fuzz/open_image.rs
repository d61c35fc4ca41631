//! A valid index with any bytes changed: opening it, searching it and writing to it must not panic, hang or serve what was
//! never written.

use std::{cell::RefCell, collections::BTreeMap};

use shardex::{
    CheckLevel, Engine,
    format::{codec, header::CRC_AT, root::ROOT_BYTES},
    storage::Storage as _,
};

use super::Bytes;
use crate::{
    model::{self, Model},
    storage::{Image, SimStorage},
    workload::{self, Runner, Workload, env},
};

/// An index as a workload left it, and what it was told.
struct Base {
    workload: Workload,
    image: Image,
    model: Model,
}

thread_local! {
    /// By what was asked for: making one takes longer than all that is done to it.
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
    Base { workload, image: sim.image(), model: runner.model }
}

/// Changes an index as some bytes say, and uses it.
///
/// # Panics
/// If anything in it panics; if postings are served that no prefix of what was written holds, and a full check is clean.
pub fn open_image(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let workloads = workload::reference();
    let which = bytes.below(workloads.len() as u64) as usize;
    let steps = 1 + bytes.below(workloads[which].steps.len() as u64) as usize;
    let base = base(which, steps);
    let storage = SimStorage::from_image(&base.image);
    let seal = bytes.below(2) == 1;
    while !bytes.is_empty() {
        change(&storage, &mut bytes, seal);
    }
    let Ok(mut engine) = Engine::open(storage.clone(), base.workload.config.options.clone(), &env()) else { return };
    // What was sealed again is a lie that no checksum can tell: it may say anything, and must do no harm.
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
    drop(engine.flush());
    drop(engine);
    for step in &base.workload.steps {
        if runner.step(&storage, step).is_err() {
            break;
        }
    }
}

/// One change: bytes set, or a file cut, or grown.
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
