//! Integration tests, in one binary.

mod api;
mod async_faults;
mod background;
mod batches;
mod blocking;
mod cells;
#[cfg(feature = "cli")]
mod cli;
mod concurrent;
mod conformance;
mod cost;
mod deadly;
mod encodings;
mod exactly_once;
mod examples;
mod explore;
mod faults;
mod filters;
mod formats;
mod fuzz;
mod house;
mod kill;
mod layering;
mod model;
mod monitor;
mod observe;
mod reading;
mod recall;
mod reclaim;
mod regressions;
mod routing;
mod schedules;
mod searches;
mod shards;
mod support;
mod traces;
