//! Validation of the callers' input, and its conversion to the stored form. Invalid input is rejected here and nowhere
//! else.

use std::borrow::Cow;

use crate::{
    config::{Metric, VectorEncoding},
    distance::LANES,
    error::{Result, ShardexError},
    failpoint::protects,
    format::geometry::IndexParams,
    limits,
    posting::{Posting, SearchOptions},
    shard::{self, StoredPosting},
};

/// Computes the norm of a vector, and checks that the vector may be stored or searched for.
fn norm(vector: &[f32], index: usize, geometry: &IndexParams) -> Result<f64> {
    let expected = geometry.dimension;
    if vector.len() != expected {
        return Err(ShardexError::InvalidDimension { index, expected, actual: vector.len() });
    }
    let refuse = |reason| Err(ShardexError::InvalidVector { index, reason });
    // `fold` has no early exit: a loop with one would test a single component at a time.
    if !vector.iter().fold(true, |finite, x| finite & x.is_finite())
        && let Some(at) = vector.iter().position(|x| !x.is_finite())
    {
        return refuse(format!("number {at} is {}", vector[at]));
    }
    let norm = square(vector).sqrt();
    if norm > limits::MAX_NORM {
        return refuse(format!("its norm {norm:e} is over {:e}", limits::MAX_NORM));
    }
    if geometry.metric == Metric::Cosine && norm < f64::from(f32::MIN_POSITIVE) {
        return refuse("a zero vector has no direction, so no cosine".into());
    }
    Ok(norm)
}

/// Computes the squared norm in `LANES` partial sums. A single sum would wait for each addition.
fn square(vector: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let mut add = |lane: usize, x: f32| lanes[lane] += f64::from(x) * f64::from(x);
    let (rows, rest) = vector.as_chunks::<LANES>();
    rows.iter().for_each(|row| (0..LANES).for_each(|lane| add(lane, row[lane])));
    rest.iter().enumerate().for_each(|(lane, &x)| add(lane, x));
    lanes.iter().sum()
}

/// Returns a vector in the form that distances are computed of: scaled to norm 1 under cosine, unchanged under the other
/// metrics.
fn scaled<'a>(vector: &'a [f32], norm: f64, metric: Metric) -> Cow<'a, [f32]> {
    match metric {
        Metric::Cosine => vector.iter().map(|&x| (f64::from(x) / norm) as f32).collect(),
        Metric::L2 | Metric::Dot => Cow::Borrowed(vector),
    }
}

/// Posting that is ready to be applied.
#[derive(Debug)]
pub struct Row<'a> {
    /// The posting without its vector.
    pub posting: StoredPosting,
    /// The vector as it is stored: scaled, and rounded to the encoding of the index.
    pub vector: Cow<'a, [f32]>,
    /// Tags.
    pub tags: u64,
    /// The posting as the caller passed it.
    pub given: &'a Posting,
    /// Whether a later operation of the batch has taken the addition back.
    pub is_superseded: bool,
}

/// Checks that the components that remain of a vector after rounding are finite, and that its norm is no larger than that
/// of any other stored vector: rounding may enlarge it.
fn storable(posting: &Posting, rounded: &[f32], index: usize, geometry: &IndexParams) -> Result<()> {
    let refuse = |reason| Err(ShardexError::InvalidVector { index, reason });
    let (encoding, norm) = (geometry.encoding, square(rounded).sqrt());
    // The norm of a vector with an infinite component is infinite.
    if protects!(ErrorCheck, norm > limits::MAX_NORM) {
        return refuse(match rounded.iter().position(|x| !x.is_finite()) {
            Some(at) => format!("number {at} is {}, beyond the range of {encoding}", posting.vector[at]),
            None => format!("its norm rounded to {encoding}, {norm:e}, is over {:e}", limits::MAX_NORM),
        });
    }
    Ok(())
}

/// Validates the posting at position `index` of a batch.
///
/// # Errors
/// Returns `InvalidDimension`, `InvalidVector` or `InvalidPosting` with the position.
pub fn row<'a>(index: usize, posting: &'a Posting, geometry: &IndexParams) -> Result<Row<'a>> {
    let refuse = |reason: String| Err(ShardexError::InvalidPosting { index, reason });
    if posting.length == 0 {
        return refuse("its length is 0".into());
    }
    if posting.start.checked_add(posting.length).is_none() {
        return refuse(format!("start {} + length {} is over {}", posting.start, posting.length, u32::MAX));
    }
    let norm = norm(&posting.vector, index, geometry)?;
    let vector = shard::rounded(scaled(&posting.vector, norm, geometry.metric), geometry.encoding);
    if geometry.encoding != VectorEncoding::F32 {
        storable(posting, &vector, index, geometry)?;
    }
    Ok(Row {
        posting: StoredPosting {
            document_id: posting.document_id,
            start: posting.start,
            length: posting.length,
            norm: if geometry.metric == Metric::Cosine { norm as f32 } else { 1.0 },
        },
        vector,
        tags: posting.tags,
        given: posting,
        is_superseded: false,
    })
}

/// Validates a query vector, and converts it to the form in which it is compared with stored vectors.
///
/// # Errors
/// Returns `InvalidDimension` or `InvalidVector`.
pub fn query<'a>(vector: &'a [f32], geometry: &IndexParams) -> Result<Cow<'a, [f32]>> {
    query_at(vector, 0, geometry)
}

/// Validates and converts query number `index` of several, as [`query`] does.
///
/// # Errors
/// Returns `InvalidDimension` or `InvalidVector` with the index.
pub fn query_at<'a>(vector: &'a [f32], index: usize, geometry: &IndexParams) -> Result<Cow<'a, [f32]>> {
    let norm = norm(vector, index, geometry)?;
    Ok(scaled(vector, norm, geometry.metric))
}

/// Validates the options of a search.
///
/// # Errors
/// Returns `InvalidArgument` with the name of the invalid option.
pub fn search_options(options: &SearchOptions) -> Result<()> {
    let refuse = |argument, reason: String| Err(ShardexError::InvalidArgument { argument, reason });
    if options.k == 0 || options.k > limits::MAX_K {
        return refuse("k", format!("{} is not in 1..={}", options.k, limits::MAX_K));
    }
    if options.k.saturating_add(options.offset) > limits::MAX_K {
        return refuse("offset", format!("{} + k {} is over {}", options.offset, options.k, limits::MAX_K));
    }
    if let Some(most) = options.per_document {
        if most == 0 {
            return refuse("per_document", "0 results of a document are none; leave it out to count postings".into());
        }
        if options.k.saturating_mul(most) > limits::MAX_K {
            return refuse("per_document", format!("{most} × k {} is over {}", options.k, limits::MAX_K));
        }
    }
    if options.min_score.is_some_and(f32::is_nan) {
        return refuse("min_score", "it is not a number".into());
    }
    if options.slop == Some(0) {
        return refuse("slop", "0 shards hold no answer; leave it out for the default".into());
    }
    if let Some(recall) = options.recall
        && !(recall > 0.0 && recall <= 1.0)
    {
        return refuse("recall", format!("{recall} is not above 0 and at most 1"));
    }
    Ok(())
}
