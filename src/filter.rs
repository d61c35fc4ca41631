//! Filters: which postings a search may return.

use std::{
    any::Any,
    fmt,
    ops::{BitAnd, BitOr, Not},
    sync::{Arc, Mutex, PoisonError},
};

use crate::id::{DocumentId, PostingKey};

/// Condition that every result of a search meets.
///
/// A search with a filter finds the nearest postings among those that pass, however few they are, and reaches the target
/// recall among them. If few pass, it compares all of them. Otherwise it scans codes as without a filter and passes over
/// the others.
///
/// To exclude some documents or postings, negate a list of them. Filters are combined by `&`, `|` and `!`. A clone shares
/// the filter. Make a filter once and use it for many searches: it remembers which postings pass, and keeps copies of their
/// vectors, rounded to bytes, if there are not many. After a write only the changed shards are evaluated again. Searches
/// with copies are exact. So of two equal searches with a target recall, the second may find more.
///
/// Cost: the first search with a filter evaluates it for every posting of the snapshot: one read of a posting record
/// each for lists of documents and predicates, and less for tags. A short list of documents is looked up instead.
/// Memory: one bit per posting and filter, for each part of a combination. The copies have a byte per component, up to
/// the next multiple of 64, and 24 bytes more for each posting that passes. A filter keeps 16 MiB of them at most, and only
/// where comparing them costs less than its searches did. They are made once these have cost four comparisons of all that
/// passes.
///
/// ```
/// use shardex::{DocumentId, Filter};
///
/// const PUBLIC: u64 = 1 << 0;
/// let mine = Filter::documents([DocumentId(3), DocumentId(8)]);
/// let readable = mine | Filter::all_tags(PUBLIC);
/// let head = Filter::matching(|key| key.start < 1_000);
/// let filter = readable & head & !Filter::documents([DocumentId(99)]);
/// # let _ = filter;
/// ```
#[derive(Clone)]
pub struct Filter(Arc<FilterNode>);

/// Node of a filter, with the postings that passed at its last evaluation.
struct FilterNode {
    condition: Condition,
    /// Written by the evaluation, which knows the type.
    evaluated: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

/// Condition of a filter.
pub enum Condition {
    /// The document is in the list, which is sorted and has no duplicates.
    Documents(Box<[DocumentId]>),
    /// The key is in the list, which is sorted and has no duplicates.
    Postings(Box<[PostingKey]>),
    /// All bits of `all` are set, none of `none`, and at least one of `any` unless that is 0.
    Tags {
        /// Tags that must be set.
        all: u64,
        /// Tags of which one must be set; 0 for no condition.
        any: u64,
        /// Tags that must not be set.
        none: u64,
    },
    /// The function returns true.
    Matching(Box<dyn Fn(PostingKey) -> bool + Send + Sync>),
    /// All conditions are met.
    All(Vec<Filter>),
    /// At least one condition is met.
    Any(Vec<Filter>),
    /// The condition is not met.
    Not(Filter),
}

impl Filter {
    fn new(condition: Condition) -> Self {
        Self(Arc::new(FilterNode { condition, evaluated: Mutex::default() }))
    }

    /// Returns a filter that postings of these documents pass. An empty list lets nothing pass. Documents that are not
    /// stored are allowed, and so are duplicates.
    ///
    /// Cost: a sort, if the ids are not in ascending order.
    #[must_use]
    pub fn documents(documents: impl IntoIterator<Item = DocumentId>) -> Self {
        Self::new(Condition::Documents(sorted(documents)))
    }

    /// Returns a filter that postings with these keys pass, as [`documents`](Self::documents) does for documents.
    #[must_use]
    pub fn postings(keys: impl IntoIterator<Item = PostingKey>) -> Self {
        Self::new(Condition::Postings(sorted(keys)))
    }

    /// Returns a filter that postings pass whose tags contain all the given ones. Every posting has all of none.
    #[must_use]
    pub fn all_tags(tags: u64) -> Self {
        Self::new(Condition::Tags { all: tags, any: 0, none: 0 })
    }

    /// Returns a filter that postings pass whose tags contain at least one of the given ones. No posting has any of none.
    #[must_use]
    pub fn any_tags(tags: u64) -> Self {
        if tags == 0 {
            return Self::documents([]);
        }
        Self::new(Condition::Tags { all: 0, any: tags, none: 0 })
    }

    /// Returns a filter that postings pass whose tags contain none of the given ones.
    #[must_use]
    pub fn no_tags(tags: u64) -> Self {
        Self::new(Condition::Tags { all: 0, any: 0, none: tags })
    }

