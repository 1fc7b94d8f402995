//! Simulated clusters: the production state machines under one virtual clock, with network,
//! processes, disks, clocks and clients simulated from one seed. A world first has faults: messages
//! are lost, delayed, duplicated and reordered, and everything crashes. Then the faults end, and
//! every job must end with the value of an undisturbed run. The same seed gives the same events.

mod accounts;
mod agenda;
mod bug;
mod clients;
mod coordinator;
mod describe;
mod evaluations;
mod group;
mod million;
mod node;
mod oracle;
mod outcome;
mod plan;
mod prefix;
mod ranks;
mod rng;
mod specs;
mod stable_hash;
mod store;
mod sweep;
mod takeover;
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
use group::Group;
use million::SaveStats;
pub use million::{ManyUnits, many_units};
use node::Node;
use oracle::Oracle;
pub use outcome::{Broken, Kinds, Outcome};
use plan::{DETECT_WITHIN_MS, Fault, Plan};
pub use prefix::restore_every_prefix;
use proto::id::{Generation, JobId};
use proto::spec::JobSpec;
use ranks::{Pid, Process};
pub(crate) use rng::Rng;
use specs::Specs;
use stable_hash::{Actor, ReceivedOrder};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use store::Store;
pub use sweep::{Hashes, Sweep, hashes, sweep};
use trace::Trace;
pub use trace::TraceMode;
use units::UnitProcess;
use units::bugs::UnitBugs;
use units::watchdog::Watchdog;

/// All jobs must end within this time after the faults have ended, in virtual milliseconds.
const FINISH_WITHIN_MS: u64 = 600_000;
/// A world gets further jobs until it has this many events.
pub const EVENTS_MIN: u64 = 1_000;
/// How long it runs on after the last job: all ranks must exit.
const AFTERMATH_MS: u64 = 4 * DETECT_WITHIN_MS;

/// Runs the world of this seed.
///
/// # Errors
/// The first violation that the oracle found.
pub fn run(seed: u64, bug: Option<Bug>, mode: TraceMode) -> Result<Outcome, Broken> {
    run_of(Kinds::All, seed, bug, mode)
}

/// Like [`run`], with only some kinds of jobs.
///
/// # Errors
/// As [`run`].
pub fn run_of(
    kinds: Kinds,
    seed: u64,
    bug: Option<Bug>,
    mode: TraceMode,
) -> Result<Outcome, Broken> {
    World::new(kinds, seed, bug, mode).run_catching_panics(seed)
}

/// The trace of a world, line by line, and how the world ended.
pub fn run_collecting(
    kinds: Kinds,
    seed: u64,
    bug: Option<Bug>,
) -> (Vec<String>, Result<Outcome, Broken>) {
    let mut world = World::new(kinds, seed, bug, TraceMode::Collected);
    let result = world.run_catching_panics(seed);
    (world.trace.take_lines(), result)
}

/// The message of a panic, in one line.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
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
    /// All jobs must end within this time after `heal_at`.
    finish_within_ms: u64,
    rng: Rng,
    plan: Plan,
    bug: Option<Bug>,
    trace: Trace,
    agenda: Agenda,
    oracle: Oracle,
    store: Store,
    specs: Specs,
    /// Contents of the state store.
    durable: Durable,
    /// Every save, in order; None: not recorded.
    writes: Option<Vec<Vec<Record>>>,
    /// Number and size of saves; None: not measured.
    save_stats: Option<SaveStats>,
    coordinator: CoordinatorHost,
    /// The replaced coordinator, while its process still runs.
    former: Option<CoordinatorHost>,
    /// True while the former coordinator handles an event.
    former_acts: bool,
    nodes: Vec<Node>,
    processes: BTreeMap<Pid, Process>,
    /// State of the processes that work on units.
    unit_processes: BTreeMap<Pid, UnitProcess>,
    next_pid: Pid,
    groups: BTreeMap<(JobId, Generation), Group>,
    /// Pairs of nodes that cannot reach each other, and until when.
    cuts: BTreeMap<(usize, usize), u64>,
    client_requests: Vec<ClientRequest>,
    watchdog: Watchdog,
    unit_bugs: UnitBugs,
    requests: Requests,
    next_request: u64,
}

impl World {
    fn new(kinds: Kinds, seed: u64, bug: Option<Bug>, mode: TraceMode) -> Self {
        let mut world = Self::of_plan(Plan::new(kinds, seed), seed, bug, mode);
        world.kinds = kinds;
        world
    }

