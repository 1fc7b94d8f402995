//! The samples of a step, decoded and prepared, from a data set anywhere. Keeps row groups and
//! decoded pictures in memory up to a bound. Decides nothing about when: prefetching the next step
//! is the rank's business (clone the loader into a task). Every answer is a pure function of the
//! job's data section and the step (laws 1 and 2), whatever the cache holds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use proto::spec::{ArchitectureSpec, Data, Pairing};

use crate::cache::Cache;
use crate::dataset::{Dataset, DatasetError, GroupId};
use crate::example::Example;
use crate::holdout::is_held_out;
use crate::image_file::{Decoded, ImageError, decode};
use crate::order::SampleOrder;
use crate::prepare::{Shown, prepare};
use crate::reference::{Slot, Source, choose};
use crate::sample::{Metadata, Sample};

/// Row groups that are fetched at the same time.
const PARALLEL_READS: usize = 8;

/// Samples that one core prepares in one go.
const EXAMPLES_AT_ONCE: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Dataset(Box<DatasetError>),
    #[error("row {row} (id {id:?}) of row group {group} of {path:?} cannot be used")]
    Row {
        path: String,
        group: usize,
        row: usize,
        id: String,
        source: ImageError,
    },
    #[error(
        "row {row} (id {id:?}) of row group {group} of {path:?} names position {similar} as \
        similar, \
         which is not in its row group"
    )]
    Similar {
        path: String,
        group: usize,
        row: usize,
        id: String,
        similar: u64,
    },
    #[error(
        "the data set {url:?} has version {found}, the job was submitted with {pinned}; \
         it was written anew since"
    )]
    Version {
        url: String,
        found: String,
        pinned: String,
    },
    #[error(
        "nothing to train on in {url:?}: {held_out} of {samples} samples are held out and {alone} \
        have \
         no similar picture"
    )]
    NothingToTrain {
        url: String,
        samples: u64,
        held_out: u64,
        alone: u64,
    },
    #[error("sample {position} of {url:?} has no similar picture to be drawn from (pairing b)")]
    Alone { url: String, position: u64 },
    #[error("the step's samples {first}..{last} are outside its global batch of {global_batch}")]
    Range {
        first: u32,
        last: u32,
        global_batch: u32,
    },
    #[error("preparing samples was cancelled: the program is shutting down")]
    Cancelled,
}

