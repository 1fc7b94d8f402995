//! Reads of files that strangers wrote: never more bytes than a stated limit, and with a note of
//! which file is read, so that a process that dies of it can be explained.

use std::sync::OnceLock;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("it has {size} bytes; at most {max} are read")]
    TooLarge { size: u64, max: u64 },
    // With the cause in its own text: readers of error chains skip a cause they have seen.
    #[error("{0}")]
    Store(#[source] object_store::Error),
}

impl ReadError {
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(object_store::Error::NotFound { .. }))
    }
}

/// A whole object of at most `max` bytes. A larger one is refused by its size, unread.
///
/// # Errors
/// The object is larger, or cannot be read.
pub async fn read_bounded(
    store: &dyn ObjectStore,
    path: &Path,
    max: u64,
) -> Result<Bytes, ReadError> {
    note(path.as_ref());
    let found = store.get(path).await.map_err(ReadError::Store)?;
    let size = found.meta.size;
    if max < size {
        return Err(ReadError::TooLarge { size, max });
    }
    found.bytes().await.map_err(ReadError::Store)
}

static OBSERVER: OnceLock<fn(&str)> = OnceLock::new();

/// From now on `observer` is called with the path of each file before it is read. For a process
/// whose parent must know what killed it; only the first call has an effect.
pub fn observe(observer: fn(&str)) {
    OBSERVER.get_or_init(|| observer);
}

/// Tells the observer, if there is one, that this file is about to be read.
pub fn note(path: &str) {
    if let Some(observer) = OBSERVER.get() {
        observer(path);
    }
}

/// What identifies the content of an object without reading it: its entity tag, or size and times.
/// None if there is no such object or it cannot be looked up.
///
/// Nothing is opened: a named pipe in place of a file would block its reader.
pub async fn stamp(url: &str, name: &str) -> Option<String> {
    if let Some(folder) = crate::local_folder(url).ok()? {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(folder.join(name)).ok()?;
        let (inode, size) = (found.ino(), found.size());
        let (changed, nanoseconds) = (found.ctime(), found.ctime_nsec());
        return Some(format!("{inode} {size} {changed}.{nanoseconds}"));
    }
    let (store, prefix) = crate::open(url).ok()?;
    let path = name.split('/').fold(prefix, |path, part| path.join(part));
    let found = store.head(&path).await.ok()?;
    let modified = found.last_modified.timestamp_millis();
    Some(match found.e_tag {
        Some(tag) => format!("{tag} {}", found.size),
        None => format!("{modified} {}", found.size),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_file_above_the_limit_is_refused_by_its_size_alone() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let (store, prefix) = crate::open(&url).unwrap();
        // Sparse: reading it would take 8 TiB.
        let file = std::fs::File::create(dir.path().join("giant")).unwrap();
        file.set_len(8 << 40).unwrap();
        std::fs::write(dir.path().join("small"), b"12345").unwrap();
        let read = async |name: &str, max| {
            read_bounded(&*store, &prefix.clone().join(name), max)
                .await
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            read("giant", 1000).await.unwrap_err(),
            "it has 8796093022208 bytes; at most 1000 are read"
        );
        assert_eq!(read("small", 5).await.unwrap(), "12345");
        assert!(read("small", 4).await.is_err());
        let gone = read_bounded(&*store, &prefix.clone().join("gone"), 4).await;
        assert!(gone.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn a_stamp_changes_with_the_file_and_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let write = |text: &str| std::fs::write(dir.path().join("x"), text).unwrap();
        assert_eq!(stamp(&url, "x").await, None);
        write("one");
        let first = stamp(&url, "x").await.unwrap();
        assert_eq!(stamp(&url, "x").await.unwrap(), first);
        write("four");
        assert_ne!(stamp(&url, "x").await.unwrap(), first);
        // Without a writer, opening this would never return.
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert!(stamp(&url, "pipe").await.is_some());
    }
}
