//! Loads, decodes and prepares the samples of a step, from local or remote storage. Row groups and
//! decoded images are cached in memory up to a bound. Prefetching is up to the rank, which clones
//! the loader into a task. Every result is a pure function of the job's data section and the step
//! (laws 1 and 2), whatever the cache contains.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use proto::rating::Ratings;
use proto::spec::{ArchitectureSpec, Data, PromptOrder};

use crate::cache::Cache;
use crate::dataset::{Dataset, GroupId};
use crate::decoded::{Decoded, decode};
use crate::example::Example;
pub use crate::load_error::LoadError;
use crate::names;
use crate::order::SampleOrder;
use crate::prepare::{ExampleConfig, prepare};
use crate::prompt_order::{TagCounts, in_order};
use crate::reference::{Slot, Source, choose};
use crate::roles::{Counts, Role, needed, role, similar};
use crate::sample::{Metadata, Sample};

/// Row groups that are fetched in parallel.
const PARALLEL_READS: usize = 8;

/// Samples that one blocking task prepares.
const EXAMPLES_PER_TASK: usize = 4;

#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    pub examples: ExampleConfig,
    /// Memory bound of the caches of row groups and decoded images together.
    pub cache_bytes: usize,
    /// The data-set version that the job was submitted with. None accepts any version.
    pub version: Option<String>,
}

impl LoaderOptions {
    /// Options for examples of this architecture.
    #[must_use]
    pub fn new(
        architecture: &ArchitectureSpec,
        cache_bytes: usize,
        version: Option<String>,
    ) -> Self {
        Self {
            examples: architecture.into(),
            cache_bytes,
            version,
        }
    }
}

/// Cheap to clone; clones share the cache.
#[derive(Debug, Clone)]
pub struct Loader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dataset: Dataset,
    data: Data,
    example_config: ExampleConfig,
    rows: Vec<Metadata>,
    /// The ratings that are used in this data set.
    ratings: Ratings,
    counts: Counts,
    training: Vec<u64>,
    held_out: Vec<u64>,
    order: SampleOrder,
    /// Empty unless the job's prompts are ordered by them.
    tags: TagCounts,
    groups: Mutex<Cache<GroupId, Arc<Vec<Sample>>>>,
    decoded: Mutex<Cache<u64, Arc<Decoded>>>,
}

