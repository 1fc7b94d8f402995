//! A connection as a stream of bytes, for the servers.

use super::{FIRST_WITHIN, Peer, Shared};
use proto::reason::Excess;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// A connection, which closes itself when it must not stay open.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    pub(super) peer: Arc<Peer>,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: Arc<Peer>) -> Self {
        Self {
            stream,
            peer,
            timer: Box::pin(tokio::time::sleep(FIRST_WITHIN)),
        }
    }

    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.peer.gate.lock();
        state
            .unattached
            .retain(|peer| !Arc::ptr_eq(peer, &self.peer));
        let mut used = self.peer.lock();
        // Those that were closed for others were counted then.
        let is_stray = !used.began && used.closed.is_none();
        used.closed.get_or_insert("it is closed");
        drop((used, state));
        if !is_stray {
            return;
        }
        let Shared {
            what,
            strays,
            pressures,
            ..
        } = &*self.peer.gate;
        let last = self.peer.address;
        pressures.count(Excess::Strays, last, "");
        if let Some(connections) = strays.admit() {
            let text = "many connections ended without a request within ten seconds";
            tracing::warn!(what, connections, %last, "{text}");
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.peer.task.register(context.waker());
        let closed = self.peer.lock().closed;
        if let Some(reason) = closed {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)));
        }
        while self.timer.as_mut().poll(context).is_ready() {
            match self.peer.next_check() {
                Ok(at) => self.timer.as_mut().reset(at.into()),
                Err(reason) => {
                    tracing::debug!(address = %self.peer.address, reason, "connection closed");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)));
                }
            }
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        if 0 < count {
            self.peer.received(count);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}
