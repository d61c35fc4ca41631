//! Adds a posting, makes it durable, finds it again: `cargo run --example quickstart DIRECTORY`.

use shardex::{DocumentId, Posting, Shardex, ShardexConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: quickstart DIRECTORY")?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
        let index = Shardex::create(ShardexConfig::new(path).vector_size(3)).await?;
        let vector = vec![0.1, 0.2, 0.3];
        index.add_postings(vec![Posting { document_id: DocumentId(7), start: 0, length: 42, vector }]).await?;
        index.commit().await?;
        for hit in index.search(&[0.1, 0.2, 0.25], 10, None).await? {
            println!("{} {:.3}", hit.document_id, hit.similarity_score);
        }
        println!("{}", index.flush().await?);
        index.close().await?;
        Ok(())
    })
}
