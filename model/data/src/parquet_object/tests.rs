//! Parquet files that lie about themselves.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::columns::{copied_bytes, schema, to_batch};
use crate::dataset::Dataset;
use crate::sample::{Metadata, Sample};
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, Int32Array, StringArray};
use object_store::memory::InMemory;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use proptest::prelude::*;
use proto::dataset::{DatasetManifest, IndexFile, SampleFile};

fn samples(count: usize, prompt: &str) -> Vec<Sample> {
    let sample = |number: usize| Sample {
        metadata: Metadata {
            id: format!("id-{number}"),
            character: "c".to_owned(),
            artists: "a".to_owned(),
            prompts: format!("{prompt}{number}"),
            cloths: vec!["red coat".to_owned(); number % 3],
            similar: vec!["id-0".to_owned(); number],
            similar_positions: vec![0; number],
            ..Metadata::default()
        },
        image: Bytes::from(vec![7; 40 * number]),
        mask: Bytes::from_static(b"mask"),
    };
    (0..count).map(sample).collect()
}

fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()))
}

fn parquet(batch: &RecordBatch, properties: WriterPropertiesBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// All rows of a file with one row group.
async fn read(bytes: &[u8], limits: Limits) -> Result<Vec<RecordBatch>> {
    let (store, path) = (InMemory::new(), Path::from("x.parquet"));
    store
        .put(&path, Bytes::copy_from_slice(bytes).into())
        .await?;
    let object = ParquetObject {
        store: &store,
        path,
        size: bytes.len() as u64,
    };
    let footer = object.footer().await?;
    if footer.metadata().num_row_groups() != 1 {
        return Err(refused("no row group".to_owned()));
    }
    object
        .rows(&footer, 0, &ProjectionMask::all(), limits)
        .await
}

fn read_now(bytes: &[u8]) -> Result<Vec<RecordBatch>> {
    futures::executor::block_on(read(bytes, Limits::METADATA))
}

/// A data set of one file with this many rows.
async fn dataset(folder: &std::path::Path, bytes: &[u8], rows: u32) -> Dataset {
    std::fs::write(folder.join("samples.parquet"), bytes).unwrap();
    let file = |path: &str| SampleFile {
        path: path.to_owned(),
        size_bytes: bytes.len() as u64,
        sha256: String::new(),
        row_groups: vec![rows],
    };
    let manifest = DatasetManifest {
        schema_version: proto::dataset::DATASET_SCHEMA_VERSION,
        source: String::new(),
        samples: u64::from(rows),
        characters: 1,
        files: vec![file("samples.parquet")],
        index: IndexFile {
            path: "index.parquet".to_owned(),
            size_bytes: 0,
            sha256: String::new(),
        },
    };
    let manifest = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(folder.join("dataset.json"), manifest).unwrap();
    let url = format!("file://{}", folder.display());
    Dataset::open(&url).await.unwrap()
}

/// Rows that share one prompt of this many bytes, which is in the file once.
fn bomb(rows: usize, prompt_bytes: usize) -> RecordBatch {
    let batch = to_batch(&samples(rows, "")).unwrap();
    let at = batch.schema().index_of("prompts").unwrap();
    let values = StringArray::from(vec!["x".repeat(prompt_bytes)]);
    let keys = Int32Array::from(vec![0; rows]);
    let prompts = DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values)).unwrap();
    let mut fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().collect();
    let kind = prompts.data_type().clone();
    fields[at] = Arc::new(Field::new("prompts", kind, false));
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns[at] = Arc::new(prompts);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

#[tokio::test]
async fn a_text_that_many_rows_share_is_refused_before_it_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let properties = || properties().set_dictionary_page_size_limit(1 << 30);
    let bytes = parquet(&bomb(300, 1 << 20), properties());
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
    let dataset = dataset(folder.path(), &bytes, 300).await;
    let error = proto::text::chain(&dataset.scan().await.unwrap_err());
    assert!(
        error.starts_with("cannot read row group 0 of \"samples.parquet\" of the data set \"file:")
            && error.contains("its rows unfold to 314")
            && error.contains("at most 134217728 are read"),
        "{error}"
    );
    // The decoded batch itself holds the text once.
    let batches = read_now(&bytes).unwrap();
    assert!(batches[0].get_array_memory_size() < 8 << 20);
    assert!(300 << 20 <= copied_bytes(&batches[0]));
}

