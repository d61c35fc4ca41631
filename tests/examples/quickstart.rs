//! Quick start: adds a posting, makes it durable, and finds it again.
//!
//! `cargo run --example quickstart [DIRECTORY]`

use shardex::{DocumentId, Posting, PostingKey, Shardex, ShardexConfig};

/// Runs the example.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let path = std::env::args().nth(1).map_or(temporary.path().join("index"), Into::into);

    // Creates the index, or opens the existing one.
    let index = Shardex::create(ShardexConfig::new(path).vector_size(3)).await?;
    let vector = vec![0.1, 0.2, 0.3];
    index.add_postings(vec![Posting::new(PostingKey::new(7u32, 0, 42), vector)]).await?;
    index.commit().await?; // durable from here on

    let hits = index.search(&[0.1, 0.2, 0.25], 10, None).await?;
    for hit in &hits {
        println!("document {} with similarity {:.3}", hit.document_id, hit.similarity_score);
    }
    assert_eq!(hits[0].document_id, DocumentId(7));

    println!("{}", index.flush().await?); // durable in the shards; prints the cost of each stage
    index.close().await?;
    Ok(())
}
