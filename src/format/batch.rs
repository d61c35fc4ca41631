//! Payload of a WAL record of version 2: the net effect of a batch, and the clock's reading when it was accepted.
//!
//! The net effect is what replay needs: removals, then additions, then changes of tags, of payloads and of the cursor.
//! The order within the batch is no longer visible. An added vector is recorded as the caller passed it.

use super::{
    FormatError,
    codec::{Put as _, Reader},
};
use crate::{
    id::{DocumentId, PostingKey},
    posting::Posting,
};

/// Length of the head in bytes: clock, dimension, flags, five counts, length of the cursor, eight zero bytes.
const HEAD_BYTES: usize = 48;
/// Length of a key in bytes: document id, start, length.
const KEY_BYTES: usize = 24;
/// Length in bytes of a payload's entry: document id, length, four zero bytes.
const PAYLOAD_BYTES: usize = 24;
/// Length in the entry of a payload that is removed.
const REMOVED: u32 = u32::MAX;
/// Flag: the added postings have tags.
const HAS_TAGS: u32 = 1;
/// Flag: the batch sets the cursor.
const HAS_CURSOR: u32 = 2;

/// Added posting, as the caller passed it, with the tags that later operations of its batch gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordRow<'a> {
    /// The posting. Its own tags do not count.
    pub given: &'a Posting,
    /// Tags.
    pub tags: u64,
}

/// New tags of a stored posting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagChange {
    /// Key of the posting.
    pub key: PostingKey,
    /// The tags.
    pub tags: u64,
}

/// New payload of a document. `None` removes the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadChange<B> {
    /// Document id.
    pub document: DocumentId,
    /// Bytes of the payload.
    pub payload: Option<B>,
}

/// Net effect of a batch. `P` is the type of the postings, `B` that of byte strings.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRecord<P, B> {
    /// Time in the ids of new shards, in milliseconds since 1970. 0 since version 3, so that the ids depend on the state and
    /// the batch alone.
    pub unix_ms: u64,
    /// Documents whose postings are removed, ascending. Their payloads are among `payloads`.
    pub documents: Vec<DocumentId>,
    /// Keys of single postings that are removed, ascending.
    pub keys: Vec<PostingKey>,
    /// Added postings with distinct keys.
    pub postings: Vec<P>,
    /// New tags of stored postings, in the order of their keys.
    pub tags: Vec<TagChange>,
    /// New and removed payloads, in the order of their documents.
    pub payloads: Vec<PayloadChange<B>>,
    /// New cursor.
    pub cursor: Option<B>,
}

fn put_key(out: &mut Vec<u8>, key: PostingKey) {
    out.put_u128(key.document_id.0);
    out.put_u32(key.start);
    out.put_u32(key.length);
}

fn read_key(r: &mut Reader<'_>) -> Result<PostingKey, FormatError> {
    Ok(PostingKey { document_id: DocumentId(r.u128()?), start: r.u32()?, length: r.u32()? })
}

impl<B: AsRef<[u8]>> BatchRecord<RecordRow<'_>, B> {
    /// Encodes everything that precedes the vectors. [`bulk`](Self::bulk) follows.
    #[must_use]
    pub fn encode_head(&self, dimension: usize) -> Vec<u8> {
        let tagged = self.postings.iter().any(|posting| posting.tags != 0);
        let mut out = Vec::with_capacity(HEAD_BYTES + self.postings.len() * (KEY_BYTES + if tagged { 8 } else { 0 }));
        out.put_u64(self.unix_ms);
        out.put_u32(dimension as u32);
        let of_cursor = if self.cursor.is_some() { HAS_CURSOR } else { 0 };
        out.put_u32(of_cursor | if tagged { HAS_TAGS } else { 0 });
        let counts = [self.documents.len(), self.keys.len(), self.postings.len(), self.tags.len(), self.payloads.len()];
        counts.into_iter().for_each(|count| out.put_u32(count as u32));
        out.put_u32(self.cursor.as_ref().map_or(0, |cursor| cursor.as_ref().len() as u32));
        out.put_u64(0);
        self.documents.iter().for_each(|document| out.put_u128(document.0));
        self.keys.iter().for_each(|&key| put_key(&mut out, key));
        self.postings.iter().for_each(|posting| put_key(&mut out, posting.given.key()));
        if tagged {
            self.postings.iter().for_each(|posting| out.put_u64(posting.tags));
        }
        for change in &self.tags {
            put_key(&mut out, change.key);
            out.put_u64(change.tags);
        }
        for change in &self.payloads {
            out.put_u128(change.document.0);
            out.put_u32(change.payload.as_ref().map_or(REMOVED, |payload| payload.as_ref().len() as u32));
            out.put_u32(0);
        }
        out
    }

    /// Returns the parts that follow the head: vectors, payloads, cursor.
    pub fn bulk(&self) -> impl Iterator<Item = &[u8]> {
        let vectors = self.postings.iter().map(|posting| bytemuck::cast_slice::<f32, u8>(&posting.given.vector));
        let payloads = self.payloads.iter().filter_map(|change| change.payload.as_ref()).map(AsRef::as_ref);
        vectors.chain(payloads).chain(self.cursor.as_ref().map(AsRef::as_ref))
    }
}

