//! Finds the components behind a URL.

use super::{Base, BaseError, ComponentFiles, RETRINET, SingleFile};
use crate::header::{Header, HeaderError};
use object_store::path::Path;
use proto::public::base::{
    CONFIG_FILE, OWN_PARTS, PARTS, PICKLE_FILES, WEIGHT_FILES, in_file, is_pickle, published_files,
};
use proto::public::names::{
    RETRINET_FILE, SINGLE_FILE_AVERAGE, SINGLE_FILE_UNET, foreign, other_model, single_file_noise,
};
use proto::public::scheduler::SCHEDULER_FILE;
use std::collections::BTreeMap;
use storage::{local_folder, open};

impl Base {
    /// Lists the components at a URL. A URL that ends with `.safetensors`, or with a name that
    /// `torch.save` gives, is one file. If that file holds no part of a base model, but what a peer
    /// adds to one, the base model is looked for in its folder.
    ///
    /// # Errors
    /// The folder or file does not exist, storage fails, or a header or an index cannot be read.
    pub async fn find(url: &str) -> Result<Self, BaseError> {
        let is_file = |file: &str| file.ends_with(".safetensors") || is_pickle(file);
        let (folder, file) = match url.rsplit_once('/') {
            Some((folder, file)) if is_file(file) => (folder, Some(file)),
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
            folder: folder.to_owned(),
            store,
            prefix,
            local,
            parts: BTreeMap::new(),
            hint: String::new(),
            scheduler: None,
            single_file: None,
            converted: None,
        };
        match file {
            Some(file) => base.inspect_file(&decode_file_name(url, file)?).await?,
            None => base.inspect_folder().await?,
        }
        Ok(base)
    }

    async fn inspect_folder(&mut self) -> Result<(), BaseError> {
        for part in PARTS.into_iter().chain(OWN_PARTS) {
            let mut files = None;
            let own = std::iter::once(part.file());
            for file in own.chain(published_files(part.name).iter().map(|it| (*it).to_owned())) {
                if files.is_none() && self.exists(&file).await? {
                    files = Some(ComponentFiles::single_file(&file));
                }
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
        for file in WEIGHT_FILES.into_iter().chain(PICKLE_FILES) {
            let name = format!("{folder}/{file}");
            if self.exists(&name).await? {
                return Ok(Some(ComponentFiles {
                    at: folder.to_owned(),
                    weights: vec![name],
                    beside,
                }));
            }
            let index = format!("{name}.index.json");
            if !self.exists(&index).await? {
                continue;
            }
            if is_pickle(file) {
                let reason = "it divides weights among several files of torch.save, of which only \
                              whole ones are read; download the safetensors files instead";
                return Err(self.malformed(&index, reason));
            }
            let weights = self.files_of_index(folder, &index).await?;
            return Ok(Some(ComponentFiles {
                at: folder.to_owned(),
                weights,
                beside: beside.into_iter().chain([index]).collect(),
            }));
        }
        match beside.first() {
            // A folder with weights in an unsupported format must not count as a missing component.
            Some(config) => {
                let reason = format!(
                    "there are no weights next to it; looked for {}",
                    [&WEIGHT_FILES[..], &PICKLE_FILES].concat().join(" or ")
                );
                Err(self.malformed(config, reason))
            }
            None => Ok(None),
        }
    }

    async fn inspect_file(&mut self, file: &str) -> Result<(), BaseError> {
        let header = self.header(file).await;
        let header = header.map_err(|error| self.header_error(file, error))?;
        self.refuse_other_model(file, &header)?;
        let names: Vec<&str> = header.tensors.keys().map(String::as_str).collect();
        self.single_file = Some(SingleFile {
            name: file.to_owned(),
            has_unet: names.iter().any(|it| it.starts_with(SINGLE_FILE_UNET)),
            has_average: names.iter().any(|it| it.starts_with(SINGLE_FILE_AVERAGE)),
            noise: single_file_noise(&names, &header.metadata),
        });
        let found = in_file(&names).into_iter();
        self.parts
            .extend(found.map(|part| (part.name, ComponentFiles::single_file(file))));
        let of_base = |name: &&str| PARTS.iter().any(|part| part.name == *name);
        if !self.parts.is_empty() && !self.parts.keys().any(of_base) {
            // What a peer adds to a base model, which must then lie beside it.
            let own = std::mem::take(&mut self.parts);
            self.inspect_folder().await?;
            self.parts.extend(own);
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

    /// The names and shapes of a file's tensors.
    pub(super) async fn header(&self, file: &str) -> Result<Header, HeaderError> {
        let path = self.path(file);
        if is_pickle(file) {
            crate::archive::header(&*self.store, &path).await
        } else {
            Header::read(&*self.store, &path).await
        }
    }

    /// Refuses the file of another model, by what it is.
    pub(super) fn refuse_other_model(&self, file: &str, header: &Header) -> Result<(), BaseError> {
        let shapes = header.tensors.iter();
        let shapes = shapes.map(|(name, it)| (name.as_str(), it.shape.as_slice()));
        match other_model(shapes) {
            Some(other) => {
                let reason = format!("it is {other}, which is not supported");
                Err(self.malformed(file, reason))
            }
            None => Ok(()),
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
