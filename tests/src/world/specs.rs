//! What jobs are: their text, read once.

use coordinator_core::event::JobRecord;
use proto::id::JobId;
use proto::spec::JobSpec;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Specs(BTreeMap<JobId, JobSpec>);

impl Specs {
    /// A job is saved, perhaps for the first time.
    ///
    /// # Panics
    /// If the coordinator accepted what is no job.
    pub(crate) fn learn(&mut self, record: &JobRecord) {
        if !self.0.contains_key(&record.id) {
            let spec = proto::job::parse_stored(&record.id, &record.job_toml);
            let spec = spec.unwrap_or_else(|errors| panic!("{errors}"));
            self.0.insert(record.id.clone(), spec);
        }
    }

    pub(crate) fn get(&self, job: &JobId) -> Option<&JobSpec> {
        self.0.get(job)
    }
}
