//! Writes a checkpoint's weights in the model layout of `diffusers` and `transformers`: `unet/`,
//! `vae/` and `text_encoder/`, each with its `config.json`, and the weights that only a RetriNet
//! has in `unet/`, under full names. The peers' own weights have their authors' or `diffusers`'
//! layout, with `model_index.json`, the scheduler's configuration and a model card; FastComposer's
//! also as the one file that its authors' code reads. A job can use
//! such a folder as `model.init`. Weights that the job did not train are copied from its base, so
//! that the folder is complete. A base that has changed since is refused before anything is
//! written, and so is a folder that is not empty: files of two models would mix. `export.json`
//! records the origin of all weights. Only one component at a time is in memory. Called by
//! `coordinator checkpoint export`.

mod fastcomposer;
mod pipeline;
#[cfg(test)]
mod tests;
mod unclip;

use super::component::{Component, Weights, read_tensors, retrieval_encoder};
use super::{Checkpoint, CheckpointError, TensorLocation};
use base_weights::base::Base;
use base_weights::init_digest::init_digest;
use fastcomposer::AuthorsFile;
use proto::architecture::{IP_ADAPTER, POSTFUSE, PRIOR, RETRINET, UNCLIP};
use proto::checkpoint::{CheckpointManifest, MANIFEST_FILE};
use proto::public::base::{CLIP, CONFIG_FILE, OWN_PARTS, PARTS, Part};
use proto::public::names::{RETRIEVAL_NOTE, RETRINET_FILE};
use proto::public::scheduler::{self, SCHEDULER_FILE};
use proto::public::write::config;
use proto::spec::{self, Architecture, TrainWork};
use proto::text::{hex, hex_sha256};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// Name prefix of every weight in a checkpoint; optimizer state has another prefix.
const WEIGHTS_PREFIX: &str = "weights/";
/// Name prefix of the moving average of a weight, if the job keeps one.
const AVERAGE_PREFIX: &str = "ema/";
const ORIGIN_FILE: &str = "export.json";
/// The origin of exported weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Origin {
    pub(crate) job: String,
    pub(crate) step: u64,
    pub(crate) generation: u64,
    pub(crate) seed: u64,
    /// As `coordinator checkpoint digest` prints it.
    pub(crate) digest: String,
    pub(crate) dataset_version: String,
    /// "moving average" or "as trained".
    pub(crate) weights: &'static str,
    /// "f16" or "f32".
    #[serde(rename = "numbers")]
    pub(crate) dtype: &'static str,
    /// SHA-256 of every file written.
    pub(crate) files: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ExportOptions {
    /// Convert floats to f16.
    pub(crate) half: bool,
    /// Export the moving average of the weights if the checkpoint has one.
    pub(crate) average: bool,
}

impl Checkpoint {
    /// Writes the folder, which is created if it is missing.
    pub(crate) async fn export(
        &self,
        out: &Path,
        options: ExportOptions,
    ) -> Result<Origin, CheckpointError> {
        let manifest = self.manifest().await?;
        let spec =
            proto::job::parse_training("manifest.json", &manifest.job_toml).map_err(|error| {
                CheckpointError::Refused(format!("the manifest's job.toml: {error}"))
            })?;
        let locations = self.tensors(&manifest.shards).await?;
        let average = options.average
            && locations
                .keys()
                .any(|name| name.starts_with(AVERAGE_PREFIX));
        let opened = self.base(&manifest, &spec, out).await?;
        let base = opened.as_ref().map(|it| &it.base);
        if base.is_some_and(|base| is_base_folder(base, out)) {
            return Err(CheckpointError::Refused(format!(
                "--out {} is the base folder of the job (model.init), which the job still needs; \
                choose another folder",
                out.display()
            )));
        }
        if let Some(first) = first_entry(out) {
            return Err(CheckpointError::Refused(format!(
                "--out {} is not empty, it has {first:?}; choose another folder, or empty it",
                out.display()
            )));
        }
        let export = Export {
            checkpoint: self,
            spec: &spec,
            trained: locations,
            prefix: if average {
                AVERAGE_PREFIX
            } else {
                WEIGHTS_PREFIX
            },
            base,
            out,
            half: options.half,
        };
        let mut origin = self.origin(&manifest, &spec, average, options.half).await?;
        origin.files = export.write().await?;
        let json = serde_json::to_vec_pretty(&origin).expect("an origin is strings and numbers");
        write(&out.join(ORIGIN_FILE), &json)?;
        Ok(origin)
    }

