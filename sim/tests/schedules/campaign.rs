//! Campaign of many seeds. It runs each seed twice, and reports failures and counts.

use std::{
    any::Any,
    cell::RefCell,
    env,
    io::Write as _,
    panic,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{history::Fnv, life, tally::Tally};

/// Default number of seeds.
const SEEDS: u64 = 8_000;

/// Number of failed seeds after which no more are started.
const ENOUGH: usize = 5;

thread_local! {
    /// First panic of this thread, even if it was caught.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs the seeds that the environment variables select.
pub(crate) fn run() {
    let first = number("SHARDEX_SIM_SEED");
    let count = number("SHARDEX_SIM_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(0);
    watch_panics();
    let next = AtomicU64::new(first);
    let result = Mutex::new((Tally::default(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| work(&next, first + count, &result));
        }
    });
    let (tally, failures) = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    say(&format!("{count} seeds from {first}\n{tally}"));
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
    // A few seeds don't make every event occur.
    let missing = if count < SEEDS { Vec::new() } else { tally.missing() };
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

/// Writes to standard error, bypassing the capture of the test harness, so that the counts of a success are visible.
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("standard error takes text");
}

fn work(next: &AtomicU64, end: u64, result: &Mutex<(Tally, Vec<String>)>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || result.lock().unwrap_or_else(PoisonError::into_inner).1.len() >= ENOUGH {
            return;
        }
        let outcome = twice(seed);
        let (tally, failures) = &mut *result.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(seen) => tally.merge(&seen),
            Err(what) => {
                let failure = format!("seed {seed}: {what}\n  again: SHARDEX_SIM_SEED={seed} cargo sim");
                say(&failure);
                failures.push(failure);
            }
        }
    }
}

/// Runs a seed twice. The second run repeats the first to the last byte, otherwise a failure could not be repeated.
fn twice(seed: u64) -> Result<Tally, String> {
    let (first, tally) = once(seed)?;
    let (second, _) = once(seed)?;
    match first == second {
        true => Ok(tally),
        false => Err(format!("two runs differ: {:016x} and {:016x}", first.0, second.0)),
    }
}

/// Runs a seed on a thread of its own, so that thread-locals of an earlier seed don't affect it.
fn once(seed: u64) -> Result<(Fnv, Tally), String> {
    let run = thread::Builder::new().name(format!("seed {seed}")).spawn(move || {
        let seen = life::run(seed);
        // A panic of the writer is caught and returned to its callers as an error, which the promises may allow.
        // So every recorded panic fails the seed.
        PANICKED.take().map_or(Ok(seen), |panic| Err(format!("a task panicked: {panic}")))
    });
    run.expect("a thread").join().unwrap_or_else(|panic| Err(message(&*panic)))
}

/// Installs a hook that keeps the first panic of each thread in [`PANICKED`].
fn watch_panics() {
    let shown = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.with_borrow_mut(|panicked| {
            panicked.get_or_insert_with(|| info.to_string());
        });
        shown(info);
    }));
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "it panicked".into())
}
