//! A runtime on madsim: its seed chooses which task runs next, and its time is virtual.
//!
//! Built with `--cfg madsim` only, as madsim itself is.

use std::{io, time::Duration};

use madsim::time::{Instant, sleep, sleep_until};
use shardex::runtime::{Blocking, Pending, Runtime, Task};

/// The tasks of an index as tasks of the madsim node that opened it: they die when that node is killed.
///
/// A sync takes a millisecond of virtual time, and a job five, so that other tasks run in between. Made and used inside a
/// `madsim::runtime::Runtime`.
#[derive(Clone, Copy, Debug)]
pub struct MadsimRuntime {
    start: Instant,
}

impl MadsimRuntime {
    /// A runtime whose time begins now.
    ///
    /// # Panics
    /// Outside of a madsim runtime.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for MadsimRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime for MadsimRuntime {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Pending {
        Box::pin(sleep_until(self.start + at))
    }

    fn block(&self, call: Blocking) -> Pending {
        Box::pin(sleep(match call {
            Blocking::Sync => Duration::from_millis(1),
            Blocking::Job => Duration::from_millis(5),
        }))
    }

    /// Never fails. [`Task::join`] returns at once: there is no thread to block.
    fn spawn(&self, _: &'static str, task: Pending) -> io::Result<Task> {
        // Its handle is dropped, which lets it go on by itself.
        drop(madsim::task::spawn(task));
        Ok(Task::new(|| {}))
    }
}
