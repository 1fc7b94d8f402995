//! What every part of a rank process needs, whatever the work. Plain data.

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
    #[arg(long)]
    pub(crate) job: String,
    /// The address of this machine on which it talks to other ranks.
    #[arg(long)]
    pub(crate) address: String,
    /// Where base weights from object storage are kept.
    #[arg(long)]
    pub(crate) cache_dir: PathBuf,
    /// The daemon's process id: this process dies with it.
    #[arg(long)]
    pub(crate) parent: i32,
}

/// A process at work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rank<'a> {
    pub(crate) runtime: &'a Handle,
    pub(crate) link: &'a Link,
    /// What it was started for. The job, the store and the device are those of every later order.
    pub(crate) task: &'a Task,
    pub(crate) job: &'a JobSpec,
    pub(crate) settings: &'a Settings,
}

/// A failure that another generation would repeat: the job ends with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Permanent(pub(crate) String);
