//! Processor time: how much of the coordinator's one address may use with requests and with new
//! workers. Limits on sizes and numbers do not suffice: a sender whose requests are all admitted
//! keeps a processor busy, and on a small cluster jobs train on it. Beyond its share an address
//! waits, and only for itself. Used by [`crate::calls`] and [`crate::session`].
//!
//! | limit | |
//! |---|---|
//! | 5 s of a processor | that an address may use at once |
//! | a tenth of one processor | that it may use in the long run |
//! | 10 s | that a request or a new worker waits for its turn; then it is refused |
//!
//! Charged is what the kernel says that the threads used: while a request's task ran, for what it
//! gave to the daemon's loop, and on threads for blocking work. What a connection and a request
//! take beside that cannot be told apart by sender and has a fixed price. Reports of attached
//! workers are not charged: they must never wait, and [`crate::session`] bounds them.

use crate::log_limit::LogLimit;
use crate::pressure::Pressures;
use proto::reason::Excess;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep};
use tonic::Status;

/// What an address may use at once. More than anybody needs who means well: a thousand submits of
/// one user end within two seconds.
const BURST: Duration = Duration::from_secs(5);
/// In the long run an address may use one part in so many of one processor: a twentieth of the
/// smallest node with two, so that a rank beside it loses less than a tenth of its steps.
const SHARE: u32 = 10;
/// How long a request, or a new worker, waits for its turn. A refusal comes only then, too: a
/// sender that tries again at once would otherwise be refused without a pause, which costs as much
/// as small requests.
const WAIT_WITHIN: Duration = Duration::from_secs(10);
/// Accepting a connection and its handshake, in the runtime and in the kernel.
pub(crate) const CONNECTION: Duration = Duration::from_micros(200);
/// Reading a request's frames and writing those of its reply, however short they are.
pub(crate) const REQUEST: Duration = Duration::from_micros(100);
/// A byte of them, whether the request is answered or refused for its size.
pub(crate) const BYTE: Duration = Duration::from_nanos(2);
/// Addresses that are counted apart; the others are counted together.
const ADDRESSES_MAX: usize = 1024;

/// Cheap to clone; all clones share the accounts.
#[derive(Debug, Clone)]
pub(crate) struct Budgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    accounts: Mutex<HashMap<Option<IpAddr>, Account>>,
    pressures: Pressures,
    warnings: LogLimit,
}

/// What an address has used and not earned again yet.
#[derive(Debug, Clone, Copy)]
struct Account {
    used: Duration,
    as_of: Instant,
}

impl Account {
    fn used_at(self, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.as_of) / SHARE;
        self.used.saturating_sub(earned)
    }

    fn charge(&mut self, time: Duration, now: Instant) {
        self.used = self.used_at(now).saturating_add(time);
        self.as_of = now;
    }

    /// Until it may use more.
    fn wait_at(self, now: Instant) -> Duration {
        let over = self.used_at(now).saturating_sub(BURST);
        over.saturating_mul(SHARE)
    }
}

