//! Incoming connections: how many there may be, and for how long one may be silent. A connection
//! that takes part is told from one that does nothing by its requests, and one of a worker by its
//! first report. When there are too many, the one that has done nothing for longest is closed, so
//! that idle connections cannot keep others out. Used by [`crate::serve`] for both listeners.
//!
//! | limit | |
//! |---|---|
//! | 10 s | until the first request of a connection, and until the first report of a worker |
//! | 60 s | without a request in progress |
//! | 64 and 512 | connections that carry no attached worker: of one address, and in all |
//! | 32 | requests in progress on one connection |
//! | descriptors - 256 | connections in all; the rest is for the store |

use crate::log_limit::LogLimit;
use futures::task::AtomicWaker;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Until the first request of a connection, and until the first report of a worker.
pub(crate) const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// A connection without a request in progress is closed after this time.
const IDLE: Duration = Duration::from_secs(60);
/// How often a connection in use is looked at again.
const CHECK: Duration = Duration::from_secs(10);
/// Connections of one address that carry no attached worker.
const PER_ADDRESS: usize = 64;
/// Connections in all that carry no attached worker.
pub(crate) const UNATTACHED: usize = 512;
/// Requests in progress on one connection.
pub(crate) const STREAMS_PER_CONNECTION: u32 = 32;
/// File descriptors that connections leave to the store and to the process itself.
pub(crate) const RESERVED_FILES: u64 = 256;
/// Connections to `/metrics` in all.
const METRICS: usize = 64;
/// After a failed accept: the first pause, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How often it is looked whether connections were refused after the last warning.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What counts as taking part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Requests, which the services report with [`Peer::begin`].
    Requests,
    /// Bytes that arrive.
    Bytes,
}

/// Admits connections. Cheap to clone; all clones share the limits.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    what: &'static str,
    activity: Activity,
    per_address: usize,
    unattached: usize,
    all: usize,
    state: Mutex<State>,
    warnings: LogLimit,
}

#[derive(Debug, Default)]
struct State {
    /// Those that carry no attached worker, oldest first.
    unattached: VecDeque<Arc<Peer>>,
    attached: usize,
}

/// The other end of a connection, known to its requests.
#[derive(Debug)]
pub(crate) struct Peer {
    gate: Arc<Shared>,
    pub(crate) address: IpAddr,
    /// Wakes the task of the connection.
    task: AtomicWaker,
    use_: Mutex<Use>,
}

#[derive(Debug)]
struct Use {
    /// It has made a request (or sent a byte, if those count).
    began: bool,
    in_progress: usize,
    /// The end of its last request, or when it was opened.
    since: Instant,
    attached: bool,
    /// Why it must be closed.
    closed: Option<&'static str>,
}

/// A request in progress.
#[derive(Debug)]
pub(crate) struct InProgress(Arc<Peer>);

/// An attached worker: its connection counts as a worker's.
#[derive(Debug)]
pub(crate) struct Attachment(Arc<Peer>);

