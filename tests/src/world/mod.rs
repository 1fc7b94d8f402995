//! Whole clusters in one value: both machines as they ship, under one virtual clock, with
//! everything around them played by chance from one seed: network, processes, disks, clocks,
//! people. A world has a rough youth, in which messages are lost, late, doubled and overtaken and
//! everything crashes, and then heals; every job must come to its end, with the number that an
//! undisturbed run gives. The same seed is the same world, to the last event.

mod agenda;
mod bug;
mod clients;
mod coordinator;
mod crowd;
mod group;
mod million;
mod node;
mod numbers;
mod oracle;
mod outcome;
mod plan;
mod prefix;
mod ranks;
mod rng;
mod specs;
mod store;
mod takeover;
mod tell;
mod toy;
mod trace;
mod units;

use agenda::{Agenda, Requests, SimEvent};
pub use bug::Bug;
use clients::ClientRequest;
use coordinator::CoordinatorHost;
use coordinator_core::event::{
    Durable, Input, JobPhase, JobRecord, RESTARTS_WITHOUT_PROGRESS_MAX, Record,
};
pub use crowd::{Crowd, Hashes, crowd, hashes};
use group::Group;
use million::Measured;
pub use million::{Many, many_units};
use node::Node;
use numbers::{RankTold, Who};
use oracle::Oracle;
pub use outcome::{Broken, Kinds, Outcome};
use plan::{DETECT_WITHIN_MS, Fault, Plan};
pub use prefix::restore_every_prefix;
use proto::id::{Generation, JobId};
use proto::spec::JobSpec;
use ranks::{Pid, Process};
pub(crate) use rng::Rng;
use specs::Specs;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use store::Store;
pub use trace::Story;
use trace::Trace;
use units::UnitProcess;
use units::spoil::Spoil;
use units::watch::Watch;

/// How long a healed world may take to bring everything to an end, in virtual milliseconds.
const PATIENCE_MS: u64 = 600_000;
/// No world is shorter.
pub const EVENTS_MIN: u64 = 1_000;
/// How long it is watched after that: ranks must have left.
const AFTERMATH_MS: u64 = 4 * DETECT_WITHIN_MS;

/// Lives through the world of this seed.
///
/// # Errors
/// The first thing that the oracle did not accept.
pub fn run(seed: u64, bug: Option<Bug>, story: Story) -> Result<Outcome, Broken> {
    run_of(Kinds::All, seed, bug, story)
}

/// The same, with only some kinds of work in it.
///
/// # Errors
/// As [`run`].
pub fn run_of(kinds: Kinds, seed: u64, bug: Option<Bug>, story: Story) -> Result<Outcome, Broken> {
    World::new(kinds, seed, bug, story).live_or_break(seed)
}

/// The story of a world, line by line, and how it ended.
pub fn tell(kinds: Kinds, seed: u64, bug: Option<Bug>) -> (Vec<String>, Result<Outcome, Broken>) {
    let mut world = World::new(kinds, seed, bug, Story::Kept);
    let result = world.live_or_break(seed);
    (world.trace.take_kept(), result)
}

/// What a machine that found itself broken said, in one line.
fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!(
        "panic: {}",
        text.unwrap_or("without a message").replace('\n', " ")
    )
}

#[derive(Debug)]
struct World {
    now: u64,
    kinds: Kinds,
    /// How long it may take to come to its end once it has healed.
    patience_ms: u64,
    rng: Rng,
    plan: Plan,
    bug: Option<Bug>,
    trace: Trace,
    agenda: Agenda,
    oracle: Oracle,
    store: Store,
    specs: Specs,
    /// What the state store holds.
    durable: Durable,
    /// Every save, in order, where somebody wants to see them.
    writes: Option<Vec<Vec<Record>>>,
    /// How much they are, where somebody wants to know.
    measured: Option<Measured>,
    coordinator: CoordinatorHost,
    /// The one before it, while it lives on.
    former: Option<CoordinatorHost>,
    /// True while the former one acts.
    fenced: bool,
    nodes: Vec<Node>,
    processes: BTreeMap<Pid, Process>,
    /// Of those that work on units.
    unit_processes: BTreeMap<Pid, UnitProcess>,
    next_pid: Pid,
    groups: BTreeMap<(JobId, Generation), Group>,
    /// Pairs of nodes that do not reach each other, and until when.
    cuts: BTreeMap<(usize, usize), u64>,
    client_requests: Vec<ClientRequest>,
    watch: Watch,
    spoil: Spoil,
    requests: Requests,
    next_request: u64,
}

