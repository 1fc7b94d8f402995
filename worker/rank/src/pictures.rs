//! `jobs/<job>/pictures/` in the store: where drawn pictures and what is said of them go. Called by [`crate::sample`].

use anyhow::Context;
use image::{ImageFormat, RgbImage};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::id::JobId;
use std::io::Cursor;
use std::sync::Arc;

pub(crate) struct Pictures {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
}

impl Pictures {
    pub(crate) fn open(store_url: &str, job: &JobId) -> anyhow::Result<Self> {
        let (objects, prefix) = storage::open(store_url)?;
        let folder = ["jobs", &job.0, "pictures"]
            .into_iter()
            .fold(prefix, |path, part| path.join(part));
        Ok(Self { objects, folder })
    }

    pub(crate) async fn put_picture(&self, name: &str, picture: &RgbImage) -> anyhow::Result<()> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png)?;
        self.put(name, bytes.into_inner()).await
    }

    pub(crate) async fn put(&self, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let path = self.folder.clone().join(name);
        self.objects
            .put(&path, bytes.into())
            .await
            .with_context(|| format!("cannot write {path}"))?;
        Ok(())
    }
}
