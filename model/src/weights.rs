//! Reads, writes and digests weights as safetensors files. Loading is strict: a missing tensor, an
//! unexpected tensor or a shape mismatch is an error that names the tensor. Used by the trainer and
//! by tools that export models.

use crate::error::{ModelError, WeightsFault};
use proto::checkpoint::TensorsDigest;
use safetensors::{Dtype, SafeTensors, View};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Tensors by name, sorted.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// The dtype in which values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Float32,
    /// Half the size; values are rounded to an 11-bit significand.
    Float16,
}

/// Reads all tensors of a safetensors file as fp32 on the CPU.
///
/// # Errors
/// The file cannot be read, is not safetensors, or holds a tensor that is neither F32 nor F16.
pub fn read(path: &Path) -> Result<NamedTensors, ModelError> {
    let read = || {
        let bytes = std::fs::read(path)?;
        parse(&bytes)
    };
    read().map_err(|source| ModelError::ReadWeights {
        path: path.to_owned(),
        source,
    })
}

/// Reads all tensors of a safetensors file in memory as fp32 on the CPU.
///
/// # Errors
/// The bytes are not safetensors, or hold a tensor that is neither F32 nor F16.
pub fn parse(bytes: &[u8]) -> Result<NamedTensors, WeightsFault> {
    let mut tensors = NamedTensors::new();
    for (name, view) in SafeTensors::deserialize(bytes)?.tensors() {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            other => {
                return Err(WeightsFault::Kind {
                    tensor: name,
                    found: format!("{other:?}"),
                });
            }
        };
        let shape: Vec<i64> = view.shape().iter().map(|side| *side as i64).collect();
        let tensor = Tensor::from_data_size(view.data(), &shape, kind).to_kind(Kind::Float);
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Writes tensors to one safetensors file, converting one tensor at a time. The same tensors give
/// the same bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, tensors: &NamedTensors, storage: Storage) -> Result<(), ModelError> {
    let result = safetensors::serialize_to_file(views(tensors, storage), None, path);
    result.map_err(|error| ModelError::WriteWeights {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// The bytes of a safetensors file with these tensors.
///
/// # Errors
/// The format's limits are exceeded (a header of more than 100 MB).
pub fn serialize(tensors: &NamedTensors, storage: Storage) -> Result<Vec<u8>, WeightsFault> {
    Ok(safetensors::serialize(views(tensors, storage), None)?)
}

fn views(
    tensors: &NamedTensors,
    storage: Storage,
) -> impl Iterator<Item = (&String, LazyTensor<'_>)> {
    tensors.iter().map(move |(name, tensor)| {
        let shape = tensor.size().iter().map(|side| *side as usize).collect();
        (
            name,
            LazyTensor {
                tensor,
                shape,
                storage,
            },
        )
    })
}

/// A tensor that is converted to bytes when it is written.
struct LazyTensor<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
    storage: Storage,
}

impl Storage {
    fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Float16 => Kind::Half,
        }
    }
}

impl View for LazyTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.storage {
            Storage::Float32 => Dtype::F32,
            Storage::Float16 => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(bytes(self.tensor, self.storage.kind()))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.storage.kind().elt_size_in_bytes()
    }
}

/// Copies values into parameters in place. The names must be the same on both sides. On an error
/// nothing is copied.
///
/// # Errors
/// The first tensor that is missing, unexpected, of the wrong shape or not finite. The error names
/// `origin`, a file or a checkpoint.
pub fn load(origin: &str, from: &NamedTensors, into: &NamedTensors) -> Result<(), ModelError> {
    for (name, parameter) in into {
        let expected = parameter.size();
        match from.get(name) {
            None => {
                let (origin, tensor) = (origin.to_owned(), name.clone());
                return Err(ModelError::MissingTensor {
                    origin,
                    tensor,
                    expected,
                });
            }
            Some(tensor) if tensor.size() != expected => {
                let (origin, found) = (origin.to_owned(), tensor.size());
                return Err(ModelError::TensorShape {
                    origin,
                    tensor: name.clone(),
                    found,
                    expected,
                });
            }
            Some(_) => {}
        }
    }
    if let Some(extra) = from.keys().find(|name| !into.contains_key(*name)) {
        return Err(ModelError::ExtraTensor {
            origin: origin.to_owned(),
            tensor: extra.clone(),
        });
    }
    for (name, tensor) in from {
        refuse_nonfinite(origin, name, tensor)?;
    }
    tch::no_grad(|| {
        for (name, parameter) in into {
            parameter.shallow_clone().copy_(&from[name]);
        }
    });
    Ok(())
}