    /// The job's base, if the export needs weights from it. Refused if it has changed since the job
    /// started.
    async fn base(
        &self,
        manifest: &CheckpointManifest,
        spec: &TrainWork,
        out: &Path,
    ) -> Result<Option<OpenedBase>, CheckpointError> {
        let all_is_trained = spec.model.freeze.is_empty();
        let Some(url) = spec.model.init.as_ref().filter(|_| !all_is_trained) else {
            return Ok(None);
        };
        let kind = spec.model.architecture.kind();
        let opened = OpenedBase::find(url, kind, out).await?;
        let found = init_digest(&opened.base, kind).await?;
        match &manifest.init_digest {
            Some(expected) if *expected == found => Ok(Some(opened)),
            other => Err(CheckpointError::BaseMismatch {
                url: url.clone(),
                found,
                path: self.path(MANIFEST_FILE).to_string(),
                expected: other
                    .clone()
                    .unwrap_or_else(|| "that it started from none".to_owned()),
            }),
        }
    }

    async fn origin(
        &self,
        manifest: &CheckpointManifest,
        spec: &TrainWork,
        average: bool,
        half: bool,
    ) -> Result<Origin, CheckpointError> {
        Ok(Origin {
            job: manifest.job.0.clone(),
            step: manifest.step.0,
            generation: manifest.generation.0,
            seed: spec.data.seed,
            digest: self.digest().await?,
            dataset_version: manifest.dataset_version.clone(),
            weights: if average {
                "moving average"
            } else {
                "as trained"
            },
            dtype: if half { "f16" } else { "f32" },
            files: BTreeMap::new(),
        })
    }
}

/// A base, and the folder of its files of `torch.save` as safetensors while it is used.
struct OpenedBase {
    base: Base,
    _converted: Option<TempDir>,
}

impl OpenedBase {
    /// Converts what the job's ranks converted, beside `out`, where there must be room for as much.
    async fn find(url: &str, kind: Architecture, out: &Path) -> Result<Self, CheckpointError> {
        let base = Base::find(url).await?;
        if base.pickled_files(kind).is_empty() {
            return Ok(Self {
                base,
                _converted: None,
            });
        }
        create_parent(out)?;
        let beside = out.parent().filter(|it| *it != Path::new(""));
        let folder = TempDir::with_prefix_in(".converted-", beside.unwrap_or(Path::new(".")))
            .map_err(|error| unwritable(out, &error))?;
        base.convert(kind, folder.path()).await?;
        Ok(Self {
            base: base.with_converted(kind, folder.path().to_owned())?,
            _converted: Some(folder),
        })
    }
}

struct Export<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a TrainWork,
    trained: BTreeMap<String, TensorLocation>,
    prefix: &'static str,
    base: Option<&'a Base>,
    out: &'a Path,
    half: bool,
}

