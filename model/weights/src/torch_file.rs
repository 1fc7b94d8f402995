//! Writes a state dict as `torch.save` does (torch 1.6 or newer), for the loaders of authors who
//! read nothing else: an archive of each tensor's values and a pickle that describes them.

use crate::pickle::Dtype;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use zip::CompressionMethod;
use zip::ZipWriter;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;

/// The folder of the archive's entries.
const ROOT: &str = "pytorch_model";
/// Values begin at multiples of this many bytes, as torch writes them.
const ALIGNMENT: u16 = 64;

/// A file that is being written. Tensors are written as they come; the last call is
/// [`Self::finish`].
pub struct TorchFile {
    archive: ZipWriter<BufWriter<File>>,
    tensors: Vec<Described>,
}

struct Described {
    name: String,
    /// Name of the storage's type in Python.
    storage: &'static str,
    shape: Vec<u64>,
}

impl std::fmt::Debug for TorchFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TorchFile({} tensors)", self.tensors.len())
    }
}

fn options() -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(ALIGNMENT)
        .large_file(true)
}

impl TorchFile {
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> Result<Self, ZipError> {
        let mut archive = ZipWriter::new(BufWriter::new(File::create(path)?));
        for (name, text) in [("version", "3\n"), ("byteorder", "little")] {
            archive.start_file(format!("{ROOT}/{name}"), options())?;
            archive.write_all(text.as_bytes())?;
        }
        Ok(Self {
            archive,
            tensors: Vec::new(),
        })
    }

    /// Writes one tensor, whose values are little-endian and contiguous.
    ///
    /// # Errors
    /// The file cannot be written, or torch has no storage of this type.
    pub fn put(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &[u64],
        values: &[u8],
    ) -> Result<(), ZipError> {
        let Some((storage, of)) = Dtype::storage(dtype) else {
            let reason = std::io::Error::other(format!("tensor {name} has the type {dtype}"));
            return Err(reason.into());
        };
        let expected = shape.iter().product::<u64>() * of.size;
        debug_assert_eq!(expected, values.len() as u64, "{name}");
        let entry = format!("{ROOT}/data/{}", self.tensors.len());
        self.archive.start_file(entry, options())?;
        self.archive.write_all(values)?;
        self.tensors.push(Described {
            name: name.to_owned(),
            storage,
            shape: shape.to_vec(),
        });
        Ok(())
    }

    /// Writes the pickle and closes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<(), ZipError> {
        self.archive
            .start_file(format!("{ROOT}/data.pkl"), options())?;
        self.archive.write_all(&pickle(&self.tensors))?;
        let file = self.archive.finish()?;
        let file = file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        Ok(file.sync_all()?)
    }
}

/// An `OrderedDict` of tensors, in protocol 2.
fn pickle(tensors: &[Described]) -> Vec<u8> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        let count: u64 = tensor.shape.iter().product();
        text(&mut out, &tensor.name);
        out.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend_from_slice(format!("ctorch\n{}\n", tensor.storage).as_bytes());
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        number(&mut out, count);
        // The persistent id; its offset, shape and strides; no gradient and no hooks.
        out.extend_from_slice(b"tQK\x00");
        numbers(&mut out, &tensor.shape);
        let mut strides = vec![1; tensor.shape.len()];
        for at in (1..strides.len()).rev() {
            strides[at - 1] = strides[at] * tensor.shape[at];
        }
        numbers(&mut out, &strides);
        out.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend_from_slice(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// As a long integer of 8 bytes. No count of values has its highest bit, which is the sign.
fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(b"\x8a\x08");
    out.extend_from_slice(&number.to_le_bytes());
}

fn numbers(out: &mut Vec<u8>, all: &[u64]) {
    out.push(b'(');
    for it in all {
        number(out, *it);
    }
    out.push(b't');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::convert::convert;

    #[test]
    fn what_is_written_is_read_back_with_every_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pytorch_model.bin");
        let mut file = TorchFile::create(&path).unwrap();
        let halves: Vec<u8> = (0..12).collect();
        file.put("unet.a", "F16", &[2, 3], &halves).unwrap();
        let ids: Vec<u8> = (0..3_i64).flat_map(i64::to_le_bytes).collect();
        file.put("text.position_ids", "I64", &[1, 3], &ids).unwrap();
        file.put("scalar", "F32", &[], &1.5_f32.to_le_bytes())
            .unwrap();
        assert!(file.put("bad", "F8", &[1], &[0]).is_err());
        file.finish().unwrap();
        let out = folder.path().join("out.safetensors");
        let done = convert(&path, &out).unwrap();
        assert_eq!((done.tensors, done.ignored.len()), (3, 0));
        let bytes = std::fs::read(&out).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let shape = |name: &str| json[name]["shape"].to_string();
        assert_eq!(shape("unet.a"), "[2,3]");
        assert_eq!(shape("text.position_ids"), "[1,3]");
        assert_eq!(shape("scalar"), "[]");
        let expected = [&1.5_f32.to_le_bytes()[..], &ids, &halves].concat();
        assert_eq!(&bytes[8 + header..], expected);
    }
}
