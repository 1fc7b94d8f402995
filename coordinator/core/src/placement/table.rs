//! What is given to whom while a solution is made. It knows what a gang may take and at whose cost;
//! [`super`] knows in which order they take it.

use super::problem::{Access, Demand, NodeCapacity, Problem};
use super::shortage::{Blocker, Lack, Shortage};
use super::solution::{Decision, Solution};
use proto::id::WorkerId;
use std::cmp::Reverse;
use std::collections::BTreeMap;

pub(super) struct Table<'a> {
    problem: &'a Problem,
    nodes: Vec<NodeState<'a>>,
    jobs: Vec<JobState>,
    /// Devices given, by team and number of the job.
    teams: BTreeMap<&'a str, BTreeMap<u64, u32>>,
    /// The same, by team.
    totals: BTreeMap<&'a str, u32>,
}

struct NodeState<'a> {
    node: &'a NodeCapacity,
    /// Devices that were not given to anybody yet, though somebody may hold them still.
    free: u32,
    /// The same less what waiting jobs keep for themselves.
    open: u32,
    /// Jobs that hold devices here beyond what they were given, and how many all of them hold.
    holders: Vec<usize>,
    held: u32,
    /// The first job that keeps something here.
    kept_for: Option<usize>,
}

#[derive(Default)]
struct JobState {
    given: Vec<usize>,
    /// Where it holds devices beyond what it was given.
    holds: Vec<usize>,
    /// None: admitted, or not looked at yet.
    lack: Option<Lack>,
    /// Seats that it may not take, because others that it may take do not reach them.
    left_out: Vec<usize>,
}

/// How dear a seat is: who must go, and what follows for the dearest of them. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// It holds devices there already.
    Own,
    Free,
    /// Jobs that have more than their minimum lose some.
    Shrinks(Dearness),
    /// Jobs fall below their minimum.
    MakesWay(Dearness),
}

/// Of a job that loses a worker: its priority, then its age.
type Dearness = (i32, Reverse<u64>);

impl<'a> Table<'a> {
    pub(super) fn new(problem: &'a Problem) -> Self {
        let state = |node: &'a NodeCapacity| NodeState {
            node,
            free: node.devices,
            open: node.devices,
            holders: Vec::new(),
            held: 0,
            kept_for: None,
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

    /// Devices given to the job's team.
    pub(super) fn team_devices(&self, job: usize) -> u32 {
        self.totals
            .get(self.demand(job).team.as_str())
            .copied()
            .unwrap_or(0)
    }

    /// Of these, those of jobs that were submitted before it.
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
        self.jobs[job].lack.is_none()
    }

