//! Tags of the slots of a shard: 64 bits per slot, in pages that copies of a shard share until they change.
//!
//! Tags are not in the slots, so a change of tags stores no vector. A page of tags without a set bit does not exist.

use std::sync::Arc;

use crate::format::geometry::IndexParams;

/// Page of tags: those of consecutive slots.
pub type TagPage = Arc<[u64]>;

/// Tags of all slots of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Pages in slot order, as many as hold a set bit or are followed by such a page.
    pages: Vec<Option<TagPage>>,
}

impl Tags {
    /// Creates the tags of a shard from its stored pages.
    #[must_use]
    pub fn from_pages(mut pages: Vec<Option<TagPage>>) -> Self {
        pages.truncate(pages.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
        Self { pages }
    }

    /// Returns the tags of a slot.
    #[must_use]
    pub fn get(&self, slot: usize) -> u64 {
        // The last page exists. All pages have the same number of slots.
        let Some(Some(last)) = self.pages.last() else { return 0 };
        let slots = last.len();
        let page = self.pages.get(slot / slots).and_then(Option::as_ref);
        page.map_or(0, |page| page[slot % slots])
    }

    /// Reports whether both are the same pages. Equal tags in other pages are not the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same = |pair: (&Option<TagPage>, &Option<TagPage>)| match pair {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.pages.len() == other.pages.len() && self.pages.iter().zip(&other.pages).all(is_same)
    }

    /// Reports whether no slot has tags.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Sets the tags of a slot. Copies the page that it lies in, if another copy of the shard shares it.
    pub fn set(&mut self, slot: usize, tags: u64, geometry: &IndexParams) {
        let (page, at) = (slot / geometry.page_slots(), slot % geometry.page_slots());
        if tags == 0 && self.get(slot) == 0 {
            return;
        }
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        let mut words = match &self.pages[page] {
            Some(words) => words.to_vec(),
            None => vec![0; geometry.page_slots()],
        };
        words[at] = tags;
        self.pages[page] = words.iter().any(|&word| word != 0).then(|| words.into());
        *self = Self::from_pages(std::mem::take(&mut self.pages));
    }

    /// Returns page `i`. `None` if no slot of it has tags.
    #[must_use]
    pub fn page(&self, i: usize) -> Option<&TagPage> {
        self.pages.get(i).and_then(Option::as_ref)
    }

    /// Returns the heap memory in bytes, including shared pages.
    #[must_use]
    pub fn memory(&self) -> usize {
        let pages = self.pages.iter().flatten().map(|page| page.len() * 8);
        self.pages.len() * size_of::<Option<TagPage>>() + pages.sum::<usize>()
    }
}

/// Returns the bytes of a page of tags.
#[must_use]
pub fn tag_bytes(page: &TagPage) -> Vec<u8> {
    // In memory order, which equals the order on disk, because only little-endian targets compile.
    bytemuck::cast_slice(page).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ShardexConfig;

    #[test]
    fn tags_are_those_that_were_set() {
        let geometry = IndexParams::of(&ShardexConfig::new("x").vector_size(3), 256, 64);
        let (mut tags, mut expected) = (Tags::default(), vec![0u64; 200]);
        let before = tags.clone();
        let mut state = 7u64;
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (slot, value) = ((state >> 33) as usize % 200, if state >> 60 < 9 { 0 } else { state >> 20 });
            tags.set(slot, value, &geometry);
            expected[slot] = value;
            assert!((0..200).all(|slot| tags.get(slot) == expected[slot]));
        }
        (0..200).for_each(|slot| tags.set(slot, 0, &geometry));
        assert!(tags.is_empty() && before.is_empty());
    }
}
