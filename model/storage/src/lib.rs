//! Opens the object storage that a URL names. This is the only place that turns `file:///…` and
//! `s3://…` into a store; data sets, weights, checkpoints and the coordinator's state all use it.
//! Folders of images are also read from web servers ([`open_to_read`]).
//! [`hash`] computes digests of stored objects, and [`probe`] finds out why a store cannot be used;
//! it alone writes an object, and deletes it. [`read`], [`regular`] and [`confined`] read files of
//! strangers within limits.
//!
//! S3 endpoint, region and credentials come from the usual environment variables: `AWS_ENDPOINT`,
//! `AWS_ALLOW_HTTP`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, … Conditional puts
//! (`PutMode::Create`) work with both schemes.

pub mod confined;
pub mod hash;
mod http;
pub mod listing;
pub mod probe;
pub mod read;
pub mod regular;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use url::Url;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{url:?} is not a URL ({reason}); write file:///absolute/folder or s3://bucket/folder")]
    NotAUrl { url: String, reason: String },
    #[error("{url:?} has the scheme {scheme:?}; only file:// and s3:// are supported")]
    Scheme { url: String, scheme: String },
    #[error("{url:?} does not name an absolute local folder; write file:///absolute/folder")]
    NotAFolder { url: String },
    #[error("cannot create the folder {} of {url:?}", folder.display())]
    Create {
        url: String,
        folder: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot open {url:?}")]
    Open {
        url: String,
        source: object_store::Error,
    },
}

/// The store of `url`, and the prefix inside it under which all objects of this URL are stored.
///
/// A `file://` folder is created if it is missing. Writes to it are synced to disk before they are
/// reported done, as with an object store. No request is sent to an `s3://` server here, so a wrong
/// bucket is detected at the first read or write.
///
/// # Errors
/// The URL is malformed, its scheme is not supported, or its local folder cannot be created.
pub fn open(url: &str) -> Result<(Arc<dyn ObjectStore>, Path), StoreError> {
    open_with(url, Patience::Outage)
}

/// As [`open`], for a folder that is only read: also one of a web server.
///
/// # Errors
/// As [`open`].
pub fn open_to_read(url: &str) -> Result<(Arc<dyn ObjectStore>, Path), StoreError> {
    let parsed = parse(url)?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return open(url);
    }
    let store = http::WebFolder::open(&parsed).map_err(|source| StoreError::Open {
        url: url.to_owned(),
        source,
    })?;
    Ok((Arc::new(store), Path::default()))
}

/// How long a request to a server is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Through a short outage of the server.
    Outage,
    /// Not at all: the first failure is the result.
    None,
}

fn open_with(url: &str, patience: Patience) -> Result<(Arc<dyn ObjectStore>, Path), StoreError> {
    let parsed = parse(url)?;
    match parsed.scheme() {
        "file" => open_folder(url, &parsed),
        "s3" => open_s3(url, &parsed, patience),
        scheme => Err(StoreError::Scheme {
            url: url.to_owned(),
            scheme: scheme.to_owned(),
        }),
    }
}

/// The local folder that a `file://` URL names; None for other schemes.
///
/// # Errors
/// The URL is malformed or not absolute.
pub fn local_folder(url: &str) -> Result<Option<PathBuf>, StoreError> {
    let parsed = parse(url)?;
    if parsed.scheme() != "file" {
        return Ok(None);
    }
    folder_path(url, &parsed).map(Some)
}

fn parse(url: &str) -> Result<Url, StoreError> {
    Url::parse(url).map_err(|e| StoreError::NotAUrl {
        url: url.to_owned(),
        reason: e.to_string(),
    })
}

fn folder_path(url: &str, parsed: &Url) -> Result<PathBuf, StoreError> {
    let folder = parsed.to_file_path().map_err(|()| StoreError::NotAFolder {
        url: url.to_owned(),
    })?;
    if !url.starts_with("file:///") && !url.starts_with("file://localhost/") {
        // `file:relative` parses as an absolute path, so writes would go to an unexpected folder.
        return Err(StoreError::NotAFolder {
            url: url.to_owned(),
        });
    }
    Ok(folder)
}

