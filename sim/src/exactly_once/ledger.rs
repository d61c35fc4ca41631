//! Ledger of an ingester: what it has sent, what was answered, and the content that the index must have.
//!
//! It lives outside of the process that crashes, with the source.

use std::collections::{BTreeMap, BTreeSet};

use shardex::Metric;

use super::source::{Source, TOTAL, number_of};
use crate::model::{State, same};

/// Ledger of one index. Changes are named by their numbers; 0 is the state before the first.
pub(super) struct Ledger {
    pub(super) source: Source,
    metric: Metric,
    /// Change up to which the last open found the content, and that content.
    base: (u64, State),
    /// Last change of each batch that was sent since the last open.
    sent: BTreeSet<u64>,
    accepted: u64,
    durable: u64,
    opens: u64,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Ledger {
    pub(super) fn new(source: Source, metric: Metric) -> Self {
        Self {
            source,
            metric,
            base: (0, State::new()),
            sent: BTreeSet::new(),
            accepted: 0,
            durable: 0,
            opens: 0,
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        self.count_many(what, 1);
    }

    pub(super) fn count_many(&mut self, what: &'static str, many: u64) {
        *self.counts.entry(what).or_default() += many;
    }

    /// Returns the number of opens that have succeeded.
    pub(super) fn opens(&self) -> u64 {
        self.opens
    }

    /// Reports whether the index was created.
    pub(super) fn is_created(&self) -> bool {
        self.opens > 0
    }

    /// Returns the last change of the accepted batches.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Records that a batch is about to be written. It may be there from now on.
    pub(super) fn send(&mut self, up_to: u64) {
        self.sent.insert(up_to);
    }

    /// Records that a batch was accepted.
    pub(super) fn accept(&mut self, up_to: u64) {
        self.accepted = self.accepted.max(up_to);
    }

    /// Records that everything up to a change was acknowledged as durable. No crash may undo it from now on.
    pub(super) fn acknowledge(&mut self, up_to: u64) {
        self.durable = self.durable.max(up_to);
    }

    /// Checks a durable cursor, and records it as an acknowledgement. Returns its change.
    ///
    /// # Errors
    /// Returns a message if it is behind an earlier acknowledgement, or names no batch.
    pub(super) fn reported(&mut self, durable_cursor: &[u8]) -> Result<u64, String> {
        let number = number_of(durable_cursor)?;
        if number < self.durable {
            let durable = self.durable;
            return Err(format!("P1: `durable_cursor` is {number}, and {durable} was acknowledged as durable before"));
        }
        self.is_boundary(number)?;
        self.acknowledge(number);
        Ok(number)
    }

    /// Checks a cursor that was read while the index is open. What it names is accepted. Returns its change.
    ///
    /// # Errors
    /// Returns a message if accepted batches are missing, or the cursor names no batch.
    pub(super) fn cursor_read(&mut self, cursor: &[u8]) -> Result<u64, String> {
        let number = number_of(cursor)?;
        if number < self.accepted {
            return Err(format!("P2: the cursor is {number}, and {} was accepted", self.accepted));
        }
        self.is_boundary(number)?;
        self.accept(number);
        Ok(number)
    }

    /// Checks the content that a reader sees while the index is open.
    ///
    /// # Errors
    /// Returns a description of what is missing or wrong.
    pub(super) fn seen(&mut self, held: &State) -> Result<(), String> {
        let number = self.cursor_read(&held.cursor)?;
        self.compare(held, &self.content(number), number)
    }

    /// Checks what an open has found, and takes it for the state to continue from.
    ///
    /// # Errors
    /// Returns a description of what is lost, missing, double or half there.
    pub(super) fn opened(&mut self, held: &State) -> Result<u64, String> {
        let number = number_of(&held.cursor)?;
        let (durable, trimmed) = (self.durable, self.source.trimmed());
        if number < durable {
            return Err(format!("P1: {durable} was acknowledged as durable, and the cursor is {number}"));
        }
        self.is_boundary(number)?;
        let content = self.content(number);
        self.compare(held, &content, number)?;
        if number < trimmed {
            return Err(format!(
                "the source was trimmed to {trimmed}, and the cursor is {number}: changes {} to {trimmed} are lost",
                number + 1
            ));
        }
        if number < self.accepted {
            self.count("opens that found fewer batches than were accepted");
        } else if number > self.accepted {
            self.count("opens that found a batch without an answer");
        }
        self.count_many("changes", number - self.base.0);
        self.base = (number, content);
        self.sent.clear();
        (self.accepted, self.durable) = (number, number);
        self.opens += 1;
        self.count("opens");
        Ok(number)
    }

    /// Checks that a change is the last one of a batch.
    fn is_boundary(&self, number: u64) -> Result<(), String> {
        if number == self.base.0 || self.sent.contains(&number) {
            return Ok(());
        }
        Err(format!("P2: the cursor is {number}, where no batch since {} ends", self.base.0))
    }

    /// Returns the content after a change, which must not be before the last open's.
    fn content(&self, number: u64) -> State {
        let (base, mut state) = self.base.clone();
        for change in base + 1..=number {
            let mut batch = shardex::WriteBatch::new();
            self.source.change(change).write_to(&mut batch);
            state.write(&batch);
        }
        if number > 0 {
            state.payloads.insert(TOTAL.0, number.to_string().into_bytes());
        }
        state.cursor = super::source::cursor_after(number);
        state
    }

    fn compare(&self, held: &State, expected: &State, number: u64) -> Result<(), String> {
        if same(held, expected, self.metric) {
            return Ok(());
        }
        let difference = difference(held, expected);
        Err(format!("P2: the content is not that of changes 1 to {number}, which the cursor names: {difference}"))
    }
}

/// Describes the first differences of two contents.
fn difference(held: &State, expected: &State) -> String {
    let mut found = Vec::new();
    let key = |&(document, start, _): &(u128, u32, u32)| format!("posting {start} of document {document}");
    let all: BTreeSet<_> = held.vectors.keys().chain(expected.vectors.keys()).collect();
    for at in all {
        match (held.vectors.get(at), expected.vectors.get(at)) {
            (None, _) => found.push(format!("{} is missing", key(at))),
            (_, None) => found.push(format!("{} should not be there", key(at))),
            (Some(x), Some(y)) if x != y => {
                found.push(format!("{} begins with {} and should with {}", key(at), x[0], y[0]));
            }
            _ if held.tags.get(at) != expected.tags.get(at) => {
                let tags = [held.tags.get(at), expected.tags.get(at)];
                found.push(format!("{} has tags {:?} and should have {:?}", key(at), tags[0], tags[1]));
            }
            _ => {}
        }
    }
    let all: BTreeSet<_> = held.payloads.keys().chain(expected.payloads.keys()).collect();
    for at in all.into_iter().filter(|at| held.payloads.get(at) != expected.payloads.get(at)) {
        let [held, expected] = [held, expected].map(|state| match state.payloads.get(at) {
            Some(text) => format!("`{}` ({} bytes)", text[..text.len().min(32)].escape_ascii(), text.len()),
            None => "none".to_owned(),
        });
        found.push(format!("the payload of document {at} is {held} and should be {expected}"));
    }
    let more = found.len().saturating_sub(3);
    found.truncate(3);
    format!("{}{}", found.join("; "), if more > 0 { format!("; {more} more") } else { String::new() })
}