    /// Gives a job its minimum, or keeps for it what there is.
    pub(super) fn admit(&mut self, job: usize) {
        let demand = self.demand(job);
        let least = demand.workers_min.max(1);
        self.leave_out(job);
        if let Some(lack) = self.over_quota(job, least) {
            return self.refuse(job, lack);
        }
        let grace_over = !demand.in_grace_period
            || self.costs(job).filter(|cost| *cost <= Cost::Free).count()
                >= demand.workers_max as usize;
        if grace_over && least as usize <= self.costs(job).count() {
            for _ in 0..least {
                self.take_cheapest(job);
            }
            return;
        }
        let enough = least as usize <= self.costs(job).count();
        self.refuse(
            job,
            if enough {
                Lack::GracePeriod
            } else {
                Lack::Workers
            },
        );
        let could = |state: &NodeState<'_>| {
            state.node.access != Access::Drained && fits(demand, state.node)
        };
        let able: Vec<&WorkerId> = (self.nodes.iter().filter(|state| could(state)))
            .map(|state| &state.node.worker)
            .collect();
        if demand.partitions.together(&[], &[], &able).len() < least as usize {
            return;
        }
        for state in self.nodes.iter_mut().filter(|state| could(state)) {
            state.open -= state.open.min(demand.devices_per_worker);
            state.kept_for.get_or_insert(job);
        }
    }

    /// Chooses those of the seats that it may take that all reach each other: its own first, then
    /// the cheapest.
    fn leave_out(&mut self, job: usize) {
        let partitions = &self.demand(job).partitions;
        if partitions.is_empty() {
            return;
        }
        let mut nodes: Vec<_> = (0..self.nodes.len())
            .filter_map(|index| Some((self.cost(job, index)?, self.rank_for(job, index), index)))
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
        let together = partitions.together(&own, &warm, &cold);
        let indices = nodes.into_iter().map(|(_, _, index)| index);
        self.jobs[job].left_out = indices
            .filter(|index| !together.contains(&worker(*index)))
            .collect();
    }

    /// It waits, and nobody need spare what it holds.
    fn refuse(&mut self, job: usize, lack: Lack) {
        for index in self.jobs[job].holds.clone() {
            self.let_go(job, index);
        }
        self.jobs[job].lack = Some(lack);
    }

    /// Gives an admitted job one worker more, if it can use it.
    pub(super) fn grow(&mut self, job: usize) -> bool {
        let demand = self.demand(job);
        let more = self.workers(job) < demand.workers_max as usize
            && self.over_quota(job, 1).is_none()
            && self
                .costs(job)
                .any(|cost| !matches!(cost, Cost::MakesWay(_)));
        if more {
            self.take_cheapest(job);
        }
        more
    }

    pub(super) fn into_solution(self) -> Solution {
        let decide = |(job, demand): (usize, &Demand)| {
            let state = &self.jobs[job];
            let decision = match &state.lack {
                Some(lack) => Decision::Wait(Box::new(self.shortage(job, lack))),
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

    fn over_quota(&self, job: usize, workers: u32) -> Option<Lack> {
        let demand = self.demand(job);
        let quota = *self.problem.quotas.get(&demand.team)?;
        let used = self.team_devices(job);
        let needs = u64::from(workers) * u64::from(demand.devices_per_worker);
        let over = u64::from(quota) < u64::from(used) + needs;
        over.then_some(Lack::Quota { quota, used })
    }

    /// What each seat costs that the job may take.
    fn costs(&self, job: usize) -> impl Iterator<Item = Cost> {
        (0..self.nodes.len()).filter_map(move |index| self.cost(job, index))
    }

    fn cost(&self, job: usize, index: usize) -> Option<Cost> {
        let (demand, state) = (self.demand(job), &self.nodes[index]);
        let needs = demand.devices_per_worker;
        if !fits(demand, state.node)
            || state.free < needs
            || self.jobs[job].left_out.contains(&index)
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
            || state.open < needs
            || self.jobs[job].given.contains(&index)
        {
            return None;
        }
        if needs <= state.free.saturating_sub(state.held) {
            return Some(Cost::Free);
        }
        let victims = self.victims(job, index);
        let dearness = |victim: &usize| {
            (
                self.demand(*victim).priority,
                Reverse(self.demand(*victim).number),
            )
        };
        Some(match victims.iter().map(dearness).max() {
            None => Cost::Free,
            Some(dearest) if victims.iter().all(|victim| self.has_surplus(*victim)) => {
                Cost::Shrinks(dearest)
            }
            Some(dearest) => Cost::MakesWay(dearest),
        })
    }

    /// Who must leave a seat so that the job can come: those that have more than they need, of the
    /// lowest priority, the youngest, first.
    fn victims(&self, job: usize, index: usize) -> Vec<usize> {
        let state = &self.nodes[index];
        let mut idle = state.free.saturating_sub(state.held);
        let mut holders = state.holders.clone();
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
            .filter_map(|index| Some((self.cost(job, index)?, self.rank_for(job, index), index)))
            .min()
            .map(|(_, _, index)| index)
            .expect("the caller counted the seats");
        let needs = self.demand(job).devices_per_worker;
        if !self.let_go(job, index) {
            for victim in self.victims(job, index) {
                self.let_go(victim, index);
                let state = &self.jobs[victim];
                if state.given.len() + state.holds.len()
                    < self.demand(victim).workers_min.max(1) as usize
                {
                    for other in state.holds.clone() {
                        self.let_go(victim, other);
                    }
                }
            }
        }
        let state = &mut self.nodes[index];
        state.free -= needs;
        state.open = state.open.saturating_sub(needs);
        self.jobs[job].given.push(index);
        let demand = &self.problem.demands[job];
        let team = self.teams.entry(demand.team.as_str()).or_default();
        *team.entry(demand.number).or_default() += needs;
        *self.totals.entry(demand.team.as_str()).or_default() += needs;
    }

    /// Among seats of one cost: one where the job's state is, then the one with most free devices,
    /// then by name.
    fn rank_for(&self, job: usize, index: usize) -> (bool, Reverse<u32>, &'a WorkerId) {
        let state = &self.nodes[index];
        let worker = &state.node.worker;
        (
            !self.demand(job).warm.contains(worker),
            Reverse(state.free),
            worker,
        )
    }

    /// A job no longer counts on what it holds there. False when it held nothing.
    fn let_go(&mut self, job: usize, index: usize) -> bool {
        let held = self.jobs[job].holds.contains(&index);
        if held {
            self.jobs[job].holds.retain(|other| *other != index);
            self.nodes[index].holders.retain(|other| *other != job);
            self.nodes[index].held -= self.demand(job).devices_per_worker;
        }
        held
    }

    /// Told against what is left at the end, so that solving again tells the same.
    fn shortage(&self, job: usize, lack: &Lack) -> Shortage {
        let demand = self.demand(job);
        let mut shortage = Shortage::new(demand, lack.clone());
        let usable = |state: &&NodeState<'_>| {
            fits(demand, state.node) && state.node.access != Access::Drained
        };
        let usable = self
            .nodes
            .iter()
            .filter(usable)
            .map(|state| &state.node.worker);
        shortage.partitions = demand.partitions.among(usable);
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
                match state.kept_for {
                    Some(keeper) if keeper != job => {
                        let blocker = Blocker {
                            worker: name,
                            job: self.demand(keeper).job.clone(),
                        };
                        shortage.kept.push(blocker);
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
