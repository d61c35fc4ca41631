//! Every bound of the engine, in one place.
//!
//! A bound that the format fixes is asserted beside the code that derives an offset from it.

/// Version of the on-disk format that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Most numbers a vector may have.
pub const MAX_DIMENSION: usize = 65_536;

/// Most postings a shard may be configured to hold.
pub const MAX_SHARD_SIZE: usize = 65_536;

/// Most results one search may ask for.
pub const MAX_K: usize = 1_000_000;

/// Largest Euclidean norm of a vector: 2^62.
///
/// With both norms at most this, every product, every squared distance and every partial sum of them
/// stays under 2^126, so no distance between two stored vectors is ever infinite or NaN.
pub const MAX_NORM: f64 = 4_611_686_018_427_387_904.0;

/// Postings per extent, the unit in which a shard takes space.
pub const EXTENT_SLOTS: usize = 64;

/// A vector's first byte lies on a multiple of this within its file.
pub const EXTENT_ALIGN: usize = 64;

/// Largest LSN, epoch, generation, segment number or count that a file may hold: counting on from it never overflows.
pub const MAX_COUNT: u64 = 1 << 62;

/// Largest encoded batch of adds or removals, in bytes of WAL payload.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;

/// The WAL file takes so many times the bytes that make a flush begin, besides the largest batch and two segments: the
/// older of the two retained roots is a flush behind the newest, which is one behind the next, and as much may come in
/// meanwhile.
pub const WAL_SHARES: u64 = 3;

/// Most bytes the data file grows by at once.
pub const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// A batch that fills so many shards, and is no smaller than the index, gets shards of its own.
pub const BULK_SHARDS: usize = 4;

/// How full these are at most, in eighths.
pub const BULK_FILL: usize = 6;

/// Shards of which all are compared to route a posting; of more those near pivots are.
pub const ROUTED_BY_ALL: usize = 1_024;

/// Shards to which a split may move postings: the nearest ones by centroid.
pub const SPLIT_NEIGHBOURS: usize = 16;

/// Of these, shards whose postings may come to the halves.
pub const ADOPTION_NEIGHBOURS: usize = 4;

/// A shard is taken apart that has so small a share of what it may hold, and has lost as many postings as it has.
pub const MERGE_SHARE: usize = 4;

/// Most rounds of 2-means in a split.
pub const SPLIT_ROUNDS: usize = 5;

/// Postings per cell: the fewer, the fewer codes are scanned and the more centroids compared with.
pub const CELL_POSTINGS: usize = 32;

/// Cells per group.
pub const GROUP_CELLS: usize = 32;

/// Rounds of k-means over all postings when cells are made from nothing; half as many when they are made from cells.
pub const CELL_ROUNDS: usize = 8;

/// Rounds of k-means over centroids that make groups.
pub const GROUP_ROUNDS: usize = 5;

/// Groups that are looked into for the nearest cell of a posting, at least; or half of them.
pub const BUILD_GROUPS: usize = 16;

/// Neighbours of a cell to which its postings may go in a round.
pub const CELL_NEIGHBOURS: usize = 32;

/// Cells that a posting is compared with exactly.
pub const BUILD_CELLS: usize = 32;

/// Cells among which the second one of a posting is picked, and how much a residual along the first one costs (Sun et
/// al., NeurIPS 2023).
pub const SOAR_CELLS: usize = 12;
/// See [`SOAR_CELLS`].
pub const SOAR_LAMBDA: f32 = 1.5;

/// The standard deviation of an estimate in units of a code's factor and the query's distance to the centroid: the square
/// root of `1 − t²`, where `t` is the cosine of a residual and its signs, 0.8 in all but the lowest dimensions.
pub const CODE_DEVIATION: f32 = 0.6;

/// Stored vectors that are searched for to find what a recall takes, half of them, and what it comes to, the other half; and of how many
/// postings there is one at most.
pub const CALIBRATION_QUERIES: (usize, usize) = (1_024, 6);

/// As many of them for so many results or more: each tells of many.
pub const CALIBRATION_FEW: (usize, usize) = (256, 30);

/// Of so many of them one is moved off its place, along the difference of two others, by such a part of it: nobody asks for
/// just what is stored.
pub const CALIBRATION_MOVED: (usize, f32) = (4, 0.3);

/// Standard errors by which what they find exceeds what was asked for, and the part of what may be missed that this is at most.
pub const CALIBRATION_ERRORS: (f64, f64) = (2.0, 0.4);

/// Standard errors by which the half that judges exceeds what was asked for, less so much: of results that are found all or not at all, few
/// questions tell little. On vectors whose norms differ much (5,000 x 64, twelve indexes, k = 10, 0.9 asked) others reached 0.926 or
/// more on the average and none less than 0.89; with 2, and tries closer to what is asked, 0.88 were seen.
pub const CALIBRATION_SURE: (f64, f64) = (3.5, 0.01);

/// Standard errors by which either of two parts of the questions, told apart by where they lie, exceeds what was asked for, less the same;
/// and how many there are of it at least. Where half of the data is of another kind and queries are of one kind only, by dot products,
/// without it 8 of 90 recalls of ten indexes were missed by more than a hundredth, with half an error 3.
pub const CALIBRATION_PART: (f64, usize) = (1.0, 24);