/// Counts in the head of a record.
struct Counts {
    documents: usize,
    keys: usize,
    postings: usize,
    tags: usize,
    payloads: usize,
    cursor: usize,
    is_tagged: bool,
    has_cursor: bool,
}

impl Counts {
    /// Returns the number of bytes that the counts imply behind the head, without payloads and vectors. Counts of 32
    /// bits cannot overflow the sum.
    fn fixed_bytes(&self) -> usize {
        self.documents * 16
            + (self.keys + self.postings) * KEY_BYTES
            + if self.is_tagged { self.postings * 8 } else { 0 }
            + self.tags * (KEY_BYTES + 8)
            + self.payloads * PAYLOAD_BYTES
    }
}

impl BatchRecord<Posting, Vec<u8>> {
    /// Parses the payload of a record.
    ///
    /// # Errors
    /// Returns `FormatError` if the dimension differs from `dimension`, if an unused byte is not zero, if tags are stored
    /// that are all zeros, or if the counts and lengths do not match the length of the payload.
    pub fn decode(payload: &[u8], dimension: usize) -> Result<Self, FormatError> {
        let mut r = Reader::new(payload);
        let unix_ms = r.u64()?;
        r.expect(&(dimension as u32).to_le_bytes())?;
        let (at, flags) = (r.at(), r.u32()?);
        if flags & !(HAS_TAGS | HAS_CURSOR) != 0 {
            return Err(FormatError::new(at, format!("flags {flags:x}")));
        }
        let mut count = || Ok(r.u32()? as usize);
        let counts = Counts {
            documents: count()?,
            keys: count()?,
            postings: count()?,
            tags: count()?,
            payloads: count()?,
            cursor: count()?,
            is_tagged: flags & HAS_TAGS != 0,
            has_cursor: flags & HAS_CURSOR != 0,
        };
        r.expect(&[0; 8])?;
        // Before the counts are used as capacities.
        let least = counts.fixed_bytes() as u64 + counts.postings as u64 * 4 * dimension as u64 + counts.cursor as u64;
        if least > (payload.len() - HEAD_BYTES) as u64 || (counts.cursor > 0 && !counts.has_cursor) {
            return Err(FormatError::new(at, format!("counts for {least} bytes in {}", payload.len())));
        }
        let record = Self::read(&mut r, unix_ms, &counts, dimension)?;
        if r.at() != payload.len() {
            return Err(FormatError::new(r.at(), format!("{} bytes behind the batch", payload.len() - r.at())));
        }
        Ok(record)
    }

    /// Reads everything behind the head.
    fn read(r: &mut Reader<'_>, unix_ms: u64, counts: &Counts, dimension: usize) -> Result<Self, FormatError> {
        let mut record = Self {
            unix_ms,
            documents: (0..counts.documents).map(|_| Ok(DocumentId(r.u128()?))).collect::<Result<_, FormatError>>()?,
            keys: (0..counts.keys).map(|_| read_key(r)).collect::<Result<_, _>>()?,
            postings: (0..counts.postings)
                .map(|_| Ok(Posting::new(read_key(r)?, Vec::new())))
                .collect::<Result<_, FormatError>>()?,
            tags: Vec::with_capacity(counts.tags),
            payloads: Vec::with_capacity(counts.payloads),
            cursor: None,
        };
        if counts.is_tagged {
            let at = r.at();
            record.postings.iter_mut().try_for_each(|posting| r.u64().map(|tags| posting.tags = tags))?;
            if record.postings.iter().all(|posting| posting.tags == 0) {
                return Err(FormatError::new(at, "tags that are all zeros"));
            }
        }
        for _ in 0..counts.tags {
            record.tags.push(TagChange { key: read_key(r)?, tags: r.u64()? });
        }
        let mut lengths = Vec::with_capacity(counts.payloads);
        for _ in 0..counts.payloads {
            let document = DocumentId(r.u128()?);
            lengths.push(r.u32()?);
            r.expect(&[0; 4])?;
            record.payloads.push(PayloadChange { document, payload: None });
        }
        for posting in &mut record.postings {
            // `pod_collect_to_vec` copies, so the payload needs no alignment.
            posting.vector = bytemuck::allocation::pod_collect_to_vec(r.take(4 * dimension)?);
        }
        for (change, length) in record.payloads.iter_mut().zip(lengths) {
            change.payload = (length != REMOVED).then(|| r.take(length as usize).map(<[u8]>::to_vec)).transpose()?;
        }
        if counts.has_cursor {
            record.cursor = Some(r.take(counts.cursor)?.to_vec());
        }
        Ok(record)
    }
}
