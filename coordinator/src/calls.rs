//! Requests in progress: how many of one address and in all are read and answered at a time. Others
//! wait for a while, unread, so that their messages take no memory, and so do those of an address
//! that has used too much of a processor ([`crate::budget`]). The same for streams, which do
//! not wait. Around the service of commands; called by tonic.

use crate::budget::{Budgets, REQUEST, paid};
use crate::connections::Peer;
use crate::log_limit::LogLimit;
use crate::measures;
use crate::pressure::Pressures;
use proto::limits::{ERROR_BYTES, cut};
use proto::reason::Excess;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

/// Requests in progress, of one address and in all.
const REQUESTS: (usize, usize) = (16, 64);
/// Streams of views, steps, lines, of one address and in all.
const STREAMS: (usize, usize) = (64, 256);
/// Child processes that look into files, likewise. Each may take 1 GiB, and the unit allows 6.
const CHILDREN: (usize, usize) = (2, 4);
/// How long a request waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(10);
/// So many refused requests in ten seconds deserve a warning: no person does that.
const REFUSALS: u64 = 20;
/// Bytes of a refusal in the log.
const REFUSAL_BYTES: usize = 300;
/// Longer than any request takes; the deletion of a large job's files takes longest.
const REQUEST_WITHIN: Duration = Duration::from_secs(600);

/// A bounded number of permits, of which one address gets only some. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    what: &'static str,
    each: usize,
    count: usize,
    all: Arc<Semaphore>,
    /// An entry lives as long as one of its permits.
    addresses: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
    warnings: LogLimit,
}

/// One of [`Shares`]; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    /// Keeps the entry of the address.
    _address: Arc<Semaphore>,
}

impl Shares {
    fn new(what: &'static str, (each, count): (usize, usize)) -> Self {
        Self(Arc::new(Inner {
            what,
            each,
            count,
            all: Arc::new(Semaphore::new(count)),
            addresses: Mutex::new(HashMap::new()),
            warnings: LogLimit::at_most(1),
        }))
    }

    /// For streams, which stay open.
    pub(crate) fn streams() -> Self {
        Self::new("streams", STREAMS)
    }

    /// For child processes, each of which takes memory and a core.
    pub(crate) fn children() -> Self {
        Self::new("child processes", CHILDREN)
    }

    /// One of them, however long that takes: an address that has all of its own waits for itself.
    pub(crate) async fn queue(&self, address: IpAddr) -> Share {
        let own = self.of(address);
        let turn = async |semaphore: &Arc<Semaphore>| {
            let permit = Arc::clone(semaphore).acquire_owned().await;
            permit.expect("the semaphore is never closed")
        };
        let own_share = turn(&own).await;
        Share {
            _all: turn(&self.0.all).await,
            _own: own_share,
            _address: own,
        }
    }

    fn of(&self, address: IpAddr) -> Arc<Semaphore> {
        let addresses = self.0.addresses.lock();
        let mut addresses = addresses.unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = addresses.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        addresses.retain(|_, semaphore| 0 < semaphore.strong_count());
        let new = Arc::new(Semaphore::new(self.0.each));
        addresses.insert(address, Arc::downgrade(&new));
        new
    }

    /// # Errors
    /// RESOURCE_EXHAUSTED: the numbers and what to do.
    pub(crate) fn take(&self, address: IpAddr) -> Result<Share, Status> {
        let own = self.of(address);
        let address_share = Arc::clone(&own).try_acquire_owned();
        let own_share = address_share.map_err(|_| self.refused(Some(address)))?;
        let all = Arc::clone(&self.0.all).try_acquire_owned();
        Ok(Share {
            _all: all.map_err(|_| self.refused(None))?,
            _own: own_share,
            _address: own,
        })
    }

    /// The same, when there is one within [`TURN_WITHIN`], and time of a processor for it. Who has
    /// used too much of that waits without a share of all, which others need.
    async fn wait(&self, address: IpAddr, budgets: &Budgets) -> Result<Share, Status> {
        let own = self.of(address);
        let turn = async |semaphore: &Arc<Semaphore>, of| {
            let permit = timeout(TURN_WITHIN, Arc::clone(semaphore).acquire_owned()).await;
            permit
                .ok()
                .and_then(Result::ok)
                .ok_or_else(|| self.refused(of))
        };
        let own_share = turn(&own, Some(address)).await?;
        budgets.wait(address, self.0.what).await?;
        Ok(Share {
            _all: turn(&self.0.all, None).await?,
            _own: own_share,
            _address: own,
        })
    }

    fn refused(&self, of: Option<IpAddr>) -> Status {
        let Inner {
            what, each, count, ..
        } = *self.0;
        let text = match of {
            Some(address) => format!(
                "{address} has {each} {what} in progress, the most that one address may have; end \
                 one, or try again later"
            ),
            None => format!(
                "{count} {what} are in progress, the most that the coordinator serves; try again \
                 later"
            ),
        };
        if let Some(count) = self.0.warnings.admit() {
            tracing::warn!(count, "refused: {text}");
        }
        Status::resource_exhausted(text)
    }
}

