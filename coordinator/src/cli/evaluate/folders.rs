//! Checks at submission that the folders of metrics are what they should be: `evaluate.clip` by its
//! config, the others by the names of their files. Workers check the weights.

use crate::text::errln;
use anyhow::{Context, Result, bail};
use object_store::{Error as ObjectError, ObjectStoreExt};
use proto::public::config;
use storage::read::{ReadError, read_bounded};

const CONFIG: &str = "config.json";
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Whether only workers can see a local folder; says so.
fn is_elsewhere(field: &str, url: &str) -> bool {
    let folder = storage::local_folder(url).ok().flatten();
    let elsewhere = folder.is_some_and(|it| !it.is_dir());
    if elsewhere {
        errln!("{field}: there is no folder {url} here, so workers alone check it");
    }
    elsewhere
}

/// Whether a folder has all of these files.
pub(super) async fn check_files(field: &str, url: &str, files: &[&str]) -> Result<()> {
    if is_elsewhere(field, url) {
        return Ok(());
    }
    let (store, prefix) = storage::open(url).with_context(|| format!("{field} {url}"))?;
    for file in files {
        match store.head(&prefix.clone().join(*file)).await {
            Ok(_) => {}
            Err(ObjectError::NotFound { .. }) => bail!(
                "{field} {url} has no {file}; it must have {}",
                files.join(", ")
            ),
            Err(error) => return Err(error).with_context(|| format!("{field} {url}")),
        }
    }
    Ok(())
}

pub(super) async fn check_clip(url: &str) -> Result<()> {
    if is_elsewhere("evaluate.clip", url) {
        return Ok(());
    }
    let (store, prefix) = storage::open(url).with_context(|| format!("evaluate.clip {url}"))?;
    // As `coordinator checkpoint export` writes it, it is in a folder of its own.
    for path in [
        prefix.clone().join(CONFIG),
        prefix.clone().join("clip").join(CONFIG),
    ] {
        let text = match read_bounded(&*store, &path, CONFIG_BYTES_MAX).await {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(ReadError::Store(ObjectError::NotFound { .. })) => continue,
            Err(error) => return Err(error).with_context(|| format!("evaluate.clip {url}")),
        };
        return is_clip(&text).with_context(|| format!("evaluate.clip {url}: {path}"));
    }
    bail!("evaluate.clip {url} has no {CONFIG}; it must be a CLIP as transformers stores it")
}

/// Whether the config is that of both towers, with one projection.
fn is_clip(text: &str) -> Result<()> {
    let texts = config::text(text, true)?;
    let images = config::image(text)?;
    if texts.projection != Some(images.projection) {
        bail!(
            "the text tower projects to {} values and the image tower to {}; both must be the same",
            texts.projection.unwrap_or_default(),
            images.projection
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn another_folder_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let message = async || format!("{:#}", check_clip(&url).await.unwrap_err());
        let empty = message().await;
        assert!(empty.contains("has no config.json"), "{empty}");
        std::fs::write(dir.path().join(CONFIG), "{\"model_type\": \"bert\"}").unwrap();
        let other = message().await;
        assert!(
            other.starts_with(&format!("evaluate.clip {url}")),
            "{other}"
        );
        assert!(other.contains("config.json"), "{other}");
        let error = check_files("evaluate.lpips", &url, &["config.json", "b"]).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("evaluate.lpips {url} has no b; it must have config.json, b")
        );
    }
}
