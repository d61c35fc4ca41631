//! Searches from many tasks on one snapshot, while the index changes.
//!
//! `cargo run --example snapshots`

use std::sync::Arc;

use shardex::{DocumentId, Posting, SearchOptions, Shardex, ShardexConfig};

fn posting(n: u64) -> Posting {
    let vector = vec![(n as f32 * 0.1).cos(), (n as f32 * 0.1).sin(), 0.5];
    Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector, tags: 0 }
}

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let index = Shardex::create(ShardexConfig::new(temporary.path().join("index")).vector_size(3)).await?;
    index.add_postings((0..500).map(posting).collect()).await?;

    // Taking a snapshot copies nothing and waits for nothing.
    let snapshot = Arc::new(index.snapshot().await?);
    let expected = snapshot.search(&[1.0, 0.0, 0.5], 10, None)?;

    // Readers take no lock. All of them see the same 500 postings.
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (snapshot, expected) = (Arc::clone(&snapshot), expected.clone());
            tokio::task::spawn_blocking(move || {
                for _ in 0..100 {
                    let found = snapshot.search(&[1.0, 0.0, 0.5], 10, None).expect("intact bytes");
                    assert_eq!(found, expected);
                }
            })
        })
        .collect();

    // The index changes meanwhile.
    for n in 500..1_000 {
        index.add_postings(vec![posting(n)]).await?;
    }
    index.remove_documents((0..250).map(|n| DocumentId(u128::from(n as u64))).collect()).await?;
    index.flush().await?;
    for reader in readers {
        reader.await?;
    }
    assert_eq!((snapshot.len(), index.snapshot().await?.len()), (500, 750));

    // Many queries at once use all cores.
    let queries: Vec<Vec<f32>> = (0..100).map(|n| posting(n * 7).vector).collect();
    let answers = index.search_many(&queries, &SearchOptions::new(5)).await?;
    println!("{} answers, the first from document {}", answers.len(), answers[0].results[0].document_id);

    // A snapshot keeps the index locked until it is dropped.
    index.close().await?;
    assert_eq!(snapshot.search(&[1.0, 0.0, 0.5], 10, None)?, expected);
    Ok(())
}
