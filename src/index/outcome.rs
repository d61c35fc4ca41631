//! The outcome of questions: the recall that they reach, how certain that is, and what it cost.

use super::questions::Question;
use crate::{
    limits,
    site::{self, Kind},
};

/// The outcome of one question.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    /// Whether it is a stored vector.
    pub(super) stored: bool,
    /// In which of two parts of the whole it lies.
    pub(super) second: bool,
    /// The share of the true nearest that was found.
    pub(super) share: f64,
    /// What that cost.
    pub(super) cost: f64,
}

impl Answer {
    /// Nothing yet.
    pub(super) fn of(question: &Question) -> Self {
        Self { stored: question.stored, second: question.second, share: 0.0, cost: 0.0 }
    }
}

/// The outcome of some questions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// The mean share of the true nearest that was found.
    pub(super) reached: f64,
    /// Its standard error.
    pub(super) error: f64,
    /// What the part of the whole reaches that comes to less, and by how much it is to exceed what is asked of it.
    part: (f64, f64),
    /// What it cost, on the average.
    pub(super) cost: f64,
}

impl Outcome {
    /// Whether a recall is reached: by these questions, and by others but for a hundredth, as far as so few of them tell; also where
    /// these ask for one part of the whole only.
    pub(super) fn does(&self, recall: f32) -> bool {
        self.room(recall) >= 1.0
    }

    /// What these questions are to reach so that a recall is reached by others, and what those of one part are.
    fn wanted(&self, recall: f32) -> (f64, f64) {
        let (errors, less) = limits::CALIBRATION_SURE;
        let wanted = f64::from(recall);
        (wanted.max(wanted - less + errors * self.error), wanted - less + self.part.1)
    }

    /// Whether more questions would hardly show that it is reached.
    pub(super) fn is_hopeless(&self, recall: f32) -> bool {
        let (errors, less) = limits::CALIBRATION_SURE;
        self.reached + errors * self.error < f64::from(recall) - less
    }

    /// How many times what is missed might be missed.
    pub(super) fn room(&self, recall: f32) -> f32 {
        let (wanted, of_part) = self.wanted(recall);
        let room = |reached: f64, wanted: f64| {
            let room = (1.0 - wanted).max(0.0) / (1.0 - reached).max(1e-9);
            // Neither rounding nor a share of nothing decides whether it does.
            if reached < wanted { room.min(0.999) } else { room.max(1.0) }
        };
        let (whole, part) = (room(self.reached, wanted), room(self.part.0, of_part));
        (if site::applies(Kind::Recall, part < whole) { part } else { whole }) as f32
    }

    /// For `k` results. The mean of all, or that of the stored ones if it is less: moved ones may be harder than what is really asked, or
    /// easier.
    pub(super) fn of(answers: &[Answer], k: usize) -> Self {
        let all = Self::mean(answers.iter(), k);
        let stored = || answers.iter().filter(|answer| answer.stored);
        let of_stored = Self::mean(stored(), k);
        let less = if stored().next().is_some() && of_stored.reached < all.reached { of_stored } else { all };
        let parts = [false, true].map(|second| stored().filter(move |answer| answer.second == second));
        let many = parts.into_iter().filter(|part| part.clone().count() >= limits::CALIBRATION_PART.1);
        let parts = many.map(|part| Self::mean(part, k));
        let least = parts.min_by(|a, b| (a.reached - a.error).total_cmp(&(b.reached - b.error)));
        let part = least.map_or((1.0, 0.0), |part| {
            let harder = all.reached - part.reached > limits::CALIBRATION_HARDER * part.error;
            let errors = if site::applies(Kind::Recall, harder) { limits::CALIBRATION_HARDER } else { limits::CALIBRATION_PART.0 };
            (part.reached, errors * part.error)
        });
        Self { cost: all.cost, part, ..less }
    }

    fn mean<'a>(answers: impl Iterator<Item = &'a Answer> + Clone, k: usize) -> Self {
        let (n, mut came, mut squares) = (answers.clone().count().max(1) as f64, Self::default(), 0.0);
        for &Answer { share, cost, .. } in answers {
            came.reached += share / n;
            squares += share * share;
            came.cost += cost / n;
        }
        // Few that found all do not show that every one does: the error is that of one more, which misses what is much for so many results.
        let found = 1.0 - 1.0 / (k as f64).sqrt();
        let mean = (n * came.reached + found) / (n + 1.0);
        let variance = (squares + found * found) / (n + 1.0) - mean * mean;
        // And what few vary by is known less well: about as Student's distribution has it, so far out.
        came.error = (variance.max(0.0) / (n + 1.0)).sqrt() * (1.0 + 8.0 / n);
        came
    }
}
