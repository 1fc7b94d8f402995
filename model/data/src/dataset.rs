//! Reads a data set: the manifest once, then single row groups by range reads, or the metadata
//! columns of all rows. Cheap to clone; only footers are cached. Decoding of images and caching of
//! rows is done by the loader.

use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::errors::ParquetError;
use proto::dataset::{DATASET_FILE, DATASET_SCHEMA_VERSION, DatasetManifest, kept_manifest};
use tokio::sync::OnceCell;

use crate::columns::{
    ColumnError, IMAGE_COLUMNS, copied_bytes, metadata_of, number_column, rows_of, schema,
    text_column,
};
use crate::parquet_object::{Limits, ParquetObject, too_large};
use crate::sample::{Metadata, Sample};
use proto::text::hex_sha256;
use storage::read::{ReadError, read_bounded};
use storage::{StoreError, open};

/// Row groups whose metadata is fetched in parallel: an object store takes 20 ms for each.
const PARALLEL_READS: usize = 8;
/// Largest `dataset.json`: some 100,000 files.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Largest file that is read whole, to verify it.
const FILE_BYTES_MAX: u64 = 4 << 30;

#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "no data set at {url:?}: {DATASET_FILE} does not exist; \
         create one with `coordinator dataset synthesize|import`"
    )]
    Missing { url: String },
    #[error("cannot read {path:?} of the data set {url:?}")]
    Read {
        url: String,
        path: String,
        source: ReadError,
    },
    #[error("{DATASET_FILE} of {url:?} is not a data-set manifest")]
    Json {
        url: String,
        source: serde_json::Error,
    },
    #[error("{DATASET_FILE} of {url:?} is inconsistent: {what}")]
    Manifest { url: String, what: String },
    #[error("cannot read row group {group} of {path:?} of the data set {url:?}")]
    Parquet {
        url: String,
        path: String,
        group: usize,
        source: ParquetError,
    },
    #[error("row group {group} of {path:?} of the data set {url:?} is damaged")]
    Columns {
        url: String,
        path: String,
        group: usize,
        source: ColumnError,
    },
    #[error("the rows of {path:?} of the data set {url:?} differ from {DATASET_FILE}: {what}")]
    Shape {
        url: String,
        path: String,
        what: String,
    },
    #[error("position {position} is outside the data set {url:?} of {samples} samples")]
    Position {
        url: String,
        position: u64,
        samples: u64,
    },
}

/// One row group of one file, both 0-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    pub file: usize,
    pub group: usize,
}

#[derive(Debug, Clone)]
pub struct Dataset {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    manifest: DatasetManifest,
    version: String,
    /// First position and row count of each row group, ordered by position.
    groups: Vec<(u64, u32, GroupId)>,
    footers: Vec<OnceCell<ArrowReaderMetadata>>,
}

impl Dataset {
    /// Reads only `dataset.json`.
    ///
    /// # Errors
    /// There is no data set at `url`, or its manifest is not valid for this version.
    pub async fn open(url: &str) -> Result<Self, DatasetError> {
        Self::open_manifest(url, DATASET_FILE).await
    }

