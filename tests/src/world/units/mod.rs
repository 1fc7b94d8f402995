//! Rank processes that work on units: each takes one after the other of what its lease names, puts its output once and says
//! so until the lease names it no more. They die of poisoned units, or give errors, and the store is away now and then.

pub(crate) mod oracle;
pub(crate) mod plan;
pub(crate) mod spoil;
pub(crate) mod watch;

use super::World;
use super::agenda::Happening;
use super::bug::Bug;
use super::numbers::{Numbered, Numbers, Who};
use super::plan::DETECT_WITHIN_MS;
use super::ranks::Pid;
use super::tell;
use plan::{PlannedUnits, Poison};
use proto::id::{JobId, Step};
use proto::message::{Assignment, Doing, Piece, RankPhase, UnitFailure, UnitRange, UnitReport};
use std::collections::{BTreeMap, BTreeSet};
use worker_core::event::RankKey;

/// What a process knows of its units.
#[derive(Debug, Default)]
pub(crate) struct UnitRank {
    /// Those that its lease still names.
    done: BTreeSet<u64>,
    failed: BTreeMap<u64, String>,
    at: Option<At>,
    /// Counts units begun: what was put on the agenda for an earlier one is forgotten.
    begun: u64,
}

#[derive(Debug, Clone, Copy)]
struct At {
    unit: u64,
    since: u64,
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

impl UnitRank {
    fn report(&self) -> UnitReport {
        let failed = self.failed.iter();
        let failed = failed.map(|(unit, error)| UnitFailure {
            unit: *unit,
            error: error.clone(),
        });
        UnitReport {
            done: ranges(&self.done),
            failed: failed.collect(),
        }
    }
}

/// The same numbers, as ranges.
fn ranges(units: &BTreeSet<u64>) -> Vec<UnitRange> {
    let mut ranges: Vec<UnitRange> = Vec::new();
    for unit in units {
        match ranges.last_mut() {
            Some(last) if last.end == *unit => last.end += 1,
            _ => ranges.push(UnitRange::one(*unit)),
        }
    }
    ranges
}

impl World {
    /// What this process says of its units, and at which it is.
    pub(crate) fn unit_report(&self, pid: Pid) -> (UnitReport, Option<Doing>) {
        let Some(rank) = self.unit_ranks.get(&pid) else {
            return (UnitReport::default(), None);
        };
        let doing = rank.at.map(|at| Doing {
            step: Step(0),
            piece: Piece::Unit(at.unit),
            for_ms: self.now - at.since,
        });
        (rank.report(), doing)
    }

    /// It has loaded the weights that its units are made with.
    pub(crate) fn units_loaded(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
        let Some(order) = process.assignment.units() else { return };
        let checkpoint = order.source.as_ref().and_then(|source| source.checkpoint);
        let job = process.key.job.clone();
        let source = self.specs.get(&job).and_then(|spec| spec.work.sampling());
        let source = source.map(|work| work.job.clone());
        if let Some((checkpoint, source)) = checkpoint.zip(source)
            && self.load(pid, &source, checkpoint).is_none()
        {
            return;
        }
        let Some(process) = self.working(pid) else { return };
        process.phase = RankPhase::Training;
        self.unit_ranks.insert(pid, UnitRank::default());
        self.rank_beats(pid);
        self.units_go_on(pid);
    }

    /// Its lease may be another, or it should leave.
    pub(crate) fn units_told(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
        let leased = leased(&process.assignment, process.key.rank);
        let Some(rank) = self.unit_ranks.get_mut(&pid) else {
            return;
        };
        let is_leased = |unit: &u64| leased.iter().any(|it| (it.first..it.end).contains(unit));
        rank.done.retain(is_leased);
        rank.failed.retain(|unit, _| is_leased(unit));
        self.units_go_on(pid);
    }

    /// Takes the next unit, where it is at none.
    fn units_go_on(&mut self, pid: Pid) {
        let now = self.now;
        let Some(process) = self.working(pid) else { return };
        if process.phase != RankPhase::Training {
            return;
        }
        let (key, halts) = (process.key.clone(), process.assignment.halt.is_some());
        let leased = leased(&process.assignment, key.rank);
        let Some(rank) = self.unit_ranks.get_mut(&pid) else {
            return;
        };
        if rank.at.is_some() {
            return;
        }
        if halts {
            return self.units_end(pid);
        }
        let mut units = leased.iter().flat_map(|range| range.first..range.end);
        let next = units.find(|unit| !rank.done.contains(unit) && !rank.failed.contains_key(unit));
        let Some(unit) = next else { return };
        rank.at = Some(At { unit, since: now });
        rank.begun += 1;
        let begun = rank.begun;
        self.trace
            .line(now, || format!("{} begins unit {unit}", tell::key(&key)));
        self.oracle
            .on_unit_begun(&self.durable, &self.specs, &self.store, &key.job, unit);
        let planned = self.planned_units(&key.job).map_or(100, |planned| planned.unit_ms);
        let takes = planned + self.dice.between(0, planned / 4);
        self.say(pid, vec![], vec![]);
        self.agenda.put(now + takes, Happening::UnitEnds { pid, begun });
    }