impl Gate {
    /// For gRPC. `files`: the process's limit of open files.
    pub(crate) fn rpc(files: u64) -> Self {
        let all = usize::try_from(files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
        Self::new(
            "rpc",
            Activity::Requests,
            (PER_ADDRESS, UNATTACHED, all.max(1)),
        )
    }

    /// For `/metrics`.
    pub(crate) fn metrics() -> Self {
        Self::new("metrics", Activity::Bytes, (METRICS, METRICS, METRICS))
    }

    fn new(what: &'static str, activity: Activity, limits: (usize, usize, usize)) -> Self {
        let (per_address, unattached, all) = limits;
        Self(Arc::new(Shared {
            what,
            activity,
            per_address,
            unattached,
            all,
            state: Mutex::new(State::default()),
            warnings: LogLimit::at_most(1),
        }))
    }

    /// The connections of a listener, for a server. Never ends and has no errors.
    pub(crate) fn incoming(
        self,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold((self, listener), |(gate, listener)| async move {
            let connection = gate.accept(&listener).await;
            Some((Ok(connection), (gate, listener)))
        })
    }

    /// The next connection that is admitted.
    async fn accept(&self, listener: &TcpListener) -> Connection {
        let mut pause = BACKOFF.0;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = tokio::time::sleep(WARN_EVERY) => {
                    if let Some(count) = self.0.warnings.rest() {
                        let what = self.0.what;
                        let text = "too many connections: refused, or closed as idle";
                        tracing::warn!(what, count, "{text}");
                    }
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(peer) = self.admit(peer.ip()) {
                        // Without it small messages wait for others. An error is no loss.
                        stream.set_nodelay(true).ok();
                        return Connection::new(stream, peer);
                    }
                }
                Err(error) => {
                    let what = self.0.what;
                    tracing::warn!(what, %error, "cannot accept connections; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// Counts a connection. None: there are too many, and all of them are in use.
    fn admit(&self, address: IpAddr) -> Option<Arc<Peer>> {
        let shared = &self.0;
        let mut state = shared.lock();
        let own = state
            .unattached
            .iter()
            .filter(|peer| peer.address == address)
            .count();
        let total = state.unattached.len();
        let full = if shared.per_address <= own {
            Some((Some(address), "connections of this address carry no worker"))
        } else if shared.unattached <= total {
            Some((None, "connections carry no worker"))
        } else if shared.all <= total + state.attached {
            Some((
                None,
                "connections: the limit of open files leaves no room for more",
            ))
        } else {
            None
        };
        if let Some((of, reason)) = full {
            let closed = state.close_idlest(of);
            if let Some(connections) = shared.warnings.admit() {
                let count = if of.is_some() { own } else { total };
                let done = if closed {
                    "the idlest was closed"
                } else {
                    "the new one was refused"
                };
                let what = shared.what;
                tracing::warn!(
                    what,
                    connections,
                    "too many connections: {address}: {count} {reason}; {done}"
                );
            }
            if !closed {
                return None;
            }
        }
        let peer = Arc::new(Peer {
            gate: Arc::clone(shared),
            address,
            task: AtomicWaker::new(),
            use_: Mutex::new(Use {
                began: false,
                in_progress: 0,
                since: Instant::now(),
                attached: false,
                closed: None,
            }),
        });
        state.unattached.push_back(Arc::clone(&peer));
        Some(peer)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes the connection that has done nothing for longest, of this address if one is given.
    /// Those that never made a request go first.
    fn close_idlest(&mut self, of: Option<IpAddr>) -> bool {
        let idle = |peer: &&Arc<Peer>| {
            of.is_none_or(|address| address == peer.address) && peer.lock().is_idle()
        };
        let order = |peer: &&Arc<Peer>| {
            let used = peer.lock();
            (used.began, used.since)
        };
        let Some(idlest) = self
            .unattached
            .iter()
            .filter(idle)
            .min_by_key(order)
            .cloned()
        else {
            return false;
        };
        self.unattached.retain(|peer| !Arc::ptr_eq(peer, &idlest));
        idlest.close("it did nothing, and others wait");
        true
    }
}

impl Use {
    fn is_idle(&self) -> bool {
        self.in_progress == 0 && !self.attached && self.closed.is_none()
    }
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins; it is in progress until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InProgress {
        let mut used = self.lock();
        used.began = true;
        used.in_progress += 1;
        drop(used);
        InProgress(Arc::clone(self))
    }

    /// The connection carries an attached worker from now on. None: it does already.
    pub(crate) fn attach(self: &Arc<Self>) -> Option<Attachment> {
        let mut state = self.gate.lock();
        let mut used = self.lock();
        if std::mem::replace(&mut used.attached, true) {
            return None;
        }
        state.unattached.retain(|peer| !Arc::ptr_eq(peer, self));
        state.attached += 1;
        Some(Attachment(Arc::clone(self)))
    }

    /// Closes the connection.
    pub(crate) fn close(&self, reason: &'static str) {
        self.lock().closed.get_or_insert(reason);
        self.task.wake();
    }

    /// When to look again, or why the connection must be closed.
    fn next_check(&self) -> Result<Instant, &'static str> {
        let used = self.lock();
        if let Some(reason) = used.closed {
            return Err(reason);
        }
        if !used.is_idle() {
            return Ok(Instant::now() + CHECK);
        }
        let (limit, reason) = if used.began {
            (IDLE, "it made no request for 60 s")
        } else {
            (FIRST_WITHIN, "it made no request within 10 s")
        };
        let until = used.since + limit;
        if until <= Instant::now() {
            Err(reason)
        } else {
            Ok(until)
        }
    }

    fn received_bytes(&self) {
        if self.gate.activity == Activity::Bytes {
            let mut used = self.lock();
            (used.began, used.since) = (true, Instant::now());
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut used = self.0.lock();
        used.in_progress -= 1;
        used.since = Instant::now();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.0.gate.lock();
        let mut used = self.0.lock();
        (used.attached, used.since) = (false, Instant::now());
        state.attached -= 1;
        // Otherwise the connection is gone, or about to go, and must not be counted again.
        if used.closed.is_none() {
            state.unattached.push_back(Arc::clone(&self.0));
        }
    }
}

/// A connection, which closes itself when it must not stay open.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    peer: Arc<Peer>,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, peer: Arc<Peer>) -> Self {
        Self {
            stream,
            peer,
            timer: Box::pin(tokio::time::sleep(FIRST_WITHIN)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.peer.gate.lock();
        state
            .unattached
            .retain(|peer| !Arc::ptr_eq(peer, &self.peer));
        self.peer.lock().closed.get_or_insert("it is closed");
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
        if before < buffer.filled().len() {
            self.peer.received_bytes();
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

/// The listener of `/metrics`.
#[derive(Debug)]
pub(crate) struct MetricsListener(pub(crate) TcpListener, pub(crate) Gate);

impl axum::serve::Listener for MetricsListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let connection = self.1.accept(&self.0).await;
        let address = SocketAddr::new(connection.peer.address, 0);
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Raises the limit of open files as far as this process may, and returns it.
pub(crate) fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(FILES_MAX).min(FILES_MAX);
    if limit.current.is_none_or(|current| wanted <= current) {
        return limit.current.unwrap_or(FILES_MAX);
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_) => limit.current.unwrap_or(wanted),
    }
}

/// More are never needed: `max_workers` has a maximum.
const FILES_MAX: u64 = 65_536;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn gate(limits: (usize, usize, usize)) -> Gate {
        Gate::new("test", Activity::Requests, limits)
    }

    fn counts(gate: &Gate) -> (usize, usize) {
        let state = gate.0.lock();
        (state.unattached.len(), state.attached)
    }

    #[test]
    fn the_idlest_connection_makes_room_and_those_in_use_do_not() {
        let gate = gate((2, 3, 100));
        let first = gate.admit(address(1)).unwrap();
        let second = gate.admit(address(1)).unwrap();
        let busy = first.begin();
        // The second is the only idle one of this address.
        let third = gate.admit(address(1)).unwrap();
        assert!(second.next_check().is_err() && first.next_check().is_ok());
        let also_busy = third.begin();
        assert!(gate.admit(address(1)).is_none(), "both are in use");
        // Another address is admitted, until there are too many in all.
        let other = gate.admit(address(2)).unwrap();
        drop(also_busy);
        let newest = gate.admit(address(3)).unwrap();
        assert!(other.next_check().is_err(), "it never made a request");
        assert!(third.next_check().is_ok() && newest.next_check().is_ok());
        drop(busy);
        assert_eq!(counts(&gate), (3, 0));
    }

    #[test]
    fn an_attached_worker_does_not_count_and_is_never_closed_for_others() {
        let gate = gate((1, 2, 3));
        let worker = gate.admit(address(1)).unwrap();
        let attachment = worker.attach().unwrap();
        assert!(worker.attach().is_none(), "one worker for a connection");
        assert_eq!(counts(&gate), (0, 1));
        let second = gate.admit(address(1)).unwrap();
        let _attached = second.attach().unwrap();
        let third = gate.admit(address(1)).unwrap();
        let _busy = third.begin();
        assert!(gate.admit(address(2)).is_none(), "no descriptor is left");
        assert!(worker.next_check().is_ok());
        drop(attachment);
        assert_eq!(counts(&gate), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_after_ten_seconds() {
        use tokio::io::AsyncReadExt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let gate = gate((2, 2, 2));
        let mut connection = gate.accept(&listener).await;
        // The clock of `Use` is not paused.
        connection.peer.lock().since = Instant::now() - FIRST_WITHIN;
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "it made no request within 10 s");
        drop(connection);
        assert_eq!(counts(&gate), (0, 0));
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}
