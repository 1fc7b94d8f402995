//! The table of an evaluation as Parquet: a row for each image, a column for each parameter and
//! score, and a column with the whole row as JSON, from which it is read back (numbers to a unit in
//! the last place). Equal rows give equal bytes.

use super::row::Row;
use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Float64Builder, ListBuilder, StringBuilder, UInt64Builder,
};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{ArrowError, Field, Schema};
use bytes::Bytes;
use metric::Measure;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::sync::Arc;

/// The column with the whole row, from which a table is read back.
const RECORD: &str = "record";

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the table is not valid Parquet")]
    Parquet(#[from] ParquetError),
    #[error("the table's columns do not fit together")]
    Arrow(#[from] ArrowError),
    #[error("row {row} cannot be written or read")]
    Row {
        row: usize,
        source: serde_json::Error,
    },
    #[error("the table has no column `{RECORD}`: it is of no evaluation")]
    NoRecord,
}

/// Parquet with these rows, in their order.
///
/// # Errors
/// Never for rows of finite numbers.
pub fn write(rows: &[Row]) -> Result<Vec<u8>, TableError> {
    let mut columns = Columns::default();
    columns.numbers("unit", rows, |row| Some(row.unit));
    columns.texts("key", rows, |row| Some(&row.key));
    columns.texts("pair", rows, |row| Some(&row.pair));
    columns.texts("plan", rows, |row| Some(&row.plan));
    columns.texts("dataset_version", rows, |row| Some(&row.dataset_version));
    columns.texts("model", rows, |row| Some(&row.model));
    columns.texts("model_digest", rows, |row| Some(&row.model_digest));
    columns.texts("job", rows, |row| Some(&row.job.0));
    columns.numbers("step", rows, |row| row.step);
    columns.texts("domain", rows, |row| Some(row.domain.name()));
    columns.texts("character", rows, |row| Some(&row.character));
    columns.texts("sample_id", rows, |row| row.sample_id.as_deref());
    columns.texts("prompt", rows, |row| Some(&row.prompt));
    columns.flags("prompt_cut", rows, |row| row.prompt_cut);
    columns.numbers("seed", rows, |row| Some(row.seed));
    columns.numbers("sample", rows, |row| Some(u64::from(row.sample)));
    columns.numbers("noise_seed", rows, |row| Some(row.noise_seed));
    columns.texts("method", rows, |row| Some(row.method.name()));
    columns.numbers("steps", rows, |row| Some(u64::from(row.steps)));
    columns.reals("guidance", rows, |row| Some(row.guidance));
    columns.reals("reference_guidance", rows, |row| {
        Some(row.reference_guidance)
    });
    columns.texts("negative_prompt", rows, |row| Some(&row.negative_prompt));
    columns.texts("knobs", rows, |row| Some(&row.knobs));
    columns.numbers("resolution", rows, |row| Some(u64::from(row.resolution)));
    columns.lists("references", rows, StringBuilder::new(), |row, list| {
        row.references.iter().for_each(|it| list.append_value(it));
    });
    columns.lists("concepts", rows, StringBuilder::new(), |row, list| {
        let words = row.concepts.iter().map(|it| it.word());
        words.for_each(|it| list.append_value(it));
    });
    columns.texts("environment", rows, |row| Some(&row.environment));
    columns.texts("image", rows, |row| Some(&row.image));
    columns.texts("image_sha256", rows, |row| Some(&row.image_sha256));
    columns.texts("clip", rows, |row| row.clip.as_deref());
    columns.texts("lpips_weights", rows, |row| row.lpips.as_deref());
    columns.texts("faces_weights", rows, |row| row.faces.as_deref());
    columns.lists("clip_i_each", rows, Float64Builder::new(), |row, list| {
        row.clip_i_each.iter().for_each(|it| list.append_value(*it));
    });
    columns.lists(
        "clip_i_whole_each",
        rows,
        Float64Builder::new(),
        |row, list| {
            let each = row.clip_i_whole_each.iter();
            each.for_each(|it| list.append_value(*it));
        },
    );
    columns.reals("clip_t_sliced", rows, |row| row.clip_t_sliced);
    columns.texts("vqa_model", rows, |row| {
        row.vqa.as_ref().map(|vqa| vqa.model.as_str())
    });
    columns.lists("answers", rows, StringBuilder::new(), |row, list| {
        let answers = row.vqa.iter().flat_map(|vqa| &vqa.image);
        answers.for_each(|it| list.append_option(it.as_deref()));
    });
    for measure in Measure::ALL {
        columns.reals(measure.name(), rows, |row| {
            row.scores.get(&measure).copied()
        });
    }
    let mut records = StringBuilder::new();
    for (index, row) in rows.iter().enumerate() {
        let record = serde_json::to_string(row);
        records.append_value(record.map_err(|source| TableError::Row { row: index, source })?);
    }
    columns.add(RECORD, Arc::new(records.finish()));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(columns.fields)), columns.arrays)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by("retri".to_owned())
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

