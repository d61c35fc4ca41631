//! What a purge must have erased: byte strings that no file may hold after it, whatever crash follows.

use std::collections::{BTreeMap, BTreeSet};

use shardex::{Metric, Posting, batch::Operation};

use crate::state::Batch;

/// Shortest byte string that is looked for: shorter ones occur by chance.
const LEAST: usize = 12;

/// Bytes of a payload that are looked for.
const MOST: usize = 40;

/// Byte strings that are gone.
#[derive(Clone, Debug, Default)]
pub struct Erased {
    /// Byte strings by their first two bytes.
    strings: BTreeMap<u16, Vec<Vec<u8>>>,
    /// Bit for each value of the first two bytes.
    first: Vec<u64>,
}

impl Erased {
    /// Returns what a purge erases: the strings of the batches before it that are not those of `present`.
    pub(crate) fn of<'a>(
        before: impl Iterator<Item = &'a Batch>,
        present: impl Iterator<Item = &'a Batch>,
        live: impl Iterator<Item = Vec<u8>>,
        metric: Metric,
    ) -> Self {
        let mut gone: BTreeSet<Vec<u8>> = before.flat_map(|batch| strings(batch, metric)).collect();
        let kept: BTreeSet<Vec<u8>> = present.flat_map(|batch| strings(batch, metric)).chain(live).collect();
        gone.retain(|string| {
            let is_part = |kept: &Vec<u8>| kept.windows(string.len()).any(|part| part == string);
            string.len() >= LEAST && string.iter().any(|&byte| byte != string[0]) && !kept.iter().any(is_part)
        });
        let mut erased = Self { strings: BTreeMap::new(), first: vec![0; 1 << 10] };
        for string in gone {
            let head = u16::from_le_bytes([string[0], string[1]]);
            erased.first[usize::from(head) / 64] |= 1 << (head % 64);
            erased.strings.entry(head).or_default().push(string);
        }
        erased
    }

    /// Returns the number of byte strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.strings.values().map(Vec::len).sum()
    }

    /// Reports whether nothing was erased.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Returns the position of the first erased string in the bytes of a file.
    #[must_use]
    pub fn find_in(&self, bytes: &[u8]) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let heads = bytes.windows(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let may = |head: u16| self.first[usize::from(head) / 64] >> (head % 64) & 1 == 1;
        let starts = |at: usize, head| self.strings[&head].iter().any(|string| bytes[at..].starts_with(string));
        heads.enumerate().find(|&(at, head)| may(head) && starts(at, head)).map(|(at, _)| at)
    }
}

/// Returns the bytes of a vector as records and slots hold them: as given, and divided by its norm.
pub(crate) fn forms(vector: &[f32], metric: Metric) -> Vec<Vec<u8>> {
    let bytes = |scale: f64| vector.iter().flat_map(|&x| ((f64::from(x) / scale) as f32).to_le_bytes()).collect();
    match metric {
        Metric::Cosine => {
            let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            vec![bytes(1.0), bytes(norm)]
        }
        _ => vec![bytes(1.0)],
    }
}

fn strings(batch: &Batch, metric: Metric) -> Vec<Vec<u8>> {
    let of = |postings: &[Posting]| postings.iter().flat_map(|posting| forms(&posting.vector, metric)).collect();
    match batch {
        Batch::Add(postings) => of(postings),
        Batch::Remove(_) => Vec::new(),
        Batch::Write(batch) => {
            let strings = batch.operations().iter().flat_map(|operation| match operation {
                Operation::Add(posting) => forms(&posting.vector, metric),
                Operation::ReplaceDocument(_, postings) => of(postings),
                Operation::SetPayload(_, payload) => vec![payload[..payload.len().min(MOST)].to_vec()],
                Operation::SetCursor { cursor, .. } => vec![cursor[..cursor.len().min(MOST)].to_vec()],
                _ => Vec::new(),
            });
            strings.collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardex::DocumentId;

    #[test]
    fn it_finds_what_is_gone_and_not_what_is_there() {
        let posting =
            |id: u128, vector: Vec<f32>| Posting { document_id: DocumentId(id), start: 0, length: 1, vector, tags: 0 };
        let batch = |id, vector| Batch::Add(vec![posting(id, vector)]);
        let (gone, kept) = (vec![1.5, 2.5, 3.5], vec![4.5, 5.5, 6.5]);
        let both = [batch(1, gone.clone()), batch(2, kept.clone())];
        let live = forms(&kept, Metric::L2).into_iter();
        let erased = Erased::of(both.iter(), std::iter::empty(), live, Metric::L2);
        assert_eq!(erased.len(), 1);
        let bytes = |vector: &[f32]| vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let file = |vector: &[f32]| [vec![7; 5], bytes(vector), vec![0; 9]].concat();
        assert_eq!((erased.find_in(&file(&gone)), erased.find_in(&file(&kept))), (Some(5), None));
        assert_eq!(erased.find_in(&bytes(&gone)[..11]), None);
        let again = [batch(3, gone)];
        assert!(Erased::of(both.iter(), again.iter(), forms(&kept, Metric::L2).into_iter(), Metric::L2).is_empty());
    }
}
