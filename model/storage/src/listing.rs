//! Lists files with what tells that they have changed.

use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::{StoreError, local_folder, open_to_read};
use futures::TryStreamExt;

/// A file below a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Relative to the folder.
    pub path: String,
    pub size: u64,
    /// The store's entity tag; of a local file, its inode, time and size.
    pub tag: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{url}: there is no such file or folder")]
    Nothing { url: String },
    #[error("{url}: cannot be listed")]
    List {
        url: String,
        source: object_store::Error,
    },
}

/// The files of a URL, which names a folder or one file: the URL of the folder, and the files in
/// the order of their paths.
///
/// # Errors
/// There is none, or the store cannot be read.
pub async fn files(url: &str) -> Result<(String, Vec<Listed>), ListError> {
    let nothing = || ListError::Nothing {
        url: url.to_owned(),
    };
    let failed = |source| ListError::List {
        url: url.to_owned(),
        source,
    };
    let trimmed = url.trim_end_matches('/');
    // Opening a local folder that does not exist would create it.
    if let Some(local) = local_folder(trimmed)? {
        if local.is_file() {
            return file(trimmed).await?.ok_or_else(nothing);
        }
        if !local.is_dir() {
            return Err(nothing());
        }
    } else if let Some(found) = file(trimmed).await? {
        return Ok(found);
    }
    let (store, prefix) = open_to_read(trimmed)?;
    let listed = store.list(Some(&prefix)).try_collect::<Vec<_>>().await;
    let mut found = Vec::new();
    for meta in listed.map_err(failed)? {
        let path = match prefix.as_ref().is_empty() {
            true => meta.location.as_ref(),
            false => {
                let path = meta.location.as_ref().strip_prefix(prefix.as_ref());
                path.unwrap_or_default().trim_start_matches('/')
            }
        };
        found.push(Listed {
            path: path.to_owned(),
            size: meta.size,
            tag: meta.e_tag.unwrap_or_default(),
        });
    }
    found.sort();
    if found.is_empty() {
        return Err(nothing());
    }
    Ok((trimmed.to_owned(), found))
}

/// The file that a URL names, with the URL of its folder.
async fn file(url: &str) -> Result<Option<(String, Vec<Listed>)>, ListError> {
    let Some((folder, name)) = url.rsplit_once('/') else {
        return Ok(None);
    };
    if folder.ends_with('/') || name.is_empty() {
        return Ok(None);
    }
    let (store, prefix) = open_to_read(folder)?;
    let name = url::Url::parse(url).ok().map_or(name.to_owned(), |parsed| {
        let path = Path::from_url_path(parsed.path()).unwrap_or_default();
        path.filename().unwrap_or(name).to_owned()
    });
    match store.head(&prefix.join(name.as_str())).await {
        Ok(meta) => {
            let listed = Listed {
                path: name,
                size: meta.size,
                tag: meta.e_tag.unwrap_or_default(),
            };
            Ok(Some((folder.to_owned(), vec![listed])))
        }
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(source) => Err(ListError::List {
            url: url.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_folder_or_one_file_is_listed_and_a_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/x y.json"), "12").unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        let url = |path: &str| format!("file://{}/{path}", dir.path().display());
        let (folder, found) = files(&url("")).await.unwrap();
        assert_eq!(folder, url("").trim_end_matches('/'));
        let names: Vec<_> = found.iter().map(|it| (it.path.as_str(), it.size)).collect();
        assert_eq!(names, [("a", 1), ("b/x y.json", 2)]);
        let (folder, one) = files(&url("b/x%20y.json")).await.unwrap();
        assert_eq!((folder, one[0].path.as_str()), (url("b"), "x y.json"));
        std::fs::write(dir.path().join("b/x y.json"), "123").unwrap();
        let (_, changed) = files(&url("b")).await.unwrap();
        assert_ne!(changed[0].tag, one[0].tag);
        let missing = files(&url("c")).await.unwrap_err().to_string();
        assert!(
            missing.ends_with("/c: there is no such file or folder"),
            "{missing}"
        );
        assert!(!dir.path().join("c").exists());
    }
}
