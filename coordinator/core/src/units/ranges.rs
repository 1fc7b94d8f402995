//! A set of unit numbers, stored as sorted ranges. Its size depends on the number of gaps, not on
//! the number of units.

use proto::message::UnitRange;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Maps the first number of a range to its exclusive end. No two ranges are adjacent.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    pub(crate) fn of(ranges: impl IntoIterator<Item = UnitRange>) -> Self {
        let mut all = Self::default();
        for range in ranges {
            all.insert(range);
        }
        all
    }

    /// The number of units in the set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn contains(&self, unit: u64) -> bool {
        let before = self.ranges.range(..=unit).next_back();
        before.is_some_and(|(_, end)| unit < *end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = UnitRange> {
        self.ranges.iter().map(|(first, end)| UnitRange {
            first: *first,
            end: *end,
        })
    }

    pub(crate) fn to_vec(&self) -> Vec<UnitRange> {
        self.iter().collect()
    }

    /// Adds a range. It may overlap the set.
    pub(crate) fn insert(&mut self, range: UnitRange) {
        let UnitRange { mut first, mut end } = range;
        if end <= first {
            return;
        }
        // Merges overlapping and adjacent ranges.
        while let Some((known, known_end)) = self.ranges.range(..=end).next_back()
            && first <= *known_end
        {
            let (known, known_end) = (*known, *known_end);
            self.ranges.remove(&known);
            self.count -= known_end - known;
            (first, end) = (first.min(known), end.max(known_end));
        }
        self.ranges.insert(first, end);
        self.count += end - first;
    }

    /// Removes a range. It may be only partly in the set.
    pub(crate) fn remove(&mut self, range: UnitRange) {
        let UnitRange { first, end } = range;
        if end <= first {
            return;
        }
        while let Some((known, known_end)) = self.ranges.range(..end).next_back()
            && first < *known_end
        {
            let (known, known_end) = (*known, *known_end);
            self.ranges.remove(&known);
            self.count -= known_end - known;
            for rest in [(known, first.max(known)), (end.min(known_end), known_end)] {
                if rest.0 < rest.1 {
                    self.ranges.insert(rest.0, rest.1);
                    self.count += rest.1 - rest.0;
                }
            }
        }
    }

    /// The intersection with a range.
    pub(crate) fn within(&self, range: UnitRange) -> Vec<UnitRange> {
        let UnitRange { first, end } = range;
        if end <= first {
            return Vec::new();
        }
        let before = self.ranges.range(..first).next_back();
        let from = before.filter(|(_, known_end)| first < **known_end);
        let ranges = from.into_iter().chain(self.ranges.range(first..end));
        ranges
            .map(|(known, known_end)| UnitRange {
                first: first.max(*known),
                end: end.min(*known_end),
            })
            .collect()
    }

    /// Removes and returns the lowest units, at most `limit`.
    pub(crate) fn take(&mut self, mut limit: u64) -> Vec<UnitRange> {
        let mut taken = Vec::new();
        while 0 < limit
            && let Some((first, end)) = self.ranges.pop_first()
        {
            let cut = end.min(first.saturating_add(limit));
            taken.push(UnitRange { first, end: cut });
            self.count -= cut - first;
            limit -= cut - first;
            if cut < end {
                self.ranges.insert(cut, end);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(first: u64, length: u64) -> UnitRange {
        UnitRange {
            first,
            end: first + length,
        }
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_set(
            acts in prop::collection::vec((0..4_u8, 0..40_u64, 0..12_u64), 0..60),
        ) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (act, first, length) in acts {
                let numbers = first..first + length;
                match act {
                    0 | 1 => {
                        ranges.insert(range(first, length));
                        set.extend(numbers);
                    }
                    2 => {
                        ranges.remove(range(first, length));
                        set.retain(|it| !numbers.contains(it));
                    }
                    _ => {
                        let flat = |ranges: Vec<UnitRange>| -> Vec<u64> {
                            ranges.iter().flat_map(|it| it.first..it.end).collect()
                        };
                        let within = flat(ranges.within(range(first, length)));
                        let expected: Vec<u64> =
                            set.iter().copied().filter(|it| numbers.contains(it)).collect();
                        prop_assert_eq!(within, expected);
                        let taken = flat(ranges.take(length));
                        let lowest: Vec<u64> = set.iter().copied().take(taken.len()).collect();
                        prop_assert_eq!(&taken, &lowest);
                        prop_assert!(taken.len() as u64 == length || ranges.is_empty());
                        set.retain(|it| !taken.contains(it));
                    }
                }
                prop_assert_eq!(ranges.count(), set.len() as u64);
                prop_assert!(ranges.iter().flat_map(|it| it.first..it.end).eq(set.iter().copied()));
                prop_assert!(ranges.to_vec().windows(2).all(|pair| pair[0].end < pair[1].first));
                prop_assert!((0..60).all(|unit| ranges.contains(unit) == set.contains(&unit)));
            }
        }
    }
}
