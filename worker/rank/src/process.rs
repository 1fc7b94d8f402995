//! The context that all parts of a rank process share. Plain data.

use crate::link::Link;
use crate::task::Task;
use proto::spec::JobSpec;
use std::path::PathBuf;
use tokio::runtime::Handle;

#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// The daemon's Unix socket.
    #[arg(long)]
    pub(crate) socket: PathBuf,
    /// Where to listen for questions about this process; without it, nobody can ask.
    #[arg(long)]
    pub(crate) probe: Option<PathBuf>,
    #[arg(long)]
    pub(crate) job: String,
    /// The address of this machine for traffic between ranks.
    #[arg(long)]
    pub(crate) address: String,
    /// Cache of base weights from object storage.
    #[arg(long)]
    pub(crate) cache_dir: PathBuf,
    /// The daemon's process id: this process is killed when the daemon exits.
    #[arg(long)]
    pub(crate) parent: i32,
}

/// A running rank process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rank<'a> {
    pub(crate) runtime: &'a Handle,
    pub(crate) link: &'a Link,
    /// The first order. Later orders have the same job, store and device.
    pub(crate) task: &'a Task,
    pub(crate) job: &'a JobSpec,
    pub(crate) settings: &'a Settings,
}

/// A permanent failure: every later generation would fail alike, so the job fails.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Permanent(pub(crate) String);
