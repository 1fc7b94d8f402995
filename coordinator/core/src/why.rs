//! `coordinator why`: what a job waits for right now, as one value that becomes one sentence. It changes nothing and
//! decides nothing; it reads what placement, halts, commits and reports left behind.

use crate::Coordinator;
use crate::event::{JobPhase, Millis};
use crate::job::Job;
use crate::live::RankLive;
use crate::placement::{Decision, Shortage};
use crate::report::runs;
use proto::id::{JobId, Rank, WorkerId};
use proto::message::RankPhase;
use proto::spec::Work;

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// One sentence without a full stop.
    pub sentence: String,
    /// One word for what holds the job: `over`, `paused`, `workers`, `connection`, `quota`, `settling`, `release`, `manifest`,
    /// `halting`, `forming`, `step`, `last-checkpoint` or `failed-rank`.
    pub constraint: &'static str,
    /// What would let it go on; None where nothing is needed.
    pub remedy: Option<String>,
    /// The rank that all others wait for.
    pub waits_for: Option<WaitsFor>,
}

/// A rank, where it is, and for how long it has been there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitsFor {
    pub rank: Rank,
    pub worker: WorkerId,
    /// What it does there, in a few words.
    pub phase: String,
    pub for_ms: u64,
}

impl Coordinator {
    /// What the job waits for at `now`, in the clock of the shell; None: there is no such job.
    #[must_use]
    pub fn why(&self, now: Millis, id: &JobId) -> Option<Why> {
        let job = self.jobs.get(id)?;
        let now = self.clock.at(now);
        Some(match &job.record.phase {
            JobPhase::Running { .. } => self.why_left_out(job, job.why_running(now)),
            JobPhase::Queued { reason } => self.why_queued(job, reason),
            JobPhase::Done { .. } => simple("over", "it is done", None),
            JobPhase::Cancelled { .. } => simple("over", "somebody cancelled it", None),
            JobPhase::Failed { reason, .. } => simple("over", &format!("it failed: {reason}"), None),
        })
    }

    /// Adds who could join and does not reach those that it should join.
    fn why_left_out(&self, job: &Job, mut why: Why) -> Why {
        let members = || job.members().iter().map(|member| &member.worker);
        for reserve in job.reserved() {
            let pairs = self.apart.among(members().chain([reserve]));
            if self
                .apart
                .from(reserve)
                .any(|other| members().any(|member| member == other))
            {
                why.sentence = format!("{}; {} is left out: {pairs}", why.sentence, reserve.name);
            }
        }
        why
    }

    fn why_queued(&self, job: &Job, reason: &str) -> Why {
        let id = &job.record.id;
        if job.writing.is_some() {
            let sentence = "it waits to hear whether its last manifest was written".to_owned();
            return simple(
                "manifest",
                &sentence,
                Some("an answer of the object store".to_owned()),
            );
        }
        if job.record.paused {
            return simple(
                "paused",
                "somebody paused it",
                Some(format!("`coordinator resume {id}`")),
            );
        }
        let decision = self.solved.as_ref().and_then(|(_, solution)| solution.get(id));
        match decision {
            Some(Decision::Wait(shortage)) => Why {
                sentence: format!("it {shortage}{}", job.kept()),
                constraint: shortage.constraint(),
                remedy: Some(Shortage::remedy(shortage)),
                waits_for: None,
            },
            Some(Decision::Run(_)) => simple(
                "release",
                &format!("it {reason}"),
                Some("their halt, which has begun".to_owned()),
            ),
            None => simple("workers", reason, None),
        }
    }
}

impl Job {
    fn why_running(&self, now: Millis) -> Why {
        if let Some(rank) = self.last_rank(|rank| matches!(rank.phase, Some(RankPhase::Failed { .. }))) {
            return self.waits("failed-rank", "ends because", rank, now);
        }
        let behind = self
            .last_rank(|rank| matches!(rank.phase, None | Some(RankPhase::Starting | RankPhase::Joining)));
        if let Some(rank) = behind {
            return self.waits("forming", "forms a group and waits because", rank, now);
        }
        if let Some(why) = self.halting() {
            let finishing = self.last_rank(|rank| rank.phase != Some(RankPhase::Finished));
            let mut answer = match finishing {
                Some(rank) => self.waits(
                    "halting",
                    "ends its generation in order and waits because",
                    rank,
                    now,
                ),
                None => simple(
                    "halting",
                    "ends its generation in order and waits for its checkpoint to be committed",
                    None,
                ),
            };
            answer.sentence = format!("{} ({why})", answer.sentence);
            return answer;
        }
        if let Some(writing) = &self.writing
            && self.live.all_finished()
        {
            let step = writing.checkpoint().step;
            let sentence =
                format!("all ranks are done; it waits for the manifest of step {step} to be written");
            return simple(
                "manifest",
                &sentence,
                Some("an answer of the object store".to_owned()),
            );
        }
        if self.live.all_finished() {
            return simple(
                "last-checkpoint",
                "all ranks are done; it waits for the shards of the last checkpoint",
                None,
            );
        }
        self.why_training(now)
    }

