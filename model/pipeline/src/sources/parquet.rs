//! Posts of Parquet mirrors: the columns of the site's API, as texts or lists of texts.

use super::Span;
use super::json::words;
use super::row::{Place, RowSink};
use crate::error::BuildError;
use crate::post::{Post, checked};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use std::ops::Range;
use std::sync::Arc;

const GENERAL: &str = "tag_string_general";
/// The columns that are read, where a file has them.
const WANTED: [&str; 13] = [
    "id",
    "rating",
    "md5",
    "file_ext",
    "image_width",
    "image_height",
    "parent_id",
    "has_children",
    "is_deleted",
    "is_banned",
    GENERAL,
    "tag_string_character",
    "tag_string_artist",
];
/// Those without which rows are no posts.
const NEEDED: [&str; 4] = ["id", GENERAL, "tag_string_character", "tag_string_artist"];

type Builder = ParquetRecordBatchStreamBuilder<Object>;

/// A file of the store.
struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for Object {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let read = self.store.get_range(&self.path, range);
        read.map(|it| it.map_err(external)).boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        let read = async move { self.store.get_ranges(&self.path, &ranges).await };
        read.map(|it| it.map_err(external)).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.size;
        let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
        let load = async move { reader.load_and_finish(self, size).await.map(Arc::new) };
        load.boxed()
    }
}

async fn open(
    label: &str,
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    size: u64,
) -> Result<Builder, BuildError> {
    let reader = Object {
        store: Arc::clone(store),
        path: path.clone(),
        size,
    };
    let opened = ParquetRecordBatchStreamBuilder::new(reader).await;
    opened.map_err(|source| BuildError::Parquet {
        path: label.to_owned(),
        source,
    })
}

/// The row groups of a file whose columns are those of posts.
pub(super) async fn row_groups(
    label: &str,
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    size: u64,
) -> Result<Vec<Span>, BuildError> {
    let builder = open(label, store, path, size).await?;
    for needed in NEEDED {
        if builder.schema().index_of(needed).is_err() {
            let fields = builder.schema().fields().iter();
            let names: Vec<&str> = fields.map(|it| it.name().as_str()).take(30).collect();
            let reason = format!(
                "has no column {needed}, so its rows are no posts of Danbooru; it has {}",
                names.join(", ")
            );
            return Err(BuildError::input(label, reason));
        }
    }
    let mut first = 0;
    let groups = builder.metadata().row_groups().iter().enumerate();
    let spans = groups.map(|(index, group)| {
        let span = Span::RowGroup {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            first,
        };
        first += u64::try_from(group.num_rows()).unwrap_or(0);
        span
    });
    Ok(spans.collect())
}

/// Reads a row group, whose first row is `first` of the file.
pub(super) async fn read(
    store: &Arc<dyn ObjectStore>,
    (path, size): (&Path, u64),
    index: u32,
    first: u64,
    sink: &mut RowSink<'_>,
) -> Result<(), BuildError> {
    let builder = open(path.as_ref(), store, path, size).await?;
    let names = builder.schema().fields().iter().map(|it| it.name().clone());
    let wanted: Vec<String> = names.filter(|it| WANTED.contains(&it.as_str())).collect();
    let mask = ProjectionMask::columns(builder.parquet_schema(), wanted.iter().map(String::as_str));
    let failed = |source| BuildError::Parquet {
        path: path.to_string(),
        source,
    };
    let stream = builder
        .with_projection(mask)
        .with_row_groups(vec![index as usize])
        .with_batch_size(4096)
        .build();
    let mut stream = stream.map_err(failed)?;
    let mut row = first;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(failed)?;
        let columns = Columns::of(&batch);
        for index in 0..batch.num_rows() {
            row += 1;
            sink.take(columns.post(index), Place::at(row, None))?;
        }
    }
    Ok(())
}

