//! Which outcomes of a crash's choices are visited.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

/// The outcomes to visit of choices with so many options each, and whether these are all.
pub(super) fn outcomes(options: &[usize], most: usize, seed: u64) -> (bool, Vec<Vec<usize>>) {
    match options.iter().try_fold(1usize, |product, n| product.checked_mul(*n)) {
        Some(all) if all <= most => (true, (0..all).map(|n| nth(options, n)).collect()),
        _ => (false, sample(options, most, seed)),
    }
}

/// Outcome number `n` of choices with so many options each.
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

/// Outcomes that are known to matter (nothing survives, everything, one thing alone, all but one, everything up to some
/// place, everything from it on, pairs), then chance.
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
            // Half of the room is for chance.
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
