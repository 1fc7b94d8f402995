//! The coordinator's own stream of a job's views, one whenever something changes: the tests' only
//! clock. It is what `coordinator watch` reads.

use anyhow::{Context, Result, bail};
use proto::pb::{JobRequest, JobView, control_client::ControlClient};
use proto::version;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Longest silence of a job that is alive, with room for a busy machine: a hang becomes a message
/// instead.
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
    /// It cannot be reached, or does not know the job.
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

    /// The next view; None when there will be no more, because the job has ended.
    ///
    /// # Errors
    /// Silence, or the coordinator is gone.
    pub fn next_view(&mut self) -> Result<Option<&JobView>> {
        // The timer belongs to the runtime, so the waiting is made inside it.
        let next = self
            .runtime
            .block_on(async { timeout(SILENCE_MAX, self.views.message()).await });
        let Ok(next) = next else {
            bail!("nothing new for too long, last was {:?}", self.last)
        };
        let Some(view) = next.with_context(|| format!("after {:?}", self.last))? else {
            return Ok(None);
        };
        self.last = view;
        Ok(Some(&self.last))
    }

    /// Reads on until `condition` is true and returns that view.
    ///
    /// # Errors
    /// The views end or stop with the condition never true.
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
