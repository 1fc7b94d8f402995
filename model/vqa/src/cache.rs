//! Answers that are known already, as objects in a folder or bucket: one for each combination of
//! model, question, image bytes and options. Nothing else identifies an answer, so endpoints may
//! change, and evaluations and data sets share one cache.

use crate::client::Options;
use crate::counts::Usage;
use crate::protocol::Reply;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use storage::StoreError;
use storage::read::read_bounded;

/// Largest entry that is read.
const ENTRY_BYTES_MAX: u64 = 1 << 20;

/// An answer as it is stored, with what it belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) model: String,
    /// The name that the server gave its model.
    pub(crate) server_model: Option<String>,
    pub(crate) question: String,
    pub(crate) image_sha256: String,
    pub(crate) reply: Reply,
    pub(crate) truncated: bool,
    pub(crate) usage: Usage,
}

/// A store of answers.
#[derive(Debug, Clone)]
pub struct Cache {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Cache {
    /// Opens `file:///folder` or `s3://bucket/folder`.
    ///
    /// # Errors
    /// The URL is malformed or its folder cannot be created.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let (store, prefix) = storage::open(url)?;
        Ok(Self { store, prefix })
    }

    /// A cache below a prefix of an opened store.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix }
    }

    /// 256 folders, so that none gets too large.
    fn path(&self, key: &str) -> Path {
        let folder = self.prefix.clone().join(&key[..2]);
        folder.join(format!("{key}.json"))
    }

    /// None: there is no such entry. Err: it cannot be read.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>, ()> {
        match read_bounded(&*self.store, &self.path(key), ENTRY_BYTES_MAX).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(drop),
            Err(error) if error.is_not_found() => Ok(None),
            Err(_) => Err(()),
        }
    }

    /// Two askers of the same question write one after the other; each entry is whole.
    pub(crate) async fn put(&self, key: &str, entry: &Entry) -> Result<(), ()> {
        let text = serde_json::to_vec(entry).expect("an entry is strings and numbers");
        let path = self.path(key);
        let put = self.store.put(&path, PutPayload::from(text));
        put.await.map(drop).map_err(drop)
    }
}

/// SHA-256, in hexadecimal digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes);
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key of an answer: a digest of all that it depends on. `image` is the digest of its bytes.
pub(crate) fn key(options: &Options, question: &str, image: &str) -> String {
    let all = serde_json::json!({
        "version": 1,
        "model": options.model,
        "question": question,
        "image": image,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "extra": options.extra,
    });
    digest(all.to_string().as_bytes())
}
