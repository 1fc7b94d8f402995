//! What the ranks of one generation do together in the simulated world: meet at rank 0's store, settle who has the
//! state, then step in lockstep. When one of them is gone the others notice, sooner if it died and later if it hangs;
//! some of them may have ended the step that was under way. They keep what they hold and wait for the next generation.

use super::World;
use super::agenda::Happening;
use super::bug::Bug;
use super::plan::DETECT_WITHIN_MS;
use super::ranks::{Pid, Share};
use super::store;
use super::tell;
use super::toy;
use coordinator_core::event::JobPhase;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{DIGESTS_MAX, Halt, PhaseSeconds, RankPhase, StepReport, WeightDigest};
use proto::spec::TrainWork;
use std::collections::BTreeMap;

/// Steps between digests.
const DIGEST_EVERY: u64 = 3;

/// The ranks that met, by rank.
#[derive(Debug, Default)]
pub(crate) struct Group {
    joined: BTreeMap<Rank, Pid>,
}

/// What a process holds: generation, step, value.
type Holding = (Generation, u64, u64);

impl World {
    /// Joins the generation when the store's address is known, with a deadline from then on, and starts it when it is the last.
    pub(crate) fn try_join(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
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
        if process.meets != Some(key.generation) {
            process.meets = Some(key.generation);
            let generation = key.generation;
            let error = "timed out waiting for the other ranks to join".to_owned();
            let breaks = Happening::RankBreaks {
                pid,
                generation,
                error,
            };
            self.agenda.put(self.now + 30 * DETECT_WITHIN_MS, breaks);
        }
        let host: Option<Pid> = address.strip_prefix("host:").and_then(|pid| pid.parse().ok());
        if host
            .and_then(|host| self.working(host))
            .is_none_or(|host| host.key.generation != key.generation)
        {
            let generation = key.generation;
            let error = format!("connection refused by {address}");
            let breaks = Happening::RankBreaks {
                pid,
                generation,
                error,
            };
            return self.agenda.put(self.now + 500, breaks);
        }
        if let Some(host) = host
            && let Some(at) = self.cut_among(&[pid, host])
        {
            return self.agenda.put(at, Happening::RankJoins { pid });
        }
        let place = (key.job.clone(), key.generation);
        let mut joined = self.groups.remove(&place).unwrap_or_default().joined;
        joined.insert(key.rank, pid);
        joined.retain(|_, pid| self.is_in(*pid, key.generation));
        let all: Vec<Pid> = joined.values().copied().collect();
        self.groups.insert(place, Group { joined });
        if all.len() == world as usize {
            let paused = all.iter().filter_map(|pid| self.pause(*pid)).max();
            if let Some(at) = paused.or_else(|| self.cut_among(&all)) {
                return self.agenda.put(at, Happening::RankJoins { pid });
            }
            self.begin(&all, key.job, key.generation);
        }
    }

