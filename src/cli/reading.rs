//! Commands `shardex get`, `count` and `scan`.

use std::{fmt::Write as _, path::Path};

use serde_json::json;
use shardex::{IndexSnapshot, IndexStats, Posting, PostingKey, Shardex};

use super::{
    Answer, Failure, Outcome, admin,
    args::{Count, Lookup, Scan},
    block_on,
    output::{self, Output, RowOutput},
};

/// Number of components that `get` prints of a vector without `--vectors`.
const FIRST: usize = 4;
/// Memory in bytes for one page of postings in the order of keys.
const PAGE_BYTES: usize = 64 << 20;
/// Memory in bytes that a posting of a page takes besides its components.
const POSTING_BYTES: usize = 192;
/// Number of document ids per page.
const PAGE_DOCUMENTS: usize = 1 << 20;

/// Opens an index, calls `look` with a snapshot of it, and closes it, also after an error.
pub(super) fn read<T>(
    dir: &Path,
    look: impl FnOnce(&IndexSnapshot, &IndexStats) -> Result<T, Failure>,
) -> Result<T, Failure> {
    block_on(1, async {
        let index = Shardex::open(dir).await?;
        let stats = index.stats().await?;
        let snapshot = index.snapshot().await?;
        let seen = look(&snapshot, &stats);
        drop(snapshot);
        let closed = index.close().await;
        let seen = seen?;
        closed?;
        if let Some(why) = admin::read_only(&stats) {
            output::complain(&format!("the index is {why}"));
        }
        Ok(seen)
    })
}

pub(super) fn get(args: &Lookup, output: &Output) -> Outcome {
    let found = read(&args.dir, |snapshot, _| matching(snapshot, args).map_err(Failure::from))?;
    let part = if args.vectors { Components::All } else { Components::First };
    let mut out = RowOutput::new();
    for posting in &found {
        let line = if output.is_json() { object(posting, true) } else { text(posting, part) };
        if !out.put(&line) {
            break;
        }
    }
    out.end();
    if output.is_json() || found.is_empty() {
        let of = [("start", args.start), ("length", args.length)];
        let of: String = of.iter().filter_map(|(what, n)| n.map(|n| format!(", {what} {n}"))).collect();
        output.result(&json!({ "postings": found.len() }), &format!("no posting of document {}{of}", args.id));
    }
    Ok(if found.is_empty() { Answer::No } else { Answer::Yes })
}

/// Returns the postings of the document that have the given start and length.
fn matching(snapshot: &IndexSnapshot, args: &Lookup) -> shardex::Result<Vec<Posting>> {
    if let (Some(start), Some(length)) = (args.start, args.length) {
        return Ok(snapshot.get_posting(PostingKey::new(args.id, start, length))?.into_iter().collect());
    }
    let mut found = snapshot.get(args.id)?;
    found.retain(|posting| {
        args.start.is_none_or(|start| posting.start == start)
            && args.length.is_none_or(|length| posting.length == length)
    });
    Ok(found)
}

pub(super) fn count(args: &Count, output: &Output) -> Outcome {
    let (object, text) = read(&args.dir, |snapshot, _| {
        if let Some(id) = args.id {
            let postings = snapshot.count(id)?;
            return Ok((json!({ "postings": postings }), format!("{postings} postings")));
        }
        let (postings, documents) = (snapshot.len(), documents(snapshot)?);
        let text = format!("{postings} postings of {documents} documents");
        Ok((json!({ "postings": postings, "documents": documents }), text))
    })?;
    output.result(&object, &text);
    Ok(Answer::Yes)
}

/// Counts the documents, in pages, so that memory is bounded. Each page costs a pass over the records of all postings.
fn documents(snapshot: &IndexSnapshot) -> shardex::Result<u64> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = snapshot.documents(after, PAGE_DOCUMENTS)?;
        count += page.len() as u64;
        match page.last() {
            Some(&last) if page.len() == PAGE_DOCUMENTS => after = Some(last),
            _ => return Ok(count),
        }
    }
}

pub(super) fn scan(args: &Scan, output: &Output) -> Outcome {
    let mut listing = Listing { args, is_json: output.is_json(), out: RowOutput::new(), listed: 0, last: None };
    let seen = read(&args.dir, |snapshot, stats| {
        if args.by_key { listing.by_key(snapshot, stats.dimension) } else { listing.in_storage_order(snapshot) }
    });
    let Listing { out, listed, last, .. } = listing;
    // Written after an error too: the postings before a damaged one.
    out.end();
    seen?;
    if output.is_json() {
        let last = last.map(|last| last.to_string());
        output.result(&json!({ "postings": listed, "last": last }), "");
    }
    Ok(Answer::Yes)
}

