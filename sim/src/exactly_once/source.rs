//! Source of an ingester: numbered changes of documents, which can be read again until they are trimmed.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{DocumentId, Posting, PostingKey, WriteBatch};

use crate::workload::{payload_bytes, vector};

/// Number of documents. They are few, so that changes meet each other.
const DOCUMENTS: u64 = 20;
/// Number of parts of a document.
const PARTS: u32 = 8;

/// Document whose payload is the number of changes made: each batch reads it and adds its own. A change that is made twice
/// makes it larger than the number that the cursor names.
pub(super) const TOTAL: DocumentId = DocumentId(1_000);

/// Change of one document.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Adds or replaces postings.
    Add(Vec<Posting>),
    /// Replaces all postings and removes the payload.
    Replace(DocumentId, Vec<Posting>),
    /// Edits the text: replaces all postings and the payload.
    Edit(DocumentId, Vec<Posting>, Vec<u8>),
    /// Sets the tags of postings.
    Tag(Vec<PostingKey>, u64),
    RemovePosting(PostingKey),
    RemovePayload(DocumentId),
    Remove(DocumentId),
}

impl Change {
    /// Returns change `number` of the source with this seed.
    fn numbered(number: u64, seed: u64, dimension: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let document = rng.random_range(0..DOCUMENTS);
        let key = |part: u32| PostingKey::new(u128::from(document), part * 10, 10);
        let parts: Vec<u32> = (0..PARTS).filter(|_| rng.random_bool(0.35)).collect();
        let posting = |part: u32| {
            let vector = vector(document * 100 + u64::from(part), number, dimension);
            Posting::new(key(part), vector).tagged(if number.is_multiple_of(3) { number } else { 0 })
        };
        let postings = || parts.iter().map(|&part| posting(part)).collect();
        let id = DocumentId(document.into());
        match rng.random_range(0..20) {
            0..=6 => Self::Add(postings()),
            7..=9 => Self::Replace(id, postings()),
            10..=14 => Self::Edit(id, postings(), text(number, document, payload_bytes(&mut rng))),
            15 | 16 => Self::Tag(parts.iter().map(|&part| key(part)).collect(), number),
            17 => Self::RemovePosting(key(rng.random_range(0..PARTS))),
            18 => Self::RemovePayload(id),
            _ => Self::Remove(id),
        }
    }

    /// Appends the change to a batch.
    pub(super) fn write_to(&self, batch: &mut WriteBatch) {
        self.begin_in(batch);
        if let Self::Edit(id, _, text) = self {
            batch.set_payload(*id, text.clone());
        }
    }

    /// Appends the change to a batch, an edit without its text.
    pub(super) fn begin_in(&self, batch: &mut WriteBatch) {
        match self {
            Self::Add(postings) => postings.iter().for_each(|posting| {
                batch.add(posting.clone());
            }),
            Self::Replace(id, postings) | Self::Edit(id, postings, _) => {
                batch.replace_document(*id, postings.clone());
            }
            Self::Tag(keys, tags) => keys.iter().for_each(|&key| {
                batch.set_tags(key, *tags);
            }),
            Self::RemovePosting(key) => {
                batch.remove_posting(*key);
            }
            Self::RemovePayload(id) => {
                batch.remove_payload(*id);
            }
            Self::Remove(id) => {
                batch.remove_document(*id);
            }
        }
    }

    /// Returns the text of an edit.
    pub(super) fn text(&self) -> Option<(DocumentId, &[u8])> {
        match self {
            Self::Edit(id, _, text) => Some((*id, text)),
            _ => None,
        }
    }
}

/// Returns a text of `len` bytes that names the change.
fn text(number: u64, document: u64, len: u64) -> Vec<u8> {
    format!("change {number} of document {document}; ").into_bytes().into_iter().cycle().take(len as usize).collect()
}

/// Source of changes 1, 2, 3 and so on without end.
#[derive(Debug)]
pub(super) struct Source {
    seed: u64,
    dimension: usize,
    trimmed: u64,
}

impl Source {
    pub(super) fn new(seed: u64, dimension: usize) -> Self {
        Self { seed, dimension, trimmed: 0 }
    }

    /// Returns a change for the model, which knows the trimmed ones too.
    pub(super) fn change(&self, number: u64) -> Change {
        Change::numbered(number, self.seed, self.dimension)
    }

    /// Reads the `count` changes after number `after`.
    ///
    /// # Errors
    /// Returns a message if one of them was trimmed.
    pub(super) fn read(&self, after: u64, count: u64) -> Result<Vec<Change>, String> {
        if after < self.trimmed {
            return Err(format!("change {} is needed, and the source was trimmed to {}", after + 1, self.trimmed));
        }
        Ok((after + 1..=after + count).map(|number| self.change(number)).collect())
    }

    /// Forgets the changes up to a number. Returns how many were not forgotten before.
    pub(super) fn trim(&mut self, up_to: u64) -> u64 {
        let before = self.trimmed;
        self.trimmed = before.max(up_to);
        self.trimmed - before
    }

    /// Returns the number of the last trimmed change.
    pub(super) fn trimmed(&self) -> u64 {
        self.trimmed
    }
}

/// Returns the cursor after a change: its number, at various lengths. The cursor before the first change is empty.
pub(super) fn cursor_after(number: u64) -> Vec<u8> {
    let width = [1, 20, 90, 300][(number % 4) as usize];
    if number == 0 { Vec::new() } else { format!("{number:0width$}").into_bytes() }
}

/// Returns the number of the change that a cursor names.
///
/// # Errors
/// Returns a message if no batch has set this cursor.
pub(super) fn number_of(cursor: &[u8]) -> Result<u64, String> {
    let number = match cursor {
        [] => 0,
        digits => str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX),
    };
    if number < u64::MAX && cursor_after(number) == cursor {
        return Ok(number);
    }
    Err(format!("no batch has set the cursor `{}`", cursor.escape_ascii()))
}
