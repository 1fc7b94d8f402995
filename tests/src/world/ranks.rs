//! Rank processes in the simulated world: each has the rank's production state machine, and a toy
//! in place of a model. They start, rendezvous, train in lockstep, write shards, continue in the
//! next generation with the state that they hold, and exit. They die, hang, or are orphaned in an
//! old generation, where they run on. This file handles single processes; `group.rs` handles what
//! the ranks of a generation do together.

use super::World;
use super::agenda::SimEvent;
use super::bug::{self, Bug};
use super::describe;
use super::plan::DETECT_WITHIN_MS;
use super::stable_hash::{Actor, ShardPut};
use super::store;
use proto::checkpoint::checkpoint_folder;
use proto::environment::RankEnvironment;
use proto::id::{Generation, Rank, Step};
use proto::message::{
    Activity, Assignment, RankPhase, RankReport, ShardReport, Stage, StepReport, StepTotals,
    WeightDigest,
};
use proto::reason::RankFailure;
use rank_core::gang::{Effect, GangRank, Input as GangInput, Order, Rules};
use rank_core::state::StateLabel;
use worker_core::event::{Input, RankKey};

/// Steps between digests.
const DIGEST_EVERY: u64 = 3;
/// For a job without a record, which a planted bug has lost.
const UNKNOWN: Rules = Rules {
    steps: 1,
    checkpoint_every: 1,
    digest_every: DIGEST_EVERY,
    validate_every: 0,
};

/// Process id, never reused.
pub(crate) type Pid = u64;

#[derive(Debug)]
pub(crate) struct Process {
    /// The rank as which it was started.
    process: RankKey,
    /// Its current rank.
    pub(crate) key: RankKey,
    pub(crate) node: usize,
    boot: u64,
    device: u32,
    pub(crate) assignment: Assignment,
    pub(crate) phase: RankPhase,
    /// It exists and makes no progress.
    pub(crate) hung: bool,
    /// It handles no event before this time.
    pub(crate) paused_until: u64,
    /// Its state machine, if it is a rank of a gang.
    pub(crate) machine: Option<GangRank>,
    /// The toy's value after the step that the machine holds.
    pub(crate) value: u64,
    /// The newest generation and step that it ever reached.
    pub(crate) reached: Option<(Generation, u64)>,
    /// The generation whose rendezvous address it received last.
    pub(crate) rendezvous: Option<Generation>,
    /// Since when it is blocked in a reduction.
    pub(crate) reducing_since: Option<u64>,
    /// Planted bug: it does not report its state to the others until it has a new one.
    pub(crate) withholds_state: bool,
    /// What it has done since it began.
    pub(crate) totals: Option<StepTotals>,
    /// Digests of its weights, newest last.
    pub(crate) digests: Vec<WeightDigest>,
    /// When its newest order arrives; orders arrive in sequence.
    last_order: u64,
    /// When its last line reaches the daemon; lines arrive in sequence, and the exit after them.
    last_line: u64,
}

/// A shard that one process writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardWrite {
    pub(crate) pid: Pid,
    pub(crate) generation: Generation,
    pub(crate) step: u64,
    pub(crate) value: u64,
}

impl Process {
    pub(crate) fn held(&self) -> Option<StateLabel> {
        self.machine.as_ref().and_then(GangRank::held)
    }

    pub(crate) fn is_saving(&self) -> bool {
        self.machine.as_ref().is_some_and(GangRank::is_saving)
    }

    /// The step of the state that it holds.
    pub(crate) fn step(&self) -> u64 {
        self.held().map_or(0, |held| held.step.0)
    }
}

impl World {
    pub(crate) fn spawn(&mut self, node: usize, key: RankKey, device: u32, assignment: Assignment) {
        let held = self
            .processes
            .values()
            .find(|p| p.node == node && p.device == device)
            .map(|p| &p.key);
        let devices = (device, self.nodes[node].devices);
        self.oracle
            .on_spawn(&key, devices, held, assignment.is_standby());
        self.next_pid += 1;
        let pid = self.next_pid;
        let boot = self.nodes[node].boot;
        let slow = self.has_faults() && self.rng.chance(self.plan.noise.slow_start);
        let delay = if slow && self.rng.chance(150) {
            // Base weights over a slow network: longer than the deadline for joining.
            self.rng.between(8_000, 40 * DETECT_WITHIN_MS)
        } else if slow {
            self.rng.between(2_000, 8_000)
        } else {
            self.rng.between(100, 1_200)
        };
        let machine = Order::of(&assignment, key.rank).map(|first| {
            let spec = self.training(&key.job);
            let rules = spec.map_or(UNKNOWN, |spec| Rules::of(&spec));
            let digest_every = DIGEST_EVERY;
            GangRank::new(
                Rules {
                    digest_every,
                    ..rules
                },
                first,
            )
        });
        let process = Process {
            process: key.clone(),
            key,
            node,
            boot,
            device,
            assignment,
            phase: RankPhase::Starting,
            hung: false,
            paused_until: 0,
            machine,
            value: 0,
            reached: None,
            rendezvous: None,
            reducing_since: None,
            withholds_state: false,
            totals: None,
            digests: vec![],
            last_order: self.now,
            last_line: self.now,
        };
        self.processes.insert(pid, process);
        self.agenda
            .put(self.now + delay, SimEvent::RankLoaded { pid });
    }

