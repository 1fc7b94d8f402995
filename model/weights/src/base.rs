//! Locates the components of a base model behind a URL: in a folder of this program's layout, in a
//! `diffusers` folder, or in one Stable Diffusion file (layouts: `proto::public::base`). Reads
//! names, configs and headers, never weights. Used at submit, by ranks before they fetch, and by
//! the export, which completes a checkpoint from the base.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::public::agree::{Disagreement, agree};
use proto::public::base::{CONFIG_FILE, PARTS, Part, WEIGHT_FILES};
use proto::public::names::{RETRINET_FILE, foreign};
use proto::spec::{Architecture, Model};

use storage::{StoreError, local_folder, open};

/// Longest safetensors header that is read. Stable Diffusion's has 150 KB.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// The component of an exported RetriNet that is not in its U-Net, stored under full tensor names.
/// A job that starts from the export loads it too.
pub const RETRINET: &str = proto::architecture::RETRINET;

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no folder {url}; correct the path, or create the base model first")]
    NoFolder { url: String },
    #[error("cannot read {path} of {url}: {source}")]
    Read {
        url: String,
        path: String,
        source: object_store::Error,
    },
    #[error("{path} of {url} cannot be used: {reason}")]
    Malformed {
        url: String,
        path: String,
        reason: String,
    },
    #[error("{url} holds no {component}{hint}; looked for {looked_for}")]
    MissingComponent {
        url: String,
        component: &'static str,
        looked_for: String,
        /// What the file seems to contain instead.
        hint: String,
    },
    #[error("{path} of {url}: {source}")]
    ConfigMismatch {
        url: String,
        path: String,
        source: Box<Disagreement>,
    },
}

/// A base model whose components have been located.
#[derive(Debug, Clone)]
pub struct Base {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    local: Option<PathBuf>,
    parts: BTreeMap<&'static str, ComponentFiles>,
    hint: String,
}

/// Files of one component. Names are relative to the base's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentFiles {
    /// The weights file, or the folder that contains it and its config.
    pub at: String,
    pub weights: Vec<String>,
    /// `config.json` and the index of weights, if they exist.
    pub beside: Vec<String>,
}

impl ComponentFiles {
    fn single_file(name: &str) -> Self {
        Self {
            at: name.to_owned(),
            weights: vec![name.to_owned()],
            beside: Vec::new(),
        }
    }

    fn config(&self) -> Option<&str> {
        let config = self.beside.iter().find(|name| name.ends_with(CONFIG_FILE));
        config.map(String::as_str)
    }
}

impl Base {
    /// Lists the components at a URL. A URL that ends with `.safetensors` is one file.
    ///
    /// # Errors
    /// The folder or file does not exist, storage fails, or a header or an index cannot be read.
    pub async fn find(url: &str) -> Result<Self, BaseError> {
        let (folder, file) = match url.rsplit_once('/') {
            Some((folder, file)) if file.ends_with(".safetensors") => (folder, Some(file)),
            _ => (url, None),
        };
        let local = local_folder(folder)?;
        // Opening a local store would create its folder, which must not happen for a mistyped path.
        if local.as_ref().is_some_and(|folder| !folder.is_dir()) {
            return Err(BaseError::NoFolder {
                url: folder.to_owned(),
            });
        }
        let (store, prefix) = open(folder)?;
        let mut base = Self {
            url: url.to_owned(),
            store,
            prefix,
            local,
            parts: BTreeMap::new(),
            hint: String::new(),
        };
        match file {
            Some(file) => base.inspect_file(&decode_file_name(url, file)?).await?,
            None => base.inspect_folder().await?,
        }
        Ok(base)
    }

    /// The local folder, if the URL names one.
    #[must_use]
    pub fn local(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// By component name. Includes [`RETRINET`] if the base is an export that has it.
    #[must_use]
    pub fn parts(&self) -> &BTreeMap<&'static str, ComponentFiles> {
        &self.parts
    }

    /// The components that a job of this architecture loads from the base, as far as they exist, in
    /// loading order.
    pub fn taken_over(
        &self,
        architecture: Architecture,
    ) -> impl Iterator<Item = (&'static str, &ComponentFiles)> {
        let facts = architecture.facts();
        let names = facts
            .base_parts
            .iter()
            .map(|(name, _)| *name)
            .chain(facts.own_file);
        names.filter_map(|name| Some((name, self.parts.get(name)?)))
    }

