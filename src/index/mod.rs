//! The in-memory index: which shards there are, which are near, and what a search finds in them.
//!
//! Invariants:
//! 1. A snapshot never changes; the writer publishes a new one.
//! 2. Publishing copies what changed: chunks of shards are shared between snapshots.
//! 3. A search reads only what its snapshot names.

mod calibrate;
mod fresh;
mod front;
mod hits;
mod met;
mod needs;
mod outcome;
mod pivots;
mod probe;
mod quantile;
mod questions;
mod routing;
mod scan;
mod search;
mod snapshot;
mod topk;
mod unlike;

pub use calibrate::{Tried, calibrate};
pub use fresh::{Fresh, FreshCentroid, FreshCodes};
pub use routing::RoutingTable;
pub use hits::{Hit, Hits};
pub use search::{Breadth, in_order_of_place, search, search_on, warm};
pub use snapshot::{CHUNK_SHARDS, Chunk, Coded, Snapshot};
pub use topk::{Candidate, TopK};
