//! Rank processes that work on units: each processes the units of its lease in sequence, puts every
//! output once, and reports the unit until it is no longer in the lease. Poisoned units kill them
//! or give errors, and the store is sometimes unavailable.

pub(crate) mod bugs;
pub(crate) mod oracle;
pub(crate) mod plan;
pub(crate) mod watchdog;

use super::World;
use super::agenda::SimEvent;
use super::bug::Bug;
use super::describe;
use super::plan::DETECT_WITHIN_MS;
use super::ranks::Pid;
use super::stable_hash::{Actor, StableHash, StableHasher};
use plan::{PlannedUnits, Poison};
use proto::id::{JobId, Step};
use proto::message::{Activity, Stage, UnitReport};
use proto::spec::Work;
use rank_core::units::{Effect, Input, Order, UnitRank};
use worker_core::event::RankKey;

/// A loaded process and its state machine.
#[derive(Debug)]
pub(crate) struct UnitProcess {
    machine: UnitRank,
    /// When it began its current unit.
    since: u64,
    /// Counts begun units; events of an earlier unit are ignored.
    begun: u64,
    /// Its daemon has decided to kill it.
    killed: bool,
}

/// The output of a unit that a rank process has put.
pub(crate) struct UnitPut<'a> {
    key: &'a RankKey,
    unit: u64,
}

impl StableHash for UnitPut<'_> {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.put(102_u8);
        hasher.put(self.key.rank.0);
        hasher.put(self.key.generation.0);
        hasher.put(self.unit);
    }
}

impl World {
    /// The process's report of its units, and its current unit.
    pub(crate) fn unit_report(&self, pid: Pid) -> (UnitReport, Option<Activity>) {
        let Some(process) = self.unit_processes.get(&pid) else {
            return (UnitReport::default(), None);
        };
        let activity = process.machine.working_on().map(|unit| Activity {
            step: Step(0),
            stage: Stage::Unit(unit),
            for_ms: self.now - process.since,
        });
        (process.machine.says().units, activity)
    }

    /// The process loads the weights that its units need.
    pub(crate) fn units_loaded(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        let Some(order) = process.assignment.units() else {
            return;
        };
        let checkpoints = order.source.iter().chain(&order.models);
        let checkpoints: Vec<_> = checkpoints.map(|source| source.checkpoint).collect();
        let job = process.key.job.clone();
        let spec = self.specs.get(&job);
        let reads = spec.into_iter().flat_map(|spec| spec.work.read_jobs());
        let reads: Vec<_> = reads.cloned().zip(checkpoints).collect();
        for (source, checkpoint) in reads {
            if let Some(checkpoint) = checkpoint
                && self.load(pid, &source, checkpoint).is_none()
            {
                return;
            }
        }
        let Some(process) = self.working(pid) else {
            return;
        };
        let machine = UnitRank::new(Order::of(&process.assignment, process.key.rank));
        let process = UnitProcess {
            machine,
            since: self.now,
            begun: 0,
            killed: false,
        };
        self.unit_processes.insert(pid, process);
        self.handle_unit_input(pid, Input::Loaded);
        self.agenda.put(
            self.now + DETECT_WITHIN_MS / 3,
            SimEvent::RankHeartbeat { pid },
        );
    }

    /// The order may change its lease, or ask it to exit.
    pub(crate) fn units_ordered(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        let order = Order::of(&process.assignment, process.key.rank);
        self.handle_unit_input(pid, Input::Ordered(order));
    }

    /// The machine of this process handles an input; its effects are performed.
    fn handle_unit_input(&mut self, pid: Pid, event: Input) {
        let now = self.now;
        let Some(process) = self.unit_processes.get_mut(&pid) else {
            return;
        };
        let effects = process.machine.handle(event);
        let phase = process.machine.says().phase;
        for effect in &effects {
            if let Effect::Begin(unit) = effect {
                process.since = now;
                process.begun += 1;
                let begun = process.begun;
                self.begin_unit(pid, *unit, begun);
                break;
            }
        }
        let Some(process) = self.working(pid) else {
            return;
        };
        process.phase = phase;
        if !effects.is_empty() {
            self.send_report(pid, vec![], vec![]);
        }
    }

    fn begin_unit(&mut self, pid: Pid, unit: u64, begun: u64) {
        let Some(key) = self.processes.get(&pid).map(|process| process.key.clone()) else {
            return;
        };
        self.trace.line(self.now, || {
            format!("{} begins unit {unit}", describe::key(&key))
        });
        self.oracle
            .on_unit_begun(&self.durable, &self.specs, &self.store, &key.job, unit);
        let planned = self
            .planned_units(&key.job)
            .map_or(100, |planned| planned.unit_ms);
        let at = self.now + planned + self.rng.between(0, planned / 4);
        self.agenda.put(at, SimEvent::UnitEnds { pid, begun });
    }