fn open_folder(url: &str, parsed: &Url) -> Result<(Arc<dyn ObjectStore>, Path), StoreError> {
    let folder = folder_path(url, parsed)?;
    std::fs::create_dir_all(&folder).map_err(|source| StoreError::Create {
        url: url.to_owned(),
        folder: folder.clone(),
        source,
    })?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|source| StoreError::Open {
            url: url.to_owned(),
            source,
        })?
        .with_fsync(true);
    Ok((Arc::new(store), Path::default()))
}

fn open_s3(
    url: &str,
    parsed: &Url,
    patience: Patience,
) -> Result<(Arc<dyn ObjectStore>, Path), StoreError> {
    let fail = |source| StoreError::Open {
        url: url.to_owned(),
        source,
    };
    install_tls();
    let client = AmazonS3ConfigKey::Client;
    let store = AmazonS3Builder::from_env()
        // The read timeout applies between chunks and the total timeout covers a large object. The
        // default total timeout is 30 seconds.
        .with_config(client(ClientConfigKey::ReadTimeout), "30 seconds")
        .with_config(client(ClientConfigKey::Timeout), "1 hour")
        .with_retry(match patience {
            Patience::Outage => retry_config(),
            Patience::None => RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            },
        })
        .with_url(url)
        .build()
        .map_err(fail)?;
    let prefix = Path::from_url_path(parsed.path()).map_err(|e| fail(e.into()))?;
    Ok((Arc::new(store), prefix))
}

/// Makes `ring` the TLS implementation of this process, once. The HTTP client is built without a
/// default, because that one (aws-lc) takes minutes to compile. For crates that build an HTTP
/// client of their own; it may be called more than once.
pub fn install_tls() {
    // An error means that there is one already.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

/// Retries for about half a minute, at most one second apart. With the default maximum back-off a
/// caller could resume up to 15 seconds after the server is back.
fn retry_config() -> RetryConfig {
    let backoff = BackoffConfig {
        max_backoff: Duration::from_secs(1),
        ..BackoffConfig::default()
    };
    RetryConfig {
        backoff,
        max_retries: 30,
        ..RetryConfig::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use object_store::{ObjectStoreExt, PutMode, PutPayload};

    /// Without a TLS implementation the client panics when it is built.
    #[test]
    fn https_clients_can_be_built() {
        install_tls();
        install_tls();
        reqwest::Client::builder().build().unwrap();
    }

    #[tokio::test]
    async fn a_local_folder_is_made_and_puts_are_conditional() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/a/b", dir.path().display());
        let (store, prefix) = open(&url).unwrap();
        let path = prefix.join("x");
        let put = |text: &'static str| {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move {
                store
                    .put_opts(
                        &path,
                        PutPayload::from_static(text.as_bytes()),
                        PutMode::Create.into(),
                    )
                    .await
            }
        };
        put("one").await.unwrap();
        assert!(matches!(
            put("two").await,
            Err(object_store::Error::AlreadyExists { .. })
        ));
        assert_eq!(
            store.get(&path).await.unwrap().bytes().await.unwrap(),
            "one"
        );
        assert_eq!(local_folder(&url).unwrap().unwrap(), dir.path().join("a/b"));
    }

    #[test]
    fn the_prefix_of_an_s3_url_is_its_path() {
        let (_, prefix) = open("s3://bucket/data/figures").unwrap();
        assert_eq!(prefix.as_ref(), "data/figures");
        assert_eq!(local_folder("s3://bucket/data").unwrap(), None);
    }

    #[test]
    fn wrong_urls_say_what_is_right() {
        let text = |url: &str| open(url).unwrap_err().to_string();
        assert!(text("data/figures").contains("file:///absolute/folder"));
        assert!(text("http://host/x").contains("only file:// and s3:// are supported"));
        assert!(text("file:relative").contains("absolute local folder"));
    }
}
