//! Tests of the async layer under a simulated scheduler. A seed decides the order of tasks, the dropped calls, the
//! faults and the crashes.
//!
//! Without `--cfg madsim`, which `cargo sim` sets, this compiles to nothing. For every seed an index lives several
//! lives on one simulated disk. A life is the time from one open to the next. The observations of each caller are
//! recorded and compared with the promises. Every seed runs twice and must leave the same trace. `SHARDEX_SIM_SEEDS`
//! sets the number of seeds, `SHARDEX_SIM_SEED` the first one.

#[cfg(madsim)]
mod actor;
#[cfg(madsim)]
mod batch;
#[cfg(madsim)]
mod book;
#[cfg(madsim)]
mod campaign;
#[cfg(madsim)]
mod desk;
#[cfg(madsim)]
mod history;
#[cfg(madsim)]
mod life;
#[cfg(madsim)]
mod plan;
#[cfg(madsim)]
mod tally;
#[cfg(madsim)]
mod verdict;

/// Every history that the seeds make is allowed by the promises, and every expected event occurs in some seed.
#[cfg(madsim)]
#[test]
fn histories_are_what_the_promises_allow() {
    campaign::run();
}
