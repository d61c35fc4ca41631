//! Ingester: one process from its start to the power cut. It opens the index, reads the source behind the cursor, writes
//! batches that set the cursor, and trims the source.

use std::time::Duration;

use rand::{RngExt as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, Durability, OpenOptions, Shardex, ShardexError, WriteBatch, env::Env};

use super::{
    batches::{NumberedBatch, batches},
    contents::{contents, searches},
    ledger::Ledger,
    plan::{Mistake, Plan},
    source::{TOTAL, number_of},
    together::{begin, together},
};
use crate::{mutant::MutantStorage, scheduler::Scheduler, storage::SimStorage};

/// Storage that the index gets: the simulated disk with mutants.
type Rig = MutantStorage<SimStorage>;

/// End of a process.
#[derive(Debug)]
pub(super) enum End {
    PowerCut,
    /// A promise is broken.
    Broken(String),
}

impl From<String> for End {
    fn from(what: String) -> Self {
        Self::Broken(what)
    }
}

type Outcome<T> = Result<T, End>;

/// Process that ingests.
pub(super) struct Ingester<'a> {
    pub(super) plan: &'a Plan,
    pub(super) ledger: &'a mut Ledger,
    pub(super) rng: &'a mut ChaCha8Rng,
    pub(super) sim: SimStorage,
    pub(super) scheduler: Scheduler,
    pub(super) env: Env,
}

/// Open index.
struct Session {
    index: Shardex<Rig>,
    options: OpenOptions,
    /// Change after which the next batch begins: the cursor after the last write.
    position: u64,
    /// Whether a write whose future was dropped may still be queued.
    has_abandoned: bool,
}

