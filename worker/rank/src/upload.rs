//! Atomic upload of an object to the store. Large objects are uploaded in parts, each a request
//! with its own timeout and retries: a shard can have gigabytes, too much for one request. An
//! unfinished upload is aborted, best effort, so that its parts are deleted. Called by
//! [`crate::checkpoint`].

use crate::deadline::Deadlines;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, Result};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Size of one part. Eight ranks can upload four parts each over 100 Mbit/s within the timeout of
/// one request.
const PART_BYTES: usize = 8 << 20;
/// Concurrent part uploads.
const PARTS_IN_FLIGHT: usize = 4;
/// The limit of S3.
const PARTS_MAX: usize = 10_000;

pub(crate) async fn put(
    store: &dyn ObjectStore,
    path: &Path,
    bytes: Bytes,
    deadlines: Deadlines,
) -> Result<()> {
    put_in_parts(PART_BYTES, store, path, bytes, deadlines).await
}

async fn put_in_parts(
    part_bytes: usize,
    store: &dyn ObjectStore,
    path: &Path,
    bytes: Bytes,
    deadlines: Deadlines,
) -> Result<()> {
    if bytes.len() <= part_bytes {
        let _ = store.put(path, bytes.into()).await?;
        return Ok(());
    }
    let target = store.put_multipart(path).await?;
    Upload::new(target, path, deadlines)
        .send(part_bytes, &bytes)
        .await
}

/// A multipart upload in progress. If it is dropped before it completes (on an error or a
/// cancellation), it is aborted.
#[derive(Debug)]
struct Upload {
    /// None once the upload is complete.
    target: Option<Box<dyn MultipartUpload>>,
    path: Path,
    parts: JoinSet<Result<()>>,
    deadlines: Deadlines,
}

impl Upload {
    fn new(target: Box<dyn MultipartUpload>, path: &Path, deadlines: Deadlines) -> Self {
        Self {
            target: Some(target),
            path: path.clone(),
            parts: JoinSet::new(),
            deadlines,
        }
    }

    async fn send(mut self, part_bytes: usize, bytes: &Bytes) -> Result<()> {
        let part_bytes = part_bytes.max(bytes.len().div_ceil(PARTS_MAX));
        for start in (0..bytes.len()).step_by(part_bytes) {
            self.wait_until_fewer_than(PARTS_IN_FLIGHT).await?;
            let slice = bytes.slice(start..bytes.len().min(start + part_bytes));
            let part = self.target().put_part(slice.into());
            self.parts.spawn(part);
        }
        self.wait_until_fewer_than(1).await?;
        let _ = self.target().complete().await?;
        self.target = None;
        Ok(())
    }

    async fn wait_until_fewer_than(&mut self, count: usize) -> Result<()> {
        while count <= self.parts.len()
            && let Some(part) = self.parts.join_next().await
        {
            part??;
        }
        Ok(())
    }

    fn target(&mut self) -> &mut dyn MultipartUpload {
        let target = self.target.as_mut();
        target.expect("the target is taken only when the upload ends")
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Without a runtime the process is exiting.
        let (Some(target), Ok(runtime)) = (self.target.take(), Handle::try_current()) else {
            return;
        };
        let parts = std::mem::take(&mut self.parts);
        // In the background: the caller must not wait for it.
        runtime.spawn(abort(target, self.path.clone(), parts, self.deadlines));
    }
}

