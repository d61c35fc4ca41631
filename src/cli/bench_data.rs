//! Data for benchmarks: generated vectors, or the vectors of `.npy` files, with the true nearest neighbours.

use std::{path::Path, sync::Arc};

use rayon::prelude::*;
use shardex::{
    DocumentId, Metric, OpenOptions, Posting, SearchOptions, Shardex, ShardexConfig, VectorEncoding,
    env::{Env, Inline},
};

use super::{
    Failure,
    args::Bench,
    demo::{DIMENSION, vector},
    kinds::distances,
    rows::Rows,
    search::ask_all,
};

/// Seed of all generated data.
pub(super) const SEED: u64 = 7;
/// Number of results per query.
pub(super) const K: usize = 10;
/// Target recalls measured.
pub(super) const RECALLS: [f32; 5] = [0.8, 0.9, 0.95, 0.98, 0.99];
/// Number of queries if no file of queries is given.
const QUERIES: u64 = 500;
/// Number of new postings before each measured flush.
pub(super) const FLUSHED: usize = 100;

/// Vectors and queries of a benchmark.
pub(super) struct Data {
    pub(super) metric: Metric,
    pub(super) encoding: VectorEncoding,
    pub(super) rows: Vec<Vec<f32>>,
    /// Vectors for the postings added before measured flushes. Generated ones aren't in `rows`. With `--data` they are
    /// copies of some rows, added under new ids.
    pub(super) more: Vec<Vec<f32>>,
    pub(super) queries: Vec<Vec<f32>>,
    pub(super) truth: Option<Vec<Vec<i64>>>,
}

impl Data {
    pub(super) fn new(args: &Bench) -> Result<Self, Failure> {
        // Number of vectors for the measured flushes of all rounds, and of one more.
        let spare = FLUSHED * (args.rounds + 1);
        let encoding = args.encoding;
        let Some(file) = &args.data else {
            let made = |range: std::ops::Range<u64>| range.map(|n| vector(SEED, n)).collect::<Vec<_>>();
            let rows = args.rows() as u64;
            let more = made(2_000_000_000..2_000_000_000 + spare as u64);
            let queries = made(1_000_000_000..1_000_000_000 + QUERIES);
            return Ok(Self { metric: Metric::Cosine, encoding, rows: made(0..rows), more, queries, truth: None });
        };
        let metric = args.metric.unwrap_or(Metric::Dot);
        let mut all = Rows::open(file)?;
        let rows = args.rows().min(all.rows());
        let rows = vectors(&mut all, rows, metric)?;
        let queries = match &args.queries {
            Some(file) => {
                let mut all = Rows::open_or_one(file)?;
                if all.columns() != rows[0].len() {
                    let (name, columns, data) = (all.name(), all.columns(), rows[0].len());
                    return Err(Failure(format!("{name}: its rows have {columns} numbers, those of --data {data}")));
                }
                let count = all.rows();
                vectors(&mut all, count, metric)?
            }
            None => rows.iter().step_by(rows.len().div_ceil(QUERIES as usize)).cloned().collect(),
        };
        let truth = args.truth.as_ref().map(|file| truth_of(file, queries.len())).transpose()?;
        let more = rows.iter().step_by(rows.len().div_ceil(spare)).cloned().collect();
        Ok(Self { metric, encoding, rows, more, queries, truth })
    }

    pub(super) fn config(&self, dir: &Path, options: OpenOptions) -> ShardexConfig {
        let dimension = self.rows.first().map_or(DIMENSION, Vec::len);
        ShardexConfig::new(dir).vector_size(dimension).metric(self.metric).encoding(self.encoding).options(options)
    }

    pub(super) fn bytes(&self) -> f64 {
        (self.rows.len() * self.rows.first().map_or(0, Vec::len) * 4) as f64
    }
}

/// Reads the first `count` rows of a file.
///
/// Returns a `Failure` if `count` is 0. Under the cosine metric it also refuses a zero vector, as an index does.
fn vectors(all: &mut Rows, count: usize, metric: Metric) -> Result<Vec<Vec<f32>>, Failure> {
    if count == 0 {
        return Err(Failure(format!("{}: it holds no rows to measure with", all.name())));
    }
    let rows = all.vectors(count)?;
    if let Some(row) = rows.iter().position(|row| metric == Metric::Cosine && row.iter().all(|&x| x == 0.0)) {
        return Err(Failure(format!("{}: row {row}: a zero vector has no direction, so no cosine", all.name())));
    }
    Ok(rows)
}

/// Reads the ids of the true nearest neighbours of the first `queries` queries from a file.
///
/// Returns a `Failure` if the file has fewer rows than `queries`, or fewer columns than [`K`].
fn truth_of(file: &Path, queries: usize) -> Result<Vec<Vec<i64>>, Failure> {
    let mut all = Rows::open_or_one(file)?;
    let (rows, columns) = (all.rows(), all.columns());
    if rows < queries || columns < K {
        let name = all.name();
        return Err(Failure(format!("{name}: {rows} rows of {columns} ids for {queries} queries of k = {K}")));
    }
    let mut ids = all.ids(queries)?;
    ids.iter_mut().for_each(|row| row.truncate(K));
    Ok(ids)
}

pub(super) fn batch(rows: &[Vec<f32>], first: u128) -> Vec<Posting> {
    rows.iter().zip(first..).map(|(vector, id)| posting(vector, id)).collect()
}

pub(super) fn posting(vector: &[f32], id: u128) -> Posting {
    Posting { document_id: DocumentId(id), start: 0, length: 1, vector: vector.to_vec(), tags: 0 }
}

/// Opens an index whose searches run on one thread only.
pub(super) async fn open(dir: &Path, options: OpenOptions) -> Result<Shardex, Failure> {
    let env = Env { executor: Arc::new(Inline), ..Env::system() };
    Ok(Shardex::open_in(dir, options, env).await?)
}

/// Returns the ids of the true nearest neighbours of each query among the given vectors: those of the file, or else those
/// that an exact search finds, or that brute force finds if the index rounds its vectors.
pub(super) async fn truth(data: &Data, index: &Shardex) -> Result<Vec<Vec<i64>>, Failure> {
    if let Some(truth) = &data.truth {
        return Ok(truth.clone());
    }
    if data.encoding != VectorEncoding::F32 {
        let nearest = |query: &Vec<f32>| {
            let distances = distances(data.metric, query, &data.rows);
            let mut ids: Vec<usize> = (0..distances.len()).collect();
            ids.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
            ids.into_iter().take(K).map(|id| id as i64).collect()
        };
        return Ok(data.queries.par_iter().map(nearest).collect());
    }
    let exact = ask_all(index, data.queries.clone(), &SearchOptions::new(K).exact(), 1).await?;
    Ok(exact.iter().map(|found| found.ids().filter_map(|id| i64::try_from(id).ok()).collect()).collect())
}

/// Returns the median of the figures; for an even count, the upper of the two middle figures.
///
/// # Panics
/// Panics if `figures` is empty.
pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
