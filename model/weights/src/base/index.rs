//! Indexes of weights that are divided among several files.

use super::{Base, BaseError};
use crate::header::Header;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use storage::confined::{ConfinedError, open_of_model};

impl Base {
    /// The files that an index names. They must be in the folder of the index, or of the same model
    /// in the cache of `huggingface_hub`.
    pub(super) async fn files_of_index(
        &self,
        folder: &str,
        index: &str,
    ) -> Result<Vec<String>, BaseError> {
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

    /// Checks that every tensor of an index is in the file that the index says.
    pub(super) async fn index_suits(
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
}