impl Loader {
    /// Opens the data set of a job and reads its metadata columns once, to determine which samples
    /// are trained on.
    ///
    /// # Errors
    /// The data set is missing, damaged, of another version, or leaves nothing to train on.
    pub async fn open(data: &Data, options: LoaderOptions) -> Result<Self, LoadError> {
        let dataset = open_version(&data.dataset, options.version).await?;
        let rows = dataset.scan().await?;
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        let rated = rows.iter().any(|row| !row.rating.is_empty());
        let ratings = data.ratings.in_dataset(rated);
        let mut counts = Counts::new(data);
        let needed = needed(&options.examples);
        for (position, row) in rows.iter().enumerate() {
            let role = role(&rows, 0, position, &ratings, data, &options.examples);
            let others = similar(&rows, 0, &ratings, position).count();
            counts.add(role, row, others < needed);
            match role {
                Role::Training => training.push(position as u64),
                Role::HeldOut => held_out.push(position as u64),
                Role::WithoutSimilar | Role::LeftOut => {}
            }
        }
        counts.check(&dataset, &data.ratings)?;
        let order = SampleOrder::new(data.seed, training.len() as u64);
        let tags = match data.prompt_order {
            PromptOrder::RareFirst => TagCounts::of(rows.iter().map(|row| row.prompts.as_str())),
            PromptOrder::AsWritten | PromptOrder::Shuffle => TagCounts::default(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                dataset,
                data: data.clone(),
                example_config: options.examples,
                rows,
                ratings,
                counts,
                training,
                held_out,
                order,
                tags,
                groups: Mutex::new(Cache::new(options.cache_bytes / 4)),
                decoded: Mutex::new(Cache::new(options.cache_bytes / 4 * 3)),
            }),
        })
    }

    #[must_use]
    pub fn dataset(&self) -> &Dataset {
        &self.inner.dataset
    }

    /// Metadata of every sample, by position.
    #[must_use]
    pub fn rows(&self) -> &[Metadata] {
        &self.inner.rows
    }

    /// Positions that are trained on, ascending.
    #[must_use]
    pub fn training(&self) -> &[u64] {
        &self.inner.training
    }

    /// Positions of the samples of held-out characters, ascending.
    #[must_use]
    pub fn held_out(&self) -> &[u64] {
        &self.inner.held_out
    }

    /// The position of the sample that a user means by `id`: that id, or what an import makes of it
    /// (spaces, Unicode form).
    #[must_use]
    pub fn position_of(&self, id: &str) -> Option<u64> {
        let rows = &self.inner.rows;
        let find = |id: &str| rows.iter().position(|row| row.id == id);
        let found = find(id).or_else(|| find(&names::id(id).ok()?));
        found.map(|row| row as u64)
    }

    /// Whether a sample has a rating that the job uses.
    #[must_use]
    pub fn uses(&self, position: u64) -> bool {
        let row = usize::try_from(position).ok();
        let row = row.and_then(|row| self.inner.rows.get(row));
        row.is_some_and(|row| self.inner.ratings.allow(&row.rating))
    }

    /// The samples that may be references of a sample in pairing b: its similar images of the
    /// ratings that the job uses.
    #[must_use]
    pub fn similar(&self, position: u64) -> Vec<u64> {
        self.inner.similar(position)
    }

    /// How many samples the job leaves out because of their rating; None if it uses all.
    #[must_use]
    pub fn left_out(&self) -> Option<String> {
        self.inner.counts.left_out_line(&self.inner.data.ratings)
    }

    /// What becomes of samples without a word in job.toml, a sentence for each kind.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.inner.counts.notes(&self.inner.data)
    }

    /// The prompt of a sample in an epoch, in the job's order of tags, before it is perhaps
    /// dropped.
    #[must_use]
    pub fn prompt(&self, epoch: u64, position: u64) -> String {
        let written = &self.inner.rows[position as usize].prompts;
        self.inner.prompt(written, epoch, position)
    }

    /// (epoch, position) of the samples `range` within the global batch of `step` (1-based).
    ///
    /// # Errors
    /// The range is outside the global batch.
    pub fn places(
        &self,
        step: u64,
        global_batch: u32,
        range: Range<u32>,
    ) -> Result<Vec<(u64, u64)>, LoadError> {
        if range.start > range.end || range.end > global_batch {
            return Err(LoadError::Range {
                first: range.start,
                last: range.end,
                global_batch,
            });
        }
        let first = (step.max(1) - 1) * u64::from(global_batch);
        Ok(range
            .map(|i| self.inner.order.at(first + u64::from(i)))
            .map(|(epoch, index)| (epoch, self.inner.training[index as usize]))
            .collect())
    }

    /// The examples of `range` within the global batch of `step` (1-based), in order.
    ///
    /// # Errors
    /// Storage fails, or a row is damaged. The message names file, row group, row and id.
    pub async fn examples(
        &self,
        step: u64,
        global_batch: u32,
        range: Range<u32>,
    ) -> Result<Vec<Example>, LoadError> {
        self.examples_at(self.places(step, global_batch, range)?)
            .await
    }

    /// The examples at any (epoch, position) pairs, held out or not. Used for sampling.
    ///
    /// # Errors
    /// As [`Self::examples`].
    pub async fn examples_at(&self, samples: Vec<(u64, u64)>) -> Result<Vec<Example>, LoadError> {
        let mut needed = BTreeSet::new();
        for (_, position) in &samples {
            let (group, _) = self.inner.dataset.group_of(*position)?;
            needed.insert(group);
        }
        let groups: BTreeMap<GroupId, Arc<Vec<Sample>>> = futures::stream::iter(needed)
            .map(|group| async move { Ok::<_, LoadError>((group, self.group(group).await?)) })
            .buffered(PARALLEL_READS)
            .try_collect()
            .await?;
        // Decoding and resizing are CPU-bound. They run off the async threads, so that heartbeats
        // are not delayed, and on all cores, because a GPU consumes more images than one core
        // prepares.
        let groups = Arc::new(groups);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let chunks: Vec<Vec<(u64, u64)>> = samples
            .chunks(EXAMPLES_PER_TASK)
            .map(<[_]>::to_vec)
            .collect();
        let examples: Vec<Vec<Example>> = futures::stream::iter(chunks)
            .map(|chunk| {
                let (inner, groups) = (Arc::clone(&self.inner), Arc::clone(&groups));
                let work = move || {
                    chunk
                        .iter()
                        .map(|(epoch, position)| inner.example(&groups, *epoch, *position))
                        .collect::<Result<Vec<_>, _>>()
                };
                async move {
                    tokio::task::spawn_blocking(work)
                        .await
                        .map_err(|_| LoadError::Cancelled)?
                }
            })
            .buffered(cores)
            .try_collect()
            .await?;
        Ok(examples.into_iter().flatten().collect())
    }

    /// Decodes one sample.
    ///
    /// # Errors
    /// As [`Self::examples`].
    pub async fn decoded(&self, position: u64) -> Result<Arc<Decoded>, LoadError> {
        let (group, _) = self.inner.dataset.group_of(position)?;
        let rows = self.group(group).await?;
        self.inner.decode(group, &rows, position)
    }

    async fn group(&self, group: GroupId) -> Result<Arc<Vec<Sample>>, LoadError> {
        if let Some(rows) = lock(&self.inner.groups).get(group) {
            return Ok(rows);
        }
        let rows = Arc::new(self.inner.dataset.rows_of_group(group).await?);
        let bytes = rows
            .iter()
            .map(|r| r.image.len() + r.mask.len() + 512)
            .sum();
        lock(&self.inner.groups).put(group, Arc::clone(&rows), bytes);
        Ok(rows)
    }
}

