//! Folders of weights that are no base model: those of metrics. A `file://` folder is used in place;
//! any other is downloaded once into the cache, into a folder that is named by a hash of the
//! objects' metadata, so that a changed object is downloaded again.

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStoreExt};
use proto::text::{hex, hex_sha256};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Files of other kinds are not read.
const ENDINGS: [&str; 3] = [".json", ".safetensors", ".txt"];
const FILES_MAX: usize = 64;
const BYTES_MAX: u64 = 16 << 30;
/// Read at a time when a file is hashed.
const CHUNK: usize = 1 << 20;

/// The folder as a local one.
pub(crate) async fn fetch(url: &str, cache: &Path) -> anyhow::Result<PathBuf> {
    if let Some(folder) = storage::local_folder(url)? {
        ensure!(folder.is_dir(), "there is no folder {}", folder.display());
        return Ok(folder);
    }
    let (store, prefix) = storage::open(url)?;
    let mut files: Vec<ObjectMeta> = Vec::new();
    let mut listed = store.list(Some(&prefix));
    while let Some(object) = listed.try_next().await? {
        let name = object.location.as_ref();
        if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            files.push(object);
            ensure!(files.len() <= FILES_MAX, "has more than {FILES_MAX} files");
        }
    }
    drop(listed);
    ensure!(!files.is_empty(), "has no weights");
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    ensure!(
        bytes <= BYTES_MAX,
        "has {bytes} bytes; at most {BYTES_MAX} are read"
    );
    files.sort_by(|a, b| a.location.cmp(&b.location));
    let state = |file: &ObjectMeta| format!("{} {} {:?}\n", file.location, file.size, file.e_tag);
    let states: String = files.iter().map(state).collect();
    let folder = cache.join(format!(
        "metric-{}",
        hex_sha256(format!("{url}\n{states}").as_bytes())
    ));
    for file in &files {
        let parts = file.location.prefix_match(&prefix);
        let parts = parts.with_context(|| format!("{} is not in {url}", file.location))?;
        let mut path = folder.clone();
        for part in parts {
            path.push(part.as_ref());
        }
        if std::fs::metadata(&path).is_ok_and(|found| found.len() == file.size) {
            continue;
        }
        let parent = path.parent().context("a file is in a folder")?;
        std::fs::create_dir_all(parent)?;
        // Renamed when it is complete: several ranks may download at the same time.
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        let mut out = std::fs::File::create(&partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        let mut stream = store.get(&file.location).await?.into_stream();
        while let Some(chunk) = stream.next().await {
            out.write_all(&chunk?)?;
        }
        out.sync_all()?;
        std::fs::rename(&partial, &path)?;
    }
    Ok(folder)
}

/// SHA-256 of weights: of these files of a folder, one after the other. Each may lie in `clip`
/// instead, where an export has it.
pub(crate) fn weights_digest(folder: &Path, names: &[&str]) -> anyhow::Result<String> {
    let (mut hasher, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    for name in names {
        let files = [folder.join(name), folder.join("clip").join(name)];
        let Some(file) = files.iter().find(|file| file.is_file()) else {
            bail!("{} has no {name}", folder.display());
        };
        let mut opened = std::fs::File::open(file)?;
        loop {
            match opened.read(&mut chunk)? {
                0 => break,
                read => hasher.update(&chunk[..read]),
            }
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_local_folder_is_used_in_place_and_its_weights_are_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let found = runtime.block_on(fetch(&url, dir.path())).unwrap();
        assert_eq!(found, dir.path());
        let names = ["model.safetensors"];
        let error = weights_digest(&found, &names).unwrap_err();
        assert!(
            error.to_string().contains("has no model.safetensors"),
            "{error}"
        );
        std::fs::create_dir(found.join("clip")).unwrap();
        std::fs::write(found.join("clip/model.safetensors"), b"x").unwrap();
        assert_eq!(weights_digest(&found, &names).unwrap(), hex_sha256(b"x"));
        let missing = runtime.block_on(fetch(&format!("{url}/none"), dir.path()));
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .contains("there is no folder")
        );
    }
}