    /// The process, if it exists and does not hang.
    pub(crate) fn working(&mut self, pid: Pid) -> Option<&mut Process> {
        self.processes.get_mut(&pid).filter(|process| !process.hung)
    }

    fn find(&self, node: usize, key: &RankKey) -> Option<Pid> {
        let found = self
            .processes
            .iter()
            .find(|(_, process)| process.node == node && process.process == *key);
        found.map(|(pid, _)| *pid)
    }

    pub(crate) fn send_order(
        &mut self,
        node: usize,
        key: &RankKey,
        rank: Rank,
        assignment: Box<Assignment>,
    ) {
        let Some(pid) = self.find(node, key) else {
            return;
        };
        // A rank notices an order after its current operation.
        let delay = self.rng.between(2, 40);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.last_order = (now + delay).max(process.last_order);
        let at = process.last_order;
        self.agenda.put(
            at,
            SimEvent::RankReceives {
                pid,
                rank,
                assignment,
            },
        );
    }

    pub(crate) fn stop_rank(&mut self, node: usize, key: &RankKey) {
        let Some(pid) = self.find(node, key) else {
            return;
        };
        let delay = self.rng.between(2, 300);
        if self.working(pid).is_some() {
            let outcome = "exit status 0";
            self.agenda.put(
                self.now + delay,
                SimEvent::RankDies {
                    pid,
                    success: true,
                    outcome,
                },
            );
        }
    }

    pub(crate) fn kill_rank(&mut self, node: usize, key: &RankKey) {
        if self.bug == Some(Bug::KillIgnored) {
            return;
        }
        if let Some(pid) = self.find(node, key) {
            self.unit_rank_killed(pid);
            let at = self.now + self.rng.between(1, 30);
            self.agenda.put(
                at,
                SimEvent::RankDies {
                    pid,
                    success: false,
                    outcome: "killed by signal 9",
                },
            );
        }
    }

    /// A fault: a rank of this node dies at once.
    pub(crate) fn crash_rank(&mut self, node: usize) {
        if let Some(pid) = self.pick_rank(node) {
            self.rank_dies(pid, false, "killed by signal 11");
        }
    }

