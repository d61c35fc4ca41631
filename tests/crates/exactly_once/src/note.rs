//! Notes, and their form in the index.

use shardex::{DocumentId, Posting, PostingKey};

/// Dimension of the vectors.
pub const DIMENSION: usize = 24;

/// Id of a note. The document of a note has the same id.
pub type NoteId = u32;

/// Row of the table `notes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Topic: 0 to 63. Each topic has its own tag.
    pub topic: u32,
    /// Text of any length. It is the payload of the document.
    pub text: String,
}

impl Note {
    /// Returns the tags of the note's postings.
    #[must_use]
    pub fn tags(&self) -> u64 {
        1 << (self.topic % 64)
    }

    /// Returns the keys of the note's postings with the text of each: one per sentence. An empty text has none.
    pub fn parts(&self, id: NoteId) -> impl Iterator<Item = (PostingKey, &str)> {
        let mut start = 0;
        self.text.split_inclusive(". ").map(move |sentence| {
            let key = PostingKey::new(DocumentId::from(id), start, sentence.len() as u32);
            start += key.length;
            (key, sentence)
        })
    }

    /// Returns the note's postings.
    #[must_use]
    pub fn postings(&self, id: NoteId) -> Vec<Posting> {
        self.parts(id).map(|(key, sentence)| Posting::new(key, vector(sentence)).tagged(self.tags())).collect()
    }
}

/// Computes the vector of a text: each word adds 1 or -1 to a component that its hash selects. It stands for the model
/// that an application uses. Like a model it gives the same vector for the same text.
#[must_use]
pub fn vector(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSION];
    let mut words = 0.0_f32;
    for word in text.split_whitespace() {
        let hash = hash(word);
        vector[(hash >> 1) as usize % DIMENSION] += if hash & 1 == 0 { 1.0 } else { -1.0 };
        words += 1.0;
    }
    let scale = words.max(1.0).sqrt();
    vector.iter_mut().for_each(|component| *component /= scale);
    vector
}

/// Computes the FNV-1a hash of a word.
fn hash(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
