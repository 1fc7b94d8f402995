//! Explains why a job of units is in its current state.

use super::job::{State, Units};
use super::participant::{Participant, RankUnits};
use crate::format::seconds;
use crate::head::Ended;
use crate::placement::Decision;
use crate::record::Millis;
use crate::view_model::{WaitsFor, Why};
use proto::id::Rank;
use proto::message::RankPhase;
use proto::reason::{Shortage, Waiting};

impl Units {
    /// What it waits for at `now`. `decision` is the last decision of placement about it.
    pub(crate) fn why(&self, decision: Option<&Decision>, now: Millis) -> Why {
        match &self.state {
            State::Running(_) => self.why_running(now),
            State::Queued { reason } => self.why_queued(reason, decision),
            State::Ended(Ended::Done { .. }) => Why::new("over", "it is done", None),
            State::Ended(Ended::Cancelled { .. }) => {
                Why::new("over", "it was cancelled by a user", None)
            }
            State::Ended(Ended::Failed { cause, .. }) => {
                let retry = format!("`coordinator retry {}`", self.head.id);
                Why::new("over", &format!("it failed: {cause}"), Some(retry))
            }
        }
    }

    fn why_queued(&self, reason: &Waiting, decision: Option<&Decision>) -> Why {
        let id = &self.head.id;
        if self.head.paused {
            let because = self.head.paused_because.as_ref();
            let sentence = because.map_or("it was paused by a user".to_owned(), |because| {
                format!("it is {because}")
            });
            return Why::new(
                "paused",
                &sentence,
                Some(format!("`coordinator resume {id}`")),
            );
        }
        if let Some(reason) = &self.head.blocked_by {
            return Why::blocked(reason);
        }
        match decision {
            Some(Decision::Wait(shortage)) => Why {
                sentence: format!("it {shortage}"),
                constraint: shortage.constraint(),
                remedy: Some(Shortage::remedy(shortage)),
                waits_for: None,
            },
            Some(Decision::Run(_)) => Why::new(
                "release",
                &format!("it {reason}"),
                Some("the graceful stop of those jobs, which has begun".to_owned()),
            ),
            None => Why::new("workers", &reason.to_string(), None),
        }
    }

    fn why_running(&self, now: Millis) -> Why {
        let leaving = self
            .participants()
            .iter()
            .filter(|participant| participant.leaving.is_some());
        let names: Vec<&str> = leaving
            .map(|participant| participant.member.worker.name.as_str())
            .collect();
        let releases = match names.is_empty() {
            true => String::new(),
            false => format!(
                "; it releases {} after their current units",
                names.join(", ")
            ),
        };
        let (pool, total) = (&self.pool, self.pool.plan().count);
        let aside = match pool.set_aside().count() {
            0 => String::new(),
            aside => format!(", {aside} set aside"),
        };
        let slowest = self.slowest(now);
        let (waits_for, at) = match slowest {
            Some(it) => {
                let text = format!(
                    "; rank {} on {} has been {} for {}",
                    it.rank,
                    it.worker.name,
                    it.phase,
                    seconds(it.for_ms)
                );
                (Some(it), text)
            }
            None => (None, String::new()),
        };
        Why {
            sentence: format!(
                "it is running units: {} of {total} are done{aside}, {:.1} per second{at}\
                 {releases}",
                pool.done().count(),
                self.rate.per_second(now)
            ),
            constraint: if names.len() == self.participants().len() {
                "stopping"
            } else {
                "units"
            },
            remedy: None,
            waits_for,
        }
    }

    /// The rank that has been in its current unit the longest, or else in its current phase.
    fn slowest(&self, now: Millis) -> Option<WaitsFor> {
        let ranks = self
            .participants()
            .iter()
            .flat_map(|participant| participant.ranks.iter().map(move |it| (participant, it)));
        let all =
            ranks.map(|(participant, (rank, units))| waits_for(participant, *rank, units, now));
        all.max_by_key(|it| (it.phase.starts_with(AT_UNIT), it.for_ms))
    }
}

const AT_UNIT: &str = "in unit";

fn waits_for(participant: &Participant, rank: Rank, units: &RankUnits, now: Millis) -> WaitsFor {
    let live = &units.live;
    let working = live
        .activity
        .filter(|_| live.phase == Some(RankPhase::Training));
    let (phase, for_ms) = match working {
        Some(activity) => {
            let since_report = now.saturating_sub(live.last_report);
            (
                format!("in {}", activity.stage),
                activity.for_ms.saturating_add(since_report),
            )
        }
        None => (live.phase_word().to_owned(), now.saturating_sub(live.since)),
    };
    WaitsFor {
        rank,
        worker: participant.worker().clone(),
        phase,
        for_ms,
    }
}
