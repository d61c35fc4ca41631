//! Spans and events of the crate `tracing`: the documented names and fields.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use shardex::{Durability, OpenOptions, env::Env, storage::MmapStorage};
use shardex_sim::{HookAction, HookStorage, OpInfo, storage::Op};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use super::{Home, documented, manual};
use crate::support::{DIMENSION, block_on, documents, vector};

/// Span or event with its fields as text.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    parent: Option<u64>,
    fields: BTreeMap<&'static str, String>,
    closed: bool,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

/// Subscriber of this process. Threads of an index see no other, so all tests share it and look for their own index.
#[derive(Default)]
struct Everything {
    next: AtomicU64,
    spans: Mutex<BTreeMap<u64, Seen>>,
    events: Mutex<Vec<Seen>>,
}

struct Handle(Arc<Everything>);

impl Subscriber for Handle {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "shardex"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let parent = attributes.parent().map(Id::into_u64);
        let mut seen = Seen { name: attributes.metadata().name(), parent, ..Seen::default() };
        attributes.record(&mut seen);
        self.0.spans.lock().expect("no panic").insert(id, seen);
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut spans = self.0.spans.lock().expect("no panic");
        values.record(spans.get_mut(&id.into_u64()).expect("a span"));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = Seen { name: event.metadata().name(), ..Seen::default() };
        event.record(&mut seen);
        self.0.events.lock().expect("no panic").push(seen);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn try_close(&self, id: Id) -> bool {
        if let Some(seen) = self.0.spans.lock().expect("no panic").get_mut(&id.into_u64()) {
            seen.closed = true;
        }
        true
    }
}

fn everything() -> Arc<Everything> {
    static EVERYTHING: OnceLock<Arc<Everything>> = OnceLock::new();
    let all = EVERYTHING.get_or_init(|| {
        let all = Arc::<Everything>::default();
        tracing::subscriber::set_global_default(Handle(Arc::clone(&all))).expect("the only subscriber");
        all
    });
    Arc::clone(all)
}

impl Everything {
    /// Returns the spans and events of one index, and the stages of its flushes.
    fn of(&self, home: &Home) -> (Vec<Seen>, Vec<Seen>) {
        let index = home.path().display().to_string();
        let is_of = |seen: &Seen| seen.fields.get("index") == Some(&index);
        let spans = self.spans.lock().expect("no panic");
        let mine = |seen: &Seen| is_of(seen) || seen.parent.and_then(|id| spans.get(&id)).is_some_and(is_of);
        let events = self.events.lock().expect("no panic");
        (
            spans.values().filter(|seen| mine(seen)).cloned().collect(),
            events.iter().filter(|seen| is_of(seen)).cloned().collect(),
        )
    }
}

#[test]
fn the_documented_spans_and_events_appear() {
    let (all, home) = (everything(), Home::new());
    // Every commit of the timer fails once the disk is full.
    let full = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&full);
    let hook = HookStorage::new(MmapStorage::new(home.path()), move |info: &OpInfo| {
        match info.op == Op::Store && info.file == "wal" && switch.load(Ordering::Acquire) {
            true => HookAction::Fail(io::ErrorKind::StorageFull),
            false => HookAction::Proceed,
        }
    });
    let options = OpenOptions::default().batch_write_interval_ms(5).flush_interval_ms(0);
    let config = home.config(options.slow_search(Some(Duration::ZERO)));
    block_on(async {
        let index = shardex::Shardex::create_on(hook, config, Env::system()).await?;
        index.add_postings(documents(0..40)).await?;
        index.commit().await?;
        index.search(&vector(1, DIMENSION), 3, None).await?;
        index.optimize().await?;
        index.flush().await?;
        full.store(true, Ordering::Release);
        index.add_postings(documents(40..50)).await?;
        let limit = Instant::now() + Duration::from_secs(60);
        while index.stats().await?.background_error.is_none() {
            assert!(Instant::now() < limit, "no commit of the timer fails");
            tokio::task::yield_now().await;
        }
        full.store(false, Ordering::Release);
        index.close().await
    })
    .expect("the calls succeed");

    let (spans, events) = all.of(&home);
    let names = spans.iter().chain(&events).map(|seen| seen.name).collect();
    assert_eq!(documented("shardex."), names);
    assert!(spans.iter().all(|span| span.closed), "{spans:?}");
    let first = |name: &str| spans.iter().chain(&events).find(|seen| seen.name == name).expect("it was seen");
    assert_eq!(first("shardex.write").fields["operations"], "40");
    assert_eq!(first("shardex.flush").fields["automatic"], "false");
    assert_eq!(first("shardex.flush").fields["operations"], "40");
    assert_eq!(first("shardex.slow_search").fields["k"], "3");
    assert_eq!(first("shardex.background_error").fields["work"], "Commit");
    let stages: Vec<&str> = spans.iter().filter_map(|span| span.fields.get("stage").map(String::as_str)).collect();
    for stage in ["store", "B2: sync the data", "B3: sync the root", "continue"] {
        assert!(stages.contains(&stage), "{stage} of {stages:?}");
    }
    // A failure is in its span.
    let failed = |span: &&Seen| span.name == "shardex.commit" && span.fields.contains_key("error");
    assert!(spans.iter().any(|span| failed(&span)), "{spans:?}");
}

#[test]
fn only_slow_searches_are_reported() {
    let (all, home) = (everything(), Home::new());
    let index = home.create(manual().durability(Durability::Manual).slow_search(Some(Duration::from_secs(3_600))));
    index.add_postings(documents(0..5)).expect("accepted");
    index.search(&vector(1, DIMENSION), 3, None).expect("found");
    index.close().expect("closed");
    assert!(all.of(&home).1.is_empty());
}
