//! Converts a file that `torch.save` wrote to safetensors, once, and records both SHA-256 beside
//! the result. The pickle in it is read by [`crate::pickle`]; nothing of Python runs.

use crate::pickle::{self, PickleError, Pickled, PickledTensor};
use proto::public::names::{foreign, other_model};
use proto::text::hex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use zip::ZipArchive;
use zip::result::ZipError;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {source}", path.display())]
    Archive { path: PathBuf, source: ArchiveError },
    #[error("{} is {found}, which is not supported", path.display())]
    OtherModel { path: PathBuf, found: String },
}

/// Why a file is not read. The text follows its name.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it is no archive of torch.save (torch 1.6 or newer): {0}")]
    NoArchive(String),
    #[error(transparent)]
    Pickle(#[from] PickleError),
    #[error("it holds no tensors")]
    Empty,
    #[error("tensor {name}: {reason}")]
    Tensor { name: String, reason: String },
}

impl From<ZipError> for ArchiveError {
    fn from(error: ZipError) -> Self {
        Self::NoArchive(error.to_string())
    }
}

/// What a conversion did; written beside its result as `<result>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversion {
    /// Name of the file that was read, and its SHA-256.
    pub source: String,
    pub source_sha256: String,
    /// SHA-256 of the result.
    pub sha256: String,
    pub tensors: usize,
    /// Values that are no tensors, which the result does not have.
    pub ignored: Vec<String>,
}

/// The record beside a result.
#[must_use]
pub fn record_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

/// Converts `source` to `out`, unless the record beside `out` shows that this was done.
///
/// # Errors
/// A file that is no archive of `torch.save`, a pickle with anything but weights, the weights of
/// another model, or a disk that fails. `out` is written whole or not at all.
pub fn convert(source: &Path, out: &Path) -> Result<Conversion, ConvertError> {
    let source_sha256 = sha256(source)?;
    if let Some(done) = recorded(out)
        && done.source_sha256 == source_sha256
        && out.is_file()
        && sha256(out)? == done.sha256
    {
        return Ok(done);
    }
    let read = |error: std::io::Error| ConvertError::Read {
        path: source.to_owned(),
        source: error,
    };
    let file = File::open(source).map_err(read)?;
    let refused = |error: ArchiveError| ConvertError::Archive {
        path: source.to_owned(),
        source: error,
    };
    let mut archive = ZipArchive::new(file).map_err(|error| refused(error.into()))?;
    let (root, found) = describe(&mut archive).map_err(refused)?;
    let shapes = found.tensors.iter();
    let shapes = shapes.map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
    let version = foreign(found.tensors.keys().map(String::as_str));
    let version = version.map(|model| format!("a file of {model}"));
    if let Some(other) = version.or_else(|| other_model(shapes)) {
        return Err(ConvertError::OtherModel {
            path: source.to_owned(),
            found: other,
        });
    }
    let partial = out.with_extension("partial");
    let written = write(source, &mut archive, &root, &found.tensors, &partial);
    written.and_then(|()| {
        let conversion = Conversion {
            source: source
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            source_sha256,
            sha256: sha256(&partial)?,
            tensors: found.tensors.len(),
            ignored: found.ignored,
        };
        let failed = |error: std::io::Error| ConvertError::Write {
            path: out.to_owned(),
            source: error,
        };
        std::fs::rename(&partial, out).map_err(failed)?;
        let json = serde_json::to_vec_pretty(&conversion).map_err(|error| failed(error.into()))?;
        std::fs::write(record_path(out), json).map_err(failed)?;
        Ok(conversion)
    })
}

fn recorded(out: &Path) -> Option<Conversion> {
    let text = std::fs::read(record_path(out)).ok()?;
    serde_json::from_slice(&text).ok()
}