/// Rejects NaN and infinite weights, which would make every later step nonfinite.
pub(crate) fn refuse_nonfinite(
    origin: &str,
    name: &str,
    tensor: &Tensor,
) -> Result<(), ModelError> {
    if tensor.isfinite().all().int64_value(&[]) == 1 {
        return Ok(());
    }
    let (origin, tensor) = (origin.to_owned(), name.to_owned());
    Err(ModelError::NonfiniteTensor { origin, tensor })
}

/// SHA-256 over names, shapes and fp32 values, sorted by name, in lower-case hex; used to compare
/// two runs. The digest of a trainer's state equals the one that `coordinator checkpoint digest`
/// prints for its checkpoint.
#[must_use]
pub fn digest(tensors: &NamedTensors) -> String {
    let mut digest = TensorsDigest::default();
    for (name, tensor) in tensors {
        digest.add(name, "F32", &tensor.size(), &bytes(tensor, Kind::Float));
    }
    digest.finish()
}

fn bytes(tensor: &Tensor, kind: Kind) -> Vec<u8> {
    let tensor = tensor
        .detach()
        .to_device(Device::Cpu)
        .to_kind(kind)
        .contiguous();
    let mut data = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
    let values = tensor.numel();
    tensor.copy_data_u8(&mut data, values);
    data
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn two_tensors() -> NamedTensors {
        NamedTensors::from([
            (
                "b".to_owned(),
                Tensor::from_slice(&[1f32, 2.5, -3.0, 1e-3]).view([2, 2]),
            ),
            ("a".to_owned(), Tensor::from_slice(&[7f32])),
        ])
    }

    #[test]
    fn a_file_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write(&path, &two_tensors(), Storage::Float32).unwrap();
        assert_eq!(digest(&read(&path).unwrap()), digest(&two_tensors()));
        write(&path, &two_tensors(), Storage::Float16).unwrap();
        let half = read(&path).unwrap();
        assert_eq!(half["b"].double_value(&[0, 1]), 2.5);
        assert!((half["b"].double_value(&[1, 1]) - 1e-3).abs() < 1e-6);
        assert_ne!(digest(&half), digest(&two_tensors()));
    }

    #[test]
    fn a_mismatched_file_is_refused_with_the_tensor_s_name() {
        let message = |from: &NamedTensors, into: &NamedTensors| {
            load("x.st", from, into).unwrap_err().to_string()
        };
        let mut fewer = two_tensors();
        fewer.remove("a");
        assert_eq!(
            message(&fewer, &two_tensors()),
            "x.st: tensor \"a\" is missing; expected shape [1]"
        );
        assert_eq!(
            message(&two_tensors(), &fewer),
            "x.st: tensor \"a\" does not belong to this model"
        );
        let mut other = two_tensors();
        other.insert("b".into(), Tensor::from_slice(&[1f32, 2.]));
        assert_eq!(
            message(&other, &two_tensors()),
            "x.st: tensor \"b\" has shape [2]; expected [2, 2]"
        );
        let mut nonfinite = two_tensors();
        nonfinite.insert("a".into(), Tensor::from_slice(&[f32::NAN]));
        assert_eq!(
            message(&nonfinite, &two_tensors()),
            "x.st: tensor \"a\" holds a value that is not finite"
        );
        let error = read(Path::new("no/such.safetensors")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no/such.safetensors: cannot be read as a weights file"
        );
    }
}
