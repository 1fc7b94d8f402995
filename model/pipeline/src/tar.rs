//! Writes files as a tar (POSIX ustar) and its index of offsets, in the form that
//! [`crate::images`] reads by range.

use proto::text::hex_sha256;
use serde::Serialize;
use std::collections::BTreeMap;

const BLOCK: usize = 512;

#[derive(Debug, Serialize)]
struct Entry {
    offset: usize,
    size: usize,
    sha256: String,
}

/// Files in the order in which they are added. Equal files give equal bytes.
#[derive(Debug, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    files: BTreeMap<String, Entry>,
}

impl Tar {
    /// A name has at most 99 bytes, and is of one file.
    pub(crate) fn add(&mut self, name: &str, content: &[u8]) {
        let mut header = [0; BLOCK];
        let mut put = |offset: usize, field: &[u8]| {
            header[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\0");
        // The checksum counts its own field as spaces.
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|it| u32::from(*it)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header);
        let entry = Entry {
            offset: self.bytes.len(),
            size: content.len(),
            sha256: hex_sha256(content),
        };
        self.bytes.extend(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        let before = self.files.insert(name.to_owned(), entry);
        assert!(before.is_none(), "{name} is added twice");
    }

    /// The bytes of the tar, and of its index.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<u8>) {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        let index = serde_json::json!({"filesize": self.bytes.len(), "files": self.files});
        (self.bytes, index.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_unpacks_it_and_the_index_says_where_files_are() {
        let mut tar = Tar::default();
        let long = vec![7; 1000];
        tar.add("1.png", b"first");
        tar.add("20.png", &long);
        let (bytes, index) = tar.finish();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, &bytes).unwrap();
        let mut unpack = Command::new("tar");
        unpack.arg("-xf").arg(&path).arg("-C").arg(folder.path());
        assert!(unpack.status().unwrap().success());
        assert_eq!(
            std::fs::read(folder.path().join("1.png")).unwrap(),
            b"first"
        );
        assert_eq!(std::fs::read(folder.path().join("20.png")).unwrap(), long);
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let offset = index["files"]["20.png"]["offset"].as_u64().unwrap();
        let offset = usize::try_from(offset).unwrap();
        assert_eq!(bytes[offset..offset + 1000], long);
        assert_eq!(index["filesize"], bytes.len());
    }
}
