//! A catalogue of data on which a search by codes can go wrong, the truth about it, and what answers are worth.
//!
//! The truth is computed here, in double precision, by nothing of the library: what is judged does not judge.

use shardex::{Metric, SearchResponse, Stopped};

/// Numbers by chance, the same for the same seed on one machine (SplitMix64, and Box and Muller's transform).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Those that follow from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// By a normal distribution around 0, of deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A kind of data.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// Numbers of a vector.
    pub dimension: usize,
    /// Rows where nothing else is said.
    pub rows: usize,
    /// The metrics by which it makes sense.
    pub metrics: &'static [Metric],
    /// The share of [`share`](Self::share) by L2 and cosine, and by dot products.
    shares: [f64; 2],
    /// And then why; else nothing.
    pub why: &'static str,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `N(0, 1)` plus a constant.
    Normal(f64),
    /// One component so many times as large as the others.
    Spike(f64),
    Uniform,
    /// Around so many centres that are so far apart, plus a constant.
    Clusters(usize, f64, f64),
    /// Nine of ten are one vector; the others are asked for.
    Equal,
    /// Half of it is denser, and elsewhere; the first half is asked for.
    TwoHalves,
    /// Products of a normal and an exponential of one: norms of many sizes.
    Norms,
    /// Components with heavy tails.
    Tails,
    /// Zeros and ones: many are equally far.
    Bits,
    /// Five of a hundred components are not zero.
    Sparse,
    /// Integers as of histograms, many of them zero.
    Integers,
    /// On a plane of so many dimensions, but for a thousandth.
    Plane(usize),
    /// Spreads that fall with the number of the component.
    Falling,
    /// Some of 1e-21 and some of 1e12 among others.
    Magnitudes,
    /// Each is near one of as many as a fifth of the rows.
    Copies(f64),
    /// Clusters of spreads from a hundredth to a hundred.
    Scales,
    /// Queries three times as far from the middle as what is stored, and beside it.
    Elsewhere,
    /// Clusters, and queries half way between two of them.
    Between,
    /// Clusters, and queries of others.
    Others,
    /// Spreads that fall with the number of the component, and queries that have one.
    Isotropic,
    /// Two halves, one of them dense, and queries just beside that one.
    BesideDense,
}

const ALL: &[Metric] = &[Metric::L2, Metric::Cosine, Metric::Dot];
const L2: &[Metric] = &[Metric::L2];
const L2_DOT: &[Metric] = &[Metric::L2, Metric::Dot];

const fn kind(name: &'static str, dimension: usize, rows: usize, metrics: &'static [Metric], shape: Shape) -> Kind {
    Kind { name, dimension, rows, metrics, shares: [2.0; 2], why: "", shape }
}

const fn costing(share: f64, kind: Kind) -> Kind {
    Kind { shares: [share; 2], ..kind }
}

const fn costing_by_dot(share: f64, kind: Kind) -> Kind {
    Kind { shares: [kind.shares[0], share], ..kind }
}

const fn by_vectors(why: &'static str, kind: Kind) -> Kind {
    Kind { shares: [1.0; 2], why, ..kind }
}

impl Kind {
    /// How many codes and vectors a search for ten looks at, at most, at a recall of 0.95 after `optimize`, as a share of
    /// the rows; every posting has two codes. 1 where every vector is looked at.
    pub fn share(&self, metric: Metric) -> f64 {
        self.shares[usize::from(metric == Metric::Dot)]
    }
}

/// Every kind.
pub const KINDS: &[Kind] = &[
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
    // They are asked twice, and much of the data is about equally far from there: all codes, and then every vector.
    costing(4.1, kind("elsewhere", 64, 20_000, L2, Shape::Elsewhere)),
    costing(4.1, kind("between clusters", 64, 20_000, ALL, Shape::Between)),
    costing(4.1, kind("other clusters", 64, 20_000, ALL, Shape::Others)),
    costing(4.1, kind("isotropic", 64, 20_000, ALL, Shape::Isotropic)),
    costing(4.1, kind("beside the dense", 64, 12_000, L2, Shape::BesideDense)),
];

/// Data of a kind: what is drawn from it is different each time, and of the same world.
pub struct World {
    /// What kind of data it is.
    pub kind: Kind,
    centres: Vec<Vec<f64>>,
    chance: Chance,
}

impl World {
    /// A world of a kind, of about so many rows.
    pub fn new(kind: Kind, rows: usize, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
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
        let centres = (0..count).map(|_| chance.normals(d).into_iter().map(|x| x * apart).collect()).collect();
        Self { kind, centres, chance }
    }

    /// Something to be stored.
    pub fn row(&mut self) -> Vec<f32> {
        self.draw(false)
    }

    /// Something to be asked for.
    pub fn query(&mut self) -> Vec<f32> {
        self.draw(true)
    }

