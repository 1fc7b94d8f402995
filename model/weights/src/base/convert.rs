//! Files of `torch.save` in a base: converted to safetensors where they are used.

use super::{Base, BaseError, ComponentFiles, joined};
use crate::convert::{Conversion, convert};
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::public::base::{converted_name, is_pickle};
use proto::spec::Architecture;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use storage::read::ReadError;

/// The folder in which converted components lie.
#[derive(Debug, Clone)]
pub(super) struct Converted {
    folder: PathBuf,
    store: Arc<dyn ObjectStore>,
    components: BTreeSet<&'static str>,
    /// Names of their files, relative to the folder.
    files: BTreeSet<String>,
}

impl Converted {
    /// The store and the path in it of a file that was converted.
    pub(super) fn object(&self, name: &str) -> Option<(&Arc<dyn ObjectStore>, Path)> {
        let found = self.files.contains(name);
        found.then(|| (&self.store, joined(&Path::default(), name)))
    }
}

impl Base {
    /// The files of the components that a job of this architecture loads from files of
    /// `torch.save`, configs included. Empty after [`Self::with_converted`].
    #[must_use]
    pub fn pickled_files(&self, architecture: Architecture) -> BTreeSet<String> {
        let pickled = self.pickled(architecture).into_iter();
        let files = pickled.flat_map(|(_, files)| files.files());
        files.cloned().collect()
    }

    fn pickled(&self, architecture: Architecture) -> Vec<(&'static str, &ComponentFiles)> {
        let all = self.taken_over(architecture);
        all.filter(|(_, files)| files.is_pickled()).collect()
    }

    /// Converts each of [`Self::pickled_files`] into `folder`, with a record of both SHA-256 beside
    /// each result, and copies the configs there. The folder is then for
    /// [`Self::with_converted`].
    ///
    /// # Errors
    /// A file cannot be read, converted or written.
    pub async fn convert(
        &self,
        architecture: Architecture,
        folder: &std::path::Path,
    ) -> Result<Vec<Conversion>, BaseError> {
        let mut done = Vec::new();
        for name in self.pickled_files(architecture) {
            let out = folder.join(converted_name(&name));
            let writing = |source| BaseError::Write {
                path: out.clone(),
                source,
            };
            std::fs::create_dir_all(out.parent().unwrap_or(folder)).map_err(writing)?;
            if !is_pickle(&name) {
                std::fs::write(&out, self.read(&name).await?).map_err(writing)?;
                continue;
            }
            let downloaded = folder.join(&name);
            let source = match &self.local {
                Some(local) => local.join(&name),
                None => {
                    self.download(&name, &downloaded).await?;
                    downloaded.clone()
                }
            };
            let converted = convert(&source, &out).map_err(|source| BaseError::Convert {
                url: self.url.clone(),
                path: name.clone(),
                source: Box::new(source),
            })?;
            if self.local.is_none() {
                std::fs::remove_file(&downloaded).map_err(writing)?;
            }
            done.push(converted);
        }
        Ok(done)
    }

    /// This base, with the components of [`Self::pickled_files`] in the folder into which
    /// [`Self::convert`] converted them.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn with_converted(
        mut self,
        architecture: Architecture,
        folder: PathBuf,
    ) -> Result<Self, BaseError> {
        let components: Vec<&'static str> = self
            .pickled(architecture)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(|source| {
            self.read_error(&folder.display().to_string(), ReadError::Store(source))
        })?;
        let mut converted = Converted {
            folder,
            store: Arc::new(store),
            components: BTreeSet::new(),
            files: BTreeSet::new(),
        };
        for name in components {
            let Some(files) = self.parts.get_mut(name) else {
                continue;
            };
            *files = ComponentFiles {
                at: converted_name(&files.at),
                weights: files.weights.iter().map(|it| converted_name(it)).collect(),
                beside: std::mem::take(&mut files.beside),
            };
            converted.files.extend(files.files().cloned());
            converted.components.insert(name);
        }
        self.converted = Some(converted);
        Ok(self)
    }

    /// The folder in which a component lies that was converted.
    #[must_use]
    pub fn converted_folder(&self, component: &str) -> Option<&std::path::Path> {
        let converted = self.converted.as_ref()?;
        let has = converted.components.contains(component);
        has.then_some(converted.folder.as_path())
    }

    async fn download(&self, name: &str, to: &std::path::Path) -> Result<(), BaseError> {
        let reading = |source| self.read_error(name, ReadError::Store(source));
        let writing = |source| BaseError::Write {
            path: to.to_owned(),
            source,
        };
        let mut file = std::fs::File::create(to).map_err(writing)?;
        let found = self.store.get(&self.path(name)).await.map_err(reading)?;
        let mut chunks = found.into_stream();
        while let Some(chunk) = chunks.try_next().await.map_err(reading)? {
            file.write_all(&chunk).map_err(writing)?;
        }
        Ok(())
    }
}
