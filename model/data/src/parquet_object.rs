//! Reads Parquet files that strangers wrote: what a file claims is checked before the Parquet
//! library believes it, so that a small file cannot take much memory, and a panic of the library
//! becomes an error. Used only by the data-set reader.
//!
//! - The footer has at most 16 MiB, and its lists no more elements than it has bytes for.
//! - The pages of a row group unfold to at most [`Limits::bytes`] together, as their headers say
//!   (the decompressor writes no more than that), and have at most [`Limits::values`] values per
//!   column. Only encodings are accepted in which a value is no longer than its page.
//! - Texts and images are decoded as views into their pages, so that a long value which a million
//!   rows share exists once; whoever copies them adds up their lengths first.

use std::io::Read;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use bytes::{Buf, Bytes};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::reader::{ChunkReader, Length};

use crate::thrift::{Cursor, I32, LIST, STRUCT};

/// Size of the tail read that contains most footers, so that opening a file costs one request.
const FOOTER_GUESS: u64 = 64 << 10;
const FOOTER_BYTES_MAX: u64 = 16 << 20;
/// Length of the footer's length, and the mark after it.
const TAIL: usize = 8;
/// Most columns. The reader's recursion is as deep as a schema is nested.
const COLUMNS_MAX: usize = 1000;
/// Most rows of a row group.
const ROWS_MAX: i64 = 1 << 20;

/// What the columns that are read of one row group may unfold to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    /// In one column; a list has several in a row.
    pub(crate) values: u64,
}

impl Limits {
    /// All columns but images and masks.
    pub(crate) const METADATA: Self = Self {
        bytes: 128 << 20,
        values: 4 << 20,
    };
    /// With images and masks.
    pub(crate) const ROWS: Self = Self {
        bytes: 2 << 30,
        values: 4 << 20,
    };
    /// The index, which is one row group.
    pub(crate) const INDEX: Self = Self {
        bytes: 2 << 30,
        values: 64 << 20,
    };
}

/// One stored Parquet file.
#[derive(Debug)]
pub(crate) struct ParquetObject<'a> {
    pub(crate) store: &'a dyn ObjectStore,
    pub(crate) path: Path,
    pub(crate) size: u64,
}

impl ParquetObject<'_> {
    /// Reads and checks the footer.
    pub(crate) async fn footer(&self) -> Result<ArrowReaderMetadata> {
        storage::read::note(self.path.as_ref());
        let start = self.size.saturating_sub(FOOTER_GUESS);
        let mut tail = self.get(start..self.size).await?;
        let length = footer_length(&tail)?;
        if self.size < length + TAIL as u64 {
            return Err(refused(format!(
                "its footer would be {length} bytes long, the file has {}",
                self.size
            )));
        }
        let begin = self.size - TAIL as u64 - length;
        if begin < start {
            tail = self.get(begin..self.size).await?;
        }
        let end = tail.len() - TAIL;
        guarded(|| parse_footer(&tail[end - length as usize..end]))
    }

    /// Reads some columns of a row group, all rows in one batch.
    pub(crate) async fn rows(
        &self,
        footer: &ArrowReaderMetadata,
        group: usize,
        mask: &ProjectionMask,
        limits: Limits,
    ) -> Result<Vec<RecordBatch>> {
        storage::read::note(self.path.as_ref());
        let ranges = guarded(|| chunk_ranges(footer, group, mask, self.size, limits))?;
        // The store coalesces neighbouring ranges: the columns become one request.
        let bytes = self.store.get_ranges(&self.path, &ranges).await;
        let bytes = bytes.map_err(external)?;
        let chunks = Chunks {
            parts: ranges.iter().map(|it| it.start).zip(bytes).collect(),
            size: self.size,
        };
        guarded(|| decode(footer, group, mask, chunks, limits))
    }

    async fn get(&self, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.store.get_range(&self.path, range.clone()).await;
        let bytes = bytes.map_err(external)?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(refused(format!("it has fewer than {} bytes", self.size)));
        }
        Ok(bytes)
    }
}

