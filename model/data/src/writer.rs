//! Writes a data set: Parquet files of samples, an index from id to position, and `dataset.json`
//! last, so that a reader never sees a partial data set. The same rows in the same order give the
//! same bytes. Called by the commands `synthesize` and `import` and by tests. Images are not
//! checked here but by the import and the verifier.
//!
//! File names end in a prefix of their hash, so replacing a data set does not change the files of
//! an older version. Its `dataset.json` is kept as `dataset-<version>.json`: jobs that are pinned
//! to it go on.
//!
//! Time is linear in the number of rows. Memory is one file (`file_bytes`), the rows of one row
//! group, and for each row its id and about 40 bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use object_store::path::Path;
use object_store::{Error as ObjectError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use proto::dataset::{
    DATASET_FILE, DATASET_SCHEMA_VERSION, DatasetManifest, IndexFile, SampleFile, kept_manifest,
};
use proto::text::hex_sha256;

use crate::columns::{IMAGE_COLUMNS, schema, to_batch};
use crate::sample::{Metadata, Sample};
use crate::text_set::TextSet;
use storage::{StoreError, open};

/// Rows of the index that are encoded at once.
const INDEX_BATCH: usize = 1 << 16;

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
    /// An identity with more bytes than this is refused. All its rows are in one row group, and a
    /// column of a row group has less than 2 GiB in Arrow.
    pub identity_bytes: usize,
    /// Whether a data set that exists at the URL is replaced. Otherwise it is an error.
    pub replace: bool,
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
            identity_bytes: 1 << 30,
            replace: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write {path:?}")]
    Put { path: String, source: ObjectError },
    #[error("cannot read {path:?}, to see whether there is a data set")]
    Get { path: String, source: ObjectError },
    #[error(
        "there is a data set at {url:?} already (version {}); write to another folder, or add \
         --replace", version.get(..12).unwrap_or(version)
    )]
    Exists { url: String, version: String },
    #[error(
        "the identity of character {character:?}, outfit {outfit:?} and artist {artists:?} has \
         {bytes} bytes in {rows} rows, and at most {limit} fit into its row group; give some of \
         its rows another outfit"
    )]
    IdentityTooLarge {
        character: String,
        outfit: String,
        artists: String,
        bytes: usize,
        rows: usize,
        limit: usize,
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
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    options: WriteOptions,
    /// Rows of the current row group.
    pending: Vec<Sample>,
    /// Their images and masks.
    pending_bytes: usize,
    /// Everything in them.
    pending_size: usize,
    file: Option<OpenFile>,
    files: Vec<SampleFile>,
    /// By position.
    ids: TextSet,
    characters: TextSet,
    identities: u64,
}

