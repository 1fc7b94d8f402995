//! Why a job of units is where it is.

use super::job::{State, Units};
use super::part::{Part, RankUnits};
use crate::head::Ended;
use crate::placement::{Decision, Shortage};
use crate::record::Millis;
use crate::shown::{WaitsFor, Why};
use crate::words::seconds;
use proto::id::Rank;
use proto::message::RankPhase;

impl Units {
    /// What it waits for at `now`; `decision` is what placement decided of it last.
    pub(crate) fn why(&self, decision: Option<&Decision>, now: Millis) -> Why {
        match &self.state {
            State::Running(_) => self.why_running(now),
            State::Queued { reason } => self.why_queued(reason, decision),
            State::Ended(Ended::Done { .. }) => Why::new("over", "it is done", None),
            State::Ended(Ended::Cancelled { .. }) => {
                Why::new("over", "somebody cancelled it", None)
            }
            State::Ended(Ended::Failed { reason, .. }) => {
                Why::new("over", &format!("it failed: {reason}"), None)
            }
        }
    }

    fn why_queued(&self, reason: &str, decision: Option<&Decision>) -> Why {
        let id = &self.head.id;
        if self.head.paused {
            return Why::new(
                "paused",
                "somebody paused it",
                Some(format!("`coordinator resume {id}`")),
            );
        }
        if let Some(reason) = &self.head.held_up {
            return Why::held_up(reason, id);
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
                Some("their halt, which has begun".to_owned()),
            ),
            None => Why::new("workers", reason, None),
        }
    }

    fn why_running(&self, now: Millis) -> Why {
        let leaving = self.parts().iter().filter(|part| part.leaving.is_some());
        let names: Vec<&str> = leaving
            .map(|part| part.member.worker.name.as_str())
            .collect();
        let gives_back = match names.is_empty() {
            true => String::new(),
            false => format!(
                "; it gives back {} after the units that they are at",
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
                "it works on units: {} of {total} are done{aside}, {:.1} a second{at}{gives_back}",
                pool.done().count(),
                self.rate.per_second(now)
            ),
            constraint: if names.len() == self.parts().len() {
                "halting"
            } else {
                "units"
            },
            remedy: None,
            waits_for,
        }
    }

    /// The rank that has been longest at what it does: at its unit, or else at its start.
    fn slowest(&self, now: Millis) -> Option<WaitsFor> {
        let ranks = self
            .parts()
            .iter()
            .flat_map(|part| part.ranks.iter().map(move |it| (part, it)));
        let all = ranks.map(|(part, (rank, units))| waits_for(part, *rank, units, now));
        all.max_by_key(|it| (it.phase.starts_with(AT_UNIT), it.for_ms))
    }
}

const AT_UNIT: &str = "in unit";

fn waits_for(part: &Part, rank: Rank, units: &RankUnits, now: Millis) -> WaitsFor {
    let live = &units.live;
    let working = live
        .activity
        .filter(|_| live.phase == Some(RankPhase::Training));
    let (phase, for_ms) = match working {
        Some(activity) => {
            let since_heard = now.saturating_sub(live.heard);
            (
                format!("in {}", activity.stage),
                activity.for_ms.saturating_add(since_heard),
            )
        }
        None => (live.phase_word().to_owned(), now.saturating_sub(live.since)),
    };
    WaitsFor {
        rank,
        worker: part.worker().clone(),
        phase,
        for_ms,
    }
}