fn sha256(path: &Path) -> Result<String, ConvertError> {
    let digest = storage::hash::of_file(path).map_err(|source| ConvertError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(hex(&digest))
}

/// The folder of the archive's entries, and its tensors.
///
/// # Errors
/// It is no archive of `torch.save`, or holds something else than weights.
pub(crate) fn describe<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
) -> Result<(String, Pickled), ArchiveError> {
    let refused = |reason: &str| ArchiveError::NoArchive(reason.to_owned());
    let names = archive.file_names().map(str::to_owned);
    let root = names.into_iter().find_map(|name| {
        let root = name.strip_suffix("data.pkl")?;
        (root.ends_with('/') && root.matches('/').count() == 1).then(|| root.to_owned())
    });
    let root = root.ok_or_else(|| refused("it has no data.pkl"))?;
    let byteorder = format!("{root}byteorder");
    if archive.index_for_name(&byteorder).is_some() {
        let mut order = archive.by_name(&byteorder)?;
        let mut text = String::new();
        let read = order.by_ref().take(16).read_to_string(&mut text);
        if read.is_err() || text.trim() != "little" {
            return Err(refused("its numbers are not little-endian"));
        }
    }
    let mut entry = archive.by_name(&format!("{root}data.pkl"))?;
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that there are more.
    let limit = pickle::PICKLE_BYTES_MAX as u64 + 1;
    let read = entry.by_ref().take(limit).read_to_end(&mut bytes);
    read.map_err(|error| refused(&error.to_string()))?;
    drop(entry);
    let found = pickle::read(&bytes)?;
    if found.tensors.is_empty() {
        return Err(ArchiveError::Empty);
    }
    let has = |tensor: &PickledTensor| {
        let entry = format!("{root}data/{}", tensor.storage);
        tensor.count() == 0 || archive.index_for_name(&entry).is_some()
    };
    if let Some((name, _)) = found.tensors.iter().find(|(_, tensor)| !has(tensor)) {
        return Err(ArchiveError::Tensor {
            name: name.clone(),
            reason: "the archive does not have its values".to_owned(),
        });
    }
    Ok((root, found))
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'a str,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

/// Writes the tensors in the order of their names.
fn write(
    source: &Path,
    archive: &mut ZipArchive<File>,
    root: &str,
    tensors: &BTreeMap<String, PickledTensor>,
    out: &Path,
) -> Result<(), ConvertError> {
    let failed = |error: std::io::Error| ConvertError::Write {
        path: out.to_owned(),
        source: error,
    };
    let mut end = 0;
    let entries = tensors.iter().map(|(name, tensor)| {
        let begin = end;
        end += tensor.count() * tensor.dtype.size;
        let entry = Entry {
            dtype: tensor.dtype.name,
            shape: &tensor.shape,
            data_offsets: [begin, end],
        };
        (name.as_str(), entry)
    });
    let entries: BTreeMap<&str, Entry<'_>> = entries.collect();
    let mut header = serde_json::to_vec(&entries).map_err(|error| failed(error.into()))?;
    // The values begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(out).map_err(failed)?;
    let mut file = BufWriter::new(file);
    let length = header.len() as u64;
    file.write_all(&length.to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for (name, tensor) in tensors {
        copy(source, archive, root, (name, tensor), &mut file)?;
    }
    let file = file
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}

/// Copies the values of one tensor.
fn copy(
    source: &Path,
    archive: &mut ZipArchive<File>,
    root: &str,
    (name, tensor): (&str, &PickledTensor),
    out: &mut impl Write,
) -> Result<(), ConvertError> {
    let damaged = |reason: String| ConvertError::Archive {
        path: source.to_owned(),
        source: ArchiveError::Tensor {
            name: name.to_owned(),
            reason,
        },
    };
    if tensor.count() == 0 {
        return Ok(());
    }
    let entry = format!("{root}data/{}", tensor.storage);
    let mut entry = archive
        .by_name_seek(&entry)
        .map_err(|error| damaged(error.to_string()))?;
    let size = tensor.dtype.size;
    let failed = |error: std::io::Error| damaged(error.to_string());
    if tensor.is_contiguous() {
        let start = tensor.offset * size;
        entry.seek(SeekFrom::Start(start)).map_err(failed)?;
        let bytes = tensor.count() * size;
        let mut rest = entry.take(bytes);
        let mut buffer = vec![0; CHUNK];
        let mut copied = 0;
        loop {
            let count = rest.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count]).map_err(failed)?;
            copied += count as u64;
        }
        if copied != bytes {
            return Err(damaged(format!("{copied} of its {bytes} bytes are there")));
        }
        return Ok(());
    }
    let mut value = vec![0; size as usize];
    for position in tensor.positions() {
        let start = SeekFrom::Start(position * size);
        entry.seek(start).map_err(failed)?;
        entry.read_exact(&mut value).map_err(failed)?;
        out.write_all(&value).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    /// An archive of these entries, not compressed.
    pub(crate) fn archive_with(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let stored =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in entries {
            file.start_file(*name, stored).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.finish().unwrap().into_inner()
    }

    /// An archive as `torch.save` writes it: a pickle and two halves of storage 0.
    fn archive(path: &Path, pickle: &[u8]) {
        let bytes = archive_with(&[("m/data.pkl", pickle), ("m/data/0", &[1, 2, 3, 4])]);
        std::fs::write(path, bytes).unwrap();
    }

    /// A dictionary with one tensor of this name, of two halves.
    pub(crate) fn pickle(name: &str) -> Vec<u8> {
        let mut bytes = b"\x80\x02}X".to_vec();
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage");
        bytes.extend_from_slice(
            b"ctorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ",
        );
        bytes.extend_from_slice(b"K\x00K\x02\x85K\x01\x85\x89}tRs.");
        bytes
    }

    #[test]
    fn a_file_is_converted_once_and_both_digests_are_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (
            folder.path().join("a.bin"),
            folder.path().join("a.safetensors"),
        );
        archive(&source, &pickle("image_proj.norm.bias"));
        let done = convert(&source, &out).unwrap();
        assert_eq!((done.tensors, done.ignored.len()), (1, 0));
        assert_eq!(done.source_sha256, sha256(&source).unwrap());
        let bytes = std::fs::read(&out).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = std::str::from_utf8(&bytes[8..8 + header]).unwrap();
        let expected =
            r#"{"image_proj.norm.bias":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
        assert_eq!(text.trim_end(), expected);
        assert_eq!(&bytes[8 + header..], [1, 2, 3, 4]);
        assert_eq!(header % 8, 0);
        // The second time nothing is written; a damaged result is written again.
        let written = std::fs::metadata(&out).unwrap().modified().unwrap();
        assert_eq!(convert(&source, &out).unwrap(), done);
        assert_eq!(
            std::fs::metadata(&out).unwrap().modified().unwrap(),
            written
        );
        std::fs::write(&out, b"damaged").unwrap();
        assert_eq!(convert(&source, &out).unwrap(), done);
        assert_eq!(std::fs::read(&out).unwrap(), bytes);
    }

    #[test]
    fn what_is_no_weights_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (
            folder.path().join("a.bin"),
            folder.path().join("a.safetensors"),
        );
        let refusal = || {
            let error = convert(&source, &out).unwrap_err().to_string();
            assert!(!out.exists() && !record_path(&out).exists());
            error
        };
        std::fs::write(&source, b"\x80\x02}.").unwrap();
        assert!(refusal().contains("is no archive of torch.save"));
        archive(&source, b"cos\nsystem\n(X\x04\x00\x00\x00truetR.");
        assert!(refusal().contains("a.bin: it refers to os.system"));
        archive(&source, b"\x80\x02}.");
        assert!(refusal().contains("holds no tensors"));
        archive(&source, &pickle("image_proj.latents"));
        assert!(refusal().contains("is an IP-Adapter of the kind \"plus\""));
        archive(&source, &pickle("lora_controlnet"));
        assert!(refusal().contains("is a Control-LoRA"));
    }
}
