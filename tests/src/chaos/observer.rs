//! A thread that follows the coordinator's stream of views, and reconnects whenever it breaks. It
//! only forwards the views.

use crate::cluster::watch::Watch;
use anyhow::{Result, bail};
use proto::pb::JobView;
use proto::phase::is_over;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Between two attempts to reach a coordinator that is down.
const PAUSE: Duration = Duration::from_millis(50);

/// A view of the job, and when it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) phase: String,
    pub(crate) reason: String,
    pub(crate) generation: u64,
    pub(crate) world: u32,
    pub(crate) step: u64,
}

impl Seen {
    pub(crate) fn nothing() -> Self {
        Self::of(&JobView::default())
    }

    pub(crate) fn is_over(&self) -> bool {
        is_over(&self.phase)
    }

    fn of(view: &JobView) -> Self {
        Self {
            at: Instant::now(),
            phase: view.phase.clone(),
            reason: view.reason.clone(),
            generation: view.generation,
            world: view.world,
            step: view.step,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Observer {
    views: mpsc::Receiver<Seen>,
}

impl Observer {
    /// Follows `job` at the coordinator with this URL until the job has ended or the receiver is
    /// dropped.
    pub(crate) fn start(url: &str, job: &str) -> Self {
        let (sender, views) = mpsc::channel();
        let (url, job) = (url.to_owned(), job.to_owned());
        std::thread::spawn(move || while follow(&url, &job, &sender) {});
        Self { views }
    }

    /// The next view, if one arrives within this time.
    ///
    /// # Errors
    /// The job has ended, and its last view has been returned.
    pub(crate) fn next(&self, within: Duration) -> Result<Option<Seen>> {
        match self.views.recv_timeout(within) {
            Ok(seen) => Ok(Some(seen)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the stream of views has ended"),
        }
    }
}

/// Follows one stream until it breaks. Returns whether to open another.
fn follow(url: &str, job: &str, views: &mpsc::Sender<Seen>) -> bool {
    if let Ok(mut watch) = Watch::start(url, job) {
        while let Ok(Some(view)) = watch.next_view() {
            let seen = Seen::of(view);
            let over = seen.is_over();
            if views.send(seen).is_err() || over {
                return false;
            }
        }
    }
    std::thread::sleep(PAUSE);
    true
}