/// The footer's length, from the last bytes of a file.
fn footer_length(tail: &[u8]) -> Result<u64> {
    let Some((_, [a, b, c, d, mark @ ..])) = tail.split_last_chunk::<TAIL>() else {
        return Err(refused("it is too short for a Parquet file".to_owned()));
    };
    if mark != b"PAR1" {
        return Err(refused("it does not end as a Parquet file".to_owned()));
    }
    let length = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
    if FOOTER_BYTES_MAX < length {
        return Err(refused(format!(
            "its footer would be {length} bytes long; at most {FOOTER_BYTES_MAX} are read"
        )));
    }
    Ok(length)
}

fn parse_footer(bytes: &[u8]) -> Result<ArrowReaderMetadata> {
    check_footer(bytes).map_err(|fault| refused(format!("its footer is damaged: {fault}")))?;
    let metadata = Arc::new(ParquetMetaDataReader::decode_metadata(bytes)?);
    // The schema that the writer embedded is ignored: it could ask for any type.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let found = ArrowReaderMetadata::try_new(Arc::clone(&metadata), options)?;
    let options = ArrowReaderOptions::new().with_schema(as_views(found.schema()));
    ArrowReaderMetadata::try_new(metadata, options)
}

fn check_footer(bytes: &[u8]) -> std::result::Result<(), String> {
    Cursor::new(bytes).structure(|at, number, kind| match (number, kind) {
        // `FileMetaData.schema`: all columns and the lists and structures around them.
        (2, LIST) => {
            let (kind, count) = at.list()?;
            if COLUMNS_MAX < count {
                return Err(format!(
                    "it has {count} columns; at most {COLUMNS_MAX} are read"
                ));
            }
            (0..count).try_for_each(|_| at.skip(kind))
        }
        (_, kind) => at.skip(kind),
    })
}

fn as_views(schema: &Schema) -> SchemaRef {
    fn view(field: &FieldRef) -> FieldRef {
        let kind = match field.data_type() {
            DataType::Utf8 => DataType::Utf8View,
            DataType::Binary => DataType::BinaryView,
            DataType::List(item) => DataType::List(view(item)),
            other => other.clone(),
        };
        Arc::new(Field::clone(field).with_data_type(kind))
    }
    let fields: Vec<FieldRef> = schema.fields().iter().map(view).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// Where the columns of a row group are in the file.
fn chunk_ranges(
    footer: &ArrowReaderMetadata,
    group: usize,
    mask: &ProjectionMask,
    size: u64,
    limits: Limits,
) -> Result<Vec<Range<u64>>> {
    let group = footer.metadata().row_group(group);
    if !(0..=ROWS_MAX).contains(&group.num_rows()) {
        let rows = group.num_rows();
        return Err(refused(format!(
            "it claims {rows} rows; at most {ROWS_MAX} are read"
        )));
    }
    let mut total = 0u64;
    let mut ranges = Vec::new();
    for (number, column) in group.columns().iter().enumerate() {
        if !mask.leaf_included(number) {
            continue;
        }
        let (start, length) = column.byte_range();
        total = total.saturating_add(length);
        let end = start.checked_add(length).filter(|end| *end <= size);
        match end {
            Some(end) if total <= limits.bytes => ranges.push(start..end),
            Some(_) => {
                let max = limits.bytes;
                return Err(refused(format!(
                    "its columns have {total} bytes; at most {max} are read"
                )));
            }
            None => {
                let name = column.column_path().string();
                return Err(refused(format!(
                    "column {name:?} would end after the file's {size} bytes"
                )));
            }
        }
    }
    Ok(ranges)
}

fn decode(
    footer: &ArrowReaderMetadata,
    group: usize,
    mask: &ProjectionMask,
    chunks: Chunks,
    limits: Limits,
) -> Result<Vec<RecordBatch>> {
    let mut unfolded = 0;
    for (_, chunk) in &chunks.parts {
        unfolded += check_pages(chunk, limits).map_err(refused)?;
        if limits.bytes < unfolded {
            return Err(too_large(unfolded, limits));
        }
    }
    let rows = footer.metadata().row_group(group).num_rows();
    let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, footer.clone())
        .with_row_groups(vec![group])
        .with_projection(mask.clone())
        .with_batch_size(usize::try_from(rows).unwrap_or_default().max(1))
        .build()?
        .collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(batches)
}

