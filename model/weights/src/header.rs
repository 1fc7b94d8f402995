//! The header of a safetensors file, and what a file is that has none: a Git LFS pointer, a web
//! page, a pickle, or a download that was cut off. Reads the first bytes and the size only.

use std::collections::BTreeMap;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Deserialize;
use storage::read::note;

/// Longest header that is read. Stable Diffusion's has 150 KB.
pub(crate) const HEADER_BYTES_MAX: u64 = 8 << 20;
/// The first read, which contains most headers whole.
const FIRST_READ: u64 = 256 << 10;
/// Bytes of the header's length.
const LENGTH: u64 = 8;
/// How many bytes of an unknown file are quoted.
const QUOTED: usize = 16;

/// Names of the tensors, and what the file says about itself.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Tensor {
    /// First byte and end of its values, after the header.
    data_offsets: [u64; 2],
    #[serde(default)]
    pub(crate) shape: Vec<u64>,
}

impl Tensor {
    /// One whose place in the file is not known.
    pub(crate) fn of_shape(shape: Vec<u64>) -> Self {
        Self {
            data_offsets: [0; 2],
            shape,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error(transparent)]
    Store(#[from] object_store::Error),
    /// What the file is.
    #[error("{0}")]
    Malformed(String),
}

impl Header {
    /// Reads the header and compares it with the size of the file.
    ///
    /// # Errors
    /// The file is missing, is something else, or does not have the size that its header says.
    pub(crate) async fn read(store: &dyn ObjectStore, path: &Path) -> Result<Self, HeaderError> {
        note(path.as_ref());
        let size = store.head(path).await?.size;
        // An object store refuses an empty range.
        if size == 0 {
            return Err(HeaderError::Malformed("it is empty".to_owned()));
        }
        let first = store.get_range(path, 0..size.min(FIRST_READ)).await?;
        if let Some(what) = other_kind(&first, size) {
            return Err(HeaderError::Malformed(what));
        }
        let end = header_end(&first, size).map_err(HeaderError::Malformed)?;
        let rest = if end > first.len() as u64 {
            store.get_range(path, first.len() as u64..end).await?
        } else {
            bytes::Bytes::new()
        };
        let whole = [&first[..], &rest].concat();
        Self::parse(&whole[LENGTH as usize..end as usize], size - end)
            .map_err(HeaderError::Malformed)
    }

    /// `values` is the number of bytes after the header.
    fn parse(json: &[u8], values: u64) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(rename = "__metadata__", default)]
            metadata: BTreeMap<String, String>,
            #[serde(flatten)]
            tensors: BTreeMap<String, Tensor>,
        }
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|error| format!("its safetensors header is damaged: {error}"))?;
        let end = |tensor: &Tensor| tensor.data_offsets[1];
        let expected = raw.tensors.values().map(end).max().unwrap_or(0);
        let header = LENGTH + json.len() as u64;
        if values < expected {
            return Err(format!(
                "it was cut off: it has {} bytes of {}; copy or download it again",
                header + values,
                header.saturating_add(expected)
            ));
        }
        if values > expected {
            return Err(format!(
                "it has {} bytes after its last tensor, which safetensors files never have",
                values - expected
            ));
        }
        Ok(Self {
            tensors: raw.tensors,
            metadata: raw.metadata,
        })
    }
}

/// Where the header ends, from the first bytes of a file.
fn header_end(first: &[u8], size: u64) -> Result<u64, String> {
    let Some(length) = first.first_chunk::<{ LENGTH as usize }>() else {
        let quoted = String::from_utf8_lossy(first);
        return Err(format!(
            "it is no safetensors file: it has {size} bytes, {quoted:?}"
        ));
    };
    let length = u64::from_le_bytes(*length);
    // The header is a JSON object, so that only its first byte tells it from any other file.
    if first.get(LENGTH as usize) == Some(&b'{') && length > HEADER_BYTES_MAX {
        return Err(format!(
            "its safetensors header would be {length} bytes long; at most {HEADER_BYTES_MAX} are \
             read"
        ));
    }
    if length > HEADER_BYTES_MAX || first.get(LENGTH as usize).is_some_and(|it| *it != b'{') {
        let quoted = String::from_utf8_lossy(&first[..first.len().min(QUOTED)]);
        return Err(format!(
            "it is no safetensors file: it begins with {quoted:?}"
        ));
    }
    let end = LENGTH + length;
    if end > size {
        return Err(format!(
            "it was cut off: it has {size} bytes, and its header alone has {end}; copy or \
             download it again"
        ));
    }
    Ok(end)
}

