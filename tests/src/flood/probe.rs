//! Asks the coordinator for its workers, again and again, each time on a new connection as a
//! command does, and measures how long the longest answer took.

use anyhow::{Context, Result};
use proto::pb::ListWorkersRequest;
use proto::pb::control_client::ControlClient;
use proto::version;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// An answer that takes longer is none.
const WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u64, Duration)>>,
}

impl Probe {
    pub(crate) fn start(url: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (url.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("a runtime to ask with")?;
            runtime.block_on(ask(&url, &stopped))
        });
        Self { stop, thread }
    }

    /// The number of answers, and the longest time until one.
    ///
    /// # Errors
    /// A question was not answered.
    pub(crate) fn stop(self) -> Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a probe does not panic")
    }
}

async fn ask(url: &str, stop: &AtomicBool) -> Result<(u64, Duration)> {
    let (mut count, mut longest) = (0, Duration::ZERO);
    loop {
        let since = Instant::now();
        let answer = async {
            let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
            let mut client = ControlClient::with_interceptor(channel, version::stamp);
            anyhow::Ok(client.list_workers(ListWorkersRequest {}).await?)
        };
        tokio::time::timeout(WITHIN, answer)
            .await
            .context("the coordinator does not answer")?
            .context("the coordinator refuses")?;
        longest = longest.max(since.elapsed());
        count += 1;
        if stop.load(Ordering::Relaxed) {
            return Ok((count, longest));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
