//! Writes a data set: Parquet files of samples, an index from id to position, and `dataset.json`
//! last, so that a reader never sees a partial data set. The same rows in the same order give the
//! same bytes. Called by the commands `synthesize` and `import` and by tests. Images are not
//! checked here but by the import and the verifier.
//!
//! File names end in a prefix of their hash, so rewriting a data set does not change the files of
//! an older pinned version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{RecordBatch, StringArray, UInt64Array};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use proto::dataset::{
    DATASET_FILE, DATASET_SCHEMA_VERSION, DatasetManifest, IndexFile, SampleFile,
};
use proto::text::hex_sha256;

use crate::columns::{IMAGE_COLUMNS, schema, to_batch};
use crate::sample::Sample;
use storage::{StoreError, open};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// One line that describes the origin of the rows, for humans.
    pub source: String,
    /// A row group ends after the identity that exceeds this many bytes of images…
    pub row_group_bytes: usize,
    /// … or this many rows.
    pub row_group_rows: usize,
    /// A file ends after the row group that exceeds this many bytes.
    pub file_bytes: usize,
}

impl WriteOptions {
    /// Sizes that suit both a laptop's disk and an object store: one range read fetches about half
    /// a megabyte.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            row_group_bytes: 512 << 10,
            row_group_rows: 64,
            file_bytes: 64 << 20,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write {path:?}")]
    Put {
        path: String,
        source: object_store::Error,
    },
    #[error("cannot encode Parquet")]
    Parquet(#[from] ParquetError),
    #[error("cannot build columns")]
    Arrow(#[from] ArrowError),
    #[error("id {id:?} occurs twice; ids must be unique in a data set")]
    DuplicateId { id: String },
    #[error("sample {id:?} is similar to {similar:?}, which is not another image of its identity")]
    Dangling { id: String, similar: String },
    #[error("the data set would be empty; it needs at least one sample")]
    Empty,
}

/// A data set that is being written.
#[derive(Debug)]
pub struct DatasetWriter {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    options: WriteOptions,
    /// Rows of the current row group.
    pending: Vec<Sample>,
    pending_bytes: usize,
    file: Option<OpenFile>,
    files: Vec<SampleFile>,
    positions: BTreeMap<String, u64>,
    characters: BTreeSet<String>,
    identities: u64,
}

struct OpenFile {
    writer: ArrowWriter<Vec<u8>>,
    row_groups: Vec<u32>,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile")
            .field("row_groups", &self.row_groups)
            .finish_non_exhaustive()
    }
}

impl DatasetWriter {
    /// # Errors
    /// The URL cannot be opened.
    pub fn open(url: &str, options: WriteOptions) -> Result<Self, WriteError> {
        let (store, prefix) = open(url)?;
        Ok(Self {
            store,
            prefix,
            options,
            pending: Vec::new(),
            pending_bytes: 0,
            file: None,
            files: Vec::new(),
            positions: BTreeMap::new(),
            characters: BTreeSet::new(),
            identities: 0,
        })
    }

    /// Adds all rows of one identity (character, outfit, artist); sets their `identity` and
    /// `similar_positions`.
    ///
    /// # Errors
    /// An id occurs twice, a similar id is not in this group, or storage fails.
    pub async fn add(&mut self, mut identity: Vec<Sample>) -> Result<(), WriteError> {
        let first = self.positions.len() as u64;
        let mut new_positions = BTreeMap::new();
        for (row, sample) in identity.iter().enumerate() {
            let (id, position) = (&sample.metadata.id, first + row as u64);
            if new_positions.insert(id.clone(), position).is_some()
                || self.positions.contains_key(id)
            {
                return Err(WriteError::DuplicateId { id: id.clone() });
            }
        }
        for sample in &mut identity {
            let row = &mut sample.metadata;
            row.identity = self.identities;
            row.similar_positions = row
                .similar
                .iter()
                .map(|similar| match new_positions.get(similar) {
                    Some(position) if *similar != row.id => Ok(*position),
                    _ => Err(WriteError::Dangling {
                        id: row.id.clone(),
                        similar: similar.clone(),
                    }),
                })
                .collect::<Result<_, _>>()?;
            self.characters.insert(row.character.clone());
            self.pending_bytes += sample.image.len() + sample.mask.len();
        }
        self.positions.append(&mut new_positions);
        self.identities += 1;
        self.pending.append(&mut identity);
        let full = self.pending_bytes >= self.options.row_group_bytes
            || self.pending.len() >= self.options.row_group_rows;
        if full {
            self.end_row_group().await
        } else {
            Ok(())
        }
    }

