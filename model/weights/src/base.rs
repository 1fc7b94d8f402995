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
use proto::public::base::{CONFIG_FILE, OWN_PARTS, PARTS, WEIGHT_FILES, part};
use proto::public::names::{
    RETRINET_FILE, SINGLE_FILE_AVERAGE, foreign, other_model, single_file_noise,
};
use proto::public::scheduler::{self, SCHEDULER_FILE};
use proto::spec::{Architecture, Model};

use crate::header::{Header, HeaderError, other_kind};
use std::io::ErrorKind;
use storage::confined::{ConfinedError, open_of_model};
use storage::read::{ReadError, read_bounded};
use storage::{StoreError, local_folder, open};

/// Largest config or index of weights that is read. They have some 100 KB.
pub const TEXT_BYTES_MAX: u64 = 8 << 20;
/// The component of an exported RetriNet that is not in its U-Net, stored under full tensor names.
/// A job that starts from the export loads it too.
pub const RETRINET: &str = proto::architecture::RETRINET;

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{url} is a file of torch.save, which may contain programs; convert it once with \
        `coordinator convert FILE --out FILE.safetensors`, which reads weights alone"
    )]
    Pickle { url: String },
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
    /// The scheduler's config, if a folder has one.
    scheduler: Option<&'static str>,
    single_file: Option<SingleFile>,
}

/// What a single file is.
#[derive(Debug, Clone)]
struct SingleFile {
    name: String,
    /// Whether it also has the moving average of the U-Net.
    has_average: bool,
    /// What it says about its noise: field and value; see [`single_file_noise`].
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
}

