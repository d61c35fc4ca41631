//! Runtimes for tests: one that refuses tasks, and with `--cfg madsim` one of which a seed chooses the next task, in virtual time.

use std::{io, time::Duration};

#[cfg(madsim)]
use madsim::time::{Instant, sleep, sleep_until};
use shardex::runtime::{Blocking, Pending, Runtime, Task};

/// Another runtime, of which a closure says by name which tasks start.
#[derive(Clone, Copy, Debug)]
pub struct Gate<R, F> {
    inner: R,
    may_start: F,
}

impl<R: Runtime, F: Fn(&'static str) -> bool + Send + Sync + 'static> Gate<R, F> {
    /// A runtime that starts the tasks for which `may_start` is true; others fail with `WouldBlock`.
    pub fn new(inner: R, may_start: F) -> Self {
        Self { inner, may_start }
    }
}

impl<R: Runtime, F: Fn(&'static str) -> bool + Send + Sync + 'static> Runtime for Gate<R, F> {
    fn now(&self) -> Duration {
        self.inner.now()
    }

    fn sleep_until(&self, at: Duration) -> Pending {
        self.inner.sleep_until(at)
    }

    fn block(&self, call: Blocking) -> Pending {
        self.inner.block(call)
    }

    fn spawn(&self, name: &'static str, task: Pending) -> io::Result<Task> {
        if (self.may_start)(name) { self.inner.spawn(name, task) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

/// The tasks of an index as tasks of the madsim node that opened it: they die when that node is killed.
///
/// A sync takes a millisecond of virtual time, and a job five, so that other tasks run in between. Made and used inside a
/// `madsim::runtime::Runtime`.
#[cfg(madsim)]
#[derive(Clone, Copy, Debug)]
pub struct MadsimRuntime {
    start: Instant,
}

#[cfg(madsim)]
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

#[cfg(madsim)]
impl Default for MadsimRuntime {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(madsim)]
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
