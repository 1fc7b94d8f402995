//! Locates the components of a base model behind a URL: in a folder of this program's layout, in a
//! `diffusers` folder, or in one file of Stable Diffusion or of a peer's authors (layouts:
//! `proto::public::base`). Files of `torch.save` are read for their names here and converted when
//! they are used. Reads names, configs and headers, never weights. Used at submit, by ranks before
//! they fetch, and by the export, which completes a checkpoint from the base.

mod check;
mod convert;
mod find;
mod index;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use convert::Converted;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::public::agree::Disagreement;
use proto::public::base::{CONFIG_FILE, WEIGHT_FILES, is_pickle, part};
use proto::spec::{Architecture, Model};

use crate::convert::ConvertError;
use crate::header::{HeaderError, other_kind};
use storage::StoreError;
use storage::read::{ReadError, read_bounded};

/// Largest config or index of weights that is read. They have some 100 KB.
pub const TEXT_BYTES_MAX: u64 = 8 << 20;
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
        source: ReadError,
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
    #[error("cannot convert {path} of {url} to safetensors: {source}")]
    Convert {
        url: String,
        path: String,
        source: Box<ConvertError>,
    },
    #[error("cannot write {}; is the disk full? {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// A base model whose components have been located.
#[derive(Debug, Clone)]
pub struct Base {
    url: String,
    /// The URL's folder.
    folder: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    local: Option<PathBuf>,
    parts: BTreeMap<&'static str, ComponentFiles>,
    hint: String,
    /// The scheduler's config, if a folder has one.
    scheduler: Option<&'static str>,
    single_file: Option<SingleFile>,
    converted: Option<Converted>,
}

/// What a single file is.
#[derive(Debug, Clone)]
struct SingleFile {
    name: String,
    /// Whether it has a U-Net under the names of Stable Diffusion's single files.
    has_unet: bool,
    /// Whether it also has the moving average of the U-Net.
    has_average: bool,
    /// What it says about its noise: field and value; see
    /// [`proto::public::names::single_file_noise`].
    noise: Vec<(String, String)>,
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

    /// All its files.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        self.weights.iter().chain(&self.beside)
    }

    fn config(&self) -> Option<&str> {
        let config = self.beside.iter().find(|name| name.ends_with(CONFIG_FILE));
        config.map(String::as_str)
    }

    fn index(&self) -> Option<&str> {
        let index = self
            .beside
            .iter()
            .find(|name| name.ends_with(".index.json"));
        index.map(String::as_str)
    }

    fn is_pickled(&self) -> bool {
        self.weights.iter().any(|name| is_pickle(name))
    }
}