    /// The planned job of a job id.
    fn planned_units(&self, job: &JobId) -> Option<&PlannedUnits> {
        let seeds = match &self.specs.get(job)?.work {
            Work::Train(_) | Work::Build(_) => return None,
            Work::Sample(work) => &work.seeds,
            Work::Evaluate(work) => &work.plan.seeds,
        };
        let mark = *seeds.first()?;
        let mut all = self.plan.units.iter().chain(&self.plan.evaluations);
        all.find(|planned| planned.mark == mark)
    }

    pub(crate) fn unit_ends(&mut self, pid: Pid, begun: u64) {
        if self.working(pid).is_none() {
            return;
        }
        let process = self.unit_processes.get(&pid);
        let process = process.filter(|process| process.begun == begun);
        let Some(unit) = process.and_then(|process| process.machine.working_on()) else {
            return;
        };
        let Some(key) = self.processes.get(&pid).map(|process| process.key.clone()) else {
            return;
        };
        let failures = self.oracle.units.failures(&key.job, unit);
        let planned = self.planned_units(&key.job);
        let poison = planned.and_then(|planned| planned.poison.get(&unit));
        let kills = match poison {
            Some(Poison::Passes { times, .. }) if *times <= failures => None,
            Some(Poison::Passes { kills, .. }) => Some(*kills),
            Some(Poison::Kills) => Some(true),
            Some(Poison::Fails) => Some(false),
            None => None,
        };
        match kills {
            Some(true) => self.rank_dies(pid, false, "killed by signal 9"),
            Some(false) => self.unit_fails(pid, unit, "the image has no pixels".to_owned()),
            None => self.put_unit(pid, &key, unit, begun),
        }
    }

    /// Puts the output into the store, which may fail, be slow, or lose its answer.
    fn put_unit(&mut self, pid: Pid, key: &RankKey, unit: u64, begun: u64) {
        let fault = self.roll_fault(self.plan.noise.shard_faults);
        let kind = if fault { self.rng.between(1, 8) } else { 0 };
        match kind {
            1 => return self.unit_fails(pid, unit, "503 slow down".to_owned()),
            2..=6 => {
                self.trace.line(self.now, || {
                    format!("the store is unavailable to {}", describe::key(key))
                });
                let at = self.now + self.rng.between(100, 2 * DETECT_WITHIN_MS);
                return self.agenda.put(at, SimEvent::UnitEnds { pid, begun });
            }
            _ => {}
        }
        let twice = self.bug == Some(Bug::UnitLeasedTwice);
        let name = if twice { key.generation.0 } else { 0 };
        let lost = self.bug == Some(Bug::UnitOutputLost) && self.rng.chance(20);
        if !lost {
            self.trace
                .record(self.now, Actor::Process(pid), &UnitPut { key, unit });
            self.store.put_unit(&key.job, unit, name);
        }
        if kind == 7 {
            // The output exists, and is never reported.
            return self.rank_dies(pid, false, "killed by signal 11");
        }
        self.handle_unit_input(pid, Input::Done { unit });
    }

    fn unit_fails(&mut self, pid: Pid, unit: u64, error: String) {
        let Some(process) = self.working(pid) else {
            return;
        };
        let job = process.key.job.clone();
        self.oracle.units.on_failed(&job, unit);
        self.handle_unit_input(pid, Input::Failed { unit, error });
    }

    /// The daemon kills it, and attributes this to its current unit before the process has exited.
    pub(crate) fn unit_rank_killed(&mut self, pid: Pid) {
        let Some(job) = self
            .processes
            .get(&pid)
            .map(|process| process.key.job.clone())
        else {
            return;
        };
        let process = self.unit_processes.get_mut(&pid);
        let Some(process) = process.filter(|process| !process.killed) else {
            return;
        };
        process.killed = true;
        if let Some(unit) = process.machine.working_on() {
            self.oracle.units.on_failed(&job, unit);
        }
    }

    /// A process has exited, was killed, or exited because a message was late: without other
    /// information this is attributed to its current unit.
    pub(crate) fn unit_rank_exited(&mut self, pid: Pid, job: &JobId) {
        let process = self.unit_processes.remove(&pid);
        let process = process.filter(|process| !process.killed);
        let unit = process.and_then(|process| process.machine.working_on());
        if let Some(unit) = unit {
            self.oracle.units.on_failed(job, unit);
        }
    }
}