/// List of postings that `scan` prints.
struct Listing<'a> {
    args: &'a Scan,
    is_json: bool,
    out: RowOutput,
    listed: u64,
    last: Option<PostingKey>,
}

impl Listing<'_> {
    /// Returns the number of postings that `--limit` still allows.
    fn left(&self) -> u64 {
        self.args.limit.unwrap_or(u64::MAX) - self.listed
    }

    /// Lists a posting. Returns false if nothing reads the list any more.
    fn put(&mut self, posting: &Posting) -> bool {
        let part = if self.args.vectors { Components::All } else { Components::Omitted };
        let line = if self.is_json { object(posting, self.args.vectors) } else { text(posting, part) };
        self.listed += 1;
        self.last = Some(posting.key());
        self.out.put(&line)
    }

    fn in_storage_order(&mut self, snapshot: &IndexSnapshot) -> Result<(), Failure> {
        let mut scan = snapshot.scan();
        while self.left() > 0
            && let Some(posting) = scan.next()
        {
            if !self.put(&posting?) {
                break;
            }
        }
        Ok(())
    }

    fn by_key(&mut self, snapshot: &IndexSnapshot, dimension: usize) -> Result<(), Failure> {
        let page_postings = (PAGE_BYTES / (4 * dimension + POSTING_BYTES)).max(1);
        let mut after = self.args.after;
        while self.left() > 0 {
            let most = usize::try_from(self.left()).unwrap_or(usize::MAX).min(page_postings);
            let page = snapshot.scan_by_key(after, most)?;
            if !page.iter().all(|posting| self.put(posting)) {
                break;
            }
            match page.last() {
                Some(last) if page.len() == most => after = Some(last.key()),
                _ => break,
            }
        }
        Ok(())
    }
}

/// Part of a vector that a line of text shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Components {
    Omitted,
    First,
    All,
}

/// Formats a posting as a line of text: its key, and the components, each preceded by a space.
fn text(posting: &Posting, part: Components) -> String {
    // The form of the key is that which `scan --after` takes.
    let mut line = posting.key().to_string();
    if posting.tags != 0 {
        let _ = write!(line, " tags={:#x}", posting.tags);
    }
    let all = posting.vector.len();
    let shown = match part {
        Components::Omitted => 0,
        Components::First => all.min(FIRST),
        Components::All => all,
    };
    for x in &posting.vector[..shown] {
        let _ = write!(line, " {x:?}");
    }
    if part == Components::First && shown < all {
        let _ = write!(line, " … ({all} numbers)");
    }
    line
}

/// Formats a posting as JSON. It is written by hand, because ids of 128 bits must be JSON numbers.
fn object(posting: &Posting, with_vector: bool) -> String {
    let Posting { document_id, start, length, vector, tags } = posting;
    let mut line = format!(r#"{{"document_id":{document_id},"start":{start},"length":{length}"#);
    if *tags != 0 {
        let _ = write!(line, r#","tags":{tags}"#);
    }
    if with_vector {
        line.push_str(r#","vector":["#);
        for (i, x) in vector.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(line, "{comma}{x:?}");
        }
        line.push(']');
    }
    line.push('}');
    line
}

#[cfg(test)]
mod tests {
    use shardex::DocumentId;

    use super::*;

    fn posting(vector: &[f32]) -> Posting {
        Posting { document_id: DocumentId(1 << 64), start: 3, length: 4, vector: vector.to_vec(), tags: 0 }
    }

    #[test]
    fn a_posting_is_a_line_for_a_person() {
        let five = posting(&[0.5, -1.0, 1e-30, 0.1, 7.0]);
        assert_eq!(text(&five, Components::Omitted), "18446744073709551616:3:4");
        assert_eq!(text(&five, Components::First), "18446744073709551616:3:4 0.5 -1.0 1e-30 0.1 … (5 numbers)");
        assert_eq!(text(&five, Components::All), "18446744073709551616:3:4 0.5 -1.0 1e-30 0.1 7.0");
        assert_eq!(text(&posting(&[1.0]), Components::First), "18446744073709551616:3:4 1.0");
    }

    #[test]
    fn a_posting_is_an_object_for_a_program() {
        let vector = [0.5, -0.0, f32::MAX, f32::MIN_POSITIVE, 0.1];
        let line = object(&posting(&vector), true);
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let numbers = read["vector"].as_array().expect("numbers").iter().filter_map(|x| x.as_f64());
        assert_eq!(numbers.map(|x| x as f32).collect::<Vec<_>>(), vector);
        assert!(line.starts_with(r#"{"document_id":18446744073709551616,"start":3,"length":4,"vector":["#), "{line}");
        assert_eq!(object(&posting(&[1.0]), false), r#"{"document_id":18446744073709551616,"start":3,"length":4}"#);
    }
}
