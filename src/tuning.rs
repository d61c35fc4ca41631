//! Tuning constants and inner bounds of the engine, with the measurements behind them.
//!
//! A constant that the format fixes is asserted beside the code that derives an offset from it.

use std::time::Duration;

/// Slots per extent, the unit of space of a shard. A smaller shard capacity reduces it to the next power of two.
pub const EXTENT_SLOTS: usize = 64;

/// Largest extent in bytes, unless a single slot is larger. It bounds the chunks of an index with large vectors: with 64
/// slots of 65,536 components, one posting took a chunk of 134 MB.
pub const EXTENT_BYTES: usize = 256 << 10;

/// A filter by a list of documents looks each of them up if there are fewer than one in this number times 64 postings.
/// Otherwise it reads the records of all postings. Chosen, not measured.
pub const LISTED_DOCUMENTS: usize = 8;

/// Persistence: a search with a filter scans at least this many times as many cells as it takes to the last one that gives
/// a result.
///
/// On 12,000 vectors in 40 clusters of 16 dimensions, with 27 filters, 14 index ids, two metrics, targets of 0.9, 0.95 and
/// 0.99, and 1, 10 and 100 results, 72 of 6,804 recalls were lower than asked without persistence, and none with it. It
/// computes 7 % more distances. On 100,000 sentence embeddings with 10 % that pass it is 1.65 times as fast as the rule
/// that it replaced, an impatience times the fourth root of the share that passes.
pub const FILTERED_PERSISTENCE: f32 = 1.5;

/// A search takes what passes a filter to lie apart from the query if more postings that do not pass seem as near as the
/// results than if those that pass were drawn at random, by this number of standard deviations. Of 1 result the number has a
/// standard deviation of its mean, of `k` results one of a `√k`th of it. Chosen: three deviations are seldom exceeded.
///
/// On 20,000 vectors in 50 clusters of 64 dimensions by dot product, where all clusters but the query's pass, the recall was
/// 0.90 to 0.95 at 0.99 without the count, and is 0.99 or more with it; between none and all of these searches, by the index,
/// compare everything in the end. A higher target recall for the second pass instead of
/// more persistence did as well, but computed 3.5 times as many distances on 100,000 sentence embeddings of which the half
/// nearest to one passes.
pub const FILTERED_APART: f32 = 3.0;

/// Persistence of a search with a filter whose results are far from the query, or apart: the first number divided by the share
/// that may be missed, limited to the range of the others.
///
/// On 16,000 vectors in 60 clusters of 64 dimensions, where filters let only other clusters pass than the query's, a
/// factor of 2 gave a recall of 0.87 to 0.94 at 0.95, and a factor of 4 the recall that was asked for.
pub const PERSISTENCE: (f32, f32, f32) = (0.2, 3.0, 8.0);

/// Largest size in bytes of the rounded copies that a filter keeps of the vectors that pass. Chosen: the copies of 41,000
/// sentence embeddings of 384 dimensions.
pub const PASSING_ROWS_BYTES: u64 = 16 << 20;

/// Number of searches for which the bounds may leave more than half of the distances to compute, before a filter's copies
/// are no longer used. Chosen: a few queries far from everything tell little.
pub const PASSING_ROWS_WIDE: u32 = 8;

/// Number of rounded copies that are compared in the time of one unit of a search's cost: 15 to 22 ns per copy of 384
/// components, for 1,000 to 10,000 copies, where a search by cells takes 80 ns per unit.
pub const ROWS_PER_DISTANCE: u64 = 5;

/// A filter keeps rounded copies after its searches have cost as much as this many comparisons of each posting that
/// passes. Chosen, not measured: about what it costs to make the copies, so that searches cost at most about twice as much as
/// if it had been known how often the filter is used.
pub const PASSING_ROWS_AFTER: u64 = 4;

/// Share of the postings that pass, one in this many, that may lie in shards changed since the copies were made. If there
/// are more, the copies are dropped. The search compares the vectors of such shards. Chosen, not measured.
pub const PASSING_ROWS_STALE: u64 = 8;

/// Cost of comparing a posting that passes a filter, in the unit of a search's cost, if many pass: 0.09 µs, where a search
/// by cells takes 0.08 µs per unit (10 % of 100,000 sentence embeddings).
pub const PASSING_COST: f64 = 1.2;

/// Largest block of payloads in pages. Chosen, not measured: a block is the unit in which space of payloads is moved and
/// freed.
pub const BLOCK_PAGES: u32 = 64;

/// A block of payloads is moved if less than one part in this number of its used bytes is live. So moves store at most
/// as many bytes as removals have freed.
pub const SPARSE_SHARE: u32 = 2;

