//! Comparison of searches with a brute-force search over the model's content (P3).

use shardex::{
    CheckLevel, Engine, Metric, VectorEncoding,
    engine::batch,
    format::geometry::IndexParams,
    index::{self, SearchScope},
    storage::Storage,
};

use crate::state::{Key, State};

/// Returns query number `n`: component `n % dimension` is 1, the others are 0, 0.125 or 0.25.
pub(crate) fn test_query(dimension: usize, n: usize) -> Vec<f32> {
    (0..dimension).map(|i| if i == n % dimension { 1.0 } else { 0.125 * ((i + n) % 3) as f32 }).collect()
}

/// Compares three exact searches with a brute-force search (P3).
///
/// # Errors
/// Returns a description of the first answer that differs.
pub fn answers_as_brute_force<S: Storage>(engine: &Engine<S>, state: &State) -> Result<(), String> {
    let geometry = engine.geometry();
    let snapshot = engine.snapshot();
    for n in 1..4 {
        let given = test_query(geometry.dimension, n);
        let query = batch::query(&given, geometry).map_err(|e| e.to_string())?;
        by_cells(engine, state, &query)?;
        let k = 1 + n * 2;
        let answer = index::search(&snapshot, engine.data(), &query, k, SearchScope::exact())
            .map_err(|e| format!("P4: {e}"))?
            .to_response();
        let mut expected: Vec<(f64, Key)> =
            state.iter().map(|(&key, vector)| (distance(geometry.metric, &query, vector), key)).collect();
        expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        if answer.results.len() != k.min(expected.len()) {
            return Err(format!("P3: {} results of {} postings for k = {k}", answer.results.len(), expected.len()));
        }
        for (result, (least, _)) in answer.results.iter().zip(&expected) {
            let found = -f64::from(result.similarity_score);
            if (found - least).abs() > tolerance(geometry, *least) {
                return Err(format!("P3: a result at distance {found}, brute force finds {least}"));
            }
        }
    }
    Ok(())
}

/// Returns the difference by which a distance may differ from that of a returned vector. The norm of a rounded vector
/// differs from 1, and the score by cosine with it: by up to 2^-11 for halves, and by up to the root of the dimension
/// divided by 254 for integers.
fn tolerance(geometry: &IndexParams, distance: f64) -> f64 {
    match (geometry.metric, geometry.encoding) {
        (Metric::Cosine, VectorEncoding::F16) => 6e-4,
        (Metric::Cosine, VectorEncoding::Int8) => (geometry.dimension as f64).sqrt() / 254.0 + 1e-4,
        _ => 1e-4 * distance.abs().max(1.0),
    }
}

/// Checks a search by cells with a `k` that covers all postings. Each result must be a live posting, found once, with
/// its true distance. If any cell was scanned, no posting may be missing. If the cells are damaged, a full check must
/// report it.
fn by_cells<S: Storage>(engine: &Engine<S>, state: &State, query: &[f32]) -> Result<(), String> {
    let metric = engine.geometry().metric;
    let scope = SearchScope { recall: Some(0.999), slop: None, by_cells: true, ..SearchScope::slop(2) };
    let k = state.len() + 1;
    let answer = index::search(&engine.snapshot(), engine.data(), query, k, scope)
        .map_err(|e| format!("P4: {e}"))?
        .to_response();
    let mut keys = std::collections::BTreeSet::new();
    for result in &answer.results {
        let key = (result.document_id.0, result.start, result.length);
        let Some(vector) = state.get(&key) else {
            return Err(format!("P3: {key:?} was found by cells, and is not there"));
        };
        if !keys.insert(key) {
            return Err(format!("P3: {key:?} was found twice by cells"));
        }
        if result.tags != state.tags.get(&key).copied().unwrap_or(0) {
            return Err(format!("P3: {key:?} was found by cells with tags {:x}", result.tags));
        }
        let (found, least) = (-f64::from(result.similarity_score), distance(metric, query, vector));
        if (found - least).abs() > tolerance(engine.geometry(), least) {
            return Err(format!("P3: {key:?} was found by cells at distance {found}, and is at {least}"));
        }
    }
    let damaged = engine.snapshot().cells.as_ref().is_some_and(|cells| cells.is_damaged());
    if damaged && engine.check(CheckLevel::Full).is_ok_and(|report| report.is_clean()) {
        return Err("P4: a search found damaged cells, and the full check finds none".into());
    }
    if answer.cells_scanned > 0 && answer.results.len() != state.len() {
        return Err(format!("P3: {} of {} postings found by cells for k = {k}", answer.results.len(), state.len()));
    }
    Ok(())
}

/// Computes a distance in f64 for comparison with scores: squared L2, negated dot product, or negated cosine of a
/// normalised query.
pub(crate) fn distance(metric: Metric, query: &[f32], vector: &[f32]) -> f64 {
    let pairs = || query.iter().zip(vector).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    match metric {
        Metric::L2 => pairs().map(|(a, b)| (a - b).powi(2)).sum(),
        Metric::Dot => -pairs().map(|(a, b)| a * b).sum::<f64>(),
        _ => {
            let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            -pairs().map(|(a, b)| a * b).sum::<f64>() / norm
        }
    }
}
