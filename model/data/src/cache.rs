//! An LRU cache bounded by bytes. Not thread-safe; the loader locks it.

use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// Keys by the time of their last use, oldest first.
    by_use: BTreeMap<u64, K>,
    clock: u64,
    bytes: usize,
    capacity_bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    last_used: u64,
}

impl<K: Ord + Copy, V: Clone> Cache<K, V> {
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            capacity_bytes,
        }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        let entry = self.entries.get_mut(&key)?;
        self.by_use.remove(&entry.last_used);
        self.clock += 1;
        entry.last_used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(entry.value.clone())
    }

    /// Inserts `value` and evicts the least recently used entries. A value larger than the capacity
    /// is not cached.
    pub(crate) fn put(&mut self, key: K, value: V, bytes: usize) {
        self.evict(key);
        if bytes > self.capacity_bytes {
            return;
        }
        while self.bytes + bytes > self.capacity_bytes {
            let Some((_, oldest)) = self.by_use.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            self.evict(oldest);
        }
        self.clock += 1;
        self.by_use.insert(self.clock, key);
        self.entries.insert(
            key,
            Entry {
                value,
                bytes,
                last_used: self.clock,
            },
        );
        self.bytes += bytes;
    }

    fn evict(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.by_use.remove(&entry.last_used);
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let mut cache = Cache::new(10);
        cache.put(1, "a", 4);
        cache.put(2, "b", 4);
        assert_eq!(cache.get(1), Some("a"));
        cache.put(3, "c", 4);
        assert_eq!(
            (cache.get(1), cache.get(2), cache.get(3)),
            (Some("a"), None, Some("c"))
        );
        cache.put(4, "too large", 11);
        assert_eq!((cache.get(4), cache.get(3)), (None, Some("c")));
        cache.put(3, "again", 10);
        assert_eq!((cache.get(1), cache.get(3)), (None, Some("again")));
        assert_eq!(cache.bytes, 10);
    }
}
