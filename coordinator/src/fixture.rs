//! Small valid things for this crate's tests.

use coordinator_core::event::{JobPhase, JobRecord};
use proto::id::{Generation, JobId};
use proto::message::Work;

/// A job that `job::parse` accepts, on the data set at `dataset`.
pub(crate) fn job_toml(dataset: &str) -> String {
    format!(
        r#"name = "demo"
[resources]
workers = {{ min = 1, max = 2 }}
[data]
dataset = "{dataset}"
resolution = 32
[model]
architecture = "autoencoder"
size = "tiny"
[train]
steps = 4
global_batch = 4
micro_batch = 2
"#
    )
}

pub(crate) fn job_record(id: &str) -> JobRecord {
    let job_toml = job_toml("file:///data");
    JobRecord {
        id: JobId(id.into()),
        spec: proto::job::parse("job.toml", &job_toml, None).expect("the fixture is a valid job"),
        job_toml,
        dataset_version: "0".repeat(64),
        work: Work::Train,
        submitted_ms: 5,
        generation: Generation(0),
        phase: JobPhase::Queued { reason: "new".into() },
        checkpoints: Vec::new(),
        fruitless: 0,
        restarts: 0,
        incidents: Vec::new(),
    }
}