/// Alignment in bytes of each vector's first byte within the file.
pub const EXTENT_ALIGN: usize = 64;

/// Largest LSN, epoch, generation, segment number or count in a file. Counting on from it never overflows.
pub const MAX_COUNT: u64 = 1 << 62;

/// Size of the WAL file in multiples of the flush threshold, [`flush_wal_bytes`](crate::OpenOptions::flush_wal_bytes).
/// The largest batch and two segments come on top.
///
/// The older of the two retained roots is one flush behind the newest root. The newest root is one flush behind the
/// flush under way. As much again may arrive during that flush.
pub const WAL_SHARES: u64 = 3;

/// Share of removed postings, one in so many, from which on shards are rewritten in the background. A share of 1/8 costs
/// seven live postings rewritten for one removed, and 14 % of space.
pub const COMPACTION_SHARE: u64 = 8;

/// Bytes of slots that a step of a compaction reads, while other calls wait. Chosen, not measured.
pub const COMPACTION_STEP: u64 = 512 << 10;

/// Share of removed postings, one in so many, from which on a write waits for steps of the compaction. Chosen, not measured.
pub const COMPACTION_BEHIND: u64 = 4;

/// Most steps of the compaction that a write waits for. Chosen, not measured.
pub const COMPACTION_CATCH_UP: usize = 4;

/// Flush thresholds of bytes that a cell build may keep from reuse: see
/// [`build_may_hold`](crate::engine::Engine::build_may_hold). Chosen, not measured.
pub const BUILD_HOLDS_FLUSHES: u64 = 2;

/// Share of the index, one byte in so many, that a cell build may keep from reuse. Chosen, not measured.
pub const BUILD_HOLDS_PART: u64 = 16;

/// Time after which a compaction that failed, or found damaged shards only, is tried again. Chosen, not measured.
pub const COMPACTION_PAUSE: Duration = Duration::from_secs(60);

/// Time after which a purge looks again whether readers have let go. Chosen, not measured.
pub const PURGE_RETRY: Duration = Duration::from_millis(20);

/// Largest growth step of the data file in bytes.
pub const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// First bytes of a WAL segment that are reserved. Then the reserved bytes double, up to the segment, so that a small index
/// has a small WAL. Chosen, not measured.
pub const FIRST_RESERVED_BYTES: u64 = 16 << 10;

/// Chunks of the data file that are made as holes, and reserved by their use. Later ones are reserved as a whole, with fewer
/// calls of the file system.
pub const SPARSE_CHUNKS: u64 = 8;

/// An index at rest keeps at most one free byte per so many used ones, and at most [`KEPT_AT_REST`].
pub const KEPT_PART: u64 = 32;

/// An index at rest stores a twin root if the older root alone needs more than one byte per so many used ones, and more than
/// [`TWIN_LEAST`].
pub const TWIN_PART: u64 = 4;

/// Bytes that the older root alone may need in any index at rest. Chosen, not measured.
pub const TWIN_LEAST: u64 = 64 << 10;

/// Most free bytes of the data file that an index at rest keeps, so that the next small writes need no call of the file
/// system. Also the most that the older root alone may keep: above, an index at rest stores a twin of the newest root in its
/// place.
pub const KEPT_AT_REST: u64 = 1 << 20;

/// Most ranges of free pages that are given back at once, while other calls wait. Chosen, not measured.
pub const RANGES_PER_TRIM: usize = 1_024;

/// Most times that so many ranges are given back after a flush, if writes leave scattered free pages. Chosen, not measured.
pub const ROUNDS_OF_EXCESS: usize = 8;

/// Time without writes after which an index gives its free space back. Chosen, not measured.
pub const REST_AFTER: Duration = Duration::from_secs(1);

/// Free bytes of the data file that are kept while writes go on, in multiples of the flush threshold,
/// [`flush_wal_bytes`](crate::OpenOptions::flush_wal_bytes). With the three shares of the WAL it stays below eight. A bulk
/// load frees much by splits and uses it again: with this number, an ingest of 100,000 vectors takes as long as without
/// giving anything back.
pub const KEPT_SHARES: u64 = 4;

/// Free bytes of the data file that are kept while writes go on without a flush threshold.
pub const KEPT_WITHOUT_LIMIT: u64 = 64 << 20;

/// Smallest size, in full shards, of a batch that gets shards of its own. The batch must also have at least as many
/// postings as the index.
pub const BULK_SHARDS: usize = 4;

/// Fill limit of the shards made for a bulk batch, in eighths of their capacity. See [`BULK_SHARDS`].
pub const BULK_FILL: usize = 6;

