//! The kernels in plain Rust: for every CPU, and what the others are measured by.

use super::{GROUPS, Kernels, LANES, filled, for_rows, pieces};

pub(super) const KERNELS: Kernels = Kernels { name: "portable", dot, squared_l2, dot_many, squared_l2_many };

#[inline(always)]
fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut groups = [[0.0f32; LANES]; GROUPS];
    let (a, b, a_rest, b_rest) = pieces(a, b);
    let mut add = |group: usize, a: &[f32; LANES], b: &[f32; LANES]| {
        for ((lane, &a), &b) in groups[group].iter_mut().zip(a).zip(b) {
            *lane += term(a, b);
        }
    };
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        add(i % GROUPS, a, b);
    }
    if !a_rest.is_empty() {
        add(a.len() % GROUPS, &filled(a_rest), &filled(b_rest));
    }
    let [g0, g1, g2, g3] = groups;
    let mut lanes = [0.0f32; LANES];
    for (j, lane) in lanes.iter_mut().enumerate() {
        *lane = (g0[j] + g1[j]) + (g2[j] + g3[j]);
    }
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
    }
    lanes[0]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| a * b)
}

fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| (a - b) * (a - b))
}

fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, dot);
}

fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, squared_l2);
}
