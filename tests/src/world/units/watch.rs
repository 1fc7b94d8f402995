//! What a healed world does in time: a worker that somebody drained gets rid of its units, and
//! nobody waits for devices that less urgent units hold.

use super::oracle::members;
use crate::world::World;
use crate::world::plan::DETECT_WITHIN_MS;
use crate::world::ranks::Process;
use coordinator_core::event::{JobPhase, JobRecord, Member};
use proto::id::JobId;
use proto::spec::JobSpec;
use std::collections::BTreeMap;
use worker_core::event::RankKey;

/// How often somebody looks.
const LOOK_MS: u64 = 1_000;
/// What began before a world healed may last so much longer: streams that carry nothing, processes
/// that stand still.
const AFTERMATH_MS: u64 = 4 * DETECT_WITHIN_MS;
/// A drained worker has ended its units and has no process of theirs any more.
const EMPTY_WITHIN_MS: u64 = 4 * DETECT_WITHIN_MS;
/// Units make way for a more urgent job.
const MAKE_WAY_WITHIN_MS: u64 = 20 * DETECT_WITHIN_MS;

/// Since when what should not last does.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    next_look: u64,
    /// By the number of the node.
    drained: BTreeMap<usize, u64>,
    waits: BTreeMap<JobId, u64>,
}

impl World {
    /// Whether everything is as it should be by now.
    pub(crate) fn look(&mut self) {
        if self.now < self.watch.next_look || self.now < self.plan.heal_at + AFTERMATH_MS {
            return;
        }
        self.watch.next_look = self.now + LOOK_MS;
        let drained = (0..self.nodes.len()).filter(|node| {
            let name = &self.nodes[*node].name;
            self.durable.drained.contains(name)
        });
        let drained: Vec<usize> = drained.collect();
        self.watch.drained.retain(|node, _| drained.contains(node));
        for node in drained {
            let since = *self.watch.drained.entry(node).or_insert(self.now);
            if since + EMPTY_WITHIN_MS < self.now {
                self.require_empty(node);
            }
        }
        self.require_quotas();
        let urgent = self.waits_for_less_urgent();
        self.watch
            .waits
            .retain(|job, _| Some(job) == urgent.as_ref());
        if let Some(job) = urgent {
            let since = *self.watch.waits.entry(job.clone()).or_insert(self.now);
            let in_time = self.now <= since + MAKE_WAY_WITHIN_MS;
            self.oracle.require(in_time, || {
                format!(
                    "{job} waits since {since} ms for devices that less urgent units hold or nobody"
                )
            });
        }
    }

    fn require_empty(&mut self, node: usize) {
        let there = || {
            self.processes
                .values()
                .filter(|process| process.node == node)
        };
        // A process that hangs is its daemon's to find, and has a deadline of its own; the others
        // of its worker wait for it.
        let hangs = |key: &RankKey| {
            there()
                .any(|it| it.hung && (&it.key.job, it.key.generation) == (&key.job, key.generation))
        };
        let units = |process: &&Process| process.assignment.units().is_some();
        let left = there().filter(units).find(|process| !hangs(&process.key));
        let left = left
            .map(|process| format!("{} generation {}", process.key.job, process.key.generation));
        let name = self.nodes[node].name.clone();
        self.oracle.require(left.is_none(), || {
            format!(
                "{name} is drained and keeps units of {}",
                left.unwrap_or_default()
            )
        });
    }

    /// No team has more than its quota, save what is about to leave.
    fn require_quotas(&mut self) {
        let mut teams: BTreeMap<&str, u32> = BTreeMap::new();
        for record in self.durable.jobs.values() {
            let Some(spec) = self.specs.get(&record.id) else {
                continue;
            };
            let generations = record.units.as_ref().map(|units| &units.generations);
            for (number, member) in members(record).iter().enumerate() {
                let generation = generations.and_then(|it| it.get(number).copied());
                let generation = generation.unwrap_or(record.generation);
                let leaves = (record.id.clone(), generation);
                if !self.oracle.units.stopping.contains(&leaves) {
                    *teams.entry(&spec.resources.team).or_default() += member.ranks;
                }
            }
        }
        for (team, most) in &self.plan.quotas {
            let used = teams.get(team.as_str()).copied().unwrap_or(0);
            self.oracle.require(used <= *most, || {
                format!("team {team} has {used} devices of {most}")
            });
        }
    }

    /// The most urgent job that waits, if there is one such, and devices enough on one node that
    /// nobody holds or only units of less urgent jobs.
    fn waits_for_less_urgent(&self) -> Option<JobId> {
        let jobs = || self.durable.jobs.values();
        let waiting =
            jobs().filter(|job| matches!(job.phase, JobPhase::Queued { .. }) && !job.paused);
        let waiting: Vec<&JobRecord> = waiting.filter(|job| self.may_start(job)).collect();
        let priority = |job: &JobRecord| {
            self.specs
                .get(&job.id)
                .map_or(0, |spec| spec.resources.priority)
        };
        let most = waiting.iter().map(|job| priority(job)).max()?;
        let mut urgent = waiting.iter().filter(|job| priority(job) == most);
        let (Some(job), None) = (urgent.next(), urgent.next()) else {
            return None;
        };
        let resources = &self.specs.get(&job.id)?.resources;
        let one = resources.workers_min == 1 && !self.plan.quotas.contains_key(&resources.team);
        if !one || !self.coordinator.is_up() {
            return None;
        }
        let mut held: BTreeMap<&str, u32> = BTreeMap::new();
        for other in jobs() {
            let yields = other.units.is_some() && priority(other) < most;
            for member in places(other).filter(|_| !yields) {
                *held.entry(&member.worker.name).or_default() += member.ranks;
            }
        }
        // It may have been given the workers of a gang that ends in order, which has a deadline of
        // its own.
        let stops = |other: &JobRecord| {
            let leaves = (other.id.clone(), other.generation);
            other.units.is_none() && self.oracle.units.stopping.contains(&leaves)
        };
        if jobs().any(stops) {
            return None;
        }
        let fits = self.nodes.iter().any(|node| {
            let held = held.get(node.name.as_str()).copied().unwrap_or(0);
            // A daemon that was asked to leave takes no more work, however long its ranks take.
            let stays = node.is_linked() && !node.is_leaving();
            let used = !self.durable.drained.contains(&node.name) && stays;
            used && held + resources.devices_per_worker <= node.devices
        });
        fits.then(|| job.id.clone())
    }

    fn may_start(&self, job: &JobRecord) -> bool {
        let done = |id: &JobId| {
            let other = self.durable.jobs.get(id);
            other.is_some_and(|other| matches!(other.phase, JobPhase::Done { .. }))
        };
        let spec = self.specs.get(&job.id);
        // A job that samples waits for the first checkpoint of the job that it reads.
        let reads = |spec: &JobSpec| spec.work.sampling().is_some() && job.source.is_none();
        spec.is_some_and(|spec| spec.after.iter().all(done) && !reads(spec))
    }
}

/// Those that hold devices for the job.
fn places(record: &JobRecord) -> impl Iterator<Item = &Member> {
    members(record).iter().chain(&record.standbys)
}
