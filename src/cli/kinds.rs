//! Catalogue of data on which a search by codes can fail, its true nearest neighbours, and the evaluation of answers.
//!
//! The truth is computed here in double precision without code of the library, so that a fault of the library can't
//! hide itself.

use shardex::Metric;

/// Pseudorandom number generator: SplitMix64, and the Box–Muller transform for normal numbers. The same seed gives the
/// same numbers on one machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns 64 random bits.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number between 0 and 1, uniformly distributed.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Returns a number of the normal distribution with mean 0 and standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Returns an integer below `n`, uniformly distributed.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// Kind of test data.
#[derive(Clone, Copy, Debug)]
pub struct DataKind {
    /// Name of the kind, as an argument of `--hard`.
    pub name: &'static str,
    /// Number of components of a vector.
    pub dimension: usize,
    /// Default number of rows.
    pub rows: usize,
    /// Metrics under which the data is meaningful.
    pub metrics: &'static [Metric],
    /// Values of [`share`](Self::share): for L2 and cosine, and for dot product.
    shares: [f64; 2],
    /// Reason why every vector is scanned. Empty if codes are used.
    pub why: &'static str,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `N(0, 1)` in each component, plus a constant.
    Normal(f64),
    /// `N(0, 1)`, with one component multiplied by a factor.
    Spike(f64),
    Uniform,
    /// Number of clusters, standard deviation of their centres, and a constant added to every component. The standard
    /// deviation within a cluster is 1.
    Clusters(usize, f64, f64),
    /// Nine of ten stored vectors are equal. The other tenth and the queries are `N(0, 1)`.
    Equal,
    /// Half of the stored vectors form a dense cluster apart from the others. Queries are like the other half.
    TwoHalves,
    /// `N(0, 1)` times a log-normal factor per vector, so that norms have many sizes.
    Norms,
    /// Cubes of normal numbers: components with heavy tails.
    Tails,
    /// Components 0 or 1, so that many distances are equal.
    Bits,
    /// At most five components that aren't zero.
    Sparse,
    /// Integers from 0 to 255 like those of histograms. About half are zero.
    Integers,
    /// Subspace of the given number of dimensions, plus noise with standard deviation 0.001.
    Plane(usize),
    /// Standard deviation `1 / i` in component `i`, counted from 1.
    Falling,
    /// A fifth of the stored vectors are scaled by 1e-21 and a fifth by 1e12.
    Magnitudes,
    /// Near copies, at the given standard deviation, of a fifth as many centres as there are rows.
    Copies(f64),
    /// 40 clusters with standard deviations from 0.01 to about 79.
    Scales,
    /// Queries with three times the standard deviation of the stored vectors, and a mean of 1 instead of 0.
    Elsewhere,
    /// 300 clusters. Queries lie half way between two of their centres.
    Between,
    /// 300 clusters. Queries are from 300 other clusters.
    Others,
    /// Standard deviation `1 / i` in component `i`, counted from 1. In queries it is 1 in every component.
    Isotropic,
    /// Two halves, one of them dense. Queries have the centre of the dense half and three times its standard deviation.
    BesideDense,
}

const ALL: &[Metric] = &[Metric::L2, Metric::Cosine, Metric::Dot];
const L2: &[Metric] = &[Metric::L2];
const L2_DOT: &[Metric] = &[Metric::L2, Metric::Dot];

const fn kind(name: &'static str, dimension: usize, rows: usize, metrics: &'static [Metric], shape: Shape) -> DataKind {
    DataKind { name, dimension, rows, metrics, shares: [2.0; 2], why: "", shape }
}

const fn costing(share: f64, kind: DataKind) -> DataKind {
    DataKind { shares: [share; 2], ..kind }
}

const fn costing_by_dot(share: f64, kind: DataKind) -> DataKind {
    DataKind { shares: [kind.shares[0], share], ..kind }
}

const fn by_vectors(why: &'static str, kind: DataKind) -> DataKind {
    DataKind { shares: [1.0; 2], why, ..kind }
}

impl DataKind {
    /// Returns the maximum work of a search for ten neighbours at target recall 0.95 after `optimize`: codes and
    /// vectors scanned, as a share of the rows.
    ///
    /// A posting has two codes, so the share can exceed 1. It is 1 if the search scans every vector.
    pub fn share(&self, metric: Metric) -> f64 {
        self.shares[usize::from(metric == Metric::Dot)]
    }
}

