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

mod files;
mod peer;
mod stream;
#[cfg(test)]
mod tests;

use crate::budget::{Budgets, CONNECTION};
use crate::log_limit::LogLimit;
use crate::pressure::Pressures;
pub(crate) use files::raise_file_limit;
pub(crate) use peer::{InProgress, Peer};
use proto::reason::Excess;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stream::Connection;
use tokio::net::TcpListener;
use tokio_stream::Stream;

/// Until the first request of a connection, and until the first report of a worker.
pub(crate) const FIRST_WITHIN: Duration = Duration::from_secs(10);
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
/// Connections to the pages: of one address, which may be a tunnel for many people, and in all. A
/// page that is looked at has one that stays open.
const PAGES: (usize, usize) = (256, 512);
/// So many connections within ten seconds that end without a request deserve a warning.
const STRAYS: u64 = 100;
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
    strays: LogLimit,
    budgets: Budgets,
    pressures: Pressures,
}

#[derive(Debug, Default)]
struct State {
    /// Those that carry no attached worker, oldest first.
    unattached: VecDeque<Arc<Peer>>,
    attached: usize,
}

impl Gate {
    /// For gRPC. `files`: the process's limit of open files.
    pub(crate) fn rpc(files: u64, budgets: &Budgets, pressures: &Pressures) -> Self {
        let all = usize::try_from(files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
        Self::new(
            "rpc",
            Activity::Requests,
            (PER_ADDRESS, UNATTACHED, all.max(1)),
            budgets,
            pressures,
        )
    }

    /// For `/metrics`.
    pub(crate) fn metrics(budgets: &Budgets, pressures: &Pressures) -> Self {
        let limits = (METRICS, METRICS, METRICS);
        Self::new("metrics", Activity::Bytes, limits, budgets, pressures)
    }

    /// For the pages.
    pub(crate) fn pages(budgets: &Budgets, pressures: &Pressures) -> Self {
        let limits = (PAGES.0, PAGES.1, PAGES.1);
        Self::new("pages", Activity::Requests, limits, budgets, pressures)
    }

    fn new(
        what: &'static str,
        activity: Activity,
        limits: (usize, usize, usize),
        budgets: &Budgets,
        pressures: &Pressures,
    ) -> Self {
        let (per_address, unattached, all) = limits;
        Self(Arc::new(Shared {
            what,
            activity,
            per_address,
            unattached,
            all,
            state: Mutex::new(State::default()),
            warnings: LogLimit::at_most(1),
            strays: LogLimit::burst(STRAYS),
            budgets: budgets.clone(),
            pressures: pressures.clone(),
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
                    if let Some(peer) = self.admit(sender(peer.ip())) {
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
        shared.budgets.charge(address, CONNECTION);
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
            let pressures = &shared.pressures;
            pressures.count(Excess::Connections, address, reason);
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
        let peer = Peer::new(Arc::clone(shared), address);
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

/// The address that limits count for. Who has one IPv6 address has 2^64 of them, so all of a /64
/// are one; an IPv4 address is the same one when it arrives through IPv6.
fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(whole) if !whole.is_loopback() => {
            let network = u128::from(whole) & !u128::from(u64::MAX);
            Ipv6Addr::from(network).into()
        }
        other => other,
    }
}

/// The listener of `/metrics`, and that of the pages.
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
