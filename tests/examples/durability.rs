//! The choices of durability, and what each costs.
//!
//! `cargo run --release --example durability`

use std::time::Instant;

use shardex::{DocumentId, Durability, OpenOptions, Posting, Shardex, ShardexConfig};

const WRITES: u64 = 50;

fn posting(n: u64) -> Posting {
    let vector = (0..8).map(|i| ((n * 31 + i * 7) % 17) as f32 + 1.0).collect();
    Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector, tags: 0 }
}

/// Runs the example.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    for (name, durability) in [
        // Each write returns when it is durable. Concurrent writes share one sync.
        ("immediate", Durability::Immediate),
        // A write returns when it is accepted. A timer commits every `batch_write_interval_ms`.
        ("interval", Durability::Interval),
        // Only `commit`, `close` and flushes, also automatic ones, make writes durable.
        ("manual", Durability::Manual),
    ] {
        let options = OpenOptions::default().durability(durability).batch_write_interval_ms(20);
        let config = ShardexConfig::new(temporary.path().join(name)).vector_size(8).options(options);
        let index = Shardex::create(config).await?;
        let began = Instant::now();
        for n in 0..WRITES {
            index.add_postings(vec![posting(n)]).await?;
        }
        let per_write = began.elapsed() / WRITES as u32;
        let waiting = index.stats().await?.uncommitted_operations;
        println!("{name:<10} {per_write:>10.1?} per write, {waiting} not yet durable");
        assert!(durability != Durability::Immediate || waiting == 0);

        // Whatever the setting: after a commit everything accepted is durable.
        index.commit().await?;
        assert_eq!(index.stats().await?.uncommitted_operations, 0);
        index.close().await?;
    }
    Ok(())
}