impl Inner {
    fn similar(&self, position: u64) -> Vec<u64> {
        let row = usize::try_from(position).expect("positions are indices");
        similar(&self.rows, 0, &self.ratings, row).collect()
    }

    fn prompt(&self, written: &str, epoch: u64, position: u64) -> String {
        in_order(written, &self.data, &self.tags, epoch, position)
    }

    fn example(
        &self,
        groups: &BTreeMap<GroupId, Arc<Vec<Sample>>>,
        epoch: u64,
        position: u64,
    ) -> Result<Example, LoadError> {
        let mut example = self.as_written(groups, epoch, position)?;
        // A dropped prompt is empty, and stays so.
        example.prompt = self.prompt(&example.prompt, epoch, position);
        Ok(example)
    }

    /// The example with its prompt as in the data set.
    fn as_written(
        &self,
        groups: &BTreeMap<GroupId, Arc<Vec<Sample>>>,
        epoch: u64,
        position: u64,
    ) -> Result<Example, LoadError> {
        let (group, row) = self.dataset.group_of(position)?;
        let rows = &groups[&group];
        let target = self.decode(group, rows, position)?;
        let Some(references) = self.example_config.references.filter(|it| it.count > 0) else {
            return Ok(prepare(
                &self.data,
                &self.example_config,
                epoch,
                &target,
                &[],
            ));
        };
        let similar = self.similar(position);
        let slots = choose(&references, self.data.seed, epoch, position, similar.len());
        if slots.is_empty() {
            return Err(LoadError::NoSimilar {
                url: self.dataset.url().to_owned(),
                position,
            });
        }
        let mut references: Vec<(Slot, Arc<Decoded>)> = Vec::with_capacity(slots.len());
        for slot in slots {
            let image = match slot.source {
                Source::Target => Arc::clone(&target),
                Source::Similar(n) if self.dataset.group_of(similar[n])?.0 == group => {
                    self.decode(group, rows, similar[n])?
                }
                Source::Similar(n) => {
                    return Err(LoadError::Similar {
                        path: self.dataset.path_of(group).to_owned(),
                        group: group.group,
                        row,
                        id: target.metadata.id.clone(),
                        similar: similar[n],
                    });
                }
            };
            references.push((slot, image));
        }
        let references: Vec<(Slot, &Decoded)> =
            references.iter().map(|(s, d)| (*s, d.as_ref())).collect();
        Ok(prepare(
            &self.data,
            &self.example_config,
            epoch,
            &target,
            &references,
        ))
    }

    fn decode(
        &self,
        group: GroupId,
        rows: &[Sample],
        position: u64,
    ) -> Result<Arc<Decoded>, LoadError> {
        if let Some(decoded) = lock(&self.decoded).get(position) {
            return Ok(decoded);
        }
        let (_, row) = self.dataset.group_of(position)?;
        let decoded = decode(&rows[row], position).map_err(|source| LoadError::Row {
            path: self.dataset.path_of(group).to_owned(),
            group: group.group,
            row,
            id: rows[row].metadata.id.clone(),
            source,
        })?;
        let decoded = Arc::new(decoded);
        lock(&self.decoded).put(position, Arc::clone(&decoded), decoded.bytes() + 512);
        Ok(decoded)
    }
}

/// Opens the version that a job is pinned to, also if another one has replaced it since.
async fn open_version(url: &str, version: Option<String>) -> Result<Dataset, LoadError> {
    let newest = Dataset::open(url).await?;
    let Some(pinned) = version.filter(|pinned| pinned != newest.version()) else {
        return Ok(newest);
    };
    match newest.older(&pinned).await? {
        Some(older) => Ok(older),
        None => Err(LoadError::Version {
            url: url.to_owned(),
            found: newest.version().to_owned(),
            pinned,
        }),
    }
}

/// A poisoned cache is still usable: entries are inserted whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
