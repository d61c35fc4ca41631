//! Reading postings back: by document, by key, in storage order, and by pages of keys, against a model.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    DocumentId, IndexSnapshot, Metric, OpenOptions, Posting, PostingKey, Shardex, ShardexConfig, ShardexError,
};
use tempfile::TempDir;

use crate::support::{block_on, vector};

const DIMENSION: usize = 12;

type Model = BTreeMap<(u128, u32, u32), Vec<f32>>;

fn config(dir: &TempDir, metric: Metric) -> ShardexConfig {
    ShardexConfig::new(dir.path().join("index"))
        .vector_size(DIMENSION)
        .metric(metric)
        .shard_size(16)
        .wal_segment_size(16 << 10)
        .options(OpenOptions::default().flush_on_close(false))
}

fn key(posting: &Posting) -> (u128, u32, u32) {
    (posting.document_id.0, posting.start, posting.length)
}

/// Compares a posting with the one that was added: equal bits, under cosine equal up to rounding.
#[track_caller]
fn same(metric: Metric, posting: &Posting, given: &[f32]) {
    if metric == Metric::Cosine {
        let close = posting.vector.iter().zip(given).all(|(x, y)| (x - y).abs() <= 1e-6 * (1.0 + y.abs()));
        assert!(close, "{:?} {given:?}", posting.vector);
    } else {
        assert_eq!(posting.vector, given);
    }
}

/// Compares all that a snapshot returns with the model.
#[track_caller]
fn agrees(snapshot: &IndexSnapshot, model: &Model, metric: Metric, rng: &mut ChaCha8Rng) {
    let scanned: Vec<Posting> = snapshot.scan().collect::<Result<_, _>>().expect("readable");
    assert_eq!(scanned.len(), model.len());
    assert_eq!(scanned.iter().map(key).collect::<BTreeSet<_>>(), model.keys().copied().collect());
    scanned.iter().for_each(|posting| same(metric, posting, &model[&key(posting)]));
    // A scan continues at its position, on a clone too.
    let some = rng.random_range(0..=scanned.len());
    let mut scan = snapshot.scan();
    assert_eq!(scan.by_ref().take(some).count(), some);
    let rest: Vec<Posting> = snapshot.clone().scan_from(scan.position()).collect::<Result<_, _>>().expect("readable");
    assert_eq!(rest, scanned[some..]);
    // Pages of every size list the keys in their order.
    for most in [1, 7, 1_000] {
        let (mut after, mut paged) = (None, Vec::new());
        loop {
            let page = snapshot.scan_by_key(after, most).expect("readable");
            let Some(last) = page.last() else { break };
            after = Some(last.key());
            paged.extend(page);
        }
        assert_eq!(paged.iter().map(key).collect::<Vec<_>>(), model.keys().copied().collect::<Vec<_>>());
        paged.iter().for_each(|posting| same(metric, posting, &model[&key(posting)]));
        let (mut after, mut listed) = (None, Vec::new());
        while let page = snapshot.documents(after, most).expect("readable")
            && let Some(&last) = page.last()
        {
            after = Some(last);
            listed.extend(page);
        }
        let documents: BTreeSet<u128> = model.keys().map(|&(document, ..)| document).collect();
        assert_eq!(listed.iter().map(|id| id.0).collect::<Vec<_>>(), documents.into_iter().collect::<Vec<_>>());
    }
    assert!(snapshot.scan_by_key(None, 0).expect("readable").is_empty());
    assert!(snapshot.documents(None, 0).expect("readable").is_empty());
    for id in (0..40).chain([u128::MAX]) {
        let document = DocumentId(id);
        let expected: Vec<_> = model.range((id, 0, 0)..=(id, u32::MAX, u32::MAX)).collect();
        let found = snapshot.get(document).expect("readable");
        assert_eq!(
            found.iter().map(key).collect::<Vec<_>>(),
            expected.iter().map(|(key, _)| **key).collect::<Vec<_>>()
        );
        found.iter().zip(&expected).for_each(|(posting, (_, given))| same(metric, posting, given));
        assert_eq!(snapshot.count(document).expect("readable"), expected.len() as u64);
        assert_eq!(snapshot.contains(document).expect("readable"), !expected.is_empty());
        for start in 0..4 {
            let one = snapshot.get_posting(PostingKey::new(document, start, 2)).expect("readable");
            assert_eq!(one.is_some(), model.contains_key(&(id, start, 2)));
            one.iter().for_each(|posting| same(metric, posting, &model[&(id, start, 2)]));
        }
    }
}

