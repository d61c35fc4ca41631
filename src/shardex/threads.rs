//! What runs beside the callers: the writer, the syncs of its flushes, and work that takes long. Threads; under simulation
//! tasks.

use std::sync::{Arc, OnceLock, atomic::AtomicBool};
#[cfg(not(madsim))]
use std::{panic::AssertUnwindSafe, sync::mpsc, thread::JoinHandle};

use tokio::sync::oneshot;

use crate::{
    env::{Cancel, Threads},
    error::{Result, ShardexError},
    lease::SyncJob,
    storage::StorageFile,
};

/// Why the writer stopped without being asked to, once it has.
pub(super) type Stopped = Arc<OnceLock<ShardexError>>;

/// The thread that the writer runs on, or under simulation the task.
pub(super) struct WriterHandle {
    #[cfg(not(madsim))]
    thread: JoinHandle<()>,
}

impl WriterHandle {
    /// Waits until the writer has let the index go.
    pub(super) fn wait(self) {
        // A panic of the writer is told to whoever calls or waits for an answer.
        #[cfg(not(madsim))]
        drop(self.thread.join());
    }
}

/// Asks whether a thread of this name may be started, which is `what` in an error.
fn admit(threads: &dyn Threads, name: &'static str, what: &'static str) -> Result<()> {
    threads.may_start(name).map_err(|source| ShardexError::io("start", what, source))
}

/// Starts a thread.
#[cfg(not(madsim))]
fn start(
    threads: &dyn Threads,
    name: &'static str,
    what: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    admit(threads, name, what)?;
    let started = std::thread::Builder::new().name(name.into()).spawn(run);
    started.map_err(|source| ShardexError::io("start", what, source))
}

/// Runs the writer on a thread with a runtime of its own: its syncs block nobody, and it needs neither the caller's
/// runtime nor its timers.
#[cfg(not(madsim))]
pub(super) fn spawn_writer(
    threads: &dyn Threads,
    stopped: Stopped,
    writer: impl Future<Output = ()> + Send + 'static,
) -> Result<WriterHandle> {
    const WHAT: &str = "the writer's thread";
    let run = move || {
        // Made here: a runtime that is dropped inside another one, as after a failed start, panics.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(source) => {
                // Set before the writer is dropped, by which its caller hears of it.
                return drop(stopped.set(ShardexError::io("start", WHAT, source)));
            }
        };
        // Nothing of the writer is used after a panic: the engine is dropped in the unwinding, which is like a crash.
        if let Err(what) = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(writer))) {
            let text = what.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| what.downcast_ref::<&str>().copied()).unwrap_or("no words");
            drop(stopped.set(ShardexError::Poisoned { cause: format!("the writer panicked: {text}") }));
        }
    };
    Ok(WriterHandle { thread: start(threads, "shardex-writer", WHAT, run)? })
}

/// Under simulation there are no threads: the writer is a task.
#[cfg(madsim)]
pub(super) fn spawn_writer(
    threads: &dyn Threads,
    _: Stopped,
    writer: impl Future<Output = ()> + Send + 'static,
) -> Result<WriterHandle> {
    admit(threads, "shardex-writer", "the writer's thread")?;
    tokio::task::spawn(writer);
    Ok(WriterHandle {})
}

/// A job beside the writer. Dropping it cancels it and waits for its end.
pub(super) struct Background<T> {
    ended: oneshot::Receiver<Result<T>>,
    cancel: Arc<AtomicBool>,
    what: &'static str,
    #[cfg(not(madsim))]
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Background<T> {
    /// Runs a job, which is `what` in errors, on a thread of its own.
    ///
    /// # Errors
    /// `Io` if the thread cannot be started.
    #[cfg(not(madsim))]
    pub(super) fn run(
        threads: &dyn Threads,
        what: &'static str,
        job: impl FnOnce(&dyn Cancel) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (done, ended) = oneshot::channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&cancel);
        let thread = start(threads, "shardex-work", what, move || drop(done.send(job(&*told))))?;
        Ok(Self { ended, cancel, what, thread: Some(thread) })
    }

    /// Under simulation: a task that takes some virtual time, so that others come between.
    #[cfg(madsim)]
    pub(super) fn run(
        threads: &dyn Threads,
        what: &'static str,
        job: impl FnOnce(&dyn Cancel) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        admit(threads, "shardex-work", what)?;
        let (done, ended) = oneshot::channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&cancel);
        tokio::task::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            drop(done.send(job(&*told)));
        });
        Ok(Self { ended, cancel, what })
    }

    /// Asks it to end early.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Those of the job; `Closed` if it was cancelled; `Io` if its thread has died in it.
    pub(super) async fn ended(&mut self) -> Result<T> {
        let died = || ShardexError::io("make", self.what, std::io::Error::other("the thread has died"));
        (&mut self.ended).await.unwrap_or_else(|_| Err(died()))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        #[cfg(not(madsim))]
        if let Some(thread) = self.thread.take() {
            // A panic in it was told by the receiver that hears nothing.
            drop(thread.join());
        }
    }
}

/// A sync, and who is to hear of its end.
#[cfg(not(madsim))]
type Request<F> = (SyncJob<F>, oneshot::Sender<Result<()>>);

/// Runs the syncs of flushes, one at a time, while the writer goes on. It ends when it is dropped.
pub(super) struct Syncer<F> {
    #[cfg(not(madsim))]
    jobs: Option<mpsc::Sender<Request<F>>>,
    #[cfg(not(madsim))]
    thread: Option<JoinHandle<()>>,
    #[cfg(madsim)]
    file: std::marker::PhantomData<F>,
}

#[cfg(not(madsim))]
impl<F: StorageFile> Syncer<F> {
    /// Starts its thread.
    ///
    /// # Errors
    /// `Io` if it cannot be started.
    pub(super) fn start(threads: &dyn Threads) -> Result<Self> {
        let (jobs, requests) = mpsc::channel::<Request<F>>();
        let run = move || {
            for (job, done) in requests {
                // Nobody waits for it only if the writer is gone.
                drop(done.send(job.run()));
            }
        };
        let thread = start(threads, "shardex-sync", "the syncing thread", run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs a sync there. The receiver hears of its end; if it hears nothing, the thread has died in it.
    pub(super) fn run(&self, job: SyncJob<F>) -> oneshot::Receiver<Result<()>> {
        let (done, synced) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // If the thread has died, `done` dies with the message.
            drop(jobs.send((job, done)));
        }
        synced
    }
}

#[cfg(not(madsim))]
impl<F> Drop for Syncer<F> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(madsim)]
impl<F: StorageFile> Syncer<F> {
    pub(super) fn start(threads: &dyn Threads) -> Result<Self> {
        admit(threads, "shardex-sync", "the syncing thread")?;
        Ok(Self { file: std::marker::PhantomData })
    }

    /// A task that takes some virtual time, so that others come between: the sync covers what there is at this call, and it is
    /// durable when the time is over.
    pub(super) fn run(&self, job: SyncJob<F>) -> oneshot::Receiver<Result<()>> {
        let (done, synced) = oneshot::channel();
        let begun = job.begin();
        tokio::task::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            drop(done.send(begun.and_then(crate::lease::SyncUnderWay::end)));
        });
        synced
    }
}