/// By so many of its errors a part is clearly harder than the whole, and then exceeds it by so many. With one for such parts too, 6 of 300
/// recalls of 25 indexes were missed by up to 0.008 more than a hundredth, with two 3 by up to 0.004. With two for either part, of which one
/// is the harder by chance, searches of heavy tails looked at 1.07 of the rows instead of 0.9 at most.
pub const CALIBRATION_HARDER: f64 = 2.0;

/// What is taken off a search's margin for each doubling of the cells without a result, beside how many there usually are, in units of
/// what the margins that are needed spread by: by their number alone it saved a fifth of the codes on sentence embeddings at a recall of 0.95.
pub const IMPATIENCE: f32 = 0.5;

/// Standard deviations of an estimate's error that every search allows for.
pub const LEAST_DEVIATIONS: f32 = 0.5;

/// The errors of the codes of what is in no cell that are allowed for at least, in standard deviations, for each recall of a
/// calibration: those that are exceeded by half of what may be missed, if errors are normal. When new cells are asked what a recall
/// takes, nothing is in none; what comes later has a code against its shard's centroid, which is farther than a cell's.
pub const FRESH_DEVIATIONS: [f32; 8] = [0.68, 1.04, 1.29, 1.65, 1.96, 2.33, 2.58, 2.81];

/// What a search for a query that is unlike all that is stored may miss, as a part of what others may. Nobody knows what such a query
/// takes, so it is told of besides. On 50,000 sentence embeddings, for negated queries where 0.95 of ten is asked, 0.98 are found in
/// 37,300 codes, and 0.96 in 30,300 if it may miss half of what others may.
pub const FAR_MISSED: f32 = 0.25;

/// How often the share that a search may miss is halved in on.
pub const CALIBRATION_ROUNDS: usize = 10;

/// How many shares that a search may miss are tried, at most, before everything is looked at.
pub const CALIBRATION_TRIES: usize = 6;

/// From this recall on and for these numbers of results, how many of them once there is one that does.
pub const CALIBRATION_CLOSER: (f32, [usize; 3], usize) = (0.9, [1, 10, 100], 1);

/// One in so many of those that judge is asked before the others: mostly it shows what does not do.
pub const CALIBRATION_FIRST: usize = 4;

/// The largest share that is tried.
pub const CALIBRATION_MOST: f32 = 1.0;

/// One part in so many of the postings comes or goes before efforts are found anew.
pub const CALIBRATION_SHARE: u64 = 4;

/// What a search may miss is less by so many times the share of the postings that has come or gone since, and by no more than
/// such a part. On vectors around a centre that draw together while they are replaced, 0.90 of ten where 0.95 is asked become
/// 0.94 at the worst.
pub const MOVED: (f32, f32) = (1.5, 0.75);

/// Different results from which on it can be told how far beyond them the shards of others are; and the margin if it cannot, beyond which
/// none is. On vectors around a centre that is 30 deviations from the origin all have the same nearest by dot products; a new one, in a
/// shard beyond the margin, was missed by a fifth of the queries where 0.95 was asked.
pub const SHARDS_TOLD: (f64, f32) = (32.0, 1e30);

/// By so large a part of itself, times that share, the margin of shards that hold something in no cell is larger.
pub const MOVED_SHARDS: f32 = 0.5;

/// Beyond the largest number of results that was asked for, up to so many times that many, it is extrapolated what they take.
pub const CALIBRATION_BEYOND: usize = 3;

/// A search may look into so many groups more than the questions needed: a query may have a group first that none of them has first. Where
/// nine of ten of 5,000 vectors are one and the same, some of the others had its group first, and missed all that is in the other: 0.959 of
/// a hundred were found where 0.99 was asked, by one index in thirty.
pub const GROUPS_MORE: u32 = 1;

/// Of the stored vectors that are asked for, the share that is no farther from its nearest than what counts as far.
pub const CALIBRATION_FAR: f32 = 0.999;

/// By dot products, the share that is no farther from what searches find, the wider one too, that are asked for this recall. On vectors
/// around a centre that is 30 deviations from the origin, all nearest to one and the same, a tenth of ordinary queries missed it and
/// counted as far.
pub const CALIBRATION_FOUND: (f32, f32) = (0.999, 0.9);

/// What most searches ask for: the default recall, and a usual number of results.
pub const USUAL_RECALL: f32 = 0.95;
/// See [`USUAL_RECALL`].
pub const USUAL_RESULTS: usize = 10;

/// Up to so many numbers a vector a code saves nothing, and no cells are made.
pub const LEAST_DIMENSION_FOR_CELLS: usize = 8;

/// Live postings from which on cells are made.
pub const LEAST_FOR_CELLS: u64 = 4_096;

const _: () = assert!(EXTENT_SLOTS.is_power_of_two() && EXTENT_SLOTS <= 64);

/// Bytes that are read at once where a file is looked through.
pub const SCAN_BYTES: usize = 256 << 10;