    /// A fault: a rank of this node hangs.
    pub(crate) fn hang_rank(&mut self, node: usize) {
        let Some(pid) = self.pick_rank(node) else {
            return;
        };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.hung = true;
            let key = &process.key;
            self.trace
                .line(self.now, || format!("{} hangs", describe::key(key)));
        }
    }

    /// A fault: a rank of this node is paused for a while.
    pub(crate) fn pause_rank(&mut self, node: usize, for_ms: u64) {
        let Some(pid) = self.pick_rank(node) else {
            return;
        };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.paused_until = self.now + for_ms;
            let key = &process.key;
            self.trace.line(self.now, || {
                format!("{} is paused for {for_ms} ms", describe::key(key))
            });
        }
    }

    /// Until when this process is paused; None: it runs.
    pub(crate) fn paused_until(&self, pid: Pid) -> Option<u64> {
        let until = self.processes.get(&pid)?.paused_until;
        (self.now < until).then_some(until)
    }

    fn pick_rank(&mut self, node: usize) -> Option<Pid> {
        let here = self
            .processes
            .iter()
            .filter(|(_, process)| process.node == node);
        let pids: Vec<Pid> = here.map(|(pid, _)| *pid).collect();
        let chosen = self.rng.pick(pids.len());
        pids.get(chosen).copied()
    }

    pub(crate) fn rank_dies(&mut self, pid: Pid, success: bool, outcome: &str) {
        let Some(process) = self.processes.remove(&pid) else {
            return;
        };
        let (node, boot, key) = (process.node, process.boot, process.process);
        self.unit_rank_exited(pid, &key.job);
        self.trace.line(self.now, || {
            format!("{} ends: {outcome}", describe::key(&key))
        });
        let at = (self.now + self.rng.between(1, 5)).max(process.last_line);
        let outcome = outcome.to_owned();
        self.agenda.put(
            at,
            SimEvent::RankExited {
                node,
                boot,
                key,
                success,
                outcome,
            },
        );
    }

    /// The process reports its state; the report is also its heartbeat.
    pub(crate) fn send_report(
        &mut self,
        pid: Pid,
        steps: Vec<StepReport>,
        shards: Vec<ShardReport>,
    ) {
        let delay = self.rng.between(1, 4);
        let now = self.now;
        let (units, activity) = self.unit_report(pid);
        let Some(process) = self.working(pid) else {
            return;
        };
        let reduces = process.reducing_since.map(|since| Activity {
            step: Step(process.step() + 1),
            stage: Stage::Reduction,
            for_ms: now - since,
        });
        let joined = process.phase != RankPhase::Starting && process.key.rank == Rank(0);
        let report = RankReport {
            job: process.key.job.clone(),
            generation: process.key.generation,
            rank: process.key.rank,
            phase: process.phase.clone(),
            // The process id stands for its port.
            store_address: joined.then(|| format!("host:{pid}")),
            steps,
            shards,
            digests: process.digests.clone(),
            units,
            activity: activity.or(reduces),
            totals: process.totals,
        };
        process.last_line = (now + delay).max(process.last_line);
        let (node, boot, at) = (process.node, process.boot, process.last_line);
        let process = process.process.clone();
        self.agenda.put(
            at,
            SimEvent::RankReported {
                node,
                boot,
                process,
                report: Box::new(report),
            },
        );
    }

    pub(crate) fn rank_heartbeat(&mut self, pid: Pid) {
        if self.working(pid).is_some() {
            self.send_report(pid, vec![], vec![]);
            self.agenda.put(
                self.now + DETECT_WITHIN_MS / 3,
                SimEvent::RankHeartbeat { pid },
            );
        }
    }

    pub(crate) fn rank_reported(
        &mut self,
        node: usize,
        boot: u64,
        process: RankKey,
        report: RankReport,
    ) {
        self.node_handles(
            node,
            boot,
            Input::RankReported {
                process,
                report: Box::new(report),
            },
        );
    }

    pub(crate) fn rank_exited(
        &mut self,
        node: usize,
        boot: u64,
        key: RankKey,
        success: bool,
        outcome: String,
    ) {
        let exited = Input::RankExited {
            key,
            success,
            outcome,
        };
        self.node_handles(node, boot, exited);
    }

    /// Libraries and weights are loaded: it is ready to join its group.
    pub(crate) fn rank_loaded(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        if process.assignment.units().is_some() {
            return self.units_loaded(pid);
        }
        self.handle_gang_input(pid, GangInput::Loaded);
    }

    pub(crate) fn rank_receives(&mut self, pid: Pid, rank: Rank, assignment: Assignment) {
        let withholds_state = self.bug == Some(Bug::StandbyStateDropped);
        let Some(process) = self.working(pid) else {
            return;
        };
        let newer = process.key.generation < assignment.generation;
        process.assignment = assignment;
        if process.assignment.units().is_some() {
            (process.key.generation, process.key.rank) = (process.assignment.generation, rank);
            return self.units_ordered(pid);
        }
        let Some(order) = Order::of(&process.assignment, rank) else {
            return self.try_join(pid);
        };
        if newer {
            process.reducing_since = None;
            process.withholds_state |= withholds_state && process.assignment.is_standby();
        }
        self.handle_gang_input(pid, GangInput::Ordered(order));
        let Some(process) = self.working(pid) else {
            return;
        };
        let Some(machine) = &process.machine else {
            return;
        };
        let serving = machine.serving();
        (process.key.generation, process.key.rank) = (serving.generation, serving.rank);
        if !newer && !machine.is_saving() {
            // The rendezvous address may be known now.
            self.try_join(pid);
        }
    }

    /// The machine of this process handles an input; its effects are performed.
    pub(crate) fn handle_gang_input(&mut self, pid: Pid, event: GangInput) {
        let bug = self.bug;
        let Some(process) = self.working(pid) else {
            return;
        };
        let Some(machine) = &mut process.machine else {
            return;
        };
        for effect in bug::handle_gang_input(bug, machine, event) {
            self.perform_rank_effect(pid, effect);
        }
    }

    /// Performs the effects of a single rank. The group performs steps, their end and the transfer
    /// of state.
    fn perform_rank_effect(&mut self, pid: Pid, effect: Effect) {
        let Some(process) = self.working(pid) else {
            return;
        };
        match effect {
            Effect::TakeUp(order) => {
                (process.key.generation, process.key.rank) = (order.generation, order.rank);
                process.digests.clear();
            }
            Effect::Phase(phase) => {
                let begins = std::mem::replace(&mut process.phase, phase) == RankPhase::Starting;
                if begins {
                    self.rank_heartbeat(pid);
                } else {
                    self.send_report(pid, vec![], vec![]);
                }
            }
            Effect::Meet => self.try_join(pid),
            Effect::Abort => {
                // The abort takes effect at once; the delay is that of the order.
                let error = "a newer generation replaces this one".to_owned();
                self.handle_gang_input(pid, GangInput::Broke { error });
            }
            Effect::Save(Step(step)) => {
                let generation = process.key.generation;
                self.save(&[pid], generation, step);
            }
            Effect::OpenStore
            | Effect::Synchronize { .. }
            | Effect::Step(_)
            | Effect::Digest(_)
            | Effect::Validate(_)
            | Effect::Report(_)
            | Effect::Leave => {}
        }
    }

    pub(crate) fn rank_breaks(&mut self, pid: Pid, generation: Generation, error: String) {
        let Some(process) = self.working(pid) else {
            return;
        };
        // A timeout for joining concerns only ranks that still wait.
        let is_waiting = match process.phase {
            RankPhase::Joining => true,
            RankPhase::Training => !error.contains("to join"),
            RankPhase::Starting
            | RankPhase::Ready
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. } => false,
        };
        if !is_waiting || process.key.generation != generation {
            return;
        }
        self.handle_gang_input(pid, GangInput::Broke { error });
    }

    pub(crate) fn rank_fails(&mut self, pid: Pid, error: String) {
        let Some(process) = self.working(pid) else {
            return;
        };
        process.phase = RankPhase::Failed {
            failure: RankFailure::error(&error, false),
        };
        self.send_report(pid, vec![], vec![]);
        self.rank_dies(pid, false, "exit status 1");
    }

    pub(crate) fn write_shard(&mut self, shard_write: ShardWrite) {
        let ShardWrite {
            pid,
            generation,
            step,
            value,
        } = shard_write;
        let Some(process) = self.working(pid) else {
            return;
        };
        let key = process.key.clone();
        if key.generation != generation {
            return;
        }
        let fault = self.roll_fault(self.plan.noise.shard_faults);
        let kind = if fault { self.rng.between(1, 4) } else { 0 };
        if kind == 1 {
            return self.rank_fails(pid, "writing a checkpoint: 503 slow down".to_owned());
        }
        if kind == 2 {
            let (key, at) = (
                describe::key(&key),
                self.now + self.rng.between(1_000, 3 * DETECT_WITHIN_MS),
            );
            self.trace
                .line(self.now, || format!("the store is slow for {key}"));
            return self.agenda.put(at, SimEvent::WriteShard(shard_write));
        }
        let Some(process) = self.working(pid) else {
            return;
        };
        let entry = store::entry(key.rank.0, process.assignment.world(), value);
        let put = ShardPut {
            key: &key,
            step: Step(step),
            value,
        };
        self.trace.record(self.now, Actor::Process(pid), &put);
        self.store.put_shard(
            &checkpoint_folder(&key.job, Step(step), key.generation),
            &entry.path,
            value,
        );
        if kind == 3 {
            // The shard is written, and the answer is lost.
            return self.rank_fails(pid, "writing a checkpoint: connection reset".to_owned());
        }
        if self.bug != Some(Bug::ShardBeforeWritten) {
            self.report_shard(shard_write);
        }
    }

    pub(crate) fn report_shard(&mut self, shard_write: ShardWrite) {
        let ShardWrite {
            pid,
            generation,
            step,
            value,
        } = shard_write;
        let Some(process) = self.working(pid) else {
            return;
        };
        if process.key.generation != generation {
            return;
        }
        let shard = store::entry(process.key.rank.0, process.assignment.world(), value);
        let environment = "toy".to_owned();
        self.handle_gang_input(pid, GangInput::Saved { step: Step(step) });
        self.send_report(
            pid,
            vec![],
            vec![ShardReport {
                step: Step(step),
                shard,
                init_digest: None,
                environment,
                rank_environment: RankEnvironment::default(),
            }],
        );
    }
}
