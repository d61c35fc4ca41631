//! The in-memory index: the snapshot of all shards, the routing of vectors to shards, and the search.
//!
//! Invariants:
//! 1. A snapshot never changes. The writer publishes a new one.
//! 2. Publishing copies only the changed chunks of shards. Snapshots share the others.
//! 3. A search reads only the shards and cells of its snapshot.

mod calibration;
mod candidate;
mod cell_queue;
mod cell_search;
mod distances;
mod hits;
mod joined_hits;
mod lookup;
mod mask;
mod nearest_documents;
mod out_of_distribution;
mod passing_rows;
mod pivots;
mod quantile;
mod rerank;
mod routing;
mod scan;
mod search;
mod search_limits;
mod search_scope;
mod snapshot;
mod subspace;
mod topk;
mod unindexed;
mod visited;

pub use calibration::{CellsUnderTest, calibrate};
pub use candidate::Candidate;
pub use hits::{Hit, Hits, given};
pub use lookup::{ScanPosition, StoredSlot, documents, find, page_by_key, posting_at, scan_next};
pub use mask::FilterMask;
pub use routing::RoutingTable;
pub use search::{Search, in_group_order, search, warm};
pub use search_limits::ResultScope;
pub use search_scope::SearchScope;
pub use snapshot::{CHUNK_SHARDS, Chunk, NewCodes, Snapshot, SnapshotSource};
pub use topk::TopK;
pub use unindexed::{UnindexedCentroid, UnindexedCodes, UnindexedShard};
