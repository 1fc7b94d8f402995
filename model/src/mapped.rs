//! Memory-mapped safetensors files: tensors are read on demand, without a second copy in memory.
//! Used by [`crate::public`] and by `worker forward`.
#![allow(unsafe_code)]

use crate::error::{ModelError, WeightsFault};
use base_weights::base::TEXT_BYTES_MAX;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use storage::confined::open_of_model;
use storage::regular;
use tch::{Kind, Tensor};

/// One or more files with distinct tensor names.
#[derive(Debug)]
pub struct Mapped {
    files: Vec<File>,
    /// The index in `files` for each tensor.
    file_indices: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Offset of the tensors' bytes.
    data_offset: usize,
}

impl Mapped {
    /// Maps a safetensors file.
    ///
    /// # Errors
    /// The file cannot be read, is not safetensors, or is truncated.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = std::fs::File::open(path).map_err(|error| ModelError::ReadWeights {
            path: path.to_owned(),
            source: error.into(),
        })?;
        Ok(Self::of(vec![File::map(path.to_owned(), &file)?]))
    }

    /// Maps the files of an index (`*.safetensors.index.json`), which must be in the index's
    /// folder, or files of the same model in the cache of `huggingface_hub`.
    ///
    /// # Errors
    /// The index cannot be read, is larger than 8 MiB, or names a file outside, or
    /// [`Self::open`] fails for one of its files.
    pub fn open_index(path: &Path) -> Result<Self, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let fault = |source| ModelError::ReadWeights {
            path: path.to_owned(),
            source,
        };
        let text = regular::read(path, TEXT_BYTES_MAX).map_err(|error| fault(error.into()))?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| fault(error.into()))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let files = names.into_iter().map(|name| {
            let opened = open_of_model(folder, name);
            let outside = |source| {
                let file = name.clone();
                fault(WeightsFault::Outside { file, source })
            };
            File::map(folder.join(name), &opened.map_err(outside)?)
        });
        Ok(Self::of(files.collect::<Result<_, _>>()?))
    }

    fn of(files: Vec<File>) -> Self {
        let names = |(index, file): (usize, &File)| {
            file.header
                .tensors()
                .into_keys()
                .map(move |name| (name, index))
                .collect::<Vec<_>>()
        };
        let file_indices = files.iter().enumerate().flat_map(names).collect();
        Self {
            files,
            file_indices,
        }
    }

    /// All files with their paths and contents.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files
            .iter()
            .map(|file| (file.path.as_path(), &file.map[..]))
    }

    /// The value of a key in the first file's metadata.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.files.first()?.header.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_indices.keys().map(String::as_str)
    }

    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.file_indices.contains_key(name)
    }

    /// True if any tensor name has this prefix.
    #[must_use]
    pub fn any_with_prefix(&self, prefix: &str) -> bool {
        self.file_indices
            .range(prefix.to_owned()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// The file that contains a tensor; the first file if none does.
    #[must_use]
    pub fn origin(&self, name: &str) -> &Path {
        &self.files[self.file_indices.get(name).copied().unwrap_or(0)].path
    }

    /// The shape of a tensor, or None if it does not exist.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let file = &self.files[*self.file_indices.get(name)?];
        let shape = &file.header.info(name)?.shape;
        Some(shape.iter().map(|side| *side as i64).collect())
    }

    /// Copies one tensor in its stored dtype to the CPU.
    ///
    /// # Errors
    /// The tensor does not exist or has an unsupported dtype.
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::MissingTensor {
            origin: self.origin(name).display().to_string(),
            tensor: name.to_owned(),
            expected: Vec::new(),
        };
        let file = &self.files[*self.file_indices.get(name).ok_or_else(missing)?];
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
        let bytes = &file.map[file.data_offset + begin..file.data_offset + end];
        Ok(Tensor::from_data_size(bytes, &shape, kind))
    }
}

impl File {
    fn map(path: PathBuf, file: &std::fs::File) -> Result<Self, ModelError> {
        let parse = || -> Result<_, WeightsFault> {
            // SAFETY: weight files are written once, renamed into place and never modified.
            // Truncating a mapped file raises SIGBUS, as with every mapping.
            let map = unsafe { Mmap::map(file)? };
            let (length, header) = SafeTensors::read_metadata(&map)?;
            Ok((map, length, header))
        };
        match parse() {
            Ok((map, length, header)) => Ok(Self {
                path,
                data_offset: std::mem::size_of::<u64>() + length,
                map,
                header,
            }),
            Err(source) => Err(ModelError::ReadWeights { path, source }),
        }
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
        assert!(
            mapped.any_with_prefix("a.") && !mapped.any_with_prefix("a.c") && !mapped.contains("a")
        );
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

    #[test]
    fn an_index_opens_nothing_outside_of_its_folder() {
        let above = tempfile::tempdir().unwrap();
        let outside = file(above.path(), "outside.safetensors", "a");
        let folder = above.path().join("base");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link.safetensors")).unwrap();
        let index = folder.join("w.safetensors.index.json");
        let refusal = |name: &str| {
            let text = serde_json::json!({ "weight_map": { "a": name } }).to_string();
            std::fs::write(&index, text).unwrap();
            let error = Mapped::open_index(&index).unwrap_err();
            std::error::Error::source(&error).unwrap().to_string()
        };
        for (name, reason) in [
            ("../outside.safetensors", "leaves the folder"),
            (outside.to_str().unwrap(), "leaves the folder"),
            ("link.safetensors", "symbolic link"),
        ] {
            let error = refusal(name);
            let expected = format!("it names {name:?}, which ");
            assert!(
                error.starts_with(&expected) && error.contains(reason),
                "{error}"
            );
        }
        // Sparse: reading it would take 8 TiB.
        let giant = std::fs::File::create(&index).unwrap();
        giant.set_len(8 << 40).unwrap();
        let error = Mapped::open_index(&index).unwrap_err();
        let error = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(
            error,
            "it has 8796093022208 bytes; at most 8388608 are read"
        );
    }
}
