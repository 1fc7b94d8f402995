//! The assignments while a solution is computed. This module computes which nodes a gang may take
//! and at what cost; [`super`] decides the order in which gangs take them.

use super::problem::{Access, Demand, NodeCapacity, Problem, Takes};
use super::shortage::shortage;
use super::solution::{Decision, Solution};
use proto::id::WorkerId;
use proto::reason::{Constraint, Reservation, Shortage};
use std::cmp::Reverse;
use std::collections::BTreeMap;

pub(super) struct Table<'a> {
    problem: &'a Problem,
    nodes: Vec<NodeState<'a>>,
    jobs: Vec<JobState>,
    /// Assigned devices, by team and job number.
    teams: BTreeMap<&'a str, BTreeMap<u64, u32>>,
    /// Assigned devices, by team.
    totals: BTreeMap<&'a str, u32>,
}

struct NodeState<'a> {
    node: &'a NodeCapacity,
    /// Devices that are not assigned yet. A job may still hold them.
    free: u32,
    /// Free devices minus those reserved for waiting jobs.
    unreserved: u32,
    /// Jobs that hold devices here that were not assigned to them yet.
    holders: Vec<usize>,
    /// Number of devices that `holders` hold.
    held: u32,
    /// The first job with a reservation here.
    reserved_for: Option<usize>,
}

#[derive(Default)]
struct JobState {
    given: Vec<usize>,
    /// Nodes where it holds devices that were not assigned to it yet.
    holds: Vec<usize>,
    /// None if it is admitted or was not considered yet.
    constraint: Option<Constraint>,
    /// Nodes that it may not take, because other nodes that it may take cannot reach them.
    excluded: Vec<usize>,
}

/// The cost of taking a node: which jobs lose a worker, and the most important of them. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// It holds devices there already.
    Own,
    Free,
    /// Jobs shrink, but keep their minimum.
    Shrinks(Importance),
    /// Jobs fall below their minimum and are preempted.
    Preempts(Importance),
}

/// The importance of a job that loses a worker: its priority, then its age.
type Importance = (i32, Reverse<u64>);

