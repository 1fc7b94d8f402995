//! An object to the store, there whole or not at all. What is larger than a part goes up in parts,
//! each of them a request with its own time and its own further tries: a share has gigabytes, and
//! no one request may take as long. Parts of an upload that is given up are taken back, as far as
//! the store answers. Called by [`crate::checkpoint`].

use crate::deadline::Deadlines;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, Result};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Of an object that is written in parts. Four parts of each of eight ranks go through 100 Mbit/s
/// in the time of one request.
const PART_BYTES: usize = 8 << 20;
/// Parts that are under way at one time.
const PARTS_AT_ONCE: usize = 4;
/// An object of S3 has no more.
const PARTS_MAX: usize = 10_000;

pub(crate) async fn put(
    store: &dyn ObjectStore,
    path: &Path,
    bytes: Bytes,
    deadlines: Deadlines,
) -> Result<()> {
    put_by(PART_BYTES, store, path, bytes, deadlines).await
}

async fn put_by(
    part: usize,
    store: &dyn ObjectStore,
    path: &Path,
    bytes: Bytes,
    deadlines: Deadlines,
) -> Result<()> {
    if bytes.len() <= part {
        let _ = store.put(path, bytes.into()).await?;
        return Ok(());
    }
    let target = store.put_multipart(path).await?;
    Upload::to(target, path, deadlines).send(part, &bytes).await
}

/// Parts on their way. Dropped before the object is there (an error, or nobody waits for it any
/// more), it takes them back.
#[derive(Debug)]
struct Upload {
    /// None as soon as the object is there.
    target: Option<Box<dyn MultipartUpload>>,
    path: Path,
    parts: JoinSet<Result<()>>,
    deadlines: Deadlines,
}

impl Upload {
    fn to(target: Box<dyn MultipartUpload>, path: &Path, deadlines: Deadlines) -> Self {
        Self {
            target: Some(target),
            path: path.clone(),
            parts: JoinSet::new(),
            deadlines,
        }
    }

    async fn send(mut self, part: usize, bytes: &Bytes) -> Result<()> {
        let part = part.max(bytes.len().div_ceil(PARTS_MAX));
        for start in (0..bytes.len()).step_by(part) {
            self.until_fewer_than(PARTS_AT_ONCE).await?;
            let slice = bytes.slice(start..bytes.len().min(start + part));
            let one = self.target().put_part(slice.into());
            self.parts.spawn(one);
        }
        self.until_fewer_than(1).await?;
        let _ = self.target().complete().await?;
        self.target = None;
        Ok(())
    }

    async fn until_fewer_than(&mut self, count: usize) -> Result<()> {
        while count <= self.parts.len()
            && let Some(part) = self.parts.join_next().await
        {
            part??;
        }
        Ok(())
    }

    fn target(&mut self) -> &mut dyn MultipartUpload {
        let target = self.target.as_mut();
        target.expect("it is let go of at the end, with the upload")
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Without a runtime the process is on its way out.
        let (Some(target), Ok(runtime)) = (self.target.take(), Handle::try_current()) else {
            return;
        };
        let parts = std::mem::take(&mut self.parts);
        // Whoever gave up does not wait for it.
        runtime.spawn(take_back(target, self.path.clone(), parts, self.deadlines));
    }
}