    /// An older version at the same URL, which was replaced (`--replace`) and whose files were
    /// kept. None if there is none.
    ///
    /// # Errors
    /// Its manifest is not valid for this version of the program, or storage fails.
    pub async fn older(&self, version: &str) -> Result<Option<Self>, DatasetError> {
        match Self::open_manifest(self.url(), &kept_manifest(version)).await {
            Ok(dataset) => Ok(Some(dataset).filter(|it| it.version() == version)),
            Err(DatasetError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn open_manifest(url: &str, file: &str) -> Result<Self, DatasetError> {
        let (store, prefix) = open(url)?;
        let path = prefix.clone().join(file);
        let bytes = match read_bounded(store.as_ref(), &path, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => {
                return Err(DatasetError::Missing {
                    url: url.to_owned(),
                });
            }
            Err(source) => {
                return Err(DatasetError::Read {
                    url: url.to_owned(),
                    path: file.to_owned(),
                    source,
                });
            }
        };
        let manifest: DatasetManifest =
            serde_json::from_slice(&bytes).map_err(|source| DatasetError::Json {
                url: url.to_owned(),
                source,
            })?;
        let groups = groups_of(&manifest).map_err(|what| DatasetError::Manifest {
            url: url.to_owned(),
            what,
        })?;
        let footers = manifest.files.iter().map(|_| OnceCell::new()).collect();
        let version = hex_sha256(&bytes);
        Ok(Self {
            inner: Arc::new(Inner {
                url: url.to_owned(),
                store,
                prefix,
                manifest,
                version,
                groups,
                footers,
            }),
        })
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    #[must_use]
    pub fn manifest(&self) -> &DatasetManifest {
        &self.inner.manifest
    }

    /// SHA-256 of `dataset.json` in hex, which a job pins. It covers all files, because the
    /// manifest contains their hashes.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }

    /// Number of samples; never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.inner.manifest.samples
    }

    /// All row groups with their first positions, ordered by position.
    pub fn groups(&self) -> impl Iterator<Item = (u64, GroupId)> + '_ {
        self.inner
            .groups
            .iter()
            .map(|(first, _, group)| (*first, *group))
    }

    /// The row group of a position, and the row inside it.
    ///
    /// # Errors
    /// The position is outside the data set.
    pub fn group_of(&self, position: u64) -> Result<(GroupId, usize), DatasetError> {
        if position >= self.len() {
            return Err(DatasetError::Position {
                url: self.inner.url.clone(),
                position,
                samples: self.len(),
            });
        }
        let index = self
            .inner
            .groups
            .partition_point(|(first, _, _)| *first <= position)
            - 1;
        let (first, _, group) = self.inner.groups[index];
        Ok((group, (position - first) as usize))
    }

    /// The path of a row group's file, for messages.
    #[must_use]
    pub fn path_of(&self, group: GroupId) -> &str {
        &self.inner.manifest.files[group.file].path
    }

    /// All rows of one row group, by one range read.
    ///
    /// # Errors
    /// Storage fails, or the file differs from the manifest.
    pub async fn rows_of_group(&self, group: GroupId) -> Result<Vec<Sample>, DatasetError> {
        let batch = self.read(group, None).await?;
        rows_of(&batch).map_err(|source| self.columns_error(group, source))
    }

    /// All columns except images and masks, of all rows ordered by position.
    ///
    /// # Errors
    /// As [`Self::rows_of_group`].
    pub async fn scan(&self) -> Result<Vec<Metadata>, DatasetError> {
        self.metadata().try_concat().await
    }

    /// As [`Self::scan`], one row group at a time, so that few are in memory.
    pub fn metadata(&self) -> impl Stream<Item = Result<Vec<Metadata>, DatasetError>> + use<> {
        let columns: Arc<[usize]> = (0..schema().fields().len())
            .filter(|i| !IMAGE_COLUMNS.contains(&schema().field(*i).name().as_str()))
            .collect();
        let groups: Vec<GroupId> = self.groups().map(|(_, group)| group).collect();
        let dataset = self.clone();
        let read = move |group| {
            let (dataset, columns) = (dataset.clone(), Arc::clone(&columns));
            async move {
                let batch = dataset.read(group, Some(&columns)).await?;
                metadata_of(&batch).map_err(|source| dataset.columns_error(group, source))
            }
        };
        futures::stream::iter(groups)
            .map(read)
            .buffered(PARALLEL_READS)
    }

    /// The index: (id, position), sorted by id.
    ///
    /// # Errors
    /// The index is missing or damaged.
    pub async fn index(&self) -> Result<Vec<(String, u64)>, DatasetError> {
        let file = &self.inner.manifest.index;
        let damaged = |source| DatasetError::Parquet {
            url: self.inner.url.clone(),
            path: file.path.clone(),
            group: 0,
            source,
        };
        let object = self.object(&file.path, file.size_bytes);
        let footer = object.footer().await.map_err(damaged)?;
        let mut rows = Vec::new();
        for group in 0..footer.metadata().num_row_groups() {
            let all = ProjectionMask::all();
            let batches = object.rows(&footer, group, &all, Limits::INDEX).await;
            for batch in batches.map_err(damaged)? {
                let copied = copied_bytes(&batch);
                if Limits::INDEX.bytes < copied {
                    return Err(damaged(too_large(copied, Limits::INDEX)));
                }
                let read = || {
                    Ok((
                        text_column(&batch, "id")?,
                        number_column(&batch, "position")?,
                    ))
                };
                let (ids, positions) = read().map_err(|source| DatasetError::Columns {
                    url: self.inner.url.clone(),
                    path: file.path.clone(),
                    group,
                    source,
                })?;
                rows.extend(ids.into_iter().zip(positions));
            }
        }
        Ok(rows)
    }

    /// The whole content of a file of the data set.
    ///
    /// # Errors
    /// Storage fails, or the file has more than 4 GiB; this program writes files of 64 MiB.
    pub async fn bytes_of(&self, path: &str) -> Result<Bytes, DatasetError> {
        let object = self.inner.prefix.clone().join(path);
        read_bounded(self.inner.store.as_ref(), &object, FILE_BYTES_MAX)
            .await
            .map_err(|source| DatasetError::Read {
                url: self.inner.url.clone(),
                path: path.to_owned(),
                source,
            })
    }

    /// One row group as one batch; `columns` are indices into the schema.
    async fn read(
        &self,
        group: GroupId,
        columns: Option<&[usize]>,
    ) -> Result<RecordBatch, DatasetError> {
        let file = &self.inner.manifest.files[group.file];
        let rows = file.row_groups[group.group] as usize;
        let failed = |source| DatasetError::Parquet {
            url: self.inner.url.clone(),
            path: file.path.clone(),
            group: group.group,
            source,
        };
        let footer = self.footer(group.file).await.map_err(failed)?;
        if footer.metadata().num_row_groups() != file.row_groups.len() {
            return Err(self.shape_error(
                group,
                format!("{} row groups", footer.metadata().num_row_groups()),
            ));
        }
        let found = footer.metadata().row_group(group.group).num_rows();
        if usize::try_from(found) != Ok(rows) {
            return Err(self.shape_error(group, format!("{found} rows instead of {rows}")));
        }
        let (mask, limits) = match columns {
            None => (ProjectionMask::all(), Limits::ROWS),
            Some(columns) => {
                let schema = footer.parquet_schema();
                let mask = ProjectionMask::roots(schema, columns.iter().copied());
                (mask, Limits::METADATA)
            }
        };
        let object = self.object(&file.path, file.size_bytes);
        let batches = object.rows(&footer, group.group, &mask, limits).await;
        match <[RecordBatch; 1]>::try_from(batches.map_err(failed)?) {
            Ok([batch]) if batch.num_rows() == rows => {
                let copied = copied_bytes(&batch);
                if limits.bytes < copied {
                    return Err(failed(too_large(copied, limits)));
                }
                Ok(batch)
            }
            Ok([batch]) => Err(self.shape_error(
                group,
                format!("{} rows instead of {rows}", batch.num_rows()),
            )),
            Err(batches) => Err(self.shape_error(group, format!("{} batches", batches.len()))),
        }
    }

    async fn footer(&self, file: usize) -> Result<ArrowReaderMetadata, ParquetError> {
        let entry = &self.inner.manifest.files[file];
        let object = self.object(&entry.path, entry.size_bytes);
        self.inner.footers[file]
            .get_or_try_init(|| object.footer())
            .await
            .cloned()
    }

    fn object(&self, path: &str, size: u64) -> ParquetObject<'_> {
        ParquetObject {
            store: self.inner.store.as_ref(),
            path: self.inner.prefix.clone().join(path),
            size,
        }
    }

    fn columns_error(&self, group: GroupId, source: ColumnError) -> DatasetError {
        DatasetError::Columns {
            url: self.inner.url.clone(),
            path: self.path_of(group).to_owned(),
            group: group.group,
            source,
        }
    }

    fn shape_error(&self, group: GroupId, found: String) -> DatasetError {
        let what = format!("row group {} has {found}", group.group);
        DatasetError::Shape {
            url: self.inner.url.clone(),
            path: self.path_of(group).to_owned(),
            what,
        }
    }
}

fn groups_of(manifest: &DatasetManifest) -> Result<Vec<(u64, u32, GroupId)>, String> {
    if manifest.schema_version != DATASET_SCHEMA_VERSION {
        return Err(format!(
            "schema_version is {}, this program supports {DATASET_SCHEMA_VERSION}",
            manifest.schema_version
        ));
    }
    let mut first = 0u64;
    let mut groups = Vec::new();
    for (file, entry) in manifest.files.iter().enumerate() {
        for (group, rows) in entry.row_groups.iter().enumerate() {
            groups.push((first, *rows, GroupId { file, group }));
            first += u64::from(*rows);
        }
    }
    if first != manifest.samples || first == 0 {
        return Err(format!(
            "samples is {}, the row groups have {first} rows",
            manifest.samples
        ));
    }
    if groups.iter().any(|(_, rows, _)| *rows == 0) {
        return Err("a row group has no rows".to_owned());
    }
    Ok(groups)
}
