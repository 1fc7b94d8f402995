//! What the ranks of one generation do together in the simulated world: rendezvous at rank 0's
//! store, synchronize the newest state to all ranks, then step in lockstep. The others notice a
//! lost rank, sooner if it died and later if it hangs; some of them may have completed the current
//! step. They keep their state and wait for the next generation.

use super::World;
use super::agenda::SimEvent;
use super::bug::{self, Bug};
use super::describe;
use super::plan::DETECT_WITHIN_MS;
use super::ranks::{Pid, Process, ShardWrite};
use super::store;
use super::toy;
use coordinator_core::event::JobPhase;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{DIGESTS_MAX, PhaseSeconds, RankPhase, StepReport, StepTotals, WeightDigest};
use proto::spec::TrainWork;
use rank_core::gang::{Effect, Input as GangInput};
use rank_core::state::{StateLabel, StateSource};
use std::collections::BTreeMap;

/// The error of a rank whose peers did not join in time.
pub(crate) const JOIN_TIMEOUT: &str = "timed out waiting for the other ranks to join";

/// Processes that have joined, by rank.
#[derive(Debug, Default)]
pub(crate) struct Group {
    joined: BTreeMap<Rank, Pid>,
}

/// Effects of the machines of a generation after all got the same input.
#[derive(Debug, Default)]
struct GroupEffects {
    /// Processes that write a shard, by rank.
    save: Vec<Pid>,
    step: Vec<Pid>,
    leave: Vec<Pid>,
}

impl World {
    /// Joins the generation once the store's address is known, and starts it if this is the last
    /// rank. The deadline for joining begins with the first attempt.
    pub(crate) fn try_join(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        if process.phase != RankPhase::Joining {
            return;
        }
        let (key, world) = (process.key.clone(), process.assignment.world());
        let address = process
            .assignment
            .gang()
            .and_then(|gang| gang.store_address.clone());
        let Some(address) = address else {
            return;
        };
        if process.rendezvous != Some(key.generation) {
            process.rendezvous = Some(key.generation);
            let generation = key.generation;
            let error = JOIN_TIMEOUT.to_owned();
            let breaks = SimEvent::RankBreaks {
                pid,
                generation,
                error,
            };
            self.agenda.put(self.now + 30 * DETECT_WITHIN_MS, breaks);
        }
        let host: Option<Pid> = address
            .strip_prefix("host:")
            .and_then(|pid| pid.parse().ok());
        if host
            .and_then(|host| self.working(host))
            .is_none_or(|host| host.key.generation != key.generation)
        {
            let generation = key.generation;
            let error = format!("connection refused by {address}");
            let breaks = SimEvent::RankBreaks {
                pid,
                generation,
                error,
            };
            return self.agenda.put(self.now + 500, breaks);
        }
        if let Some(host) = host
            && let Some(at) = self.cut_among(&[pid, host])
        {
            return self.agenda.put(at, SimEvent::RankJoins { pid });
        }
        let group_key = (key.job.clone(), key.generation);
        let mut joined = self.groups.remove(&group_key).unwrap_or_default().joined;
        joined.insert(key.rank, pid);
        joined.retain(|_, pid| self.is_in(*pid, key.generation));
        let all: Vec<Pid> = joined.values().copied().collect();
        self.groups.insert(group_key, Group { joined });
        if all.len() == world as usize {
            let paused = all.iter().filter_map(|pid| self.paused_until(*pid)).max();
            if let Some(at) = paused.or_else(|| self.cut_among(&all)) {
                return self.agenda.put(at, SimEvent::RankJoins { pid });
            }
            self.begin(&all, key.job, key.generation);
        }
    }

    /// When to re-check the connections of these processes; None: all are connected.
    fn cut_among(&self, pids: &[Pid]) -> Option<u64> {
        let node = |pid: &Pid| self.processes.get(pid).map(|process| process.node);
        let nodes: Vec<usize> = pids.iter().filter_map(node).collect();
        let pairs = nodes
            .iter()
            .flat_map(|a| nodes.iter().map(move |b| (*a, *b)));
        let until = pairs.filter_map(|(a, b)| self.cut_between(a, b)).max()?;
        Some(until.min(self.now + DETECT_WITHIN_MS))
    }