/// A service whose requests take turns.
#[derive(Debug, Clone)]
pub(crate) struct Turns<S> {
    inner: S,
    /// None: they only count as requests of their connection.
    shares: Option<Shares>,
    budgets: Budgets,
    refusals: Arc<LogLimit>,
    pressures: Pressures,
}

impl<S> Turns<S> {
    /// For commands.
    pub(crate) fn of(inner: S, budgets: &Budgets, pressures: &Pressures) -> Self {
        let shares = Some(Shares::new("requests", REQUESTS));
        Self {
            shares,
            ..Self::counted(inner, budgets, pressures)
        }
    }

    /// For the streams of workers.
    pub(crate) fn counted(inner: S, budgets: &Budgets, pressures: &Pressures) -> Self {
        Self {
            inner,
            shares: None,
            budgets: budgets.clone(),
            refusals: Arc::new(LogLimit::burst(REFUSALS)),
            pressures: pressures.clone(),
        }
    }
}

impl<S: NamedService> NamedService for Turns<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<Body>> for Turns<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let in_progress = peer.as_ref().map(Peer::begin);
        let shares = self.shares.clone();
        let budgets = self.budgets.clone();
        let path = request.uri().path().to_owned();
        let arrived = Instant::now();
        let outcome = Outcome {
            address: peer.as_ref().map(|peer| peer.address),
            refusals: Arc::clone(&self.refusals),
            pressures: self.pressures.clone(),
        };
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let share = match (&shares, &peer) {
                (Some(shares), Some(peer)) => match shares.wait(peer.address, &budgets).await {
                    Ok(share) => Some(share),
                    Err(status) => {
                        measures::answered(&path, status.code(), arrived.elapsed());
                        outcome.refused(&status);
                        return Ok(status.into_http());
                    }
                },
                _ => None,
            };
            let begun = Instant::now();
            // The stream of a worker is charged only until it is attached, by the session.
            let payer = share.as_ref().and(peer.as_ref());
            let payer = payer.map(|peer| budgets.payer(peer.address));
            if let Some(peer) = &peer {
                budgets.charge(peer.address, REQUEST);
            }
            let answered = timeout(REQUEST_WITHIN, paid(payer, inner.call(request))).await;
            drop((share, in_progress));
            match answered {
                Ok(response) => {
                    let response = response?;
                    let refused = Status::from_header_map(response.headers());
                    let code = refused.as_ref().map_or(Code::Ok, Status::code);
                    measures::answered(&path, code, arrived.elapsed());
                    match refused.filter(|it| it.code() != Code::Ok) {
                        Some(status) => outcome.refused(&status),
                        None => outcome.answered(begun),
                    }
                    Ok(response.map(Body::new))
                }
                Err(_) => {
                    measures::answered(&path, Code::DeadlineExceeded, arrived.elapsed());
                    let seconds = REQUEST_WITHIN.as_secs();
                    let text = format!("the request was not received or answered in {seconds} s");
                    Ok(Status::deadline_exceeded(text).into_http())
                }
            }
        })
    }
}

/// Counts what became of a request.
struct Outcome {
    address: Option<IpAddr>,
    refusals: Arc<LogLimit>,
    pressures: Pressures,
}

impl Outcome {
    fn refused(&self, status: &Status) {
        let last = cut(status.message(), REFUSAL_BYTES);
        if let Some(address) = self.address {
            self.pressures.count(Excess::Requests, address, &last);
        }
        if let Some(count) = self.refusals.admit() {
            let address = self.address;
            let text = "requests are refused again and again";
            tracing::warn!(count, ?address, last, "{text}");
        }
    }

    fn answered(&self, begun: Instant) {
        if let Some(address) = self.address {
            self.pressures.worked(address, begun.elapsed());
        }
    }
}

/// A status whose text fits into the headers of a response.
pub(crate) fn short(make: impl FnOnce(String) -> Status, text: &str) -> Status {
    make(cut(text, ERROR_BYTES))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_address_cannot_take_all_shares() {
        let shares = Shares::new("streams", (2, 3));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = shares.take(a).unwrap();
        let _second = shares.take(a).unwrap();
        let refused = shares.take(a).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(
            refused.message().starts_with("10.0.0.1 has 2 streams"),
            "{refused}"
        );
        let _third = shares.take(b).unwrap();
        let refused = shares.take(b).unwrap_err();
        assert!(
            refused.message().starts_with("3 streams are in progress"),
            "{refused}"
        );
        let budgets = Budgets::new(Pressures::default());
        let refused = shares.wait(b, &budgets).await.unwrap_err();
        assert!(refused.message().starts_with("3 streams"), "{refused}");
        drop(first);
        shares.wait(b, &budgets).await.unwrap();
        assert_eq!(shares.0.addresses.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn who_queues_without_end_makes_nobody_else_wait() {
        let shares = Shares::new("child processes", (1, 2));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = shares.queue(a).await;
        let mut others = Box::pin(async { tokio::join!(shares.queue(a), shares.queue(a)) });
        assert!(futures::poll!(&mut others).is_pending());
        let _other = shares.queue(b).await;
        assert!(futures::poll!(&mut others).is_pending());
        drop(first);
        // Two of one address never run at a time.
        assert!(futures::poll!(&mut others).is_pending());
    }
}
