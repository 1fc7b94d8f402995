//! Tells people of what became of their jobs: posts to a URL, or runs a command, as `[notify]` of
//! the settings says. The daemon's loop only offers an event to a bounded queue and never waits; a
//! receiver that is dead costs nothing but its notifications, which are counted.

mod delivery;
mod notice;
mod restarts;
mod settings;
mod stall;

pub(crate) use settings::{NotifySettings, RawNotify};

use crate::daemon::Handle;
use crate::measures::{Outcome, notified};
use crate::serve::ServeError;
use crate::text::{duration, now_ms};
use coordinator_core::event::Event;
use delivery::Receiver;
use notice::Notice;
use proto::id::JobId;
use restarts::Restarts;
use settings::What;
use stall::Stalls;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};

/// Notifications that may wait for one receiver, and for the dispatcher.
const QUEUE_MAX: usize = 256;
/// How often the jobs are looked through is this part of what counts as a stall.
const LOOKS: u32 = 10;

/// Takes events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    on: BTreeSet<What>,
    notices: mpsc::Sender<Notice>,
}

impl Notifier {
    /// Never waits.
    pub(crate) fn hear(&self, event: &Event, at_ms: u64) {
        let Some(notice) = Notice::of(event, at_ms).filter(|it| self.on.contains(&it.what)) else {
            return;
        };
        if let Err(TrySendError::Full(_)) = self.notices.try_send(notice) {
            notified(Outcome::Dropped);
        }
    }
}

/// What is to be dispatched, and to whom.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    notices: mpsc::Receiver<Notice>,
    settings: NotifySettings,
    started_ms: u64,
    next_number: u64,
}

/// None: nobody is told.
pub(crate) fn notifier(settings: &NotifySettings) -> Option<(Notifier, Dispatcher)> {
    if settings.is_empty() {
        return None;
    }
    let (sender, notices) = mpsc::channel(QUEUE_MAX);
    let notifier = Notifier {
        on: settings.on.clone(),
        notices: sender,
    };
    let dispatcher = Dispatcher {
        notices,
        settings: settings.clone(),
        started_ms: now_ms(),
        next_number: 1,
    };
    Some((notifier, dispatcher))
}

impl Dispatcher {
    /// Runs until the coordinator stops. What has not been delivered by then is lost.
    pub(crate) async fn run(mut self, handle: Handle) -> ServeError {
        let mut deliveries = JoinSet::new();
        let mut queues = Vec::new();
        for receiver in Receiver::all(&self.settings) {
            let (queue, bodies) = mpsc::channel(QUEUE_MAX);
            deliveries.spawn(receiver.serve(bodies));
            queues.push(queue);
        }
        let mut restarts = Restarts::default();
        let mut stalls = Stalls::default();
        let mut looks = interval(self.settings.stalled_after / LOOKS);
        let watches = self.settings.on.contains(&What::Stalled);
        loop {
            tokio::select! {
                Some(notice) = self.notices.recv() => {
                    if let Some(notice) = restarts.offer(notice, now_ms()) {
                        self.dispatch(&handle, &queues, notice).await;
                    }
                }
                () = until(restarts.next_due_ms()) => {
                    for notice in restarts.due(now_ms()) {
                        self.dispatch(&handle, &queues, notice).await;
                    }
                }
                _ = looks.tick(), if watches => {
                    for notice in stalled(&handle, &mut stalls, self.settings.stalled_after).await {
                        self.dispatch(&handle, &queues, notice).await;
                    }
                }
                Some(Err(error)) = deliveries.join_next() => {
                    return ServeError::Server {
                        what: "notifications",
                        reason: error.to_string(),
                    };
                }
                // The loop has ended, and the process is about to.
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn dispatch(&mut self, handle: &Handle, queues: &[mpsc::Sender<String>], notice: Notice) {
        // If the loop is stopping, so is this task.
        let view = handle.job(notice.job.clone()).await.unwrap_or_default();
        // Its training job tells of the scores.
        let is_evaluation = view.as_ref().is_some_and(|it| it.parent.is_some());
        if is_evaluation && notice.what == What::Done {
            return;
        }
        let id = format!("{}-{}", self.started_ms, self.next_number);
        self.next_number += 1;
        let body = notice.body(view.as_ref(), &id);
        for queue in queues {
            if queue.try_send(body.clone()).is_err() {
                notified(Outcome::Dropped);
            }
        }
    }
}

/// Returns at that time of the wall clock; never without one.
async fn until(wall_ms: Option<u64>) {
    match wall_ms {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(now_ms()))).await,
        None => std::future::pending().await,
    }
}

fn interval(every: Duration) -> Interval {
    let mut interval = tokio::time::interval(every.max(Duration::from_millis(100)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn stalled(handle: &Handle, stalls: &mut Stalls, after: Duration) -> Vec<Notice> {
    let Ok(snapshot) = handle.snapshot().await else {
        return Vec::new();
    };
    let now = now_ms();
    let jobs = stalls.look(&snapshot.jobs, after, now).into_iter();
    jobs.map(|job| Notice {
        what: What::Stalled,
        job: JobId(job.job.clone()),
        text: format!(
            "job is {} and has made no progress for {}; `coordinator why {}` says what it waits \
             for",
            job.phase,
            duration(after),
            job.job
        ),
        count: 1,
        at_ms: now,
    })
    .collect()
}
