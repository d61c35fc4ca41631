//! Runtime in virtual time on the calling thread. A seed decides which ready task runs next, and how long a sync or a
//! job takes.
//!
//! # Invariants
//! 1. Time passes only when no task is ready.
//! 2. No task is polled inside its own poll. A join polls the others.
//! 3. The lock is not held while a task is polled or dropped.
//! 4. Once the scheduler has ended, no task runs, and joins return at once, as in a process that has died.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::runtime::{Blocking, Pending, Runtime, Task};

/// Virtual time that no run needs, unless a call is never answered.
const TIME_LIMIT: Duration = Duration::from_secs(3_600);

/// Scheduler of the tasks of one process. Clones share the tasks.
#[derive(Clone)]
pub struct Scheduler {
    tasks: Arc<Mutex<Tasks>>,
}

struct Tasks {
    now: Duration,
    rng: ChaCha8Rng,
    /// Tasks by the number of their start. The future is `None` while it is polled.
    running: BTreeMap<u64, (Option<Pending>, Arc<Signal>)>,
    /// Waiting timers by their time.
    timers: BTreeMap<(Duration, u64), Waker>,
    last_number: u64,
    ended: bool,
}

impl Tasks {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn has_ended(&self, task: u64) -> bool {
        self.ended || !self.running.contains_key(&task)
    }
}

/// Mark of a task that is ready to be polled.
struct Signal(AtomicBool);

impl Signal {
    fn ready() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(true)))
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Clears the mark and returns the waker that sets it again.
    fn begin_poll(self: &Arc<Self>) -> Waker {
        self.0.store(false, Ordering::Release);
        Waker::from(Arc::clone(self))
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Scheduler {
    /// Creates a scheduler without tasks, at time 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            tasks: Arc::new(Mutex::new(Tasks {
                now: Duration::ZERO,
                rng: ChaCha8Rng::seed_from_u64(seed),
                running: BTreeMap::new(),
                timers: BTreeMap::new(),
                last_number: 0,
                ended: false,
            })),
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a future and the started tasks until the future is complete. Then [ends](Self::end) the scheduler.
    ///
    /// # Panics
    /// If a task panics, if all tasks wait and no timer is set, and if the time exceeds an hour.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        // Dropped before `main`, also by a panic: the drop of a handle in `main` must not wait for tasks then.
        let _ended = EndOnDrop(self);
        let signal = Signal::ready();
        loop {
            match self.choose(signal.is_ready()) {
                None => assert!(self.pass_time(), "every task waits for another one"),
                Some(0) => {
                    let waker = signal.begin_poll();
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return value;
                    }
                }
                Some(task) => self.poll(task),
            }
        }
    }

    /// Drops all tasks and timers, as the death of the process does.
    pub fn end(&self) {
        let mut tasks = self.tasks();
        tasks.ended = true;
        let dead = (std::mem::take(&mut tasks.running), std::mem::take(&mut tasks.timers));
        drop(tasks);
        drop(dead);
    }

    /// Waits until a time has passed.
    pub fn sleep(&self, time: Duration) -> Pending {
        let now = self.now();
        self.sleep_until(now + time)
    }

    /// Draws one of the ready tasks; 0 is the main future.
    fn choose(&self, main_is_ready: bool) -> Option<u64> {
        let tasks = &mut *self.tasks();
        let main = main_is_ready.then_some(0);
        let others = tasks.running.iter().filter(|(_, (future, signal))| future.is_some() && signal.is_ready());
        let ready: Vec<u64> = main.into_iter().chain(others.map(|(&task, _)| task)).collect();
        (!ready.is_empty()).then(|| ready[tasks.rng.random_range(0..ready.len())])
    }

    fn poll(&self, task: u64) {
        let begun = self.tasks().running.get_mut(&task).and_then(|(future, signal)| {
            let future = future.take()?;
            Some((future, signal.begin_poll()))
        });
        let Some((mut future, waker)) = begun else { return };
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        match polled {
            Ok(Poll::Pending) => {
                if let Some(entry) = self.tasks().running.get_mut(&task) {
                    entry.0 = Some(future);
                }
            }
            Ok(Poll::Ready(())) => {
                // What the task owns is released before a join of it returns.
                drop(future);
                self.tasks().running.remove(&task);
            }
            Err(panic) => {
                self.end();
                resume_unwind(panic);
            }
        }
    }

    /// Moves the time to the next timer. Returns false if there is none.
    fn pass_time(&self) -> bool {
        let mut tasks = self.tasks();
        let Some(&(at, _)) = tasks.timers.keys().next() else { return false };
        assert!(at < TIME_LIMIT, "a call is never answered");
        tasks.now = tasks.now.max(at);
        let later = tasks.timers.split_off(&(at, u64::MAX));
        let due = std::mem::replace(&mut tasks.timers, later);
        drop(tasks);
        due.into_values().for_each(Waker::wake);
        true
    }

    /// Runs the tasks that are not under way until one of them has ended.
    fn join(&self, task: u64) {
        while !self.tasks().has_ended(task) {
            match self.choose(false) {
                Some(ready) => self.poll(ready),
                None => assert!(self.pass_time(), "a join waits for a task that waits for the caller"),
            }
        }
    }
}

struct EndOnDrop<'a>(&'a Scheduler);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Runtime for Scheduler {
    fn now(&self) -> Duration {
        self.tasks().now
    }

    fn sleep_until(&self, at: Duration) -> Pending {
        Box::pin(Sleep { scheduler: self.clone(), at, timer: None })
    }

    /// Takes up to 3 ms for a sync and up to 8 ms for a job.
    fn block(&self, call: Blocking) -> Pending {
        let most = match call {
            Blocking::Sync => 3,
            Blocking::Job => 8,
        };
        let time = self.tasks().rng.random_range(0..=most);
        self.sleep(Duration::from_millis(time))
    }

    fn spawn(&self, _: &'static str, task: Pending) -> io::Result<Task> {
        let mut tasks = self.tasks();
        let number = tasks.number();
        tasks.running.insert(number, (Some(task), Signal::ready()));
        drop(tasks);
        let scheduler = self.clone();
        Ok(Task::new(move || scheduler.join(number)))
    }
}

struct Sleep {
    scheduler: Scheduler,
    at: Duration,
    timer: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let scheduler = self.scheduler.clone();
        let mut tasks = scheduler.tasks();
        if tasks.now >= self.at {
            return Poll::Ready(());
        }
        let at = self.at;
        let timer = *self.timer.get_or_insert_with(|| (at, tasks.number()));
        tasks.timers.insert(timer, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            // A timer that nobody awaits must not move the time.
            self.scheduler.tasks().timers.remove(&timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A join inside the main future runs the other tasks, and time passes only when all wait.
    #[test]
    fn a_join_runs_the_task_to_its_end() {
        for seed in 0..20 {
            let scheduler = Scheduler::new(seed);
            let (ended, of_task) = (Arc::new(AtomicBool::new(false)), scheduler.clone());
            let set = Arc::clone(&ended);
            let now = scheduler.run(async {
                let task = scheduler.spawn("a task", {
                    Box::pin(async move {
                        of_task.sleep(Duration::from_millis(5)).await;
                        set.store(true, Ordering::Relaxed);
                    })
                });
                task.expect("started").join();
                scheduler.now()
            });
            assert!(ended.load(Ordering::Relaxed));
            assert_eq!(now, Duration::from_millis(5));
        }
    }

    #[test]
    #[should_panic(expected = "every task waits")]
    fn a_wait_for_nothing_is_found() {
        Scheduler::new(1).run(std::future::pending::<()>());
    }
}