async fn take_back(
    mut target: Box<dyn MultipartUpload>,
    path: Path,
    mut parts: JoinSet<Result<()>>,
    deadlines: Deadlines,
) {
    // One that arrived after the others were taken back would stay.
    parts.shutdown().await;
    let error = match tokio::time::timeout(deadlines.take_back(), target.abort()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(elapsed) => elapsed.to_string(),
    };
    tracing::warn!(%path, error, "parts of an upload that was given up may stay in the object \
    store");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::future::BoxFuture;
    use object_store::{Error, PutPayload, PutResult, UploadPart};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    const DEADLINES: u64 = 3000;

    /// What a store is asked.
    #[derive(Debug, PartialEq, Eq)]
    enum Asked {
        Part(usize),
        Complete,
        Abort,
    }

    /// What it answers to parts and to `complete`.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Yes,
        No,
        Never,
    }

    impl Answer {
        async fn come(self) -> Result<()> {
            match self {
                Self::Yes => Ok(()),
                Self::No => Err(Error::Generic {
                    store: "S3",
                    source: "503".into(),
                }),
                Self::Never => std::future::pending().await,
            }
        }
    }

    #[derive(Debug)]
    struct Recorder {
        part: Answer,
        complete: Answer,
        asked: UnboundedSender<Asked>,
    }

    impl MultipartUpload for Recorder {
        fn put_part(&mut self, data: PutPayload) -> UploadPart {
            self.asked.send(Asked::Part(data.content_length())).unwrap();
            Box::pin(self.part.come())
        }

        fn complete<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<PutResult>>
        where
            'a: 'b,
            Self: 'b,
        {
            self.asked.send(Asked::Complete).unwrap();
            Box::pin(async {
                self.complete.come().await?;
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
            self.asked.send(Asked::Abort).unwrap();
            Box::pin(std::future::ready(Ok(())))
        }
    }

    /// An upload of eleven bytes in parts of five to a store that answers so.
    fn upload(
        part: Answer,
        complete: Answer,
    ) -> (impl Future<Output = Result<()>>, UnboundedReceiver<Asked>) {
        let (asked, heard) = unbounded_channel();
        let target = Box::new(Recorder {
            part,
            complete,
            asked,
        });
        let upload = Upload::to(target, &Path::from("share"), Deadlines::new(DEADLINES));
        let bytes = Bytes::from_iter(0..11);
        (async move { upload.send(5, &bytes).await }, heard)
    }

    /// All that was asked, to the end of the upload.
    async fn all(mut heard: UnboundedReceiver<Asked>) -> Vec<Asked> {
        let mut asked = Vec::new();
        while let Some(one) = heard.recv().await {
            asked.push(one);
        }
        asked
    }

    const PARTS: [Asked; 3] = [Asked::Part(5), Asked::Part(5), Asked::Part(1)];

    #[tokio::test]
    async fn an_upload_that_is_complete_is_not_taken_back() {
        let (sending, heard) = upload(Answer::Yes, Answer::Yes);
        sending.await.unwrap();
        let expected: Vec<_> = PARTS.into_iter().chain([Asked::Complete]).collect();
        assert_eq!(all(heard).await, expected);
    }

    #[tokio::test]
    async fn parts_are_taken_back_when_one_of_them_or_the_end_fails() {
        let (sending, heard) = upload(Answer::No, Answer::Yes);
        sending.await.unwrap_err();
        let expected: Vec<_> = PARTS.into_iter().chain([Asked::Abort]).collect();
        assert_eq!(all(heard).await, expected);
        let (sending, heard) = upload(Answer::Yes, Answer::No);
        sending.await.unwrap_err();
        let expected: Vec<_> = PARTS
            .into_iter()
            .chain([Asked::Complete, Asked::Abort])
            .collect();
        assert_eq!(all(heard).await, expected);
    }

    /// As when a newer generation comes first.
    #[tokio::test]
    async fn parts_are_taken_back_when_nobody_waits_for_the_object_any_more() {
        for (part, complete, last) in [
            (Answer::Never, Answer::Yes, Asked::Part(1)),
            (Answer::Yes, Answer::Never, Asked::Complete),
        ] {
            let (sending, mut heard) = upload(part, complete);
            let until = async { while heard.recv().await.unwrap() != last {} };
            tokio::select! {
                biased;
                sent = sending => panic!("{sent:?}"),
                () = until => {}
            }
            assert_eq!(all(heard).await, [Asked::Abort]);
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
            put_by(5, &*store, &path, bytes.clone(), Deadlines::new(DEADLINES))
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