    /// It has stopped between two units, as it was told to.
    fn units_end(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
        process.phase = RankPhase::Finished;
        self.say(pid, vec![], vec![]);
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
        let Some(rank) = self.unit_ranks.get(&pid) else { return };
        let Some(at) = rank.at.filter(|_| rank.begun == begun) else {
            return;
        };
        let Some(key) = self.processes.get(&pid).map(|process| process.key.clone()) else {
            return;
        };
        let tried = self.oracle.units.failures(&key.job, at.unit);
        let planned = self.planned_units(&key.job);
        let poison = planned.and_then(|planned| planned.poison.get(&at.unit));
        let kills = match poison {
            Some(Poison::Passes { times, .. }) if *times <= tried => None,
            Some(Poison::Passes { kills, .. }) => Some(*kills),
            Some(Poison::Kills) => Some(true),
            Some(Poison::Fails) => Some(false),
            None => None,
        };
        match kills {
            Some(true) => self.rank_dies(pid, false, "killed by signal 9"),
            Some(false) => self.unit_fails(pid, at.unit, "the picture has no pixels".to_owned()),
            None => self.put_unit(pid, &key, at.unit, begun),
        }
    }

    /// The output goes to the store, which may fail, be slow, or take it and not say so.
    fn put_unit(&mut self, pid: Pid, key: &RankKey, unit: u64, begun: u64) {
        let trouble = self.trouble(self.plan.noise.shard_trouble);
        let kind = if trouble { self.dice.between(1, 8) } else { 0 };
        match kind {
            1 => return self.unit_fails(pid, unit, "503 slow down".to_owned()),
            2..=6 => {
                self.trace
                    .line(self.now, || format!("the store is away for {}", tell::key(key)));
                let at = self.now + self.dice.between(100, 2 * DETECT_WITHIN_MS);
                return self.agenda.put(at, Happening::UnitEnds { pid, begun });
            }
            _ => {}
        }
        let twice = self.bug == Some(Bug::UnitLeasedTwice);
        let name = if twice { key.generation.0 } else { 0 };
        let lost = self.bug == Some(Bug::UnitOutputLost) && self.dice.chance(20);
        if !lost {
            self.trace
                .number(self.now, Who::Process(pid), &UnitPut { key, unit });
            self.store.put_unit(&key.job, unit, name);
        }
        if kind == 7 {
            // It is there, and nobody will say so.
            return self.rank_dies(pid, false, "killed by signal 11");
        }
        if let Some(rank) = self.unit_ranks.get_mut(&pid) {
            rank.at = None;
            rank.done.insert(unit);
        }
        self.unit_is_over(pid);
    }

    fn unit_fails(&mut self, pid: Pid, unit: u64, error: String) {
        let Some(process) = self.working(pid) else { return };
        let job = process.key.job.clone();
        self.oracle.units.failed(&job, unit);
        if let Some(rank) = self.unit_ranks.get_mut(&pid) {
            rank.at = None;
            rank.failed.insert(unit, error);
        }
        self.unit_is_over(pid);
    }

    /// It says what became of the unit, and goes on with the next.
    fn unit_is_over(&mut self, pid: Pid) {
        let begun = self.unit_ranks.get(&pid).map(|rank| rank.begun);
        self.units_go_on(pid);
        if self.unit_ranks.get(&pid).map(|rank| rank.begun) == begun {
            self.say(pid, vec![], vec![]);
        }
    }

    /// A process ended by itself or was killed: whoever is not told otherwise blames the unit that it was at.
    pub(crate) fn unit_rank_gone(&mut self, pid: Pid, job: &JobId, success: bool) {
        let rank = self.unit_ranks.remove(&pid);
        if let Some(at) = rank.and_then(|rank| rank.at).filter(|_| !success) {
            self.oracle.units.failed(job, at.unit);
        }
    }
}

/// What the assignment leases to this rank.
fn leased(assignment: &Assignment, rank: proto::id::Rank) -> Vec<UnitRange> {
    let leases = assignment.units().map(|order| &order.leases);
    leases
        .and_then(|leases| leases.get(&rank))
        .cloned()
        .unwrap_or_default()
}
