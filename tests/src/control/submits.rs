//! Many submits of one user.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use proto::pb::SubmitRequest;
use proto::pb::control_client::ControlClient;
use proto::version::{self, Stamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;

/// Requests at a time: as many as one address may have. Whoever submits a thousand jobs asks for
/// many at once, and all from one address.
const AT_A_TIME: usize = 16;

/// A job that waits, because no worker has a GPU.
pub(super) fn job_toml(dataset: &str) -> String {
    format!(
        "name = \"waiting\"\n\
         [resources]\nworkers = {{ min = 1, max = 1 }}\ndevice = \"cuda\"\n\
         [data]\ndataset = \"{dataset}\"\nresolution = 32\n\
         [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n\
         [train]\nsteps = 4\nglobal_batch = 4\nmicro_batch = 2\n"
    )
}

/// Returns when all are durable. How long that took.
pub(super) async fn run(rpc: &str, dataset: &str, count: u32) -> Result<Duration> {
    let channel = Endpoint::from_shared(rpc.to_owned())?.connect().await?;
    let next = Arc::new(AtomicU32::new(0));
    let begun = Instant::now();
    let senders = (0..AT_A_TIME).map(|_| {
        let stamp: Stamp = version::stamp;
        let mut client = ControlClient::with_interceptor(channel.clone(), stamp);
        let next = Arc::clone(&next);
        let request = SubmitRequest {
            file_name: "job.toml".to_owned(),
            job_toml: job_toml(dataset),
            ..Default::default()
        };
        async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                client.submit(request.clone()).await.context("a submit")?;
            }
            anyhow::Ok(())
        }
    });
    try_join_all(senders).await?;
    Ok(begun.elapsed())
}
