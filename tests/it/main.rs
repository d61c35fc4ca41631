//! The integration tests, in one binary.

mod api;
mod async_faults;
mod background;
mod cells;
#[cfg(feature = "cli")]
mod cli;
mod concurrent;
mod conformance;
mod cost;
mod deadly;
mod explore;
mod faults;
mod formats;
mod fuzz;
mod kill;
mod layering;
mod model;
mod monitor;
mod recall;
mod reclaim;
mod routing;
mod schedules;
mod shards;
mod support;
mod traces;
