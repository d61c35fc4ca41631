//! Lives of one index: the open, the work, and one of several ends.

use std::{future::pending, time::Duration};

use madsim::{
    Config,
    runtime::{Handle, Runtime},
};
use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{DocumentId, Shardex, ShardexError, storage::Storage as _};
use shardex_sim::{CrashKind, SimStorage};
use tokio::{
    select,
    task::{JoinHandle, spawn},
    time::sleep,
};

use crate::{
    actor,
    desk::{CHECK, Desk, Index},
    history::Fnv,
    plan::{End, LifePlan, PAGE, Plan, SECTOR},
    tally::{Seen, Tally},
    verdict::TIMER_SLACK,
};

/// Upper bound of the virtual time of two flushes, the one under way and the next. Each sync takes a millisecond,
/// except the sync of the WAL.
const FLUSH_TIME: Duration = Duration::from_millis(5);

/// Longest delay before failed background work is retried.
const RETRY: Duration = Duration::from_secs(5);

/// Virtual time that no seed needs. A call that is never answered exceeds it.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Runs one seed. Returns the hash and the counts of the run. Panics on anything that the promises don't allow.
pub(crate) fn run(seed: u64) -> (Fnv, Tally) {
    let mut runtime = Runtime::with_seed_and_config(seed, Config::default());
    runtime.set_time_limit(TIME_LIMIT);
    runtime.block_on(lives(seed, Plan::of(seed)))
}

async fn lives(seed: u64, plan: Plan) -> (Fnv, Tally) {
    let mut storage = SimStorage::new(PAGE, SECTOR, seed);
    storage.set_trace(true);
    storage.set_garbage(plan.garbage);
    let mut desk = Desk::new(storage.clone());
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    for life in &plan.lives {
        desk.begin_life(life);
        if let End::Cut { operation, stop, .. } = life.end {
            storage.crash_after(operation, stop);
        }
        while let Some(crash) = process(&desk, &plan, life).await {
            // The crash comes before another task runs, so that calls under way end here.
            storage.crash(crash, &mut rng);
            desk = desk.after_crash(&storage);
            if desk.has_ended() {
                break;
            }
        }
        if matches!(life.end, End::Drop { .. }) {
            released(&desk, &storage).await;
        }
    }
    desk.result()
}

/// Runs a process that holds the index, until its end. Returns the kind of its crash, or `None` if it did not crash.
async fn process(desk: &Desk, plan: &Plan, life: &LifePlan) -> Option<CrashKind> {
    let node = Handle::current().create_node().build();
    let session = node.spawn(session(desk.clone(), plan.clone(), life.clone()));
    let crash = select! {
        biased;
        () = desk.restart.notified() => CrashKind::Process,
        () = desk.strike.notified(), if life.end.crash().is_some() => {
            let crash = life.end.crash()?;
            desk.crashed(life.end, crash);
            crash
        }
        done = session => {
            done.expect("the session ends the life");
            return None;
        }
    };
    Handle::current().kill(node.id());
    Some(crash)
}