impl World {
    fn new(kinds: Kinds, seed: u64, bug: Option<Bug>, story: Story) -> Self {
        let mut world = Self::of_plan(Plan::new(kinds, seed), seed, bug, story);
        world.kinds = kinds;
        world
    }

    fn of_plan(plan: Plan, seed: u64, bug: Option<Bug>, story: Story) -> Self {
        let nodes = plan
            .nodes
            .iter()
            .enumerate()
            .map(|(number, devices)| Node::new(number, *devices))
            .collect();
        let mut world = Self {
            now: 0,
            kinds: Kinds::All,
            patience_ms: PATIENCE_MS,
            rng: Rng::new(seed, 2),
            plan,
            bug,
            trace: Trace::new(story),
            agenda: Agenda::default(),
            oracle: Oracle::default(),
            store: Store::default(),
            specs: Specs::default(),
            durable: Durable::default(),
            writes: None,
            measured: None,
            coordinator: CoordinatorHost::new(bug == Some(Bug::ClockStopped)),
            former: None,
            fenced: false,
            nodes,
            processes: BTreeMap::new(),
            unit_processes: BTreeMap::new(),
            next_pid: 0,
            groups: BTreeMap::new(),
            cuts: BTreeMap::new(),
            client_requests: Vec::new(),
            watch: Watch::default(),
            spoil: Spoil::default(),
            requests: BTreeMap::new(),
            next_request: 0,
        };
        world.agenda.put(0, SimEvent::CoordinatorStart);
        for node in 0..world.nodes.len() {
            let at = world.rng.between(0, 1_000);
            world.agenda.put(
                at,
                SimEvent::NodeStart {
                    node,
                    clock_back: false,
                },
            );
        }
        for number in 0..world.plan.faults.len() {
            let at = world.plan.faults[number].0;
            world.agenda.put(at, SimEvent::Fault { number });
        }
        world.plan_requests();
        world
    }

    /// A machine that panics breaks its world and no other.
    fn live_or_break(&mut self, seed: u64) -> Result<Outcome, Broken> {
        let result = catch_unwind(AssertUnwindSafe(|| self.live()));
        let result = result.unwrap_or_else(|panic| Err(panic_words(&*panic)));
        result.map_err(|what| {
            self.trace.line(self.now, || format!("BROKEN: {what}"));
            Broken {
                kinds: self.kinds,
                seed,
                bug: self.bug,
                at_ms: self.now,
                what,
            }
        })
    }

    fn live(&mut self) -> Result<Outcome, String> {
        self.trace
            .value(0, &self.plan, || Some(tell::plan(&self.plan)));
        let mut events = 0;
        let mut patient_since = self.plan.heal_at;
        let mut over_at = None;
        while let Some((at, happening)) = self.agenda.next() {
            self.now = at;
            events += 1;
            if let Some(until) = self.waits(&happening) {
                self.agenda.put(until, happening);
                continue;
            }
            self.handle_event(happening);
            if self.kinds == Kinds::Mixed {
                self.look();
            }
            if let Some(violation) = self.oracle.violation.take() {
                return Err(violation);
            }
            if self.now < self.plan.heal_at {
                continue;
            }
            match over_at {
                None if self.is_settled() && events < EVENTS_MIN => {
                    patient_since = self.now;
                    self.encore();
                }
                None if self.is_settled() => over_at = Some(self.now),
                None if patient_since + self.patience_ms < self.now => {
                    return Err(self.not_at_rest());
                }
                Some(over_at) if over_at + AFTERMATH_MS < self.now => break,
                None | Some(_) => {}
            }
        }
        self.check_end()?;
        Ok(self.outcome(events))
    }

    /// Until when whoever this happens to gets no processor.
    fn waits(&self, happening: &SimEvent) -> Option<u64> {
        let stalled = self.coordinator.stalled_until;
        if happening.is_for_coordinator() && self.now < stalled {
            return Some(stalled);
        }
        if self.coordinator.saves && happening.is_for_coordinator() {
            return Some(stalled.max(self.now));
        }
        self.pause(happening.process()?)
    }

