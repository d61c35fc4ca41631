//! Compares a recovered index with the model and the promises.

use rand::RngExt as _;
use shardex::{CheckLevel, Engine, ShardexError};

use super::{
    Damage,
    run::{CaseRun, End, Rig, broken},
};
use crate::{brute_force, explorer::roots, model, oracle};

impl CaseRun<'_> {
    /// Computes the number of batches that a recovery must preserve.
    fn floor(&self, damage: Option<Damage>) -> usize {
        let durable = self.runner.model.durable();
        match damage {
            // Second limit of P4: an exact older state can't be distinguished from the current one.
            _ if self.medium_failed() => 0,
            // An earlier crash caused damage, and no full check has covered it since.
            None if self.damaged && !self.case.garbage => 0,
            // First limit of P4: damage to the last commit group of an index that was not closed looks like a torn
            // tail.
            Some(Damage::Rot | Damage::RotTail | Damage::Stale) if !self.closed => self.before_last_group,
            // Third limit of P4: a WAL cut within its growth since the last flush looks like a torn tail too.
            Some(Damage::Truncate) if self.cut_wal => 0,
            _ => durable,
        }
    }

    /// Compares the opened index with the model and continues from the batches found.
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

    /// Checks that both slots hold a root after an open.
    fn roots_are_whole(&self) -> Result<(), End> {
        match roots(&self.sim) {
            [Some(_), Some(_)] => Ok(()),
            _ if self.medium_failed() => Ok(()),
            _ => Err(broken("P4: a slot of the root file cannot be read after an open")),
        }
    }

    /// Checks P4 and P6 from the files alone. Everything that an open relies on must be intact: the open has found
    /// earlier damage and either repaired it or works without it. Extents and cell groups, which an open doesn't read,
    /// may still be damaged.
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

    /// Reports whether the last LSN alone determines the recovered batches. The following steps then read the index
    /// first, as they do for a user.
    fn may_trust(&self, engine: &Engine<Rig>, floor: usize) -> bool {
        let n = self.runner.model.up_to(engine.last_lsn());
        !self.medium_failed() && !self.cut_wal && n >= floor && !self.case.garbage
    }

    /// Checks that the cursor, if it can be read, is one that was set. The contents are not read by the same call.
    fn cursor_was_set(&self, engine: &Engine<Rig>) -> Result<(), End> {
        let Ok(cursor) = engine.cursor() else { return Ok(()) };
        let model = &self.runner.model;
        let was_set = (0..=model.accepted()).rev().any(|n| model.state(n).cursor == cursor);
        if was_set { Ok(()) } else { Err(broken(format!("P4: the cursor {cursor:02x?} was never set"))) }
    }

    /// Determines how many batches an engine holds, by comparing its contents with each prefix.
    fn found(&mut self, engine: &Engine<Rig>, floor: usize, clean: bool) -> Result<usize, End> {
        let metric = engine.geometry().metric;
        self.cursor_was_set(engine)?;
        let held = match model::contents(engine) {
            Ok(held) => held,
            Err(what) if clean => return Err(broken(format!("P4: a full check is clean, and then: {what}"))),
            Err(what) if self.doubt() && what.contains("P4:") => return Err(End::Detected(what)),
            Err(what) => return Err(self.mismatch(engine, what, clean)),
        };
        let accepted = self.runner.model.accepted();
        let fits = |n: &usize| model::same(&held, &self.runner.model.state(*n), metric);
        // Several prefixes may leave the same contents. The one that the LSN determines takes precedence.
        let told =
            Some(self.runner.model.up_to(engine.last_lsn())).filter(|n| (floor..=accepted).contains(n) && fits(n));
        match told.or_else(|| (floor..=accepted).find(fits)) {
            Some(n) => {
                let answered = brute_force::answers_as_brute_force(engine, &self.runner.model.state(n));
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

    /// Returns the end of a case with wrong contents or answers. Bytes may have rotted after the recovery checked them,
    /// and nothing checks them again before they are read. A full check finds such rot, so rot excuses nothing if the
    /// check was `clean` just now.
    fn mismatch(&self, engine: &Engine<Rig>, what: String, clean: bool) -> End {
        self.rot_found(engine).filter(|_| !clean).unwrap_or_else(|| broken(what))
    }

    /// Runs a full check and reports whether it is clean; false if a read failed. The files must then be clean too.
    fn checked(&self, engine: &Engine<Rig>) -> Result<bool, End> {
        match engine.check(CheckLevel::Full) {
            Ok(report) if report.is_clean() => {
                // If the page cache and the device differ in a sector, a read may return either version.
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
            // A planned read failure gives an error, and the next read succeeds.
            Err(ShardexError::Io { .. }) => Ok(false),
            Err(error) if self.doubt() => Err(End::Detected(error.to_string())),
            Err(error) => Err(broken(format!("P4: {error}"))),
        }
    }
}
