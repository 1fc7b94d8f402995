//! Base weights: turns the job's `init` URL into local files. A `file://` base is used in place;
//! anything else is fetched once into the cache, into a folder named by the hash of what the store
//! says of its objects, so that a changed object is fetched anew; its files are hashed on the way,
//! and again at each use. Never looks inside a file: the model does.

use anyhow::{Context, bail, ensure};
use base_weights::base::Base;
use futures::StreamExt;
use object_store::ObjectStoreExt;
use proto::spec::{Architecture, Model};
use proto::text::{hex, hex_sha256};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// In a cached folder, written last: SHA-256 of each of its files.
const HASHES_FILE: &str = "sha256.json";
/// What `coordinator checkpoint export` says of its files, in a folder of ours.
const EXPORT_FILE: &str = "export.json";

type Hashes = BTreeMap<String, String>;

/// Component name -> local file or folder, for those components that the URL has and the
/// architecture uses.
pub(crate) async fn fetch(
    url: &str,
    model: &Model,
    cache: &Path,
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let attempt = async {
        let base = Base::find(url).await?;
        base.suits(model).await?;
        let wanted = Wanted::of(&base, model.architecture.kind());
        let folder = match base.local() {
            Some(folder) => folder.to_owned(),
            None => cached(&base, &wanted, cache).await?,
        };
        compare_with_export(&base, &wanted, &folder).await?;
        let places = wanted.places.into_iter();
        anyhow::Ok(places.map(|(name, at)| (name, folder.join(at))).collect())
    };
    attempt.await.with_context(|| format!("model.init {url}"))
}

/// What a job takes over from a base.
struct Wanted {
    /// By component, relative to the base's folder.
    places: BTreeMap<String, String>,
    /// All that must be fetched.
    files: BTreeSet<String>,
    /// The large ones of them.
    weights: BTreeSet<String>,
}

impl Wanted {
    fn of(base: &Base, architecture: Architecture) -> Self {
        let mut wanted = Self {
            places: BTreeMap::new(),
            files: BTreeSet::new(),
            weights: BTreeSet::new(),
        };
        for (name, place) in base.taken_over(architecture) {
            wanted.places.insert(name.to_owned(), place.at.clone());
            wanted
                .files
                .extend(place.weights.iter().chain(&place.beside).cloned());
            wanted.weights.extend(place.weights.iter().cloned());
        }
        wanted
    }
}

/// The folder with a remote base's files; the first of a node's ranks fetches them, the others wait
/// for it.
async fn cached(base: &Base, wanted: &Wanted, cache: &Path) -> anyhow::Result<PathBuf> {
    let folder = cache.join(version(base, wanted).await?);
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = std::fs::File::create(folder.with_extension("lock"))?;
    // Held until it is dropped, or until this process ends.
    lock.lock()
        .with_context(|| format!("cannot lock {}", folder.display()))?;
    if folder.is_dir() {
        match unchanged(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), "fetching base weights again: {error:#}")
            }
        }
        std::fs::remove_dir_all(&folder)?;
    }
    let partial = folder.with_extension("partial");
    if partial.is_dir() {
        std::fs::remove_dir_all(&partial)?;
    }
    let mut hashes = Hashes::new();
    for name in &wanted.files {
        tracing::info!(file = name, of = base.url(), "fetching base weights");
        hashes.insert(
            name.clone(),
            download(base, name, &partial.join(name)).await?,
        );
    }
    std::fs::write(
        partial.join(HASHES_FILE),
        serde_json::to_vec_pretty(&hashes)?,
    )?;
    std::fs::rename(&partial, &folder)?;
    Ok(folder)
}

/// Names what the store has now: URL, sizes and versions of all wanted files.
async fn version(base: &Base, wanted: &Wanted) -> anyhow::Result<String> {
    let mut text = base.url().to_owned();
    for name in &wanted.files {
        let (store, path) = base.object(name);
        let meta = store
            .head(&path)
            .await
            .with_context(|| format!("cannot read {path}"))?;
        let tag = meta
            .e_tag
            .unwrap_or_else(|| meta.last_modified.to_rfc3339());
        text.push_str(&format!("\n{path}\n{}\n{tag}", meta.size));
    }
    Ok(hex_sha256(text.as_bytes()))
}

/// Writes an object to a file as it comes in; its SHA-256.
async fn download(base: &Base, name: &str, to: &Path) -> anyhow::Result<String> {
    let (store, path) = base.object(name);
    let reading = || format!("cannot read {path}");
    let writing = || {
        format!(
            "cannot keep base weights in {}; is the disk full?",
            to.display()
        )
    };
    std::fs::create_dir_all(to.parent().unwrap_or(to)).with_context(writing)?;
    let mut file = std::fs::File::create(to).with_context(writing)?;
    let found = store.get(&path).await.with_context(reading)?;
    let expected = found.meta.size;
    let (mut hash, mut size, mut chunks) = (Sha256::new(), 0, found.into_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.with_context(reading)?;
        hash.update(&chunk);
        file.write_all(&chunk).with_context(writing)?;
        size += chunk.len() as u64;
    }
    ensure!(
        size == expected,
        "{path} broke off after {size} of {expected} bytes"
    );
    file.sync_all().with_context(writing)?;
    Ok(hex(&hash.finalize()))
}

