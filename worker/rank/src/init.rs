//! Base weights: resolves the job's `init` URL to local files. A `file://` base is used in place.
//! Any other base is downloaded once into a cache folder that is named by a hash of the objects'
//! metadata, so that a changed object is downloaded again. Files of `torch.save` of any base are
//! converted to safetensors once, into a folder of their own beside it. Cached files are hashed
//! when they are written and verified at each use. File contents are not parsed here but by the
//! model.

use anyhow::{Context, bail, ensure};
use base_weights::base::{Base, BaseError};
use futures::StreamExt;
use object_store::ObjectStoreExt;
use proto::public::base::converted_name;
use proto::spec::{Architecture, Model};
use proto::text::{hex, hex_sha256};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// SHA-256 of each file of a cached folder. Written last.
const HASHES_FILE: &str = "sha256.json";
/// Written by `coordinator checkpoint export`: the SHA-256 of the exported files.
const EXPORT_FILE: &str = "export.json";

type Hashes = BTreeMap<String, String>;

/// Maps component names to local files or folders, for the components that the base contains and
/// the architecture uses.
pub(crate) async fn fetch(
    url: &str,
    model: &Model,
    cache: &Path,
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let attempt = async {
        let base = Base::find(url).await?;
        base.suits(model).await?;
        let kind = model.architecture.kind();
        let base = converted(base, kind, cache).await?;
        let required = RequiredFiles::of(&base, kind);
        let folder = match base.local() {
            Some(folder) => folder.to_owned(),
            None if required.files.is_empty() => PathBuf::new(),
            None => cached(&base, &required.files, cache).await?,
        };
        compare_with_export(&base, &required, &folder).await?;
        let locations = base.taken_over(kind).map(|(name, component)| {
            let folder = base.converted_folder(name).unwrap_or(&folder);
            (name.to_owned(), folder.join(&component.at))
        });
        anyhow::Ok(locations.collect())
    };
    attempt.await.with_context(|| format!("model.init {url}"))
}

/// The files that a job needs of a base as it is, without those that were converted.
struct RequiredFiles {
    /// All files to download.
    files: BTreeSet<String>,
    /// The weight files among them.
    weights: BTreeSet<String>,
}