impl Budgets {
    pub(crate) fn new(pressures: Pressures) -> Self {
        Self(Arc::new(Inner {
            accounts: Mutex::default(),
            pressures,
            warnings: LogLimit::at_most(1),
        }))
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Option<IpAddr>, Account>> {
        let accounts = self.0.accounts.lock();
        accounts.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn charge(&self, address: IpAddr, time: Duration) {
        self.charge_at(address, time, Instant::now());
    }

    fn charge_at(&self, address: IpAddr, time: Duration, now: Instant) {
        let mut accounts = self.accounts();
        let mut key = Some(address);
        if !accounts.contains_key(&key) && ADDRESSES_MAX <= accounts.len() {
            accounts.retain(|_, account| !account.used_at(now).is_zero());
            if ADDRESSES_MAX <= accounts.len() {
                key = None;
            }
        }
        let account = accounts.entry(key).or_insert(Account {
            used: Duration::ZERO,
            as_of: now,
        });
        account.charge(time, now);
    }

    /// What the address has used, and until when it must wait.
    fn state_at(&self, address: IpAddr, now: Instant) -> (Duration, Duration) {
        let accounts = self.accounts();
        let together = || accounts.get(&None);
        let account = accounts.get(&Some(address)).or_else(together);
        account.map_or_else(Default::default, |it| (it.used_at(now), it.wait_at(now)))
    }

    /// Returns when the address may use more. `what`: what waits, such as "requests"
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED: that takes too long; the text says when to try again.
    pub(crate) async fn wait(&self, address: IpAddr, what: &str) -> Result<(), Status> {
        let begun = Instant::now();
        let mut is_said = false;
        loop {
            let now = Instant::now();
            let (used, wait) = self.state_at(address, now);
            if wait.is_zero() {
                return Ok(());
            }
            if !is_said {
                is_said = true;
                self.say(address, what, used);
            }
            let left = WAIT_WITHIN.saturating_sub(now.saturating_duration_since(begun));
            if left.is_zero() {
                return Err(refused(address, used, wait));
            }
            sleep(wait.min(left)).await;
        }
    }

    fn say(&self, address: IpAddr, what: &str, used: Duration) {
        self.0.pressures.count(Excess::Delays, address, what);
        if let Some(count) = self.0.warnings.admit() {
            let used_s = used.as_secs_f64();
            let text = "an address uses more than its share of the coordinator's time; what it \
                sends waits";
            tracing::warn!(%address, what, used_s, count, "{text}");
        }
    }

    /// What the address has used and not earned again yet.
    #[cfg(test)]
    pub(crate) fn used(&self, address: IpAddr) -> Duration {
        self.state_at(address, Instant::now()).0
    }

    pub(crate) fn payer(&self, address: IpAddr) -> Payer {
        Payer {
            budgets: self.clone(),
            address,
        }
    }
}

fn refused(address: IpAddr, used: Duration, wait: Duration) -> Status {
    let (used, burst) = (used.as_secs_f64(), BURST.as_secs());
    // Never "in 0 s".
    let seconds = wait.as_secs() + 1;
    Status::resource_exhausted(format!(
        "{address} has used {used:.1} s of the coordinator's processor time, and one address may \
         use {burst} s at once and 1/{SHARE} of a processor in the long run; try again in \
         {seconds} s"
    ))
}

tokio::task_local! {
    static PAYER: Payer;
}

/// The address that pays for some work.
#[derive(Debug, Clone)]
pub(crate) struct Payer {
    budgets: Budgets,
    address: IpAddr,
}

impl Payer {
    /// Who pays for the current task, if anybody does.
    pub(crate) fn current() -> Option<Self> {
        PAYER.try_with(Clone::clone).ok()
    }

    /// Charges what this thread uses for it.
    fn pay<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = of_this_thread();
        let done = work();
        let used = of_this_thread().saturating_sub(before);
        self.budgets.charge(self.address, used);
        done
    }
}

/// Runs the future at the payer's expense, with all that it passes on.
pub(crate) async fn paid<F: Future>(payer: Option<Payer>, future: F) -> F::Output {
    let Some(payer) = payer else {
        return future.await;
    };
    let mut future = pin!(PAYER.scope(payer.clone(), future));
    std::future::poll_fn(|context| payer.pay(|| future.as_mut().poll(context))).await
}

/// Runs the future at the expense of all of them, in equal parts. What falls to None nobody pays.
pub(crate) async fn paid_together<F: Future>(payers: &[Option<Payer>], future: F) -> F::Output {
    let parts = u32::try_from(payers.len()).unwrap_or(u32::MAX).max(1);
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let before = of_this_thread();
        let polled = future.as_mut().poll(context);
        let part = of_this_thread().saturating_sub(before) / parts;
        for payer in payers.iter().flatten() {
            payer.budgets.charge(payer.address, part);
        }
        polled
    })
    .await
}

/// Runs on a thread for blocking work, at the expense of whoever pays for the current task.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let payer = Payer::current();
    let work = move || match payer {
        Some(payer) => payer.pay(work),
        None => work(),
    };
    spawn_blocking(work).await
}

