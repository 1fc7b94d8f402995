//! What is asked of all archived jobs again and again, of which there may be 100,000: how many each
//! team has, by every submit, and the device-time of those that used any. Used by [`crate::store`].

use crate::usage::Used;
use proto::id::JobId;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct ArchivedJobs {
    jobs: BTreeMap<JobId, String>,
    /// Without teams that have none.
    counts: BTreeMap<String, u64>,
    /// Without jobs that held no device.
    used: BTreeMap<JobId, Arc<Used>>,
}

impl ArchivedJobs {
    /// A job's newest team counts.
    pub(crate) fn insert(&mut self, job: JobId, used: Used) {
        self.remove(&job);
        *self.counts.entry(used.team.clone()).or_insert(0) += 1;
        self.jobs.insert(job.clone(), used.team.clone());
        if !used.account.days.is_empty() {
            self.used.insert(job, Arc::new(used));
        }
    }

    pub(crate) fn remove(&mut self, job: &JobId) {
        self.used.remove(job);
        let Some(team) = self.jobs.remove(job) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&team) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&team);
            }
        }
    }

    /// The number of this team's jobs.
    pub(crate) fn of(&self, team: &str) -> u64 {
        self.counts.get(team).copied().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> u64 {
        self.jobs.len() as u64
    }

    /// The jobs that held devices, with the days of their accounts.
    pub(crate) fn used(&self) -> Vec<Arc<Used>> {
        self.used.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::account::DayUse;

    fn id(number: u64) -> JobId {
        JobId(format!("demo-{number}"))
    }

    fn of(team: &str) -> Used {
        Used {
            team: team.to_owned(),
            ..Used::default()
        }
    }

    #[test]
    fn only_jobs_that_held_devices_have_a_use() {
        let mut archived = ArchivedJobs::default();
        let mut used = of("any");
        archived.insert(id(1), used.clone());
        used.account.days.push(DayUse {
            day: 3,
            device_ms: 5,
        });
        archived.insert(id(2), used);
        assert_eq!(archived.used().len(), 1);
        archived.remove(&id(2));
        assert_eq!((archived.used().len(), archived.all()), (0, 1));
    }

    #[test]
    fn counts_are_those_of_the_jobs_whatever_comes_and_goes() {
        let mut archived = ArchivedJobs::default();
        for number in 0..30 {
            archived.insert(id(number), of(["any", "art"][usize::from(number % 3 == 0)]));
        }
        assert_eq!(
            (archived.of("any"), archived.of("art"), archived.all()),
            (20, 10, 30)
        );
        // Again, and with another team.
        archived.insert(id(0), of("any"));
        archived.insert(id(1), of("any"));
        archived.remove(&id(3));
        archived.remove(&id(3));
        archived.remove(&id(99));
        assert_eq!(
            (archived.of("any"), archived.of("art"), archived.all()),
            (21, 8, 29)
        );
        for number in 0..30 {
            archived.remove(&id(number));
        }
        assert_eq!((archived.of("any"), archived.all()), (0, 0));
        assert_eq!(archived.counts.len(), 0, "names of teams do not pile up");
    }
}
