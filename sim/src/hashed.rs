//! Map by hash without iteration, so that the order of hashes affects no result.

use std::{collections::HashMap, hash::Hash};

/// Map by hash. Lookups take constant time, and entries can't be listed.
pub(crate) struct HashedMap<K, V>(HashMap<K, V>);

impl<K, V> Default for HashedMap<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> HashedMap<K, V> {
    /// Returns the value of a key.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    /// Sets the value of a key.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.0.insert(key, value);
    }
}

impl<K: Eq + Hash, V> FromIterator<(K, V)> for HashedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}
