//! Tensors of public safetensors files, mapped into memory: nothing is read until it is asked for,
//! and nothing is held twice. Called by [`crate::public`] and by `worker forward`.
#![allow(unsafe_code)]

use crate::error::{ModelError, WeightsFault};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// One or several files whose tensors have different names.
#[derive(Debug)]
pub struct Mapped {
    files: Vec<File>,
    /// By tensor: which file.
    places: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Where the tensors' bytes begin.
    start: usize,
}

impl Mapped {
    /// Maps a safetensors file.
    ///
    /// # Errors
    /// The file cannot be read, is not safetensors, or is cut off.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::open_all(&[path.to_owned()])
    }

    /// Maps the files that an index (`*.safetensors.index.json`) names; they lie beside it.
    ///
    /// # Errors
    /// The index cannot be read or names a file that [`Self::open`] would refuse.
    pub fn open_index(path: &Path) -> Result<Self, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let fault = |source| ModelError::ReadWeights {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read(path).map_err(|error| fault(error.into()))?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| fault(error.into()))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::open_all(
            &names
                .into_iter()
                .map(|name| folder.join(name))
                .collect::<Vec<_>>(),
        )
    }

    fn open_all(paths: &[PathBuf]) -> Result<Self, ModelError> {
        let files = paths.iter().map(|path| {
            File::open(path).map_err(|source| ModelError::ReadWeights {
                path: path.clone(),
                source,
            })
        });
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let names = |(at, file): (usize, &File)| {
            file.header
                .tensors()
                .into_keys()
                .map(move |name| (name, at))
                .collect::<Vec<_>>()
        };
        let places = files.iter().enumerate().flat_map(names).collect();
        Ok(Self { files, places })
    }

    /// Every file, with all its bytes.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files
            .iter()
            .map(|file| (file.path.as_path(), &file.map[..]))
    }

    /// What the first file says of itself under a key.
    #[must_use]
    pub fn note(&self, key: &str) -> Option<&str> {
        let notes = self.files.first()?.header.metadata().as_ref()?;
        notes.get(key).map(String::as_str)
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Whether any name begins like this.
    #[must_use]
    pub fn any_under(&self, prefix: &str) -> bool {
        self.places
            .range(prefix.to_owned()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// The file that holds a tensor; the first one for a name that none has.
    #[must_use]
    pub fn origin(&self, name: &str) -> &Path {
        &self.files[self.places.get(name).copied().unwrap_or(0)].path
    }

    /// None when there is no such tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let file = &self.files[*self.places.get(name)?];
        let shape = &file.header.info(name)?.shape;
        Some(shape.iter().map(|side| *side as i64).collect())
    }

    /// A copy of one tensor in its own number type, on the CPU.
    ///
    /// # Errors
    /// There is no such tensor, or its numbers are of a type that no network uses.
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::MissingTensor {
            origin: self.origin(name).display().to_string(),
            tensor: name.to_owned(),
            expected: Vec::new(),
        };
        let file = &self.files[*self.places.get(name).ok_or_else(missing)?];
        let info = file.header.info(name).ok_or_else(missing)?;
        let kind = match info.dtype {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::I64 => Kind::Int64,
            Dtype::I32 => Kind::Int,
            other => {
                let (tensor, found) = (name.to_owned(), format!("{other:?}"));
                return Err(ModelError::ReadWeights {
                    path: file.path.clone(),
                    source: WeightsFault::Kind { tensor, found },
                });
            }
        };
        let shape: Vec<i64> = info.shape.iter().map(|side| *side as i64).collect();
        let (begin, end) = info.data_offsets;
        let bytes = &file.map[file.start + begin..file.start + end];
        Ok(Tensor::from_data_size(bytes, &shape, kind))
    }
}

impl File {
    fn open(path: &Path) -> Result<Self, WeightsFault> {
        let file = std::fs::File::open(path)?;
        // SAFETY: weights are written once and renamed into place; who cuts a file off under a
        // running program gets the signal that every mapping gives.
        let map = unsafe { Mmap::map(&file)? };
        let (length, header) = SafeTensors::read_metadata(&map)?;
        Ok(Self {
            path: path.to_owned(),
            start: std::mem::size_of::<u64>() + length,
            map,
            header,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::weights::{NamedTensors, Storage, write};

    fn file(folder: &Path, name: &str, tensor: &str) -> PathBuf {
        let path = folder.join(name);
        let tensors = NamedTensors::from([(tensor.to_owned(), Tensor::from_slice(&[1f32, 2.5]))]);
        write(&path, &tensors, Storage::Float16).unwrap();
        path
    }

    #[test]
    fn tensors_come_back_with_their_shape_and_type() {
        let folder = tempfile::tempdir().unwrap();
        let mapped = Mapped::open(&file(folder.path(), "w.safetensors", "a.b")).unwrap();
        assert_eq!(mapped.shape("a.b"), Some(vec![2]));
        assert!(mapped.any_under("a.") && !mapped.any_under("a.c") && !mapped.contains("a"));
        let tensor = mapped.read("a.b").unwrap();
        assert_eq!(
            (tensor.kind(), tensor.double_value(&[1])),
            (Kind::Half, 2.5)
        );
        assert!(
            mapped
                .read("x")
                .unwrap_err()
                .to_string()
                .contains("\"x\" is missing")
        );
    }

    #[test]
    fn an_index_joins_files_and_a_cut_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), "1.safetensors", "a");
        let second = file(folder.path(), "2.safetensors", "b");
        let index = folder.path().join("w.safetensors.index.json");
        std::fs::write(
            &index,
            r#"{"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#,
        )
        .unwrap();
        let mapped = Mapped::open_index(&index).unwrap();
        assert_eq!(mapped.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(mapped.origin("b"), second);
        let bytes = std::fs::read(&second).unwrap();
        std::fs::write(&second, &bytes[..bytes.len() - 1]).unwrap();
        let error = Mapped::open_index(&index).unwrap_err().to_string();
        assert!(error.contains("2.safetensors"), "{error}");
    }
}
