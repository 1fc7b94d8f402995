//! Divides the samples of a data set for a job: which ones it trains on, holds out, or leaves out.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::TryStreamExt;
use proto::rating::{Rating, Ratings, left_out_line};
use proto::spec::{Data, Pairing, PromptOrder};

use crate::dataset::Dataset;
use crate::holdout::is_held_out;
use crate::image_sizes::ImageSizes;
use crate::load_error::LoadError;
use crate::prepare::ExampleConfig;
use crate::prompt_length::{CutPrompts, PromptCounter};
use crate::prompt_order::{TagCounts, in_order};
use crate::sample::Metadata;

/// Into what a job divides the samples of its data set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    pub training: u64,
    pub held_out: u64,
    /// Neither: pairing b needs another image of their identity.
    pub without_similar: u64,
    /// Samples of ratings that the job does not use, by rating.
    pub left_out: BTreeMap<String, u64>,
    /// Training samples that have fewer other images than the model is shown references, so that
    /// one of them is shown more than once.
    pub repeated: u64,
    /// Of training samples.
    pub sizes: ImageSizes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Training,
    HeldOut,
    WithoutSimilar,
    /// Its rating is not used.
    LeftOut,
}

/// The role of `rows[row]`. `rows` contains all rows of its identity, and begins at position
/// `first`. `ratings` are those that are used in this data set ([`Ratings::in_dataset`]).
pub(crate) fn role(
    rows: &[Metadata],
    first: u64,
    row: usize,
    ratings: &Ratings,
    data: &Data,
    examples: &ExampleConfig,
) -> Role {
    if !ratings.allow(&rows[row].rating) {
        Role::LeftOut
    } else if 0 < needed(examples) && similar(rows, first, ratings, row).next().is_none() {
        Role::WithoutSimilar
    } else if is_held_out(data.seed, &rows[row].character, data.holdout) {
        Role::HeldOut
    } else {
        Role::Training
    }
}

/// How many similar images a sample should have.
pub(crate) fn needed(examples: &ExampleConfig) -> usize {
    let references = examples.references.as_ref();
    let from_others = references.filter(|it| it.pairing == Pairing::B);
    from_others.map_or(0, |it| it.count as usize)
}

/// The similar images of `rows[row]` that have one of these ratings.
pub(crate) fn similar<'a>(
    rows: &'a [Metadata],
    first: u64,
    ratings: &'a Ratings,
    row: usize,
) -> impl Iterator<Item = u64> + 'a {
    // A damaged data set may name a position outside; that is an error where it is read.
    let is_used = move |position: &u64| {
        let row = position.checked_sub(first);
        let row = row.and_then(|row| rows.get(usize::try_from(row).ok()?));
        row.is_none_or(|row| ratings.allow(&row.rating))
    };
    rows[row].similar_positions.iter().copied().filter(is_used)
}

/// What is counted under the assumption that some sample has a rating, or that none has.
struct Tally {
    ratings: Ratings,
    counts: Counts,
    prompts: Option<PromptCounter>,
}

impl Tally {
    fn new(data: &Data, rated: bool, tokens: Option<u32>) -> Self {
        Self {
            ratings: data.ratings.in_dataset(rated),
            counts: Counts::new(data),
            prompts: tokens.map(PromptCounter::new),
        }
    }

    /// Adds a row group.
    fn add(
        &mut self,
        rows: &[Metadata],
        first: u64,
        data: &Data,
        examples: &ExampleConfig,
        tags: &TagCounts,
    ) {
        for (index, row) in rows.iter().enumerate() {
            let role = role(rows, first, index, &self.ratings, data, examples);
            let others = similar(rows, first, &self.ratings, index).count();
            self.counts.add(role, row, others < needed(examples));
            if let (Role::Training, Some(prompts)) = (role, &mut self.prompts) {
                let position = first + index as u64;
                prompts.add(&in_order(&row.prompts, data, tags, 0, position));
            }
        }
    }
}

