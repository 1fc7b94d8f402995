//! Checks at submission that `evaluate.clip` is a CLIP, by its config. Workers check its weights.

use crate::text::errln;
use anyhow::{Context, Result, bail};
use object_store::Error as ObjectError;
use proto::public::config;
use storage::read::{ReadError, read_bounded};

const CONFIG: &str = "config.json";
const CONFIG_BYTES_MAX: u64 = 1 << 20;

pub(super) async fn check(url: &str) -> Result<()> {
    if let Ok(Some(folder)) = storage::local_folder(url)
        && !folder.is_dir()
    {
        errln!("evaluate.clip: there is no folder {url} here, so workers alone check it");
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
        let message = async || format!("{:#}", check(&url).await.unwrap_err());
        let empty = message().await;
        assert!(empty.contains("has no config.json"), "{empty}");
        std::fs::write(dir.path().join(CONFIG), "{\"model_type\": \"bert\"}").unwrap();
        let other = message().await;
        assert!(
            other.starts_with(&format!("evaluate.clip {url}")),
            "{other}"
        );
        assert!(other.contains("config.json"), "{other}");
    }
}