/// A data set that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub manifest: DatasetManifest,
    /// The version (SHA-256 of `dataset.json` in hex) that was replaced, if there was one. Its
    /// files are kept.
    pub replaced: Option<String>,
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
    /// The URL cannot be opened, or there is a data set and `options.replace` is false.
    pub async fn open(url: &str, options: WriteOptions) -> Result<Self, WriteError> {
        let (store, prefix) = open(url)?;
        let writer = Self {
            url: url.to_owned(),
            store,
            prefix,
            options,
            pending: Vec::new(),
            pending_bytes: 0,
            pending_size: 0,
            file: None,
            files: Vec::new(),
            ids: TextSet::default(),
            characters: TextSet::default(),
            identities: 0,
        };
        // A long import must not find out at its end.
        match writer.existing().await? {
            Some(manifest) if !writer.options.replace => Err(writer.exists(&manifest)),
            _ => Ok(writer),
        }
    }

    /// Adds all rows of one identity (character, outfit, artist); sets their `identity` and
    /// `similar_positions`.
    ///
    /// # Errors
    /// An id occurs twice, a similar id is not in this group, the group is too large, or storage
    /// fails.
    pub async fn add(&mut self, mut identity: Vec<Sample>) -> Result<(), WriteError> {
        let size = identity.iter().map(size_of).sum();
        if size > self.options.identity_bytes {
            return Err(self.too_large(&identity, size));
        }
        let positions = self.positions_of(&identity)?;
        for (sample, positions) in identity.iter_mut().zip(positions) {
            sample.metadata.identity = self.identities;
            sample.metadata.similar_positions = positions;
        }
        // Together they could be too large for a row group.
        if self.pending_size + size > self.options.identity_bytes {
            self.end_row_group().await?;
        }
        for sample in &identity {
            self.ids.insert(&sample.metadata.id);
            self.characters.insert(&sample.metadata.character);
            self.pending_bytes += sample.image.len() + sample.mask.len();
        }
        self.pending_size += size;
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

    /// The positions of each row's similar rows.
    fn positions_of(&self, identity: &[Sample]) -> Result<Vec<Vec<u64>>, WriteError> {
        let mut new: BTreeMap<&str, u64> = BTreeMap::new();
        for (row, sample) in identity.iter().enumerate() {
            let id = sample.metadata.id.as_str();
            let position = (self.ids.len() + row) as u64;
            if new.insert(id, position).is_some() || self.ids.contains(id) {
                return Err(WriteError::DuplicateId { id: id.to_owned() });
            }
        }
        let position = |row: &Metadata, similar: &String| match new.get(similar.as_str()) {
            Some(position) if *similar != row.id => Ok(*position),
            _ => Err(WriteError::Dangling {
                id: row.id.clone(),
                similar: similar.clone(),
            }),
        };
        let rows = identity.iter().map(|sample| {
            let row = &sample.metadata;
            row.similar.iter().map(|id| position(row, id)).collect()
        });
        rows.collect()
    }

    /// Writes the remaining rows, the index, and then `dataset.json`, which makes the data set
    /// visible.
    ///
    /// # Errors
    /// Nothing was added, another program wrote a data set meanwhile, or storage fails.
    pub async fn finish(mut self) -> Result<Written, WriteError> {
        if self.ids.len() == 0 {
            return Err(WriteError::Empty);
        }
        self.end_row_group().await?;
        self.end_file().await?;
        let index = encode_index(&mut self.ids)?;
        let (path, size_bytes, sha256) = self.put_named("index", index).await?;
        let manifest = DatasetManifest {
            schema_version: DATASET_SCHEMA_VERSION,
            source: self.options.source.clone(),
            samples: self.ids.len() as u64,
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
        let replaced = self.publish(text).await?;
        Ok(Written { manifest, replaced })
    }

    /// Writes `dataset.json`. Returns the version that it replaced, which it keeps under another
    /// name.
    async fn publish(&self, manifest: Vec<u8>) -> Result<Option<String>, WriteError> {
        if !self.options.replace {
            return match self.put(DATASET_FILE, manifest, PutMode::Create).await {
                Err(WriteError::Put {
                    source: ObjectError::AlreadyExists { .. },
                    ..
                }) => Err(self.exists(&self.existing().await?.unwrap_or_default())),
                done => done.map(|()| None),
            };
        }
        let replaced = self.existing().await?.filter(|old| *old != manifest);
        let version = replaced.as_deref().map(hex_sha256);
        if let (Some(old), Some(version)) = (replaced, &version) {
            self.put(&kept_manifest(version), old, PutMode::Overwrite)
                .await?;
        }
        self.put(DATASET_FILE, manifest, PutMode::Overwrite).await?;
        Ok(version)
    }

    /// The `dataset.json` at the URL, if there is one.
    async fn existing(&self) -> Result<Option<Vec<u8>>, WriteError> {
        let path = self.prefix.clone().join(DATASET_FILE);
        let read = async { self.store.get(&path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(source) => Err(WriteError::Get {
                path: path.to_string(),
                source,
            }),
        }
    }

    fn exists(&self, manifest: &[u8]) -> WriteError {
        WriteError::Exists {
            url: self.url.clone(),
            version: hex_sha256(manifest),
        }
    }

    fn too_large(&self, identity: &[Sample], bytes: usize) -> WriteError {
        let row = identity.first().map(|sample| sample.metadata.clone());
        let row = row.unwrap_or_default();
        WriteError::IdentityTooLarge {
            character: row.character,
            outfit: row.outfit,
            artists: row.artists,
            bytes,
            rows: identity.len(),
            limit: self.options.identity_bytes,
        }
    }

    async fn end_row_group(&mut self) -> Result<(), WriteError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.pending);
        (self.pending_bytes, self.pending_size) = (0, 0);
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
        self.put(&path, bytes, PutMode::Overwrite).await?;
        Ok((path, size, sha256))
    }

    async fn put(&self, name: &str, bytes: Vec<u8>, mode: PutMode) -> Result<(), WriteError> {
        let path = self.prefix.clone().join(name);
        let put = self
            .store
            .put_opts(&path, PutPayload::from(bytes), mode.into());
        match put.await {
            Ok(_) => Ok(()),
            Err(source) => Err(WriteError::Put {
                path: path.to_string(),
                source,
            }),
        }
    }
}

/// Bytes of a row in its row group, or a little more.
fn size_of(sample: &Sample) -> usize {
    let row = &sample.metadata;
    let lists = row.cloths.iter().chain(&row.similar).map(|it| it.len() + 8);
    let texts = [
        &row.id,
        &row.character,
        &row.artists,
        &row.outfit,
        &row.prompts,
    ];
    let texts = texts.iter().map(|it| it.len()).sum::<usize>();
    sample.image.len() + sample.mask.len() + texts + lists.sum::<usize>()
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

/// The index of all ids, ordered by id.
fn encode_index(ids: &mut TextSet) -> Result<Vec<u8>, WriteError> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("position", DataType::UInt64, false),
    ]));
    let properties = base_properties().build();
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    for positions in ids.sort().chunks(INDEX_BATCH) {
        let names = StringArray::from_iter_values(positions.iter().map(|it| ids.get(*it)));
        let positions = UInt64Array::from_iter_values(positions.iter().map(|it| *it as u64));
        let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(positions)];
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    }
    Ok(writer.into_inner()?)
}
