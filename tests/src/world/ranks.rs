//! Rank processes in the simulated world: each holds the rank's machine as it ships, and a toy in
//! place of a model. They start, meet, train step by step in lockstep, write shards, go on in the
//! next generation with what they hold, and leave. They die, hang, and are orphaned in an old
//! generation, where they go on as if nothing had happened. What happens to a process from outside
//! is here; what the ranks of a generation do together is in `group.rs`.

use super::World;
use super::agenda::SimEvent;
use super::bug::{self, Bug};
use super::numbers::{ShardPut, Who};
use super::plan::DETECT_WITHIN_MS;
use super::store;
use super::tell;
use proto::checkpoint::checkpoint_folder;
use proto::id::{Generation, Rank, Step};
use proto::message::{
    Activity, Assignment, RankPhase, RankReport, ShardReport, Stage, StepReport, WeightDigest,
};
use rank_core::gang::{Effect, GangRank, Input as GangInput, Order, Rules};
use rank_core::state::StateLabel;
use worker_core::event::{Input, RankKey};

/// Steps between digests.
const DIGEST_EVERY: u64 = 3;
/// Of a job that nobody knows: a planted bug forgot it.
const UNKNOWN: Rules = Rules {
    steps: 1,
    checkpoint_every: 1,
    digest_every: DIGEST_EVERY,
};

/// Process number, never used twice.
pub(crate) type Pid = u64;

#[derive(Debug)]
pub(crate) struct Process {
    /// What it was started as.
    process: RankKey,
    /// What it is now.
    pub(crate) key: RankKey,
    pub(crate) node: usize,
    boot: u64,
    device: u32,
    pub(crate) assignment: Assignment,
    pub(crate) phase: RankPhase,
    /// It exists and does nothing.
    pub(crate) hung: bool,
    /// Until then it gets no processor; what comes for it waits.
    pub(crate) paused_until: u64,
    /// What it decides by, where it is a rank of a gang.
    pub(crate) machine: Option<GangRank>,
    /// The toy's value after the step that the machine holds.
    pub(crate) value: u64,
    /// The newest generation and step that it ever came to.
    pub(crate) reached: Option<(Generation, u64)>,
    /// The generation whose meeting place it was told last.
    pub(crate) meets: Option<Generation>,
    /// Since when it waits in a sum that does not come to its end.
    pub(crate) reduces_since: Option<u64>,
    /// Planted: it does not tell the others what it holds, until it holds something new.
    pub(crate) forgets: bool,
    /// What it came to, newest last.
    pub(crate) digests: Vec<WeightDigest>,
    /// When its newest order reaches it: orders keep their order.
    last_order: u64,
    /// When its last line reaches the daemon: lines keep their order, and the exit comes after
    /// them.
    last_line: u64,
}

