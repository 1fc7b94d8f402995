//! Whether a job can start from a base.

use super::{Base, BaseError, ComponentFiles};
use crate::header::{Header, HeaderError};
use proto::public::agree::agree;
use proto::public::scheduler;
use proto::public::shapes::agree_by_shapes;
use proto::spec::{Architecture, Model};
use std::collections::BTreeMap;

impl Base {
    /// Rejects a base that a job cannot start from: a component that its architecture needs is
    /// missing, a file is damaged or something else, or a config or the shapes of tensors differ
    /// from the job's tables.
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
        self.files_suit(model).await
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
    async fn files_suit(&self, model: &Model) -> Result<(), BaseError> {
        let headers = self.headers(model.architecture.kind()).await?;
        for (name, files) in self.taken_over(model.architecture.kind()) {
            let shape = |tensor: &str| {
                let mut of = files.weights.iter().filter_map(|it| headers.get(it));
                of.find_map(|it| Some(it.tensors.get(tensor)?.shape.as_slice()))
            };
            let at = files.weights.first().unwrap_or(&files.at);
            agree_by_shapes(name, shape, model).map_err(|source| self.mismatch(at, source))?;
            if let Some(index) = files.index() {
                self.index_suits(index, &headers).await?;
            }
        }
        Ok(())
    }

    /// The header of each weights file that a job loads.
    async fn headers(
        &self,
        architecture: Architecture,
    ) -> Result<BTreeMap<&String, Header>, BaseError> {
        let mut headers = BTreeMap::new();
        for (_, files) in self.taken_over(architecture) {
            let mut missing = Vec::new();
            for file in &files.weights {
                if headers.contains_key(file) {
                    continue;
                }
                match self.header(file).await {
                    Ok(header) => {
                        self.refuse_other_model(file, &header)?;
                        headers.insert(file, header);
                    }
                    Err(HeaderError::Store(object_store::Error::NotFound { .. })) => {
                        missing.push(file.rsplit('/').next().unwrap_or(file));
                    }
                    Err(error) => return Err(self.header_error(file, error)),
                }
            }
            if !missing.is_empty() {
                return Err(self.missing_files(files, &missing));
            }
        }
        Ok(headers)
    }

    fn missing_files(&self, files: &ComponentFiles, missing: &[&str]) -> BaseError {
        let by = files.index().unwrap_or(&files.at);
        let (of, names) = (files.weights.len(), missing.join(", "));
        let reason = format!(
            "{} of its {of} files are missing: {names}; copy or download them",
            missing.len()
        );
        self.malformed(by, reason)
    }
}
