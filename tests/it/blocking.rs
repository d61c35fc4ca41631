//! The blocking API: the same index as the async one, from threads without a runtime.

use std::{sync::Arc, thread};

use shardex::{
    CheckLevel, DocumentId, Durability, OpenOptions, Posting, SearchOptions, Shardex as AsyncShardex, ShardexConfig,
    ShardexError, blocking::Shardex,
};
use tempfile::TempDir;

fn posting(n: u64) -> Posting {
    let vector = vec![n as f32, 1.0, 0.5];
    Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector, tags: 0 }
}

#[test]
fn a_program_without_a_runtime_can_do_everything() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("index");
    let index = Shardex::create(ShardexConfig::new(&path).vector_size(3)).expect("created");
    index.add_postings((0..100).map(posting).collect()).expect("added");
    assert_eq!(index.remove_documents(vec![DocumentId(7)]).expect("removed"), 1);
    assert_eq!(index.remove_document_range(DocumentId(10)..=DocumentId(19)).expect("removed"), 10);
    index.commit().expect("committed");
    let options = SearchOptions::new(5).exact();
    let found = index.search_with(&[50.0, 1.0, 0.5], &options).expect("found").results;
    assert_eq!(index.search(&[50.0, 1.0, 0.5], 5, None).expect("found").len(), 5);
    assert_eq!(index.search_in_place(&[50.0, 1.0, 0.5], &options).expect("found").len(), 5);
    let many = index.search_many(&[[50.0, 1.0, 0.5], [3.0, 1.0, 0.5]], &options).expect("found");
    assert_eq!(many[0].results, found);
    assert_eq!(index.search_many_in_place(&[[50.0, 1.0, 0.5]], &options).expect("found").len(), 1);
    assert_eq!(index.snapshot().expect("a snapshot").len(), 89);
    assert!(index.flush().expect("flushed").barriers > 0);
    index.optimize().expect("optimised");
    assert!(index.check(CheckLevel::Full).expect("checked").is_clean());
    index.close().expect("closed");
    assert!(matches!(index.commit(), Err(ShardexError::Closed)));

    let again = Shardex::open(&path).expect("opened");
    assert_eq!(again.stats().expect("statistics").total_postings, 89);
    again.close().expect("closed");
    let locked = Shardex::open_with(&path, OpenOptions::default()).expect("opened");
    assert!(matches!(Shardex::open(&path), Err(ShardexError::Locked { .. })));
    drop(locked);
    assert!(matches!(Shardex::open(dir.path().join("none")), Err(ShardexError::NotFound { .. })));
}

#[test]
fn threads_and_tasks_share_one_index() {
    let dir = TempDir::new().expect("a temporary directory");
    let options = OpenOptions::default().durability(Durability::Immediate);
    let config = ShardexConfig::new(dir.path().join("index")).vector_size(3).options(options);
    let index = Shardex::create(config).expect("created");
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let index = index.clone();
            thread::spawn(move || (0..20).try_for_each(|n| index.add_postings(vec![posting(writer * 100 + n)])))
        })
        .collect();
    for writer in writers {
        writer.join().expect("no panic").expect("added");
    }
    let stats = index.stats().expect("statistics");
    assert_eq!((stats.total_postings, stats.uncommitted_operations), (160, 0));
    let tasks: AsyncShardex = index.into();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tasks = Arc::new(tasks);
    assert_eq!(runtime.block_on(tasks.stats()).expect("statistics").total_postings, 160);
    runtime.block_on(tasks.close()).expect("closed");
}