/// Largest number of shards of which routing compares all centroids. With more shards it compares those that belong to
/// the nearest pivots.
pub const ROUTED_BY_ALL: usize = 1_024;

/// Number of nearest shards, by centroid, to which a split or a merge may move postings.
pub const SPLIT_NEIGHBOURS: usize = 16;

/// Number of nearest shards whose postings may move to the halves of a split shard. See [`SPLIT_NEIGHBOURS`].
pub const ADOPTION_NEIGHBOURS: usize = 4;

/// Merge threshold: a shard merges if at most one in this many slots of its capacity is live. It must also have lost at
/// least as many postings as it has left.
pub const MERGE_SHARE: usize = 4;

/// Largest number of rounds of 2-means in a split.
pub const SPLIT_ROUNDS: usize = 5;

/// Number of postings per cell. A lower number means fewer codes to scan and more centroids to compare.
pub const CELL_POSTINGS: usize = 32;

/// Number of cells per cell group.
pub const GROUP_CELLS: usize = 32;

/// Rounds of k-means over all postings in a cell build from nothing. A build that starts from complete cells does half
/// as many.
pub const CELL_ROUNDS: usize = 8;

/// Rounds of k-means over the centroids of cells, which form the cell groups.
pub const GROUP_ROUNDS: usize = 5;

/// Smallest number of cell groups that a build visits to find the cell nearest to a posting. It visits half of all
/// groups if that is more.
pub const BUILD_GROUPS: usize = 16;

/// Number of near cells, itself included, to which a cell's postings may move in a k-means round.
pub const CELL_NEIGHBOURS: usize = 32;

/// Number of cells that a build compares with a posting by the bytes of their centroids, after it has chosen them by
/// one-bit codes.
pub const BUILD_CELLS: usize = 32;

/// SOAR: number of near cells from which a posting's second cell is chosen (Sun et al., NeurIPS 2023).
pub const SOAR_CELLS: usize = 12;

/// SOAR: weight λ of the component of the second residual along the first (Sun et al., NeurIPS 2023). See
/// [`SOAR_CELLS`].
pub const SOAR_LAMBDA: f32 = 1.5;

/// Standard deviation of an estimate, in units of the code's factor times the query's distance to the centroid.
///
/// It is the square root of `1 − t²`, where `t` is the cosine between a residual and its signs. `t` is 0.8 in all but
/// the lowest dimensions.
pub const CODE_DEVIATION: f32 = 0.6;

/// Calibration queries: their largest number, and the smallest number of live postings per query.
///
/// They are held-out vectors. One half tunes the search efforts. The other half measures the recall.
pub const CALIBRATION_QUERIES: (usize, usize) = (1_024, 6);

/// Reduced number of calibration queries, and the number of results from which it applies. Each query with many results
/// gives much information.
pub const CALIBRATION_FEW: (usize, usize) = (256, 30);

/// Displaced calibration queries: one in this many is displaced, by this factor times the difference of the vectors of
/// two queries, which may include the query itself. Real queries are seldom equal to stored vectors.
pub const CALIBRATION_MOVED: (usize, f32) = (4, 0.3);

/// Safety margin of the tuning half: standard errors by which its recall must exceed the target. The second number
/// limits the margin, as a share of the allowed misses.
pub const CALIBRATION_ERRORS: (f64, f64) = (2.0, 0.4);

/// Safety margin of the measuring half: standard errors by which its recall must exceed the target less the second
/// number. It must also reach the target.
///
/// If queries find either all of their results or none, few queries give little information. Measured on vectors whose
/// norms differ much (5,000 × 64, twelve indexes, k = 10, target 0.9): other queries reached 0.926 or more on average,
/// and never less than 0.89. With 2 standard errors and tries closer to the target the lowest recall was 0.88.
pub const CALIBRATION_SURE: (f64, f64) = (3.5, 0.01);

/// Safety margin of the worse of two parts of the queries, which are separated by location: standard errors by which
/// its recall must exceed the target less 0.01 (`CALIBRATION_SURE.1`), and the smallest number of queries in a part. A
/// smaller part is not examined. The worse part is the one with the lower recall less one standard error.
///
/// Measured with dot products, half of the data of another kind and queries of one kind only: without this rule 8 of 90
/// recalls of ten indexes were low by more than 0.01. With half a standard error it was 3.
pub const CALIBRATION_PART: (f64, usize) = (1.0, 24);

