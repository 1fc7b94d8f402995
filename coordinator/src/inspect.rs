//! Looks into the inputs of a job that strangers wrote: its data set and its base model. That
//! happens in a child process, `coordinator inspect`, with limits: 1 GiB of address space, 30 s.
//! Whatever a file does to the library that reads it, the coordinator gets an answer that names the
//! file, and serves others meanwhile. Called by [`crate::rpc`].
//!
//! An answer is kept, by URL and version, until a file that it rests on changes. Refusals are not
//! kept: the next submit looks again.

pub(crate) mod child;
mod process;

use crate::calls::Shares;
use crate::pin::Pinned;
use child::{Answer, Look, Request};
use proto::spec::{JobSpec, TrainWork};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use storage::read::stamp;
use tokio::sync::Semaphore;

/// Submits that look or wait.
const WAITING_MAX: usize = 64;
/// Kept answers.
const ANSWERS_MAX: usize = 256;
/// How long a child may take.
const WITHIN: Duration = Duration::from_secs(30);
/// How long the files of a kept answer may take to be looked up; then a child looks.
const STAMPS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InspectError {
    /// The job's input cannot be used.
    #[error("{field}: {reason}")]
    Refused { field: String, reason: String },
    #[error(
        "{WAITING_MAX} jobs already wait for their data sets to be looked into; submit again later"
    )]
    Busy,
}

/// Cheap to clone; clones share the answers.
#[derive(Debug, Clone)]
pub(crate) struct Inspector {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    program: Program,
    within: Duration,
    children: Shares,
    waiting: Semaphore,
    answers: Mutex<VecDeque<Kept>>,
}

/// What looks.
#[derive(Debug)]
enum Program {
    /// A program that behaves as `coordinator inspect`.
    Child {
        path: PathBuf,
        arguments: Vec<String>,
    },
    /// This process, for tests of the server in a test's process, which is not `coordinator`.
    #[cfg(test)]
    Here,
}

#[derive(Debug)]
struct Kept {
    key: String,
    answer: Found,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    pinned: Pinned,
    /// Folder, name and stamp of the files that the answer rests on.
    files: Vec<(String, String, String)>,
}

impl Inspector {
    /// Starts children of this process's own program, even if its file was replaced meanwhile.
    pub(crate) fn new() -> Self {
        #[cfg(test)]
        let program = Program::Here;
        #[cfg(not(test))]
        let program = Program::Child {
            path: "/proc/self/exe".into(),
            arguments: vec!["inspect".to_owned()],
        };
        Self::with(program, WITHIN)
    }

    fn with(program: Program, within: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                program,
                within,
                children: Shares::children(),
                waiting: Semaphore::new(WAITING_MAX),
                answers: Mutex::default(),
            }),
        }
    }

    /// Checks the inputs of a job that trains, and returns what the job pins of them. One address
    /// has only some of the children, so that its slow inputs do not make others wait.
    ///
    /// # Errors
    /// An input cannot be used, or too many jobs wait for this.
    pub(crate) async fn pin(
        &self,
        spec: &JobSpec,
        work: &TrainWork,
        address: IpAddr,
    ) -> Result<Pinned, InspectError> {
        let request = Request {
            look: Look::Dataset,
            job_toml: proto::job::to_toml(spec),
        };
        // What the answer depends on, as text.
        let references = work.model.architecture.references();
        let key = format!(
            "{:?}",
            (
                &work.data,
                references,
                work.model.architecture.text_encoder().map(|it| it.tokens),
                work.train.validate_every != 0
            )
        );
        let mut found = self.look(request, &work.data.dataset, key, address).await?;
        found.pinned.of_init = self.base(spec, work, address).await?;
        Ok(found.pinned)
    }

    /// Checks the base weights of a job, if it names any. Returns what the user should know of them.
    ///
    /// # Errors
    /// As [`Self::pin`].
    pub(crate) async fn base(
        &self,
        spec: &JobSpec,
        work: &TrainWork,
        address: IpAddr,
    ) -> Result<Vec<String>, InspectError> {
        let Some(url) = &work.model.init else {
            return Ok(Vec::new());
        };
        let request = Request {
            look: Look::Base,
            job_toml: proto::job::to_toml(spec),
        };
        let key = format!("{:?}", work.model);
        let base = self.look(request, url, key, address).await?;
        Ok(base.pinned.of_init)
    }

    async fn look(
        &self,
        request: Request,
        url: &str,
        key: String,
        address: IpAddr,
    ) -> Result<Found, InspectError> {
        let inner = &self.inner;
        let Ok(_waiting) = inner.waiting.try_acquire() else {
            return Err(InspectError::Busy);
        };
        if let Some(found) = self.kept(&key).await {
            return Ok(found);
        }
        let _share = inner.children.queue(address).await;
        let answer = match &inner.program {
            Program::Child { path, arguments } => {
                process::run(path, arguments, &request, url, inner.within).await
            }
            #[cfg(test)]
            Program::Here => child::answer(&request).await,
        };
        match answer {
            Answer::Found { pinned, files } => {
                let found = Found { pinned, files };
                self.keep(key, found.clone());
                Ok(found)
            }
            Answer::Refused { field, reason } => Err(InspectError::Refused { field, reason }),
        }
    }

    /// A kept answer, if none of its files has changed.
    async fn kept(&self, key: &str) -> Option<Found> {
        let found = self
            .answers()
            .iter()
            .find(|it| it.key == key)?
            .answer
            .clone();
        let unchanged = async {
            for (folder, name, expected) in &found.files {
                if stamp(folder, name).await.as_ref() != Some(expected) {
                    return false;
                }
            }
            true
        };
        match tokio::time::timeout(STAMPS_WITHIN, unchanged).await {
            Ok(true) => Some(found),
            Ok(false) | Err(_) => None,
        }
    }

    fn keep(&self, key: String, answer: Found) {
        let mut answers = self.answers();
        answers.retain(|it| it.key != key);
        if answers.len() == ANSWERS_MAX {
            answers.pop_front();
        }
        answers.push_back(Kept { key, answer });
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, VecDeque<Kept>> {
        // Answers are inserted whole, so a poisoned list is still usable.
        self.inner
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