/// The rows of a table that [`write`] made.
///
/// # Errors
/// It is not such a table.
pub fn read(bytes: Bytes) -> Result<Vec<Row>, TableError> {
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()? {
        let batch = batch?;
        let records = batch.column_by_name(RECORD).ok_or(TableError::NoRecord)?;
        let records = records.as_any().downcast_ref::<StringArray>();
        for record in records.ok_or(TableError::NoRecord)? {
            let row = rows.len();
            let record = record.ok_or(TableError::NoRecord)?;
            let found = serde_json::from_str(record);
            rows.push(found.map_err(|source| TableError::Row { row, source })?);
        }
    }
    Ok(rows)
}

#[derive(Default)]
struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    fn add(&mut self, name: &str, array: ArrayRef) {
        let field = Field::new(name, array.data_type().clone(), true);
        self.fields.push(field);
        self.arrays.push(array);
    }

    fn texts<'a>(&mut self, name: &str, rows: &'a [Row], of: impl Fn(&'a Row) -> Option<&'a str>) {
        let mut builder = StringBuilder::new();
        rows.iter().for_each(|row| builder.append_option(of(row)));
        self.add(name, Arc::new(builder.finish()));
    }

    fn numbers(&mut self, name: &str, rows: &[Row], of: impl Fn(&Row) -> Option<u64>) {
        let mut builder = UInt64Builder::new();
        rows.iter().for_each(|row| builder.append_option(of(row)));
        self.add(name, Arc::new(builder.finish()));
    }

    fn reals(&mut self, name: &str, rows: &[Row], of: impl Fn(&Row) -> Option<f64>) {
        let mut builder = Float64Builder::new();
        rows.iter().for_each(|row| builder.append_option(of(row)));
        self.add(name, Arc::new(builder.finish()));
    }

    fn flags(&mut self, name: &str, rows: &[Row], of: impl Fn(&Row) -> bool) {
        let mut builder = BooleanBuilder::new();
        rows.iter().for_each(|row| builder.append_value(of(row)));
        self.add(name, Arc::new(builder.finish()));
    }

    fn lists<B: ArrayBuilder>(
        &mut self,
        name: &str,
        rows: &[Row],
        values: B,
        append: impl Fn(&Row, &mut B),
    ) {
        let mut builder = ListBuilder::new(values);
        for row in rows {
            append(row, builder.values());
            builder.append(true);
        }
        self.add(name, Arc::new(builder.finish()));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::evaluation::Answers;
    use metric::Scores;
    use proto::evaluate::Domain;
    use proto::id::JobId;
    use proto::sample::{Concept, SampleMethod};

    fn row(unit: u64) -> Row {
        Row {
            unit,
            key: format!("k{unit}"),
            pair: "p".into(),
            plan: "d".into(),
            dataset_version: "v".into(),
            model: "r9k".into(),
            model_digest: "m".into(),
            job: JobId("r9k-1".into()),
            step: Some(u64::MAX),
            domain: Domain::OutOfDomain,
            character: "reimu".into(),
            sample_id: None,
            prompt: "1girl".into(),
            prompt_cut: true,
            seed: u64::MAX,
            sample: 3,
            noise_seed: u64::MAX - unit,
            method: SampleMethod::Ddim,
            steps: 50,
            guidance: 7.5,
            reference_guidance: 1.0,
            negative_prompt: String::new(),
            knobs: "{}".into(),
            resolution: 384,
            references: vec!["a".into(), "b".into()],
            concepts: vec![Concept::Face, Concept::Clothes],
            environment: "cpu".into(),
            image: "0.png".into(),
            image_sha256: "s".into(),
            clip: None,
            lpips: Some("cd".to_owned()),
            faces: None,
            clip_i_each: vec![0.5, 0.125],
            clip_i_whole_each: Vec::new(),
            clip_t_sliced: Some(0.75),
            vqa: Some(Answers {
                model: "vqa".into(),
                questions: vec!["q".into()],
                image: vec![None],
                references: vec![vec![Some("left".into())]],
            }),
            scores: Scores::from([(Measure::ClipI, 0.5), (Measure::ClipT, -0.25)]),
        }
    }

    #[test]
    fn rows_survive_and_equal_rows_give_equal_bytes() {
        let rows: Vec<Row> = (0..3).map(row).collect();
        let bytes = write(&rows).unwrap();
        assert_eq!(write(&rows).unwrap(), bytes);
        assert_eq!(read(Bytes::from(bytes)).unwrap(), rows);
        assert_eq!(read(Bytes::from(write(&[]).unwrap())).unwrap(), []);
    }

    #[test]
    fn another_file_is_no_table() {
        let error = read(Bytes::from_static(b"no parquet")).unwrap_err();
        assert!(matches!(error, TableError::Parquet(_)), "{error}");
    }
}