/// Recognizes what people have in place of weights.
pub(crate) fn other_kind(first: &[u8], size: u64) -> Option<String> {
    let starts = |with: &[u8]| first.starts_with(with);
    if starts(b"version https://git-lfs.github.com/spec/") {
        let text = String::from_utf8_lossy(first);
        let stated = text.lines().find_map(|line| line.strip_prefix("size "));
        let stated = stated.map_or(String::new(), |it| format!(" of {it} bytes"));
        return Some(format!(
            "it is a Git LFS pointer, {size} bytes in place of the file{stated}; fetch it with \
             `git lfs pull`"
        ));
    }
    if starts(b"# xet version") {
        return Some(format!(
            "it is a Xet pointer, {size} bytes in place of the file; download it with the `hf` \
             command"
        ));
    }
    let text = String::from_utf8_lossy(&first[..first.len().min(256)]).to_lowercase();
    let text = text.trim_start();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return Some("it is a web page, perhaps of a failed download".to_owned());
    }
    if starts(b"PK\x03\x04") {
        return Some(
            "it is a PyTorch pickle (a ZIP file), not safetensors; give it one of the names that \
             torch.save gives (.bin, .pth, .pt or .ckpt), under which it is read"
                .to_owned(),
        );
    }
    if starts(b"\x80\x02") {
        return Some(
            "it is a pickle of a torch before 1.6, which is not read; load it and save it again \
             with a newer one"
                .to_owned(),
        );
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use object_store::PutPayload;
    use object_store::memory::InMemory;

    /// A safetensors file of tensors of one float each.
    pub(crate) fn safetensors_file(names: &[&str]) -> Vec<u8> {
        safetensors_with(names, "")
    }

    /// With more JSON at the start of the header, such as `"__metadata__":{},`.
    pub(crate) fn safetensors_with(names: &[&str], first: &str) -> Vec<u8> {
        let entry = |(n, name): (usize, &&str)| {
            let (start, end) = (4 * n, 4 * n + 4);
            format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{start},{end}]}}"#)
        };
        let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
        let header = format!("{{{first}{}}}", entries.join(","));
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &vec![0; 4 * names.len()]].concat()
    }

    async fn read(bytes: &[u8]) -> Result<Header, String> {
        let store = InMemory::new();
        let path = Path::from("x");
        let put = store.put(&path, PutPayload::from(bytes.to_vec()));
        put.await.unwrap();
        let header = Header::read(&store, &path).await;
        header.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_whole_file_is_read_and_every_shorter_or_longer_one_is_refused() {
        let file = safetensors_with(&["a", "b"], r#""__metadata__":{"k":"v"},"#);
        let header = read(&file).await.unwrap();
        assert!(header.tensors.keys().eq(["a", "b"]));
        assert_eq!(header.metadata["k"], "v");
        for length in 0..file.len() {
            let error = read(&file[..length]).await.unwrap_err();
            let expected = match length {
                0 => "it is empty",
                1..8 => "it is no safetensors file",
                _ => "it was cut off",
            };
            assert!(error.starts_with(expected), "{length}: {error}");
        }
        let longer = [&file[..], b"x"].concat();
        let error = read(&longer).await.unwrap_err();
        assert!(error.starts_with("it has 1 bytes after"), "{error}");
    }

    #[tokio::test]
    async fn a_header_longer_than_the_first_read_is_read_whole() {
        let names: Vec<String> = (0..10_000).map(|n| format!("tensor.number.{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let header = read(&safetensors_file(&names)).await.unwrap();
        assert_eq!(header.tensors.len(), 10_000);
    }

    #[tokio::test]
    async fn what_is_no_safetensors_file_is_named() {
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{:064}\nsize 4265146304\n",
            7
        );
        for (bytes, expected) in [
            (
                pointer.as_bytes(),
                "it is a Git LFS pointer, 135 bytes in place of the file of 4265146304 bytes; ",
            ),
            (b"# xet version 0\n", "it is a Xet pointer"),
            (b"\n<!DOCTYPE html><html>", "it is a web page"),
            (b"PK\x03\x04\0\0\0\0", "it is a PyTorch pickle"),
            (b"\x80\x02}q\0.\0\0\0", "it is a pickle"),
            (
                b"GGUF\x03\0\0\0\0\0\0\0",
                "it is no safetensors file: it begins with \"GGUF",
            ),
            (
                b"\x10\0\0\0\0\0\0\0{\"a\": 1}        ",
                "its safetensors header is damaged",
            ),
        ] {
            let error = read(bytes).await.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