    /// The process exists and belongs to this generation, whether it hangs or not.
    fn is_in(&self, pid: Pid, generation: Generation) -> bool {
        let process = self.processes.get(&pid);
        process.is_some_and(|process| process.key.generation == generation)
    }

    /// All ranks have joined: synchronize the newest state to all of them and begin.
    fn begin(&mut self, pids: &[Pid], job: JobId, generation: Generation) {
        let Some(first) = self.processes.get(&pids[0]) else {
            return;
        };
        let resume = first.assignment.gang().and_then(|gang| gang.resume);
        let reported: Vec<Option<StateLabel>> =
            pids.iter().map(|pid| self.reported_label(*pid)).collect();
        let holdings: Vec<(Generation, u64, u64)> = (pids.iter().zip(&reported))
            .filter_map(|(pid, label)| {
                let (label, process) = ((*label)?, self.processes.get(pid)?);
                Some((label.generation, label.step.0, process.value))
            })
            .collect();
        let saved = resume.map(|resume| (resume.generation, resume.step.0));
        let (mut states, mut from_memory) = (BTreeMap::new(), false);
        for pid in pids {
            let Some(source) = self.source_of(*pid, &reported) else {
                continue;
            };
            let state = match source {
                StateSource::Memory { root, label, .. } => {
                    from_memory = true;
                    let root = pids.get(root.0 as usize);
                    let root = root.and_then(|root| self.processes.get(root));
                    root.map(|root| (label.step.0, root.value))
                }
                StateSource::Checkpoint(checkpoint) => self.load(*pid, &job, checkpoint),
                StateSource::Base => Some((0, 0)),
            };
            let Some(state) = state else { continue };
            states.insert(*pid, state);
        }
        if states.len() < pids.len() {
            return self.abort_start(states.keys(), generation);
        }
        let began = states.values().next().map_or(0, |(step, _)| *step);
        self.trace.line(self.now, || {
            let origin = if from_memory {
                "memory"
            } else {
                "a checkpoint or nothing"
            };
            format!(
                "{job} generation {generation}: {} ranks have joined and begin after step {began}, \
                from {origin}",
                pids.len()
            )
        });
        let reached = pids
            .iter()
            .filter_map(|pid| self.processes.get(pid)?.reached)
            .max();
        self.oracle
            .on_begin(&job, generation, began, &holdings, saved, reached);
        if !self.durable.jobs.contains_key(&job) {
            return;
        }
        let mut group_effects = self.begin_with(states, generation, from_memory);
        group_effects
            .save
            .sort_by_key(|pid| pids.iter().position(|it| it == pid));
        self.save(&group_effects.save, generation, began);
        if !group_effects.leave.is_empty() {
            return self.finish(pids, generation);
        }
        self.agenda
            .put(self.now + 10, SimEvent::GroupSteps { job, generation });
    }

    /// The state that this process reports to the others.
    fn reported_label(&self, pid: Pid) -> Option<StateLabel> {
        let process = self.processes.get(&pid)?;
        process.held().filter(|_| !process.withholds_state)
    }

    /// Where this rank gets its state from, given what all ranks hold.
    fn source_of(&mut self, pid: Pid, reported: &[Option<StateLabel>]) -> Option<StateSource> {
        let bug = self.bug;
        let holdings = reported.to_vec();
        let machine = self.processes.get_mut(&pid)?.machine.as_mut()?;
        let effects = bug::handle_gang_input(bug, machine, GangInput::Met { holdings });
        effects.into_iter().find_map(|effect| match effect {
            Effect::Synchronize { source, .. } => Some(source),
            _ => None,
        })
    }

    /// Gives every process the state with which the generation begins: step and value.
    fn begin_with(
        &mut self,
        states: BTreeMap<Pid, (u64, u64)>,
        generation: Generation,
        from_memory: bool,
    ) -> GroupEffects {
        let forgetful = self.bug == Some(Bug::StateNotHandedOver) && from_memory;
        let mut group_effects = GroupEffects::default();
        for (pid, (step, value)) in states {
            let lacks_state = self.reported_label(pid).is_none();
            let Some(process) = self.processes.get_mut(&pid) else {
                continue;
            };
            if !(forgetful && lacks_state) {
                process.value = value;
            }
            process.withholds_state = false;
            process.reached = Some((generation, step));
            process.reducing_since = None;
            self.handle_in_group(pid, GangInput::Synchronized, &mut group_effects);
        }
        group_effects
    }