impl Ingester<'_> {
    /// Ingests until the power is cut or a promise is broken.
    pub(super) async fn ingest(mut self) -> End {
        loop {
            if let Err(end) = self.open_and_work().await {
                return end;
            }
        }
    }

    /// Opens the index and checks what it holds.
    ///
    /// # Errors
    /// Returns the promise that is broken.
    pub(super) async fn check(mut self) -> Result<(), String> {
        match self.open().await {
            Ok(_) => Ok(()),
            Err(End::Broken(what)) => Err(what),
            Err(End::PowerCut) => Err("no power cut was planned".into()),
        }
    }

    async fn open_and_work(&mut self) -> Outcome<()> {
        let mut session = self.open().await?;
        let most = [10, 60, 400][self.rng.random_range(0..3)];
        let steps = self.rng.random_range(1..=most);
        for _ in 0..steps {
            if let Err(end) = self.step(&mut session).await {
                // The process is dead: the drop of its handles waits for no task.
                self.scheduler.end();
                return Err(end);
            }
        }
        if self.rng.random_bool(0.3) {
            self.ledger.count("handles dropped without a close");
            return Ok(());
        }
        let accepted = self.ledger.accepted();
        let closed = session.index.close().await;
        self.alive("close", closed)?;
        self.ledger.count("closes");
        self.ledger.acknowledge(accepted);
        Ok(())
    }

    /// Returns the value of a call. An error ends the process: the power was cut, or a promise is broken.
    fn alive<T>(&self, call: &str, result: shardex::Result<T>) -> Outcome<T> {
        match result {
            Ok(value) => Ok(value),
            Err(ShardexError::Poisoned { cause }) if cause.contains("panicked") => Err(End::Broken(cause)),
            Err(_) if self.sim.stopped() => Err(End::PowerCut),
            Err(error) => Err(End::Broken(format!("`{call}` returned an error: {error}"))),
        }
    }

    /// Opens or creates the index, and checks what it holds.
    async fn open(&mut self) -> Outcome<Session> {
        let options = self.plan.options(self.rng);
        let storage = Rig::new(self.sim.clone());
        let opened = if self.ledger.is_created() {
            Shardex::open_on(storage, options.clone(), self.env.clone()).await
        } else {
            let config = self.plan.config.clone().options(options.clone());
            Shardex::create_on(storage, config, self.env.clone()).await
        };
        let index = self.alive("open", opened)?;
        let snapshot = self.alive("snapshot", index.snapshot().await)?;
        let held = contents(&snapshot)?;
        let position = self.ledger.opened(&held)?;
        if self.rng.random_bool(0.1) {
            searches(&snapshot, &held, self.plan.config.metric)?;
        }
        drop(snapshot);
        let durable = number_of(&self.alive("durable_cursor", index.durable_cursor().await)?)?;
        if durable != position {
            return Err(End::Broken(format!("after an open the cursor is {position}, and the durable one {durable}")));
        }
        if self.rng.random_bool(0.1) {
            let report = self.alive("check", index.check(CheckLevel::Full).await)?;
            if !report.is_clean() {
                return Err(End::Broken(format!("P4: a full check after an open finds {report}")));
            }
            self.ledger.count("full checks");
        }
        Ok(Session { index, options, position, has_abandoned: false })
    }

    /// Takes one step: most steps write.
    async fn step(&mut self, session: &mut Session) -> Outcome<()> {
        match self.rng.random_range(0..100) {
            0..=6 => {
                let accepted = self.ledger.accepted();
                self.alive("commit", session.index.commit().await)?;
                self.ledger.count("commits");
                self.ledger.acknowledge(accepted);
                self.trim(session).await?;
            }
            7..=11 => self.flush(session).await?,
            12..=17 => self.wait(session).await?,
            18..=19 => self.look(session).await?,
            20 => {
                self.alive("optimize", session.index.optimize().await)?;
                self.ledger.count("cell builds");
            }
            21 => self.write_as_another(session).await?,
            _ => self.write(session).await?,
        }
        if self.rng.random_bool(0.5) {
            self.trim(session).await?;
        }
        self.powered()
    }

    /// Ends the process if the power was cut. Then a sync may have failed, and reads see the last flush only (P5).
    fn powered(&self) -> Outcome<()> {
        if self.sim.stopped() { Err(End::PowerCut) } else { Ok(()) }
    }

    /// Writes the next changes, in one batch or in several that are queued together. Some calls are abandoned before
    /// they return.
    async fn write(&mut self, session: &mut Session) -> Outcome<()> {
        if session.has_abandoned {
            // It may have been carried out meanwhile, and its changes trimmed.
            self.read_cursor(session).await?;
        }
        let batches = self.next_batches(session).await?;
        batches.iter().filter_map(|batch| batch.up_to).for_each(|up_to| self.ledger.send(up_to));
        let patience = self.rng.random_bool(0.05).then(|| self.rng.random_range(0..6));
        let ends: Vec<Option<u64>> = batches.iter().map(|batch| batch.up_to).collect();
        let calls = batches.into_iter().map(|batch| session.index.write(batch.operations)).collect();
        let results = together(calls, patience).await;
        let (mut answered, mut abandoned, mut refused) = (false, false, false);
        for (up_to, result) in ends.into_iter().zip(results) {
            let Some(result) = result else {
                self.ledger.count("abandoned calls");
                abandoned = true;
                continue;
            };
            answered = true;
            if session.has_abandoned && matches!(result, Err(ShardexError::CursorMismatch { .. })) {
                refused = true;
                continue;
            }
            self.alive("write", result)?;
            self.ledger.count("batches");
            let Some(up_to) = up_to else { continue };
            self.ledger.accept(up_to);
            if self.plan.durability == Durability::Immediate {
                self.ledger.acknowledge(up_to);
            }
        }
        // The queue keeps the order of the calls, so an answer says that the calls before it are done.
        session.has_abandoned = abandoned || (session.has_abandoned && !answered);
        let before = session.position;
        self.read_cursor(session).await?;
        if refused && session.position == before {
            return Err(End::Broken("a batch was refused, and no other call has moved the cursor".into()));
        }
        if refused {
            self.ledger.count("batches refused because an abandoned call was carried out");
        }
        if self.plan.durability == Durability::Immediate { self.trim(session).await } else { Ok(()) }
    }

    /// Reads the cursor, after which the next batch begins.
    async fn read_cursor(&mut self, session: &mut Session) -> Outcome<()> {
        self.powered()?;
        let cursor = self.alive("cursor", session.index.cursor().await)?;
        let number = self.ledger.cursor_read(&cursor)?;
        self.ledger.count_many("changes written", number - session.position);
        session.position = number;
        Ok(())
    }

    async fn next_batches(&mut self, session: &Session) -> Outcome<Vec<NumberedBatch>> {
        self.powered()?;
        let total = self.alive("payload", session.index.payload(TOTAL).await)?;
        let mut made = match total.as_deref().map(str::from_utf8) {
            None => 0,
            Some(text) => text.ok().and_then(|text| text.parse().ok()).ok_or_else(|| "P4: no total".to_owned())?,
        };
        let many = if self.rng.random_bool(0.25) { self.rng.random_range(2..=4) } else { 1 };
        let (mut all, mut from) = (Vec::new(), session.position);
        for _ in 0..many {
            let count = self.rng.random_range(1..=6);
            let changes = self.ledger.source.read(from, count)?;
            all.extend(batches(&changes, from, made, self.plan.mistake));
            from += count;
            made += count;
        }
        Ok(all)
    }

    /// Writes a batch that expects another cursor. It must be refused, and change nothing.
    async fn write_as_another(&mut self, session: &Session) -> Outcome<()> {
        let mut batch = WriteBatch::new();
        batch.remove_document(1u64).set_payload(2u64, "of another ingester").set_cursor_if("another", "of another");
        match session.index.write(batch).await {
            Err(ShardexError::CursorMismatch { .. }) => self.ledger.count("batches of another ingester refused"),
            Ok(_) => return Err(End::Broken("a batch was accepted that expected another cursor".into())),
            error => drop(self.alive("write", error)?),
        }
        Ok(())
    }

    /// Flushes. Half of the time a write is made before the flush is answered.
    async fn flush(&mut self, session: &mut Session) -> Outcome<()> {
        let (accepted, index) = (self.ledger.accepted(), session.index.clone());
        let mut flush = Box::pin(async move { index.flush().await });
        let flushed = match begin(&mut flush).await {
            Some(flushed) => flushed,
            None => {
                if self.rng.random_bool(0.5) {
                    self.write(session).await?;
                    self.ledger.count("writes beside a flush");
                }
                flush.await
            }
        };
        self.alive("flush", flushed)?;
        self.ledger.count("flushes");
        self.ledger.acknowledge(accepted);
        Ok(())
    }

    /// Waits. Under `Interval` everything accepted before is durable after one interval.
    async fn wait(&mut self, session: &Session) -> Outcome<()> {
        let (accepted, interval) = (self.ledger.accepted(), session.options.batch_write_interval_ms);
        let time = if self.rng.random_bool(0.5) { interval + 1 } else { self.rng.random_range(1..=interval) };
        self.scheduler.sleep(Duration::from_millis(time)).await;
        self.powered()?;
        if time > interval && self.plan.durability == Durability::Interval {
            self.ledger.count("intervals waited for");
            self.ledger.acknowledge(accepted);
        }
        self.trim(session).await
    }

    /// Compares a snapshot with the model, and sometimes again after a write.
    async fn look(&mut self, session: &mut Session) -> Outcome<()> {
        self.powered()?;
        let snapshot = self.alive("snapshot", session.index.snapshot().await)?;
        let held = contents(&snapshot)?;
        self.ledger.seen(&held)?;
        if self.rng.random_bool(0.5) {
            self.write(session).await?;
            if contents(&snapshot)? != held {
                return Err(End::Broken("a snapshot changed after a write".into()));
            }
        }
        self.ledger.count("snapshots compared");
        Ok(())
    }

    /// Trims the source to the durable cursor.
    async fn trim(&mut self, session: &Session) -> Outcome<()> {
        let durable = self.alive("durable_cursor", session.index.durable_cursor().await)?;
        let mut up_to = self.ledger.reported(&durable)?;
        if self.plan.mistake == Some(Mistake::TrimToCursor) {
            up_to = number_of(&self.alive("cursor", session.index.cursor().await)?)?;
        }
        let trimmed = self.ledger.source.trim(up_to);
        self.ledger.count_many("changes trimmed", trimmed);
        Ok(())
    }
}
