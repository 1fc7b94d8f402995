//! The teams of archived jobs, and how many jobs each has: every submit asks, and there may be
//! 100,000 of them. Used by [`crate::store`].

use proto::id::JobId;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Teams {
    jobs: BTreeMap<JobId, String>,
    /// Without teams that have none.
    counts: BTreeMap<String, u64>,
}

impl Teams {
    /// A job's newest team counts.
    pub(crate) fn insert(&mut self, job: JobId, team: String) {
        self.remove(&job);
        *self.counts.entry(team.clone()).or_insert(0) += 1;
        self.jobs.insert(job, team);
    }

    pub(crate) fn remove(&mut self, job: &JobId) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> JobId {
        JobId(format!("demo-{number}"))
    }

    #[test]
    fn counts_are_those_of_the_jobs_whatever_comes_and_goes() {
        let mut teams = Teams::default();
        for number in 0..30 {
            teams.insert(
                id(number),
                ["any", "art"][usize::from(number % 3 == 0)].into(),
            );
        }
        assert_eq!(
            (teams.of("any"), teams.of("art"), teams.all()),
            (20, 10, 30)
        );
        // Again, and with another team.
        teams.insert(id(0), "any".into());
        teams.insert(id(1), "any".into());
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
