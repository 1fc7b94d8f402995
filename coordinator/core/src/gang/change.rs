//! What a gang asks of placement, and how it goes over from the members that it has to those that
//! it should have.

use super::job::{Gang, State};
use crate::partitions::Partitions;
use crate::placement::Demand;
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use crate::words::listed;
use proto::id::WorkerId;
use proto::message::RankPhase;

impl Gang {
    /// What it asks of placement, if it wants to run.
    pub(crate) fn demand(&self, partitions: &Partitions, now: Millis) -> Option<Demand> {
        if !self.asks() {
            return None;
        }
        let resources = &self.head.spec.resources;
        let workers_max = self.head.most();
        Some(Demand {
            job: self.head.id.clone(),
            number: self.head.number,
            priority: resources.priority,
            team: resources.team.clone(),
            workers_min: self.head.spec.resources.workers_min.min(workers_max),
            workers_max,
            devices_per_worker: resources.devices_per_worker,
            device: resources.device,
            warm: if self.is_queued() {
                self.ready()
            } else {
                Vec::new()
            },
            avoid: Vec::new(),
            // A generation that trains is taken apart by what its ranks do, not by what daemons
            // say.
            partitions: partitions.beyond(self.members().iter().map(|member| &member.worker)),
            in_grace_period: self.is_in_grace_period(now),
            holds: self
                .members()
                .iter()
                .map(|member| member.worker.clone())
                .collect(),
        })
    }

    /// Until when it would rather have all workers that it can use, if it waits for that.
    pub(super) fn grace_ends_at(&self, now: Millis) -> Option<Millis> {
        let until = self.in_grace_period()?;
        (self.asks() && self.is_in_grace_period(now)).then_some(until)
    }

    /// True while it wants to run, be it that it does.
    fn asks(&self) -> bool {
        match &self.state {
            // While a manifest is on its way nobody knows from where the job would go on.
            State::Queued(_) => {
                !(self.head.held_up.is_some()
                    || self.head.paused
                    || self.writing.is_some()
                    || self.head.is_lost())
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
            && self.ready().len() < self.head.least()
    }

    /// Of the workers that it is given, its members and those that are ready to join them.
    pub(crate) fn next_members(&self, given: &[WorkerId]) -> Vec<WorkerId> {
        let ready = self.ready();
        let there = |worker: &&WorkerId| self.is_member(worker) || ready.contains(worker);
        given.iter().filter(there).cloned().collect()
    }

    /// How its generation should go over to the next, which would have the members `next`.
    pub(crate) fn change(&self, next: &[WorkerId]) -> Change {
        let Some(running) = self.running() else {
            return Change::No;
        };
        let stays = next.iter().filter(|worker| self.is_member(worker)).count();
        let enough = 0 < stays && self.head.least() <= next.len();
        let now = || Change::Now(next.to_vec(), format!("it goes on on {}", listed(next)));
        if self.is_between_steps() {
            return if enough { now() } else { Change::Elsewhere };
        }
        if let Some(warm) = self
            .warm_members(next)
            .filter(|warm| self.head.least() <= warm.len())
        {
            let why = format!("{} do not wait for others to start", listed(&warm));
            return Change::Now(warm, why);
        }
        let grows = stays == self.members().len();
        let phases = || running.ranks.values().map(|rank| &rank.phase);
        if grows {
            // Worth a stop only once the generation has made a step, and once for all that get
            // ready.
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
            return Change::Elsewhere;
        }
        let forms =
            phases().all(|it| matches!(it, None | Some(RankPhase::Starting | RankPhase::Joining)));
        if forms {
            return now();
        }
        Change::AtStep
    }

    /// While a generation forms of processes that live on and others that are just started: those
    /// that are not starting any more. None: nobody need wait for a start, or it is not clear yet.
    fn warm_members(&self, next: &[WorkerId]) -> Option<Vec<WorkerId>> {
        let running = self.running()?;
        let ranks = || running.ranks.values();
        let known =
            |rank: &RankLive| matches!(rank.phase, Some(RankPhase::Starting | RankPhase::Joining));
        let starts = |rank: &RankLive| rank.phase == Some(RankPhase::Starting);
        if !ranks().all(known) || ranks().all(|it| it.cold) {
            return None;
        }
        let cold = |member: &&Member| {
            let own = running.ranks.iter().filter(|(rank, _)| member.runs(**rank));
            own.map(|(_, live)| live).any(starts)
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

/// How a generation goes over to the next.
pub(crate) enum Change {
    No,
    /// At once, to these workers, and why: nobody is in the middle of a step.
    Now(Vec<WorkerId>, String),
    /// After the step that is under way.
    AtStep,
    /// Too few of its processes would go on.
    Elsewhere,
}
