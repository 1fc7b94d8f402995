//! The results of an evaluation in the store: its table, or while it runs the records of the images
//! that it has.

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use image::{ImageFormat, RgbImage};
use model_data::evaluation::{Row, read, write};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use proto::pb;
use std::sync::Arc;

/// As the rank names it.
const TABLE: &str = "rows.parquet";
/// Records that are read concurrently.
const CONCURRENT_READS: usize = 32;

pub(super) struct Stored {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
}

impl Stored {
    pub(super) fn open(view: &pb::JobView) -> Result<Self> {
        let (objects, prefix) = storage::open(&view.store_url)?;
        let folder = ["jobs", &view.job, "images"]
            .into_iter()
            .fold(prefix, |path, part| path.join(part));
        Ok(Self { objects, folder })
    }

    /// The rows in order and their table. `images`: how many there will be.
    pub(super) async fn rows(&self, images: u64) -> Result<(Vec<Row>, Bytes)> {
        if let Some(table) = self.get(TABLE).await? {
            let rows = read(table.clone());
            let rows = rows.with_context(|| format!("{}/{TABLE} is damaged", self.folder))?;
            return Ok((rows, table));
        }
        let reads = futures::stream::iter(0..images)
            .map(|unit| async move { self.get(&format!("{unit:07}.json")).await });
        let mut reads = std::pin::pin!(reads.buffered(CONCURRENT_READS));
        let mut rows: Vec<Row> = Vec::new();
        while let Some(record) = reads.try_next().await? {
            if let Some(record) = record {
                rows.push(serde_json::from_slice(&record)?);
            }
        }
        let table = write(&rows)?;
        Ok((rows, table.into()))
    }

    /// None if there is no such image.
    pub(super) async fn image(&self, name: &str) -> Result<Option<RgbImage>> {
        let Some(bytes) = self.get(name).await? else {
            return Ok(None);
        };
        let decoded = image::load_from_memory_with_format(&bytes, ImageFormat::Png);
        let decoded = decoded.with_context(|| format!("{}/{name} is damaged", self.folder))?;
        Ok(Some(decoded.into_rgb8()))
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.folder.clone().join(name);
        let read = async { self.objects.get(&path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
        }
    }
}
