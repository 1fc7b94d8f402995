//! Explains why a gang is in its current state.

use super::job::{Gang, State};
use super::running::{RankAt, Running};
use crate::format::seconds;
use crate::head::Ended;
use crate::partitions::Partitions;
use crate::placement::Decision;
use crate::record::Millis;
use crate::view_model::{WaitsFor, Why};
use proto::message::RankPhase;
use proto::reason::{Cause, Pairs, Shortage, Waiting};

impl Gang {
    /// What it waits for at `now`. `decision` is the last decision of placement about it.
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
                Why::new("over", "it was cancelled by a user", None)
            }
            State::Ended(Ended::Failed { cause, .. }) => {
                let id = &self.head.id;
                let retry = match cause {
                    // With the same limit it would fail again at once.
                    Cause::TimeLimit { .. } => {
                        format!("`coordinator retry {id} --set train.time_limit=SECONDS`")
                    }
                    _ => format!("`coordinator retry {id}`"),
                };
                Why::new("over", &format!("it failed: {cause}"), Some(retry))
            }
        }
    }

    /// Adds the standbys that cannot join because they cannot reach a member.
    fn why_left_out(&self, mut why: Why, partitions: &Partitions) -> Why {
        let members = || self.members().iter().map(|member| &member.worker);
        for standby in self.standby_workers() {
            let pairs = partitions.among(members().chain([standby]));
            if partitions
                .unreachable_from(standby)
                .any(|other| self.is_member(other))
            {
                let pairs = pairs.list();
                let pairs = Pairs(&pairs);
                why.sentence = format!("{}; {} is left out: {pairs}", why.sentence, standby.name);
            }
        }
        why
    }

    fn why_queued(&self, reason: &Waiting, decision: Option<&Decision>) -> Why {
        let id = &self.head.id;
        if self.writing.is_some() {
            return Why::new(
                "manifest",
                "it waits for its last manifest to be written",
                Some("a response from the object store".to_owned()),
            );
        }
        if self.head.paused {
            return Why::new(
                "paused",
                "it was paused by a user",
                Some(format!("`coordinator resume {id}`")),
            );
        }
        if let Some(reason) = &self.head.blocked_by {
            return Why::blocked(reason);
        }
        match decision {
            Some(Decision::Wait(shortage)) => Why {
                sentence: format!(
                    "it {}",
                    Waiting::Shortage {
                        shortage: shortage.clone(),
                        state_holders: self.state_holders(),
                    }
                ),
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

    fn why_running(&self, running: &Running, now: Millis) -> Why {
        if let Some(rank) =
            running.last_rank(|rank| matches!(rank.phase, Some(RankPhase::Failed { .. })))
        {
            return waits(running, "failed-rank", "is ending", rank, now);
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
                "is forming its process group",
                rank,
                now,
            );
        }
        if let Some(why) = self.stop_reason() {
            let finishing = running.last_rank(|rank| rank.phase != Some(RankPhase::Finished));
            let mut answer = match finishing {
                Some(rank) => waits(
                    running,
                    "stopping",
                    "is stopping its generation gracefully",
                    rank,
                    now,
                ),
                None => Why::new(
                    "stopping",
                    "it is stopping its generation gracefully and waits for its checkpoint to be \
                     committed",
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
                "all ranks have finished; it waits for the manifest of step {step} to be written"
            );
            return Why::new(
                "manifest",
                &sentence,
                Some("a response from the object store".to_owned()),
            );
        }
        if running.all_finished() {
            return Why::new(
                "last-checkpoint",
                "all ranks have finished; it waits for the shards of the last checkpoint",
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
            format!("; the previous step took {seconds:.1} s")
        });
        let (waits_for, waiting_for) = waiting_for(running, now);
        let duration = seconds(for_ms);
        // The ranks' activities name the step; rank 0's last step may be of an earlier generation.
        let activity = running.ranks.values().filter_map(|rank| rank.activity);
        let activity = activity.map(|activity| activity.step.0).max().unwrap_or(0);
        let step = activity.max(self.newest.acknowledged.0 + 1);
        let sentence =
            format!("it is training: step {step} has taken {duration} so far{last}{waiting_for}");
        Why {
            sentence,
            constraint: "step",
            remedy: None,
            waits_for,
        }
    }
}

/// The rank that a step waits for, also as the end of a sentence: the slowest rank according to the
/// reports, or else the rank with the oldest report.
fn waiting_for(running: &Running, now: Millis) -> (Option<WaitsFor>, String) {
    if let Some(slowest) = running.slowest(now)
        && let Some(at) = running.at(slowest.rank)
        && let Some(mut it) = waits_for(running, at, at.live.since, now)
    {
        it.for_ms = slowest.for_ms;
        it.phase = format!("{}: {}", it.phase, slowest.stage);
        let others = match slowest.waiting {
            0 => String::new(),
            1 => ", and 1 other waits for it in the reduction".to_owned(),
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
        .and_then(|at| waits_for(running, at, at.live.last_report, now));
    let text = waits_for.as_ref().map_or_else(String::new, |it| {
        format!(
            "; the oldest report is from rank {} on {}, {} ago",
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
        Some(RankPhase::Broken { error }) => format!(": {error}"),
        Some(RankPhase::Failed { failure }) => format!(": {failure}"),
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
        sentence: format!("it {what}: {text}{error}{others}"),
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