    fn outcome(&self, events: u64) -> Outcome {
        let mut outcome = Outcome {
            events,
            hash: self.trace.hash(),
            numbers: self.trace.numbers(),
            ..Outcome::default()
        };
        for record in self.durable.jobs.values() {
            outcome.restarts += record.restarts;
            match &record.phase {
                JobPhase::Done { .. } => outcome.done += 1,
                JobPhase::Failed { .. } => outcome.failed += 1,
                JobPhase::Cancelled { .. } => outcome.cancelled += 1,
                JobPhase::Queued { .. } | JobPhase::Running { .. } => {}
            }
        }
        outcome
    }

    /// True until the world heals.
    fn is_rough(&self) -> bool {
        self.now < self.plan.heal_at
    }

    fn is_settled(&self) -> bool {
        // What is durable is over for the coordinator only when it learns of it.
        let is_over = |job: &JobRecord| job.phase.is_over() || self.is_forgotten(job);
        let over = self.durable.jobs.values().all(is_over) && !self.coordinator.saves;
        over && self
            .client_requests
            .iter()
            .all(|client_request| client_request.granted)
    }

    fn not_at_rest(&self) -> String {
        let jobs = self
            .durable
            .jobs
            .values()
            .filter(|job| !job.phase.is_over());
        let jobs: Vec<String> = jobs.map(tell::phase).collect();
        let client_requests = self
            .client_requests
            .iter()
            .filter(|client_request| !client_request.granted)
            .count();
        format!(
            "hangs: {}; {client_requests} wishes without an answer",
            jobs.join("; ")
        )
    }

    /// The end of a healed world.
    fn check_end(&self) -> Result<(), String> {
        if !self.is_settled() {
            return Err(self.not_at_rest());
        }
        if let Some(process) = self.processes.values().next() {
            return Err(format!(
                "{} still runs when all is over",
                tell::key(&process.key)
            ));
        }
        self.durable
            .jobs
            .values()
            .try_for_each(|record| self.check_job_end(record))
    }

    fn check_job_end(&self, record: &JobRecord) -> Result<(), String> {
        let id = &record.id;
        self.oracle.audit(record)?;
        for checkpoint in &record.checkpoints {
            self.store
                .load(id, *checkpoint)
                .map_err(|error| format!("{id}: {error}"))?;
        }
        if record.units.is_some() {
            return self.check_units_end(record);
        }
        let spec = self.specs.get(id);
        match (&record.phase, spec.and_then(JobSpec::training)) {
            (JobPhase::Done { .. }, Some(training)) => {
                let last = record
                    .checkpoints
                    .last()
                    .ok_or_else(|| format!("{id} is done without a checkpoint"))?;
                let steps = training.train.steps;
                let expected = toy::undisturbed(
                    training.data.seed,
                    steps,
                    u64::from(training.micro_batches()),
                );
                let value = self.store.load(id, *last)?;
                if last.step.0 != steps || value != expected {
                    return Err(format!(
                        "{id} ends at step {} with {value}, not {steps} with {expected}",
                        last.step
                    ));
                }
                Ok(())
            }
            (JobPhase::Failed { reason, .. }, _)
                if (record.restarts_without_progress < RESTARTS_WITHOUT_PROGRESS_MAX
                    && !record.permanent_failure)
                    || reason.is_empty() =>
            {
                Err(format!(
                    "{id} failed after {} fruitless generations: {reason:?}",
                    record.restarts_without_progress
                ))
            }
            (
                JobPhase::Done { .. }
                | JobPhase::Failed { .. }
                | JobPhase::Cancelled { .. }
                | JobPhase::Queued { .. }
                | JobPhase::Running { .. },
                _,
            ) => Ok(()),
        }
    }

