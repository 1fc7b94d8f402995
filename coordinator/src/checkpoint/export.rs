//! Writes a checkpoint's weights as a folder of whole components, the form in which a job begins from base
//! weights: `unet.safetensors`, `text_encoder.safetensors`, `autoencoder.safetensors`, and
//! `retrinet.safetensors` for what only a RetriNet has. Weights that the job did not train come from its
//! init folder, so that the folder is complete. Beside them `export.json` says where they come from. Called
//! by `coordinator checkpoint export`.

use super::{Checkpoint, CheckpointError};
use half::f16;
use object_store::{ObjectStoreExt, path::Path as ObjectPath};
use proto::checkpoint::CheckpointManifest;
use proto::public::names::RETRINET_FILE;
use proto::spec::JobSpec;
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Components that have a file of their own, under their own names; the rest shares [`RETRINET_FILE`] under
/// full names.
const COMPONENTS: [&str; 3] = ["autoencoder", "text_encoder", "unet"];
/// Before the name of every weight in a checkpoint; optimizer state has another.
const WEIGHTS_PREFIX: &str = "weights/";
const ORIGIN_FILE: &str = "export.json";

/// Where exported weights come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Origin {
    pub(crate) job: String,
    pub(crate) step: u64,
    pub(crate) generation: u64,
    pub(crate) seed: u64,
    /// As `coordinator checkpoint digest` prints it.
    pub(crate) digest: String,
    pub(crate) dataset_version: String,
    /// "f16" or "as trained".
    pub(crate) numbers: &'static str,
    /// SHA-256 of every file written.
    pub(crate) files: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Weights {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The tensors of one file by name.
type File = BTreeMap<String, Weights>;

impl Checkpoint {
    /// Writes the folder, which is made if it is missing; with `half`, 32-bit floats become 16-bit ones.
    pub(crate) async fn export(&self, out: &Path, half: bool) -> Result<Origin, CheckpointError> {
        let manifest = self.manifest().await?;
        let spec = proto::job::parse("manifest.json", &manifest.job_toml, None)
            .map_err(|error| CheckpointError::Refused(format!("the manifest's job.toml: {error}")))?;
        let mut files = init_files(&spec).await?;
        for (name, place) in self.tensors(&manifest.shards).await? {
            let Some(name) = name.strip_prefix(WEIGHTS_PREFIX) else {
                continue;
            };
            let bytes = self.range(&place.shard, place.range.clone()).await?.to_vec();
            let weights = Weights {
                dtype: place.info.dtype,
                shape: place.info.shape.clone(),
                bytes,
            };
            let (file, name) = file_of(name);
            files.entry(file).or_default().insert(name, weights);
        }
        let mut origin = self.origin(&manifest, &spec, half).await?;
        std::fs::create_dir_all(out).map_err(|error| unwritable(out, &error))?;
        for (file, mut tensors) in files {
            if half {
                tensors.values_mut().for_each(Weights::halve);
            }
            let bytes = serialize(&file, &tensors)?;
            origin
                .files
                .insert(file.clone(), format!("{:x}", Sha256::digest(&bytes)));
            write(&out.join(file), &bytes)?;
        }
        let json = serde_json::to_vec_pretty(&origin).expect("an origin is strings and numbers");
        write(&out.join(ORIGIN_FILE), &json)?;
        Ok(origin)
    }

    async fn origin(
        &self,
        manifest: &CheckpointManifest,
        spec: &JobSpec,
        half: bool,
    ) -> Result<Origin, CheckpointError> {
        Ok(Origin {
            job: manifest.job.0.clone(),
            step: manifest.step.0,
            generation: manifest.generation.0,
            seed: spec.data.seed,
            digest: self.digest().await?,
            dataset_version: manifest.dataset_version.clone(),
            numbers: if half { "f16" } else { "as trained" },
            files: BTreeMap::new(),
        })
    }
}

impl Weights {
    /// Nearest 16-bit float of every 32-bit one; other types stay as they are.
    fn halve(&mut self) {
        if self.dtype != Dtype::F32 {
            return;
        }
        let halves = self.bytes.chunks_exact(4).flat_map(|it| {
            let value = f32::from_le_bytes(it.try_into().expect("the chunks have four bytes"));
            f16::from_f32(value).to_le_bytes()
        });
        self.bytes = halves.collect();
        self.dtype = Dtype::F16;
    }
}

/// The file that a weight belongs to, and its name in there: `unet.out.2.bias` is `out.2.bias` of
/// `unet.safetensors`.
fn file_of(name: &str) -> (String, String) {
    match name.split_once('.') {
        Some((component, rest)) if COMPONENTS.contains(&component) => {
            (format!("{component}.safetensors"), rest.to_owned())
        }
        _ => (RETRINET_FILE.to_owned(), name.to_owned()),
    }
}

/// What the job began from, file by file; empty for a job that began from random weights.
async fn init_files(spec: &JobSpec) -> Result<BTreeMap<String, File>, CheckpointError> {
    let mut files = BTreeMap::new();
    let Some(url) = &spec.model.init else {
        return Ok(files);
    };
    let (store, prefix) = model_data::store::open(url)?;
    for component in COMPONENTS {
        let name = format!("{component}.safetensors");
        let path: ObjectPath = prefix.clone().join(name.as_str());
        let read = async { store.get(&path).await?.bytes().await };
        match read.await {
            Ok(bytes) => {
                files.insert(name, parse(&path, &bytes)?);
            }
            // An autoencoder alone has no text encoder to begin from.
            Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => return Err(super::storage("read", &path, source)),
        }
    }
    Ok(files)
}

fn parse(path: &ObjectPath, bytes: &[u8]) -> Result<File, CheckpointError> {
    let wrong = |error: safetensors::SafeTensorError| CheckpointError::Shard {
        path: path.to_string(),
        reason: error.to_string(),
    };
    let tensors = SafeTensors::deserialize(bytes).map_err(wrong)?;
    let weights = tensors.iter().map(|(name, view)| {
        let weights = Weights {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        (name.to_owned(), weights)
    });
    Ok(weights.collect())
}

fn serialize(file: &str, tensors: &File) -> Result<Vec<u8>, CheckpointError> {
    let wrong = |error: safetensors::SafeTensorError| CheckpointError::Shard {
        path: file.to_owned(),
        reason: error.to_string(),
    };
    let mut views = Vec::new();
    for (name, it) in tensors {
        views.push((
            name,
            TensorView::new(it.dtype, it.shape.clone(), &it.bytes).map_err(wrong)?,
        ));
    }
    safetensors::serialize(views, None).map_err(wrong)
}

fn write(path: &PathBuf, bytes: &[u8]) -> Result<(), CheckpointError> {
    std::fs::write(path, bytes).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> CheckpointError {
    CheckpointError::Refused(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fixture::{TestCheckpoint, test_checkpoint};

    #[tokio::test]
    async fn an_export_has_every_weight_under_its_components_name() {
        let TestCheckpoint {
            dir,
            url,
            manifest,
            reference,
        } = test_checkpoint(2, true).await;
        let checkpoint = Checkpoint::at(&url, &manifest.job, reference).unwrap();
        let (whole, half) = (dir.path().join("whole"), dir.path().join("half"));
        let origin = checkpoint.export(&whole, false).await.unwrap();
        assert_eq!(origin.digest, checkpoint.digest().await.unwrap());
        assert_eq!(origin.files.keys().collect::<Vec<_>>(), ["unet.safetensors"]);
        let bytes = std::fs::read(whole.join("unet.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 7);
        assert_eq!(tensors.tensor("output_blocks.0.weight").unwrap().shape(), [2, 4]);

        checkpoint.export(&half, true).await.unwrap();
        let bytes = std::fs::read(half.join("unet.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(
            tensors.tensor("output_blocks.0.weight").unwrap().dtype(),
            Dtype::F16
        );
    }

    #[test]
    fn halving_rounds_to_the_nearest() {
        let bytes = [1.0f32, -0.1, 65536.0]
            .iter()
            .flat_map(|it| it.to_le_bytes())
            .collect();
        let mut weights = Weights {
            dtype: Dtype::F32,
            shape: vec![3],
            bytes,
        };
        weights.halve();
        let halves: Vec<u16> = weights
            .bytes
            .chunks_exact(2)
            .map(|it| u16::from_le_bytes(it.try_into().unwrap()))
            .collect();
        assert_eq!(
            (weights.dtype, halves),
            (Dtype::F16, vec![0x3c00, 0xae66, 0x7c00])
        );
    }
}
