//! A sorted table whose copies are cheap: readers search one version while a writer makes the next.

use std::sync::Arc;

/// Most entries that are copied to change one of them.
const CHUNK_MAX: usize = 64;

/// Entries in ascending order of their keys, in chunks that versions share.
///
/// Two binary searches in arrays find an entry. A change copies one chunk, and a pointer for each of
/// the others.
#[derive(Clone)]
pub(crate) struct Index<K, V> {
    /// Never empty ones, each with its first key.
    chunks: Vec<(K, Chunk<K, V>)>,
}

type Chunk<K, V> = Arc<Vec<(K, V)>>;

impl<K: Ord + Copy, V: Clone> Index<K, V> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// The last entry whose key is not above `key`.
    pub(crate) fn last_up_to(&self, key: K) -> Option<&(K, V)> {
        let (_, chunk) = self.chunks.get(self.chunk_of(key))?;
        chunk.get(chunk.partition_point(|&(other, _)| other <= key).checked_sub(1)?)
    }

    /// All entries in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.chunks.iter().flat_map(|(_, chunk)| chunk.iter())
    }

    /// The chunk in which the key is, or would be.
    fn chunk_of(&self, key: K) -> usize {
        self.chunks.partition_point(|&(first, _)| first <= key).saturating_sub(1)
    }

    /// Adds an entry, whose key must be new.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let at = self.chunk_of(key);
        let Some((first, chunk)) = self.chunks.get_mut(at) else {
            self.chunks.push((key, Arc::new(vec![(key, value)])));
            return;
        };
        let chunk = Arc::make_mut(chunk);
        chunk.insert(chunk.partition_point(|&(other, _)| other < key), (key, value));
        *first = key.min(*first);
        if chunk.len() > CHUNK_MAX {
            let upper = chunk.split_off(CHUNK_MAX / 2);
            self.chunks.insert(at + 1, (upper[0].0, Arc::new(upper)));
        }
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&mut self, key: K) {
        let at = self.chunk_of(key);
        let Some((first, chunk)) = self.chunks.get_mut(at) else { return };
        let Ok(found) = chunk.binary_search_by_key(&key, |&(other, _)| other) else { return };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(found);
        match chunk.first() {
            Some(&(key, _)) => *first = key,
            None => drop(self.chunks.remove(at)),
        }
        self.merge(at);
        if let Some(before) = at.checked_sub(1) {
            self.merge(before);
        }
    }

    /// Joins a chunk with the next one if both have become small.
    fn merge(&mut self, at: usize) {
        let Some([(_, left), (_, right)]) = self.chunks.get_mut(at..at + 2) else { return };
        if left.len() + right.len() <= CHUNK_MAX / 2 {
            Arc::make_mut(left).extend(right.iter().cloned());
            self.chunks.remove(at + 1);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Keys in no order, the same ones every time.
    fn keys() -> impl Iterator<Item = u32> {
        (1_u32..).map(|n| n.wrapping_mul(2_654_435_761) >> 20)
    }

    #[test]
    fn every_change_leaves_what_a_sorted_map_has() {
        let (mut index, mut expected) = (Index::new(), BTreeMap::new());
        for (round, key) in keys().take(20_000).enumerate() {
            // First it grows, then it shrinks.
            let grow = round % 10_000 < 5_000;
            if grow && !expected.contains_key(&key) {
                expected.insert(key, round);
                index.insert(key, round);
            } else if !grow {
                let key = expected.range(key..).next().map_or(key, |(&key, _)| key);
                expected.remove(&key);
                index.remove(key);
            }
            let wanted = expected.range(..=key).next_back().map(|(&key, &value)| (key, value));
            assert_eq!(index.last_up_to(key).copied(), wanted, "round {round}");
        }
        assert!(index.iter().copied().eq(expected.into_iter()));
    }

    #[test]
    fn chunks_stay_few() {
        let mut index = Index::new();
        (0..4096).for_each(|key| index.insert(key, ()));
        assert!(index.chunks.len() <= 4096 / (CHUNK_MAX / 2));
        for key in (0..4096).filter(|key| key % 64 != 0) {
            index.remove(key);
        }
        assert!(index.chunks.len() <= 64 / (CHUNK_MAX / 4), "{} chunks", index.chunks.len());
        (0..4096).for_each(|key| index.remove(key));
        assert!(index.chunks.is_empty() && index.last_up_to(7).is_none());
    }

    #[test]
    fn a_copy_stays_as_it_is() {
        let mut index = Index::new();
        (0..100).for_each(|key| index.insert(2 * key, key));
        let copy = index.clone();
        index.remove(100);
        index.insert(101, 7);
        assert_eq!(copy.last_up_to(101), Some(&(100, 50)));
        assert_eq!(
            (index.last_up_to(100), index.last_up_to(101)),
            (Some(&(98, 49)), Some(&(101, 7)))
        );
    }
}