    fn why_training(&self, now: Millis) -> Why {
        let for_ms = now.saturating_sub(self.live.stepped_at);
        let last = self.live.last_step.as_ref().map(|step| step.seconds.total());
        let last = last.map_or_else(String::new, |seconds| {
            format!("; the step before took {seconds:.1} s")
        });
        let (waits_for, awaited) = self.awaited(now);
        let for_so_long = seconds(for_ms);
        let sentence = match self.record.spec.work {
            Work::Train(_) => {
                // The ranks know it; what rank 0 told last may be of the generation before.
                let doing = self.live.ranks.values().filter_map(|rank| rank.doing);
                let doing = doing.map(|doing| doing.step.0).max().unwrap_or(0);
                let step = doing.max(self.live.acknowledged.0 + 1);
                format!("it trains: step {step} has been going on for {for_so_long}{last}{awaited}")
            }
            Work::Sample(_) => format!("it has been drawing pictures for {for_so_long}{awaited}"),
        };
        Why {
            sentence,
            constraint: "step",
            remedy: None,
            waits_for,
        }
    }

    /// Whom a step waits for, as the end of a sentence too: who is slowest by what the ranks say, or else who was heard
    /// least recently.
    fn awaited(&self, now: Millis) -> (Option<WaitsFor>, String) {
        if let Some(slowest) = self.live.slowest(now)
            && let Some(live) = self.live.ranks.get(&slowest.rank)
            && let Some(mut it) = self.waits_for(slowest.rank, live, live.since, now)
        {
            it.for_ms = slowest.for_ms;
            it.phase = format!("{}: {}", it.phase, slowest.piece);
            let others = match slowest.waiting {
                0 => String::new(),
                1 => ", and another waits for it in the reduction".to_owned(),
                waiting => format!(", and {waiting} others wait for it in the reduction"),
            };
            let text = format!(
                "; rank {} on {} has been in {} for {}{others}",
                it.rank,
                it.worker.name,
                slowest.piece,
                seconds(it.for_ms)
            );
            return (Some(it), text);
        }
        let silent = self
            .live
            .longest_silent()
            .and_then(|(rank, _)| self.live.ranks.get_key_value(&rank));
        let waits_for = silent.and_then(|(rank, live)| self.waits_for(*rank, live, live.heard, now));
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

    /// Of the ranks that are so, the one that has been longest.
    pub(crate) fn last_rank(&self, so: impl Fn(&RankLive) -> bool) -> Option<(Rank, &RankLive)> {
        let ranks = self.live.ranks.iter().filter(|(_, live)| so(live));
        ranks
            .min_by_key(|(_, live)| live.since)
            .map(|(rank, live)| (*rank, live))
    }

    fn waits(
        &self,
        constraint: &'static str,
        what: &str,
        (rank, live): (Rank, &RankLive),
        now: Millis,
    ) -> Why {
        let waits_for = self.waits_for(rank, live, live.since, now);
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
        let others = self.live.ranks.len().saturating_sub(1);
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

    fn waits_for(&self, rank: Rank, live: &RankLive, since: Millis, now: Millis) -> Option<WaitsFor> {
        let member = self.members().iter().find(|member| runs(member, rank))?;
        let phase = live.phase.as_ref().map_or("not reported", phase_word);
        Some(WaitsFor {
            rank,
            worker: member.worker.clone(),
            phase: phase.to_owned(),
            for_ms: now.saturating_sub(since),
        })
    }
}

fn phase_word(phase: &RankPhase) -> &'static str {
    match phase {
        RankPhase::Starting => "starting",
        RankPhase::Ready => "ready",
        RankPhase::Joining => "joining",
        RankPhase::Training => "training",
        RankPhase::Broken { .. } => "between generations",
        RankPhase::Finished => "finished",
        RankPhase::Failed { .. } => "failed",
    }
}

fn simple(constraint: &'static str, sentence: &str, remedy: Option<String>) -> Why {
    Why {
        sentence: sentence.to_owned(),
        constraint,
        remedy,
        waits_for: None,
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}
