//! Job specifications, each parsed once from its stored text.

use coordinator_core::event::JobRecord;
use proto::id::JobId;
use proto::spec::JobSpec;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Specs(BTreeMap<JobId, JobSpec>);

impl Specs {
    /// Parses the job's text when the job is saved for the first time.
    ///
    /// # Panics
    /// If the coordinator accepted an invalid job.
    pub(crate) fn insert(&mut self, record: &JobRecord) {
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