/// What one process writes of a checkpoint.
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
        let slow = self.is_rough() && self.rng.chance(self.plan.noise.slow_start);
        let delay = if slow && self.rng.chance(150) {
            // Base weights over a slow network: longer than the ranks wait for each other once they
            // meet.
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
            meets: None,
            reduces_since: None,
            forgets: false,
            digests: vec![],
            last_order: self.now,
            last_line: self.now,
        };
        self.processes.insert(pid, process);
        self.agenda
            .put(self.now + delay, SimEvent::RankLoaded { pid });
    }

    /// The process, if it is there and not hung.
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

    pub(crate) fn tell_rank(
        &mut self,
        node: usize,
        key: &RankKey,
        rank: Rank,
        assignment: Box<Assignment>,
    ) {
        let Some(pid) = self.find(node, key) else {
            return;
        };
        // It notices a newer generation when it comes out of what it is doing.
        let delay = self.rng.between(2, 40);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.last_order = (now + delay).max(process.last_order);
        let at = process.last_order;
        self.agenda.put(
            at,
            SimEvent::RankTold {
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

    /// A fault: some rank of this node dies at once.
    pub(crate) fn crash_rank(&mut self, node: usize) {
        if let Some(pid) = self.some_rank(node) {
            self.rank_dies(pid, false, "killed by signal 11");
        }
    }

    /// A fault: some rank of this node does nothing more.
    pub(crate) fn hang_rank(&mut self, node: usize) {
        let Some(pid) = self.some_rank(node) else {
            return;
        };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.hung = true;
            let key = &process.key;
            self.trace
                .line(self.now, || format!("{} hangs", tell::key(key)));
        }
    }

    /// A fault: some rank of this node gets no processor for a while.
    pub(crate) fn pause_rank(&mut self, node: usize, for_ms: u64) {
        let Some(pid) = self.some_rank(node) else {
            return;
        };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.paused_until = self.now + for_ms;
            let key = &process.key;
            self.trace.line(self.now, || {
                format!("{} stands still for {for_ms} ms", tell::key(key))
            });
        }
    }

    /// When this process goes on, if it stands still now.
    pub(crate) fn pause(&self, pid: Pid) -> Option<u64> {
        let until = self.processes.get(&pid)?.paused_until;
        (self.now < until).then_some(until)
    }

    fn some_rank(&mut self, node: usize) -> Option<Pid> {
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
        self.unit_rank_gone(pid, &key.job);
        self.trace
            .line(self.now, || format!("{} ends: {outcome}", tell::key(&key)));
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

    /// The process says where it is; also its sign of life.
    pub(crate) fn say(&mut self, pid: Pid, steps: Vec<StepReport>, shards: Vec<ShardReport>) {
        let delay = self.rng.between(1, 4);
        let now = self.now;
        let (units, activity) = self.unit_report(pid);
        let Some(process) = self.working(pid) else {
            return;
        };
        let reduces = process.reduces_since.map(|since| Activity {
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
            // The number of the process stands for its port.
            store_address: joined.then(|| format!("host:{pid}")),
            steps,
            shards,
            digests: process.digests.clone(),
            units,
            activity: activity.or(reduces),
        };
        process.last_line = (now + delay).max(process.last_line);
        let (node, boot, at) = (process.node, process.boot, process.last_line);
        let process = process.process.clone();
        self.agenda.put(
            at,
            SimEvent::RankSaid {
                node,
                boot,
                process,
                report,
            },
        );
    }

    pub(crate) fn rank_beats(&mut self, pid: Pid) {
        if self.working(pid).is_some() {
            self.say(pid, vec![], vec![]);
            self.agenda
                .put(self.now + DETECT_WITHIN_MS / 3, SimEvent::RankBeat { pid });
        }
    }

    pub(crate) fn rank_said(
        &mut self,
        node: usize,
        boot: u64,
        process: RankKey,
        report: RankReport,
    ) {
        self.node_handles(node, boot, Input::RankSaid { process, report });
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

    /// Libraries and weights are there: it is ready to meet the others.
    pub(crate) fn rank_loaded(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else {
            return;
        };
        if process.assignment.units().is_some() {
            return self.units_loaded(pid);
        }
        self.gang_rank(pid, GangInput::Loaded);
    }

    pub(crate) fn rank_told(&mut self, pid: Pid, rank: Rank, assignment: Assignment) {
        let forgets = self.bug == Some(Bug::StandbyForgets);
        let Some(process) = self.working(pid) else {
            return;
        };
        let newer = process.key.generation < assignment.generation;
        process.assignment = assignment;
        if process.assignment.units().is_some() {
            (process.key.generation, process.key.rank) = (process.assignment.generation, rank);
            return self.units_told(pid);
        }
        let Some(order) = Order::of(&process.assignment, rank) else {
            return self.try_join(pid);
        };
        if newer {
            process.reduces_since = None;
            process.forgets |= forgets && process.assignment.is_standby();
        }
        self.gang_rank(pid, GangInput::Ordered(order));
        let Some(process) = self.working(pid) else {
            return;
        };
        let Some(machine) = &process.machine else {
            return;
        };
        let serving = machine.serving();
        (process.key.generation, process.key.rank) = (serving.generation, serving.rank);
        if !newer && !machine.is_saving() {
            // The address may be known now.
            self.try_join(pid);
        }
    }

    /// The machine of this process is told something, and what it wants is done.
    pub(crate) fn gang_rank(&mut self, pid: Pid, event: GangInput) {
        let bug = self.bug;
        let Some(process) = self.working(pid) else {
            return;
        };
        let Some(machine) = &mut process.machine else {
            return;
        };
        for effect in bug::gang_rank(bug, machine, event) {
            self.do_for_rank(pid, effect);
        }
    }

    /// What a rank does alone. What all do together (steps, their end, state that is handed over)
    /// is up to the group.
    fn do_for_rank(&mut self, pid: Pid, effect: Effect) {
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
                    self.rank_beats(pid);
                } else {
                    self.say(pid, vec![], vec![]);
                }
            }
            Effect::Meet => self.try_join(pid),
            Effect::Abort => {
                // It notices at once; an order takes its time to come.
                let error = "a newer generation takes its place".to_owned();
                self.gang_rank(pid, GangInput::Broke { error });
            }
            Effect::Save(Step(step)) => {
                let generation = process.key.generation;
                self.save(&[pid], generation, step);
            }
            Effect::OpenStore
            | Effect::Synchronize { .. }
            | Effect::Step(_)
            | Effect::Digest(_)
            | Effect::Report(_)
            | Effect::Leave => {}
        }
    }

    pub(crate) fn rank_breaks(&mut self, pid: Pid, generation: Generation, error: String) {
        let Some(process) = self.working(pid) else {
            return;
        };
        // Only who still waits for the others gets tired of it.
        let waits = match process.phase {
            RankPhase::Joining => true,
            RankPhase::Training => !error.contains("to join"),
            RankPhase::Starting
            | RankPhase::Ready
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. } => false,
        };
        if !waits || process.key.generation != generation {
            return;
        }
        self.gang_rank(pid, GangInput::Broke { error });
    }

    pub(crate) fn rank_fails(&mut self, pid: Pid, error: String) {
        let Some(process) = self.working(pid) else {
            return;
        };
        process.phase = RankPhase::Failed {
            error,
            permanent: false,
        };
        self.say(pid, vec![], vec![]);
        self.rank_dies(pid, false, "exit status 1");
    }

    pub(crate) fn rank_writes(&mut self, shard_write: ShardWrite) {
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
        let trouble = self.trouble(self.plan.noise.shard_trouble);
        let kind = if trouble { self.rng.between(1, 4) } else { 0 };
        if kind == 1 {
            return self.rank_fails(pid, "writing a checkpoint: 503 slow down".to_owned());
        }
        if kind == 2 {
            let (key, at) = (
                tell::key(&key),
                self.now + self.rng.between(1_000, 3 * DETECT_WITHIN_MS),
            );
            self.trace
                .line(self.now, || format!("the store is slow for {key}"));
            return self.agenda.put(at, SimEvent::RankWrites(shard_write));
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
        self.trace.number(self.now, Who::Process(pid), &put);
        self.store.put_shard(
            &checkpoint_folder(&key.job, Step(step), key.generation),
            &entry.path,
            value,
        );
        if kind == 3 {
            // Written, and the answer is lost.
            return self.rank_fails(pid, "writing a checkpoint: connection reset".to_owned());
        }
        if self.bug != Some(Bug::ShardBeforeWritten) {
            self.rank_says_written(shard_write);
        }
    }

    pub(crate) fn rank_says_written(&mut self, shard_write: ShardWrite) {
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
        self.gang_rank(pid, GangInput::Saved { step: Step(step) });
        self.say(
            pid,
            vec![],
            vec![ShardReport {
                step: Step(step),
                shard,
                init_digest: None,
                environment,
            }],
        );
    }
}