    /// Writes the remaining rows, the index, and then `dataset.json`, which makes the data set
    /// visible.
    ///
    /// # Errors
    /// Nothing was added, or storage fails.
    pub async fn finish(mut self) -> Result<DatasetManifest, WriteError> {
        if self.positions.is_empty() {
            return Err(WriteError::Empty);
        }
        self.end_row_group().await?;
        self.end_file().await?;
        let index = encode_index(&self.positions)?;
        let (path, size_bytes, sha256) = self.put_named("index", index).await?;
        let manifest = DatasetManifest {
            schema_version: DATASET_SCHEMA_VERSION,
            source: self.options.source.clone(),
            samples: self.positions.len() as u64,
            characters: self.characters.len() as u64,
            files: std::mem::take(&mut self.files),
            index: IndexFile {
                path,
                size_bytes,
                sha256,
            },
        };
        let text = serde_json::to_vec_pretty(&manifest)
            .expect("a manifest contains only text and numbers");
        self.put(DATASET_FILE, text).await?;
        Ok(manifest)
    }

    async fn end_row_group(&mut self) -> Result<(), WriteError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let file = match &mut self.file {
            Some(file) => file,
            empty => empty.insert(OpenFile {
                writer: ArrowWriter::try_new(Vec::new(), schema(), Some(sample_properties()))?,
                row_groups: Vec::new(),
            }),
        };
        file.writer.write(&to_batch(&rows)?)?;
        file.writer.flush()?;
        file.row_groups.push(
            u32::try_from(rows.len()).expect("row groups are bounded far below 4 billion rows"),
        );
        if file.writer.bytes_written() >= self.options.file_bytes {
            self.end_file().await
        } else {
            Ok(())
        }
    }

    async fn end_file(&mut self) -> Result<(), WriteError> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let bytes = file.writer.into_inner()?;
        let stem = format!("samples-{:05}", self.files.len());
        let (path, size_bytes, sha256) = self.put_named(&stem, bytes).await?;
        self.files.push(SampleFile {
            path,
            size_bytes,
            sha256,
            row_groups: file.row_groups,
        });
        Ok(())
    }

    /// Writes `bytes` under a name that ends in a prefix of their hash. Returns (path, size,
    /// SHA-256 in hex).
    async fn put_named(
        &self,
        stem: &str,
        bytes: Vec<u8>,
    ) -> Result<(String, u64, String), WriteError> {
        let sha256 = hex_sha256(&bytes);
        let path = format!("{stem}-{}.parquet", &sha256[..8]);
        let size = bytes.len() as u64;
        self.put(&path, bytes).await?;
        Ok((path, size, sha256))
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), WriteError> {
        let path = self.prefix.clone().join(name);
        self.store
            .put(&path, PutPayload::from(bytes))
            .await
            .map_err(|source| WriteError::Put {
                path: path.to_string(),
                source,
            })?;
        Ok(())
    }
}

fn sample_properties() -> WriterProperties {
    let mut properties = base_properties();
    for column in IMAGE_COLUMNS {
        let column = || ColumnPath::from(column);
        // Images are already compressed, and statistics of their bytes would only enlarge the
        // footer.
        properties = properties
            .set_column_compression(column(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(column(), false)
            .set_column_statistics_enabled(column(), EnabledStatistics::None);
    }
    properties.build()
}

fn base_properties() -> parquet::file::properties::WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by("retri".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(None)
        .set_statistics_enabled(EnabledStatistics::Chunk)
}

fn encode_index(positions: &BTreeMap<String, u64>) -> Result<Vec<u8>, WriteError> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("position", DataType::UInt64, false),
    ]));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(StringArray::from_iter_values(positions.keys())),
            Arc::new(UInt64Array::from_iter_values(positions.values().copied())),
        ],
    )?;
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(base_properties().build()))?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}