/// Standard errors by which the recall of the worse part must fall short of that of all queries, for the part to count
/// as harder. The recall of a harder part must exceed the target less 0.01 by as many standard errors, in place of
/// `CALIBRATION_PART.0`.
///
/// Measured on 25 indexes with 300 recalls: with one standard error for harder parts too, 6 recalls fell below the
/// target less 0.01, by up to 0.008. With two it was 3, by up to 0.004. With two for every worse part, which may be
/// worse by chance only, searches of heavy-tailed data scanned 1.07 of the rows instead of at most 0.9.
pub const CALIBRATION_HARDER: f64 = 2.0;

/// Impatience: decrease of a search's margin per doubling of `1 + q / g`. Here `q` is the number of cells since the
/// last one with a result, and `g` the usual gap between two such cells (`cells::quietness`). Its unit is the spread of
/// the margins that results need.
///
/// Measured on sentence embeddings at a recall of 0.95, with an earlier rule that had `q` in place of `q / g`: this
/// impatience saved a fifth of the codes, compared with none.
pub const IMPATIENCE: f32 = 0.5;

/// Smallest number of standard deviations of an estimate's error that every search allows for.
pub const LEAST_DEVIATIONS: f32 = 0.5;

/// Smallest number of standard deviations allowed for the codes of unindexed postings, for each recall of a
/// calibration.
///
/// Chosen so that, for normal errors, these deviations cause half of the allowed misses. A calibration can't measure
/// them, because new cells are calibrated when no posting is unindexed. The code of a later posting is relative to the
/// centroid of its shard, which is farther away than that of a cell.
pub const UNINDEXED_DEVIATIONS: [f32; 8] = [0.68, 1.04, 1.29, 1.65, 1.96, 2.33, 2.58, 2.81];

/// Misses that a search for an out-of-distribution query may have, as a share of the usual misses.
///
/// The effort that such a query needs is unknown, so the search response marks it too. Measured on 50,000 sentence
/// embeddings with negated queries, k = 10 and target 0.95: the recall is 0.98 with 37,300 codes, and 0.96 with 30,300
/// codes for a share of a half.
pub const FAR_MISSED: f32 = 0.25;

/// Number of bisection steps for the share of misses: the share of results that a search may miss.
pub const CALIBRATION_ROUNDS: usize = 10;

/// Largest number of shares of misses that a calibration tries before it chooses an exhaustive search.
pub const CALIBRATION_TRIES: usize = 6;

/// Extra tries for a cheaper effort after one suffices: the smallest recall and the numbers of results for which they
/// are made, and how many.
pub const CALIBRATION_CLOSER: (f32, [usize; 3], usize) = (0.9, [1, 10, 100], 1);

/// One in this many of the measuring queries runs before the others. Those queries suffice to reject most insufficient
/// efforts.
pub const CALIBRATION_FIRST: usize = 4;

/// Largest share of misses that a calibration tries.
pub const CALIBRATION_MOST: f32 = 1.0;

/// Recalibration threshold: more than one in this many of the live postings was added or removed since the calibration.
pub const CALIBRATION_SHARE: u64 = 4;

/// Reduction of the misses that a search may have, per share of postings added or removed since the calibration, and
/// the largest reduction.
///
/// Measured on vectors around a centre that draw together while they are replaced, k = 10 and target 0.95: the lowest
/// recall is 0.94 instead of 0.90.
pub const MOVED: (f32, f32) = (1.5, 0.75);

/// Number of independent results from which the margin of shards can be extrapolated, and the margin used below that
/// number. No distance exceeds that margin.
///
/// Measured on vectors around a centre 30 deviations from the origin, which all have the same nearest neighbour by dot
/// product: a fifth of the queries missed a new nearest vector in a shard beyond the margin, with target 0.95.
pub const SHARDS_TOLD: (f64, f32) = (32.0, 1e30);

/// Increase of the margin of shards with unindexed postings, as a share of itself, per share of postings added or
/// removed since the calibration.
pub const MOVED_SHARDS: f32 = 0.5;

/// Largest number of results of an extrapolated effort, in multiples of the largest calibrated number. Beyond it
/// searches are exhaustive.
pub const CALIBRATION_BEYOND: usize = 3;

/// Number of cell groups that a search visits beyond the calibrated number, because a query's first group may be one
/// that no calibration query had.
///
/// Measured where nine of ten of 5,000 vectors are equal: some of the others had the group of these first, and missed
/// everything in the other group. For k = 100 and target 0.99, one index in thirty had a recall of 0.959.
pub const GROUPS_MORE: u32 = 1;

/// Principal axes of the stored vectors that a calibration keeps, at most a quarter of the dimension.
///
/// Simulated with exact axes, on data whose 64 components have standard deviations of 1, 1/2, 1/3, …: with 16 axes of 256
/// vectors, 99.98 % of isotropic queries exceed the threshold, and 0.1 % of ordinary ones. With 8 axes 93 % of the isotropic
/// queries do.
pub const PRINCIPAL_AXES: usize = 16;

