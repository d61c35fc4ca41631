//! The comparison of an index with the notes that it should hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use shardex::{DocumentId, IndexSnapshot, Posting, PostingKey};

use crate::note::{Note, NoteId};

/// Ids per page when documents are listed: few, so that there are many pages.
const PAGE: usize = 50;

/// Difference between an index and the notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A posting is missing.
    MissingPosting(PostingKey),
    /// A posting belongs to no sentence of a note.
    ExtraPosting(PostingKey),
    /// Two postings have the same key.
    DoublePosting(PostingKey),
    /// A vector differs in at least one bit.
    Vector(PostingKey),
    /// A posting has other tags.
    Tags {
        /// The posting.
        key: PostingKey,
        /// Tags of the note.
        expected: u64,
        /// Tags in the index.
        found: u64,
    },
    /// A note has no payload.
    MissingPayload(DocumentId),
    /// A payload belongs to no note.
    ExtraPayload(DocumentId),
    /// A payload differs from the text of the note.
    Payload(DocumentId),
    /// The list of documents, or the postings read by document, differ from those of the scan.
    Listing(DocumentId),
    /// The number of postings differs from those of the scan.
    Count {
        /// Number of postings scanned.
        scanned: u64,
        /// Number that the index states.
        stated: u64,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |key: &PostingKey| format!("{}:{}:{}", key.document_id, key.start, key.length);
        match self {
            Self::MissingPosting(key) => write!(f, "posting {} is missing", name(key)),
            Self::ExtraPosting(key) => write!(f, "posting {} belongs to no note", name(key)),
            Self::DoublePosting(key) => write!(f, "posting {} is there twice", name(key)),
            Self::Vector(key) => write!(f, "posting {} has another vector", name(key)),
            Self::Tags { key, expected, found } => {
                write!(f, "posting {} has the tags {found:#x}, not {expected:#x}", name(key))
            }
            Self::MissingPayload(id) => write!(f, "the payload of document {id} is missing"),
            Self::ExtraPayload(id) => write!(f, "the payload of document {id} belongs to no note"),
            Self::Payload(id) => write!(f, "the payload of document {id} is not the text of the note"),
            Self::Listing(id) => write!(f, "document {id} is listed otherwise than it is scanned"),
            Self::Count { scanned, stated } => write!(f, "{scanned} postings were scanned, and {stated} are stated"),
        }
    }
}

/// Number of things compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Number of notes.
    pub notes: u64,
    /// Number of postings.
    pub postings: u64,
    /// Number of payload bytes.
    pub bytes: u64,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.notes += other.notes;
        self.postings += other.postings;
        self.bytes += other.bytes;
    }
}

/// Compares a snapshot with the notes, row for row: every posting with vector, tags and key, every payload, and that there
/// is nothing else. Returns all differences.
///
/// # Errors
/// Returns the errors of the index.
pub fn compare(
    snapshot: &IndexSnapshot,
    notes: &BTreeMap<NoteId, Note>,
) -> shardex::Result<(Compared, Vec<Difference>)> {
    let mut differences = Vec::new();
    let scanned = scan(snapshot, &mut differences)?;
    let postings = compare_postings(&scanned, notes, &mut differences);
    compare_lists(snapshot, &scanned, &mut differences)?;
    let bytes = compare_payloads(snapshot, notes, &mut differences)?;
    Ok((Compared { notes: notes.len() as u64, postings, bytes }, differences))
}

/// Reads all postings.
fn scan(snapshot: &IndexSnapshot, differences: &mut Vec<Difference>) -> shardex::Result<BTreeMap<PostingKey, Posting>> {
    let mut scanned = BTreeMap::new();
    for posting in snapshot.scan() {
        let posting = posting?;
        if let Some(earlier) = scanned.insert(posting.key(), posting) {
            differences.push(Difference::DoublePosting(earlier.key()));
        }
    }
    Ok(scanned)
}

/// Compares the postings with those of the notes, and returns their number.
fn compare_postings(
    scanned: &BTreeMap<PostingKey, Posting>,
    notes: &BTreeMap<NoteId, Note>,
    differences: &mut Vec<Difference>,
) -> u64 {
    let expected: BTreeMap<PostingKey, Posting> =
        notes.iter().flat_map(|(&id, note)| note.postings(id)).map(|posting| (posting.key(), posting)).collect();
    for (&key, posting) in &expected {
        let Some(found) = scanned.get(&key) else {
            differences.push(Difference::MissingPosting(key));
            continue;
        };
        if !bits(&posting.vector).eq(bits(&found.vector)) {
            differences.push(Difference::Vector(key));
        }
        if posting.tags != found.tags {
            differences.push(Difference::Tags { key, expected: posting.tags, found: found.tags });
        }
    }
    let extra = scanned.keys().filter(|key| !expected.contains_key(key));
    differences.extend(extra.map(|&key| Difference::ExtraPosting(key)));
    expected.len() as u64
}

fn bits(vector: &[f32]) -> impl Iterator<Item = u32> {
    vector.iter().map(|component| component.to_bits())
}

/// Compares the other ways to read postings with the scan.
fn compare_lists(
    snapshot: &IndexSnapshot,
    scanned: &BTreeMap<PostingKey, Posting>,
    differences: &mut Vec<Difference>,
) -> shardex::Result<()> {
    if snapshot.len() != scanned.len() as u64 {
        differences.push(Difference::Count { scanned: scanned.len() as u64, stated: snapshot.len() });
    }
    let mut by_document: BTreeMap<DocumentId, Vec<&Posting>> = BTreeMap::new();
    for (key, posting) in scanned {
        by_document.entry(key.document_id).or_default().push(posting);
    }
    let listed = pages(|after| snapshot.documents(after, PAGE))?;
    let ids: BTreeSet<DocumentId> = by_document.keys().copied().collect();
    differences.extend(listed.symmetric_difference(&ids).map(|&id| Difference::Listing(id)));
    for (id, postings) in by_document {
        if !snapshot.get(id)?.iter().eq(postings) {
            differences.push(Difference::Listing(id));
        }
    }
    Ok(())
}

/// Compares the payloads with the texts of the notes, and returns their number of bytes.
fn compare_payloads(
    snapshot: &IndexSnapshot,
    notes: &BTreeMap<NoteId, Note>,
    differences: &mut Vec<Difference>,
) -> shardex::Result<u64> {
    let listed = pages(|after| Ok(snapshot.documents_with_payload(after, PAGE)))?;
    let ids: BTreeSet<DocumentId> = notes.keys().map(|&id| id.into()).collect();
    differences.extend(listed.difference(&ids).map(|&id| Difference::ExtraPayload(id)));
    let mut bytes = 0;
    for (&id, note) in notes {
        let id = DocumentId::from(id);
        let payload = snapshot.payload(id)?;
        match payload.filter(|_| listed.contains(&id)) {
            None => differences.push(Difference::MissingPayload(id)),
            Some(payload) if payload.to_vec() != note.text.as_bytes() => differences.push(Difference::Payload(id)),
            Some(_) => bytes += note.text.len() as u64,
        }
    }
    Ok(bytes)
}

/// Reads a list of ids page by page.
fn pages(
    page: impl Fn(Option<DocumentId>) -> shardex::Result<Vec<DocumentId>>,
) -> shardex::Result<BTreeSet<DocumentId>> {
    let mut ids = BTreeSet::new();
    loop {
        let next = page(ids.last().copied())?;
        if next.is_empty() {
            return Ok(ids);
        }
        ids.extend(next);
    }
}
