//! What runs beside the callers: the writer, and the syncs of its flushes. Threads; under simulation tasks.

use std::sync::{Arc, OnceLock};
#[cfg(not(madsim))]
use std::{panic::AssertUnwindSafe, sync::mpsc, thread::JoinHandle};

use tokio::sync::oneshot;

#[cfg(not(madsim))]
use crate::error::ShardexError;
use crate::{error::Result, lease::SyncJob, storage::StorageFile};

/// What a panic of the writer said, once there was one.
pub(super) type Panic = Arc<OnceLock<String>>;

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

/// Runs the writer on a thread with a runtime of its own: its syncs block nobody, and it needs neither the caller's
/// runtime nor its timers.
#[cfg(not(madsim))]
pub(super) fn spawn_writer(panic: Panic, writer: impl Future<Output = ()> + Send + 'static) -> Result<WriterHandle> {
    let failed = |source| ShardexError::io("start", "the writer's thread", source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let run = move || {
        // Nothing of the writer is used after a panic: the engine is dropped in the unwinding, which is like a crash.
        if let Err(what) = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(writer))) {
            let text = what.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| what.downcast_ref::<&str>().copied()).unwrap_or("no words");
            drop(panic.set(text.to_owned()));
        }
    };
    let thread = std::thread::Builder::new().name("shardex-writer".into()).spawn(run).map_err(failed)?;
    Ok(WriterHandle { thread })
}

/// Under simulation there are no threads: the writer is a task.
#[cfg(madsim)]
pub(super) fn spawn_writer(_: Panic, writer: impl Future<Output = ()> + Send + 'static) -> Result<WriterHandle> {
    tokio::task::spawn(writer);
    Ok(WriterHandle {})
}

/// A job beside the writer: it is over before this is dropped.
pub(super) struct Background {
    #[cfg(not(madsim))]
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Runs a job on a thread of its own. The receiver hears of its end; if it hears nothing, the thread has died in it.
    #[cfg(not(madsim))]
    pub(super) fn run<T: Send + 'static>(
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<(Self, oneshot::Receiver<Result<T>>)> {
        let (done, ended) = oneshot::channel();
        let run = move || drop(done.send(job()));
        let thread = std::thread::Builder::new()
            .name("shardex-cells".into())
            .spawn(run)
            .map_err(|source| ShardexError::io("start", "the thread that makes cells", source))?;
        Ok((Self { thread: Some(thread) }, ended))
    }

    /// Under simulation: a task that takes some virtual time, so that others come between.
    #[cfg(madsim)]
    pub(super) fn run<T: Send + 'static>(
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<(Self, oneshot::Receiver<Result<T>>)> {
        let (done, ended) = oneshot::channel();
        tokio::task::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            drop(done.send(job()));
        });
        Ok((Self {}, ended))
    }
}

#[cfg(not(madsim))]
impl Drop for Background {
    fn drop(&mut self) {
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
    pub(super) fn start() -> Result<Self> {
        let (jobs, requests) = mpsc::channel::<Request<F>>();
        let thread = std::thread::Builder::new()
            .name("shardex-sync".into())
            .spawn(move || {
                for (job, done) in requests {
                    // Nobody waits for it only if the writer is gone.
                    drop(done.send(job.run()));
                }
            })
            .map_err(|source| ShardexError::io("start", "the syncing thread", source))?;
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
    pub(super) fn start() -> Result<Self> {
        Ok(Self { file: std::marker::PhantomData })
    }

    /// A task that takes some virtual time, so that others come between.
    pub(super) fn run(&self, job: SyncJob<F>) -> oneshot::Receiver<Result<()>> {
        let (done, synced) = oneshot::channel();
        tokio::task::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            drop(done.send(job.run()));
        });
        synced
    }
}