/// Catalogue of all kinds.
pub const KINDS: &[DataKind] = &[
    costing(1.2, kind("normal", 64, 6_000, ALL, Shape::Normal(0.0))),
    costing_by_dot(1.7, costing(1.2, kind("offset 10", 64, 6_000, L2_DOT, Shape::Normal(10.0)))),
    costing_by_dot(1.7, costing(1.2, kind("offset 30", 64, 6_000, L2_DOT, Shape::Normal(30.0)))),
    costing(1.2, kind("offset 1000", 64, 6_000, L2, Shape::Normal(1_000.0))),
    by_vectors("of one dimension a code saves nothing", kind("one dimension", 1, 6_000, L2_DOT, Shape::Normal(0.0))),
    by_vectors("of eight dimensions a code saves nothing", kind("eight dimensions", 8, 20_000, ALL, Shape::Uniform)),
    costing(1.2, kind("spike", 64, 6_000, L2_DOT, Shape::Spike(1e4))),
    costing(1.3, kind("uniform", 64, 20_000, ALL, Shape::Uniform)),
    costing(0.2, kind("clusters", 64, 20_000, ALL, Shape::Clusters(300, 5.0, 0.0))),
    costing(0.3, kind("far clusters", 64, 20_000, L2_DOT, Shape::Clusters(300, 5.0, 1e4))),
    by_vectors("cells are not made of so few", kind("few of many numbers", 384, 1_000, ALL, Shape::Normal(0.0))),
    costing(0.4, kind("equal", 64, 20_000, L2_DOT, Shape::Equal)),
    costing(1.6, kind("two halves", 64, 12_000, L2_DOT, Shape::TwoHalves)),
    costing(1.5, kind("norms", 96, 20_000, ALL, Shape::Norms)),
    costing(0.9, kind("tails", 64, 20_000, ALL, Shape::Tails)),
    costing(1.8, kind("bits", 128, 6_000, ALL, Shape::Bits)),
    costing(0.9, kind("sparse", 100, 6_000, ALL, Shape::Sparse)),
    costing(1.3, kind("integers", 128, 20_000, ALL, Shape::Integers)),
    costing(0.3, kind("plane", 128, 20_000, ALL, Shape::Plane(10))),
    costing(0.3, kind("falling", 96, 20_000, ALL, Shape::Falling)),
    by_vectors(
        "a part of them is nearer to one another than any code among the others tells",
        kind("magnitudes", 64, 6_000, L2, Shape::Magnitudes),
    ),
    costing(1.0, kind("copies", 64, 20_000, ALL, Shape::Copies(1e-3))),
    by_vectors("by products the largest hide all others", kind("scales", 64, 12_000, L2_DOT, Shape::Scales)),
    // These queries are searched twice, by all codes and then by every vector, because much of the data is about
    // equally far from them.
    costing(4.1, kind("elsewhere", 64, 20_000, L2, Shape::Elsewhere)),
    costing(4.1, kind("between clusters", 64, 20_000, ALL, Shape::Between)),
    costing(4.1, kind("other clusters", 64, 20_000, ALL, Shape::Others)),
    costing(4.1, kind("isotropic", 64, 20_000, ALL, Shape::Isotropic)),
    costing(4.1, kind("beside the dense", 64, 12_000, L2, Shape::BesideDense)),
];

/// Generator of stored vectors and queries of a kind. Each draw is different, from one distribution.
pub struct World {
    /// Kind of the data.
    pub kind: DataKind,
    centres: Vec<Vec<f64>>,
    rng: Random,
}

/// Draws a vector around a centre, with standard deviation `spread`.
fn around(c: &mut Random, centre: &[f64], spread: f64) -> Vec<f64> {
    centre.iter().map(|x| x + spread * c.normal()).collect()
}

