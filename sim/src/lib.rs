//! Crash simulator for Shardex: a simulated storage, faults, crashes, and the checks of the state that they leave.
//!
//! Storages:
//! * [`storage`]: a simulated directory in memory. For every sector, length and directory entry it keeps all states
//!   that a power cut may leave. A crash picks one of them. It also simulates full disks, failed syncs and rot, and
//!   records a trace.
//! * [`hook`]: a wrapper around a real or simulated storage. A test uses it to fail or block any operation by name.
//! * [`conformance`](mod@conformance): the contract of [`shardex::storage`] as a test suite that every backend runs.
//!
//! Runs:
//! * [`workload`]: named workloads, and workloads generated from a seed.
//! * [`case`]: a workload with faults and crashes, as text. [`shrink`] makes a failing case smaller.
//! * [`explorer`]: recovery from the states that a crash at each operation of a workload may leave.
//! * [`exactly_once`](mod@exactly_once): an ingester on the async API under power cuts, run by the [`scheduler`].
//! * [`mutation`]: runs of seeds, cases and explorations against each [mutant] of the engine and of the simulator.
//! * [`backups`]: backups, and restores of them, under crashes at each of their operations.
//! * [`recall`]: searches on data that is hard for codes.
//! * [`fuzz`](mod@fuzz): the fuzz targets as plain functions.
//!
//! Checks:
//! * [`model`]: the content that an index must have.
//! * [`fsck`]: a checker of the files with its own parsers. [`oracle`] compares its result with model and engine.
//! * [`monitor`]: rules that each storage operation must keep. [`watch`] connects it to a simulated disk.
//!
//! ```
//! use rand::{SeedableRng, rngs::ChaCha8Rng};
//! use shardex::storage::{Purpose, Storage, StorageFile};
//! use shardex_sim::{CrashKind, SimStorage};
//!
//! let why = Purpose("example");
//! let mut storage = SimStorage::new(512, 64, 1);
//! storage.make_dir(why)?;
//! storage.sync_parent(why)?;
//! let file = storage.create("a", why)?;
//! file.allocate(0, 256, why)?;
//! file.sync_all(why)?;
//! storage.sync_dir(why)?;
//! file.write_at(0, b"lost, or not", why)?;
//!
//! storage.crash(CrashKind::Power, &mut ChaCha8Rng::seed_from_u64(1));
//! assert_eq!(storage.open("a")?.len()?, 256);
//! # Ok::<(), shardex::error::ShardexError>(())
//! ```

pub mod backups;
pub mod brute_force;
pub mod case;
pub mod conformance;
pub mod erased;
pub mod exactly_once;
pub mod explorer;
pub mod filters;
pub mod flips;
pub mod fsck;
pub mod fuzz;
mod hashed;
pub mod hook;
pub mod model;
pub mod monitor;
pub mod mutant;
pub mod mutation;
pub mod oracle;
pub mod pool;
pub mod readers;
pub mod recall;
pub mod runtime;
pub mod scheduler;
pub mod shrink;
pub mod state;
pub mod storage;
pub mod watch;
pub mod workload;

pub use hook::{HookAction, HookStorage};
#[cfg(madsim)]
pub use runtime::MadsimRuntime;
pub use storage::{
    Choice, ChoiceLocation, Counters, CrashKind, Fault, Image, Op, OpInfo, SimFile, SimLent, SimLock, SimStorage, Stop,
    TraceEntry,
};