impl RequiredFiles {
    fn of(base: &Base, architecture: Architecture) -> Self {
        let as_it_is = |it: &(&'static str, _)| base.converted_folder(it.0).is_none();
        let mut required = Self {
            files: BTreeSet::new(),
            weights: BTreeSet::new(),
        };
        for (_, component) in base.taken_over(architecture).filter(as_it_is) {
            required.files.extend(component.files().cloned());
            required.weights.extend(component.weights.iter().cloned());
        }
        required
    }
}

/// The base with its files of `torch.save` converted to safetensors, once, in the cache.
async fn converted(base: Base, kind: Architecture, cache: &Path) -> anyhow::Result<Base> {
    let files = base.pickled_files(kind);
    if files.is_empty() {
        return Ok(base);
    }
    let name = format!("{}-safetensors", version(&base, &files).await?);
    let folder = kept(&cache.join(name), async |partial| {
        tracing::info!(
            ?files,
            of = base.url(),
            "converting base weights to safetensors"
        );
        let mut hashes = Hashes::new();
        for done in base.convert(kind, partial).await? {
            tracing::info!(
                source = done.source,
                source_sha256 = done.source_sha256,
                sha256 = done.sha256,
                tensors = done.tensors,
                without = done.ignored.len(),
                "converted base weights"
            );
        }
        for name in &files {
            let name = converted_name(name);
            hashes.insert(name.clone(), hash_file(&partial.join(&name))?);
        }
        Ok(hashes)
    })
    .await?;
    Ok(base.with_converted(kind, folder)?)
}

/// The cache folder with a remote base's files.
async fn cached(base: &Base, files: &BTreeSet<String>, cache: &Path) -> anyhow::Result<PathBuf> {
    let folder = cache.join(version(base, files).await?);
    kept(&folder, async |partial| {
        let mut hashes = Hashes::new();
        for name in files {
            tracing::info!(file = name, of = base.url(), "downloading base weights");
            let hash = download(base, name, &partial.join(name)).await?;
            hashes.insert(name.clone(), hash);
        }
        Ok(hashes)
    })
    .await
}

/// A folder of the cache. The first rank of a node fills it, and says the hash of each file, while
/// the others wait for the lock.
async fn kept(
    folder: &Path,
    fill: impl AsyncFnOnce(&Path) -> anyhow::Result<Hashes>,
) -> anyhow::Result<PathBuf> {
    let cache = folder.parent().unwrap_or(folder);
    std::fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = std::fs::File::create(folder.with_extension("lock"))?;
    // Held until it is dropped or this process exits.
    lock.lock()
        .with_context(|| format!("cannot lock {}", folder.display()))?;
    if folder.is_dir() {
        match verify_cached(folder) {
            Ok(()) => return Ok(folder.to_owned()),
            Err(error) => {
                tracing::warn!(
                    folder = %folder.display(),
                    "fetching base weights again: {error:#}"
                );
            }
        }
        std::fs::remove_dir_all(folder)?;
    }
    let partial = folder.with_extension("partial");
    if partial.is_dir() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial)
        .with_context(|| format!("cannot create {}", partial.display()))?;
    let hashes = fill(&partial).await?;
    std::fs::write(
        partial.join(HASHES_FILE),
        serde_json::to_vec_pretty(&hashes)?,
    )?;
    std::fs::rename(&partial, folder)?;
    Ok(folder.to_owned())
}