impl Export<'_> {
    /// Writes all files; returns the SHA-256 of each by its name.
    async fn write(&self) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut files = BTreeMap::new();
        let mut authors = AuthorsFile::create(self.out, &self.spec.model)?;
        for part in self.parts() {
            let mut weights = self.weights(part).await?;
            if weights.is_empty() {
                continue;
            }
            self.check_complete(part)?;
            let folder = self.folder(part);
            let name = match part.name {
                // A file that `IPAdapter` and `load_ip_adapter` read, and those that only this
                // program reads.
                IP_ADAPTER | POSTFUSE | UNCLIP => part.file(),
                "text_encoder" | "image_encoder" | "clip" => format!("{folder}/model.safetensors"),
                _ => format!("{folder}/diffusion_pytorch_model.safetensors"),
            };
            if let Some(text) = config(part.name, &self.spec.model, self.spec.data.resolution) {
                self.write_text(&format!("{folder}/{CONFIG_FILE}"), &text, &mut files)?;
            }
            self.convert(&mut weights);
            if let Some(authors) = &mut authors {
                authors.put(part, &weights)?;
            }
            files.insert(name.clone(), self.write_weights(&name, weights)?);
        }
        if let Some(authors) = authors {
            let path = authors.finish()?;
            let digest =
                storage::hash::of_file(&path).map_err(|error| unwritable(&path, &error))?;
            files.insert(fastcomposer::FILE.to_owned(), hex(&digest));
        }
        let facts = self.spec.model.architecture.facts();
        let own = facts.own_file;
        if !facts.equation_3 {
            // The paper's peers, whose users expect to open them elsewhere.
            self.write_pipeline(&mut files).await?;
        } else if let Some(diffusion) = self.spec.model.architecture.diffusion() {
            // What the U-Net predicts is in no weight, and readers would guess.
            let text = scheduler::write(&diffusion.noise);
            self.write_text(SCHEDULER_FILE, &text, &mut files)?;
        }
        if let Some(own) = own.filter(|own| *own == RETRINET) {
            let name = format!("unet/{RETRINET_FILE}");
            let own = self.own_weights(own).await?;
            files.insert(name.clone(), self.write_weights(&name, own)?);
        }
        Ok(files)
    }

    /// A component's weights under their public names, trained ones in place of the base's.
    async fn weights(&self, part: Part) -> Result<BTreeMap<String, Weights>, CheckpointError> {
        let mut weights = self.base_weights(part).await?;
        let trained = self.trained_weights(&format!("{}.", part.name)).await?;
        let component = Component::new(part, &self.spec.model);
        let public = trained.into_iter();
        weights.extend(public.map(|(name, weights)| component.to_public(&name, weights)));
        let image = self.spec.model.architecture.image_encoder();
        if let Some(image) = image.filter(|_| part.name == PRIOR && !weights.is_empty()) {
            // No job trains them, so without a base they are what they begin as.
            for (name, value) in [("clip_mean", 0_f32), ("clip_std", 1.0)] {
                let width = image.projection as usize;
                let bytes = value.to_le_bytes().repeat(width);
                let initial = Weights::new(Dtype::F32, &[1, width], bytes);
                weights.entry(name.to_owned()).or_insert(initial);
            }
        }
        Ok(weights)
    }

    /// To the type of the export's numbers.
    fn convert(&self, weights: &mut BTreeMap<String, Weights>) {
        let convert = if self.half {
            Weights::convert_to_f16
        } else {
            Weights::convert_to_f32
        };
        weights.values_mut().for_each(convert);
    }

    /// The components that the job's architecture uses. Shapes and digests of other components of
    /// its base are unknown.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let architecture = &self.spec.model.architecture;
        let facts = architecture.facts();
        let own = facts.own_file;
        let used = move |part: &Part| {
            let in_base = facts.base_parts.iter().any(|(name, _)| *name == part.name);
            in_base || own == Some(part.name)
        };
        let clip = architecture.clip().map(|_| CLIP);
        PARTS.into_iter().chain(OWN_PARTS).filter(used).chain(clip)
    }

    /// The folder of a component.
    fn folder(&self, part: Part) -> &'static str {
        let kandinsky = self.spec.model.architecture.kandinsky().is_some();
        let is_movq = kandinsky && part.name == "autoencoder";
        part.also.filter(|_| is_movq).unwrap_or(part.folder)
    }

    fn write_text(
        &self,
        name: &str,
        text: &str,
        files: &mut BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        write(&self.out.join(name), text.as_bytes())?;
        files.insert(name.to_owned(), hex_sha256(text.as_bytes()));
        Ok(())
    }

    /// The trained weights whose names start with `prefix`, by their names without it.
    async fn trained_weights(
        &self,
        prefix: &str,
    ) -> Result<BTreeMap<String, Weights>, CheckpointError> {
        let mut found = BTreeMap::new();
        for (name, location) in &self.trained {
            let rest = name
                .strip_prefix(self.prefix)
                .and_then(|name| name.strip_prefix(prefix));
            let Some(rest) = rest else { continue };
            let bytes = self
                .checkpoint
                .range(&location.shard, location.range.clone())
                .await?;
            let weights = Weights::new(location.info.dtype, &location.info.shape, bytes.to_vec());
            found.insert(rest.to_owned(), weights);
        }
        Ok(found)
    }

    /// A component of the base; empty if the job started from random weights.
    async fn base_weights(&self, part: Part) -> Result<BTreeMap<String, Weights>, CheckpointError> {
        let found = self
            .base
            .and_then(|base| Some((base, base.parts().get(part.name)?)));
        let Some((base, files)) = found else {
            return Ok(BTreeMap::new());
        };
        let component = Component::new(part, &self.spec.model);
        let mut all = BTreeMap::new();
        for file in &files.weights {
            let tensors = read_tensors(base, file, |name| component.public_name(name)).await?;
            all.extend(
                tensors
                    .into_iter()
                    .map(|(name, weights)| component.with_public_shape(name, weights)),
            );
        }
        Ok(all)
    }

    /// The weights that only a RetriNet has. A frozen retrieval encoder still has its initial
    /// weights: those of the base's RetriNet, or a copy of its U-Net's encoder.
    async fn own_weights(&self, file: &str) -> Result<BTreeMap<String, Weights>, CheckpointError> {
        let mut own = BTreeMap::new();
        match self
            .base
            .and_then(|base| Some((base, base.parts().get(file)?)))
        {
            Some((base, files)) => {
                for file in &files.weights {
                    own.extend(read_tensors(base, file, |name| Some(name.to_owned())).await?);
                }
            }
            None if self.freezes(spec::Component::RetrievalEncoder) => {
                let [.., unet] = PARTS;
                own = retrieval_encoder(self.base_weights(unet).await?, &self.spec.model);
            }
            None => {}
        }
        for prefix in ["retrieval.", "cross_attention.", "zero_convs."] {
            let trained = self.trained_weights(prefix).await?;
            own.extend(
                trained
                    .into_iter()
                    .map(|(name, weights)| (format!("{prefix}{name}"), weights)),
            );
        }
        Ok(own)
    }

    fn freezes(&self, component: spec::Component) -> bool {
        self.spec.model.freeze.contains(&component)
    }

    /// Refuses to write an incomplete component: random weights that a job froze are in no
    /// checkpoint.
    fn check_complete(&self, part: Part) -> Result<(), CheckpointError> {
        use spec::Component::{
            CrossAttention, Decoder, Encoder, ImageEncoder, Middle, RetrievalEncoder, TextEncoder,
        };
        let components: &[spec::Component] = match part.name {
            "unet" => &[Encoder, Middle, Decoder, RetrievalEncoder, CrossAttention],
            "clip" => &[TextEncoder, ImageEncoder],
            _ => &[],
        };
        let in_base = self
            .base
            .is_some_and(|base| base.parts().contains_key(part.name));
        match components
            .iter()
            .find(|component| self.freezes(**component))
        {
            Some(frozen) if !in_base => Err(CheckpointError::Refused(format!(
                "the job started from random weights and froze {frozen:?}, which no checkpoint \
                contains: the export would be incomplete"
            ))),
            _ => Ok(()),
        }
    }

    /// Writes a safetensors file; returns its SHA-256.
    fn write_weights(
        &self,
        name: &str,
        mut weights: BTreeMap<String, Weights>,
    ) -> Result<String, CheckpointError> {
        self.convert(&mut weights);
        let path = self.out.join(name);
        let invalid = |error: safetensors::SafeTensorError| CheckpointError::Shard {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        let mut views = Vec::new();
        for (name, it) in &weights {
            let view = TensorView::new(it.dtype, it.shape.clone(), &it.bytes).map_err(invalid)?;
            views.push((name, view));
        }
        let partial = path.with_extension("partial");
        create_parent(&path)?;
        // `transformers` refuses a file without the `format` entry.
        let mut metadata =
            std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        if name.ends_with(RETRINET_FILE) {
            let choices = serde_json::to_string(&self.spec.model.architecture.retrieval());
            metadata.insert(
                RETRIEVAL_NOTE.to_owned(),
                choices.expect("retrieval settings are strings, which JSON can represent"),
            );
        }
        safetensors::serialize_to_file(views, Some(metadata), &partial).map_err(invalid)?;
        let digest =
            storage::hash::of_file(&partial).map_err(|error| unwritable(&partial, &error))?;
        std::fs::rename(&partial, &path).map_err(|error| unwritable(&path, &error))?;
        Ok(hex(&digest))
    }
}

/// True if an export into `out` would overwrite the base. A single-file base is never overwritten.
fn is_base_folder(base: &Base, out: &Path) -> bool {
    let same = |folder: &Path| match (folder.canonicalize(), out.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    !base.is_file() && base.local().is_some_and(same)
}

/// Something in the folder, if it exists and is not empty.
fn first_entry(folder: &Path) -> Option<std::ffi::OsString> {
    let entry = std::fs::read_dir(folder).ok()?.next()?;
    Some(entry.ok()?.file_name())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    create_parent(path)?;
    std::fs::write(path, bytes).map_err(|error| unwritable(path, &error))
}

fn create_parent(path: &Path) -> Result<(), CheckpointError> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> CheckpointError {
    CheckpointError::Refused(format!("cannot write {}: {error}", path.display()))
}
