//! The Parquet columns of a data set, and the conversion between rows and Arrow batches. No I/O.
//! Called by the writer, and by the reader, whose texts and images are views into Parquet pages.
//! The column names are the paper's field names (notes 2.1);
//! `outfit`, `identity`, `width`, `height` and `similar_positions` are additions (design, section
//! 5).

use std::sync::{Arc, LazyLock};

use arrow_array::builder::{Float64Builder, ListBuilder, StringBuilder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, Float64Array, ListArray, RecordBatch,
    StringArray, StringViewArray, UInt32Array, UInt64Array,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

use crate::sample::{Metadata, Sample};

/// The columns of encoded images; all others are [`Metadata`].
pub const IMAGE_COLUMNS: [&str; 2] = ["image", "mask"];

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let list = |item| DataType::List(Arc::new(Field::new("item", item, true)));
    let field = |name: &str, kind| Field::new(name, kind, false);
    Arc::new(Schema::new(vec![
        field("id", DataType::Utf8),
        field("character", DataType::Utf8),
        field("artists", DataType::Utf8),
        field("outfit", DataType::Utf8),
        field("identity", DataType::UInt64),
        field("bbox", list(DataType::Float64)),
        field("prompts", DataType::Utf8),
        field("cloths", list(DataType::Utf8)),
        field("similar", list(DataType::Utf8)),
        field("similar_positions", list(DataType::UInt64)),
        field("width", DataType::UInt32),
        field("height", DataType::UInt32),
        field("image", DataType::Binary),
        field("mask", DataType::Binary),
    ]))
});

#[derive(Debug, thiserror::Error)]
pub enum ColumnError {
    #[error("column {column:?} is missing or is not {kind}")]
    Column {
        column: &'static str,
        kind: &'static str,
    },
    #[error("row {row}: column {column:?} has {found}, expected {expected}")]
    Value {
        row: usize,
        column: &'static str,
        found: String,
        expected: &'static str,
    },
}

#[must_use]
pub fn schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// Rows as one Arrow batch of [`schema`].
///
/// # Errors
/// The columns do not match the schema, which is a bug in this file.
pub fn to_batch(rows: &[Sample]) -> Result<RecordBatch, ArrowError> {
    let text = |of: fn(&Metadata) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            rows.iter().map(|r| of(&r.metadata)),
        ))
    };
    let numbers = |of: fn(&Metadata) -> u32| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(
            rows.iter().map(|r| of(&r.metadata)),
        ))
    };
    let texts = |of: fn(&Metadata) -> &[String]| -> ArrayRef {
        let mut list = ListBuilder::new(StringBuilder::new());
        for row in rows {
            of(&row.metadata)
                .iter()
                .for_each(|t| list.values().append_value(t));
            list.append(true);
        }
        Arc::new(list.finish())
    };
    let binary = |of: fn(&Sample) -> &Bytes| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(
            rows.iter().map(|r| of(r).as_ref()),
        ))
    };
    let identity = UInt64Array::from_iter_values(rows.iter().map(|r| r.metadata.identity));
    let mut boxes = ListBuilder::new(Float64Builder::new());
    let mut positions = ListBuilder::new(UInt64Builder::new());
    for row in rows {
        boxes.values().append_slice(&row.metadata.bbox);
        boxes.append(true);
        positions
            .values()
            .append_slice(&row.metadata.similar_positions);
        positions.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        text(|m| &m.id),
        text(|m| &m.character),
        text(|m| &m.artists),
        text(|m| &m.outfit),
        Arc::new(identity),
        Arc::new(boxes.finish()),
        text(|m| &m.prompts),
        texts(|m| &m.cloths),
        texts(|m| &m.similar),
        Arc::new(positions.finish()),
        numbers(|m| m.width),
        numbers(|m| m.height),
        binary(|r| &r.image),
        binary(|r| &r.mask),
    ];
    RecordBatch::try_new(schema(), columns)
}

/// What the texts and images of a batch take when they are copied, in bytes: a value that several
/// rows share counts for each of them.
#[must_use]
pub fn copied_bytes(batch: &RecordBatch) -> u64 {
    fn of(column: &dyn Array) -> u64 {
        let sum = |views: &[u128]| views.iter().map(|view| u64::from(*view as u32)).sum();
        match column.data_type() {
            DataType::Utf8View => sum(column.as_string_view().views()),
            DataType::BinaryView => sum(column.as_binary_view().views()),
            DataType::List(_) => of(column.as_list::<i32>().values().as_ref()),
            _ => 0,
        }
    }
    batch
        .columns()
        .iter()
        .map(|column| of(column.as_ref()))
        .sum()
}

