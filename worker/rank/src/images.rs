//! `jobs/<job>/images/` in the object store: the images of a sampling job and their JSON records.
//! Objects are written once and never overwritten. Called by [`crate::unit_runner`].

use anyhow::Context;
use bytes::Bytes;
use image::{ImageFormat, RgbImage};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};
use proto::id::JobId;
use std::io::Cursor;
use std::sync::Arc;

pub(crate) struct Images {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
}

impl Images {
    pub(crate) fn open(store_url: &str, job: &JobId) -> anyhow::Result<Self> {
        let (objects, prefix) = storage::open(store_url)?;
        let folder = ["jobs", &job.0, "images"]
            .into_iter()
            .fold(prefix, |path, part| path.join(part));
        Ok(Self { objects, folder })
    }

    fn path(&self, name: &str) -> Path {
        self.folder.clone().join(name)
    }

    pub(crate) async fn has(&self, name: &str) -> anyhow::Result<bool> {
        let path = self.path(name);
        match self.objects.head(&path).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot check for {path}")),
        }
    }

    /// None if the object does not exist.
    pub(crate) async fn get(&self, name: &str) -> anyhow::Result<Option<Bytes>> {
        let path = self.path(name);
        let read = async { self.objects.get(&path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
        }
    }

    /// None if the object does not exist.
    pub(crate) async fn get_image(&self, name: &str) -> anyhow::Result<Option<RgbImage>> {
        let Some(bytes) = self.get(name).await? else {
            return Ok(None);
        };
        let decoded = image::load_from_memory_with_format(&bytes, ImageFormat::Png);
        let decoded = decoded.with_context(|| format!("{} is damaged", self.path(name)))?;
        Ok(Some(decoded.into_rgb8()))
    }

    /// Returns the stored image: `image`, or the one that already existed.
    pub(crate) async fn put_image(&self, name: &str, image: RgbImage) -> anyhow::Result<RgbImage> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png)?;
        if self.put_new(name, bytes.into_inner()).await? {
            return Ok(image);
        }
        let existing = self.get_image(name).await?;
        existing.with_context(|| format!("{} existed and was deleted", self.path(name)))
    }

    pub(crate) async fn put(&self, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.put_new(name, bytes).await?;
        Ok(())
    }

    /// False if the object already existed; it is left unchanged.
    async fn put_new(&self, name: &str, bytes: Vec<u8>) -> anyhow::Result<bool> {
        let path = self.path(name);
        let put = self
            .objects
            .put_opts(&path, bytes.into(), PutMode::Create.into());
        match put.await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot write {path}")),
        }
    }
}
