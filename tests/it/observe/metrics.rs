//! Metrics of the crate `metrics`: the documented names, with the right values.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
};
use shardex::Durability;

use super::{Home, documented, manual};
use crate::support::{DIMENSION, documents, vector};

/// Values of a histogram.
#[derive(Default)]
struct Values(Mutex<Vec<f64>>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        self.0.lock().expect("no panic").push(value);
    }
}

/// Recorder that keeps everything, by name and the labels but `index`.
#[derive(Default)]
struct Kept {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    histograms: Mutex<BTreeMap<String, Arc<Values>>>,
}

/// Returns the name of a metric with its labels. Each has the label `index`.
fn name_of(key: &Key) -> String {
    let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
    assert!(labels.iter().any(|(name, value)| *name == "index" && value.ends_with("/index")), "{key:?}");
    let others = labels.iter().filter(|(name, _)| *name != "index").map(|(name, value)| format!("{{{name}={value}}}"));
    [key.name().to_owned()].into_iter().chain(others).collect()
}

impl Kept {
    fn counter(&self, name: &str) -> u64 {
        self.counters.lock().expect("no panic")[name].load(Ordering::Relaxed)
    }

    fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.gauges.lock().expect("no panic")[name].load(Ordering::Relaxed))
    }

    fn histogram(&self, name: &str) -> Vec<f64> {
        self.histograms.lock().expect("no panic")[name].0.lock().expect("no panic").clone()
    }

    /// Returns all names without their labels.
    fn names(&self) -> BTreeSet<String> {
        let bare = |name: &String| name.split('{').next().unwrap_or_default().to_owned();
        let (counters, gauges) = (self.counters.lock().expect("no panic"), self.gauges.lock().expect("no panic"));
        let histograms = self.histograms.lock().expect("no panic");
        counters.keys().chain(gauges.keys()).chain(histograms.keys()).map(bare).collect()
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::clone(self.counters.lock().expect("no panic").entry(name_of(key)).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(self.gauges.lock().expect("no panic").entry(name_of(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(self.histograms.lock().expect("no panic").entry(name_of(key)).or_default()))
    }
}

#[test]
fn the_documented_metrics_have_the_right_values() {
    let (home, kept) = (Home::new(), Kept::default());
    let options = manual().slow_search(Some(std::time::Duration::ZERO));
    let index = with_local_recorder(&kept, || home.create(options));
    index.add_postings(documents(0..60)).expect("accepted");
    index.add_postings(documents(50..70)).expect("accepted");
    index.remove_documents(vec![1u32.into(), 2u32.into()]).expect("accepted");
    index.remove_document_range(3u32.into()..=5u32.into()).expect("accepted");
    (0..3).for_each(|n| drop(index.search(&vector(n, DIMENSION), 2, None).expect("found")));
    index.commit().expect("durable");
    let flush = index.flush().expect("durable");
    index.optimize().expect("built or not");
    let stats = index.stats().expect("statistics");

    assert_eq!(kept.names(), documented("shardex_").into_iter().map(str::to_owned).collect());
    let counters = ["shardex_postings_added_total", "shardex_postings_removed_total", "shardex_slow_searches_total"];
    assert_eq!(counters.map(|name| kept.counter(name)), [70, 5, 3]);
    let works = ["commit", "flush", "cells"];
    assert_eq!(works.map(|work| kept.counter(&format!("shardex_background_errors_total{{work={work}}}"))), [0; 3]);
    let gauges = ["shardex_postings", "shardex_shards", "shardex_undurable_bytes", "shardex_disk_bytes"];
    let expected = [65.0, stats.total_shards as f64, 0.0, stats.disk_bytes as f64];
    assert_eq!(gauges.map(|name| kept.gauge(name)), expected);
    assert_eq!(kept.gauge("shardex_wal_bytes"), stats.wal_bytes as f64);
    let histograms = ["open", "search", "write", "commit", "flush", "cell_build"];
    let counts = histograms.map(|name| kept.histogram(&format!("shardex_{name}_seconds")).len());
    assert_eq!(counts, [1, 3, 4, 1, 1, 1]);
    // Times are in seconds.
    assert_eq!(kept.histogram("shardex_flush_seconds"), [flush.total_duration.as_secs_f64()]);
    for (stage, time) in flush.stages() {
        let name = format!("shardex_flush_stage_seconds{{stage={stage}}}");
        assert_eq!(kept.histogram(&name), [time.as_secs_f64()], "{name}");
    }
    let longest = kept.histogram("shardex_search_seconds").into_iter().fold(0.0, f64::max);
    assert_eq!(longest, stats.search_latency.max.as_secs_f64());
    index.close().expect("closed");
}

#[test]
fn without_a_recorder_nothing_happens() {
    let home = Home::new();
    let index = home.create(manual().durability(Durability::Immediate));
    index.add_postings(documents(0..5)).expect("accepted");
    index.search(&vector(1, DIMENSION), 2, None).expect("found");
    assert_eq!(index.stats().expect("statistics").search_latency.count, 1);
}