impl From<DatasetError> for LoadError {
    fn from(error: DatasetError) -> Self {
        Self::Dataset(Box::new(error))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    pub shown: Shown,
    /// Memory for row groups and decoded pictures together.
    pub cache_bytes: usize,
    /// The data-set version that the job was submitted with; None accepts any.
    pub version: Option<String>,
}

impl LoaderOptions {
    /// What an architecture is shown, with so much memory.
    #[must_use]
    pub fn new(
        architecture: &ArchitectureSpec,
        cache_bytes: usize,
        version: Option<String>,
    ) -> Self {
        Self {
            shown: architecture.into(),
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
    shown: Shown,
    rows: Vec<Metadata>,
    training: Vec<u64>,
    held_out: Vec<u64>,
    order: SampleOrder,
    groups: Mutex<Cache<GroupId, Arc<Vec<Sample>>>>,
    decoded: Mutex<Cache<u64, Arc<Decoded>>>,
}

impl Loader {
    /// Opens the data set of a job and reads its metadata columns once, to know which samples
    /// training may show.
    ///
    /// # Errors
    /// The data set is missing, damaged, of another version, or leaves nothing to train on.
    pub async fn open(data: &Data, options: LoaderOptions) -> Result<Self, LoadError> {
        let dataset = Dataset::open(&data.dataset).await?;
        if let Some(pinned) = options.version.filter(|pinned| pinned != dataset.version()) {
            return Err(LoadError::Version {
                url: data.dataset.clone(),
                found: dataset.version().to_owned(),
                pinned,
            });
        }
        let rows = dataset.scan().await?;
        let references = options.shown.references;
        let needs_similar = references.is_some_and(|it| it.count > 0 && it.pairing == Pairing::B);
        let (mut training, mut held_out, mut alone) = (Vec::new(), Vec::new(), 0);
        for (position, row) in rows.iter().enumerate() {
            if needs_similar && row.similar_positions.is_empty() {
                alone += 1;
            } else if is_held_out(data.seed, &row.character, data.holdout) {
                held_out.push(position as u64);
            } else {
                training.push(position as u64);
            }
        }
        if training.is_empty() {
            return Err(LoadError::NothingToTrain {
                url: data.dataset.clone(),
                samples: dataset.len(),
                held_out: held_out.len() as u64,
                alone,
            });
        }
        let order = SampleOrder::new(data.seed, training.len() as u64);
        Ok(Self {
            inner: Arc::new(Inner {
                dataset,
                data: data.clone(),
                shown: options.shown,
                rows,
                training,
                held_out,
                order,
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

    /// Positions that training shows, ascending.
    #[must_use]
    pub fn training(&self) -> &[u64] {
        &self.inner.training
    }

    /// Positions of the characters that training never shows, ascending.
    #[must_use]
    pub fn held_out(&self) -> &[u64] {
        &self.inner.held_out
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
    /// Storage fails, or a row is damaged; the message names file, row group, row and id.
    pub async fn examples(
        &self,
        step: u64,
        global_batch: u32,
        range: Range<u32>,
    ) -> Result<Vec<Example>, LoadError> {
        self.examples_at(self.places(step, global_batch, range)?)
            .await
    }

    /// The examples at any places (epoch, position), held out or not: sampling uses this.
    ///
    /// # Errors
    /// As [`Self::examples`].
    pub async fn examples_at(&self, places: Vec<(u64, u64)>) -> Result<Vec<Example>, LoadError> {
        let mut missing = BTreeMap::new();
        for (_, position) in &places {
            let (group, _) = self.inner.dataset.group_of(*position)?;
            missing.entry(group).or_insert(());
        }
        let groups: BTreeMap<GroupId, Arc<Vec<Sample>>> =
            futures::stream::iter(missing.into_keys())
                .map(|group| async move { Ok::<_, LoadError>((group, self.group(group).await?)) })
                .buffered(PARALLEL_READS)
                .try_collect()
                .await?;
        // Decoding and resizing are real work: off the async threads, whose heartbeats must not
        // wait for it, and on all cores, because a GPU asks for more pictures than one core
        // prepares.
        let groups = Arc::new(groups);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let parts: Vec<Vec<(u64, u64)>> =
            places.chunks(EXAMPLES_AT_ONCE).map(<[_]>::to_vec).collect();
        let parts: Vec<Vec<Example>> = futures::stream::iter(parts)
            .map(|part| {
                let (inner, groups) = (Arc::clone(&self.inner), Arc::clone(&groups));
                let work = move || {
                    part.iter()
                        .map(|(epoch, at)| inner.example(&groups, *epoch, *at))
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
        Ok(parts.into_iter().flatten().collect())
    }

    /// One sample, decoded.
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
    fn example(
        &self,
        groups: &BTreeMap<GroupId, Arc<Vec<Sample>>>,
        epoch: u64,
        position: u64,
    ) -> Result<Example, LoadError> {
        let (group, row) = self.dataset.group_of(position)?;
        let rows = &groups[&group];
        let target = self.decode(group, rows, position)?;
        let Some(references) = self.shown.references.filter(|it| it.count > 0) else {
            return Ok(prepare(&self.data, &self.shown, epoch, &target, &[]));
        };
        let similar = &target.metadata.similar_positions;
        let slots = choose(&references, self.data.seed, epoch, position, similar.len());
        if slots.is_empty() {
            return Err(LoadError::Alone {
                url: self.dataset.url().to_owned(),
                position,
            });
        }
        let mut references: Vec<(Slot, Arc<Decoded>)> = Vec::with_capacity(slots.len());
        for slot in slots {
            let from = match slot.source {
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
            references.push((slot, from));
        }
        let references: Vec<(Slot, &Decoded)> =
            references.iter().map(|(s, d)| (*s, d.as_ref())).collect();
        Ok(prepare(
            &self.data,
            &self.shown,
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

/// A cache whose holder panicked is still a cache: every entry was put whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