/// The metadata of all rows of a batch. The columns of images and masks may be absent.
///
/// # Errors
/// A column is missing or of another type, or a box does not have four numbers.
pub fn metadata_of(batch: &RecordBatch) -> Result<Vec<Metadata>, ColumnError> {
    let text = |column| typed::<StringViewArray>(batch, column, "text");
    let number = |column| typed::<UInt32Array>(batch, column, "a 32-bit number");
    let list = |column| typed::<ListArray>(batch, column, "a list");
    let (id, character, artists) = (text("id")?, text("character")?, text("artists")?);
    let (outfit, prompts) = (text("outfit")?, text("prompts")?);
    let identity = typed::<UInt64Array>(batch, "identity", "a 64-bit number")?;
    let (width, height) = (number("width")?, number("height")?);
    let (bbox, positions) = (list("bbox")?, list("similar_positions")?);
    let (cloths, similar) = (list("cloths")?, list("similar")?);
    (0..batch.num_rows())
        .map(|row| {
            Ok(Metadata {
                id: id.value(row).to_owned(),
                character: character.value(row).to_owned(),
                artists: artists.value(row).to_owned(),
                outfit: outfit.value(row).to_owned(),
                identity: identity.value(row),
                bbox: four_numbers(bbox, row)?,
                prompts: prompts.value(row).to_owned(),
                cloths: texts_of(cloths, row, "cloths")?,
                similar: texts_of(similar, row, "similar")?,
                similar_positions: positions_of(positions, row)?,
                width: width.value(row),
                height: height.value(row),
            })
        })
        .collect()
}

/// All rows of a batch with all columns.
///
/// # Errors
/// As [`metadata_of`].
pub fn rows_of(batch: &RecordBatch) -> Result<Vec<Sample>, ColumnError> {
    let image = typed::<BinaryViewArray>(batch, "image", "binary")?;
    let mask = typed::<BinaryViewArray>(batch, "mask", "binary")?;
    let metadata = metadata_of(batch)?;
    Ok(metadata
        .into_iter()
        .enumerate()
        .map(|(row, metadata)| Sample {
            metadata,
            // Copied, so that one cached image does not keep the buffer of the whole row group
            // alive.
            image: Bytes::copy_from_slice(image.value(row)),
            mask: Bytes::copy_from_slice(mask.value(row)),
        })
        .collect())
}

/// A single text column.
///
/// # Errors
/// The column is missing or of another type.
pub fn text_column(batch: &RecordBatch, column: &'static str) -> Result<Vec<String>, ColumnError> {
    let texts = typed::<StringViewArray>(batch, column, "text")?;
    Ok((0..texts.len())
        .map(|row| texts.value(row).to_owned())
        .collect())
}

/// A single column of 64-bit numbers.
///
/// # Errors
/// The column is missing or of another type.
pub fn number_column(batch: &RecordBatch, column: &'static str) -> Result<Vec<u64>, ColumnError> {
    Ok(typed::<UInt64Array>(batch, column, "a 64-bit number")?
        .values()
        .to_vec())
}

fn typed<'a, T: Array + 'static>(
    batch: &'a RecordBatch,
    column: &'static str,
    kind: &'static str,
) -> Result<&'a T, ColumnError> {
    batch
        .column_by_name(column)
        .and_then(|c| c.as_any().downcast_ref::<T>())
        .filter(|c| c.null_count() == 0)
        .ok_or(ColumnError::Column { column, kind })
}

fn four_numbers(list: &ListArray, row: usize) -> Result<[f64; 4], ColumnError> {
    let item = list.value(row);
    let numbers = item
        .as_any()
        .downcast_ref::<Float64Array>()
        .ok_or(ColumnError::Column {
            column: "bbox",
            kind: "a list of 64-bit floats",
        })?;
    numbers
        .values()
        .as_ref()
        .try_into()
        .map_err(|_| ColumnError::Value {
            row,
            column: "bbox",
            found: format!("{} numbers", numbers.len()),
            expected: "4 numbers",
        })
}

fn texts_of(
    list: &ListArray,
    row: usize,
    column: &'static str,
) -> Result<Vec<String>, ColumnError> {
    let item = list.value(row);
    let texts = item
        .as_any()
        .downcast_ref::<StringViewArray>()
        .ok_or(ColumnError::Column {
            column,
            kind: "a list of texts",
        })?;
    Ok(texts.iter().flatten().map(str::to_owned).collect())
}

fn positions_of(list: &ListArray, row: usize) -> Result<Vec<u64>, ColumnError> {
    let item = list.value(row);
    let numbers = item
        .as_any()
        .downcast_ref::<UInt64Array>()
        .ok_or(ColumnError::Column {
            column: "similar_positions",
            kind: "a list of 64-bit numbers",
        })?;
    Ok(numbers.values().to_vec())
}
