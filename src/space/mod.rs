//! Space in the data file: which pages are in use, and when those of a place may be used again.

mod map;
mod reclaim;

pub use map::SpaceMap;
pub use reclaim::{Reclaimer, Shared, Use};
