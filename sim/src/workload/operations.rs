//! Batches of the steps of a workload.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{DocumentId, Filter, Posting, PostingKey, WriteBatch};

use super::{Step, postings, vector};

/// Draws the length of a payload: empty, within its entry, on both sides of the limit, about a page, several blocks.
pub fn payload_bytes(rng: &mut ChaCha8Rng) -> u64 {
    match rng.random_range(0..8) {
        0 => 0,
        1 => rng.random_range(1..64),
        2 => rng.random_range(62..67),
        3 | 4 => rng.random_range(65..260),
        5 => rng.random_range(250..260),
        6 => rng.random_range(260..1_200),
        _ => rng.random_range(1_200..5_000),
    }
}

/// Returns `len` bytes that depend on a number and a salt.
fn bytes(n: u64, len: u64, salt: u64) -> Vec<u8> {
    let mut x = (n.wrapping_mul(1_000_003) ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as u8
        })
        .collect()
}

fn key(document: u64, start: u32) -> PostingKey {
    PostingKey::new(u128::from(document), start, 1)
}

/// Returns the batch of a step, given the cursor before it; `None` for a step of another kind.
#[must_use]
pub fn batch_of(step: &Step, cursor: &[u8], dimension: usize) -> Option<WriteBatch> {
    let mut batch = WriteBatch::new();
    match *step {
        Step::RemovePostings { first, count, start } => {
            for document in first..first + count {
                batch.remove_posting(key(document, start));
            }
        }
        Step::Tag { first, count, tags } => {
            for document in first..first + count {
                batch.set_tags(key(document, 0), tags);
            }
        }
        Step::Payload { first, count, bytes: len, salt } => {
            for document in first..first + count {
                batch.set_payload(u128::from(document), bytes(document, len, salt));
            }
        }
        Step::RemovePayloads { first, count } => {
            for document in first..first + count {
                batch.remove_payload(u128::from(document));
            }
        }
        Step::Edit { first, count, bytes: len, salt } => {
            for document in first..first + count {
                let postings = postings(document..document + 1, (salt % 2) as u32, salt, dimension);
                let tagged = postings.into_iter().map(|posting| posting.tagged(salt + 1)).collect();
                batch.replace_document(u128::from(document), tagged);
                batch.set_payload(u128::from(document), bytes(document, len, salt));
            }
            batch.set_cursor(format!("{first} {salt}"));
        }
        Step::Cursor { bytes: len, salt } => {
            batch.set_cursor_if(bytes(0, len, salt), cursor);
        }
        Step::Batch { count, seed } => return Some(drawn(count, seed, dimension)),
        Step::RemoveMatching { seed } => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            batch = drawn(rng.random_range(0..6), seed, dimension);
            let filter = filter(&mut rng);
            batch.remove_matching(filter.clone());
            if rng.random() {
                // What is added behind the removal stays, whatever its tags.
                batch.add(Posting::new(key(3, 1), vector(3, seed, dimension)).tagged(1));
            }
        }
        _ => return None,
    }
    Some(batch)
}

/// Draws a filter without a predicate: what passes is listed, has tags, or is a combination.
fn filter(rng: &mut ChaCha8Rng) -> Filter {
    let some =
        |rng: &mut ChaCha8Rng| (0..rng.random_range(0..6)).map(|_| rng.random_range(0..20u64)).collect::<Vec<_>>();
    match rng.random_range(0..7) {
        0 => Filter::documents(some(rng).into_iter().map(|document| DocumentId(document.into()))),
        1 => Filter::postings(some(rng).into_iter().map(|document| key(document, rng.random_range(0..2)))),
        2 => Filter::any_tags(rng.random_range(0..4)),
        3 => Filter::all_tags(1),
        4 => filter(rng) & filter(rng),
        5 => filter(rng) | filter(rng),
        _ => !filter(rng) & Filter::documents((0..8u64).map(|document| DocumentId(document.into()))),
    }
}

/// Draws a batch. Documents, starts and lengths are few, so that operations meet each other.
fn drawn(count: u64, seed: u64, dimension: usize) -> WriteBatch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut batch = WriteBatch::new();
    for n in 0..count {
        let document = rng.random_range(0..20u64);
        let start = rng.random_range(0..2);
        let tags = [0, 1, rng.random()][rng.random_range(0..3)];
        let salt = seed ^ n;
        let posting = Posting::new(key(document, start), vector(document, salt, dimension)).tagged(tags);
        match rng.random_range(0..10) {
            0..=2 => batch.add(posting),
            3 => batch.replace_document(u128::from(document), vec![posting]),
            4 => batch.remove_document(DocumentId(document.into())),
            5 => batch.remove_posting(key(document, start)),
            6 => batch.set_tags(key(document, start), tags),
            7 => batch.set_payload(u128::from(document), bytes(document, payload_bytes(&mut rng), salt)),
            8 => batch.remove_payload(u128::from(document)),
            _ => batch.set_cursor(bytes(0, rng.random_range(0..100), salt)),
        };
    }
    batch
}