    fn of_plan(plan: Plan, seed: u64, bug: Option<Bug>, mode: TraceMode) -> Self {
        let nodes = plan
            .nodes
            .iter()
            .enumerate()
            .map(|(number, devices)| Node::new(number, *devices))
            .collect();
        let mut world = Self {
            now: 0,
            kinds: Kinds::All,
            finish_within_ms: FINISH_WITHIN_MS,
            rng: Rng::new(seed, 2),
            plan,
            bug,
            trace: Trace::new(mode),
            agenda: Agenda::default(),
            oracle: Oracle::default(),
            store: Store::default(),
            specs: Specs::default(),
            durable: Durable::default(),
            writes: None,
            save_stats: None,
            coordinator: CoordinatorHost::new(bug == Some(Bug::ClockStopped)),
            former: None,
            former_acts: false,
            nodes,
            processes: BTreeMap::new(),
            unit_processes: BTreeMap::new(),
            next_pid: 0,
            groups: BTreeMap::new(),
            cuts: BTreeMap::new(),
            client_requests: Vec::new(),
            watchdog: Watchdog::default(),
            unit_bugs: UnitBugs::default(),
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

    /// A panic of a machine ends its world and no other.
    fn run_catching_panics(&mut self, seed: u64) -> Result<Outcome, Broken> {
        let result = catch_unwind(AssertUnwindSafe(|| self.run_to_end()));
        let result = result.unwrap_or_else(|panic| Err(panic_text(&*panic)));
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

    fn run_to_end(&mut self) -> Result<Outcome, String> {
        self.trace
            .value(0, &self.plan, || Some(describe::plan(&self.plan)));
        let mut events = 0;
        let mut waiting_since = self.plan.heal_at;
        let mut finished_at = None;
        while let Some((at, event)) = self.agenda.next() {
            self.now = at;
            events += 1;
            if let Some(until) = self.deferred_until(&event) {
                self.agenda.put(until, event);
                continue;
            }
            self.handle_event(event);
            if matches!(
                self.kinds,
                Kinds::Mixed | Kinds::Archived | Kinds::Evaluated
            ) {
                self.check_progress();
            }
            if let Some(violation) = self.oracle.violation.take() {
                return Err(violation);
            }
            if self.now < self.plan.heal_at {
                continue;
            }
            match finished_at {
                None if self.is_finished() && events < EVENTS_MIN => {
                    waiting_since = self.now;
                    self.extra_job();
                }
                None if self.is_finished() => finished_at = Some(self.now),
                None if waiting_since + self.finish_within_ms < self.now => {
                    return Err(self.hang_error());
                }
                Some(finished_at) if finished_at + AFTERMATH_MS < self.now => break,
                None | Some(_) => {}
            }
        }
        self.check_end()?;
        Ok(self.outcome(events))
    }

    /// Until when the receiver of this event is stalled; None: it can handle the event now.
    fn deferred_until(&self, event: &SimEvent) -> Option<u64> {
        let stalled = self.coordinator.stalled_until;
        if event.is_for_coordinator() && self.now < stalled {
            return Some(stalled);
        }
        if self.coordinator.is_saving && event.is_for_coordinator() {
            return Some(stalled.max(self.now));
        }
        self.paused_until(event.process()?)
    }

    fn outcome(&self, events: u64) -> Outcome {
        let mut outcome = Outcome {
            events,
            hash: self.trace.hash(),
            stable_hash: self.trace.stable_hash(),
            ..Outcome::default()
        };
        self.count_evaluations(&mut outcome);
        for record in self.durable.jobs.values() {
            outcome.restarts += record.restarts;
            for (bucket, ms) in &record.account.spent {
                *outcome.spent.entry(*bucket).or_insert(0) += ms;
            }
            match &record.phase {
                JobPhase::Done { .. } => outcome.done += 1,
                JobPhase::Failed { .. } => outcome.failed += 1,
                JobPhase::Cancelled { .. } => outcome.cancelled += 1,
                JobPhase::Queued { .. } | JobPhase::Running { .. } => {}
            }
        }
        outcome
    }

    /// True until the faults end.
    fn has_faults(&self) -> bool {
        self.now < self.plan.heal_at
    }

    fn is_finished(&self) -> bool {
        // A job has ended for the coordinator only once its save has been confirmed.
        let is_over = |job: &JobRecord| job.phase.is_over() || self.is_abandoned(job);
        let evaluated = self.durable.jobs.values().all(|job| {
            let evaluations = job.evaluations.as_ref();
            !evaluations.is_some_and(evaluations::is_open)
        });
        let over =
            self.durable.jobs.values().all(is_over) && evaluated && !self.coordinator.is_saving;
        over && self
            .client_requests
            .iter()
            .all(|client_request| client_request.granted)
    }

    fn hang_error(&self) -> String {
        let jobs = self
            .durable
            .jobs
            .values()
            .filter(|job| !job.phase.is_over());
        let jobs: Vec<String> = jobs.map(describe::phase).collect();
        let client_requests = self
            .client_requests
            .iter()
            .filter(|client_request| !client_request.granted)
            .count();
        format!(
            "hangs: {}; {client_requests} requests without an answer",
            jobs.join("; ")
        )
    }

    /// Checks the final state.
    fn check_end(&self) -> Result<(), String> {
        if !self.is_finished() {
            return Err(self.hang_error());
        }
        if let Some(process) = self.processes.values().next() {
            return Err(format!(
                "{} still runs after the last job has ended",
                describe::key(&process.key)
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
        self.check_evaluations_end(record)?;
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
            (JobPhase::Failed { cause, .. }, _)
                if record.restarts_without_progress < RESTARTS_WITHOUT_PROGRESS_MAX
                    && !record.permanent_failure =>
            {
                Err(format!(
                    "{id} failed after {} restarts without progress: {cause}",
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

    fn handle_event(&mut self, event: SimEvent) {
        match event {
            SimEvent::ClientSends { client_request } => self.ask(client_request),
            SimEvent::Fault { number } => self.fault(self.plan.faults[number].1),
            SimEvent::CoordinatorStart => self.start_coordinator(),
            SimEvent::FormerDies { boot } => self.former_dies(boot),
            SimEvent::CoordinatorWake { boot } => {
                self.as_coordinator(boot, |world| world.coordinator_wakes(boot))
            }
            SimEvent::CoordinatorSaved { boot, effects } => {
                self.as_coordinator(boot, |world| {
                    world.coordinator.is_saving = false;
                    world.perform_all(effects);
                });
            }
            SimEvent::CoordinatorSaveTimeout { boot } => {
                self.as_coordinator(boot, |world| {
                    world.coordinator.is_saving = false;
                    world.crash_acting_coordinator();
                });
            }
            SimEvent::CoordinatorReceives { boot, report } => {
                self.coordinator_receives(boot, report)
            }
            SimEvent::CoordinatorDisconnected { boot, worker } => {
                self.as_coordinator(boot, |world| {
                    world.coordinator_handles(Input::Disconnected { worker })
                });
            }
            SimEvent::ManifestWritten { boot, manifest } => self.manifest_written(boot, &manifest),
            SimEvent::ManifestReply {
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
            SimEvent::ScoresRead { boot, evaluation } => self.scores_read(boot, evaluation),
            SimEvent::NodeStart { node, clock_back } => self.start_node(node, clock_back),
            SimEvent::NodeWake { node, boot } => self.node_wakes(node, boot),
            SimEvent::NodeReceives { node, boot, state } => {
                self.node_handles(node, boot, worker_core::event::Input::Desired(state));
            }
            SimEvent::LinkOpen { node, boot } => self.open_link(node, boot),
            SimEvent::NodePings { node, boot } => self.ping_peers(node, boot),
            SimEvent::RankReported {
                node,
                boot,
                process,
                report,
            } => self.rank_reported(node, boot, process, *report),
            SimEvent::RankExited {
                node,
                boot,
                key,
                success,
                outcome,
            } => self.rank_exited(node, boot, key, success, outcome),
            rank_event => self.handle_rank_event(rank_event),
        }
    }

    fn handle_rank_event(&mut self, event: SimEvent) {
        match event {
            SimEvent::RankReceives {
                pid,
                rank,
                assignment,
            } => {
                let order = ReceivedOrder(rank, &assignment);
                self.trace.record(self.now, Actor::Process(pid), &order);
                self.rank_receives(pid, rank, *assignment);
            }
            SimEvent::RankLoaded { pid } => self.rank_loaded(pid),
            SimEvent::RankHeartbeat { pid } => self.rank_heartbeat(pid),
            SimEvent::RankJoins { pid } => self.try_join(pid),
            SimEvent::CheckpointDeleted {
                boot,
                job,
                checkpoint,
            } => self.checkpoint_deleted(boot, &job, checkpoint),
            SimEvent::WriteShard(shard_write) => self.write_shard(shard_write),
            SimEvent::ReportShard(shard_write) => self.report_shard(shard_write),
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
            other => unreachable!("{other:?} is not an event of a rank"),
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
                self.nodes[node].link_blocked_until(self.now + away_ms);
                let delay = self.rng.between(1, 2 * DETECT_WITHIN_MS);
                self.break_link(node, delay);
            }
            Fault::CoordinatorStall { for_ms } => {
                self.trace.line(self.now, || {
                    format!("the coordinator is stalled for {for_ms} ms")
                });
                let until = self.now + for_ms;
                self.coordinator.stalled_until = self.coordinator.stalled_until.max(until);
            }
            Fault::RankPause { node, for_ms } => self.pause_rank(node, for_ms),
            Fault::RanksCut { node, for_ms } => self.cut_ranks(node, for_ms),
            Fault::PairCut { nodes, for_ms } => self.cut_pair(nodes, for_ms),
            Fault::LinkStall { node, for_ms } => self.stall_link(node, for_ms),
            Fault::TakeOver { for_ms } => self.take_over(for_ms),
            Fault::OneWay { node, up, for_ms } => self.cut_one_way(node, up, for_ms),
            Fault::ClockJump { by_ms } => self.jump_clock(by_ms),
        }
    }
}
