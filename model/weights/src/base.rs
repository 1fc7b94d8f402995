//! Where a base model's components lie behind a URL: in a folder of ours, in a `diffusers` folder
//! or in one Stable Diffusion file (layouts: `proto::public::base`). Reads names, configs and
//! headers, never weights. Called at submit, by ranks before they fetch, and by the export, which
//! completes a checkpoint from it.

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

/// Longest header of a safetensors file that is read: Stable Diffusion's has 150 KB.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// What an exported RetriNet has beside its U-Net, under full names: a job that begins from it goes
/// on from there.
pub const RETRINET: &str = proto::architecture::RETRINET;

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no folder {url}; correct the path, or make the base model first")]
    NoFolder { url: String },
    #[error("cannot read {path} of {url}: {source}")]
    Read {
        url: String,
        path: String,
        source: object_store::Error,
    },
    #[error("{path} of {url} is not what is needed: {reason}")]
    Malformed {
        url: String,
        path: String,
        reason: String,
    },
    #[error("{url} holds no {part}{hint}; looked for {looked_for}")]
    NoPart {
        url: String,
        part: &'static str,
        looked_for: String,
        /// What the file seems to be instead.
        hint: String,
    },
    #[error("{path} of {url}: {source}")]
    Other {
        url: String,
        path: String,
        source: Box<Disagreement>,
    },
}

/// A base model that was looked at.
#[derive(Debug, Clone)]
pub struct Base {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    local: Option<PathBuf>,
    parts: BTreeMap<&'static str, Place>,
    hint: String,
}

/// Where one component lies; names are relative to the base's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or the folder that has it with its config.
    pub at: String,
    pub weights: Vec<String>,
    /// `config.json` and an index of weights, where they are.
    pub beside: Vec<String>,
}

impl Place {
    fn file(name: &str) -> Self {
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
    /// Looks which components a URL offers; a URL that ends with `.safetensors` is one file.
    ///
    /// # Errors
    /// No such folder or file, storage that does not answer, a header or an index that cannot be
    /// read.
    pub async fn find(url: &str) -> Result<Self, BaseError> {
        let (folder, file) = match url.rsplit_once('/') {
            Some((folder, file)) if file.ends_with(".safetensors") => (folder, Some(file)),
            _ => (url, None),
        };
        let local = local_folder(folder)?;
        // Opening a local store would make its folder, which must not happen to a mistyped path.
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
            Some(file) => base.look_into(&decoded(url, file)?).await?,
            None => base.look_around().await?,
        }
        Ok(base)
    }

    /// The local folder, where the URL is one.
    #[must_use]
    pub fn local(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// By component; also [`RETRINET`] where an export has it.
    #[must_use]
    pub fn parts(&self) -> &BTreeMap<&'static str, Place> {
        &self.parts
    }

    /// The components that a job of this architecture begins from, as far as they are here, in the
    /// order in which they are loaded.
    pub fn taken_over(
        &self,
        architecture: Architecture,
    ) -> impl Iterator<Item = (&'static str, &Place)> {
        let facts = architecture.facts();
        let names = facts
            .base_parts
            .iter()
            .map(|(name, _)| *name)
            .chain(facts.own_file);
        names.filter_map(|name| Some((name, self.parts.get(name)?)))
    }

