//! The other end of a connection: what it does, and whether it must go. Known to the requests that
//! come over it.

use super::{Activity, FIRST_WITHIN, Shared};
use crate::budget::BYTE;
use futures::task::AtomicWaker;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a connection in use is looked at again.
const CHECK: Duration = Duration::from_secs(10);
/// A connection without a request in progress is closed after this time.
const IDLE: Duration = Duration::from_secs(60);
/// The other end of a connection, known to its requests.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) gate: Arc<Shared>,
    pub(crate) address: IpAddr,
    /// Wakes the task of the connection.
    pub(super) task: AtomicWaker,
    use_: Mutex<Use>,
}

#[derive(Debug)]
pub(super) struct Use {
    /// It has made a request (or sent a byte, if those count).
    pub(super) began: bool,
    in_progress: usize,
    /// The end of its last request, or when it was opened.
    pub(super) since: Instant,
    attached: bool,
    /// Why it must be closed.
    pub(super) closed: Option<&'static str>,
}

/// A request in progress.
#[derive(Debug)]
pub(crate) struct InProgress(Arc<Peer>);

/// An attached worker: its connection counts as a worker's.
#[derive(Debug)]
pub(crate) struct Attachment(Arc<Peer>);

impl Use {
    pub(super) fn is_idle(&self) -> bool {
        self.in_progress == 0 && !self.attached && self.closed.is_none()
    }
}

impl Peer {
    pub(super) fn new(gate: Arc<Shared>, address: IpAddr) -> Arc<Self> {
        Arc::new(Self {
            gate,
            address,
            task: AtomicWaker::new(),
            use_: Mutex::new(Use {
                began: false,
                in_progress: 0,
                since: Instant::now(),
                attached: false,
                closed: None,
            }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Use> {
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
    pub(super) fn next_check(&self) -> Result<Instant, &'static str> {
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

    /// Bytes came. They are paid for here, because those of a message that is too long reach no
    /// service; reports of an attached worker never are.
    pub(super) fn received(&self, bytes: usize) {
        let mut used = self.lock();
        if self.gate.activity == Activity::Bytes {
            (used.began, used.since) = (true, Instant::now());
        }
        let is_free = used.attached;
        drop(used);
        if !is_free {
            let price = BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
            self.gate.budgets.charge(self.address, price);
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