    fn handle_event(&mut self, happening: SimEvent) {
        match happening {
            SimEvent::Ask { client_request } => self.ask(client_request),
            SimEvent::Fault { number } => self.fault(self.plan.faults[number].1),
            SimEvent::CoordinatorStart => self.start_coordinator(),
            SimEvent::FormerDies { boot } => self.former_dies(boot),
            SimEvent::CoordinatorWake { boot } => {
                self.as_coordinator(boot, |world| world.coordinator_wakes(boot))
            }
            SimEvent::CoordinatorGoesOn { boot, effects } => {
                self.as_coordinator(boot, |world| {
                    world.coordinator.saves = false;
                    world.perform_all(effects);
                });
            }
            SimEvent::CoordinatorGivesUp { boot } => {
                self.as_coordinator(boot, |world| {
                    world.coordinator.saves = false;
                    world.partition_coordinator();
                });
            }
            SimEvent::CoordinatorHears { boot, report } => self.coordinator_hears(boot, report),
            SimEvent::CoordinatorLosesLink { boot, worker } => {
                self.as_coordinator(boot, |world| {
                    world.coordinator_handles(Input::Disconnected { worker })
                });
            }
            SimEvent::ManifestLands { boot, manifest } => self.manifest_lands(boot, &manifest),
            SimEvent::ManifestAnswered {
                boot,
                job,
                checkpoint,
                result,
            } => {
                let written = Input::ManifestWritten {
                    job,
                    checkpoint,
                    result,
                };
                self.as_coordinator(boot, |world| world.coordinator_handles(written));
            }
            SimEvent::NodeStart { node, clock_back } => self.start_node(node, clock_back),
            SimEvent::NodeWake { node, boot } => self.node_wakes(node, boot),
            SimEvent::NodeHears { node, boot, state } => {
                self.node_handles(node, boot, worker_core::event::Input::Desired(state));
            }
            SimEvent::LinkOpen { node, boot } => self.open_link(node, boot),
            SimEvent::NodeAsks { node, boot } => self.node_asks(node, boot),
            SimEvent::RankSaid {
                node,
                boot,
                process,
                report,
            } => self.rank_said(node, boot, process, report),
            SimEvent::RankExited {
                node,
                boot,
                key,
                success,
                outcome,
            } => self.rank_exited(node, boot, key, success, outcome),
            of_a_rank => self.happen_to_rank(of_a_rank),
        }
    }

    fn happen_to_rank(&mut self, happening: SimEvent) {
        match happening {
            SimEvent::RankTold {
                pid,
                rank,
                assignment,
            } => {
                let told = RankTold(rank, &assignment);
                self.trace.number(self.now, Who::Process(pid), &told);
                self.rank_told(pid, rank, *assignment);
            }
            SimEvent::RankLoaded { pid } => self.rank_loaded(pid),
            SimEvent::RankBeat { pid } => self.rank_beats(pid),
            SimEvent::RankJoins { pid } => self.try_join(pid),
            SimEvent::CheckpointGoes {
                boot,
                job,
                checkpoint,
            } => self.checkpoint_goes(boot, &job, checkpoint),
            SimEvent::RankWrites(shard_write) => self.rank_writes(shard_write),
            SimEvent::RankSaysWritten(shard_write) => self.rank_says_written(shard_write),
            SimEvent::RankBreaks {
                pid,
                generation,
                error,
            } => self.rank_breaks(pid, generation, error),
            SimEvent::RankFinishes { pid, generation } => self.rank_finishes(pid, generation),
            SimEvent::RankDies {
                pid,
                success,
                outcome,
            } => self.rank_dies(pid, success, outcome),
            SimEvent::GroupSteps { job, generation } => self.group_steps(job, generation),
            SimEvent::UnitEnds { pid, begun } => self.unit_ends(pid, begun),
            other => unreachable!("{other:?} is of no rank"),
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::RankCrash { node } => self.crash_rank(node),
            Fault::RankHang { node } => self.hang_rank(node),
            Fault::NodeCrash {
                node,
                down_ms,
                clock_back,
            } => self.crash_node(node, down_ms, clock_back),
            Fault::NodeShutdown { node, down_ms } => self.shut_node_down(node, down_ms),
            Fault::CoordinatorCrash { down_ms } => self.crash_coordinator(down_ms),
            Fault::LinkBreak { node, away_ms } => {
                self.nodes[node].deaf_until(self.now + away_ms);
                let delay = self.rng.between(1, 2 * DETECT_WITHIN_MS);
                self.break_link(node, delay);
            }
            Fault::CoordinatorStall { for_ms } => {
                self.trace.line(self.now, || {
                    format!("the coordinator stands still for {for_ms} ms")
                });
                let until = self.now + for_ms;
                self.coordinator.stalled_until = self.coordinator.stalled_until.max(until);
            }
            Fault::RankPause { node, for_ms } => self.pause_rank(node, for_ms),
            Fault::RanksCut { node, for_ms } => self.cut_ranks(node, for_ms),
            Fault::PairCut { nodes, for_ms } => self.cut_pair(nodes, for_ms),
            Fault::Deaf { node, for_ms } => self.deafen(node, for_ms),
            Fault::TakeOver { for_ms } => self.take_over(for_ms),
            Fault::OneWay { node, up, for_ms } => self.cut_one_way(node, up, for_ms),
            Fault::ClockJump { by_ms } => self.jump_clock(by_ms),
        }
    }
}