/// Share of a vector's norm below which what lies outside the principal axes counts as rounding or noise.
pub const AXES_FLOOR: f32 = 1e-3;

/// Largest number of stored calibration queries from which the principal axes are computed. At most a third of the
/// stored queries are used for the axes. The rest measure the threshold.
pub const AXES_SAMPLE: usize = 256;

/// Share of the calibration queries equal to stored vectors whose nearest neighbour is within the out-of-distribution
/// threshold.
pub const CALIBRATION_FAR: f32 = 0.999;

/// Dot products: share of the calibration queries whose search results, extended searches included, are within the
/// out-of-distribution threshold, and the target recall of these searches. See [`CALIBRATION_FAR`].
///
/// Measured on vectors around a centre 30 deviations from the origin, all with the same nearest neighbour: a tenth of
/// ordinary queries missed it and counted as out of distribution.
pub const CALIBRATION_FOUND: (f32, f32) = (0.999, 0.9);

/// Target recall of most searches, the default of [`default_recall`](crate::OpenOptions::default_recall).
pub const USUAL_RECALL: f32 = 0.95;

/// Number of results of most searches.
pub const USUAL_RESULTS: usize = 10;

/// Largest dimension for which no cells are built, because codes save nothing.
pub const LEAST_DIMENSION_FOR_CELLS: usize = 8;

/// Smallest number of live postings for which cells are built.
pub const LEAST_FOR_CELLS: u64 = 4_096;

const _: () = assert!(EXTENT_SLOTS.is_power_of_two() && EXTENT_SLOTS <= 64);

/// Bytes per store of a backup, at least. Chosen, not measured.
pub const PACK_BUFFER: usize = 1 << 20;

/// A backup shares a file of an earlier one if it names at least one in so many of its bytes. Otherwise it stores them again, so
/// that a backup takes at most so many times the bytes it holds. Chosen, not measured.
pub const PACK_SHARE: u64 = 2;

/// Bytes per read when a file is scanned.
pub const SCAN_BYTES: usize = 256 << 10;

/// Number of shards per task of a parallel scan, the last task excepted. A scan of fewer than two tasks runs on the
/// calling thread, because a smaller task isn't worth waking another.
pub const SCAN_SHARDS: usize = 64;

/// Searches by `slop`: target recall whose shard margin and deviations they use.
///
/// Chosen, not measured: the number of codes limits such a search, so the margins must rarely stop it earlier.
pub const SLOP_RECALL: f32 = 0.98;

/// Searches by `slop`: cells that the router returns at first, as a multiple of the average number of cells that hold
/// the allowed codes, and their least number. Chosen, not measured: the queue asks the router for more if they do not suffice.
pub const SLOP_CELLS: (u64, u64) = (2, 64);

/// Cells that the router returns at first, from the numbers of cells within the margin over the traced queries: the
/// quantile of these numbers, a factor, and a number that is added. Chosen, not measured: more cost time to sort, and
/// fewer make the router run again.
pub const EFFORT_CELLS: (f32, f32, u32) = (0.9, 1.5, 16);

/// Length of a trace in cells. `.0`: largest length. Beyond the last needed cell, number `n`, the trace continues by
/// `n / .1 + .2` cells, for efforts that stop later than necessary.
pub const TRACE_CELLS: (usize, usize, usize) = (16_384, 4, 64);

/// Shards that are scanned for an upper bound on the distance of a calibration query's last neighbour: a number, and a
/// multiple of the shards that hold as many postings as neighbours are needed. Chosen, not measured: a looser bound
/// rejects fewer rows, and a tighter one costs more distances.
pub const BOUND_SHARDS: (usize, usize) = (2, 4);

/// Part of a sorted sample from which the tail of its distribution is estimated: one in this many, the largest ones.
pub const TAIL_PART: usize = 4;

/// Share of a vector's norm that must be left outside the other axes for a new axis. Less is rounding.
pub const AXIS_NORM: f32 = 1e-4;

/// Metadata fills holes instead of an empty chunk if more than one in `.0` of the pages in metadata chunks is free, and
/// more than `.1` times the wanted pages. Chosen, not measured: a whole range needs one store, and holes are reused.
pub const META_HOLES: (u64, u64) = (2, 4);

/// `search_many`: largest number of queries per task, and smallest number of tasks if there are fewer queries. Chosen,
/// not measured: queries of one task share the CPU's caches, and a task should be worth waking a thread.
pub const SEARCH_TASK: (usize, usize) = (16, 64);