/// Processor time that this thread has used.
fn of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::task::Poll;
    use tonic::Code;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn budgets() -> Budgets {
        Budgets::new(Pressures::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_never_waits_and_what_is_used_is_earned_again() {
        let budgets = budgets();
        // A thousand requests of 4 ms.
        for _ in 0..1000 {
            budgets.wait(A, "requests").await.unwrap();
            budgets.charge(A, ms(4));
        }
        let begun = Instant::now();
        assert_eq!(budgets.used(A), ms(4_000));
        budgets.charge(A, ms(1_000));
        budgets.wait(A, "requests").await.unwrap();
        assert_eq!(begun.elapsed(), ms(0), "5 s are not too much");
        tokio::time::advance(ms(30_000)).await;
        assert_eq!(budgets.used(A), ms(2_000));
        tokio::time::advance(ms(30_000)).await;
        assert_eq!(budgets.used(A), ms(0), "no more is earned than was used");
        assert_eq!(budgets.0.pressures.now(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_gets_its_share_and_others_do_not_wait() {
        let budgets = budgets();
        let begun = Instant::now();
        let mut done = 0;
        while begun.elapsed() < ms(60_000) {
            budgets.wait(A, "requests").await.unwrap();
            budgets.charge(A, ms(40));
            done += 1;
            budgets.charge(B, ms(1));
            let before = Instant::now();
            budgets.wait(B, "requests").await.unwrap();
            assert_eq!(before.elapsed(), ms(0));
        }
        // 5 s at once, and 6 s in the minute.
        assert!((274..=278).contains(&(done - 1)), "{done}");
        let named = budgets.0.pressures.now();
        let named: Vec<_> = named.iter().map(|it| (it.excess, it.address)).collect();
        assert_eq!(named, [(Excess::Delays, Some(A))]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_for_too_long_is_refused_after_ten_seconds_and_told_when() {
        let budgets = budgets();
        budgets.charge(A, ms(7_550));
        let begun = Instant::now();
        let status = budgets.wait(A, "requests").await.unwrap_err();
        assert_eq!(begun.elapsed(), WAIT_WITHIN);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "10.0.0.1 has used 6.5 s of the coordinator's processor time, and one address may use \
             5 s at once and 1/10 of a processor in the long run; try again in 16 s"
        );
        tokio::time::advance(ms(6_000)).await;
        let begun = Instant::now();
        budgets.wait(A, "requests").await.unwrap();
        assert_eq!(begun.elapsed(), ms(9_500));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_without_number_share_one_account_until_old_ones_make_room() {
        let budgets = budgets();
        for number in 0..2_000u32 {
            budgets.charge(IpAddr::from(number.to_be_bytes()), ms(10));
        }
        assert_eq!(budgets.accounts().len(), ADDRESSES_MAX + 1);
        assert_eq!(budgets.used(A), ms(9_760), "976 of them together");
        assert_eq!(budgets.used(IpAddr::from([0, 0, 0, 1])), ms(10));
        tokio::time::advance(ms(100_000)).await;
        budgets.charge(A, ms(10));
        assert_eq!(budgets.accounts().len(), 1);
        assert_eq!(budgets.used(A), ms(10));
    }

    /// Uses a processor for a while, by the clock that is charged.
    fn work(time: Duration) {
        let begun = of_this_thread();
        while of_this_thread() < begun + time {
            std::hint::spin_loop();
        }
    }

    // Paused: nothing is earned again meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_task_pays_for_its_polls_and_its_blocking_work_and_not_for_waiting() {
        let budgets = budgets();
        let mut polled = false;
        let task = paid(
            Some(budgets.payer(A)),
            std::future::poll_fn(|context| {
                if std::mem::replace(&mut polled, true) {
                    return Poll::Ready(());
                }
                work(ms(20));
                context.waker().wake_by_ref();
                Poll::Pending
            }),
        );
        task.await;
        let first = budgets.accounts()[&Some(A)].used;
        assert!(ms(20) <= first, "{first:?}");
        let task = paid(Some(budgets.payer(B)), async {
            blocking(|| work(ms(20))).await.unwrap();
            assert_eq!(Payer::current().unwrap().address, B);
        });
        task.await;
        let second = budgets.accounts()[&Some(B)].used;
        assert!(ms(20) <= second, "{second:?}");
        // Two pay the same, and a third part falls to nobody.
        let before = (budgets.used(A), budgets.used(B));
        let payers = [Some(budgets.payer(A)), None, Some(budgets.payer(B))];
        paid_together(&payers, async { work(ms(30)) }).await;
        let used = budgets.used(A).saturating_sub(before.0);
        assert!(ms(10) <= used, "{used:?}");
        assert_eq!(budgets.used(B).saturating_sub(before.1), used);
        // Nobody pays here.
        paid(None, blocking(|| work(ms(1)))).await.unwrap();
        assert!(Payer::current().is_none());
        assert_eq!(budgets.accounts().len(), 2);
    }
}
