//! Folders to import, and data sets written past the import.

use arrow_array::{Array, RecordBatch, StringArray, UInt64Array};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use model_data::columns::to_batch;
use model_data::dataset::Dataset;
use model_data::import::{ImportError, ImportOptions, ImportReport, import};
use model_data::sample::{Metadata, Sample};
use model_data::verify::verify;
use parquet::arrow::ArrowWriter;
use proto::text::hex_sha256;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) const SIDE: u32 = 32;

/// A folder to import, with `p.png` and its mask `m.png`.
pub(crate) struct Folder {
    dir: TempDir,
    out: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
            out: tempfile::tempdir().unwrap(),
        };
        folder.write("p.png", &encode(picture(), ImageFormat::Png));
        folder.write("m.png", &encode(figure(), ImageFormat::Png));
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) async fn import_text(
        &self,
        text: &[u8],
    ) -> Result<(Dataset, ImportReport), ImportError> {
        self.write("samples.jsonl", text);
        self.import_listed().await
    }

    /// Imports with the `samples.jsonl` that is there.
    pub(crate) async fn import_listed(&self) -> Result<(Dataset, ImportReport), ImportError> {
        let url = url(self.out.path());
        let options = ImportOptions {
            source: "test".to_owned(),
            replace: true,
            ..ImportOptions::default()
        };
        let (_, report) = import(self.dir.path(), &url, &options).await?;
        Ok((Dataset::open(&url).await.unwrap(), report))
    }

    pub(crate) async fn import(
        &self,
        rows: &[Value],
    ) -> Result<(Dataset, ImportReport), ImportError> {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        self.import_text(lines.join("\n").as_bytes()).await
    }

    /// The only row of an import, and the report.
    pub(crate) async fn import_one(&self, row: Value) -> (Sample, ImportReport) {
        let (dataset, report) = self.import(&[row]).await.unwrap();
        assert_eq!(dataset.len(), 1);
        assert_eq!(faults(&dataset).await, Vec::<String>::new());
        let (_, group) = dataset.groups().next().unwrap();
        (
            dataset.rows_of_group(group).await.unwrap().remove(0),
            report,
        )
    }

    /// The reason why the only row is rejected.
    pub(crate) async fn rejection(&self, row: Value) -> String {
        self.import(&[row]).await.unwrap_err().to_string()
    }
}

/// A row of `p.png` and `m.png`; `changed` replaces or adds fields.
pub(crate) fn row(id: &str, changed: Value) -> Value {
    let mut row = json!({
        "id": id, "character": "c", "artists": "a", "outfit": "o", "prompts": "1girl, solo",
        "bbox": [0.5, 0.25, 0.5, 0.3], "image": "p.png", "mask": "m.png",
    });
    for (field, value) in changed.as_object().unwrap() {
        if value.is_null() {
            row.as_object_mut().unwrap().remove(field);
        } else {
            row[field] = value.clone();
        }
    }
    row
}

pub(crate) fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

pub(crate) fn picture() -> RgbImage {
    let colour = |x, _| {
        if x < SIDE / 2 {
            Rgb([200, 60, 30])
        } else {
            Rgb([20, 40, 200])
        }
    };
    RgbImage::from_fn(SIDE, SIDE, colour)
}

/// The figure fills the upper three quarters.
pub(crate) fn figure() -> GrayImage {
    let value = |_, y| Luma([if y < SIDE * 3 / 4 { 255 } else { 0 }]);
    GrayImage::from_fn(SIDE, SIDE, value)
}

pub(crate) fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// What `verify` says of a data set.
pub(crate) async fn faults(dataset: &Dataset) -> Vec<String> {
    let found = verify(dataset).await.unwrap().findings;
    found.iter().map(ToString::to_string).collect()
}

/// A good row, as a writer makes it.
pub(crate) fn sample(id: &str) -> Sample {
    let metadata = Metadata {
        id: id.to_owned(),
        character: "c".to_owned(),
        artists: "a".to_owned(),
        bbox: [0.5, 0.25, 0.5, 0.3],
        width: SIDE,
        height: SIDE,
        ..Metadata::default()
    };
    Sample {
        metadata,
        image: encode(picture(), ImageFormat::Png).into(),
        mask: encode(figure(), ImageFormat::Png).into(),
    }
}

/// A data set of one row group of these rows, without the columns named in `without`. The
/// positions of similar samples are set.
pub(crate) async fn write(folder: &Path, mut rows: Vec<Sample>, without: &[&str]) -> Dataset {
    let ids: Vec<String> = rows.iter().map(|row| row.metadata.id.clone()).collect();
    for row in &mut rows {
        let position = |id: &String| ids.iter().position(|it| it == id).unwrap() as u64;
        row.metadata.similar_positions = row.metadata.similar.iter().map(position).collect();
    }
    let batch = to_batch(&rows).unwrap();
    let names = batch.schema();
    let kept = (0..batch.num_columns())
        .filter(|index| !without.contains(&names.field(*index).name().as_str()));
    let batch = batch.project(&kept.collect::<Vec<_>>()).unwrap();
    let mut sorted: Vec<(&String, u64)> = ids.iter().zip(0..).collect();
    sorted.sort();
    let names: Vec<&String> = sorted.iter().map(|it| it.0).collect();
    let positions: Vec<u64> = sorted.iter().map(|it| it.1).collect();
    let index = RecordBatch::try_from_iter([
        (
            "id",
            Arc::new(StringArray::from_iter_values(names)) as Arc<dyn Array>,
        ),
        (
            "position",
            Arc::new(UInt64Array::from(positions)) as Arc<dyn Array>,
        ),
    ]);
    let encode = |batch: &RecordBatch| {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        writer.into_inner().unwrap()
    };
    let (samples, index) = (encode(&batch), encode(&index.unwrap()));
    let manifest = json!({
        "schema_version": 1, "source": "by hand", "samples": rows.len(), "characters": 1,
        "files": [{
            "path": "s.parquet", "size_bytes": samples.len(), "sha256": hex_sha256(&samples),
            "row_groups": [rows.len()],
        }],
        "index": {
            "path": "i.parquet", "size_bytes": index.len(), "sha256": hex_sha256(&index),
        },
    });
    std::fs::write(folder.join("s.parquet"), samples).unwrap();
    std::fs::write(folder.join("i.parquet"), index).unwrap();
    std::fs::write(folder.join("dataset.json"), manifest.to_string()).unwrap();
    Dataset::open(&url(folder)).await.unwrap()
}
