//! The tasks of an index: the writer, the syncs of its flushes, and jobs that take long.

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

/// Why the writer stopped without being asked to, once it has.
pub(super) type Stopped = Arc<OnceLock<ShardexError>>;

/// Starts a task, which is `what` in an error.
fn start(runtime: &dyn Runtime, name: &'static str, what: &'static str, task: Pending) -> Result<Task> {
    runtime.spawn(name, task).map_err(|source| ShardexError::io("start", what, source))
}

/// Starts the writer. A panic of it is told to whoever calls or waits for an answer.
pub(super) fn spawn_writer(
    runtime: &dyn Runtime,
    stopped: Stopped,
    writer: impl Future<Output = ()> + Send + 'static,
) -> Result<Task> {
    let mut writer = Some(Box::pin(writer));
    let task = poll_fn(move |context| {
        let Some(running) = &mut writer else { return Poll::Ready(()) };
        // Nothing of the writer is used after a panic: the engine is dropped, which is like a crash.
        catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
            // Set before the writer is dropped, by which its callers hear of it. Nobody else sets it.
            stopped.get_or_init(|| ShardexError::Poisoned { cause: format!("the writer panicked: {text}") });
            writer = None;
            Poll::Ready(())
        })
    });
    start(runtime, "shardex-writer", "the writer's thread", Box::pin(task))
}

/// A job beside the writer. Dropping it cancels it and waits for its end.
pub(super) struct Background<T> {
    ended: oneshot::Receiver<Result<T>>,
    cancel: Arc<AtomicBool>,
    what: &'static str,
    task: Option<Task>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts a job, which is `what` in errors.
    ///
    /// # Errors
    /// `Io` if its task cannot be started.
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
            // Nobody listens if it was cancelled.
            let _ = done.send(job(&*cancelled));
        };
        let task = start(runtime, "shardex-work", what, Box::pin(task))?;
        Ok(Self { ended, cancel, what, task: Some(task) })
    }

    /// Asks it to end early.
    pub(super) fn cancel(&self) {
        // Relaxed: it hands over nothing.
        self.cancel.store(true, Ordering::Relaxed);
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
        self.cancel.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}

/// A sync, and who is to hear of its end.
type Request<F> = (SyncJob<F>, oneshot::Sender<Result<()>>);

/// Runs the syncs of flushes, one at a time, while the writer goes on. Dropping it waits for the one under way.
pub(super) struct Syncer<F> {
    jobs: Option<mpsc::UnboundedSender<Request<F>>>,
    task: Option<Task>,
}

impl<F: StorageFile> Syncer<F> {
    /// Starts its task.
    ///
    /// # Errors
    /// `Io` if it cannot be started.
    pub(super) fn start(runtime: &Arc<dyn Runtime>) -> Result<Self> {
        let (jobs, mut requests) = mpsc::unbounded_channel::<Request<F>>();
        let of_task = Arc::clone(runtime);
        let task = async move {
            while let Some((job, done)) = requests.recv().await {
                // The sync covers what there is at its begin, and it is durable at its end.
                let begun = job.begin();
                of_task.block(Blocking::Sync).await;
                // Nobody listens only if the writer is gone.
                let _ = done.send(begun.and_then(SyncUnderWay::end));
            }
        };
        let task = start(&**runtime, "shardex-sync", "the syncing thread", Box::pin(task))?;
        Ok(Self { jobs: Some(jobs), task: Some(task) })
    }

    /// Runs a sync there. The receiver hears of its end; if it hears nothing, the task has died in it.
    pub(super) fn run(&self, job: SyncJob<F>) -> oneshot::Receiver<Result<()>> {
        let (done, synced) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // If the task has died, `done` dies with the message.
            let _ = jobs.send((job, done));
        }
        synced
    }
}

impl<F> Drop for Syncer<F> {
    fn drop(&mut self) {
        // The task ends when its queue does.
        self.jobs = None;
        if let Some(task) = self.task.take() {
            task.join();
        }
    }
}