/// The columns of a batch by name.
struct Columns<'a>(Vec<(&'a str, &'a ArrayRef)>);

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Self {
        let fields = batch.schema_ref().fields().iter();
        let names = fields.map(|it| it.name().as_str());
        Self(names.zip(batch.columns()).collect())
    }

    fn get(&self, name: &str) -> Option<&'a ArrayRef> {
        let found = self.0.iter().find(|(it, _)| *it == name);
        found.map(|(_, column)| *column)
    }

    fn text(&self, name: &str, row: usize) -> Result<String, String> {
        self.get(name)
            .map_or(Ok(String::new()), |column| text_of(name, column, row))
    }

    fn number(&self, name: &str, row: usize) -> Result<Option<i64>, String> {
        self.get(name)
            .map_or(Ok(None), |column| number_of(name, column, row))
    }

    fn post(&self, row: usize) -> Result<Post, String> {
        let flag = |name| Ok::<_, String>(self.number(name, row)?.unwrap_or(0) != 0);
        let post = Post {
            // Some mirrors write the whole word.
            rating: letter(&self.text("rating", row)?),
            md5: self.text("md5", row)?,
            ext: self.text("file_ext", row)?.to_lowercase(),
            width: self.number("image_width", row)?.unwrap_or(0),
            height: self.number("image_height", row)?.unwrap_or(0),
            parent: self.number("parent_id", row)?.unwrap_or(0),
            has_children: flag("has_children")?,
            deleted: flag("is_deleted")?,
            banned: flag("is_banned")?,
            characters: words(&self.text("tag_string_character", row)?),
            artists: words(&self.text("tag_string_artist", row)?),
            general: words(&self.text(GENERAL, row)?),
            ..Post::default()
        };
        checked(post, self.number("id", row)?)
    }
}

fn letter(rating: &str) -> String {
    match rating.to_lowercase().as_str() {
        "general" => "g".to_owned(),
        "sensitive" => "s".to_owned(),
        "questionable" => "q".to_owned(),
        "explicit" => "e".to_owned(),
        other => other.to_owned(),
    }
}

fn wrong(name: &str, column: &ArrayRef, expected: &str) -> String {
    format!(
        "its column {name} is {}; {expected} is expected",
        column.data_type()
    )
}

fn text_of(name: &str, column: &ArrayRef, row: usize) -> Result<String, String> {
    if column.is_null(row) {
        return Ok(String::new());
    }
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).to_owned(),
        DataType::Utf8View => column.as_string_view().value(row).to_owned(),
        DataType::Null => String::new(),
        DataType::List(_) => joined(name, &column.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => joined(name, &column.as_list::<i64>().value(row))?,
        _ => return Err(wrong(name, column, "a text or a list of texts")),
    })
}

fn joined(name: &str, items: &ArrayRef) -> Result<String, String> {
    if matches!(
        items.data_type(),
        DataType::List(_) | DataType::LargeList(_)
    ) {
        return Err(wrong(name, items, "a list of texts"));
    }
    let items: Result<Vec<String>, String> = (0..items.len())
        .map(|item| text_of(name, items, item))
        .collect();
    Ok(items?.join(" "))
}

fn number_of(name: &str, column: &ArrayRef, row: usize) -> Result<Option<i64>, String> {
    if column.is_null(row) {
        return Ok(None);
    }
    let large = |it: u64| i64::try_from(it).map_err(|_| format!("its {name} {it} is too large"));
    Ok(Some(match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::UInt64 => large(column.as_primitive::<UInt64Type>().value(row))?,
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Null => return Ok(None),
        // Pandas writes whole numbers of a column with gaps as 12.0.
        DataType::Float64 => {
            let value = column.as_primitive::<Float64Type>().value(row);
            if value.is_nan() {
                return Ok(None);
            }
            whole(value).ok_or_else(|| format!("its {name} {value} is not a whole number"))?
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let text = text_of(name, column, row)?;
            match text.trim() {
                "" => return Ok(None),
                text => text
                    .parse()
                    .map_err(|_| format!("its {name} {text:?} is not a whole number"))?,
            }
        }
        _ => return Err(wrong(name, column, "a number")),
    }))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
pub(super) fn whole(value: f64) -> Option<i64> {
    let is_whole = value.fract() == 0.0 && value.abs() < (1_i64 << 53) as f64;
    is_whole.then_some(value as i64)
}