/// Identifies the current objects: a hash of the URL and of the sizes and versions of all files.
async fn version(base: &Base, files: &BTreeSet<String>) -> anyhow::Result<String> {
    let mut text = base.url().to_owned();
    for name in files {
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

/// Streams an object to a file and returns its SHA-256.
async fn download(base: &Base, name: &str, to: &Path) -> anyhow::Result<String> {
    let (store, path) = base.object(name);
    let reading = || format!("cannot read {path}");
    let writing = || {
        format!(
            "cannot write base weights to {}; is the disk full?",
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
        "the download of {path} ended after {size} of {expected} bytes"
    );
    file.sync_all().with_context(writing)?;
    Ok(hex(&hash.finalize()))
}

/// Verifies the files of a cached folder against their hashes.
fn verify_cached(folder: &Path) -> anyhow::Result<()> {
    let hashes = std::fs::read(folder.join(HASHES_FILE)).context("the hashes are missing")?;
    let hashes: Hashes = serde_json::from_slice(&hashes)?;
    for (name, expected) in hashes {
        let found = hash_file(&folder.join(&name))?;
        ensure!(
            found == expected,
            "{name} has the SHA-256 {found}, but was downloaded with {expected}"
        );
    }
    Ok(())
}

/// Verifies weights against the hashes of the export, if there are any.
async fn compare_with_export(
    base: &Base,
    required: &RequiredFiles,
    folder: &Path,
) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Export {
        files: Hashes,
    }
    let bytes = match base.read(EXPORT_FILE).await {
        Ok(bytes) => bytes,
        Err(BaseError::Read { source, .. }) if source.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let Ok(export) = serde_json::from_slice::<Export>(&bytes) else {
        bail!("{EXPORT_FILE} is not what `coordinator checkpoint export` writes");
    };
    for name in &required.weights {
        let Some(expected) = export.files.get(name) else {
            continue;
        };
        let found = hash_file(&folder.join(name))?;
        ensure!(
            found == *expected,
            "{name} is damaged: its SHA-256 is {found}, {EXPORT_FILE} says {expected}"
        );
    }
    Ok(())
}

fn hash_file(path: &Path) -> anyhow::Result<String> {
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

    /// A whole safetensors file without a tensor.
    const WEIGHTS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

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
            put(folder.path(), name, WEIGHTS);
        }
        let found = fetch().await.unwrap();
        assert_eq!(found["unet"], folder.path().join("unet"));
        assert_eq!(
            found["autoencoder"],
            folder.path().join("autoencoder.safetensors")
        );
        // The hashes of an export are verified.
        let hash = hex_sha256(WEIGHTS);
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
        put(remote.path(), "unet/model.safetensors", b"not required");
        let url = format!("file://{}", remote.path().display());
        let folder = async || {
            let base = Base::find(&url).await.unwrap();
            let required = RequiredFiles::of(&base, Architecture::Autoencoder);
            cached(&base, &required.files, cache.path()).await.unwrap()
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
        assert!(first.join("mark").exists(), "it is downloaded once");
        std::fs::write(&weights, b"0ne").unwrap();
        assert_eq!(folder().await, first);
        assert_eq!(
            std::fs::read(&weights).unwrap(),
            b"one",
            "a damaged file is downloaded again"
        );
        put(remote.path(), "vae/model.safetensors", b"second");
        let second = folder().await;
        assert_ne!(first, second);
        assert_eq!(
            std::fs::read(second.join("vae/model.safetensors")).unwrap(),
            b"second"
        );
    }

    /// A file of `torch.save` is converted once for each state of it, and again if the result is
    /// damaged; whether the base is local or not is all the same.
    #[tokio::test]
    async fn a_pickle_is_converted_once_into_the_cache() {
        let (remote, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let save = |name: &str, values: &[f32]| {
            let path = remote.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut file = base_weights::torch_file::TorchFile::create(&path).unwrap();
            let bytes: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
            file.put("a", "F32", &[values.len() as u64], &bytes)
                .unwrap();
            file.finish().unwrap();
        };
        save("vae/diffusion_pytorch_model.bin", &[1.0]);
        put(remote.path(), "unet.safetensors", WEIGHTS);
        put(remote.path(), "text_encoder.safetensors", WEIGHTS);
        let url = format!("file://{}", remote.path().display());
        let fetch = async || {
            fetch(&url, &model("text-to-image"), cache.path())
                .await
                .unwrap()
        };
        let found = fetch().await;
        let vae = found["autoencoder"].clone();
        assert!(
            vae.starts_with(cache.path()) && vae.ends_with("vae"),
            "{found:?}"
        );
        assert_eq!(found["unet"], remote.path().join("unet.safetensors"));
        let weights = vae.join("diffusion_pytorch_model.safetensors");
        let bytes = std::fs::read(&weights).unwrap();
        assert!(bytes.ends_with(&1f32.to_le_bytes()));
        let record = vae.join("diffusion_pytorch_model.safetensors.json");
        let record = std::fs::read_to_string(record).unwrap();
        let source = std::fs::read(remote.path().join("vae/diffusion_pytorch_model.bin")).unwrap();
        assert!(
            record.contains(&hex_sha256(&source)) && record.contains(&hex_sha256(&bytes)),
            "{record}"
        );
        put(&vae, "mark", b"");
        assert_eq!(fetch().await, found);
        assert!(vae.join("mark").exists(), "it is converted once");
        std::fs::write(&weights, b"damaged").unwrap();
        assert_eq!(fetch().await, found);
        assert_eq!(std::fs::read(&weights).unwrap(), bytes);
        // Another size, so that the version differs whatever the clock's resolution.
        save("vae/diffusion_pytorch_model.bin", &[1.0, 2.0]);
        let second = fetch().await["autoencoder"].clone();
        assert_ne!(second, vae);
        let bytes = std::fs::read(second.join("diffusion_pytorch_model.safetensors")).unwrap();
        assert!(bytes.ends_with(&2f32.to_le_bytes()));
    }
}
