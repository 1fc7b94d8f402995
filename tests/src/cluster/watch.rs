//! The coordinator's stream of a job's views, which `coordinator watch` reads: one whenever
//! something changes. Tests wait for these views only.

use anyhow::{Context, Result, bail};
use proto::pb::{JobRequest, JobView, control_client::ControlClient};
use proto::version;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// The longest time between two views of a running job, with a margin for a busy machine. A longer
/// one counts as a hang.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Watch {
    runtime: Runtime,
    views: Streaming<JobView>,
    last: JobView,
}

impl Watch {
    /// Begins to watch `job` at the coordinator with this URL.
    ///
    /// # Errors
    /// It is unreachable, or does not know the job.
    pub fn start(url: &str, job: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("a runtime to watch with")?;
        let request = JobRequest {
            job: job.to_owned(),
        };
        let views = runtime.block_on(async {
            let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
            let mut client = ControlClient::with_interceptor(channel, version::stamp);
            anyhow::Ok(client.watch_job(request).await?.into_inner())
        });
        Ok(Self {
            views: views.with_context(|| format!("watching {job} at {url}"))?,
            runtime,
            last: JobView::default(),
        })
    }

    /// The next view; None if the job has ended.
    ///
    /// # Errors
    /// A timeout, or the coordinator is unreachable.
    pub fn next_view(&mut self) -> Result<Option<&JobView>> {
        // The timer must be created inside the runtime.
        let next = self
            .runtime
            .block_on(async { timeout(SILENCE_MAX, self.views.message()).await });
        let Ok(next) = next else {
            bail!("no view within {SILENCE_MAX:?}, last was {:?}", self.last)
        };
        let Some(view) = next.with_context(|| format!("after {:?}", self.last))? else {
            return Ok(None);
        };
        self.last = view;
        Ok(Some(&self.last))
    }

    /// Reads views until `condition` is true and returns that view.
    ///
    /// # Errors
    /// The job ends or sends no view for too long before the condition is true.
    pub fn until(&mut self, what: &str, condition: impl Fn(&JobView) -> bool) -> Result<JobView> {
        while let Some(view) = self
            .next_view()
            .with_context(|| format!("waiting for {what}"))?
        {
            if condition(view) {
                return Ok(view.clone());
            }
        }
        bail!("the job ended without {what}, last was {:?}", self.last)
    }
}