impl Base {
    /// Lists the components at a URL. A URL that ends with `.safetensors` is one file.
    ///
    /// # Errors
    /// The folder or file does not exist, storage fails, or a header or an index cannot be read.
    pub async fn find(url: &str) -> Result<Self, BaseError> {
        if [".bin", ".pth", ".pt", ".ckpt"]
            .iter()
            .any(|it| url.ends_with(it))
        {
            return Err(BaseError::Pickle {
                url: url.to_owned(),
            });
        }
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
            scheduler: None,
            single_file: None,
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
    /// missing, a file is damaged or something else, or a config differs from the job's tables.
    ///
    /// # Errors
    /// The first missing component, unusable file or differing field.
    pub async fn suits(&self, model: &Model) -> Result<(), BaseError> {
        let facts = model.architecture.facts();
        let own = facts.own_file.map(|own| (own, false));
        for (name, needed) in facts.base_parts.iter().copied().chain(own) {
            let Some(files) = self.parts.get(name) else {
                if needed {
                    return Err(self.missing_component(name));
                }
                continue;
            };
            let Some(path) = files.config() else { continue };
            let text = self.text(path).await?;
            agree(name, &text, model).map_err(|source| self.mismatch(path, source))?;
        }
        self.noise_suits(model).await?;
        self.files_suit(model.architecture.kind()).await
    }

    /// Compares what the base says about its noise schedule and prediction with the job.
    async fn noise_suits(&self, model: &Model) -> Result<(), BaseError> {
        let Some(diffusion) = model.architecture.diffusion() else {
            return Ok(());
        };
        if let Some(path) = self.scheduler {
            let text = self.text(path).await?;
            let agreed = scheduler::agree(&text, &diffusion.noise);
            agreed.map_err(|source| self.mismatch(path, source))?;
        }
        if let Some(file) = &self.single_file {
            let agreed = scheduler::agree_single_file(&file.noise, &diffusion.noise);
            agreed.map_err(|source| self.mismatch(&file.name, source))?;
        }
        Ok(())
    }

    /// Checks that every file that the job loads is there, whole, and what it should be.
    async fn files_suit(&self, architecture: Architecture) -> Result<(), BaseError> {
        let mut checked = BTreeSet::new();
        for (_, files) in self.taken_over(architecture) {
            let mut found = BTreeMap::new();
            let mut missing = Vec::new();
            for file in &files.weights {
                if !checked.insert(file) {
                    continue;
                }
                match Header::read(&*self.store, &self.path(file)).await {
                    Ok(header) => {
                        let shapes = header.tensors.iter();
                        let shapes = shapes.map(|(name, it)| (name.as_str(), it.shape.as_slice()));
                        if let Some(other) = other_model(shapes) {
                            let reason = format!("it is {other}, which is not supported");
                            return Err(self.malformed(file, reason));
                        }
                        found.insert(file, header);
                    }
                    Err(HeaderError::Store(object_store::Error::NotFound { .. })) => {
                        missing.push(file.rsplit('/').next().unwrap_or(file));
                    }
                    Err(error) => return Err(self.header_error(file, error)),
                }
            }
            let index = files.index();
            if !missing.is_empty() {
                let by = index.unwrap_or(&files.at);
                let (of, names) = (files.weights.len(), missing.join(", "));
                let reason = format!(
                    "{} of its {of} files are missing: {names}; copy or download them",
                    missing.len()
                );
                return Err(self.malformed(by, reason));
            }
            if let Some(index) = index {
                self.index_suits(index, &found).await?;
            }
        }
        Ok(())
    }

    /// Checks that every tensor of an index is in the file that the index says.
    async fn index_suits(
        &self,
        index: &str,
        headers: &BTreeMap<&String, Header>,
    ) -> Result<(), BaseError> {
        let folder = index.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (tensor, file) in self.read_index(index).await? {
            let header = headers.get(&format!("{folder}/{file}"));
            if header.is_some_and(|it| !it.tensors.contains_key(&tensor)) {
                let reason = format!(
                    "it says that {tensor} is in {file}, which has no such tensor; the files are \
                     of different downloads"
                );
                return Err(self.malformed(index, reason));
            }
        }
        Ok(())
    }

    /// What a user should know of how this base is read, one sentence each.
    #[must_use]
    pub fn notes(&self, model: &Model) -> Vec<String> {
        let average = self.single_file.iter().map(Self::average_note);
        average.chain(self.noise_note(model)).collect()
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

    fn average_note(file: &SingleFile) -> String {
        let name = &file.name;
        if file.has_average {
            format!(
                "{name} has two sets of U-Net weights: those as trained (model.diffusion_model.*) \
                 are read, the moving average (model_ema.*) is not"
            )
        } else {
            format!(
                "{name} has one set of U-Net weights (model.diffusion_model.*), which is read; it \
                 has no separate moving average"
            )
        }
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
        (&self.store, self.path(name))
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .fold(self.prefix.clone(), |path, segment| path.join(segment))
    }

    async fn inspect_folder(&mut self) -> Result<(), BaseError> {
        for part in PARTS.into_iter().chain(OWN_PARTS) {
            let file = part.file();
            let mut files = None;
            if self.exists(&file).await? {
                files = Some(ComponentFiles::single_file(&file));
            }
            for folder in std::iter::once(part.folder).chain(part.also) {
                if files.is_none() {
                    files = self.component_in_folder(folder).await?;
                }
            }
            self.parts.extend(files.map(|files| (part.name, files)));
        }
        for name in [RETRINET_FILE.to_owned(), format!("unet/{RETRINET_FILE}")] {
            if self.exists(&name).await? {
                self.parts
                    .insert(RETRINET, ComponentFiles::single_file(&name));
                break;
            }
        }
        if self.exists(SCHEDULER_FILE).await? {
            self.scheduler = Some(SCHEDULER_FILE);
        }
        Ok(())
    }

    async fn component_in_folder(&self, folder: &str) -> Result<Option<ComponentFiles>, BaseError> {
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

    /// The files that an index names. They must be in the folder of the index, or of the same model
    /// in the cache of `huggingface_hub`.
    async fn files_of_index(&self, folder: &str, index: &str) -> Result<Vec<String>, BaseError> {
        let files: BTreeSet<String> = self.read_index(index).await?.into_values().collect();
        let is_name =
            |file: &str| !matches!(file, "" | "." | "..") && !file.contains(['/', '\\', '\0']);
        if let Some(outside) = files.iter().find(|file| !is_name(file)) {
            return Err(self.malformed(
                index,
                format!("it names {outside:?}, which is not in the same folder"),
            ));
        }
        if let Some(base) = &self.local {
            let folder = base.join(folder);
            for file in &files {
                match open_of_model(&folder, file) {
                    Ok(_) => {}
                    // All that are missing are named together, later.
                    Err(ConfinedError::Io(error)) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => {
                        let reason = format!("it names {file:?}, which {error}");
                        return Err(self.malformed(index, reason));
                    }
                }
            }
        }
        Ok(files
            .into_iter()
            .map(|file| format!("{folder}/{file}"))
            .collect())
    }

    /// The file of each tensor of an index.
    async fn read_index(&self, index: &str) -> Result<BTreeMap<String, String>, BaseError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = self.text(index).await?;
        let found: Index =
            serde_json::from_str(&text).map_err(|error| self.malformed(index, error))?;
        Ok(found.weight_map)
    }

    async fn inspect_file(&mut self, file: &str) -> Result<(), BaseError> {
        let header = Header::read(&*self.store, &self.path(file)).await;
        let header = header.map_err(|error| self.header_error(file, error))?;
        let shapes = header.tensors.iter();
        let shapes = shapes.map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        if let Some(other) = other_model(shapes) {
            let reason = format!("it is {other}, which is not supported");
            return Err(self.malformed(file, reason));
        }
        let names: Vec<&str> = header.tensors.keys().map(String::as_str).collect();
        self.single_file = Some(SingleFile {
            name: file.to_owned(),
            has_average: names.iter().any(|it| it.starts_with(SINGLE_FILE_AVERAGE)),
            noise: single_file_noise(&names, &header.metadata),
        });
        let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        // FastComposer's components have the names of diffusers' folders.
        let is_fastcomposer = has("postfuse_module.") && has("unet.");
        for part in PARTS.into_iter().chain(OWN_PARTS) {
            if has(part.prefix) || (is_fastcomposer && has(&format!("{}.", part.folder))) {
                self.parts
                    .insert(part.name, ComponentFiles::single_file(file));
            }
        }
        self.hint = match (foreign(names.iter().copied()), names.first()) {
            (Some(model), _) => format!(": its tensors are named like those of {model}"),
            (None, Some(first)) if self.parts.is_empty() => {
                format!(": its first tensor is {first:?}")
            }
            _ => String::new(),
        };
        Ok(())
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
    use crate::header::tests::{safetensors_file, safetensors_with};

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
        // Whether its files are there is a question of `suits`, which names all that are missing.
        let base = Base::find(&url).await.unwrap();
        assert_eq!(base.parts()["autoencoder"].at, "vae");
        assert_eq!(base.parts()["text_encoder"].beside, Vec::<String>::new());
        let unet = &base.parts()["unet"];
        assert_eq!(unet.weights, ["unet/1.safetensors", "unet/2.safetensors"]);
        assert_eq!(base.parts()[RETRINET].at, "unet/retrinet.safetensors");
    }

    #[tokio::test]
    async fn an_index_opens_nothing_outside_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/base", folder.path().display());
        put(folder.path(), "private.safetensors", b"");
        put(folder.path(), "base/unet/a.safetensors", b"");
        let unet = folder.path().join("base/unet");
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, unet.join(name)).unwrap();
        link("a.safetensors", "same.safetensors");
        link("../../private.safetensors", "link.safetensors");
        link("/dev/zero", "zero.safetensors");
        let find = async |name: &str| {
            let index = format!(r#"{{"weight_map": {{"x": {name:?}}}}}"#);
            let path = "base/unet/model.safetensors.index.json";
            put(folder.path(), path, index.as_bytes());
            Base::find(&url)
                .await
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        find("a.safetensors").await.unwrap();
        find("same.safetensors").await.unwrap();
        let absolute = folder
            .path()
            .join("private.safetensors")
            .display()
            .to_string();
        for (name, reason) in [
            ("../../private.safetensors", "is not in the same folder"),
            (absolute.as_str(), "is not in the same folder"),
            ("..", "is not in the same folder"),
            ("", "is not in the same folder"),
            ("link.safetensors", "through a symbolic link"),
            ("zero.safetensors", "through a symbolic link"),
        ] {
            let error = find(name).await.unwrap_err();
            let start = format!("unet/model.safetensors.index.json of {url} cannot be used: ");
            assert!(error.starts_with(&start), "{error}");
            assert!(
                error.contains(&format!("{name:?}")) && error.contains(reason),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn headers_and_texts_have_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let length = (crate::header::HEADER_BYTES_MAX + 1).to_le_bytes();
        let start = [&length[..], b"{"].concat();
        put(folder.path(), "long.safetensors", &start);
        let found = Base::find(&format!("{url}/long.safetensors")).await;
        let error = found.unwrap_err().to_string();
        assert!(
            error.contains("would be 8388609 bytes long; at most 8388608 are read"),
            "{error}"
        );
        let index = "unet/model.safetensors.index.json";
        put(folder.path(), index, b"");
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path().join(index))
            .unwrap();
        file.set_len(3 << 30).unwrap();
        let error = Base::find(&url).await.unwrap_err().to_string();
        assert!(
            error.contains("index.json") && error.contains("at most 8388608 are read"),
            "{error}"
        );
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
                    autoencoder: model().architecture.autoencoder().unwrap().clone(),
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

    /// A folder of our own layout that suits [`model`].
    fn own_layout() -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["autoencoder", "text_encoder", "unet"] {
            let file = safetensors_file(&["a", "b"]);
            put(folder.path(), &format!("{name}.safetensors"), &file);
        }
        let url = format!("file://{}", folder.path().display());
        (folder, url)
    }

    async fn suits(url: &str, model: &Model) -> Result<(), String> {
        let base = Base::find(url).await.map_err(|error| error.to_string())?;
        base.suits(model).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_file_that_is_something_else_or_not_whole_is_refused_before_it_is_loaded() {
        let (folder, url) = own_layout();
        suits(&url, &model()).await.unwrap();
        let whole = safetensors_file(&["a", "b"]);
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
        for (bytes, expected) in [
            (&lfs[..], "it is a Git LFS pointer"),
            (&whole[..whole.len() - 3], "it was cut off"),
            (b"", "it is empty"),
        ] {
            put(folder.path(), "unet.safetensors", bytes);
            let error = suits(&url, &model()).await.unwrap_err();
            assert!(
                error.starts_with("unet.safetensors of file://") && error.contains(expected),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn every_file_of_an_index_must_be_there_and_hold_its_tensors() {
        let (folder, url) = own_layout();
        std::fs::remove_file(folder.path().join("unet.safetensors")).unwrap();
        let index = br#"{"weight_map": {"a": "m-00001-of-00002.safetensors",
            "b": "m-00002-of-00002.safetensors"}}"#;
        put(folder.path(), "unet/model.safetensors.index.json", index);
        let one = |name: &str| safetensors_file(&[name]);
        put(
            folder.path(),
            "unet/m-00001-of-00002.safetensors",
            &one("a"),
        );
        let error = suits(&url, &model()).await.unwrap_err();
        assert!(
            error.starts_with("unet/model.safetensors.index.json of file://")
                && error.contains("1 of its 2 files are missing: m-00002-of-00002.safetensors;"),
            "{error}"
        );
        put(
            folder.path(),
            "unet/m-00002-of-00002.safetensors",
            &one("c"),
        );
        let error = suits(&url, &model()).await.unwrap_err();
        assert!(
            error.contains("it says that b is in m-00002-of-00002.safetensors, which has no such"),
            "{error}"
        );
        put(
            folder.path(),
            "unet/m-00002-of-00002.safetensors",
            &one("b"),
        );
        suits(&url, &model()).await.unwrap();
    }

    #[tokio::test]
    async fn the_scheduler_of_a_folder_must_agree_with_the_job() {
        let (folder, url) = own_layout();
        let noise = model().architecture.diffusion().unwrap().noise;
        put(
            folder.path(),
            SCHEDULER_FILE,
            scheduler::write(&noise).as_bytes(),
        );
        suits(&url, &model()).await.unwrap();
        let base = Base::find(&url).await.unwrap();
        assert_eq!(base.notes(&model()), Vec::<String>::new());
        let v = scheduler::write(&noise).replace("\"epsilon\"", "\"v_prediction\"");
        put(folder.path(), SCHEDULER_FILE, v.as_bytes());
        let error = suits(&url, &model()).await.unwrap_err();
        assert!(
            error.starts_with("scheduler/scheduler_config.json of file://")
                && error.contains("prediction_type is \"v_prediction\", but the job has"),
            "{error}"
        );
        // An autoencoder has no noise.
        let autoencoder = Model {
            architecture: proto::spec::ArchitectureSpec::Autoencoder(
                proto::architecture::Autoencoder {
                    autoencoder: model().architecture.autoencoder().unwrap().clone(),
                    reconstruction: proto::architecture::Reconstruction::default(),
                },
            ),
            ..model()
        };
        suits(&url, &autoencoder).await.unwrap();
    }

    #[tokio::test]
    async fn a_single_file_says_which_weights_are_read_and_what_they_predict() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/sd.safetensors", folder.path().display());
        let names = [
            "cond_stage_model.transformer.text_model.x",
            "first_stage_model.x",
            "model.diffusion_model.x",
        ];
        let notes = async |names: &[&str]| {
            put(folder.path(), "sd.safetensors", &safetensors_file(names));
            let base = Base::find(&url).await.unwrap();
            base.notes(&model()).join("\n")
        };
        let text = notes(&names).await;
        assert!(text.contains("has one set of U-Net weights"), "{text}");
        let guess = "does not say what its U-Net predicts; it is taken for model.noise.prediction \
                     = \"epsilon\"";
        assert!(text.contains(guess), "{text}");
        let with_average = [&names[..], &["model_ema.diffusion_modelx"]].concat();
        let text = notes(&with_average).await;
        assert!(
            text.contains("(model.diffusion_model.*) are read, the moving average (model_ema.*)"),
            "{text}"
        );
        suits(&url, &model()).await.unwrap();
        let described = r#""__metadata__":{"modelspec.prediction_type":"v"},"#;
        let file = safetensors_with(&names, described);
        put(folder.path(), "sd.safetensors", &file);
        let base = Base::find(&url).await.unwrap();
        assert_eq!(base.notes(&model()).len(), 1);
        let error = suits(&url, &model()).await.unwrap_err();
        assert!(
            error
                .contains("modelspec.prediction_type is v, but the job has model.noise.prediction"),
            "{error}"
        );
    }
}
