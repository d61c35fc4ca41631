//! Callers of one life: writers and readers.

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{SearchOptions, SearchResponse, ShardexError};
use tokio::{select, task::yield_now, time::sleep};

use crate::{
    batch::{self, Action, DOCUMENTS, PARTS},
    book::Wish,
    desk::{Desk, Index},
    plan::{DIMENSION, LifePlan},
    tally::Seen,
};

/// Number of refusals after which a writer stops.
const ENOUGH: usize = 3;

/// Query of a search over everything.
pub(crate) const QUERY: [f32; DIMENSION] = [0.0; DIMENSION];

pub(crate) fn everything() -> SearchOptions {
    SearchOptions::new(10_000).exact()
}

/// Makes calls, one at a time or several at once, until at least `plan.calls` were made or [`ENOUGH`] were refused.
pub(crate) async fn writer(desk: Desk, index: Index, plan: LifePlan, who: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed.wrapping_add(who as u64));
    let (mut calls, mut refused) = (0, 0);
    while calls < plan.calls && refused < ENOUGH {
        let together = if plan.bursts && rng.random_bool(0.3) { rng.random_range(2..=6) } else { 1 };
        if together > 1 {
            desk.note(Seen::Bursts);
        }
        let burst = (0..together).map(|_| {
            let patience = (plan.cancels && rng.random_bool(0.3)).then(|| rng.random_range(0..6));
            call(&desk, &index, who, wish(&mut rng, plan.commits), patience)
        });
        refused += all(burst.collect()).await.into_iter().filter(|refused| *refused).count();
        calls += together;
        rest(&mut rng, plan.nap_ms).await;
    }
    desk.end_work();
}

/// Searches up to `plan.searches` times. About one search in five keeps its hits and reads them again later.
pub(crate) async fn reader(desk: Desk, index: Index, plan: LifePlan, who: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed.wrapping_add(1_000 + who as u64));
    for _ in 0..plan.searches {
        let more = match rng.random_bool(0.2) {
            true => hold(&desk, &index, &mut rng, plan.nap_ms).await,
            false => desk.saw(index.search_with(&QUERY, &everything()).await),
        };
        if !more {
            break;
        }
        rest(&mut rng, plan.nap_ms).await;
    }
}

/// Keeps the hits of a search for a while, and checks that they don't change, because their allocations are not reused.
/// Reports whether the reader may continue.
async fn hold(desk: &Desk, index: &Index, rng: &mut ChaCha8Rng, nap_ms: u64) -> bool {
    let hits = match index.search_in_place(&QUERY, &everything()).await {
        Ok(hits) => hits,
        Err(error) => return desk.saw(Err(error)),
    };
    let first: SearchResponse = hits.to_response();
    let more = desk.saw(Ok(first.clone()));
    rest(rng, nap_ms).await;
    assert_eq!(hits.to_response(), first, "held hits changed");
    desk.note(Seen::HitsHeld);
    more
}

fn wish(rng: &mut ChaCha8Rng, commits: bool) -> Wish {
    let count = rng.random_range(0..6);
    match rng.random_range(0..if commits { 20 } else { 15 }) {
        0..=10 => {
            let part = |_| (rng.random_range(0..DOCUMENTS), rng.random_range(0..PARTS));
            Wish::Add((0..count).map(part).collect())
        }
        11..=14 => Wish::Remove((0..count).map(|_| rng.random_range(0..DOCUMENTS)).collect()),
        15..=17 => Wish::Commit,
        _ => Wish::Flush,
    }
}

/// Makes one call. With `patience`, drops it after that many turns if it is not done by then. Reports whether it was
/// refused.
async fn call(desk: &Desk, index: &Index, who: usize, wish: Wish, patience: Option<u32>) -> bool {
    let Some((call, number, action)) = desk.begin(who, wish) else { return pending().await };
    let work = carry_out(index, who, number, &action);
    match patience {
        None => desk.end(call, work.await),
        Some(turns) => select! {
            biased;
            result = work => desk.end(call, result),
            () = wait(turns) => {
                desk.give_up(call);
                false
            }
        },
    }
}

async fn carry_out(index: &Index, who: usize, number: u64, action: &Action) -> Result<Option<u64>, ShardexError> {
    match action {
        Action::Add(parts) => index.add_postings(batch::postings(who, number, parts)).await.map(|()| None),
        Action::Remove { receipt, documents } => {
            index.remove_documents(batch::documents(who, *receipt, documents)).await.map(Some)
        }
        Action::Commit => index.commit().await.map(|()| None),
        Action::Flush => index.flush().await.map(|_| None),
    }
}

/// Lets other tasks run, or virtual time pass.
async fn rest(rng: &mut ChaCha8Rng, nap_ms: u64) {
    match rng.random_range(0..4) {
        0 => {}
        1 if nap_ms > 0 => sleep(Duration::from_millis(rng.random_range(1..=nap_ms))).await,
        _ => wait(rng.random_range(0..8)).await,
    }
}

pub(crate) async fn wait(turns: u32) {
    for _ in 0..turns {
        yield_now().await;
    }
}

/// Polls all futures until they are done, always in their order. That is the order in which they reach the queue.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut waiting: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, output) in waiting.iter_mut().zip(&mut done) {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
