//! What is asked of all archived jobs again and again, of which there may be 100,000: how many each
//! team has, by every submit, and the device-time of those that used any. Used by [`crate::store`].

use crate::usage::Used;
use proto::id::JobId;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Teams {
    jobs: BTreeMap<JobId, String>,
    /// Without teams that have none.
    counts: BTreeMap<String, u64>,
    /// Without jobs that held no device.
    used: BTreeMap<JobId, Arc<Used>>,
}

impl Teams {
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
        let mut teams = Teams::default();
        let mut used = of("any");
        teams.insert(id(1), used.clone());
        used.account.days.push(DayUse {
            day: 3,
            device_ms: 5,
        });
        teams.insert(id(2), used);
        assert_eq!(teams.used().len(), 1);
        teams.remove(&id(2));
        assert_eq!((teams.used().len(), teams.all()), (0, 1));
    }

    #[test]
    fn counts_are_those_of_the_jobs_whatever_comes_and_goes() {
        let mut teams = Teams::default();
        for number in 0..30 {
            teams.insert(id(number), of(["any", "art"][usize::from(number % 3 == 0)]));
        }
        assert_eq!(
            (teams.of("any"), teams.of("art"), teams.all()),
            (20, 10, 30)
        );
        // Again, and with another team.
        teams.insert(id(0), of("any"));
        teams.insert(id(1), of("any"));
        teams.remove(&id(3));
        teams.remove(&id(3));
        teams.remove(&id(99));
        assert_eq!((teams.of("any"), teams.of("art"), teams.all()), (21, 8, 29));
        for number in 0..30 {
            teams.remove(&id(number));
        }
        assert_eq!((teams.of("any"), teams.all()), (0, 0));
        assert_eq!(teams.counts.len(), 0, "names of teams do not pile up");
    }
}