impl World {
    /// Creates a generator for a kind, with random centres. Near copies have a fifth as many centres as `rows`.
    pub fn new(kind: DataKind, rows: usize, seed: u64) -> Self {
        let mut rng = Random::new(seed);
        let d = kind.dimension;
        let count = match kind.shape {
            Shape::Clusters(count, ..) => count,
            Shape::Between => 300,
            Shape::Others => 600,
            Shape::Equal => 1,
            Shape::Plane(count) => count,
            Shape::Copies(_) => (rows / 5).max(1),
            Shape::Scales => 40,
            _ => 0,
        };
        let apart = match kind.shape {
            Shape::Clusters(_, apart, _) => apart,
            Shape::Between | Shape::Others => 5.0,
            _ => 1.0,
        };
        let centres = (0..count).map(|_| rng.normals(d).into_iter().map(|x| x * apart).collect()).collect();
        Self { kind, centres, rng }
    }

    /// Draws a vector to store.
    pub fn row(&mut self) -> Vec<f32> {
        self.draw(false)
    }

    /// Draws a query.
    pub fn query(&mut self) -> Vec<f32> {
        self.draw(true)
    }

    fn draw(&mut self, is_query: bool) -> Vec<f32> {
        let (d, c) = (self.kind.dimension, &mut self.rng);
        let drawn: Vec<f64> = match self.kind.shape {
            Shape::Equal if !is_query && c.below(10) > 0 => self.centres[0].clone(),
            Shape::TwoHalves if !is_query && c.below(2) > 0 => {
                c.normals(d).into_iter().map(|x| 0.1 * x + 3.0).collect()
            }
            Shape::Magnitudes => {
                let scale = [1.0, 1.0, 1.0, 1e-21, 1e12][if is_query { 0 } else { c.below(5) }];
                c.normals(d).into_iter().map(|x| x * scale).collect()
            }
            Shape::Elsewhere if is_query => c.normals(d).into_iter().map(|x| x * 3.0 + 1.0).collect(),
            Shape::Between => {
                let [a, b] = [0; 2].map(|_| c.below(300));
                let b = if is_query { b } else { a };
                let middle = self.centres[a].iter().zip(&self.centres[b]).map(|(a, b)| (a + b) / 2.0);
                middle.map(|x| x + c.normal()).collect()
            }
            Shape::Others => {
                let at = c.below(300) + if is_query { 300 } else { 0 };
                around(c, &self.centres[at], 1.0)
            }
            Shape::Isotropic if is_query => c.normals(d),
            Shape::BesideDense if is_query => c.normals(d).into_iter().map(|x| 0.3 * x + 3.0).collect(),
            shape => self.drawn_like_stored(shape),
        };
        drawn.into_iter().map(|x| x as f32).collect()
    }

    /// Draws a vector of a shape, where stored vectors and queries need no distinction.
    ///
    /// # Panics
    /// Panics for a shape that [`draw`](Self::draw) handles completely.
    fn drawn_like_stored(&mut self, shape: Shape) -> Vec<f64> {
        let (d, c) = (self.kind.dimension, &mut self.rng);
        match shape {
            Shape::Normal(offset) => c.normals(d).into_iter().map(|x| x + offset).collect(),
            Shape::Spike(times) => {
                let mut x = c.normals(d);
                x[5 % d] *= times;
                x
            }
            Shape::Uniform => (0..d).map(|_| c.uniform()).collect(),
            Shape::Clusters(count, _, offset) => {
                let at = c.below(count);
                around(c, &self.centres[at], 1.0).into_iter().map(|x| x + offset).collect()
            }
            Shape::Equal | Shape::TwoHalves => c.normals(d),
            Shape::Norms => {
                let scale = c.normal().exp();
                c.normals(d).into_iter().map(|x| x * scale).collect()
            }
            Shape::Tails => c.normals(d).into_iter().map(|x| x * x * x).collect(),
            Shape::Bits => (0..d).map(|_| c.below(2) as f64).collect(),
            Shape::Sparse => {
                let mut x = vec![0.0; d];
                (0..5).for_each(|_| {
                    let at = c.below(d);
                    x[at] = c.normal();
                });
                x
            }
            Shape::Integers => (0..d).map(|_| (c.normal() * 60.0).clamp(0.0, 255.0).floor()).collect(),
            Shape::Plane(count) => {
                let mut x = vec![0.0; d];
                for at in 0..count {
                    let along = c.normal();
                    x.iter_mut().zip(&self.centres[at]).for_each(|(x, axis)| *x += along * axis);
                }
                x.into_iter().map(|x| x + 1e-3 * c.normal()).collect()
            }
            Shape::Falling => (0..d).map(|i| c.normal() / (i + 1) as f64).collect(),
            Shape::Copies(apart) => {
                let at = c.below(self.centres.len());
                around(c, &self.centres[at], apart)
            }
            Shape::Scales => {
                let at = c.below(self.centres.len());
                let spread = 10f64.powf(at as f64 / 10.0 - 2.0);
                self.centres[at].iter().map(|x| x * 3.0 * spread + spread * c.normal()).collect()
            }
            Shape::Elsewhere => c.normals(d),
            Shape::Isotropic => (0..d).map(|i| c.normal() / (i + 1) as f64).collect(),
            Shape::BesideDense if c.below(2) > 0 => c.normals(d).into_iter().map(|x| 0.1 * x + 3.0).collect(),
            Shape::BesideDense => c.normals(d),
            Shape::Magnitudes | Shape::Between | Shape::Others => unreachable!("their queries are drawn otherwise"),
        }
    }