#[tokio::test]
async fn a_page_that_unfolds_to_too_much_is_refused_by_its_header() {
    let properties = || properties().set_dictionary_page_size_limit(1 << 30);
    let bytes = parquet(&bomb(2, 64 << 20), properties());
    let limits = |bytes| Limits {
        bytes,
        ..Limits::METADATA
    };
    let error = read(&bytes, limits(32 << 20))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unfold to 67") && error.contains("at most 33554432"),
        "{error}"
    );
    read(&bytes, limits(80 << 20)).await.unwrap();
    let values = Limits {
        values: 1,
        ..Limits::METADATA
    };
    let error = read(&bytes, values).await.unwrap_err().to_string();
    assert!(
        error.contains("a column claims 2 values; at most 1 are read"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_read_is_what_was_written() {
    let (folder, rows) = (tempfile::tempdir().unwrap(), samples(20, "1girl, "));
    let bytes = parquet(&to_batch(&rows).unwrap(), properties());
    let dataset = dataset(folder.path(), &bytes, 20).await;
    let (_, group) = dataset.groups().next().unwrap();
    assert_eq!(dataset.rows_of_group(group).await.unwrap(), rows);
    let metadata: Vec<Metadata> = rows.into_iter().map(|row| row.metadata).collect();
    assert_eq!(dataset.scan().await.unwrap(), metadata);
}

#[tokio::test]
async fn an_encoding_that_repeats_parts_of_values_is_refused() {
    let column = ColumnPath::from("prompts");
    let properties = properties()
        .set_column_dictionary_enabled(column.clone(), false)
        .set_column_encoding(column, Encoding::DELTA_BYTE_ARRAY);
    let bytes = parquet(&to_batch(&samples(4, "p")).unwrap(), properties);
    let error = read(&bytes, Limits::METADATA)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("encoding 7 is not supported"), "{error}");
}

#[test]
fn footers_that_claim_the_impossible_are_refused() {
    let bytes = parquet(&to_batch(&samples(2, "p")).unwrap(), properties());
    let end = bytes.len() - TAIL;
    let with_length = |length: u32| {
        let mut bytes = bytes.clone();
        bytes[end..end + 4].copy_from_slice(&length.to_le_bytes());
        read_now(&bytes).unwrap_err().to_string()
    };
    for (length, part) in [
        (
            u32::MAX,
            "its footer would be 4294967295 bytes long; at most 16777216",
        ),
        (
            1 << 20,
            "its footer would be 1048576 bytes long, the file has",
        ),
        (0, "its footer is damaged: it ends 1 bytes too early"),
    ] {
        let error = with_length(length);
        assert!(error.contains(part), "{error}");
    }
    let error = read_now(b"PAR1").unwrap_err().to_string();
    assert!(error.contains("too short"), "{error}");
    let error = read_now(&bytes[..end]).unwrap_err().to_string();
    assert!(error.contains("does not end as a Parquet file"), "{error}");
    // A schema that is nested as deeply as it has columns.
    let mut deep = vec![0x29, 0xfc, 0xe9, 0x07];
    deep.extend([0x15, 2, 0].repeat(1001));
    deep.push(0);
    assert_eq!(
        check_footer(&deep).unwrap_err(),
        "it has 1001 columns; at most 1000 are read"
    );
}

/// The library panics on some of these: a panic is an error.
#[test]
fn every_damaged_byte_of_a_footer_is_read_or_refused() {
    let bytes = parquet(&to_batch(&samples(2, "p")).unwrap(), properties());
    let length = footer_length(&bytes).unwrap() as usize;
    for at in bytes.len() - TAIL - length..bytes.len() {
        for value in [0, 0x7f, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x10] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            drop(read_now(&bytes));
        }
    }
}

#[test]
fn a_panic_becomes_an_error() {
    let error = guarded::<()>(|| panic!("index {}", 7))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("it is damaged: the Parquet reader panicked: index 7"),
        "{error}"
    );
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #[test]
    fn any_damage_is_read_or_refused(damage in damage(), cut in 0usize..40) {
        let mut bytes = parquet(&to_batch(&samples(6, "p")).unwrap(), properties());
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(20));
        drop(read_now(&bytes));
    }

    /// The caps are exact: what a file unfolds to passes, one byte less does not.
    #[test]
    fn the_limits_are_those_of_the_pages(rows in 1usize..40, prompt in "[a-z]{0,200}") {
        let bytes = parquet(&to_batch(&samples(rows, &prompt)).unwrap(), properties());
        let footer = parse_footer(&{
            let length = footer_length(&bytes).unwrap() as usize;
            bytes[bytes.len() - TAIL - length..bytes.len() - TAIL].to_vec()
        }).unwrap();
        prop_assert_eq!(footer.schema().fields().len(), schema().fields().len());
        for column in footer.metadata().row_group(0).columns() {
            let (start, length) = column.byte_range();
            let chunk = &bytes[start as usize..(start + length) as usize];
            let unlimited = Limits { bytes: u64::MAX, values: u64::MAX };
            let unfolded = check_pages(chunk, unlimited).unwrap();
            prop_assert!(unfolded <= column.uncompressed_size() as u64);
            let values = column.num_values() as u64;
            // A dictionary counts, too.
            let exact = Limits { bytes: unfolded, values: 2 * values };
            prop_assert_eq!(check_pages(chunk, exact).unwrap(), unfolded);
            let fewer = Limits { bytes: unfolded - 1, ..exact };
            prop_assert!(check_pages(chunk, fewer).is_err());
            let fewer = Limits { values: values - 1, ..exact };
            prop_assert!(check_pages(chunk, fewer).is_err());
        }
    }
}