impl Base {
    /// The local folder, if the URL names one.
    #[must_use]
    pub fn local(&self) -> Option<&std::path::Path> {
        self.local.as_deref()
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of the folder in which its files lie.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Whether the URL names one file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.single_file.is_some()
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

    /// What a user should know of how this base is read, one sentence each.
    #[must_use]
    pub fn notes(&self, model: &Model) -> Vec<String> {
        let of_file = self.single_file.iter().flat_map(|it| self.file_notes(it));
        of_file
            .chain(self.pickle_note(model))
            .chain(self.noise_note(model))
            .collect()
    }

    /// What is assumed of a base that does not say what its U-Net predicts: most single files, and
    /// folders without a scheduler. A wrong guess trains without an error.
    fn noise_note(&self, model: &Model) -> Option<String> {
        let noise = model.architecture.diffusion()?.noise;
        let says = self.scheduler.is_some()
            || self.parts.contains_key(RETRINET)
            || self.single_file.iter().any(|file| !file.noise.is_empty());
        let is_read = self.parts.contains_key("unet");
        (is_read && !says).then(|| {
            format!(
                "{} does not say what its U-Net predicts; it is taken for model.noise.prediction = \
                 {}",
                self.url,
                serde_json::json!(noise.prediction)
            )
        })
    }

    fn file_notes(&self, file: &SingleFile) -> Vec<String> {
        let name = &file.name;
        let (own, beside): (Vec<_>, Vec<_>) =
            self.parts.iter().partition(|(_, files)| files.at == *name);
        let mut notes = Vec::new();
        if !beside.is_empty() {
            let listed = |parts: Vec<(&&'static str, &ComponentFiles)>| -> String {
                let names: Vec<&str> = parts.into_iter().map(|(name, _)| *name).collect();
                names.join(", ")
            };
            let (own, beside) = (listed(own), listed(beside));
            notes.push(format!(
                "{name} holds {own} alone; {beside} are those of its folder, {}",
                self.folder
            ));
        } else if file.has_average {
            notes.push(format!(
                "{name} has two sets of U-Net weights: those as trained (model.diffusion_model.*) \
                 are read, the moving average (model_ema.*) is not"
            ));
        } else if file.has_unet {
            notes.push(format!(
                "{name} has one set of U-Net weights (model.diffusion_model.*), which is read; it \
                 has no separate moving average"
            ));
        }
        notes
    }

    /// What happens to files of `torch.save`.
    fn pickle_note(&self, model: &Model) -> Option<String> {
        let files = self.pickled_files(model.architecture.kind());
        let names: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(|it| is_pickle(it))
            .collect();
        let verb = if names.len() > 1 { "are" } else { "is" };
        (!names.is_empty()).then(|| {
            format!(
                "{} {verb} converted to safetensors once in each worker's cache, with both SHA-256 \
                 beside the result; nothing of Python runs",
                names.join(", ")
            )
        })
    }

    /// The whole content of a config or an index of the base.
    ///
    /// # Errors
    /// The object cannot be read, or has more than 8 MiB.
    pub async fn read(&self, name: &str) -> Result<Bytes, BaseError> {
        read_bounded(&*self.store, &self.path(name), TEXT_BYTES_MAX)
            .await
            .map_err(|source| self.read_error(name, source))
    }

    /// A config as text.
    async fn text(&self, name: &str) -> Result<String, BaseError> {
        let bytes = self.read(name).await?;
        if let Some(what) = other_kind(&bytes, bytes.len() as u64) {
            return Err(self.malformed(name, what));
        }
        String::from_utf8(bytes.into()).map_err(|error| self.malformed(name, error))
    }

    /// The store, and the path in it of a name relative to this base.
    #[must_use]
    pub fn object(&self, name: &str) -> (&Arc<dyn ObjectStore>, Path) {
        let converted = self.converted.as_ref().and_then(|it| it.object(name));
        converted.unwrap_or_else(|| (&self.store, self.path(name)))
    }

    fn path(&self, name: &str) -> Path {
        joined(&self.prefix, name)
    }

    /// Whether the base has an object of this name.
    ///
    /// # Errors
    /// Storage fails.
    pub async fn exists(&self, name: &str) -> Result<bool, BaseError> {
        match self.store.head(&self.path(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.read_error(name, ReadError::Store(source))),
        }
    }

    pub(crate) fn read_error(&self, path: &str, source: ReadError) -> BaseError {
        BaseError::Read {
            url: self.url.clone(),
            path: path.to_owned(),
            source,
        }
    }

    fn header_error(&self, path: &str, error: HeaderError) -> BaseError {
        match error {
            HeaderError::Store(source) => self.read_error(path, ReadError::Store(source)),
            HeaderError::Malformed(what) => self.malformed(path, what),
        }
    }

    fn mismatch(&self, path: &str, source: Disagreement) -> BaseError {
        BaseError::ConfigMismatch {
            url: self.url.clone(),
            path: path.to_owned(),
            source: Box::new(source),
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
        let part = part(name).expect("every component of an architecture is in the table");
        let in_folder = format!(
            "{} and {}/{{{CONFIG_FILE}, {}}}",
            part.file(),
            part.folder,
            WEIGHT_FILES.join(" or ")
        );
        let in_file = format!("tensors under {}", part.prefix);
        let looked_for = match &self.single_file {
            None => in_folder,
            Some(file) if self.parts.values().any(|it| it.at == file.name) => {
                format!("{in_file} in it, and for {in_folder} beside it")
            }
            Some(_) => in_file,
        };
        BaseError::MissingComponent {
            url: self.url.clone(),
            component: name,
            looked_for,
            hint: self.hint.clone(),
        }
    }
}

fn joined(prefix: &Path, name: &str) -> Path {
    name.split('/')
        .fold(prefix.clone(), |path, segment| path.join(segment))
}