    /// When to look again whether these processes reach each other, if some of them do not now.
    fn cut_among(&self, pids: &[Pid]) -> Option<u64> {
        let node = |pid: &Pid| self.processes.get(pid).map(|process| process.node);
        let nodes: Vec<usize> = pids.iter().filter_map(node).collect();
        let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b)));
        let until = pairs.filter_map(|(a, b)| self.cut_between(a, b)).max()?;
        Some(until.min(self.now + DETECT_WITHIN_MS))
    }

    /// The process is there and serves in this generation, whether it hangs or not.
    fn is_in(&self, pid: Pid, generation: Generation) -> bool {
        let process = self.processes.get(&pid);
        process.is_some_and(|process| process.key.generation == generation)
    }

    /// All ranks have met: who has the state gives it to those that lack it, and they begin.
    fn begin(&mut self, pids: &[Pid], job: JobId, generation: Generation) {
        let Some(first) = self.processes.get(&pids[0]) else {
            return;
        };
        let resume = first.assignment.gang().and_then(|gang| gang.resume);
        let holds = |pid: &Pid| {
            let process = self.processes.get(pid)?;
            Some((process.held?, process.step, process.value))
        };
        let holdings: Vec<Holding> = pids.iter().filter_map(holds).collect();
        let newest = match self.bug {
            Some(Bug::LowestStepTaken) => holdings.iter().min_by_key(|(held, step, _)| (*held, *step)),
            _ => holdings.iter().max_by_key(|(held, step, _)| (*held, *step)),
        };
        let newest = newest.copied();
        let saved = resume.map(|resume| (resume.generation, resume.step.0));
        let memory = newest.filter(|(held, step, _)| saved <= Some((*held, *step)));
        let mut states = BTreeMap::new();
        for pid in pids {
            let state = match (memory, resume) {
                (Some((_, step, value)), _) => Some((step, value)),
                (None, Some(resume)) => self.load(*pid, &job, resume),
                (None, None) => Some((0, 0)),
            };
            let Some(state) = state else { continue };
            states.insert(*pid, state);
        }
        if states.len() < pids.len() {
            return self.part(states.keys(), generation);
        }
        let began = states.values().next().map_or(0, |(step, _)| *step);
        self.trace.line(self.now, || {
            let whence = if memory.is_some() {
                "memory"
            } else {
                "a checkpoint or nothing"
            };
            format!(
                "{job} generation {generation}: {} ranks have met and begin after step {began}, from {whence}",
                pids.len()
            )
        });
        let reached = pids
            .iter()
            .filter_map(|pid| self.processes.get(pid)?.reached)
            .max();
        self.oracle
            .on_begin(&job, generation, began, &holdings, saved, reached);
        let Some(spec) = self.training(&job) else {
            return;
        };
        self.begin_with(states, generation, memory.is_some());
        let again = saved.is_none_or(|(_, saved)| saved < began);
        if saves(&spec, began) && again {
            self.save(pids, generation, began);
        }
        if spec.train.steps <= began {
            return self.finish(pids, generation);
        }
        self.agenda
            .put(self.now + 10, Happening::GroupSteps { job, generation });
    }

    /// Every process has the state with which the generation begins: step and value.
    fn begin_with(&mut self, states: BTreeMap<Pid, (u64, u64)>, generation: Generation, from_memory: bool) {
        let forgetful = self.bug == Some(Bug::StateNotHandedOver) && from_memory;
        for (pid, (step, value)) in states {
            let Some(process) = self.processes.get_mut(&pid) else {
                continue;
            };
            if !(forgetful && process.held.is_none()) {
                process.value = value;
            }
            (process.held, process.step) = (Some(generation), step);
            process.reached = Some((generation, step));
            process.phase = RankPhase::Training;
            process.reduces_since = None;
            self.say(pid, vec![], vec![]);
        }
    }

    /// One of those that met has left again: the others notice before they begin.
    fn part<'a>(&mut self, left: impl Iterator<Item = &'a Pid>, generation: Generation) {
        for pid in left.copied() {
            let at = self.now + self.dice.between(5, 100);
            let error = "connection closed by peer".to_owned();
            self.agenda.put(
                at,
                Happening::RankBreaks {
                    pid,
                    generation,
                    error,
                },
            );
        }
    }

    /// Reads a checkpoint as a rank does; None when the rank fails of it.
    pub(crate) fn load(&mut self, pid: Pid, source: &JobId, checkpoint: CheckpointRef) -> Option<(u64, u64)> {
        let forgetful = self.bug == Some(Bug::StateNotLoaded);
        if self.trouble(self.plan.noise.load_trouble) {
            self.rank_fails(pid, "cannot resume: 503 slow down".to_owned());
            return None;
        }
        match self.store.load(source, checkpoint) {
            Ok(value) => Some((checkpoint.step.0, if forgetful { 0 } else { value })),
            Err(error) => {
                // An orphan may come too late for its checkpoint; whom the record names may not.
                let key = self.processes.get(&pid)?.key.clone();
                let current = self.durable.jobs.get(&key.job).is_some_and(|job| {
                    job.generation == key.generation && matches!(job.phase, JobPhase::Running { .. })
                });
                self.oracle
                    .require(!current, || format!("{} cannot resume: {error}", tell::key(&key)));
                self.rank_fails(pid, error);
                None
            }
        }
    }

    /// One step of all ranks of a generation, or the end of it.
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
        let step = first.step + 1;
        if self.cut_among(&pids).is_some() {
            let silent = self.dice.chance(300);
            self.trace.line(self.now, || {
                format!("{job} generation {generation} is torn apart in step {step}")
            });
            return self.group_breaks(&pids, generation, silent, &spec);
        }
        let waits = |pid: &Pid| {
            self.pause(*pid).is_some() || self.processes.get(pid).is_some_and(|it| it.writing.is_some())
        };
        if pids.iter().any(waits) {
            return self
                .agenda
                .put(self.now + 50, Happening::GroupSteps { job, generation });
        }
        self.step_together(&pids, step, &spec);
        let told = |pid: &Pid| {
            self.processes
                .get(pid)
                .and_then(|process| process.assignment.halt)
        };
        let halts = pids.iter().any(|pid| told(pid).is_some());
        let saving: Vec<Pid> = match saves(&spec, step) {
            true => pids.clone(),
            false if !halts => Vec::new(),
            false => (pids.iter().copied())
                .filter(|pid| told(pid) == Some(Halt::Save))
                .collect(),
        };
        let last = spec.train.steps <= step || halts;
        let mut next = self.now
            + self
                .planned()
                .get(&spec.data.seed)
                .map_or(100, |planned| planned.step_ms);
        if !saving.is_empty() {
            next = next.max(self.now + 220);
            self.save(&saving, generation, step);
        }
        if last {
            for pid in pids.iter().filter(|pid| !saving.contains(pid)) {
                self.holds_on(*pid);
            }
            return self.finish(&pids, generation);
        }
        self.agenda.put(next, Happening::GroupSteps { job, generation });
    }

    /// Every rank writes its share, each in its own time.
    fn save(&mut self, pids: &[Pid], generation: Generation, step: u64) {
        for pid in pids.iter().copied() {
            let delay = self.dice.between(5, 200);
            let Some(process) = self.working(pid) else {
                continue;
            };
            process.writing = Some(step);
            let value = process.value;
            let share = Share {
                pid,
                generation,
                step,
                value,
            };
            self.agenda.put(self.now + delay, Happening::RankWrites(share));
            if self.bug == Some(Bug::ShardBeforeWritten) {
                self.agenda.put(self.now + 1, Happening::RankSaysWritten(share));
            }
        }
    }

    fn finish(&mut self, pids: &[Pid], generation: Generation) {
        for pid in pids.iter().copied() {
            // After the share of the last step.
            let at = self.now + 200 + self.dice.between(1, 20);
            self.agenda.put(at, Happening::RankFinishes { pid, generation });
        }
    }

    /// A process stops in order and has written nothing: others go on with what it holds, or it is told to save.
    fn holds_on(&mut self, pid: Pid) {
        let drops = self.bug == Some(Bug::HandOverForgotten);
        let Some(process) = self.working(pid) else { return };
        process.unsaved = true;
        if drops {
            process.held = None;
        }
    }

    /// The order to write a checkpoint comes when the step is over.
    pub(crate) fn save_late(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
        process.unsaved = false;
        let (generation, step) = (process.key.generation, process.step);
        self.save(&[pid], generation, step);
    }

    fn training(&self, job: &JobId) -> Option<TrainWork> {
        self.specs.get(job)?.training().cloned()
    }

    fn sum(&self, world: usize, step: u64, spec: &TrainWork) -> u64 {
        let world = u32::try_from(world).expect("a handful of ranks");
        let wrong = self.bug == Some(Bug::WrongShare) && 1 < world;
        let share = |rank: u32| if wrong && rank == 1 { 0 } else { rank };
        let (seed, micro_batches) = (spec.data.seed, u64::from(spec.micro_batches()));
        let sums = (0..world).map(|rank| toy::partial_sum(seed, step, micro_batches, share(rank), world));
        sums.fold(0, u64::wrapping_add)
    }

    fn step_together(&mut self, pids: &[Pid], step: u64, spec: &TrainWork) {
        let sum = self.sum(pids.len(), step, spec);
        for pid in pids {
            if let Some(process) = self.processes.get_mut(pid) {
                process.value = toy::fold(process.value, sum);
                process.step = step;
                process.reached = process.held.map(|held| (held, step));
                if step.is_multiple_of(DIGEST_EVERY) {
                    let sha256 = store::digest(process.value);
                    process.digests.push(WeightDigest {
                        step: Step(step),
                        sha256,
                    });
                    let surplus = process.digests.len().saturating_sub(DIGESTS_MAX);
                    process.digests.drain(..surplus);
                }
            }
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
            loss_target: 0.0,
            loss_face: 0.0,
            gradient_norm: 1.0,
            learning_rate: 1e-3,
            samples: 1,
            seconds: PhaseSeconds::default(),
            peak_memory_bytes: 0,
            skipped_steps: 0,
            loss_scale: 1.0,
        };
        self.say(pids[0], vec![report], vec![]);
    }

    fn group_breaks(&mut self, pids: &[Pid], generation: Generation, hung: bool, spec: &TrainWork) {
        // Who died may have sent its part before; then some of the others have the whole sum and some have not.
        let sent = !hung && self.dice.chance(300);
        let alive: Vec<Pid> = pids
            .iter()
            .copied()
            .filter(|pid| self.is_in(*pid, generation))
            .collect();
        for pid in alive {
            let ends = sent && self.dice.chance(500);
            let kept = self.bug == Some(Bug::PartialStepKept) && self.dice.chance(500);
            let step = self.processes.get(&pid).map_or(0, |process| process.step) + 1;
            let sum = self.sum(pids.len(), step, spec);
            let now = self.now;
            if let Some(process) = self.working(pid) {
                process.reduces_since = Some(now);
                if ends {
                    process.value = toy::fold(process.value, sum);
                    process.step = step;
                    process.reached = process.held.map(|held| (held, step));
                } else if kept {
                    process.value = process.value.wrapping_add(sum);
                }
            }
            let (error, wait) = if hung {
                ("timed out waiting for a gradient", 30 * DETECT_WITHIN_MS)
            } else {
                ("connection closed by peer", self.dice.between(5, 100))
            };
            let error = error.to_owned();
            self.agenda.put(
                self.now + wait,
                Happening::RankBreaks {
                    pid,
                    generation,
                    error,
                },
            );
        }
    }

    /// The work of this rank is done; what it has to say about shards it says before or together with it. Who drew
    /// pictures leaves; who trained keeps its state until it is told to.
    pub(crate) fn rank_finishes(&mut self, pid: Pid, generation: Generation) {
        let Some(process) = self.working(pid) else { return };
        if process.key.generation != generation || process.phase != RankPhase::Training {
            return;
        }
        if process.writing.is_some() {
            return self
                .agenda
                .put(self.now + 50, Happening::RankFinishes { pid, generation });
        }
        process.phase = RankPhase::Finished;
        let leaves = process.assignment.gang().is_none();
        self.say(pid, vec![], vec![]);
        if leaves {
            let at = self.now + self.dice.between(10, 400);
            self.agenda.put(
                at,
                Happening::RankDies {
                    pid,
                    success: true,
                    outcome: "exit status 0",
                },
            );
        }
    }
}

/// Whether a checkpoint follows this step.
fn saves(spec: &TrainWork, step: u64) -> bool {
    step != 0 && (step == spec.train.steps || step.is_multiple_of(spec.checkpoint.every))
}
