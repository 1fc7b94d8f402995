//! Rank processes that work on units: each takes one after the other of what its lease names, puts
//! its output once and says so until the lease names it no more. They die of poisoned units, or
//! give errors, and the store is away now and then.

pub(crate) mod oracle;
pub(crate) mod plan;
pub(crate) mod spoil;
pub(crate) mod watch;

use super::World;
use super::agenda::SimEvent;
use super::bug::Bug;
use super::numbers::{Numbered, Numbers, Who};
use super::plan::DETECT_WITHIN_MS;
use super::ranks::Pid;
use super::tell;
use plan::{PlannedUnits, Poison};
use proto::id::{JobId, Step};
use proto::message::{Activity, Stage, UnitReport};
use rank_core::units::{Effect, Input, Order, UnitRank};
use worker_core::event::RankKey;

/// A process that has loaded everything, and what it decides by.
#[derive(Debug)]
pub(crate) struct UnitProcess {
    machine: UnitRank,
    /// When it began the unit that it is at.
    since: u64,
    /// Counts units begun: what was put on the agenda for an earlier one is forgotten.
    begun: u64,
    /// Its daemon kills it, and has said so.
    killed: bool,
}

/// A rank process has put the output of a unit.
pub(crate) struct UnitPut<'a> {
    key: &'a RankKey,
    unit: u64,
}

impl Numbered for UnitPut<'_> {
    fn number(&self, numbers: &mut Numbers) {
        numbers.put(102_u8);
        numbers.put(self.key.rank.0);
        numbers.put(self.key.generation.0);
        numbers.put(self.unit);
    }
}

impl World {
    /// What this process says of its units, and at which it is.
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

    /// It has loaded the weights that its units are made with.
    pub(crate) fn units_loaded(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        let Some(order) = process.assignment.units() else {
            return;
        };
        let checkpoint = order.source.as_ref().and_then(|source| source.checkpoint);
        let job = process.key.job.clone();
        let source = self.specs.get(&job).and_then(|spec| spec.work.sampling());
        let source = source.map(|work| work.job.clone());
        if let Some((checkpoint, source)) = checkpoint.zip(source)
            && self.load(pid, &source, checkpoint).is_none()
        {
            return;
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
        self.unit_rank(pid, Input::Loaded);
        self.agenda
            .put(self.now + DETECT_WITHIN_MS / 3, SimEvent::RankBeat { pid });
    }

    /// Its lease may be another, or it should leave.
    pub(crate) fn units_told(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        let order = Order::of(&process.assignment, process.key.rank);
        self.unit_rank(pid, Input::Ordered(order));
    }

    /// The machine of this process is told something, and what it wants is done.
    fn unit_rank(&mut self, pid: Pid, event: Input) {
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
            self.say(pid, vec![], vec![]);
        }
    }

    fn begin_unit(&mut self, pid: Pid, unit: u64, begun: u64) {
        let Some(key) = self.processes.get(&pid).map(|process| process.key.clone()) else {
            return;
        };
        self.trace.line(self.now, || {
            format!("{} begins unit {unit}", tell::key(&key))
        });
        self.oracle
            .on_unit_begun(&self.durable, &self.specs, &self.store, &key.job, unit);
        let planned = self
            .planned_units(&key.job)
            .map_or(100, |planned| planned.unit_ms);
        let at = self.now + planned + self.rng.between(0, planned / 4);
        self.agenda.put(at, SimEvent::UnitEnds { pid, begun });
    }

    /// The planned job that a job became.
    fn planned_units(&self, job: &JobId) -> Option<&PlannedUnits> {
        let mark = *self.specs.get(job)?.work.sampling()?.seeds.first()?;
        self.plan.units.iter().find(|planned| planned.mark == mark)
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
        let tried = self.oracle.units.failures(&key.job, unit);
        let planned = self.planned_units(&key.job);
        let poison = planned.and_then(|planned| planned.poison.get(&unit));
        let kills = match poison {
            Some(Poison::Passes { times, .. }) if *times <= tried => None,
            Some(Poison::Passes { kills, .. }) => Some(*kills),
            Some(Poison::Kills) => Some(true),
            Some(Poison::Fails) => Some(false),
            None => None,
        };
        match kills {
            Some(true) => self.rank_dies(pid, false, "killed by signal 9"),
            Some(false) => self.unit_fails(pid, unit, "the picture has no pixels".to_owned()),
            None => self.put_unit(pid, &key, unit, begun),
        }
    }

    /// The output goes to the store, which may fail, be slow, or take it and not say so.
    fn put_unit(&mut self, pid: Pid, key: &RankKey, unit: u64, begun: u64) {
        let trouble = self.trouble(self.plan.noise.shard_trouble);
        let kind = if trouble { self.rng.between(1, 8) } else { 0 };
        match kind {
            1 => return self.unit_fails(pid, unit, "503 slow down".to_owned()),
            2..=6 => {
                self.trace.line(self.now, || {
                    format!("the store is away for {}", tell::key(key))
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
                .number(self.now, Who::Process(pid), &UnitPut { key, unit });
            self.store.put_unit(&key.job, unit, name);
        }
        if kind == 7 {
            // It is there, and nobody will say so.
            return self.rank_dies(pid, false, "killed by signal 11");
        }
        self.unit_rank(pid, Input::Done { unit });
    }

    fn unit_fails(&mut self, pid: Pid, unit: u64, error: String) {
        let Some(process) = self.working(pid) else {
            return;
        };
        let job = process.key.job.clone();
        self.oracle.units.failed(&job, unit);
        self.unit_rank(pid, Input::Failed { unit, error });
    }

    /// Its daemon kills it, and blames the unit that it is at before the process is gone.
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
            self.oracle.units.failed(&job, unit);
        }
    }

    /// A process ended by itself or was killed, or left because a message came late: whoever knows
    /// no better blames the unit that it was at.
    pub(crate) fn unit_rank_gone(&mut self, pid: Pid, job: &JobId) {
        let process = self.unit_processes.remove(&pid);
        let process = process.filter(|process| !process.killed);
        let unit = process.and_then(|process| process.machine.working_on());
        if let Some(unit) = unit {
            self.oracle.units.failed(job, unit);
        }
    }
}
