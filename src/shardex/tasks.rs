//! Tasks of an index: the writer, the syncs of its flushes, and long jobs.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    env::Cancel,
    error::{Result, ShardexError},
    lease::{SyncJob, SyncUnderWay},
    runtime::{Blocking, Pending, Runtime, Task},
    storage::StorageFile,
};

/// Cause of an unexpected stop of the writer, such as a panic; set once.
pub(super) type StopCause = Arc<OnceLock<ShardexError>>;

/// Starts a task. An error names it `what`.
fn start(runtime: &dyn Runtime, name: &'static str, what: &'static str, task: Pending) -> Result<Task> {
    runtime.spawn(name, task).map_err(|source| ShardexError::io("start", what, source))
}

/// Starts the writer's task. A panic in it is recorded in `stopped`, so that every caller gets it as an error.
pub(super) fn spawn_writer(
    runtime: &dyn Runtime,
    stopped: StopCause,
    writer: impl Future<Output = ()> + Send + 'static,
) -> Result<Task> {
    let mut writer = Some(Box::pin(writer));
    let task = poll_fn(move |context| {
        let Some(running) = &mut writer else { return Poll::Ready(()) };
        // Nothing of the writer is used after a panic: the engine is dropped, which is like a crash of the process.
        catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
            // Must be set before the writer is dropped, because the drop ends the callers' channels. Only this task
            // sets it.
            stopped.get_or_init(|| ShardexError::Poisoned { cause: format!("the writer panicked: {text}") });
            writer = None;
            Poll::Ready(())
        })
    });
    start(runtime, "shardex-writer", "the writer's thread", Box::pin(task))
}

/// Job beside the writer. Dropping it cancels the job and waits for its end.
pub(super) struct Background<T> {
    ended: oneshot::Receiver<Result<T>>,
    cancel: Arc<AtomicBool>,
    what: &'static str,
    task: Option<Task>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts a job. Errors name it `what`.
    ///
    /// # Errors
    /// Returns `Io` if the task can't be started.
    pub(super) fn run(
        runtime: &dyn Runtime,
        what: &'static str,
        job: impl FnOnce(&dyn Cancel) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (done, ended) = oneshot::channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let (cancelled, blocked) = (Arc::clone(&cancel), runtime.block(Blocking::Job));
        let task = async move {
            blocked.await;
            // The receiver is dropped if the job was cancelled.
            let _ = done.send(job(&*cancelled));
        };
        let task = start(runtime, "shardex-work", what, Box::pin(task))?;
        Ok(Self { ended, cancel, what, task: Some(task) })
    }

    /// Requests an early end of the job.
    pub(super) fn cancel(&self) {
        // Relaxed suffices: the flag publishes no other data.
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Waits for the end of the job and returns its result.
    ///
    /// # Errors
    /// Returns the error of the job, `Closed` if it was cancelled, or `Io` if its thread died.
    pub(super) async fn ended(&mut self) -> Result<T> {
        let died = || ShardexError::io("make", self.what, std::io::Error::other("the thread has died"));
        (&mut self.ended).await.unwrap_or_else(|_| Err(died()))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}

/// Sync to run, and the channel for its result.
type Request<F> = (SyncJob<F>, oneshot::Sender<Result<()>>);

/// Thread that runs the syncs of flushes one at a time, beside the writer. Dropping it waits for the sync under way.
pub(super) struct Syncer<F> {
    jobs: Option<mpsc::UnboundedSender<Request<F>>>,
    task: Option<Task>,
}

impl<F: StorageFile> Syncer<F> {
    /// Starts the syncer's task.
    ///
    /// # Errors
    /// Returns `Io` if the task can't be started.
    pub(super) fn start(runtime: &Arc<dyn Runtime>) -> Result<Self> {
        let (jobs, mut requests) = mpsc::unbounded_channel::<Request<F>>();
        let of_task = Arc::clone(runtime);
        let task = async move {
            while let Some((job, done)) = requests.recv().await {
                // The sync covers the bytes stored before its begin. They are durable at its end.
                let begun = job.begin();
                of_task.block(Blocking::Sync).await;
                // The receiver is dropped only if the writer has ended.
                let _ = done.send(begun.and_then(SyncUnderWay::end));
            }
        };
        let task = start(&**runtime, "shardex-sync", "the syncing thread", Box::pin(task))?;
        Ok(Self { jobs: Some(jobs), task: Some(task) })
    }

    /// Runs a sync on the syncer's task. Returns a receiver of its result, which is closed without a result if the task
    /// died.
    pub(super) fn run(&self, job: SyncJob<F>) -> oneshot::Receiver<Result<()>> {
        let (done, synced) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // If the task has died, `done` is dropped with the message and the receiver closes.
            let _ = jobs.send((job, done));
        }
        synced
    }
}

impl<F> Drop for Syncer<F> {
    fn drop(&mut self) {
        // The task ends when its queue is dropped.
        self.jobs = None;
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}