    /// Rejects a base that a job cannot start from: a component that its architecture needs is
    /// missing, or a config differs from the job's architecture tables.
    ///
    /// # Errors
    /// The first missing component or differing field.
    pub async fn suits(&self, model: &Model) -> Result<(), BaseError> {
        for (name, needed) in model.architecture.facts().base_parts {
            let Some(files) = self.parts.get(name) else {
                if *needed {
                    return Err(self.missing_component(name));
                }
                continue;
            };
            let Some(path) = files.config() else { continue };
            let bytes = self.read(path).await?;
            let text = std::str::from_utf8(&bytes).map_err(|error| self.malformed(path, error))?;
            agree(name, text, model).map_err(|source| BaseError::ConfigMismatch {
                url: self.url.clone(),
                path: path.to_owned(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    /// The whole content of an object of the base.
    ///
    /// # Errors
    /// The object cannot be read.
    pub async fn read(&self, name: &str) -> Result<Bytes, BaseError> {
        let read = async { self.store.get(&self.path(name)).await?.bytes().await };
        read.await.map_err(|source| self.read_error(name, source))
    }

    /// The store, and the path in it of a name relative to this base.
    #[must_use]
    pub fn object(&self, name: &str) -> (&Arc<dyn ObjectStore>, Path) {
        (&self.store, self.path(name))
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .fold(self.prefix.clone(), |path, segment| path.join(segment))
    }

    async fn inspect_folder(&mut self) -> Result<(), BaseError> {
        for part in PARTS {
            let file = part.file();
            let files = if self.exists(&file).await? {
                Some(ComponentFiles::single_file(&file))
            } else {
                self.component_in_folder(part).await?
            };
            self.parts.extend(files.map(|files| (part.name, files)));
        }
        for name in [RETRINET_FILE.to_owned(), format!("unet/{RETRINET_FILE}")] {
            if self.exists(&name).await? {
                self.parts
                    .insert(RETRINET, ComponentFiles::single_file(&name));
                break;
            }
        }
        Ok(())
    }

    async fn component_in_folder(&self, part: Part) -> Result<Option<ComponentFiles>, BaseError> {
        let folder = part.folder;
        let config = format!("{folder}/{CONFIG_FILE}");
        let beside: Vec<String> = self
            .exists(&config)
            .await?
            .then_some(config)
            .into_iter()
            .collect();
        for file in WEIGHT_FILES {
            let name = format!("{folder}/{file}");
            if self.exists(&name).await? {
                return Ok(Some(ComponentFiles {
                    at: folder.to_owned(),
                    weights: vec![name],
                    beside,
                }));
            }
            let index = format!("{name}.index.json");
            if self.exists(&index).await? {
                let weights = self.files_of_index(folder, &index).await?;
                return Ok(Some(ComponentFiles {
                    at: folder.to_owned(),
                    weights,
                    beside: beside.into_iter().chain([index]).collect(),
                }));
            }
        }
        match beside.first() {
            // A folder with weights in an unsupported format must not count as a missing component.
            Some(config) => {
                let reason = format!(
                    "there are no weights next to it; looked for {}",
                    WEIGHT_FILES.join(" or ")
                );
                Err(self.malformed(config, reason))
            }
            None => Ok(None),
        }
    }

    /// The files that an index names. They must be in the folder of the index.
    async fn files_of_index(&self, folder: &str, index: &str) -> Result<Vec<String>, BaseError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let bytes = self.read(index).await?;
        let found: Index =
            serde_json::from_slice(&bytes).map_err(|error| self.malformed(index, error))?;
        let files: BTreeSet<String> = found.weight_map.into_values().collect();
        if let Some(outside) = files.iter().find(|file| file.contains(['/', '\\'])) {
            return Err(self.malformed(
                index,
                format!("it names {outside:?}, which is not in the same folder"),
            ));
        }
        Ok(files
            .into_iter()
            .map(|file| format!("{folder}/{file}"))
            .collect())
    }

    async fn inspect_file(&mut self, file: &str) -> Result<(), BaseError> {
        let names = self.tensor_names(file).await?;
        for part in PARTS {
            if names.iter().any(|name| name.starts_with(part.prefix)) {
                self.parts
                    .insert(part.name, ComponentFiles::single_file(file));
            }
        }
        self.hint = match (foreign(names.iter().map(String::as_str)), names.first()) {
            (Some(model), _) => format!(": its tensors are named like those of {model}"),
            (None, Some(first)) if self.parts.is_empty() => {
                format!(": its first tensor is {first:?}")
            }
            _ => String::new(),
        };
        Ok(())
    }

    /// Tensor names in the header of a safetensors file.
    async fn tensor_names(&self, file: &str) -> Result<BTreeSet<String>, BaseError> {
        let path = self.path(file);
        let read_range = async |range| {
            let bytes = self.store.get_range(&path, range).await;
            bytes.map_err(|source| self.read_error(file, source))
        };
        let length: [u8; 8] = read_range(0..8)
            .await?
            .as_ref()
            .try_into()
            .map_err(|_| self.malformed(file, "it is shorter than a safetensors header"))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX {
            let reason = format!("its safetensors header would be {length} bytes long");
            return Err(self.malformed(file, reason));
        }
        let header = read_range(8..8 + length).await?;
        let header: BTreeMap<String, serde::de::IgnoredAny> =
            serde_json::from_slice(&header).map_err(|error| self.malformed(file, error))?;
        Ok(header
            .into_keys()
            .filter(|name| name != "__metadata__")
            .collect())
    }

    async fn exists(&self, name: &str) -> Result<bool, BaseError> {
        match self.store.head(&self.path(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.read_error(name, source)),
        }
    }

    pub(crate) fn read_error(&self, path: &str, source: object_store::Error) -> BaseError {
        BaseError::Read {
            url: self.url.clone(),
            path: path.to_owned(),
            source,
        }
    }

    fn malformed(&self, path: &str, reason: impl ToString) -> BaseError {
        BaseError::Malformed {
            url: self.url.clone(),
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn missing_component(&self, name: &'static str) -> BaseError {
        let part = PARTS.iter().find(|part| part.name == name);
        let part = part.expect("every component of an architecture is in the table");
        let looked_for = if self.url.ends_with(".safetensors") {
            format!("tensors under {}", part.prefix)
        } else {
            format!(
                "{} and {}/{{{CONFIG_FILE}, {}}}",
                part.file(),
                part.folder,
                WEIGHT_FILES.join(" or ")
            )
        };
        BaseError::MissingComponent {
            url: self.url.clone(),
            component: name,
            looked_for,
            hint: self.hint.clone(),
        }
    }
}

/// The file name at the end of a URL, without URL escapes.
fn decode_file_name(url: &str, file: &str) -> Result<String, BaseError> {
    let path = Path::from_url_path(file).map_err(|error| BaseError::Malformed {
        url: url.to_owned(),
        path: file.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(path.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn model() -> Model {
        let text = "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n\
                    [model]\narchitecture = \"retrinet\"\nsize = \"tiny\"\ninit = \"file:///b\"\n\
                    [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
        proto::job::parse_training("job.toml", text).unwrap().model
    }

    fn put(folder: &std::path::Path, name: &str, bytes: &[u8]) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// A safetensors file of empty tensors.
    fn safetensors_file(names: &[&str]) -> Vec<u8> {
        let entry =
            |name: &&str| format!(r#""{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        let header = format!(
            "{{{}}}",
            names.iter().map(entry).collect::<Vec<_>>().join(",")
        );
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    }

    #[tokio::test]
    async fn a_diffusers_folder_is_understood_with_index_and_half_precision() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        for name in [
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.safetensors",
        ] {
            put(folder.path(), name, b"{}");
        }
        let index = br#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors",
                       "c": "2.safetensors"}}"#;
        put(
            folder.path(),
            "unet/diffusion_pytorch_model.safetensors.index.json",
            index,
        );
        put(folder.path(), "unet/retrinet.safetensors", b"");
        let base = Base::find(&url).await.unwrap();
        assert_eq!(base.parts()["autoencoder"].at, "vae");
        assert_eq!(base.parts()["text_encoder"].beside, Vec::<String>::new());
        let unet = &base.parts()["unet"];
        assert_eq!(unet.weights, ["unet/1.safetensors", "unet/2.safetensors"]);
        assert_eq!(base.parts()[RETRINET].at, "unet/retrinet.safetensors");
        let index = br#"{"weight_map": {"a": "../other.safetensors"}}"#;
        put(
            folder.path(),
            "unet/diffusion_pytorch_model.safetensors.index.json",
            index,
        );
        let error = Base::find(&url).await.unwrap_err().to_string();
        assert!(error.contains("\"../other.safetensors\""), "{error}");
    }

    #[tokio::test]
    async fn a_base_that_does_not_suit_is_refused_with_its_file_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let refusal = async || {
            let base = Base::find(&url).await.unwrap();
            base.suits(&model()).await.unwrap_err().to_string()
        };
        let base = Base::find(&url).await.unwrap();
        let autoencoder = Model {
            architecture: proto::spec::ArchitectureSpec::Autoencoder(
                proto::architecture::Autoencoder {
                    autoencoder: model().architecture.autoencoder().clone(),
                    reconstruction: proto::architecture::Reconstruction::default(),
                },
            ),
            ..model()
        };
        let error = base.suits(&autoencoder).await.unwrap_err().to_string();
        assert!(error.contains("holds no autoencoder"), "{error}");
        put(folder.path(), "autoencoder.safetensors", b"");
        put(folder.path(), "text_encoder.safetensors", b"");
        let error = refusal().await;
        assert!(
            error.contains("holds no unet; looked for unet.safetensors and unet/{config.json, "),
            "{error}"
        );
        let config = br#"{"cross_attention_dim": 768}"#;
        put(folder.path(), "unet/config.json", config);
        let error = Base::find(&url).await.unwrap_err().to_string();
        assert!(
            error.starts_with("unet/config.json of file://")
                && error.contains(
                    "there are no weights next to it; \
                     looked for diffusion_pytorch_model.safetensors or"
                ),
            "{error}"
        );
        put(folder.path(), "unet/model.safetensors", b"");
        let error = refusal().await;
        assert!(
            error.contains("unet/config.json of file://")
                && error.contains("block_out_channels is [320"),
            "{error}"
        );
        let error = Base::find(&format!("{url}/none"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("there is no folder") && error.contains("/none"),
            "{error}"
        );
        assert!(!folder.path().join("none").exists());
    }

    #[tokio::test]
    async fn a_single_file_says_what_it_holds_or_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file://{}/{name}.safetensors", folder.path().display());
        let text = "cond_stage_model.transformer.text_model.final_layer_norm.bias";
        let all = [
            "betas",
            "model.diffusion_model.out.2.bias",
            "first_stage_model.quant_conv.bias",
            text,
        ];
        put(folder.path(), "v1 5.safetensors", &safetensors_file(&all));
        let base = Base::find(&url("v1%205")).await.unwrap();
        assert_eq!(base.parts().len(), 3);
        assert_eq!(base.parts()["unet"].weights, ["v1 5.safetensors"]);
        base.suits(&model()).await.unwrap();
        let xl = [
            "model.diffusion_model.out.2.bias",
            "conditioner.embedders.0.x",
            "first_stage_model.x",
        ];
        put(folder.path(), "xl.safetensors", &safetensors_file(&xl));
        let base = Base::find(&url("xl")).await.unwrap();
        let error = base.suits(&model()).await.unwrap_err().to_string();
        assert!(
            error.contains(
                "holds no text_encoder: its tensors are named like those of Stable Diffusion XL"
            ),
            "{error}"
        );
        put(
            folder.path(),
            "other.safetensors",
            &safetensors_file(&["lora.a"]),
        );
        let base = Base::find(&url("other")).await.unwrap();
        let error = base.suits(&model()).await.unwrap_err().to_string();
        assert!(error.contains("its first tensor is \"lora.a\""), "{error}");
        put(folder.path(), "short.safetensors", b"PK");
        assert!(Base::find(&url("short")).await.is_err());
        let error = Base::find(&url("gone")).await.unwrap_err().to_string();
        assert!(error.contains("cannot read gone.safetensors"), "{error}");
    }
}