async fn abort(
    mut target: Box<dyn MultipartUpload>,
    path: Path,
    mut parts: JoinSet<Result<()>>,
    deadlines: Deadlines,
) {
    // A part that arrives after the abort would stay in the store.
    parts.shutdown().await;
    let error = match tokio::time::timeout(deadlines.abort_upload(), target.abort()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(elapsed) => elapsed.to_string(),
    };
    tracing::warn!(%path, error, "cannot abort an upload; its parts may stay in the object store");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::future::BoxFuture;
    use object_store::{Error, PutPayload, PutResult, UploadPart};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    const DEADLINES: u64 = 3000;

    /// A request to the store.
    #[derive(Debug, PartialEq, Eq)]
    enum Request {
        Part(usize),
        Complete,
        Abort,
    }

    /// The response to a part or to `complete`.
    #[derive(Debug, Clone, Copy)]
    enum Response {
        Success,
        Failure,
        Never,
    }

    impl Response {
        async fn resolve(self) -> Result<()> {
            match self {
                Self::Success => Ok(()),
                Self::Failure => Err(Error::Generic {
                    store: "S3",
                    source: "503".into(),
                }),
                Self::Never => std::future::pending().await,
            }
        }
    }

    #[derive(Debug)]
    struct Recorder {
        part: Response,
        complete: Response,
        requests: UnboundedSender<Request>,
    }

    impl MultipartUpload for Recorder {
        fn put_part(&mut self, data: PutPayload) -> UploadPart {
            self.requests
                .send(Request::Part(data.content_length()))
                .unwrap();
            Box::pin(self.part.resolve())
        }

        fn complete<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<PutResult>>
        where
            'a: 'b,
            Self: 'b,
        {
            self.requests.send(Request::Complete).unwrap();
            Box::pin(async {
                self.complete.resolve().await?;
                Ok(PutResult {
                    e_tag: None,
                    version: None,
                    extensions: object_store::Extensions::default(),
                })
            })
        }

        fn abort<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<()>>
        where
            'a: 'b,
            Self: 'b,
        {
            self.requests.send(Request::Abort).unwrap();
            Box::pin(std::future::ready(Ok(())))
        }
    }

    /// An upload of eleven bytes in parts of five to a store that responds as given.
    fn upload(
        part: Response,
        complete: Response,
    ) -> (impl Future<Output = Result<()>>, UnboundedReceiver<Request>) {
        let (requests, received) = unbounded_channel();
        let target = Box::new(Recorder {
            part,
            complete,
            requests,
        });
        let upload = Upload::new(target, &Path::from("shard"), Deadlines::new(DEADLINES));
        let bytes = Bytes::from_iter(0..11);
        (async move { upload.send(5, &bytes).await }, received)
    }

    /// All remaining requests, until the upload is dropped.
    async fn all(mut received: UnboundedReceiver<Request>) -> Vec<Request> {
        let mut requests = Vec::new();
        while let Some(request) = received.recv().await {
            requests.push(request);
        }
        requests
    }

    const PARTS: [Request; 3] = [Request::Part(5), Request::Part(5), Request::Part(1)];

    #[tokio::test]
    async fn a_complete_upload_is_not_aborted() {
        let (sending, received) = upload(Response::Success, Response::Success);
        sending.await.unwrap();
        let expected: Vec<_> = PARTS.into_iter().chain([Request::Complete]).collect();
        assert_eq!(all(received).await, expected);
    }

    #[tokio::test]
    async fn an_upload_is_aborted_when_a_part_or_the_completion_fails() {
        let (sending, received) = upload(Response::Failure, Response::Success);
        sending.await.unwrap_err();
        let expected: Vec<_> = PARTS.into_iter().chain([Request::Abort]).collect();
        assert_eq!(all(received).await, expected);
        let (sending, received) = upload(Response::Success, Response::Failure);
        sending.await.unwrap_err();
        let expected: Vec<_> = PARTS
            .into_iter()
            .chain([Request::Complete, Request::Abort])
            .collect();
        assert_eq!(all(received).await, expected);
    }

    /// Happens when the generation is superseded during an upload.
    #[tokio::test]
    async fn an_upload_is_aborted_when_it_is_cancelled() {
        for (part, complete, last) in [
            (Response::Never, Response::Success, Request::Part(1)),
            (Response::Success, Response::Never, Request::Complete),
        ] {
            let (sending, mut received) = upload(part, complete);
            let until = async { while received.recv().await.unwrap() != last {} };
            tokio::select! {
                biased;
                sent = sending => panic!("{sent:?}"),
                () = until => {}
            }
            assert_eq!(all(received).await, [Request::Abort]);
        }
    }

    #[tokio::test]
    async fn a_large_object_is_written_in_parts_and_is_there_whole() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let (store, _) = storage::open(&url).unwrap();
        for length in [0, 1, 5, 6, 10, 23] {
            let bytes = Bytes::from_iter(0..length);
            let path = Path::from(format!("of {length}"));
            put_in_parts(5, &*store, &path, bytes.clone(), Deadlines::new(DEADLINES))
                .await
                .unwrap();
            let found = store.get(&path).await.unwrap().bytes().await.unwrap();
            assert_eq!(found, bytes);
        }
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            6,
            "nothing else is left"
        );
    }
}