/// Waits until the writer has released the index. It first serves the queued calls, which may have to wait for flushes.
async fn released(desk: &Desk, storage: &SimStorage) {
    for _ in 0..100 {
        if desk.stopped() || !matches!(storage.lock("LOCK"), Err(ShardexError::Locked { .. })) {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("the lock is released when the last handle is dropped");
}

/// Runs one life inside the process that holds the index.
async fn session(desk: Desk, plan: Plan, life: LifePlan) {
    let index = open(&desk, &plan, &life).await;
    let (stats, mut report) = (index.stats().await, index.check(CHECK).await);
    while let Err(ShardexError::Io { op: "start", .. }) = report {
        desk.check_refused();
        report = index.check(CHECK).await;
    }
    match (stats, report) {
        _ if desk.stopped() => return pending().await,
        (Ok(stats), Ok(report)) => {
            desk.recovered(&stats);
            // A compaction may begin with the open, and its flush may meet the failing sync, which loses what it covers.
            let failed = index.stats().await.is_ok_and(|stats| stats.poisoned.is_some());
            assert!(report.is_clean() || failed, "{report}");
        }
        (stats, report) => panic!("{stats:?} {report:?}"),
    }
    desk.begin_work(life.writers);
    let writers = (0..life.writers).map(|who| spawn(actor::writer(desk.clone(), index.clone(), life.clone(), who)));
    let mut tasks: Vec<JoinHandle<()>> = writers.collect();
    tasks.extend((0..life.readers).map(|who| spawn(actor::reader(desk.clone(), index.clone(), life.clone(), who))));
    if life.end.crash().is_some() {
        // The index consists of tasks of this process, which are killed from outside.
        return pending().await;
    }
    desk.strike.notified().await;
    match life.end {
        End::Drop { .. } => give_up(&desk, index, tasks).await,
        _ => close(&desk, &index, &life, tasks).await,
    }
}

/// Opens or creates the index. If a sync fails, the open returns an error once, and is repeated. If a sync of the
/// parent fails, the process ends. The entry of the directory can't be created again, and no second sync before the
/// next boot makes up for the first (R8).
async fn open(desk: &Desk, plan: &Plan, life: &LifePlan) -> Index {
    let (storage, mut patience) = (desk.storage(), desk.patience());
    loop {
        let config = plan.config.clone().options(life.options.clone());
        let opening = async {
            match desk.made() {
                true => Shardex::open_on(storage.clone(), life.options.clone(), desk.env()).await,
                false => Shardex::create_on(storage.clone(), config, desk.env()).await,
            }
        };
        let opened = select! {
            biased;
            opened = opening => opened,
            () = actor::wait(patience.unwrap_or(0)), if patience.is_some() => {
                desk.note(Seen::OpensAbandoned);
                patience = None;
                released(desk, storage.inner()).await;
                if desk.parent_failed() {
                    // No caller received the error of the failed sync, and the next open could not detect it.
                    desk.restart.notify_one();
                    return pending().await;
                }
                continue;
            }
        };
        match opened {
            _ if desk.stopped() => return pending().await,
            Ok(index) => {
                let found = index.search_with(&actor::QUERY, &actor::everything()).await;
                desk.opened(&found.expect("an open index can be searched"));
                return index;
            }
            Err(error) => {
                desk.open_refused(&error);
                if desk.parent_failed() {
                    desk.restart.notify_one();
                    return pending().await;
                }
            }
        }
    }
}

/// Closes the index while other tasks may still call it.
async fn close(desk: &Desk, index: &Index, life: &LifePlan, tasks: Vec<JoinHandle<()>>) {
    settle(desk, index, life).await;
    let failed_before = desk.failed();
    desk.begin_close();
    let closed = index.close().await;
    desk.end_close(&closed, failed_before);
    desk.assert_let_go();
    for task in tasks {
        task.await.expect("an actor leaves by itself");
    }
    desk.assert_released();
    assert_closed(index).await;
}

/// Waits for the timers if the writers are done, and checks the work done so far.
async fn settle(desk: &Desk, index: &Index, life: &LifePlan) {
    if !desk.is_settled() {
        return;
    }
    let before = index.stats().await.expect("an open index has figures");
    let interval = life.options.batch_write_interval_ms.max(life.options.flush_interval_ms);
    let retry = if desk.end_trouble() { RETRY + FLUSH_TIME } else { Duration::ZERO };
    sleep(Duration::from_millis(interval) + retry + TIMER_SLACK + FLUSH_TIME).await;
    let after = index.stats().await.expect("an open index has figures");
    let found = index.search_with(&actor::QUERY, &actor::everything()).await.expect("an open index can be searched");
    // The sync that a timer started may have failed.
    if desk.is_settled() {
        desk.settled(&before, &after, &found);
    }
}

/// Drops every handle, including those of calls under way.
async fn give_up(desk: &Desk, index: Index, tasks: Vec<JoinHandle<()>>) {
    tasks.iter().for_each(JoinHandle::abort);
    desk.dropped();
    for task in tasks {
        // The task has ended or was aborted. In both cases it has dropped its handle of the index.
        drop(task.await);
    }
    drop(index);
}

/// Checks that every call returns `Closed`.
async fn assert_closed(index: &Index) {
    let results = [
        index.add_postings(Vec::new()).await,
        index.remove_documents(vec![DocumentId(1)]).await.map(drop),
        index.commit().await,
        index.flush().await.map(drop),
        index.stats().await.map(drop),
        index.check(CHECK).await.map(drop),
        index.search_with(&actor::QUERY, &actor::everything()).await.map(drop),
        index.close().await,
    ];
    for (n, result) in results.iter().enumerate() {
        assert!(matches!(result, Err(ShardexError::Closed)), "call {n} after the close: {result:?}");
    }
}