    /// Returns a filter that postings pass for whose key the function returns true.
    ///
    /// The function must always return the same for the same key, because its answers are remembered. It is called on
    /// the thread of the search, for every posting of a shard that the filter has not seen.
    #[must_use]
    pub fn matching(condition: impl Fn(PostingKey) -> bool + Send + Sync + 'static) -> Self {
        Self::new(Condition::Matching(Box::new(condition)))
    }

    /// Returns the condition.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn condition(&self) -> &Condition {
        &self.0.condition
    }

    #[cfg(not(feature = "internals"))]
    pub(crate) fn condition(&self) -> &Condition {
        &self.0.condition
    }

    /// Reports whether a posting passes.
    pub(crate) fn passes(&self, key: PostingKey, tags: u64) -> bool {
        match self.condition() {
            Condition::Documents(documents) => documents.binary_search(&key.document_id).is_ok(),
            Condition::Postings(keys) => keys.binary_search(&key).is_ok(),
            &Condition::Tags { all, any, none } => has_tags(tags, all, any, none),
            Condition::Matching(matches) => matches(key),
            Condition::All(filters) => filters.iter().all(|filter| filter.passes(key, tags)),
            Condition::Any(filters) => filters.iter().any(|filter| filter.passes(key, tags)),
            Condition::Not(filter) => !filter.passes(key, tags),
        }
    }

    /// Reports whether a part of the filter is a predicate.
    pub(crate) fn has_predicate(&self) -> bool {
        match self.condition() {
            Condition::Matching(_) => true,
            Condition::All(filters) | Condition::Any(filters) => filters.iter().any(Self::has_predicate),
            Condition::Not(filter) => filter.has_predicate(),
            Condition::Documents(_) | Condition::Postings(_) | Condition::Tags { .. } => false,
        }
    }

    /// Returns the documents that all passing postings belong to, ascending; `None` if they are not listed.
    pub(crate) fn listed(&self) -> Option<Vec<DocumentId>> {
        match self.condition() {
            Condition::Documents(documents) => Some(documents.to_vec()),
            Condition::Postings(keys) => {
                let mut documents: Vec<DocumentId> = keys.iter().map(|key| key.document_id).collect();
                documents.dedup();
                Some(documents)
            }
            Condition::All(filters) => filters.iter().filter_map(Self::listed).min_by_key(Vec::len),
            Condition::Tags { .. } | Condition::Matching(_) | Condition::Any(_) | Condition::Not(_) => None,
        }
    }

    /// Returns what the last evaluation has left.
    pub(crate) fn evaluated(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.0.evaluated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves an evaluation for the next search.
    pub(crate) fn remember(&self, evaluated: Arc<dyn Any + Send + Sync>) {
        *self.0.evaluated.lock().unwrap_or_else(PoisonError::into_inner) = Some(evaluated);
    }
}

/// Sorts a list and removes duplicates.
fn sorted<T: Ord>(list: impl IntoIterator<Item = T>) -> Box<[T]> {
    let mut list: Vec<T> = list.into_iter().collect();
    if !list.is_sorted() {
        list.sort_unstable();
    }
    list.dedup();
    list.into()
}

/// Reports whether tags contain all of `all`, none of `none`, and one of `any` unless that is 0.
pub(crate) fn has_tags(tags: u64, all: u64, any: u64, none: u64) -> bool {
    tags & all == all && (any == 0 || tags & any != 0) && tags & none == 0
}

impl BitAnd for Filter {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self::new(Condition::All(vec![self, other]))
    }
}

impl BitOr for Filter {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self::new(Condition::Any(vec![self, other]))
    }
}

impl Not for Filter {
    type Output = Self;

    fn not(self) -> Self {
        Self::new(Condition::Not(self))
    }
}

/// Two filters are equal if one is a clone of the other.
impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, filters: &[Self], between: &str| {
            f.write_str("(")?;
            for (i, filter) in filters.iter().enumerate() {
                f.write_str(if i > 0 { between } else { "" })?;
                filter.fmt(f)?;
            }
            f.write_str(")")
        };
        match self.condition() {
            Condition::Documents(documents) => write!(f, "{} documents", documents.len()),
            Condition::Postings(keys) => write!(f, "{} postings", keys.len()),
            Condition::Tags { all, any, none } => write!(f, "tags(all {all:#x}, any {any:#x}, none {none:#x})"),
            Condition::Matching(_) => f.write_str("a predicate"),
            Condition::All(filters) => list(f, filters, " & "),
            Condition::Any(filters) => list(f, filters, " | "),
            Condition::Not(filter) => write!(f, "!{filter:?}"),
        }
    }
}