    fn draw(&mut self, asked: bool) -> Vec<f32> {
        let (d, c) = (self.kind.dimension, &mut self.chance);
        let around = |c: &mut Chance, centre: &[f64], spread: f64| -> Vec<f64> {
            centre.iter().map(|x| x + spread * c.normal()).collect()
        };
        let drawn: Vec<f64> = match self.kind.shape {
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
            Shape::Equal if !asked && c.below(10) > 0 => self.centres[0].clone(),
            Shape::TwoHalves if !asked && c.below(2) > 0 => c.normals(d).into_iter().map(|x| 0.1 * x + 3.0).collect(),
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
            Shape::Magnitudes => {
                let scale = [1.0, 1.0, 1.0, 1e-21, 1e12][if asked { 0 } else { c.below(5) }];
                c.normals(d).into_iter().map(|x| x * scale).collect()
            }
            Shape::Copies(apart) => {
                let at = c.below(self.centres.len());
                around(c, &self.centres[at], apart)
            }
            Shape::Scales => {
                let at = c.below(self.centres.len());
                let spread = 10f64.powf(at as f64 / 10.0 - 2.0);
                self.centres[at].iter().map(|x| x * 3.0 * spread + spread * c.normal()).collect()
            }
            Shape::Elsewhere if asked => c.normals(d).into_iter().map(|x| x * 3.0 + 1.0).collect(),
            Shape::Elsewhere => c.normals(d),
            Shape::Between => {
                let [a, b] = [0; 2].map(|_| c.below(300));
                let b = if asked { b } else { a };
                let middle = self.centres[a].iter().zip(&self.centres[b]).map(|(a, b)| (a + b) / 2.0);
                middle.map(|x| x + c.normal()).collect()
            }
            Shape::Others => {
                let at = c.below(300) + if asked { 300 } else { 0 };
                around(c, &self.centres[at], 1.0)
            }
            Shape::Isotropic if asked => c.normals(d),
            Shape::Isotropic => (0..d).map(|i| c.normal() / (i + 1) as f64).collect(),
            Shape::BesideDense if asked => c.normals(d).into_iter().map(|x| 0.3 * x + 3.0).collect(),
            Shape::BesideDense if c.below(2) > 0 => c.normals(d).into_iter().map(|x| 0.1 * x + 3.0).collect(),
            Shape::BesideDense => c.normals(d),
        };
        drawn.into_iter().map(|x| x as f32).collect()
    }

    /// Whether queries are like what is stored: only then is it promised that the recall is reached.
    pub fn is_ordinary(&self) -> bool {
        use Shape::{BesideDense, Between, Elsewhere, Isotropic, Others};
        !matches!(self.kind.shape, Elsewhere | Between | Others | Isotropic | BesideDense)
    }
}

/// How far two vectors are apart by a metric; lower is nearer.
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

/// How far each of some rows is.
pub fn distances(metric: Metric, query: &[f32], rows: &[Vec<f32>]) -> Vec<f64> {
    rows.iter().map(|row| distance(metric, query, row)).collect()
}

/// How far the `k`-th nearest of each of some numbers is, ascending numbers; as far as there are that many.
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

/// Of how many results of an answer it is true that they are among the nearest of which the last is so far. One as far counts, and
/// what the 24 bits of a score do not tell apart from it.
pub fn near<'a>(metric: Metric, query: &[f32], answer: impl Iterator<Item = &'a [f32]>, bound: f64) -> usize {
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let asked = norm(query);
    let counts = |row: &&[f32]| {
        // Of the product of two norms a dot product is a part, and its error one of that.
        let scale = match metric {
            Metric::L2 => bound.abs(),
            Metric::Cosine => 1.0,
            _ => asked * norm(row),
        };
        distance(metric, query, row) <= bound + scale * 4.0 * f64::from(f32::EPSILON)
    };
    answer.filter(counts).count()
}

/// What some searches came to for which a recall was asked.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Results of each.
    pub k: usize,
    /// The recall.
    pub asked: f32,
    searches: usize,
    shares: f64,
    flagged: usize,
    missed: usize,
    missed_unflagged: usize,
    scanned: usize,
    computed: usize,
    by_vectors: usize,
}

impl Tally {
    /// Of none yet.
    pub fn new(k: usize, asked: f32) -> Self {
        Self {
            k,
            asked,
            searches: 0,
            shares: 0.0,
            flagged: 0,
            missed: 0,
            missed_unflagged: 0,
            scanned: 0,
            computed: 0,
            by_vectors: 0,
        }
    }

    /// Takes in one answer, of which so many results are among the `k` nearest of so many rows.
    pub fn add(&mut self, answer: &SearchResponse, near: usize, rows: usize) {
        let share = near.min(self.k) as f64 / self.k.min(rows) as f64;
        let missed = share < f64::from(self.asked);
        self.searches += 1;
        self.shares += share;
        self.missed += usize::from(missed);
        self.missed_unflagged += usize::from(missed && answer.calibrated);
        self.flagged += usize::from(!answer.calibrated);
        self.scanned += answer.scanned;
        self.computed += answer.computed;
        self.by_vectors += usize::from(answer.stopped == Stopped::Everything);
    }

    /// The mean share of the true nearest.
    pub fn recall(&self) -> f64 {
        self.per_search(self.shares)
    }

    /// The share of the searches of which it was said that nothing is known about such queries.
    pub fn flagged(&self) -> f64 {
        self.per_search(self.flagged as f64)
    }

    /// The share of the searches that looked at every vector in the end.
    pub fn by_vectors(&self) -> f64 {
        self.per_search(self.by_vectors as f64)
    }

    /// Codes and vectors that a search looked at.
    pub fn scanned(&self) -> f64 {
        self.per_search(self.scanned as f64)
    }

    /// Distances that a search computed.
    pub fn computed(&self) -> f64 {
        self.per_search(self.computed as f64)
    }

    fn per_search(&self, sum: f64) -> f64 {
        sum / self.searches.max(1) as f64
    }

    /// Whether that is what is promised. To ordinary queries: the recall but for 0.01, with hardly any of them flagged. To others: but
    /// for 0.03, or nearly all that miss it are flagged.
    pub fn does(&self, ordinary: bool) -> bool {
        let wanted = f64::from(self.asked);
        match ordinary {
            true => self.recall() >= wanted - 0.01 && self.flagged() <= 0.01,
            false => self.recall() >= wanted - 0.03 || self.missed_unflagged * 100 <= self.missed,
        }
    }
}
