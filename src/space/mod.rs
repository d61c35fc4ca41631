//! Space management of the data file: which pages are in use, and when a retired allocation is free again.

mod map;
mod reclaim;

pub use map::SpaceMap;
pub use reclaim::{Reclaimer, RootPin, Shared, Use};
