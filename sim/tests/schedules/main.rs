//! The async layer under a simulated scheduler: seeds choose who runs when, who gives up, what fails and what dies.
//!
//! Compiled to nothing without `--cfg madsim`; `cargo sim` sets it. For every seed an index lives several lives on one
//! simulated disk. What each caller saw is written down and compared with what the promises allow, and every seed is run
//! twice, to the same trace. `SHARDEX_SIM_SEEDS` sets how many seeds, `SHARDEX_SIM_SEED` the first one.

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

/// Every history that the seeds make is one that the promises allow, and everything that should happen did.
#[cfg(madsim)]
#[test]
fn histories_are_what_the_promises_allow() {
    campaign::run();
}