/// Whether the files of a cached folder are still what was fetched.
fn unchanged(folder: &Path) -> anyhow::Result<()> {
    let hashes = std::fs::read(folder.join(HASHES_FILE)).context("its hashes are missing")?;
    let hashes: Hashes = serde_json::from_slice(&hashes)?;
    for (name, expected) in hashes {
        let found = hash_of(&folder.join(&name))?;
        ensure!(
            found == expected,
            "{name} has SHA-256 {found}, it was fetched with {expected}"
        );
    }
    Ok(())
}

/// Refuses weights that are not what the export that lies beside them wrote.
async fn compare_with_export(base: &Base, wanted: &Wanted, folder: &Path) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Export {
        files: Hashes,
    }
    let (store, path) = base.object(EXPORT_FILE);
    let read = async { store.get(&path).await?.bytes().await };
    let bytes = match read.await {
        Ok(bytes) => bytes,
        Err(object_store::Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
    };
    let Ok(export) = serde_json::from_slice::<Export>(&bytes) else {
        bail!("{EXPORT_FILE} is not what `coordinator checkpoint export` writes");
    };
    for name in &wanted.weights {
        let Some(expected) = export.files.get(name) else {
            continue;
        };
        let found = hash_of(&folder.join(name))?;
        ensure!(
            found == *expected,
            "{name} is damaged: its SHA-256 is {found}, {EXPORT_FILE} says {expected}"
        );
    }
    Ok(())
}

fn hash_of(path: &Path) -> anyhow::Result<String> {
    let hash =
        storage::hash::of_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hash))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn model(architecture: &str) -> Model {
        let text = format!(
            "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n\
             [model]\narchitecture = \"{architecture}\"\nsize = \"tiny\"\ninit = \"file:///b\"\n\
             [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
        );
        proto::job::parse_training("job.toml", &text).unwrap().model
    }

    fn put(folder: &Path, name: &str, bytes: &[u8]) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[tokio::test]
    async fn a_local_base_is_used_in_place_and_an_empty_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let fetch = async || fetch(&url, &model("retrinet"), folder.path()).await;
        let error = format!("{:#}", fetch().await.unwrap_err());
        assert!(
            error.contains(&url) && error.contains("holds no autoencoder"),
            "{error}"
        );
        for name in [
            "autoencoder.safetensors",
            "text_encoder.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
        ] {
            put(folder.path(), name, b"x");
        }
        let found = fetch().await.unwrap();
        assert_eq!(found["unet"], folder.path().join("unet"));
        assert_eq!(
            found["autoencoder"],
            folder.path().join("autoencoder.safetensors")
        );
        // An export's hashes are compared.
        let hash = hex_sha256(b"x");
        let export =
            |hash: &str| format!(r#"{{"files": {{"autoencoder.safetensors": "{hash}"}}}}"#);
        put(folder.path(), EXPORT_FILE, export(&hash).as_bytes());
        fetch().await.unwrap();
        put(folder.path(), EXPORT_FILE, export("00").as_bytes());
        let error = format!("{:#}", fetch().await.unwrap_err());
        assert!(
            error.contains("autoencoder.safetensors is damaged: its SHA-256 is"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_fetched_base_is_kept_until_it_changes_or_is_damaged() {
        let (remote, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(remote.path(), "vae/config.json", b"{}");
        put(remote.path(), "vae/model.safetensors", b"one");
        put(remote.path(), "unet/model.safetensors", b"not wanted");
        let url = format!("file://{}", remote.path().display());
        let folder = async || {
            let base = Base::find(&url).await.unwrap();
            let wanted = Wanted::of(&base, Architecture::Autoencoder);
            cached(&base, &wanted, cache.path()).await.unwrap()
        };
        let first = folder().await;
        let weights = first.join("vae/model.safetensors");
        assert_eq!(std::fs::read(&weights).unwrap(), b"one");
        assert!(
            !first.join("unet").exists(),
            "only what the architecture uses"
        );
        put(&first, "mark", b"");
        assert_eq!(folder().await, first);
        assert!(first.join("mark").exists(), "it is fetched once");
        std::fs::write(&weights, b"0ne").unwrap();
        assert_eq!(folder().await, first);
        assert_eq!(
            std::fs::read(&weights).unwrap(),
            b"one",
            "a damaged file is fetched again"
        );
        put(remote.path(), "vae/model.safetensors", b"second");
        let second = folder().await;
        assert_ne!(first, second);
        assert_eq!(
            std::fs::read(second.join("vae/model.safetensors")).unwrap(),
            b"second"
        );
    }
}