/// What the pages of a column unfold to, in bytes.
fn check_pages(mut chunk: &[u8], limits: Limits) -> std::result::Result<u64, String> {
    let (mut unfolded, mut values) = (0u64, 0u64);
    while !chunk.is_empty() {
        let page = Page::read(chunk).map_err(|fault| format!("a page is damaged: {fault}"))?;
        unfolded += page.unfolded;
        values += page.values;
        if limits.bytes < unfolded {
            return Err(too_large(unfolded, limits).to_string());
        }
        if limits.values < values {
            let max = limits.values;
            return Err(format!(
                "a column claims {values} values; at most {max} are read"
            ));
        }
        chunk = &chunk[page.end..];
    }
    Ok(unfolded)
}

/// The claims of a page's header.
#[derive(Debug, Default)]
struct Page {
    unfolded: u64,
    values: u64,
    /// Where the next page begins.
    end: usize,
}

impl Page {
    fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut page = Self::default();
        let (mut cursor, mut stored) = (Cursor::new(bytes), 0);
        cursor.structure(|at, number, kind| {
            match (number, kind) {
                (2, I32) => page.unfolded = count(at)?,
                (3, I32) => stored = count(at)?,
                (5 | 7, STRUCT) => page.values += values(at, 2)?,
                (8, STRUCT) => page.values += values(at, 4)?,
                (_, kind) => at.skip(kind)?,
            }
            Ok(())
        })?;
        let end = cursor
            .consumed()
            .checked_add(usize::try_from(stored).unwrap_or(usize::MAX));
        page.end = end
            .filter(|end| *end <= bytes.len())
            .ok_or_else(|| format!("it claims {stored} bytes and ends its column"))?;
        Ok(page)
    }
}

fn count(at: &mut Cursor<'_>) -> std::result::Result<u64, String> {
    let value = at.integer()?;
    u64::try_from(value).map_err(|_| format!("it has a length of {value}"))
}

/// The number of values of a page, from the header of its kind. The number of the field `encoding`
/// depends on that kind.
fn values(at: &mut Cursor<'_>, encoding: i64) -> std::result::Result<u64, String> {
    let mut values = 0;
    at.structure(|at, number, kind| {
        match (number, kind) {
            (1, I32) => values = count(at)?,
            (number, I32) if number == encoding => match at.integer()? {
                // PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY. In the others a value may repeat
                // parts of its neighbours, so that a page unfolds to more than it has.
                0 | 2 | 3 | 8 => {}
                other => return Err(format!("encoding {other} is not supported")),
            },
            (_, kind) => at.skip(kind)?,
        }
        Ok(())
    })?;
    Ok(values)
}

/// The columns that were fetched.
#[derive(Debug)]
struct Chunks {
    parts: Vec<(u64, Bytes)>,
    size: u64,
}

impl Chunks {
    fn from(&self, start: u64) -> Result<Bytes> {
        let part = self.parts.iter().find_map(|(at, bytes)| {
            let offset = usize::try_from(start.checked_sub(*at)?).ok()?;
            (offset < bytes.len()).then(|| bytes.slice(offset..))
        });
        part.ok_or_else(|| {
            refused(format!(
                "a page would be at byte {start}, outside its column"
            ))
        })
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Chunks {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(Box::new(self.from(start)?.reader()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(refused(format!(
                "a page of {length} bytes leaves its column"
            )));
        }
        Ok(bytes.slice(..length))
    }
}

/// Runs the Parquet library. A panic of it becomes an error.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic.downcast_ref::<String>().map(String::as_str);
        let reason = reason.or_else(|| panic.downcast_ref::<&str>().copied());
        let reason = reason.unwrap_or("for an unknown reason");
        Err(refused(format!(
            "it is damaged: the Parquet reader panicked: {reason}"
        )))
    })
}

pub(crate) fn too_large(bytes: u64, limits: Limits) -> ParquetError {
    let max = limits.bytes;
    refused(format!(
        "its rows unfold to {bytes} bytes; at most {max} are read"
    ))
}

fn refused(reason: String) -> ParquetError {
    ParquetError::General(reason)
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

#[cfg(test)]
mod tests;