impl<'a> Table<'a> {
    pub(super) fn new(problem: &'a Problem) -> Self {
        let state = |node: &'a NodeCapacity| NodeState {
            node,
            free: node.devices,
            unreserved: node.devices,
            holders: Vec::new(),
            held: 0,
            reserved_for: None,
        };
        let mut nodes: Vec<NodeState<'a>> = problem.nodes.iter().map(state).collect();
        let by_worker: BTreeMap<&WorkerId, usize> = problem
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (&node.worker, index))
            .collect();
        let mut jobs = Vec::new();
        for (job, demand) in problem.demands.iter().enumerate() {
            let mut state = JobState::default();
            for worker in &demand.holds {
                if let Some(index) = by_worker.get(worker)
                    && nodes[*index].node.access != Access::Drained
                {
                    nodes[*index].holders.push(job);
                    nodes[*index].held += demand.devices_per_worker;
                    state.holds.push(*index);
                }
            }
            jobs.push(state);
        }
        Self {
            problem,
            nodes,
            jobs,
            teams: BTreeMap::new(),
            totals: BTreeMap::new(),
        }
    }

    pub(super) fn demand(&self, job: usize) -> &'a Demand {
        &self.problem.demands[job]
    }

    /// Devices assigned to the job's team.
    pub(super) fn team_devices(&self, job: usize) -> u32 {
        self.totals
            .get(self.demand(job).team.as_str())
            .copied()
            .unwrap_or(0)
    }

    /// Devices assigned to jobs of its team that were submitted before it.
    pub(super) fn older_devices(&self, job: usize) -> u32 {
        let demand = self.demand(job);
        let team = self.teams.get(demand.team.as_str());
        team.map_or(0, |jobs| {
            jobs.range(..demand.number)
                .map(|(_, devices)| devices)
                .sum()
        })
    }

    pub(super) fn workers(&self, job: usize) -> usize {
        self.jobs[job].given.len()
    }

    pub(super) fn is_admitted(&self, job: usize) -> bool {
        self.jobs[job].constraint.is_none()
    }

    /// Assigns a job its minimum, or reserves free nodes for it.
    pub(super) fn admit(&mut self, job: usize) {
        let demand = self.demand(job);
        let min_workers = demand.workers_min.max(1);
        self.exclude_unreachable(job);
        if let Some(constraint) = self.over_quota(job, min_workers) {
            return self.set_waiting(job, constraint);
        }
        let grace_over = !demand.in_grace_period
            || self.costs(job).filter(|cost| *cost <= Cost::Free).count()
                >= demand.workers_max as usize;
        if grace_over && min_workers as usize <= self.costs(job).count() {
            for _ in 0..min_workers {
                self.take_cheapest(job);
            }
            return;
        }
        let enough = min_workers as usize <= self.costs(job).count();
        self.set_waiting(
            job,
            if enough {
                Constraint::GracePeriod {
                    workers_max: demand.workers_max,
                }
            } else {
                Constraint::Workers
            },
        );
        if demand.takes != Takes::Any {
            return;
        }
        let usable = |state: &NodeState<'_>| {
            state.node.access != Access::Drained && fits(demand, state.node)
        };
        let usable_workers: Vec<&WorkerId> = (self.nodes.iter().filter(|state| usable(state)))
            .map(|state| &state.node.worker)
            .collect();
        if demand
            .partitions
            .choose_connected(&[], &[], &usable_workers)
            .len()
            < min_workers as usize
        {
            return;
        }
        for state in self.nodes.iter_mut().filter(|state| usable(state)) {
            state.unreserved -= state.unreserved.min(demand.devices_per_worker);
            state.reserved_for.get_or_insert(job);
        }
    }

    /// Excludes nodes so that the remaining ones can all reach each other. Prefers nodes that the
    /// job holds, then the cheapest.
    fn exclude_unreachable(&mut self, job: usize) {
        let partitions = &self.demand(job).partitions;
        if partitions.is_empty() {
            return;
        }
        let mut nodes: Vec<_> = (0..self.nodes.len())
            .filter_map(|index| Some((self.cost(job, index)?, self.preference(job, index), index)))
            .collect();
        nodes.sort();
        let worker = |index: usize| &self.nodes[index].node.worker;
        let (mut own, mut warm, mut cold) = (Vec::new(), Vec::new(), Vec::new());
        for (cost, _, index) in &nodes {
            let list = match cost {
                Cost::Own => &mut own,
                _ if self.demand(job).warm.contains(worker(*index)) => &mut warm,
                _ => &mut cold,
            };
            list.push(worker(*index));
        }
        let together = partitions.choose_connected(&own, &warm, &cold);
        let indices = nodes.into_iter().map(|(_, _, index)| index);
        self.jobs[job].excluded = indices
            .filter(|index| !together.contains(&worker(*index)))
            .collect();
    }

    /// The job waits, and its held devices become available.
    fn set_waiting(&mut self, job: usize, constraint: Constraint) {
        for index in self.jobs[job].holds.clone() {
            self.release(job, index);
        }
        self.jobs[job].constraint = Some(constraint);
    }

    /// Assigns one more worker to an admitted job, if it can use one. Returns whether it did.
    pub(super) fn grow(&mut self, job: usize) -> bool {
        let demand = self.demand(job);
        let more = self.workers(job) < demand.workers_max as usize
            && self.over_quota(job, 1).is_none()
            && self
                .costs(job)
                .any(|cost| !matches!(cost, Cost::Preempts(_)));
        if more {
            self.take_cheapest(job);
        }
        more
    }

    pub(super) fn into_solution(self) -> Solution {
        let decide = |(job, demand): (usize, &Demand)| {
            let state = &self.jobs[job];
            let decision = match &state.constraint {
                Some(constraint) => Decision::Wait(Box::new(self.shortage(job, constraint))),
                None => {
                    let mut workers: Vec<WorkerId> = state
                        .given
                        .iter()
                        .map(|index| self.nodes[*index].node.worker.clone())
                        .collect();
                    workers.sort();
                    Decision::Run(workers)
                }
            };
            (demand.job.clone(), decision)
        };
        self.problem
            .demands
            .iter()
            .enumerate()
            .map(decide)
            .collect()
    }

    fn over_quota(&self, job: usize, workers: u32) -> Option<Constraint> {
        let demand = self.demand(job);
        let quota = *self.problem.quotas.get(&demand.team)?;
        let mut used = self.team_devices(job);
        if demand.takes == Takes::Free {
            used += self.held_by_team(job);
        }
        let needs = u64::from(workers) * u64::from(demand.devices_per_worker);
        let over = u64::from(quota) < u64::from(used) + needs;
        over.then_some(Constraint::Quota { quota, used })
    }

    /// Devices that other jobs of the team hold and that were not assigned to them yet.
    fn held_by_team(&self, job: usize) -> u32 {
        let of_team =
            |other: &usize| *other != job && self.demand(*other).team == self.demand(job).team;
        let held = |other: usize| {
            let workers = u32::try_from(self.jobs[other].holds.len()).unwrap_or(u32::MAX);
            workers.saturating_mul(self.demand(other).devices_per_worker)
        };
        (0..self.jobs.len()).filter(of_team).map(held).sum()
    }

    /// The cost of each node that the job may take.
    fn costs(&self, job: usize) -> impl Iterator<Item = Cost> {
        (0..self.nodes.len()).filter_map(move |index| self.cost(job, index))
    }

    fn cost(&self, job: usize, index: usize) -> Option<Cost> {
        let (demand, state) = (self.demand(job), &self.nodes[index]);
        let needs = demand.devices_per_worker;
        if !fits(demand, state.node)
            || state.free < needs
            || self.jobs[job].excluded.contains(&index)
        {
            return None;
        }
        if demand.avoid.contains(&state.node.worker) {
            return None;
        }
        if state.holders.contains(&job) {
            return Some(Cost::Own);
        }
        if state.node.access != Access::Open
            || state.unreserved < needs
            || self.jobs[job].given.contains(&index)
        {
            return None;
        }
        if needs <= state.free.saturating_sub(state.held) {
            return Some(Cost::Free);
        }
        let victims = self.victims(job, index);
        if !self.may_take_from(job, index, &victims) {
            return None;
        }
        let importance = |victim: &usize| {
            (
                self.demand(*victim).priority,
                Reverse(self.demand(*victim).number),
            )
        };
        Some(match victims.iter().map(importance).max() {
            None => Cost::Free,
            Some(highest) if victims.iter().all(|victim| self.has_surplus(*victim)) => {
                Cost::Shrinks(highest)
            }
            Some(highest) => Cost::Preempts(highest),
        })
    }

    /// Whether the job may take what these jobs hold on a node, if that is enough.
    fn may_take_from(&self, job: usize, index: usize, victims: &[usize]) -> bool {
        let devices = |victim: &usize| self.demand(*victim).devices_per_worker;
        match &self.demand(job).takes {
            Takes::Any => true,
            Takes::Free => false,
            Takes::FreeOrOf(_) => {
                let state = &self.nodes[index];
                let idle = state.free.saturating_sub(state.held);
                let room = idle + victims.iter().map(devices).sum::<u32>();
                let spares = victims.iter().all(|victim| self.has_surplus(*victim));
                self.demand(job).devices_per_worker <= room && spares
            }
        }
    }

    /// The jobs that must leave a node to make room: first those above their minimum, then by
    /// lowest priority, then the youngest.
    fn victims(&self, job: usize, index: usize) -> Vec<usize> {
        let state = &self.nodes[index];
        let mut idle = state.free.saturating_sub(state.held);
        let mut holders = state.holders.clone();
        if let Takes::FreeOrOf(owner) = &self.demand(job).takes {
            holders.retain(|holder| self.demand(*holder).job == *owner);
        }
        holders.sort_by_key(|holder| {
            let demand = self.demand(*holder);
            (
                !self.has_surplus(*holder),
                demand.priority,
                Reverse(demand.number),
            )
        });
        let mut victims = Vec::new();
        for holder in holders {
            if self.demand(job).devices_per_worker <= idle {
                break;
            }
            idle += self.demand(holder).devices_per_worker;
            victims.push(holder);
        }
        victims
    }

    fn has_surplus(&self, job: usize) -> bool {
        let state = &self.jobs[job];
        (self.demand(job).workers_min.max(1) as usize) < state.given.len() + state.holds.len()
    }

    fn take_cheapest(&mut self, job: usize) {
        let index = (0..self.nodes.len())
            .filter_map(|index| Some((self.cost(job, index)?, self.preference(job, index), index)))
            .min()
            .map(|(_, _, index)| index)
            .expect("the caller checked that a node is available");
        let needs = self.demand(job).devices_per_worker;
        if !self.release(job, index) {
            for victim in self.victims(job, index) {
                self.release(victim, index);
                let state = &self.jobs[victim];
                if state.given.len() + state.holds.len()
                    < self.demand(victim).workers_min.max(1) as usize
                {
                    for other in state.holds.clone() {
                        self.release(victim, other);
                    }
                }
            }
        }
        let state = &mut self.nodes[index];
        state.free -= needs;
        state.unreserved = state.unreserved.saturating_sub(needs);
        self.jobs[job].given.push(index);
        let demand = &self.problem.demands[job];
        let team = self.teams.entry(demand.team.as_str()).or_default();
        *team.entry(demand.number).or_default() += needs;
        *self.totals.entry(demand.team.as_str()).or_default() += needs;
    }

    /// The preference among nodes of equal cost: nodes that hold the job's state, then those with
    /// the most free devices, then by name. Among its own, free devices do not count: otherwise a
    /// job that takes one of them would change which of its workers another job may lose.
    fn preference(&self, job: usize, index: usize) -> (bool, Reverse<u32>, &'a WorkerId) {
        let state = &self.nodes[index];
        let worker = &state.node.worker;
        let own = state.holders.contains(&job);
        (
            !self.demand(job).warm.contains(worker),
            Reverse(if own { 0 } else { state.free }),
            worker,
        )
    }

    /// Releases what the job holds on the node. Returns false if it held nothing.
    fn release(&mut self, job: usize, index: usize) -> bool {
        let held = self.jobs[job].holds.contains(&index);
        if held {
            self.jobs[job].holds.retain(|other| *other != index);
            self.nodes[index].holders.retain(|other| *other != job);
            self.nodes[index].held -= self.demand(job).devices_per_worker;
        }
        held
    }

    /// Computed from the final state of the table, so that solving again gives the same result.
    fn shortage(&self, job: usize, constraint: &Constraint) -> Shortage {
        let demand = self.demand(job);
        let mut shortage = shortage(demand, constraint.clone());
        if matches!(constraint, Constraint::Quota { .. }) {
            return shortage;
        }
        let usable = |state: &&NodeState<'_>| {
            fits(demand, state.node) && state.node.access != Access::Drained
        };
        let usable = self
            .nodes
            .iter()
            .filter(usable)
            .map(|state| &state.node.worker);
        shortage.unreachable = demand.partitions.among(usable).list();
        for state in self
            .nodes
            .iter()
            .filter(|state| state.node.device == demand.device)
        {
            let name = state.node.worker.name.clone();
            let list = if !fits(demand, state.node) {
                &mut shortage.too_small
            } else if state.node.access == Access::Drained {
                &mut shortage.drained
            } else if state.free < demand.devices_per_worker || state.node.access == Access::CutOff
            {
                &mut shortage.busy
            } else {
                match state.reserved_for {
                    Some(owner) if owner != job => {
                        shortage.reserved.push(Reservation {
                            worker: name,
                            job: self.demand(owner).job.clone(),
                        });
                        continue;
                    }
                    Some(_) | None => &mut shortage.ready,
                }
            };
            list.push(name);
        }
        shortage
    }
}

fn fits(demand: &Demand, node: &NodeCapacity) -> bool {
    node.device == demand.device && demand.devices_per_worker <= node.devices
}
