//! Quantiles of a sample, and their extrapolation beyond it.

use crate::{cells::log2, tuning::TAIL_PART};

/// Collects the numbers in ascending order.
pub(super) fn sorted(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers.sort_unstable_by(f32::total_cmp);
    numbers
}

/// Returns the least number that at least `share` of the sorted numbers do not exceed; 0 if the share covers no number.
pub(super) fn at(sorted: &[f32], share: f32) -> f32 {
    let rank = ((sorted.len() as f32 * share).ceil() as usize).min(sorted.len());
    rank.checked_sub(1).map_or(0.0, |i| sorted[i])
}

/// Estimates the value that `share` of a distribution does not exceed, from sorted numbers that are worth `independent`
/// independent ones. If the sample is too small for the share, the quantile is extrapolated, on the assumption that the
/// tail decays at least exponentially. The scale of the tail is the mean excess of the upper quarter over its least
/// number.
pub(super) fn exceeded(sorted: &[f32], share: f32, independent: u32) -> f32 {
    let most = at(sorted, share);
    let upper = &sorted[sorted.len() - sorted.len().div_ceil(TAIL_PART)..];
    let Some(&least) = upper.first() else { return most };
    let unit = upper.iter().map(|&x| f64::from(x) - f64::from(least)).sum::<f64>() / upper.len() as f64;
    // `log2` gives the same result on every machine. It takes an integer.
    let wanted = (1.0 / (1.0 - share).max(1e-6)).round() as u32;
    let doublings = log2(wanted) - log2(independent.max(1));
    most + unit as f32 * std::f32::consts::LN_2 * doublings.max(0.0)
}

/// Estimates the value that `share` of a distribution of distances does not exceed. The upper tail of distances may
/// follow a power law. So the step that [`exceeded`] adds is scaled by the ratio of the quantile to the least number of
/// the upper quarter.
pub(super) fn exceeded_distance(sorted: &[f32], share: f32, independent: u32) -> f32 {
    let (most, exceeded) = (at(sorted, share), exceeded(sorted, share, independent));
    let least = sorted.len().checked_sub(sorted.len().div_ceil(TAIL_PART)).and_then(|i| sorted.get(i));
    let power = least.filter(|&&least| least > 0.0).map_or(1.0, |&least| most / least);
    most + (exceeded - most) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_tell_what_few_of_many_exceed() {
        // A sample of an exponential distribution at even quantiles: a thousandth of the distribution lies beyond 6.9.
        let exponential =
            |n: usize| -> Vec<f32> { (0..n).map(|i| -((1.0 - (i as f32 + 0.5) / n as f32).ln())).collect() };
        for n in [8, 50, 100, 768, 4_000] {
            let far = exceeded(&exponential(n), 0.999, n as u32);
            assert!((5.2..8.2).contains(&far), "{far} of {n}");
        }
        assert_eq!(exceeded(&[3.0], 0.999, 1), 3.0);
        assert_eq!(exceeded_distance(&[3.0], 0.999, 1), 3.0);
        // A sample of a distribution whose tail falls with the square: a thousandth lies beyond 31.6.
        let power = |n: usize| -> Vec<f32> { (0..n).map(|i| (1.0 - (i as f32 + 0.5) / n as f32).powf(-0.5)).collect() };
        for n in [100, 400, 768] {
            let far = exceeded_distance(&power(n), 0.999, n as u32);
            assert!((24.0..60.0).contains(&far) && far > exceeded(&power(n), 0.999, n as u32), "{far} of {n}");
        }
    }
}
