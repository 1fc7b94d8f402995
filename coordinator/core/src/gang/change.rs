//! What a gang requests from placement, and how it changes from its current members to the desired
//! ones.

use super::job::{Gang, State};
use crate::format::names;
use crate::partitions::Partitions;
use crate::placement::{Demand, Takes};
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::WorkerId;
use proto::message::RankPhase;
use proto::reason::Stopped;

impl Gang {
    /// What it requests from placement, if it should run.
    pub(crate) fn demand(&self, partitions: &Partitions, now: Millis) -> Option<Demand> {
        if !self.should_run() {
            return None;
        }
        let resources = &self.head.spec.resources;
        let workers_max = self.head.max_workers();
        Some(Demand {
            job: self.head.id.clone(),
            number: self.head.number,
            priority: resources.priority,
            team: resources.team.clone(),
            workers_min: self.head.spec.resources.workers_min.min(workers_max),
            workers_max,
            devices_per_worker: resources.devices_per_worker,
            device: resources.device,
            takes: Takes::Any,
            warm: if self.is_queued() {
                self.ready()
            } else {
                Vec::new()
            },
            avoid: Vec::new(),
            // Only the state of its ranks ends a running generation, not the daemons' reports of
            // unreachable peers.
            partitions: partitions.not_among(self.members().iter().map(|member| &member.worker)),
            in_grace_period: self.is_in_grace_period(now),
            holds: self
                .members()
                .iter()
                .map(|member| member.worker.clone())
                .collect(),
        })
    }

    /// When the grace period ends, if the job is waiting in it.
    pub(super) fn grace_ends_at(&self, now: Millis) -> Option<Millis> {
        let until = self.in_grace_period()?;
        (self.should_run() && self.is_in_grace_period(now)).then_some(until)
    }

    /// True while it should run, including while it runs.
    fn should_run(&self) -> bool {
        match &self.state {
            // While a manifest is being written, the checkpoint to resume from is not known.
            State::Queued(_) => {
                !(self.head.blocked_by.is_some()
                    || self.head.paused
                    || self.writing.is_some()
                    || self.is_time_up()
                    || self.head.must_fail())
            }
            State::Running(_) => true,
            State::Ended(_) => false,
        }
    }

    fn in_grace_period(&self) -> Option<Millis> {
        match &self.state {
            State::Queued(queued) => Some(queued.grace_until),
            State::Running(_) | State::Ended(_) => None,
        }
    }

    fn is_in_grace_period(&self, now: Millis) -> bool {
        self.in_grace_period().is_some_and(|until| now < until)
            && self.ready().len() < self.head.min_workers()
    }

    /// Of the assigned workers, its members and the standbys that are ready to join them.
    pub(crate) fn next_members(&self, given: &[WorkerId]) -> Vec<WorkerId> {
        let ready = self.ready();
        let available = |worker: &&WorkerId| self.is_member(worker) || ready.contains(worker);
        given.iter().filter(available).cloned().collect()
    }

    /// How its generation should change to the next one, whose members would be `next`.
    pub(crate) fn change(&self, next: &[WorkerId]) -> Change {
        let Some(running) = self.running() else {
            return Change::No;
        };
        let stays = next.iter().filter(|worker| self.is_member(worker)).count();
        let enough = 0 < stays && self.head.min_workers() <= next.len();
        let now = || {
            let why = Stopped::Continues { on: names(next) };
            Change::Now(next.to_vec(), why)
        };
        if self.is_between_steps() {
            return if enough { now() } else { Change::Relocate };
        }
        if let Some(warm) = self
            .warm_members(next)
            .filter(|warm| self.head.min_workers() <= warm.len())
        {
            let why = Stopped::ContinuesWarm { on: names(&warm) };
            return Change::Now(warm, why);
        }
        let grows = stays == self.members().len();
        let phases = || running.ranks.values().map(|rank| &rank.phase);
        if grows {
            // Stop only after the generation has completed a step, and once for all preparing
            // standbys.
            let stepped = self.newest.last_step.is_some()
                && phases().all(|it| *it == Some(RankPhase::Training));
            let grace_over = self.ready().len() == self.standbys.members().len();
            return if stays < next.len() && stepped && grace_over {
                Change::AtStep
            } else {
                Change::No
            };
        }
        if !enough {
            return Change::Relocate;
        }
        let is_forming =
            phases().all(|it| matches!(it, None | Some(RankPhase::Starting | RankPhase::Joining)));
        if is_forming {
            return now();
        }
        Change::AtStep
    }

    /// While a generation forms from live processes and newly started ones: the members that are
    /// not starting any more. None if no member needs to wait for a start, or if that is not known
    /// yet.
    fn warm_members(&self, next: &[WorkerId]) -> Option<Vec<WorkerId>> {
        let running = self.running()?;
        let ranks = || running.ranks.values();
        let forming =
            |rank: &RankLive| matches!(rank.phase, Some(RankPhase::Starting | RankPhase::Joining));
        let is_starting = |rank: &RankLive| rank.phase == Some(RankPhase::Starting);
        if !ranks().all(forming) || ranks().all(|it| it.cold) {
            return None;
        }
        let cold = |member: &&Member| {
            let own = running.ranks.iter().filter(|(rank, _)| member.runs(**rank));
            own.map(|(_, live)| live).any(is_starting)
        };
        let cold: Vec<&WorkerId> = self
            .members()
            .iter()
            .filter(cold)
            .map(|it| &it.worker)
            .collect();
        if cold.is_empty() {
            return None;
        }
        let warm = next.iter().filter(|worker| !cold.contains(worker)).cloned();
        Some(warm.collect())
    }
}

/// How a generation changes to the next one.
pub(crate) enum Change {
    No,
    /// Immediately, to these workers, with the reason. No rank is in the middle of a step.
    Now(Vec<WorkerId>, Stopped),
    /// After the current step.
    AtStep,
    /// Too few of its processes would continue.
    Relocate,
}
