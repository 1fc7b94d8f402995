//! Streams of replies: how many there may be, and how long a reader may take. Used by
//! [`crate::rpc`].

use crate::budget::{Payer, paid};
use crate::calls::{Share, Shares};
use crate::connections::{InProgress, Peer};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// Replies of a stream that wait for its reader.
const QUEUE: usize = 4;
/// A reader that takes nothing for this long is dropped.
const SLOW: Duration = Duration::from_secs(30);
pub(crate) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The reader of a stream.
pub(crate) struct Reader<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Reader<T> {
    /// Returns whether the reader is still there.
    pub(crate) async fn send(&self, value: T) -> Result<bool, Status> {
        match timeout(SLOW, self.0.send(Ok(value))).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the reader of the stream took nothing for {} s",
                SLOW.as_secs()
            ))),
        }
    }

    /// Returns when the reader is gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Opens streams. Cheap to clone; all clones share the limits.
#[derive(Debug, Clone)]
pub(crate) struct Streams(Shares);

impl Streams {
    pub(crate) fn new() -> Self {
        Self(Shares::streams())
    }

    /// Runs `work` in its own task; its error, if any, ends the stream. A reader that is too slow
    /// loses its connection, because it would not read the error either.
    pub(crate) fn open<T, F>(
        &self,
        caller: Option<Arc<Peer>>,
        work: impl FnOnce(Reader<T>) -> F,
    ) -> Result<Response<Replies<T>>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let share = caller.as_ref().map(|peer| self.0.take(peer.address));
        let guards: (Option<Share>, Option<InProgress>) =
            (share.transpose()?, caller.as_ref().map(Peer::begin));
        let (sender, receiver) = mpsc::channel(QUEUE);
        let errors = sender.clone();
        // What a stream takes is charged as the request that opened it.
        let work = paid(Payer::current(), work(Reader(sender)));
        tokio::spawn(async move {
            let _guards = guards;
            let Err(status) = work.await else { return };
            if status.code() == Code::DeadlineExceeded {
                let address = caller.as_ref().map(|peer| peer.address);
                tracing::warn!(?address, "{}; it is dropped", status.message());
                if let Some(peer) = &caller {
                    peer.close("the reader of a stream is too slow");
                }
            }
            // Fails if the client has disconnected, or if it reads nothing.
            errors.try_send(Err(status)).ok();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Who sent the request. None only in a test without connections.
pub(crate) fn caller<T>(request: &Request<T>) -> Option<Arc<Peer>> {
    request.extensions().get::<Arc<Peer>>().cloned()
}
