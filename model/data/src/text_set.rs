//! A set of texts in the order of their insertion, for millions of ids: all texts share one buffer,
//! and the hash table contains only numbers. About 30 bytes per text besides the text itself, where
//! a `BTreeMap<String, u64>` needs more than 100. Pure. Used by the data-set writer.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

#[derive(Debug, Default)]
pub(crate) struct TextSet {
    text: String,
    /// End of each text in the buffer.
    ends: Vec<usize>,
    /// Numbers of the texts, by hash.
    numbers: HashTable<usize>,
    /// Random, because ids are untrusted. No result depends on it.
    hasher: RandomState,
}

impl TextSet {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text with this number.
    ///
    /// # Panics
    /// If there are not that many texts.
    pub(crate) fn get(&self, number: usize) -> &str {
        text_of(&self.text, &self.ends, number)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        let hash = self.hasher.hash_one(name);
        let found = self.numbers.find(hash, |number| self.get(*number) == name);
        found.is_some()
    }

    /// Adds a text with the next number, unless the set contains it.
    pub(crate) fn insert(&mut self, name: &str) {
        if self.contains(name) {
            return;
        }
        let number = self.ends.len();
        self.text.push_str(name);
        self.ends.push(self.text.len());
        let (text, ends, hasher) = (&self.text, &self.ends, &self.hasher);
        let hash_of = |number: &usize| hasher.hash_one(text_of(text, ends, *number));
        self.numbers
            .insert_unique(hasher.hash_one(name), number, hash_of);
    }

    /// Frees the hash table and returns all numbers ordered by their texts.
    pub(crate) fn sort(&mut self) -> Vec<usize> {
        self.numbers = HashTable::new();
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by(|a, b| self.get(*a).cmp(self.get(*b)));
        order
    }
}

fn text_of<'a>(text: &'a str, ends: &[usize], number: usize) -> &'a str {
    let start = number.checked_sub(1).map_or(0, |before| ends[before]);
    &text[start..ends[number]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map_from_text_to_order_of_insertion(
            names in prop::collection::vec("[ab]{0,4}", 0..60),
        ) {
            let mut set = TextSet::default();
            let mut model: BTreeMap<&str, usize> = BTreeMap::new();
            for name in &names {
                prop_assert_eq!(set.contains(name), model.contains_key(name.as_str()));
                let next = model.len();
                model.entry(name).or_insert(next);
                set.insert(name);
                prop_assert_eq!(set.len(), model.len());
            }
            for (name, number) in &model {
                prop_assert_eq!(set.get(*number), *name);
            }
            prop_assert!(set.sort().into_iter().eq(model.into_values()));
        }
    }
}
