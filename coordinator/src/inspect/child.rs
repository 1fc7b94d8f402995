//! `coordinator inspect`, the child process: reads a request from standard input, looks into a data
//! set or a base model, and writes the answer to standard output as lines of JSON. Before each file
//! that it reads it writes the file's name, so that its parent can say what killed it.

use crate::pin::{PinError, Pinned, check_init, pin_dataset};
use base_weights::base::Base;
use proto::dataset::DATASET_FILE;
use proto::spec::TrainWork;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use shell::errln;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;
use storage::read::stamp;

/// Address space of the child.
pub(super) const MEMORY_BYTES_MAX: u64 = 1 << 30;
const CPU_SECONDS_MAX: u64 = 30;
/// A child whose parent is gone ends itself after this time. The parent waits for less.
const SECONDS_MAX: u64 = 40;
/// Longest request: a job.toml in canonical text.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// Longest reason of a refusal.
const REASON_BYTES_MAX: usize = 8 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Look {
    Dataset,
    Base,
}

impl Look {
    /// The field of job.toml that names what is looked into.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Dataset => "data.dataset",
            Self::Base => "model.init",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) look: Look,
    /// The job in canonical text.
    pub(super) job_toml: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Found {
        pinned: Pinned,
        /// Folder, name and stamp.
        files: Vec<(String, String, String)>,
    },
    Refused {
        field: String,
        reason: String,
    },
}

/// A line of the child's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Reading(String),
    Answer(Answer),
}

impl Line {
    fn print(&self) {
        let mut line = serde_json::to_vec(self).expect("plain data is JSON");
        line.push(b'\n');
        // A parent that no longer reads has given up on this process.
        if std::io::stdout().write_all(&line).is_err() {
            std::process::exit(1);
        }
    }
}

/// Answers one request within the limits.
pub(crate) fn run() -> ExitCode {
    let answer = limit().and_then(|()| read_request()).and_then(|request| {
        storage::read::observe(|path| Line::Reading(path.to_owned()).print());
        // One thread for this and few for files: each reserves address space.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .map_err(|error| format!("cannot start the async runtime: {error}"))?;
        Ok(runtime.block_on(answer(&request)))
    });
    match answer {
        Ok(answer) => {
            Line::Answer(answer).print();
            ExitCode::SUCCESS
        }
        Err(error) => {
            errln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn limit() -> Result<(), String> {
    let limits = [
        (Resource::As, MEMORY_BYTES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Core, 0),
        // It writes nothing but its answer.
        (Resource::Fsize, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit)
            .map_err(|error| format!("cannot limit {resource:?}: {error}"))?;
    }
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(SECONDS_MAX));
        std::process::exit(1);
    });
    Ok(())
}

fn read_request() -> Result<Request, String> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(REQUEST_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read the request: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("cannot read the request: {error}"))
}

/// Looks, in this process.
pub(super) async fn answer(request: &Request) -> Answer {
    let work = match proto::job::parse_training("job.toml", &request.job_toml) {
        Ok(work) => work,
        Err(error) => return refused(request.look.field(), &error.to_string()),
    };
    let found = match request.look {
        Look::Dataset => look_into_dataset(&work).await,
        Look::Base => look_into_base(&work).await,
    };
    found.unwrap_or_else(|error| refused(error.field(), &error.to_string()))
}

async fn look_into_dataset(work: &TrainWork) -> Result<Answer, PinError> {
    // Before it is read: if the file changes meanwhile, the answer is not used again.
    let stamp = stamp(&work.data.dataset, DATASET_FILE).await;
    let pinned = pin_dataset(work).await?;
    let file = stamp.map(|it| (work.data.dataset.clone(), DATASET_FILE.to_owned(), it));
    Ok(Answer::Found {
        pinned,
        files: file.into_iter().collect(),
    })
}

async fn look_into_base(work: &TrainWork) -> Result<Answer, PinError> {
    let mut files = Vec::new();
    if let Some(url) = &work.model.init {
        let base = Base::find(url).await?;
        let folder = base.folder();
        let parts = base.parts().values();
        let names: Vec<&String> = parts
            .flat_map(|it| it.weights.iter().chain(&it.beside))
            .collect();
        for name in names {
            if let Some(stamp) = stamp(folder, name).await {
                files.push((folder.to_owned(), name.clone(), stamp));
            }
        }
    }
    let pinned = Pinned {
        of_init: check_init(work).await?,
        ..Pinned::default()
    };
    Ok(Answer::Found { pinned, files })
}

fn refused(field: &str, reason: &str) -> Answer {
    let mut end = REASON_BYTES_MAX.min(reason.len());
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let cut = if end < reason.len() { " […]" } else { "" };
    Answer::Refused {
        field: field.to_owned(),
        reason: format!("{}{cut}", &reason[..end]),
    }
}
