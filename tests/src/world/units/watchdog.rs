//! Liveness after the faults have ended: a drained worker releases its units in time, and no job
//! waits for devices that units of lower priority hold.

use super::oracle::members;
use crate::world::World;
use crate::world::plan::DETECT_WITHIN_MS;
use crate::world::ranks::Process;
use coordinator_core::event::{JobPhase, JobRecord, Member};
use proto::id::JobId;
use proto::spec::JobSpec;
use std::collections::BTreeMap;
use worker_core::event::RankKey;

/// Time between checks.
const CHECK_EVERY_MS: u64 = 1_000;
/// Faults that began before `heal_at`, such as stalled streams and paused processes, may last this
/// much longer.
const AFTERMATH_MS: u64 = 4 * DETECT_WITHIN_MS;
/// A drained worker must have no processes of units after this time.
const DRAIN_WITHIN_MS: u64 = 4 * DETECT_WITHIN_MS;
/// Units must be preempted for a job of higher priority within this time.
const PREEMPT_WITHIN_MS: u64 = 20 * DETECT_WITHIN_MS;

/// Since when each temporary condition holds.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    next_check: u64,
    /// By node index.
    drained: BTreeMap<usize, u64>,
    blocked: BTreeMap<JobId, u64>,
}

impl World {
    /// Requires that no temporary condition has lasted too long.
    pub(crate) fn check_progress(&mut self) {
        if self.now < self.watchdog.next_check || self.now < self.plan.heal_at + AFTERMATH_MS {
            return;
        }
        self.watchdog.next_check = self.now + CHECK_EVERY_MS;
        let drained = (0..self.nodes.len()).filter(|node| {
            let name = &self.nodes[*node].name;
            self.durable.drained.contains(name)
        });
        let drained: Vec<usize> = drained.collect();
        self.watchdog
            .drained
            .retain(|node, _| drained.contains(node));
        for node in drained {
            let since = *self.watchdog.drained.entry(node).or_insert(self.now);
            if since + DRAIN_WITHIN_MS < self.now {
                self.require_drained(node);
            }
        }
        self.require_quotas();
        let urgent = self.blocked_by_lower_priority();
        self.watchdog
            .blocked
            .retain(|job, _| Some(job) == urgent.as_ref());
        if let Some(job) = urgent {
            let since = *self.watchdog.blocked.entry(job.clone()).or_insert(self.now);
            let in_time = self.now <= since + PREEMPT_WITHIN_MS;
            self.oracle.require(in_time, || {
                format!(
                    "{job} waits since {since} ms for devices that are free or held by units of \
                    lower priority"
                )
            });
        }
    }

    fn require_drained(&mut self, node: usize) {
        let there = || {
            self.processes
                .values()
                .filter(|process| process.node == node)
        };
        // A hanging process is killed at a deadline of its daemon; the others of its worker wait
        // for that.
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

    /// No team exceeds its quota; generations that are stopping do not count.
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
                let key = (record.id.clone(), generation);
                if !self.oracle.units.stopping.contains(&key) {
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

    /// The waiting job of highest priority, if it is unique and one node has enough devices that
    /// are free or held by units of lower priority.
    fn blocked_by_lower_priority(&self) -> Option<JobId> {
        let jobs = || self.durable.jobs.values();
        let waiting =
            jobs().filter(|job| matches!(job.phase, JobPhase::Queued { .. }) && !job.paused);
        // An evaluation of a training job takes nothing from other jobs.
        let waiting = waiting.filter(|job| job.parent.is_none());
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
            for member in holders(other).filter(|_| !yields) {
                *held.entry(&member.worker.name).or_default() += member.ranks;
            }
        }
        // It may be waiting for the workers of a gang that is stopping, which has its own deadline.
        let stops = |other: &JobRecord| {
            let key = (other.id.clone(), other.generation);
            other.units.is_none() && self.oracle.units.stopping.contains(&key)
        };
        if jobs().any(stops) {
            return None;
        }
        let fits = self.nodes.iter().any(|node| {
            let held = held.get(node.name.as_str()).copied().unwrap_or(0);
            // A daemon that is shutting down accepts no work, however long its ranks take.
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
        let known = job.source.is_some() || !job.models.is_empty();
        let reads = |spec: &JobSpec| !spec.work.reads().is_empty() && !known;
        spec.is_some_and(|spec| spec.after.iter().all(done) && !reads(spec))
    }
}

/// Members and standbys: all that hold devices for the job.
fn holders(record: &JobRecord) -> impl Iterator<Item = &Member> {
    members(record).iter().chain(&record.standbys)
}
