//! A catalogue of data on which a search by codes can go wrong, and the truth about it.
//!
//! The truth is computed here, in double precision, by nothing of the library: what is judged does not judge.

use shardex::Metric;

/// Numbers by chance, the same for the same seed on one machine (SplitMix64, and Box and Muller's transform).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A kind of data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) dimension: usize,
    /// Rows where nothing else is said.
    pub(crate) rows: usize,
    /// The metrics by which it makes sense.
    pub(crate) metrics: &'static [Metric],
    /// How many codes and vectors a search for ten looks at, at most, at a recall of 0.95 after `optimize`, as a share of
    /// the rows; every posting has two codes. 1 where every vector is looked at, and then why.
    pub(crate) share: f64,
    pub(crate) why: &'static str,
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
}

const ALL: &[Metric] = &[Metric::L2, Metric::Cosine, Metric::Dot];
const L2: &[Metric] = &[Metric::L2];
const L2_DOT: &[Metric] = &[Metric::L2, Metric::Dot];

const fn kind(name: &'static str, dimension: usize, rows: usize, metrics: &'static [Metric], shape: Shape) -> Kind {
    Kind { name, dimension, rows, metrics, share: 2.0, why: "", shape }
}

const fn costing(share: f64, kind: Kind) -> Kind {
    Kind { share, ..kind }
}

const fn by_vectors(why: &'static str, kind: Kind) -> Kind {
    Kind { share: 1.0, why, ..kind }
}

/// Every kind.
pub(crate) const KINDS: &[Kind] = &[
    costing(1.2, kind("normal", 64, 6_000, ALL, Shape::Normal(0.0))),
    costing(1.2, kind("offset 10", 64, 6_000, L2_DOT, Shape::Normal(10.0))),
    costing(1.2, kind("offset 30", 64, 6_000, L2_DOT, Shape::Normal(30.0))),
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
    // All of it is about equally far from there: all codes, and then every vector.
    costing(3.1, kind("elsewhere", 64, 20_000, L2, Shape::Elsewhere)),
];

/// Data of a kind: what is drawn from it is different each time, and of the same world.
pub(crate) struct World {
    kind: Kind,
    centres: Vec<Vec<f64>>,
    chance: Chance,
}

impl World {
    /// A world of a kind, of about so many rows.
    pub(crate) fn new(kind: Kind, rows: usize, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let d = kind.dimension;
        let count = match kind.shape {
            Shape::Clusters(count, ..) => count,
            Shape::Equal => 1,
            Shape::Plane(count) => count,
            Shape::Copies(_) => (rows / 5).max(1),
            Shape::Scales => 40,
            _ => 0,
        };
        let apart = if let Shape::Clusters(_, apart, _) = kind.shape { apart } else { 1.0 };
        let centres = (0..count).map(|_| chance.normals(d).into_iter().map(|x| x * apart).collect()).collect();
        Self { kind, centres, chance }
    }

    /// Something to be stored.
    pub(crate) fn row(&mut self) -> Vec<f32> {
        self.draw(false)
    }

    /// Something to be asked for.
    pub(crate) fn query(&mut self) -> Vec<f32> {
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
        };
        drawn.into_iter().map(|x| x as f32).collect()
    }

    /// Whether queries are like what is stored: only then is it promised that the recall is reached.
    pub(crate) fn is_ordinary(&self) -> bool {
        !matches!(self.kind.shape, Shape::Elsewhere)
    }
}

/// How far two vectors are apart by a metric; lower is nearer.
pub(crate) fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
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

/// How far the `k`-th nearest of each of some numbers is, ascending numbers; as far as there are that many.
pub(crate) fn bounds(metric: Metric, query: &[f32], rows: &[Vec<f32>], ks: &[usize]) -> Vec<f64> {
    let mut all: Vec<f64> = rows.iter().map(|row| distance(metric, query, row)).collect();
    let most = ks.last().copied().unwrap_or(1).min(all.len());
    if most < all.len() {
        all.select_nth_unstable_by(most, f64::total_cmp);
    }
    all.truncate(most);
    all.sort_by(f64::total_cmp);
    ks.iter().map(|&k| all[k.min(most) - 1]).collect()
}

/// Whether a result is among the nearest of which the last is so far: one as far counts, and what the score's 24 bits do not tell apart
/// from it. `norms` is the product of the two vectors' norms, of which a dot product is a part.
pub(crate) fn counts(metric: Metric, distance: f64, bound: f64, norms: f64) -> bool {
    let scale = if metric == Metric::L2 { bound.abs() } else { norms };
    distance <= bound + scale * 4.0 * f64::from(f32::EPSILON)
}
