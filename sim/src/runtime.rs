//! Runtimes for tests: a runtime that refuses tasks and, with `--cfg madsim`, a runtime in virtual time whose task
//! order depends on a seed.

use std::{io, time::Duration};

#[cfg(madsim)]
use madsim::time::{Instant, sleep, sleep_until};
use shardex::runtime::{Blocking, Pending, Runtime, Task};

/// Runtime around another one. A closure decides by name which tasks may start.
#[derive(Clone, Copy, Debug)]
pub struct Gate<R, F> {
    inner: R,
    may_start: F,
}

impl<R: Runtime, F: Fn(&'static str) -> bool + Send + Sync + 'static> Gate<R, F> {
    /// Creates a runtime that starts the tasks for which `may_start` returns true. Other tasks fail with `WouldBlock`.
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

/// Runtime on madsim: the tasks of an index are tasks of the madsim node that opened it, and die when that node is
/// killed.
///
/// A sync takes one millisecond of virtual time and a job takes five, so other tasks run in between. It must be created
/// and used inside a `madsim::runtime::Runtime`.
#[cfg(madsim)]
#[derive(Clone, Copy, Debug)]
pub struct MadsimRuntime {
    start: Instant,
}

#[cfg(madsim)]
impl MadsimRuntime {
    /// Creates a runtime whose time starts now.
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

    /// Spawns the task. Never fails. [`Task::join`] returns at once, because there is no thread to block.
    fn spawn(&self, _: &'static str, task: Pending) -> io::Result<Task> {
        // Dropping the handle detaches the task.
        drop(madsim::task::spawn(task));
        Ok(Task::new(|| {}))
    }
}
