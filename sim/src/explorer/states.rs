//! Selection of the outcomes of a crash's choices to visit.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

/// Returns the outcomes to visit, given the number of options of each choice, and whether these are all outcomes.
pub(super) fn outcomes(options: &[usize], most: usize, seed: u64) -> (bool, Vec<Vec<usize>>) {
    match options.iter().try_fold(1usize, |product, n| product.checked_mul(*n)) {
        Some(all) if all <= most => (true, (0..all).map(|n| nth(options, n)).collect()),
        _ => (false, sample(options, most, seed)),
    }
}

/// Returns outcome number `n`, given the number of options of each choice.
fn nth(options: &[usize], mut n: usize) -> Vec<usize> {
    options
        .iter()
        .map(|&options| {
            let pick = n % options;
            n /= options;
            pick
        })
        .collect()
}

/// Returns a sample of outcomes. First come those known to matter: nothing survives, everything survives, one change
/// alone, all but one, everything before a place, everything from a place on, and pairs. Random outcomes follow.
fn sample(options: &[usize], most: usize, seed: u64) -> Vec<Vec<usize>> {
    let none = vec![0; options.len()];
    let newest: Vec<usize> = options.iter().map(|n| n - 1).collect();
    let with = |from: &[usize], to: &[usize], at: std::ops::Range<usize>| {
        let mut picks = from.to_vec();
        picks[at.clone()].copy_from_slice(&to[at]);
        picks
    };
    let mut picks = vec![none.clone(), newest.clone()];
    for i in 0..options.len() {
        picks.push(with(&none, &newest, i..i + 1));
        picks.push(with(&newest, &none, i..i + 1));
    }
    for i in 1..options.len() {
        picks.push(with(&none, &newest, 0..i));
        picks.push(with(&newest, &none, 0..i));
    }
    'pairs: for i in 0..options.len() {
        for j in i + 1..options.len() {
            // Pairs fill at most half of the sample, so that the rest is random.
            if picks.len() >= most / 2 {
                break 'pairs;
            }
            let mut pair = with(&none, &newest, i..i + 1);
            pair[j] = newest[j];
            picks.push(pair);
        }
    }
    picks.truncate(most);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while picks.len() < most {
        picks.push(options.iter().map(|&n| rng.random_range(0..n)).collect());
    }
    picks
}