/// Random adds, replacements and removals: whatever was accepted is read back, from the present and from older
/// snapshots, before and after flushes, and after opens.
#[test]
fn what_was_accepted_is_read_back() {
    for metric in [Metric::L2, Metric::Dot, Metric::Cosine] {
        let dir = TempDir::new().expect("a temporary directory");
        block_on(async {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let mut index = Shardex::create(config(&dir, metric)).await?;
            let (mut model, mut old) = (Model::new(), None);
            for round in 0..24 {
                let postings: Vec<Posting> = (0..rng.random_range(1..60))
                    .map(|_| Posting {
                        document_id: DocumentId(rng.random_range(0..30)),
                        start: rng.random_range(0..4),
                        length: rng.random_range(1..3),
                        vector: vector(rng.next_u64(), DIMENSION),
                        tags: rng.random_range(0..4),
                    })
                    .collect();
                model.extend(postings.iter().map(|posting| (key(posting), posting.vector.clone())));
                index.add_postings(postings).await?;
                if round % 3 == 2 {
                    let gone = DocumentId(rng.random_range(0..30));
                    index.remove_documents(vec![gone]).await?;
                    model.retain(|&(document, ..), _| document != gone.0);
                }
                agrees(&index.snapshot().await?, &model, metric, &mut rng);
                match round % 8 {
                    3 => {
                        index.flush().await?;
                    }
                    5 => old = Some((index.snapshot().await?, model.clone())),
                    7 => {
                        let (snapshot, then) = old.take().expect("taken before");
                        agrees(&snapshot, &then, metric, &mut rng);
                        drop(snapshot);
                        index.close().await?;
                        index = Shardex::open(dir.path().join("index")).await?;
                        agrees(&index.snapshot().await?, &model, metric, &mut rng);
                    }
                    _ => {}
                }
            }
            let (&(document, start, length), given) = model.iter().next().expect("not empty");
            let document = DocumentId(document);
            same(metric, &index.get_posting(PostingKey::new(document, start, length)).await?.expect("stored"), given);
            assert!(index.contains(document).await?);
            assert_eq!(index.count(document).await?, index.get(document).await?.len() as u64);
            index.close().await?;
            assert!(matches!(index.get(document).await, Err(ShardexError::Closed)));
            Ok::<_, ShardexError>(())
        })
        .expect("the calls succeed");
    }
}

/// Damage is reported where it lies. A scan continues behind it, and nothing damaged is returned.
#[test]
fn damage_is_no_posting_and_ends_no_scan() {
    let dir = TempDir::new().expect("a temporary directory");
    let config = config(&dir, Metric::L2);
    let count = 200u32;
    let postings = || {
        (0..count).map(|n| Posting {
            document_id: DocumentId(n.into()),
            start: 0,
            length: 1,
            vector: vector(n.into(), DIMENSION),
            tags: 0,
        })
    };
    block_on(async {
        let index = Shardex::create(config.clone()).await?;
        index.add_postings(postings().collect()).await?;
        index.flush().await?;
        index.close().await
    })
    .expect("made");
    let path = config.directory_path.join("data");
    let mut bytes = std::fs::read(&path).expect("readable");
    let victim: Vec<u8> = vector(77, DIMENSION).iter().flat_map(|x| x.to_le_bytes()).collect();
    let at = bytes.windows(victim.len()).position(|window| window == victim).expect("the vector is there");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    block_on(async {
        let index = Shardex::open(&config.directory_path).await?;
        let snapshot = index.snapshot().await?;
        let (mut found, mut errors) = (Vec::new(), 0);
        for posting in snapshot.scan() {
            match posting {
                Ok(posting) => found.push(posting),
                Err(ShardexError::Corruption { file, .. }) => {
                    assert_eq!(file, path);
                    errors += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(errors, 1, "one extent is damaged");
        assert!(found.len() < count as usize && found.len() >= count as usize - 16, "{}", found.len());
        for posting in &found {
            assert_eq!(posting.vector, vector(posting.document_id.0 as u64, DIMENSION));
        }
        assert!(matches!(snapshot.get(DocumentId(77)), Err(ShardexError::Corruption { .. })));
        assert!(matches!(snapshot.scan_by_key(None, 10), Err(ShardexError::Corruption { .. })));
        assert!(matches!(snapshot.documents(None, 10), Err(ShardexError::Corruption { .. })));
        Ok::<_, ShardexError>(())
    })
    .expect("the calls succeed");
}