    /// Refuses a base that a job cannot begin from: a part that its architecture needs is not
    /// there, or a config says something else than the job's tables.
    ///
    /// # Errors
    /// The first part or field.
    pub async fn suits(&self, model: &Model) -> Result<(), BaseError> {
        for (name, needed) in model.architecture.facts().base_parts {
            let Some(place) = self.parts.get(name) else {
                if *needed {
                    return Err(self.missing(name));
                }
                continue;
            };
            let Some(path) = place.config() else { continue };
            let bytes = self.read(path).await?;
            let text = std::str::from_utf8(&bytes).map_err(|error| self.malformed(path, error))?;
            agree(name, text, model).map_err(|source| BaseError::Other {
                url: self.url.clone(),
                path: path.to_owned(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    /// An object of the base, whole.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(&self, name: &str) -> Result<Bytes, BaseError> {
        let read = async { self.store.get(&self.path(name)).await?.bytes().await };
        read.await.map_err(|source| self.unreadable(name, source))
    }

    /// The store, and where in it a name of this base lies.
    #[must_use]
    pub fn object(&self, name: &str) -> (&Arc<dyn ObjectStore>, Path) {
        (&self.store, self.path(name))
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    async fn look_around(&mut self) -> Result<(), BaseError> {
        for part in PARTS {
            let file = part.file();
            let place = if self.has(&file).await? {
                Some(Place::file(&file))
            } else {
                self.folder(part).await?
            };
            self.parts.extend(place.map(|place| (part.name, place)));
        }
        for name in [RETRINET_FILE.to_owned(), format!("unet/{RETRINET_FILE}")] {
            if self.has(&name).await? {
                self.parts.insert(RETRINET, Place::file(&name));
                break;
            }
        }
        Ok(())
    }

    async fn folder(&self, part: Part) -> Result<Option<Place>, BaseError> {
        let at = part.folder;
        let config = format!("{at}/{CONFIG_FILE}");
        let beside: Vec<String> = self
            .has(&config)
            .await?
            .then_some(config)
            .into_iter()
            .collect();
        for file in WEIGHT_FILES {
            let name = format!("{at}/{file}");
            if self.has(&name).await? {
                return Ok(Some(Place {
                    at: at.to_owned(),
                    weights: vec![name],
                    beside,
                }));
            }
            let index = format!("{name}.index.json");
            if self.has(&index).await? {
                let weights = self.indexed(at, &index).await?;
                return Ok(Some(Place {
                    at: at.to_owned(),
                    weights,
                    beside: beside.into_iter().chain([index]).collect(),
                }));
            }
        }
        match beside.first() {
            // Weights in a form that is not read are not to be taken for none.
            Some(config) => {
                let reason = format!(
                    "no weights lie beside it; looked for {}",
                    WEIGHT_FILES.join(" or ")
                );
                Err(self.malformed(config, reason))
            }
            None => Ok(None),
        }
    }

    /// The files that an index names, which lie beside it.
    async fn indexed(&self, folder: &str, index: &str) -> Result<Vec<String>, BaseError> {
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
                format!("it names {outside:?}, which does not lie beside it"),
            ));
        }
        Ok(files
            .into_iter()
            .map(|file| format!("{folder}/{file}"))
            .collect())
    }

    async fn look_into(&mut self, file: &str) -> Result<(), BaseError> {
        let names = self.tensor_names(file).await?;
        for part in PARTS {
            if names.iter().any(|name| name.starts_with(part.prefix)) {
                self.parts.insert(part.name, Place::file(file));
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

    /// Names in the header of a safetensors file.
    async fn tensor_names(&self, file: &str) -> Result<BTreeSet<String>, BaseError> {
        let path = self.path(file);
        let range = async |range| {
            let read = self.store.get_range(&path, range).await;
            read.map_err(|source| self.unreadable(file, source))
        };
        let length: [u8; 8] = range(0..8)
            .await?
            .as_ref()
            .try_into()
            .map_err(|_| self.malformed(file, "it is shorter than a safetensors header"))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX {
            let reason = format!("its safetensors header would be {length} bytes long");
            return Err(self.malformed(file, reason));
        }
        let header = range(8..8 + length).await?;
        let header: BTreeMap<String, serde::de::IgnoredAny> =
            serde_json::from_slice(&header).map_err(|error| self.malformed(file, error))?;
        Ok(header
            .into_keys()
            .filter(|name| name != "__metadata__")
            .collect())
    }

    async fn has(&self, name: &str) -> Result<bool, BaseError> {
        match self.store.head(&self.path(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.unreadable(name, source)),
        }
    }

    pub(crate) fn unreadable(&self, path: &str, source: object_store::Error) -> BaseError {
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

    fn missing(&self, name: &'static str) -> BaseError {
        let part = PARTS.iter().find(|part| part.name == name);
        let part = part.expect("architectures are made of the parts in the table");
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
        BaseError::NoPart {
            url: self.url.clone(),
            part: name,
            looked_for,
            hint: self.hint.clone(),
        }
    }
}

/// A file's name as it is called in its folder, from the end of a URL.
fn decoded(url: &str, file: &str) -> Result<String, BaseError> {
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
    fn file(names: &[&str]) -> Vec<u8> {
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
        let place = tempfile::tempdir().unwrap();
        let url = format!("file://{}", place.path().display());
        for name in [
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.safetensors",
        ] {
            put(place.path(), name, b"{}");
        }
        let index = br#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#;
        put(
            place.path(),
            "unet/diffusion_pytorch_model.safetensors.index.json",
            index,
        );
        put(place.path(), "unet/retrinet.safetensors", b"");
        let base = Base::find(&url).await.unwrap();
        assert_eq!(base.parts()["autoencoder"].at, "vae");
        assert_eq!(base.parts()["text_encoder"].beside, Vec::<String>::new());
        let unet = &base.parts()["unet"];
        assert_eq!(unet.weights, ["unet/1.safetensors", "unet/2.safetensors"]);
        assert_eq!(base.parts()[RETRINET].at, "unet/retrinet.safetensors");
        let index = br#"{"weight_map": {"a": "../other.safetensors"}}"#;
        put(
            place.path(),
            "unet/diffusion_pytorch_model.safetensors.index.json",
            index,
        );
        let error = Base::find(&url).await.unwrap_err().to_string();
        assert!(error.contains("\"../other.safetensors\""), "{error}");
    }

    #[tokio::test]
    async fn a_base_that_does_not_suit_is_refused_with_its_file_and_field() {
        let place = tempfile::tempdir().unwrap();
        let url = format!("file://{}", place.path().display());
        let refusal = async || {
            let base = Base::find(&url).await.unwrap();
            base.suits(&model()).await.unwrap_err().to_string()
        };
        let base = Base::find(&url).await.unwrap();
        let autoencoder = Model {
            architecture: proto::spec::ArchitectureSpec::Autoencoder(
                proto::architecture::Autoencoder {
                    autoencoder: model().architecture.autoencoder().clone(),
                },
            ),
            ..model()
        };
        let error = base.suits(&autoencoder).await.unwrap_err().to_string();
        assert!(error.contains("holds no autoencoder"), "{error}");
        put(place.path(), "autoencoder.safetensors", b"");
        put(place.path(), "text_encoder.safetensors", b"");
        let error = refusal().await;
        assert!(
            error.contains("holds no unet; looked for unet.safetensors and unet/{config.json, "),
            "{error}"
        );
        let config = br#"{"cross_attention_dim": 768}"#;
        put(place.path(), "unet/config.json", config);
        let error = Base::find(&url).await.unwrap_err().to_string();
        assert!(
            error.starts_with("unet/config.json of file://")
                && error.contains(
                    "no weights lie beside it; looked for diffusion_pytorch_model.safetensors or"
                ),
            "{error}"
        );
        put(place.path(), "unet/model.safetensors", b"");
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
        assert!(!place.path().join("none").exists());
    }

    #[tokio::test]
    async fn a_single_file_says_what_it_holds_or_whose_it_is() {
        let place = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file://{}/{name}.safetensors", place.path().display());
        let text = "cond_stage_model.transformer.text_model.final_layer_norm.bias";
        let all = [
            "betas",
            "model.diffusion_model.out.2.bias",
            "first_stage_model.quant_conv.bias",
            text,
        ];
        put(place.path(), "v1 5.safetensors", &file(&all));
        let base = Base::find(&url("v1%205")).await.unwrap();
        assert_eq!(base.parts().len(), 3);
        assert_eq!(base.parts()["unet"].weights, ["v1 5.safetensors"]);
        base.suits(&model()).await.unwrap();
        let xl = [
            "model.diffusion_model.out.2.bias",
            "conditioner.embedders.0.x",
            "first_stage_model.x",
        ];
        put(place.path(), "xl.safetensors", &file(&xl));
        let base = Base::find(&url("xl")).await.unwrap();
        let error = base.suits(&model()).await.unwrap_err().to_string();
        assert!(
            error.contains(
                "holds no text_encoder: its tensors are named like those of Stable Diffusion XL"
            ),
            "{error}"
        );
        put(place.path(), "other.safetensors", &file(&["lora.a"]));
        let base = Base::find(&url("other")).await.unwrap();
        let error = base.suits(&model()).await.unwrap_err().to_string();
        assert!(error.contains("its first tensor is \"lora.a\""), "{error}");
        put(place.path(), "short.safetensors", b"PK");
        assert!(Base::find(&url("short")).await.is_err());
        let error = Base::find(&url("gone")).await.unwrap_err().to_string();
        assert!(error.contains("cannot read gone.safetensors"), "{error}");
    }
}
