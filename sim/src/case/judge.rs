//! What was opened, against the model and the promises.

use rand::RngExt as _;
use shardex::{CheckLevel, Engine, ShardexError};

use super::{
    Damage,
    run::{End, Rig, Run, broken},
};
use crate::{explorer::roots, model, oracle};

impl Run<'_> {
    /// Batches that must be there after a recovery.
    fn floor(&self, damage: Option<Damage>) -> usize {
        let durable = self.runner.model.durable();
        match damage {
            // P4's second limit: an exact older state cannot be told from the truth.
            _ if self.medium_failed() => 0,
            // What was damaged at an earlier crash, and nobody has looked since.
            None if self.damaged && !self.case.garbage => 0,
            // P4's first limit: damage of the last commit group of an index that was not closed looks like a torn tail.
            Some(Damage::Rot | Damage::RotTail | Damage::Stale) if !self.closed => self.before_last_group,
            // P4's third limit: so does a WAL that is cut within what it has grown by since the last flush.
            Some(Damage::Truncate) if self.cut_wal => 0,
            _ => durable,
        }
    }

    /// What was opened, against the model.
    pub(super) fn judge(
        &mut self,
        opened: Result<Engine<Rig>, ShardexError>,
        damage: Option<Damage>,
    ) -> Result<(), End> {
        let floor = self.floor(damage);
        let engine = match opened {
            Ok(engine) => engine,
            Err(error) if self.doubt() => return Err(End::Detected(error.to_string())),
            Err(error) => return Err(broken(format!("P1: {error}"))),
        };
        self.roots_are_whole()?;
        self.files_are_whole(&engine)?;
        let n = match self.rng.random_range(0..4) {
            0 if self.may_trust(&engine, floor) => self.runner.model.up_to(engine.last_lsn()),
            order => {
                let clean = order == 1 && self.checked(&engine)?;
                let n = self.found(&engine, floor, clean)?;
                if order != 1 {
                    self.checked(&engine)?;
                }
                self.clear();
                n
            }
        };
        self.runner.model.keep(n);
        self.runner.flushed = n;
        self.before_last_group = n;
        self.closed = false;
        self.runner.engine = Some(engine);
        Ok(())
    }

    /// After an open both slots hold a root again.
    fn roots_are_whole(&self) -> Result<(), End> {
        match roots(&self.sim) {
            [Some(_), Some(_)] => Ok(()),
            _ if self.medium_failed() => Ok(()),
            _ => Err(broken("P4: a slot of the root file cannot be read after an open")),
        }
    }

    /// P4 and P6 by the files alone. What an open relies on is whole, whatever was damaged before it: it was found, and either
    /// mended or done without. What it does not read, extents and groups of cells, may be damaged still.
    fn files_are_whole(&mut self, engine: &Engine<Rig>) -> Result<(), End> {
        let damaged = self.must_be_found.take();
        if self.medium_failed() {
            return Ok(());
        }
        let image = oracle::Image::of(&self.sim);
        let tolerant = self.doubt() || self.case.garbage;
        oracle::agrees(&image, &image.check(), engine, tolerant).map_err(|what| match damaged {
            Some(damaged) => broken(format!("P4: {damaged}, and opened: {what}")),
            None => broken(what),
        })
    }

    /// Whether nobody needs to look: so that what comes next is the first to read, as it is for a user.
    fn may_trust(&self, engine: &Engine<Rig>, floor: usize) -> bool {
        let n = self.runner.model.up_to(engine.last_lsn());
        !self.medium_failed() && !self.cut_wal && n >= floor && !self.case.garbage
    }

    /// The prefix of batches that an engine holds.
    fn found(&mut self, engine: &Engine<Rig>, floor: usize, clean: bool) -> Result<usize, End> {
        let metric = engine.geometry().metric;
        let held = match model::contents(engine) {
            Ok(held) => held,
            Err(what) if clean => return Err(broken(format!("P4: a full check is clean, and then: {what}"))),
            Err(what) if self.doubt() && what.contains("P4:") => return Err(End::Detected(what)),
            Err(what) => return Err(self.mismatch(engine, what, clean)),
        };
        let accepted = self.runner.model.accepted();
        let fits = |n: &usize| model::same(&held, &self.runner.model.state(*n), metric);
        // Several may leave the same: then it is the one that the LSN tells of.
        let told =
            Some(self.runner.model.up_to(engine.last_lsn())).filter(|n| (floor..=accepted).contains(n) && fits(n));
        match told.or_else(|| (floor..=accepted).find(fits)) {
            Some(n) => {
                let answered = model::answers_as_brute_force(engine, &self.runner.model.state(n));
                answered.map(|()| n).map_err(|what| self.mismatch(engine, what, clean))
            }
            None => {
                let what = match (0..floor).rev().find(fits) {
                    Some(n) => format!("P1: {floor} batches were durable, {n} are there"),
                    None => {
                        format!("P2: {} postings, which no prefix of {floor} to {accepted} batches leaves", held.len())
                    }
                };
                Err(self.mismatch(engine, what, clean))
            }
        }
    }

    /// What is there or is answered is wrong. Bytes that the recovery has checked may have rotten since, and are not
    /// checked again before they are read; but a full check finds that, unless it was `clean` just now.
    fn mismatch(&self, engine: &Engine<Rig>, what: String, clean: bool) -> End {
        self.rot_found(engine).filter(|_| !clean).unwrap_or_else(|| broken(what))
    }

    /// Whether the full check is clean; if not, there is reason for doubt, or it could not be done. The files say the same.
    fn checked(&self, engine: &Engine<Rig>) -> Result<bool, End> {
        match engine.check(CheckLevel::Full) {
            Ok(report) if report.is_clean() => {
                // A sector that the page cache shows otherwise than the device may be read as either.
                let files = oracle::Image::of(&self.sim).check();
                match files.findings.first().filter(|_| !self.reads_may_lie()) {
                    Some(finding) => {
                        Err(broken(format!("P4: a full check is clean, and the files are not: {finding}")))
                    }
                    None => Ok(true),
                }
            }
            Ok(report) if self.doubt() => Err(End::Detected(report.to_string())),
            Ok(report) => Err(broken(format!("P6: {report}"))),
            // A read that fails by order is an error, and the next one works.
            Err(ShardexError::Io { .. }) => Ok(false),
            Err(error) if self.doubt() => Err(End::Detected(error.to_string())),
            Err(error) => Err(broken(format!("P4: {error}"))),
        }
    }
}
