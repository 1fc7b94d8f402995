//! Why a gang is where it is.

use super::job::{Gang, State};
use super::running::{RankAt, Running};
use crate::head::Ended;
use crate::partitions::Partitions;
use crate::placement::{Decision, Shortage};
use crate::record::Millis;
use crate::shown::{WaitsFor, Why};
use crate::words::seconds;
use proto::message::RankPhase;

impl Gang {
    /// What it waits for at `now`; `decision` is what placement decided of it last.
    pub(crate) fn why(
        &self,
        decision: Option<&Decision>,
        partitions: &Partitions,
        now: Millis,
    ) -> Why {
        match &self.state {
            State::Running(running) => {
                self.why_left_out(self.why_running(running, now), partitions)
            }
            State::Queued(queued) => self.why_queued(&queued.reason, decision),
            State::Ended(Ended::Done { .. }) => Why::new("over", "it is done", None),
            State::Ended(Ended::Cancelled { .. }) => {
                Why::new("over", "somebody cancelled it", None)
            }
            State::Ended(Ended::Failed { reason, .. }) => {
                Why::new("over", &format!("it failed: {reason}"), None)
            }
        }
    }

    /// Adds who could join and does not reach those that it should join.
    fn why_left_out(&self, mut why: Why, partitions: &Partitions) -> Why {
        let members = || self.members().iter().map(|member| &member.worker);
        for standby in self.standby_workers() {
            let pairs = partitions.among(members().chain([standby]));
            if partitions.from(standby).any(|other| self.is_member(other)) {
                why.sentence = format!("{}; {} is left out: {pairs}", why.sentence, standby.name);
            }
        }
        why
    }

    fn why_queued(&self, reason: &str, decision: Option<&Decision>) -> Why {
        let id = &self.head.id;
        if self.writing.is_some() {
            let sentence = "it waits to hear whether its last manifest was written".to_owned();
            return Why::new(
                "manifest",
                &sentence,
                Some("an answer of the object store".to_owned()),
            );
        }
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
                sentence: format!("it {shortage}{}", self.kept()),
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

    fn why_running(&self, running: &Running, now: Millis) -> Why {
        if let Some(rank) =
            running.last_rank(|rank| matches!(rank.phase, Some(RankPhase::Failed { .. })))
        {
            return waits(running, "failed-rank", "ends because", rank, now);
        }
        let behind = running.last_rank(|rank| {
            matches!(
                rank.phase,
                None | Some(RankPhase::Starting | RankPhase::Joining)
            )
        });
        if let Some(rank) = behind {
            return waits(
                running,
                "forming",
                "forms a group and waits because",
                rank,
                now,
            );
        }
        if let Some(why) = self.stops_because() {
            let finishing = running.last_rank(|rank| rank.phase != Some(RankPhase::Finished));
            let mut answer = match finishing {
                Some(rank) => waits(
                    running,
                    "halting",
                    "ends its generation in order and waits because",
                    rank,
                    now,
                ),
                None => Why::new(
                    "halting",
                    "ends its generation in order and waits for its checkpoint to be committed",
                    None,
                ),
            };
            answer.sentence = format!("{} ({why})", answer.sentence);
            return answer;
        }
        if let Some(writing) = &self.writing
            && running.all_finished()
        {
            let step = writing.checkpoint().step;
            let sentence = format!(
                "all ranks are done; it waits for the manifest of step {step} to be written"
            );
            return Why::new(
                "manifest",
                &sentence,
                Some("an answer of the object store".to_owned()),
            );
        }
        if running.all_finished() {
            return Why::new(
                "last-checkpoint",
                "all ranks are done; it waits for the shards of the last checkpoint",
                None,
            );
        }
        self.why_training(running, now)
    }

    fn why_training(&self, running: &Running, now: Millis) -> Why {
        let for_ms = now.saturating_sub(running.stepped_at);
        let last = self
            .newest
            .last_step
            .as_ref()
            .map(|step| step.seconds.total());
        let last = last.map_or_else(String::new, |seconds| {
            format!("; the step before took {seconds:.1} s")
        });
        let (waits_for, awaited) = awaited(running, now);
        let for_so_long = seconds(for_ms);
        // The ranks know it; what rank 0 told last may be of the generation before.
        let activity = running.ranks.values().filter_map(|rank| rank.activity);
        let activity = activity.map(|activity| activity.step.0).max().unwrap_or(0);
        let step = activity.max(self.newest.acknowledged.0 + 1);
        let sentence =
            format!("it trains: step {step} has been going on for {for_so_long}{last}{awaited}");
        Why {
            sentence,
            constraint: "step",
            remedy: None,
            waits_for,
        }
    }
}

/// Whom a step waits for, as the end of a sentence too: who is slowest by what the ranks say, or
/// else who was heard least recently.
fn awaited(running: &Running, now: Millis) -> (Option<WaitsFor>, String) {
    if let Some(slowest) = running.slowest(now)
        && let Some(at) = running.at(slowest.rank)
        && let Some(mut it) = waits_for(running, at, at.live.since, now)
    {
        it.for_ms = slowest.for_ms;
        it.phase = format!("{}: {}", it.phase, slowest.stage);
        let others = match slowest.waiting {
            0 => String::new(),
            1 => ", and another waits for it in the reduction".to_owned(),
            waiting => format!(", and {waiting} others wait for it in the reduction"),
        };
        let text = format!(
            "; rank {} on {} has been in {} for {}{others}",
            it.rank,
            it.worker.name,
            slowest.stage,
            seconds(it.for_ms)
        );
        return (Some(it), text);
    }
    let waits_for = running
        .longest_silent()
        .and_then(|at| waits_for(running, at, at.live.heard, now));
    let text = waits_for.as_ref().map_or_else(String::new, |it| {
        format!(
            "; least recently heard: rank {} on {}, {} ago",
            it.rank,
            it.worker.name,
            seconds(it.for_ms)
        )
    });
    (waits_for, text)
}

fn waits(
    running: &Running,
    constraint: &'static str,
    what: &str,
    at: RankAt<'_>,
    now: Millis,
) -> Why {
    let live = at.live;
    let waits_for = waits_for(running, at, live.since, now);
    let text = waits_for.as_ref().map_or_else(String::new, |it| {
        format!(
            "rank {} on {} {} for {}",
            it.rank,
            it.worker.name,
            match live.phase {
                Some(_) => format!("has been {}", it.phase),
                None => "has not been reported".to_owned(),
            },
            seconds(it.for_ms)
        )
    });
    let others = running.ranks.len().saturating_sub(1);
    let others = if others == 0 {
        String::new()
    } else {
        format!("; {others} others wait for it")
    };
    let error = match &live.phase {
        Some(RankPhase::Broken { error } | RankPhase::Failed { error, .. }) => format!(": {error}"),
        Some(
            RankPhase::Starting
            | RankPhase::Ready
            | RankPhase::Joining
            | RankPhase::Training
            | RankPhase::Finished,
        )
        | None => String::new(),
    };
    Why {
        sentence: format!("it {what} {text}{error}{others}"),
        constraint,
        remedy: None,
        waits_for,
    }
}

fn waits_for(running: &Running, at: RankAt<'_>, since: Millis, now: Millis) -> Option<WaitsFor> {
    let member = running.owner(at.rank)?;
    let phase = at.live.phase_word();
    Some(WaitsFor {
        rank: at.rank,
        worker: member.worker.clone(),
        phase: phase.to_owned(),
        for_ms: now.saturating_sub(since),
    })
}
