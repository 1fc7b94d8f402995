//! Which restarts of a job are told of at once, and which together. A node that fails may end the
//! generations of a hundred workers of one job of units, and a gang may restart in a circle: nobody
//! wants a message for each. Pure.

use super::notice::Notice;
use super::settings::What;
use proto::id::JobId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Restarts of one job within this time after one that was told of are told of together, at its
/// end.
const TOGETHER: Duration = Duration::from_secs(60);

/// After a restart of a job was told of.
#[derive(Debug)]
struct Pause {
    until_ms: u64,
    /// The newest restart since, and how many there were.
    held: Option<(Notice, u64)>,
}

/// Jobs whose last restart was told of not long ago.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    jobs: BTreeMap<JobId, Pause>,
}

impl Restarts {
    /// Returns what is to be told now. A restart soon after another one is held until
    /// [`Self::due`].
    pub(crate) fn offer(&mut self, notice: Notice, now_ms: u64) -> Option<Notice> {
        if notice.what != What::Restarted {
            return Some(notice);
        }
        // Those that hold nothing have no timer.
        self.jobs
            .retain(|_, pause| pause.held.is_some() || now_ms < pause.until_ms);
        match self.jobs.get_mut(&notice.job) {
            Some(pause) => {
                let before = pause.held.take().map_or(0, |(_, count)| count);
                pause.held = Some((notice, before + 1));
                None
            }
            None => {
                self.pause(notice.job.clone(), now_ms);
                Some(notice)
            }
        }
    }

    /// What was held and is to be told now.
    pub(crate) fn due(&mut self, now_ms: u64) -> Vec<Notice> {
        let ready = |pause: &Pause| pause.held.is_some() && pause.until_ms <= now_ms;
        let jobs = self.jobs.iter().filter(|(_, pause)| ready(pause));
        let jobs: Vec<JobId> = jobs.map(|(job, _)| job.clone()).collect();
        let mut notices = Vec::new();
        for job in jobs {
            let held = self.jobs.remove(&job).and_then(|pause| pause.held);
            if let Some((mut notice, count)) = held {
                if 1 < count {
                    let seconds = TOGETHER.as_secs();
                    notice.text += &format!(" (the last of {count} restarts within {seconds} s)");
                }
                notice.count = count;
                notices.push(notice);
            }
            self.pause(job, now_ms);
        }
        notices
    }

    /// When [`Self::due`] will have something; None: nothing is held.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let held = self.jobs.values().filter(|pause| pause.held.is_some());
        held.map(|pause| pause.until_ms).min()
    }

    fn pause(&mut self, job: JobId, now_ms: u64) {
        let for_ms = u64::try_from(TOGETHER.as_millis()).unwrap_or(u64::MAX);
        let pause = Pause {
            until_ms: now_ms.saturating_add(for_ms),
            held: None,
        };
        self.jobs.insert(job, pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(job: &str, what: What, text: &str) -> Notice {
        Notice {
            what,
            job: JobId(job.into()),
            text: text.into(),
            count: 1,
            at_ms: 7,
        }
    }

    #[test]
    fn a_hundred_restarts_of_a_job_are_two_notifications_and_other_jobs_do_not_wait() {
        let mut restarts = Restarts::default();
        let mut offer = |job, text: &str, now_ms| {
            let told = restarts.offer(notice(job, What::Restarted, text), now_ms);
            told.map(|it| it.text)
        };
        assert_eq!(offer("units-1", "first", 0).as_deref(), Some("first"));
        for number in 1..=99 {
            assert_eq!(offer("units-1", &format!("number {number}"), number), None);
        }
        assert_eq!(offer("gang-2", "other", 50).as_deref(), Some("other"));
        assert_eq!(restarts.next_due_ms(), Some(60_000));
        assert_eq!(restarts.due(59_999), []);
        let told = restarts.due(60_000);
        assert_eq!(told.len(), 1);
        assert_eq!(
            told[0].text,
            "number 99 (the last of 99 restarts within 60 s)"
        );
        assert_eq!(told[0].count, 99);
        assert_eq!(restarts.next_due_ms(), None);
        // The pause begins again with it, and ends.
        let late = notice("units-1", What::Restarted, "late");
        assert_eq!(restarts.offer(late.clone(), 119_999), None);
        assert_eq!(
            restarts.due(120_000),
            std::slice::from_ref(&late),
            "one is told as it is"
        );
        assert_eq!(restarts.offer(late.clone(), 180_000), Some(late));
    }

    #[test]
    fn nothing_else_is_held_and_nothing_piles_up() {
        let mut restarts = Restarts::default();
        let restart = |job: String, now_ms, restarts: &mut Restarts| {
            restarts.offer(notice(&job, What::Restarted, "x"), now_ms)
        };
        assert!(restart("a-1".into(), 0, &mut restarts).is_some());
        let done = notice("a-1", What::Done, "done");
        assert_eq!(restarts.offer(done.clone(), 1), Some(done));
        for number in 0..1_000 {
            let job = format!("a-{number}");
            assert!(restart(job, 60_000 * (number + 1), &mut restarts).is_some());
        }
        assert_eq!(restarts.jobs.len(), 1);
    }
}
