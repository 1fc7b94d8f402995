//! The names and shapes of the tensors in a file of `torch.save` that lies in an object store.
//! Reads the archive's directory and its pickle, and no tensor.

use crate::convert::{ArchiveError, describe};
use crate::header::{Header, HeaderError, Tensor, other_kind};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use storage::read::note;
use zip::ZipArchive;

/// The unit of reading.
const CHUNK: u64 = 256 << 10;
/// Most chunks that one request asks for.
const CHUNKS_MAX: u64 = 64;
/// Most bytes that are read of a file: a pickle, and a directory of as many bytes.
const BYTES_MAX: u64 = 2 * crate::pickle::PICKLE_BYTES_MAX as u64;

/// Reads the names and shapes.
///
/// # Errors
/// The file is missing, is something else, or contains anything but weights.
pub(crate) async fn header(store: &dyn ObjectStore, path: &Path) -> Result<Header, HeaderError> {
    note(path.as_ref());
    let size = store.head(path).await?.size;
    if size == 0 {
        return Err(HeaderError::Malformed("it is empty".to_owned()));
    }
    let mut known = BTreeMap::new();
    // Small files whole, of others the end, where the directory is. Each further request is twice
    // as long, so that a long pickle is not parsed for each chunk of it.
    let (mut wanted, mut count) = (size.saturating_sub(1) / CHUNK, 1);
    loop {
        let (start, end) = (wanted * CHUNK, size.min((wanted + count) * CHUNK));
        let bytes = store.get_range(path, start..end).await?;
        for (n, at) in (0..bytes.len()).step_by(CHUNK as usize).enumerate() {
            let end = bytes.len().min(at + CHUNK as usize);
            known.insert(wanted + n as u64, bytes.slice(at..end));
        }
        if known.len() as u64 * CHUNK > BYTES_MAX {
            let reason = format!("its directory and pickle have more than {BYTES_MAX} bytes");
            return Err(HeaderError::Malformed(reason));
        }
        match attempt(&known, size) {
            (_, Some(missing)) => {
                (wanted, count) = (missing, (2 * count).min(CHUNKS_MAX));
            }
            (found, None) => return found.map_err(|error| malformed(&error, &known, size)),
        }
    }
}

/// Reads as far as the known chunks go; also the chunk that was missing.
fn attempt(known: &BTreeMap<u64, Bytes>, size: u64) -> (Result<Header, ArchiveError>, Option<u64>) {
    let mut missing = None;
    let reader = Window {
        known,
        size,
        at: 0,
        missing: &mut missing,
    };
    let found = ZipArchive::new(reader)
        .map_err(ArchiveError::from)
        .and_then(|mut archive| describe(&mut archive))
        .map(|(_, found)| {
            let tensors = found.tensors.into_iter();
            let tensors = tensors.map(|(name, it)| (name, Tensor::of_shape(it.shape)));
            Header {
                tensors: tensors.collect(),
                metadata: BTreeMap::new(),
            }
        });
    (found, missing)
}

fn malformed(error: &ArchiveError, known: &BTreeMap<u64, Bytes>, size: u64) -> HeaderError {
    let first = known.get(&0).map_or(&[][..], |it| &it[..]);
    let other = Some(first).filter(|it| !it.starts_with(b"PK"));
    let other = other.and_then(|first| other_kind(first, size));
    HeaderError::Malformed(other.unwrap_or_else(|| error.to_string()))
}

/// A file of which some chunks are known.
struct Window<'a> {
    known: &'a BTreeMap<u64, Bytes>,
    size: u64,
    at: u64,
    missing: &'a mut Option<u64>,
}

impl Read for Window<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size {
            return Ok(0);
        }
        let chunk = self.at / CHUNK;
        let Some(bytes) = self.known.get(&chunk) else {
            self.missing.get_or_insert(chunk);
            return Err(io::Error::other("this part is not known yet"));
        };
        let rest = &bytes[(self.at % CHUNK) as usize..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::convert::tests::{archive_with, pickle};
    use object_store::memory::InMemory;

    async fn header_of(bytes: Vec<u8>) -> Result<Header, String> {
        let (store, path) = (InMemory::new(), Path::from("a.bin"));
        store.put(&path, bytes.into()).await.unwrap();
        header(&store, &path).await.map_err(|it| it.to_string())
    }

    /// `torch.save` writes the pickle first; here it is between two files that are not read.
    #[tokio::test]
    async fn names_and_shapes_are_read_without_the_tensors() {
        let large = vec![7; 3 * CHUNK as usize + 5];
        let file = archive_with(&[
            ("m/data/1", &large),
            ("m/data.pkl", &pickle("image_proj.norm.bias")),
            ("m/data/0", &[1, 2, 3, 4]),
            ("m/data/2", &large),
        ]);
        let found = header_of(file).await.unwrap();
        assert_eq!(found.tensors["image_proj.norm.bias"].shape, [2]);
        assert_eq!(found.tensors.len(), 1);
    }

    #[tokio::test]
    async fn what_is_no_archive_of_weights_is_named() {
        let whole = archive_with(&[("m/data.pkl", &pickle("a")), ("m/data/0", &[1, 2, 3, 4])]);
        for length in 0..whole.len() {
            assert!(
                header_of(whole[..length].to_vec()).await.is_err(),
                "{length}"
            );
        }
        let attack = archive_with(&[("m/data.pkl", b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")]);
        for (bytes, expected) in [
            (&b""[..], "it is empty"),
            (b"\x80\x02}.", "it is a pickle of a torch before 1.6"),
            (b"<html>", "it is a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\nsize 7\n",
                "it is a Git LFS",
            ),
            (b"GGUF", "it is no archive of torch.save"),
            (&attack, "it refers to os.system"),
        ] {
            let error = header_of(bytes.to_vec()).await.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
