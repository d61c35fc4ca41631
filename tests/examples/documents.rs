//! Documents of several postings: adding, replacing a part, removing a document.
//!
//! A posting is a part of a document (`start`, `length`) with a vector. Its key is (document id, start, length). Adding a posting
//! with a stored key replaces the stored one.
//!
//! `cargo run --example documents`

use shardex::{DocumentId, Metric, Posting, SearchOptions, Shardex, ShardexConfig};

/// A stand-in for an embedding model.
fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; 26];
    for letter in text.bytes().filter(u8::is_ascii_lowercase) {
        vector[usize::from(letter - b'a')] += 1.0;
    }
    vector
}

/// The postings of a document, one per sentence.
fn postings(document_id: DocumentId, text: &str) -> Vec<Posting> {
    let mut start = 0;
    let mut postings = Vec::new();
    for sentence in text.split_inclusive('.') {
        let length = sentence.len() as u32;
        postings.push(Posting { document_id, start, length, vector: embed(sentence), tags: 0 });
        start += length;
    }
    postings
}

/// Runs the example.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let config = ShardexConfig::new(temporary.path().join("index")).vector_size(26).metric(Metric::Cosine);
    let index = Shardex::create(config).await?;

    // All postings of a batch are added, or none.
    let text = "the quick brown fox jumps. over the lazy dog. and runs away.";
    index.add_postings(postings(DocumentId(1), text)).await?;
    index.add_postings(postings(DocumentId(2), "pack my box with five dozen jugs.")).await?;

    // The nearest part tells where in the document it is.
    let nearest = index.search(&embed("a lazy dog"), 1, None).await?.remove(0);
    let part = nearest.start as usize..(nearest.start + nearest.length) as usize;
    println!("document {}: {:?}", nearest.document_id, &text[part.clone()]);
    assert_eq!(&text[part], " over the lazy dog.");

    // A part with the same key replaces the stored one.
    let (document_id, start, length) = (nearest.document_id, nearest.start, nearest.length);
    let vector = embed("a sphinx of black quartz");
    index.add_postings(vec![Posting { document_id, start, length, vector, tags: 0 }]).await?;
    assert_eq!(index.stats().await?.total_postings, 4);

    // Removing a document removes all its postings.
    assert_eq!(index.remove_documents(vec![DocumentId(1)]).await?, 3);
    let answer = index.search_with(&embed("a lazy dog"), &SearchOptions::new(10).exact()).await?;
    assert!(answer.results.iter().all(|result| result.document_id == DocumentId(2)));

    index.close().await?;
    Ok(())
}