    /// Reports whether queries have the distribution of the stored vectors, or lie within it. The recall is promised
    /// only for these.
    pub fn is_ordinary(&self) -> bool {
        use Shape::{BesideDense, Between, Elsewhere, Isotropic, Others};
        !matches!(self.kind.shape, Elsewhere | Between | Others | Isotropic | BesideDense)
    }
}

/// Computes the distance of two vectors under a metric; lower is nearer. L2 is squared, a cosine or dot product is
/// negated.
fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 4];
    let (pairs_a, rest_a) = a.as_chunks::<4>();
    let (pairs_b, rest_b) = b.as_chunks::<4>();
    let mut add = |i: usize, x: f32, y: f32| {
        let (x, y) = (f64::from(x), f64::from(y));
        sums[i] += if metric == Metric::L2 { (x - y) * (x - y) } else { -x * y };
    };
    pairs_a.iter().zip(pairs_b).for_each(|(a, b)| (0..4).for_each(|i| add(i, a[i], b[i])));
    rest_a.iter().zip(rest_b).for_each(|(&x, &y)| add(0, x, y));
    let sum: f64 = sums.iter().sum();
    match metric {
        Metric::Cosine => {
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            sum / (norm(a) * norm(b)).max(f64::MIN_POSITIVE)
        }
        _ => sum,
    }
}

/// Computes the distances of the query to all rows.
pub fn distances(metric: Metric, query: &[f32], rows: &[Vec<f32>]) -> Vec<f64> {
    rows.iter().map(|row| distance(metric, query, row)).collect()
}

/// Returns the distance of the `k`-th nearest row for each of `ks`, which must be ascending. If there are fewer than
/// `k` rows, it is the distance of the farthest.
///
/// # Panics
/// Panics if there are no rows or if a `k` is 0.
pub fn bounds(metric: Metric, query: &[f32], rows: &[Vec<f32>], ks: &[usize]) -> Vec<f64> {
    let mut all = distances(metric, query, rows);
    let most = ks.last().copied().unwrap_or(1).min(all.len());
    if most < all.len() {
        all.select_nth_unstable_by(most, f64::total_cmp);
    }
    all.truncate(most);
    all.sort_by(f64::total_cmp);
    ks.iter().map(|&k| all[k.min(most) - 1]).collect()
}

/// Returns the number of results of an answer whose distance is at most `bound`, the distance of the last true
/// neighbour.
///
/// Results at equal distance count. So do results that the 24-bit precision of a score can't distinguish from it. The
/// tolerance is 4 `f32::EPSILON` times a scale: `bound` for L2, 1 for cosine, the product of the norms for dot product.
pub fn near<'a>(metric: Metric, query: &[f32], answer: impl Iterator<Item = &'a [f32]>, bound: f64) -> usize {
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let query_norm = norm(query);
    let counts = |row: &&[f32]| {
        // The rounding error of a dot product is relative to the product of the norms, not to the result.
        let scale = match metric {
            Metric::L2 => bound.abs(),
            Metric::Cosine => 1.0,
            _ => query_norm * norm(row),
        };
        distance(metric, query, row) <= bound + scale * 4.0 * f64::from(f32::EPSILON)
    };
    answer.filter(counts).count()
}
