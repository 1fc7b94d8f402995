//! The object store of `coordinator serve`, with every request counted and timed
//! ([`crate::measures`]). The time of a get ends when its answer begins.

use crate::measures::{Operation, stored};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use storage::StoreError;

/// As [`storage::open`].
pub(crate) fn open(url: &str) -> std::result::Result<(Arc<dyn ObjectStore>, Path), StoreError> {
    let (store, prefix) = storage::open(url)?;
    Ok((Arc::new(Measured(store)), prefix))
}

#[derive(Debug)]
struct Measured(Arc<dyn ObjectStore>);

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

async fn measured<T>(operation: Operation, request: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let answer = request.await;
    stored(operation, answer.as_ref().err(), begun.elapsed());
    answer
}

/// Each item counts as one request, with the time since the last one.
fn each<T: Send + 'static>(
    operation: Operation,
    items: BoxStream<'static, Result<T>>,
) -> BoxStream<'static, Result<T>> {
    let mut since = Instant::now();
    let count = move |item: Result<T>| {
        let took = std::mem::replace(&mut since, Instant::now()).elapsed();
        stored(operation, item.as_ref().err(), took);
        item
    };
    items.map(count).boxed()
}

#[tonic::async_trait]
impl ObjectStore for Measured {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        measured(Operation::Put, self.0.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        measured(
            Operation::Multipart,
            self.0.put_multipart_opts(location, options),
        )
        .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        measured(Operation::Get, self.0.get_opts(location, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        each(Operation::Delete, self.0.delete_stream(locations))
    }

    /// A listing counts as one request when it begins, and with every error.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        counted_list(self.0.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        counted_list(self.0.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        measured(Operation::List, self.0.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        measured(Operation::Copy, self.0.copy_opts(from, to, options)).await
    }
}

fn counted_list(
    items: BoxStream<'static, Result<ObjectMeta>>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let begun = Instant::now();
    let mut is_first = true;
    let count = move |item: Result<ObjectMeta>| {
        if is_first || item.is_err() {
            is_first = false;
            stored(Operation::List, item.as_ref().err(), begun.elapsed());
        }
        item
    };
    items.map(count).boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use object_store::{ObjectStoreExt as _, PutMode};

    #[tokio::test]
    async fn a_measured_store_does_what_the_store_does() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let (store, prefix) = open(&url).unwrap();
        let path = prefix.clone().join("a");
        let create = || PutOptions::from(PutMode::Create);
        store
            .put_opts(&path, PutPayload::from("one"), create())
            .await
            .unwrap();
        let again = store
            .put_opts(&path, PutPayload::from("two"), create())
            .await;
        assert!(matches!(
            again.unwrap_err(),
            object_store::Error::AlreadyExists { .. }
        ));
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes, "one");
        let listed: Vec<_> = store.list(Some(&prefix)).collect().await;
        assert_eq!(listed.len(), 1);
        store.delete(&path).await.unwrap();
        assert!(store.get(&path).await.is_err());
    }
}
