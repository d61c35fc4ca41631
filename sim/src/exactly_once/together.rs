//! Calls that are under way at the same time in one task.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

/// Polls all futures in their order until they are done, and returns their outputs. With `patience` it drops the
/// unfinished ones after that many further polls; their outputs are `None`.
pub(super) async fn together<F: Future>(futures: Vec<F>, mut patience: Option<u32>) -> Vec<Option<F::Output>> {
    let mut calls: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = calls.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (call, output) in calls.iter_mut().zip(&mut done) {
            if output.is_none()
                && let Poll::Ready(value) = call.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        match &mut patience {
            _ if done.iter().all(Option::is_some) => Poll::Ready(()),
            None => Poll::Pending,
            Some(0) => Poll::Ready(()),
            Some(left) => {
                *left -= 1;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    })
    .await;
    done
}

/// Polls a future once, so that its call is queued. Returns its output if it is done.
pub(super) async fn begin<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut *future).poll(context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}