impl Counts {
    /// Reads the metadata columns as [`crate::loader::Loader::open`] does, but keeps nothing of
    /// them. Also counts the prompts of the samples that are trained on that are longer than
    /// `tokens`, in the order of the first epoch; none if the model reads no prompts.
    ///
    /// # Errors
    /// The data set is damaged, or leaves nothing to train on.
    pub async fn of(
        dataset: &Dataset,
        data: &Data,
        examples: &ExampleConfig,
        tokens: Option<u32>,
    ) -> Result<(Self, Option<CutPrompts>), LoadError> {
        let tags = match data.prompt_order {
            PromptOrder::RareFirst if tokens.is_some() => count_tags(dataset).await?,
            _ => TagCounts::default(),
        };
        let mut rated = Tally::new(data, true, tokens);
        // Holds until the first sample with a rating.
        let unrated = Tally::new(data, false, tokens);
        let mut unrated = Some(unrated).filter(|it| it.ratings != rated.ratings);
        let mut first = 0;
        let mut groups = pin!(dataset.metadata());
        while let Some(rows) = groups.try_next().await? {
            if rows.iter().any(|row| !row.rating.is_empty()) {
                unrated = None;
            }
            for tally in [Some(&mut rated), unrated.as_mut()].into_iter().flatten() {
                tally.add(&rows, first, data, examples, &tags);
            }
            first += rows.len() as u64;
        }
        let Tally {
            counts, prompts, ..
        } = unrated.unwrap_or(rated);
        counts.check(dataset, &data.ratings)?;
        Ok((counts, prompts.map(PromptCounter::finish)))
    }

    pub(crate) fn new(data: &Data) -> Self {
        Self {
            sizes: ImageSizes::new(&[data.resolution]),
            ..Self::default()
        }
    }

    /// `repeats`: it has too few similar images ([`needed`]).
    pub(crate) fn add(&mut self, role: Role, row: &Metadata, repeats: bool) {
        match role {
            Role::Training => {
                self.training += 1;
                self.repeated += u64::from(repeats);
                self.sizes.add(&row.id, row.width, row.height);
            }
            Role::HeldOut => self.held_out += 1,
            Role::WithoutSimilar => self.without_similar += 1,
            Role::LeftOut => {
                let word = match row.rating.as_str() {
                    "" => Rating::Unrated.word(),
                    rating => rating,
                };
                *self.left_out.entry(word.to_owned()).or_insert(0) += 1;
            }
        }
    }

    /// How many samples a job with these `data.ratings` leaves out because of their rating, as a
    /// sentence. None if it uses all.
    #[must_use]
    pub fn left_out_line(&self, ratings: &Ratings) -> Option<String> {
        left_out_line(&self.left_out, ratings)
    }

    /// What becomes of samples without a word in job.toml, a sentence for each kind.
    #[must_use]
    pub fn notes(&self, data: &Data) -> Vec<String> {
        let alone = (0 < self.without_similar).then(|| {
            format!(
                "{} samples are left out, because pairing b needs another image of the same outfit",
                self.without_similar
            )
        });
        let repeated = (0 < self.repeated).then(|| {
            format!(
                "{} of {} samples have fewer other images than data.references, so some of their \
                 references are shown twice",
                self.repeated, self.training
            )
        });
        let ratings = self.left_out_line(&data.ratings);
        let enlarged = self.sizes.enlarged(data.resolution);
        let all = [ratings, alone, repeated, enlarged, self.sizes.padded()];
        all.into_iter().flatten().collect()
    }

    pub(crate) fn check(&self, dataset: &Dataset, ratings: &Ratings) -> Result<(), LoadError> {
        if self.training > 0 {
            return Ok(());
        }
        Err(LoadError::NothingToTrain {
            url: dataset.url().to_owned(),
            samples: dataset.len(),
            held_out: self.held_out,
            without_similar: self.without_similar,
            left_out: self.left_out_line(ratings),
        })
    }
}

async fn count_tags(dataset: &Dataset) -> Result<TagCounts, LoadError> {
    let mut tags = TagCounts::default();
    let mut groups = pin!(dataset.metadata());
    while let Some(rows) = groups.try_next().await? {
        for row in &rows {
            tags.add(&row.prompts);
        }
    }
    Ok(tags)
}
