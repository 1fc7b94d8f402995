//! The order of the tags in a prompt, `data.prompt_order`. A text encoder reads the first 77 tokens
//! only, and tags are stored in alphabetical order, so that without another order the same tags are
//! always lost. The choice is ours: the paper names no order. Pure: an order is a function of the
//! data set and of (seed, epoch, sample) (law 2).

use std::collections::{HashMap, HashSet};

use proto::spec::{Data, PromptOrder};
use rand::seq::SliceRandom;

use crate::random::{Purpose, random};
use crate::sample::split_tags;

/// The number of samples of a data set that have each tag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagCounts(HashMap<String, u64>);

impl TagCounts {
    /// Counts the tags of all prompts of a data set, held out or not.
    pub fn of<'a>(prompts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut counts = Self::default();
        for prompt in prompts {
            counts.add(prompt);
        }
        counts
    }

    /// Counts the tags of one more prompt.
    pub(crate) fn add(&mut self, prompt: &str) {
        let mut seen = HashSet::new();
        for tag in split_tags(prompt).filter(|tag| seen.insert(*tag)) {
            match self.0.get_mut(tag) {
                Some(count) => *count += 1,
                None => drop(self.0.insert(tag.to_owned(), 1)),
            }
        }
    }

    fn of_tag(&self, tag: &str) -> u64 {
        self.0.get(tag).copied().unwrap_or(0)
    }
}

/// The prompt of the sample at `position` in `epoch`. `counts` is used by
/// [`PromptOrder::RareFirst`] only.
#[must_use]
pub fn in_order(
    prompt: &str,
    data: &Data,
    counts: &TagCounts,
    epoch: u64,
    position: u64,
) -> String {
    let mut tags: Vec<&str> = split_tags(prompt).collect();
    match data.prompt_order {
        PromptOrder::AsWritten => return prompt.to_owned(),
        PromptOrder::Shuffle => {
            tags.shuffle(&mut random(
                data.seed,
                epoch,
                position,
                Purpose::PromptOrder,
            ));
        }
        // The sort is stable: equally rare tags stay in their order.
        PromptOrder::RareFirst => tags.sort_by_key(|tag| counts.of_tag(tag)),
    }
    tags.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example_data::data;
    use std::collections::BTreeSet;

    fn with(prompt_order: PromptOrder) -> Data {
        Data {
            prompt_order,
            ..data()
        }
    }

    const PROMPT: &str = "1girl, blue_hair, hat, smile, solo";

    fn counts() -> TagCounts {
        TagCounts::of([PROMPT, "1girl, smile, solo", "1girl, hat, solo, solo", ""])
    }

    #[test]
    fn as_written_changes_no_byte() {
        let odd = "b,a ,  c,, b";
        let data = with(PromptOrder::AsWritten);
        assert_eq!(in_order(odd, &data, &counts(), 3, 4), odd);
    }

    #[test]
    fn rare_tags_come_first_in_every_epoch_and_equally_rare_ones_as_written() {
        let data = with(PromptOrder::RareFirst);
        for epoch in 0..3 {
            assert_eq!(
                in_order(PROMPT, &data, &counts(), epoch, epoch),
                "blue_hair, hat, smile, 1girl, solo"
            );
        }
        assert_eq!(in_order("solo, new", &data, &counts(), 0, 0), "new, solo");
    }

    #[test]
    fn shuffled_prompts_keep_their_tags_and_depend_on_seed_epoch_and_sample_alone() {
        let data = with(PromptOrder::Shuffle);
        let shuffled = |seed, epoch, position| {
            let data = Data {
                seed,
                ..data.clone()
            };
            in_order(PROMPT, &data, &TagCounts::default(), epoch, position)
        };
        let expected: BTreeSet<&str> = split_tags(PROMPT).collect();
        let mut orders = BTreeSet::new();
        for position in 0..50 {
            let order = shuffled(7, 0, position);
            assert_eq!(split_tags(&order).collect::<BTreeSet<_>>(), expected);
            assert_eq!(order, shuffled(7, 0, position));
            orders.insert(order);
        }
        assert!(orders.len() > 25, "{} of 50 orders differ", orders.len());
        let of = |seed, epoch| -> Vec<String> {
            (0..20)
                .map(|position| shuffled(seed, epoch, position))
                .collect()
        };
        assert_ne!(of(7, 0), of(7, 1));
        assert_ne!(of(7, 0), of(8, 0));
    }
}
