//! Base weights: turns the job's `init` URL into local files. A `file://` folder is used in place; anything
//! else is fetched once into the cache, under a name that holds the object's own version, so that a changed
//! object is fetched anew. Never looks inside a file: the model does.

use crate::hash::hex_sha256;
use anyhow::Context;
use model_data::store;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files of a base model; which of them a job needs depends on its architecture, which the model checks.
const COMPONENTS: [&str; 4] = ["autoencoder", "text_encoder", "unet", "retrinet"];

/// Component name -> local file, for those components that the folder has. An empty folder is an error.
pub(crate) async fn fetch(url: &str, cache: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let (objects, prefix) = store::open(url)?;
    let local = store::local_folder(url)?;
    let mut found = BTreeMap::new();
    for component in COMPONENTS {
        let file = format!("{component}.safetensors");
        let path = match &local {
            Some(folder) => Some(folder.join(&file)).filter(|path| path.is_file()),
            None => cached(&*objects, &prefix.clone().join(file.as_str()), url, cache).await?,
        };
        if let Some(path) = path {
            found.insert(component.to_owned(), path);
        }
    }
    anyhow::ensure!(
        !found.is_empty(),
        "model.init {url} holds none of {}",
        COMPONENTS.map(|name| format!("{name}.safetensors")).join(", ")
    );
    Ok(found)
}

/// None when there is no such object.
async fn cached(
    objects: &dyn ObjectStore,
    object: &ObjectPath,
    url: &str,
    cache: &Path,
) -> anyhow::Result<Option<PathBuf>> {
    let meta = match objects.head(object).await {
        Ok(meta) => meta,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {object} of model.init {url}")),
    };
    let path = cache.join(format!("{}.safetensors", version(url, object, &meta)));
    if path.is_file() {
        return Ok(Some(path));
    }
    let bytes = async { objects.get(object).await?.bytes().await }
        .await
        .with_context(|| format!("cannot read {object} of model.init {url}"))?;
    // Several ranks may fetch at once: each writes a file of its own, and the last rename wins with the same
    // bytes.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let write = || {
        std::fs::create_dir_all(cache)?;
        std::fs::write(&partial, &bytes)?;
        std::fs::rename(&partial, &path)
    };
    write().with_context(|| {
        format!(
            "cannot keep base weights in {}; is the disk full?",
            path.display()
        )
    })?;
    Ok(Some(path))
}

fn version(url: &str, object: &ObjectPath, meta: &ObjectMeta) -> String {
    let tag = meta
        .e_tag
        .clone()
        .unwrap_or_else(|| meta.last_modified.to_rfc3339());
    hex_sha256(format!("{url}\n{object}\n{}\n{tag}", meta.size).as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_local_folder_is_used_in_place_and_an_empty_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let error = fetch(&url, folder.path()).await.unwrap_err().to_string();
        assert!(
            error.contains(&url) && error.contains("unet.safetensors"),
            "{error}"
        );
        std::fs::write(folder.path().join("unet.safetensors"), b"x").unwrap();
        let found = fetch(&url, folder.path()).await.unwrap();
        assert_eq!(
            found,
            BTreeMap::from([("unet".to_owned(), folder.path().join("unet.safetensors"))])
        );
    }

    #[tokio::test]
    async fn a_remote_object_is_fetched_once_and_again_when_it_changes() {
        let cache = tempfile::tempdir().unwrap();
        let objects = object_store::memory::InMemory::new();
        let object = ObjectPath::from("base/unet.safetensors");
        objects.put(&object, "one".into()).await.unwrap();
        let first = cached(&objects, &object, "s3://b/base", cache.path())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), b"one");
        let again = cached(&objects, &object, "s3://b/base", cache.path())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(first, again);
        objects.put(&object, "two".into()).await.unwrap();
        let changed = cached(&objects, &object, "s3://b/base", cache.path())
            .await
            .unwrap()
            .unwrap();
        assert_ne!(first, changed);
        assert_eq!(std::fs::read(&changed).unwrap(), b"two");
        let missing = cached(&objects, &ObjectPath::from("x"), "s3://b/base", cache.path())
            .await
            .unwrap();
        assert_eq!(missing, None);
    }
}
