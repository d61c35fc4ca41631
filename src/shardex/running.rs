//! Work under way beside the writer (a flush's sync, a cell build, a full check or a backup), and the futures that the writer's
//! loop waits for.

use std::{
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{queue::Reply, tasks::Background};
use crate::{
    cells::BuiltCells,
    env::Cancel,
    error::{Result, ShardexError},
    observe::Trace,
    runtime::Runtime,
};

/// Flush under way.
pub(super) struct RunningFlush {
    /// Receives the result of the sync that the flush waits for.
    pub(super) synced: oneshot::Receiver<Result<()>>,
    /// Whether the writer started the flush automatically, without a caller's request.
    pub(super) automatic: bool,
    /// Span of the flush, and that of the sync.
    pub(super) trace: Trace,
    pub(super) stage: Trace,
}

/// Waits for the sync of the flush under way. Never completes if there is no flush.
pub(super) async fn synced(flushing: &mut Option<RunningFlush>) -> Result<()> {
    let Some(flushing) = flushing else { return pending().await };
    // The effect of the sync is unknown, so it counts as failed.
    let died = || ShardexError::io("sync", "the index", std::io::Error::other("the syncing thread has died"));
    (&mut flushing.synced).await.unwrap_or_else(|_| Err(died()))
}

/// Cell build under way.
pub(super) struct RunningCellBuild {
    pub(super) job: Background<Option<BuiltCells>>,
    /// Callers that are answered when the cells are installed.
    pub(super) waiters: Vec<Reply<()>>,
    /// Bytes that readers held when it began.
    pub(super) held_before: u64,
}

/// Full check or backup under way: it reads beside the writer.
pub(super) struct RunningJob {
    pub(super) job: Background<()>,
    /// Answers the caller with the result of the job, or with the error by which it ended.
    answer: Box<dyn FnOnce(Result<()>) + Send>,
}

impl RunningJob {
    /// Starts a job whose errors name it `what`. If it can't be started, the caller is answered.
    pub(super) fn start<T: Send + 'static>(
        runtime: &dyn Runtime,
        what: &'static str,
        reply: Reply<T>,
        run: impl FnOnce(&dyn Cancel) -> Result<T> + Send + 'static,
    ) -> Option<Self> {
        let found = Arc::new(Mutex::new(None));
        let of_job = Arc::clone(&found);
        let store = move |done: T| *of_job.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        match Background::run(runtime, what, move |cancel| run(cancel).map(store)) {
            Ok(job) => {
                let take = move || found.lock().unwrap_or_else(PoisonError::into_inner).take();
                let answer = move |ended: Result<()>| {
                    reply.send(ended.and_then(|()| take().ok_or(ShardexError::Closed)));
                };
                Some(Self { job, answer: Box::new(answer) })
            }
            Err(error) => {
                reply.send(Err(error));
                None
            }
        }
    }

    /// Answers the caller.
    pub(super) fn answer(self, ended: Result<()>) {
        (self.answer)(ended);
    }
}

/// Waits for the end of a job. Never completes if there is no job.
pub(super) async fn ended<T: Send + 'static>(job: Option<&mut Background<T>>) -> Result<T> {
    match job {
        Some(job) => job.ended().await,
        None => pending().await,
    }
}

/// Completes at `due`, a time of the runtime's clock. Never completes if `due` is `None`.
pub(super) fn timer(runtime: &dyn Runtime, due: Option<Duration>) -> impl Future<Output = ()> + use<> {
    let sleep = due.map(|due| runtime.sleep_until(due));
    async move {
        match sleep {
            Some(sleep) => sleep.await,
            None => pending().await,
        }
    }
}
