//! Rows of numbers, fractions and texts as Parquet: the form of all tables between stages.

use crate::error::{BuildError, Result};
use arrow_array::builder::{Float64Builder, Int64Builder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::sync::Arc;

/// Rows of a batch in memory.
const BATCH_ROWS: usize = 8192;

/// The type of a column. Nothing is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Number,
    Real,
    Text,
}

impl Column {
    fn kind(self) -> DataType {
        match self {
            Self::Number => DataType::Int64,
            Self::Real => DataType::Float64,
            Self::Text => DataType::Utf8,
        }
    }
}

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Number(i64),
    Real(f64),
    Text(&'a str),
}

enum Builder {
    Number(Int64Builder),
    Real(Float64Builder),
    Text(StringBuilder),
}

/// Rows that are written to one Parquet file. The same rows give the same bytes.
pub struct Table {
    schema: SchemaRef,
    builders: Vec<Builder>,
    pending: usize,
    rows: u64,
    writer: ArrowWriter<Vec<u8>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

fn schema(columns: &[(&str, Column)]) -> SchemaRef {
    let fields = columns.iter();
    let fields = fields.map(|(name, column)| Field::new(*name, column.kind(), false));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl Table {
    #[must_use]
    pub fn new(columns: &[(&str, Column)]) -> Self {
        let schema = schema(columns);
        let properties = WriterProperties::builder()
            .set_created_by("retri".to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))
            .expect("numbers and texts are Parquet");
        let builders = columns.iter().map(|(_, column)| match column {
            Column::Number => Builder::Number(Int64Builder::new()),
            Column::Real => Builder::Real(Float64Builder::new()),
            Column::Text => Builder::Text(StringBuilder::new()),
        });
        Self {
            builders: builders.collect(),
            schema,
            pending: 0,
            rows: 0,
            writer,
        }
    }

    /// Adds a row with a value of the right type for each column.
    pub fn push<'a>(&mut self, row: impl IntoIterator<Item = Value<'a>>) {
        for (builder, value) in self.builders.iter_mut().zip(row) {
            match (builder, value) {
                (Builder::Number(builder), Value::Number(value)) => builder.append_value(value),
                (Builder::Text(builder), Value::Text(value)) => builder.append_value(value),
                (Builder::Real(builder), Value::Real(value)) => builder.append_value(value),
                (Builder::Number(_) | Builder::Real(_) | Builder::Text(_), _) => {
                    unreachable!("rows are made beside their columns")
                }
            }
        }
        self.pending += 1;
        self.rows += 1;
        if self.pending == BATCH_ROWS {
            self.encode();
        }
    }

    fn encode(&mut self) {
        let columns = self.builders.iter_mut().map(|builder| match builder {
            Builder::Number(builder) => Arc::new(builder.finish()) as ArrayRef,
            Builder::Real(builder) => Arc::new(builder.finish()) as ArrayRef,
            Builder::Text(builder) => Arc::new(builder.finish()) as ArrayRef,
        });
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns.collect());
        let written = batch
            .map_err(parquet::errors::ParquetError::from)
            .and_then(|batch| self.writer.write(&batch));
        written.expect("columns of one length are written to memory");
        self.pending = 0;
    }

    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The bytes of the file.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        if 0 < self.pending {
            self.encode();
        }
        let finished = self.writer.into_inner();
        finished.expect("a file is completed in memory")
    }
}

/// Reads a part batch by batch.
///
/// # Errors
/// It is no Parquet file with these columns, or `each` fails.
pub fn read(
    path: &str,
    bytes: Bytes,
    columns: &[(&str, Column)],
    mut each: impl FnMut(&Rows<'_>) -> Result<()>,
) -> Result<()> {
    let failed = |source| BuildError::Parquet {
        path: path.to_owned(),
        source,
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(failed)?;
    let reader = reader.with_batch_size(BATCH_ROWS).build();
    for batch in reader.map_err(failed)? {
        let batch = batch.map_err(|error| failed(error.into()))?;
        check_columns(&batch, columns).map_err(|reason| BuildError::input(path, reason))?;
        each(&Rows::of(&batch))?;
    }
    Ok(())
}

pub(crate) fn check_columns(
    batch: &RecordBatch,
    columns: &[(&str, Column)],
) -> std::result::Result<(), String> {
    let expected = schema(columns);
    let found = batch.schema();
    let same = found.fields().len() == expected.fields().len()
        && found
            .fields()
            .iter()
            .zip(expected.fields())
            .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type());
    let names = |schema: &Schema| {
        let names = schema.fields().iter().map(|it| it.name().as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    if same {
        return Ok(());
    }
    Err(format!(
        "its columns are {}; expected are {}",
        names(&found),
        names(&expected)
    ))
}

enum Values<'a> {
    Numbers(&'a Int64Array),
    Reals(&'a Float64Array),
    Texts(&'a StringArray),
}

/// The rows of a batch.
pub struct Rows<'a> {
    columns: Vec<Values<'a>>,
    count: usize,
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> Self {
        let columns = batch.columns().iter().map(|column| {
            let numbers = column.as_primitive_opt::<Int64Type>().map(Values::Numbers);
            let reals = || column.as_primitive_opt::<Float64Type>().map(Values::Reals);
            numbers
                .or_else(reals)
                .unwrap_or_else(|| Values::Texts(column.as_string()))
        });
        Self {
            columns: columns.collect(),
            count: batch.num_rows(),
        }
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The values of a row, in the order of the columns.
    pub fn row(&self, row: usize) -> impl Iterator<Item = Value<'_>> {
        self.columns.iter().map(move |column| match column {
            Values::Numbers(numbers) => Value::Number(numbers.value(row)),
            Values::Reals(reals) => Value::Real(reals.value(row)),
            Values::Texts(texts) => Value::Text(texts.value(row)),
        })
    }
}