    /// Handles an input that all ranks of a generation get at the same time. Effects that concern
    /// the group are added to `group_effects`.
    fn handle_in_group(&mut self, pid: Pid, event: GangInput, group_effects: &mut GroupEffects) {
        let bug = self.bug;
        let process = self.processes.get_mut(&pid);
        let Some(machine) = process.and_then(|it| it.machine.as_mut()) else {
            return;
        };
        for effect in bug::handle_gang_input(bug, machine, event) {
            match effect {
                Effect::Phase(phase) => {
                    if let Some(process) = self.processes.get_mut(&pid) {
                        process.phase = phase;
                    }
                    self.send_report(pid, vec![], vec![]);
                }
                Effect::Digest(step) => self.digest(pid, step),
                Effect::Save(_) => group_effects.save.push(pid),
                Effect::Step(_) => group_effects.step.push(pid),
                Effect::Leave => group_effects.leave.push(pid),
                Effect::TakeUp(_)
                | Effect::OpenStore
                | Effect::Meet
                | Effect::Synchronize { .. }
                | Effect::Validate(_)
                | Effect::Report(_)
                | Effect::Abort => {}
            }
        }
    }

    /// A rank failed before the generation began: break the group of the others.
    fn abort_start<'a>(&mut self, left: impl Iterator<Item = &'a Pid>, generation: Generation) {
        for pid in left.copied() {
            let at = self.now + self.rng.between(5, 100);
            let error = "connection closed by peer".to_owned();
            self.agenda.put(
                at,
                SimEvent::RankBreaks {
                    pid,
                    generation,
                    error,
                },
            );
        }
    }

    /// Reads a checkpoint as a rank does; None if the rank fails.
    pub(crate) fn load(
        &mut self,
        pid: Pid,
        source: &JobId,
        checkpoint: CheckpointRef,
    ) -> Option<(u64, u64)> {
        let forgetful = self.bug == Some(Bug::StateNotLoaded);
        if self.roll_fault(self.plan.noise.load_faults) {
            self.rank_fails(pid, "cannot resume: 503 slow down".to_owned());
            return None;
        }
        match self.store.load(source, checkpoint) {
            Ok(value) => Some((checkpoint.step.0, if forgetful { 0 } else { value })),
            Err(error) => {
                // The checkpoint of an orphan may be deleted, but not that of a current rank.
                let key = self.processes.get(&pid)?.key.clone();
                let current = self.durable.jobs.get(&key.job).is_some_and(|job| {
                    job.generation == key.generation
                        && matches!(job.phase, JobPhase::Running { .. })
                });
                self.oracle.require(!current, || {
                    format!("{} cannot resume: {error}", describe::key(&key))
                });
                self.rank_fails(pid, error);
                None
            }
        }
    }

    /// Performs one step of all ranks of a generation, or ends the generation.
    pub(crate) fn group_steps(&mut self, job: JobId, generation: Generation) {
        let Some(group) = self.groups.get(&(job.clone(), generation)) else {
            return;
        };
        let pids: Vec<Pid> = group.joined.values().copied().collect();
        let Some(spec) = self.training(&job) else {
            return;
        };
        let hangs = |pid: &Pid| self.processes.get(pid).is_some_and(|process| process.hung);
        let hung = pids.iter().any(hangs);
        if hung || !pids.iter().all(|pid| self.is_in(*pid, generation)) {
            return self.group_breaks(&pids, generation, hung, &spec);
        }
        let Some(first) = self.processes.get(&pids[0]) else {
            return;
        };
        let step = first.step() + 1;
        if self.cut_among(&pids).is_some() {
            let silent = self.rng.chance(300);
            self.trace.line(self.now, || {
                format!("{job} generation {generation} is partitioned in step {step}")
            });
            return self.group_breaks(&pids, generation, silent, &spec);
        }
        let waits = |pid: &Pid| {
            self.paused_until(*pid).is_some()
                || self.processes.get(pid).is_some_and(Process::is_saving)
        };
        if pids.iter().any(waits) {
            return self
                .agenda
                .put(self.now + 50, SimEvent::GroupSteps { job, generation });
        }
        let group_effects = self.step_together(&pids, step, &spec);
        let agreed = group_effects.step.is_empty() || group_effects.leave.is_empty();
        self.oracle.require(agreed, || {
            format!(
                "{job} generation {generation}: after step {step} some of its ranks stop and \
                others continue"
            )
        });
        let mut next = self.now
            + self
                .planned()
                .get(&spec.data.seed)
                .map_or(100, |planned| planned.step_ms);
        if !group_effects.save.is_empty() {
            next = next.max(self.now + 220);
            self.save(&group_effects.save, generation, step);
        }
        if !group_effects.leave.is_empty() {
            if self.bug == Some(Bug::SurvivorStateDropped) {
                for pid in pids.iter().filter(|pid| !group_effects.save.contains(pid)) {
                    if let Some(process) = self.working(*pid) {
                        process.withholds_state = true;
                    }
                }
            }
            return self.finish(&pids, generation);
        }
        self.agenda
            .put(next, SimEvent::GroupSteps { job, generation });
    }

    /// Every rank writes its shard after a random delay.
    pub(crate) fn save(&mut self, pids: &[Pid], generation: Generation, step: u64) {
        for pid in pids.iter().copied() {
            let delay = self.rng.between(5, 200);
            let Some(process) = self.working(pid) else {
                continue;
            };
            let value = process.value;
            let shard_write = ShardWrite {
                pid,
                generation,
                step,
                value,
            };
            self.agenda
                .put(self.now + delay, SimEvent::WriteShard(shard_write));
            if self.bug == Some(Bug::ShardBeforeWritten) {
                self.agenda
                    .put(self.now + 1, SimEvent::ReportShard(shard_write));
            }
        }
    }

    fn finish(&mut self, pids: &[Pid], generation: Generation) {
        for pid in pids.iter().copied() {
            // After the shard of the last step.
            let at = self.now + 200 + self.rng.between(1, 20);
            self.agenda
                .put(at, SimEvent::RankFinishes { pid, generation });
        }
    }

    pub(crate) fn training(&self, job: &JobId) -> Option<TrainWork> {
        self.specs.get(job)?.training().cloned()
    }

    fn sum(&self, world: usize, step: u64, spec: &TrainWork) -> u64 {
        let world = u32::try_from(world).expect("a small number of ranks");
        let wrong = self.bug == Some(Bug::WrongShard) && 1 < world;
        let shard_of = |rank: u32| if wrong && rank == 1 { 0 } else { rank };
        let (seed, micro_batches) = (spec.data.seed, u64::from(spec.micro_batches()));
        let sums = (0..world)
            .map(|rank| toy::partial_sum(seed, step, micro_batches, shard_of(rank), world));
        sums.fold(0, u64::wrapping_add)
    }

    fn step_together(&mut self, pids: &[Pid], step: u64, spec: &TrainWork) -> GroupEffects {
        let sum = self.sum(pids.len(), step, spec);
        // A stop order that one rank has received reaches all ranks in the same step.
        let reported = |pid: &Pid| self.processes.get(pid)?.machine.as_ref()?.graceful_stop();
        let graceful_stop = pids.iter().any(|pid| reported(pid).is_some());
        let mut group_effects = GroupEffects::default();
        for pid in pids {
            self.step_of(*pid, sum);
            let stepped = GangInput::Stepped {
                step: Step(step),
                graceful_stop,
            };
            self.handle_in_group(*pid, stepped, &mut group_effects);
        }
        let (count, first) = (pids.len(), pids[0]);
        if let Some(process) = self.processes.get(&first) {
            let (job, generation) = (&process.key.job, process.key.generation);
            self.trace.line(self.now, || {
                format!("{job} generation {generation}: step {step} is done by {count} ranks")
            });
        }
        let report = StepReport {
            step: Step(step),
            loss: 1.0 / step as f64,
            terms: Vec::new(),
            gradient_norm: 1.0,
            learning_rate: 1e-3,
            samples: 1,
            seconds: PhaseSeconds::default(),
            peak_memory_bytes: 0,
            peak_device_memory_bytes: 0,
            skipped_steps: 0,
            loss_scale: 1.0,
        };
        self.send_report(pids[0], vec![report], vec![]);
        group_effects
    }

    /// Applies one step to the toy model of this process.
    fn step_of(&mut self, pid: Pid, sum: u64) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.value = toy::fold(process.value, sum);
        process.totals = Some(totals_after(process.totals, Step(process.step() + 1)));
        let held = process.held();
        process.reached = held.map(|held| (held.generation, held.step.0 + 1));
    }

    fn digest(&mut self, pid: Pid, step: Step) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let sha256 = store::digest(process.value);
        process.digests.push(WeightDigest { step, sha256 });
        let surplus = process.digests.len().saturating_sub(DIGESTS_MAX);
        process.digests.drain(..surplus);
    }

    fn group_breaks(&mut self, pids: &[Pid], generation: Generation, hung: bool, spec: &TrainWork) {
        // The lost rank may have sent its part of the sum; then some of the others complete the
        // step.
        let was_sent = !hung && self.rng.chance(300);
        let alive: Vec<Pid> = pids
            .iter()
            .copied()
            .filter(|pid| self.is_in(*pid, generation))
            .collect();
        for pid in alive {
            let completes = was_sent && self.rng.chance(500);
            let keeps_partial = self.bug == Some(Bug::PartialStepKept) && self.rng.chance(500);
            let step = self.processes.get(&pid).map_or(0, Process::step) + 1;
            let sum = self.sum(pids.len(), step, spec);
            let now = self.now;
            if let Some(process) = self.working(pid) {
                process.reducing_since = Some(now);
                if completes {
                    self.step_of(pid, sum);
                    // It notices the failure before it begins another step.
                    let (step, graceful_stop) = (Step(step), false);
                    let stepped = GangInput::Stepped {
                        step,
                        graceful_stop,
                    };
                    let process = self.processes.get_mut(&pid);
                    if let Some(machine) = process.and_then(|it| it.machine.as_mut()) {
                        drop(machine.handle(stepped));
                    }
                } else if keeps_partial {
                    process.value = process.value.wrapping_add(sum);
                }
            }
            let (error, wait) = if hung {
                ("timed out waiting for a gradient", 30 * DETECT_WITHIN_MS)
            } else {
                ("connection closed by peer", self.rng.between(5, 100))
            };
            let error = error.to_owned();
            self.agenda.put(
                self.now + wait,
                SimEvent::RankBreaks {
                    pid,
                    generation,
                    error,
                },
            );
        }
    }

    /// The work of this rank is done; its shards are reported before or together with that. A rank
    /// that sampled exits; a rank that trained keeps its state until it is told to exit.
    pub(crate) fn rank_finishes(&mut self, pid: Pid, generation: Generation) {
        let Some(process) = self.working(pid) else {
            return;
        };
        if process.key.generation != generation || process.phase != RankPhase::Training {
            return;
        }
        if process.is_saving() {
            return self
                .agenda
                .put(self.now + 50, SimEvent::RankFinishes { pid, generation });
        }
        if process.machine.is_some() {
            return self.handle_gang_input(pid, GangInput::Left);
        }
        process.phase = RankPhase::Finished;
        self.send_report(pid, vec![], vec![]);
        let at = self.now + self.rng.between(10, 400);
        self.agenda.put(
            at,
            SimEvent::RankDies {
                pid,
                success: true,
                outcome: "exit status 0",
            },
        );
    }
}

/// What a process has done after one more step. The toy takes no time of its own; these figures are
/// fixed, so that the coordinator has something to divide.
fn totals_after(before: Option<StepTotals>, step: Step) -> StepTotals {
    let before = before.unwrap_or_default();
    let seconds = PhaseSeconds {
        data: 0.003,
        forward: 0.004,
        backward: 0.005,
        communication: 0.006,
        optimizer: 0.001,
        checkpoint: 0.002,
        validation: 0.0,
    };
    StepTotals {
        step,
        steps: before.steps + 1,
        seconds: before.seconds.plus(&seconds),
    }
}
