//! The coordinator's loop. One task owns the state machine: it waits for an input, handles it and
//! performs the effects in order. Other tasks hold a [`Handle`]. The loop never waits for a worker,
//! a client or a slow log. It waits only for a save to be durable, because nothing may become
//! visible before (law 7). Inputs that wait meanwhile are handled together, with one save.

use crate::budget::{Payer, paid, paid_together};
use crate::checkpoint::commit::CheckpointStore;
use crate::event_log::EventLog;
use crate::events;
use crate::journal::Journal;
use crate::measures;
use crate::notify::Notifier;
use crate::status::{self, Detail};
use crate::store::{StateError, StateStore};
use crate::text::now_ms;
use crate::web::board::{Board, incidents_on};
use coordinator_core::event::{Effect, Event, Input, JobPhase, Record, Reply, RequestId};
use coordinator_core::{Coordinator, QueuePlace, Why, WorkerView};
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, WorkerId};
use proto::limits::{TEXT_BYTES, cut};
use proto::message::{DesiredState, LossTerm, PhaseSeconds, StepTotals, WorkerReport};
use proto::pb;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

const COMMANDS_MAX: usize = 256;
/// Inputs that are handled together at most.
const TOGETHER_MAX: usize = COMMANDS_MAX;
/// Longest sleep. The wall clock may jump, so it is read again at least this often.
const SLEEP_MAX_MS: u64 = 1000;
/// Shortest sleep, so that an expired deadline cannot make the loop spin.
const SLEEP_MIN_MS: u64 = 5;

/// Workers that are drained because they say that they are sick, since this process began. Drained
/// names are durable, and anybody can invent workers.
const SICK_DRAINS_MAX: u32 = 1024;

/// Sends commands to the loop. Cheap to clone; the loop ends when all handles are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Call>,
    changes: watch::Receiver<u64>,
    event_log: EventLog,
}

/// The loop has ended, and the process is about to exit.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the coordinator is stopping")]
pub(crate) struct Stopping;

/// Why a worker cannot attach.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum AttachError {
    #[error(transparent)]
    Stopping(#[from] Stopping),
    #[error(
        "{attached} workers are attached, and `max_workers` is {max}; raise it in the \
        coordinator's settings, or stop a worker"
    )]
    Full { attached: usize, max: u32 },
}

/// One stream of one worker. A new stream of the same worker replaces the old one.
#[derive(Debug)]
pub(crate) struct Session {
    worker: WorkerId,
    number: u64,
    /// The newest desired state; None until there is one. Closed when the stream is replaced.
    pub(crate) desired: watch::Receiver<Option<DesiredState>>,
}

/// Sums over a job's steps since this process started, and its newest validation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub(crate) samples: u64,
    pub(crate) seconds: PhaseSeconds,
    /// The terms of the newest validation; empty before the first.
    pub(crate) validation: Vec<LossTerm>,
    /// The size of the shards of the newest checkpoint; None before the first.
    pub(crate) checkpoint_bytes: Option<u64>,
    /// When a generation ended early, until the next step.
    pub(crate) broken_at: Option<Instant>,
}

/// Everything that `/metrics` and the list commands show.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) jobs: Vec<pb::JobView>,
    pub(crate) workers: Vec<pb::WorkerView>,
    pub(crate) totals: BTreeMap<String, Totals>,
    /// Queued jobs by why they wait, in a word.
    pub(crate) waiting: BTreeMap<&'static str, u64>,
    /// Of each job, the own work per step of the slowest rank by that of the median one.
    pub(crate) stragglers: BTreeMap<String, f64>,
}

impl Command {
    /// Whether its answer shows the machine's state to people or workers. What the others read
    /// decides nothing that must be durable.
    fn shows_state(&self) -> bool {
        match self {
            Self::Job { .. }
            | Self::Why { .. }
            | Self::Queue { .. }
            | Self::Snapshot { .. }
            | Self::Workers { .. }
            | Self::Board { .. }
            | Self::Incidents { .. }
            | Self::Sick { .. } => true,
            Self::Request { .. }
            | Self::Report { .. }
            | Self::Detach { .. }
            | Self::HasHeld { .. }
            | Self::Attach { .. }
            | Self::Ended { .. }
            | Self::Alive { .. } => false,
        }
    }
}

type MakeInput = Box<dyn FnOnce(RequestId) -> Input + Send>;

/// A command, and who pays for it.
struct Call {
    command: Command,
    payer: Option<Payer>,
    sent: Instant,
}

enum Command {
    Request {
        input: MakeInput,
        reply: oneshot::Sender<Reply>,
    },
    HasHeld {
        worker: String,
        reply: oneshot::Sender<bool>,
    },
    Attach {
        worker: WorkerId,
        reply: oneshot::Sender<Result<Session, AttachError>>,
    },
    Report {
        report: WorkerReport,
        logs: Vec<(JobId, pb::LogLine)>,
    },
    /// The worker says why it should not be used; None: it can be.
    Sick {
        worker: WorkerId,
        sick: Option<String>,
    },
    Detach {
        worker: WorkerId,
        number: u64,
    },
    Job {
        job: JobId,
        reply: oneshot::Sender<Option<pb::JobView>>,
    },
    Why {
        job: JobId,
        reply: oneshot::Sender<Option<Why>>,
    },
    Queue {
        job: JobId,
        reply: oneshot::Sender<Option<QueuePlace>>,
    },
    Ended {
        team: String,
        reply: oneshot::Sender<(u64, u64)>,
    },
    Snapshot {
        reply: oneshot::Sender<Snapshot>,
    },
    Workers {
        reply: oneshot::Sender<Vec<pb::WorkerView>>,
    },
    Board {
        reply: oneshot::Sender<Board>,
    },
    Alive {
        reply: oneshot::Sender<()>,
    },
    Incidents {
        worker: String,
        limit: usize,
        reply: oneshot::Sender<Vec<(JobId, pb::Incident)>>,
    },
}

impl Handle {
    /// Passes a request to the state machine and waits for its reply.
    pub(crate) async fn request(
        &self,
        input: impl FnOnce(RequestId) -> Input + Send + 'static,
    ) -> Result<Reply, Stopping> {
        self.send(|reply| Command::Request {
            input: Box::new(input),
            reply,
        })
        .await
    }

    /// Whether a worker of this name has had an assignment.
    pub(crate) async fn has_held(&self, worker: String) -> Result<bool, Stopping> {
        self.send(|reply| Command::HasHeld { worker, reply }).await
    }

    pub(crate) async fn attach(&self, worker: WorkerId) -> Result<Session, AttachError> {
        self.send(|reply| Command::Attach { worker, reply }).await?
    }

    pub(crate) async fn report(
        &self,
        report: WorkerReport,
        logs: Vec<(JobId, pb::LogLine)>,
    ) -> Result<(), Stopping> {
        self.call(Command::Report { report, logs }).await
    }

    /// What the worker says of its own health; None: nothing is wrong.
    pub(crate) async fn sick(
        &self,
        worker: WorkerId,
        sick: Option<String>,
    ) -> Result<(), Stopping> {
        self.call(Command::Sick { worker, sick }).await
    }

    pub(crate) async fn detach(&self, session: Session) {
        let Session { worker, number, .. } = session;
        // Fails only if the loop has ended; then there is nothing to detach from.
        self.call(Command::Detach { worker, number }).await.ok();
    }

    pub(crate) async fn job(&self, job: JobId) -> Result<Option<pb::JobView>, Stopping> {
        self.send(|reply| Command::Job { job, reply }).await
    }

    pub(crate) async fn why(&self, job: JobId) -> Result<Option<Why>, Stopping> {
        self.send(|reply| Command::Why { job, reply }).await
    }

    /// None if the job does not wait for workers.
    pub(crate) async fn queue_place(&self, job: JobId) -> Result<Option<QueuePlace>, Stopping> {
        self.send(|reply| Command::Queue { job, reply }).await
    }

    /// The ended jobs in memory that are not archived: of this team, and of all.
    pub(crate) async fn ended(&self, team: String) -> Result<(u64, u64), Stopping> {
        self.send(|reply| Command::Ended { team, reply }).await
    }

    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Stopping> {
        self.send(|reply| Command::Snapshot { reply }).await
    }

    pub(crate) async fn workers(&self) -> Result<Vec<pb::WorkerView>, Stopping> {
        self.send(|reply| Command::Workers { reply }).await
    }

    /// What the pages show. Asked through [`crate::web::look`], which bounds how often.
    pub(crate) async fn board(&self) -> Result<Board, Stopping> {
        self.send(|reply| Command::Board { reply }).await
    }

    /// Returns when the loop answers.
    pub(crate) async fn alive(&self) -> Result<(), Stopping> {
        self.send(|reply| Command::Alive { reply }).await
    }

    /// The newest incidents on a worker.
    pub(crate) async fn incidents(
        &self,
        worker: String,
        limit: usize,
    ) -> Result<Vec<(JobId, pb::Incident)>, Stopping> {
        self.send(|reply| Command::Incidents {
            worker,
            limit,
            reply,
        })
        .await
    }

    /// Changes whenever a view may have changed. Closed when the loop has ended.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The newest events.
    pub(crate) fn event_log(&self) -> &EventLog {
        &self.event_log
    }

    async fn send<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopping> {
        let (reply, wait) = oneshot::channel();
        self.call(command(reply)).await?;
        wait.await.map_err(|_| Stopping)
    }

    /// Whoever pays for the current task also pays for what the loop does for it.
    async fn call(&self, command: Command) -> Result<(), Stopping> {
        let payer = Payer::current();
        let call = Call {
            command,
            payer,
            sent: Instant::now(),
        };
        let sent = self.commands.send(call);
        sent.await.map_err(|_| Stopping)
    }
}

/// The loop's state; see [`Daemon::run`].
pub(crate) struct Daemon {
    machine: Coordinator,
    store: StateStore,
    store_url: String,
    journal: Journal,
    event_log: EventLog,
    /// None: nobody is told of events.
    notifier: Option<Notifier>,
    archive: CheckpointStore,
    commands: mpsc::Receiver<Call>,
    changes: watch::Sender<u64>,
    sessions: BTreeMap<WorkerId, (u64, watch::Sender<Option<DesiredState>>)>,
    pending: BTreeMap<RequestId, oneshot::Sender<Reply>>,
    /// Requests and sessions are numbered by one counter.
    next_number: u64,
    /// Tasks on the object store. Written manifests and scores come back as inputs.
    tasks: JoinSet<Option<Input>>,
    last_steps: BTreeMap<JobId, pb::StepReport>,
    totals: BTreeMap<JobId, Totals>,
    /// Workers that may be attached at a time.
    max_workers: u32,
    /// Attached workers that say why they should not be used.
    sick: BTreeMap<WorkerId, String>,
    /// How many more of them are drained.
    sick_drains: u32,
}

impl Daemon {
    /// `last_steps` holds the stored newest step of each job, for jobs that no rank reports on.
    pub(crate) fn new(
        machine: Coordinator,
        store: StateStore,
        store_url: String,
        journal: Journal,
        archive: CheckpointStore,
        last_steps: BTreeMap<JobId, pb::StepReport>,
        max_workers: u32,
    ) -> (Self, Handle) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (changes, receiver) = watch::channel(0);
        let event_log = EventLog::new();
        let daemon = Self {
            machine,
            store,
            store_url,
            journal,
            event_log: event_log.clone(),
            notifier: None,
            archive,
            commands,
            changes,
            sessions: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_number: 1,
            tasks: JoinSet::new(),
            last_steps,
            totals: BTreeMap::new(),
            max_workers,
            sick: BTreeMap::new(),
            sick_drains: 0,
        };
        (
            daemon,
            Handle {
                commands: sender,
                changes: receiver,
                event_log,
            },
        )
    }

    /// Before it runs: deletes what is left of these jobs, and says whether workers that say that
    /// they are sick are drained.
    pub(crate) fn prepare(&mut self, half_deleted: Vec<JobId>, drain_sick: bool) {
        for job in half_deleted {
            self.purge(job);
        }
        if drain_sick {
            self.sick_drains = SICK_DRAINS_MAX;
        }
    }

    /// Whoever undrains a worker that stays sick is right: it is drained once.
    async fn set_sick(&mut self, worker: WorkerId, sick: Option<String>) -> Result<(), StateError> {
        let Some(reason) = sick else {
            if self.sick.remove(&worker).is_some() {
                tracing::info!(%worker, "worker is not sick any more; undrain it to use it");
            }
            return Ok(());
        };
        let line = pb::EventLine {
            kind: "worker-sick".to_owned(),
            worker: worker.name.clone(),
            text: cut(&format!("worker is sick: {reason}"), TEXT_BYTES),
            ..Default::default()
        };
        self.event_log.add_line(line, now_ms());
        let name = worker.name.clone();
        let drained = !self.sick.contains_key(&worker) && 0 < self.sick_drains;
        tracing::error!(%worker, reason, drained, "worker is sick");
        self.sick.insert(worker, reason);
        if !drained {
            return Ok(());
        }
        self.sick_drains -= 1;
        let request = RequestId(self.allocate_number());
        self.handle(Input::Drain {
            request,
            worker: name,
            drained: true,
        })
        .await
    }

    fn workers(&self) -> Vec<pb::WorkerView> {
        let now = now_ms();
        let view = |it: &WorkerView<'_>| pb::WorkerView {
            sick: self.sick.get(it.id).cloned(),
            ..status::worker_view(it, now)
        };
        self.machine.workers().iter().map(view).collect()
    }

    /// Tells it of every event.
    pub(crate) fn tell(&mut self, notifier: Notifier) {
        self.notifier = Some(notifier);
    }

    /// Runs until `stop` is set or the state cannot be saved any more.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), StateError> {
        let store = self.store.clone();
        let mut lost = std::pin::pin!(store.lost());
        loop {
            let sleep = sleep_ms(self.machine.next_deadline(), now_ms());
            tokio::select! {
                () = stop_requested(&mut stop) => return Ok(()),
                error = &mut lost => return Err(error),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(Some(input)) => self.handle(input).await?,
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a task on the object store panicked"),
                },
                call = self.commands.recv() => match call {
                    Some(call) => {
                        let begun = Instant::now();
                        self.take(call).await?;
                        measures::LOOP_INPUT.observe(begun.elapsed());
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep(Duration::from_millis(sleep)) => {
                    self.handle(Input::Deadline).await?;
                }
            }
        }
    }

    /// Executes a command, and those that wait behind it, up to one that needs to see what is
    /// durable.
    async fn take(&mut self, first: Call) -> Result<(), StateError> {
        let (mut inputs, mut payers) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(Call {
            command,
            payer,
            sent,
        }) = next
        {
            measures::LOOP_LAG.observe(sent.elapsed());
            match self.input(command) {
                Ok(input) => {
                    inputs.push(input);
                    payers.push(payer);
                }
                Err(command) => {
                    if command.shows_state() {
                        // Nothing is visible before it is durable (law 7).
                        self.handle_paid(&mut inputs, &mut payers).await?;
                        return paid(payer, self.execute(command)).await;
                    }
                    paid(payer, self.execute(command)).await?;
                }
            }
            next = (inputs.len() < TOGETHER_MAX)
                .then(|| self.commands.try_recv().ok())
                .flatten();
        }
        self.handle_paid(&mut inputs, &mut payers).await
    }

    async fn handle_paid(
        &mut self,
        inputs: &mut Vec<Input>,
        payers: &mut Vec<Option<Payer>>,
    ) -> Result<(), StateError> {
        if inputs.is_empty() {
            return Ok(());
        }
        let (inputs, payers) = (std::mem::take(inputs), std::mem::take(payers));
        paid_together(&payers, self.handle_all(inputs)).await
    }

    /// What the command asks of the machine; the command itself if it asks something else.
    // What it gives back is as large as what it is given.
    #[allow(clippy::result_large_err)]
    fn input(&mut self, command: Command) -> Result<Input, Command> {
        match command {
            Command::Request { input, reply } => {
                let request = RequestId(self.allocate_number());
                self.pending.insert(request, reply);
                Ok(input(request))
            }
            Command::Report { report, logs } => {
                self.store_logs(logs);
                Ok(Input::Received { report })
            }
            Command::Detach { worker, number } => {
                let current = self.sessions.get(&worker).map(|(current, _)| *current);
                if current != Some(number) {
                    return Err(Command::Detach { worker, number });
                }
                self.sessions.remove(&worker);
                self.sick.remove(&worker);
                Ok(Input::Disconnected { worker })
            }
            other => Err(other),
        }
    }

    /// Executes a command that is no input of the machine; see [`Self::input`].
    async fn execute(&mut self, command: Command) -> Result<(), StateError> {
        match command {
            // Inputs, and the end of a stream that was replaced.
            Command::Request { .. } | Command::Report { .. } | Command::Detach { .. } => {}
            Command::HasHeld { worker, reply } => drop(reply.send(self.machine.has_held(&worker))),
            Command::Attach { worker, reply } => {
                if let Err(full) = self.check_room(&worker) {
                    drop(reply.send(Err(full)));
                    return Ok(());
                }
                let number = self.allocate_number();
                let (sender, desired) = watch::channel(None);
                let session = Session {
                    worker: worker.clone(),
                    number,
                    desired,
                };
                if reply.send(Ok(session)).is_ok() {
                    self.sessions.insert(worker, (number, sender));
                }
            }
            Command::Sick { worker, sick } => self.set_sick(worker, sick).await?,
            // `send` fails if the caller no longer waits.
            Command::Job { job, reply } => drop(reply.send(self.job(&job))),
            Command::Why { job, reply } => drop(reply.send(self.machine.why(now_ms(), &job))),
            Command::Queue { job, reply } => drop(reply.send(self.machine.queue_place(&job))),
            Command::Ended { team, reply } => drop(reply.send(self.machine.ended_jobs(&team))),
            Command::Snapshot { reply } => drop(reply.send(self.snapshot())),
            Command::Workers { reply } => drop(reply.send(self.workers())),
            Command::Alive { reply } => drop(reply.send(())),
            Command::Board { reply } => {
                let board = Board::of(
                    &self.machine,
                    &self.last_steps,
                    &self.sick,
                    &self.store_url,
                    now_ms(),
                );
                drop(reply.send(board));
            }
            Command::Incidents {
                worker,
                limit,
                reply,
            } => drop(reply.send(incidents_on(&self.machine, &worker, limit))),
        }
        Ok(())
    }

    async fn handle(&mut self, input: Input) -> Result<(), StateError> {
        self.handle_all(vec![input]).await
    }

    async fn handle_all(&mut self, inputs: Vec<Input>) -> Result<(), StateError> {
        let is_deadline = matches!(inputs[..], [Input::Deadline]);
        let effects = self.machine.handle_all(now_ms(), inputs);
        let changed = !is_deadline || !effects.is_empty();
        for effect in effects {
            self.perform(effect).await?;
        }
        if changed {
            self.changes.send_modify(|it| *it += 1);
        }
        Ok(())
    }

    async fn perform(&mut self, effect: Effect) -> Result<(), StateError> {
        match effect {
            Effect::Save(records) => {
                self.store.save(&records).await?;
                for record in records {
                    match record {
                        Record::Archived(job) => self.forget(&job.id),
                        Record::Deleted(job) => {
                            self.forget(&job);
                            self.purge(job);
                        }
                        Record::Counters(_)
                        | Record::Drained(_)
                        | Record::Job(_)
                        | Record::Ledger { .. } => {}
                    }
                }
            }
            Effect::Send { worker, state } => {
                if let Some((_, desired)) = self.sessions.get(&worker) {
                    desired.send_replace(Some(state));
                }
            }
            Effect::Reply { request, reply } => {
                if let Some(waiting) = self.pending.remove(&request) {
                    // Fails if the caller no longer waits. The request has been executed anyway.
                    waiting.send(reply).ok();
                }
            }
            Effect::WriteManifest { manifest } => {
                let (archive, store) = (self.archive.clone(), self.store.clone());
                let bytes = manifest.shards.iter().map(|shard| shard.size_bytes).sum();
                let totals = self.totals.entry(manifest.job.clone()).or_default();
                totals.checkpoint_bytes = Some(bytes);
                self.tasks.spawn(async move {
                    let begun = Instant::now();
                    let result = match store.claim().await {
                        Ok(()) => archive
                            .write_manifest(&manifest)
                            .await
                            .map_err(|it| it.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    if let Err(error) = &result {
                        let (job, step) = (&manifest.job, manifest.step);
                        tracing::warn!(%job, %step, %error, "manifest not written");
                        measures::COMMIT_FAILURES.fetch_add(1, Ordering::Relaxed);
                    } else {
                        measures::COMMIT.observe(begun.elapsed());
                    }
                    let checkpoint = CheckpointRef {
                        step: manifest.step,
                        generation: manifest.generation,
                    };
                    Some(Input::ManifestWritten {
                        job: manifest.job,
                        checkpoint,
                        result,
                    })
                });
            }
            Effect::DeleteCheckpoint { job, checkpoint } => {
                let (archive, store) = (self.archive.clone(), self.store.clone());
                self.tasks.spawn(async move {
                    let step = checkpoint.step;
                    if let Err(error) = store.claim().await {
                        tracing::warn!(%job, %step, %error, "old checkpoint not deleted");
                    } else if let Err(error) = archive.delete(&job, checkpoint).await {
                        tracing::warn!(%job, %step, %error, "old checkpoint not deleted");
                    }
                    None
                });
            }
            Effect::ReadScores { evaluation } => {
                let archive = self.archive.clone();
                self.tasks.spawn(async move {
                    let result = archive.scores(&evaluation).await;
                    if let Err(error) = &result {
                        tracing::warn!(job = %evaluation, %error, "scores not read");
                    }
                    Some(Input::ScoresRead { evaluation, result })
                });
            }
            Effect::Emit(event) => self.record_event(&event),
        }
        Ok(())
    }

    /// A job left the machine's memory.
    fn forget(&mut self, job: &JobId) {
        self.last_steps.remove(job);
        self.totals.remove(job);
    }

    /// Deletes what the state still has of a deleted job. If that fails, the next start repeats it.
    fn purge(&mut self, job: JobId) {
        let (store, journal) = (self.store.clone(), self.journal.clone());
        self.tasks.spawn(async move {
            journal.forget(&job).await;
            if let Err(error) = store.purge(&job).await {
                tracing::warn!(%job, %error, "the logs of a deleted job are not deleted yet");
            }
            None
        });
    }

    fn record_event(&mut self, event: &Event) {
        events::log(event);
        measures::happened(event);
        self.event_log.add(event, now_ms());
        if let Some(notifier) = &self.notifier {
            notifier.hear(event, now_ms());
        }
        if let Event::GenerationEnded { job, .. } = event {
            let totals = self.totals.entry(job.clone()).or_default();
            totals.broken_at.get_or_insert_with(Instant::now);
        }
        if let Event::Stepped { job, report, .. } = event {
            let step: pb::StepReport = report.into();
            self.journal.step(job, step.clone());
            self.last_steps.insert(job.clone(), step);
            let totals = self.totals.entry(job.clone()).or_default();
            totals.samples += u64::from(report.samples);
            totals.seconds = totals.seconds.plus(&report.seconds);
            if let Some(broken) = totals.broken_at.take() {
                let took = broken.elapsed();
                measures::RECOVERY.observe(took);
                let line = events::recovered(job, report.step, took);
                self.event_log.add_line(line, now_ms());
            }
            let validation = report.terms.iter().filter(|term| term.is_validation());
            let validation: Vec<LossTerm> = validation.cloned().collect();
            if !validation.is_empty() {
                totals.validation = validation;
            }
        }
    }

    /// A restarted worker may come while its earlier stream has not ended.
    fn check_room(&self, worker: &WorkerId) -> Result<(), AttachError> {
        let attached = self.sessions.len();
        let first_boot = WorkerId {
            boot: 0,
            ..worker.clone()
        };
        let again = self.sessions.range(first_boot..).next();
        let again = again.is_some_and(|(it, _)| it.name == worker.name);
        if attached.saturating_sub(usize::from(again)) < self.max_workers as usize {
            return Ok(());
        }
        let max = self.max_workers;
        Err(AttachError::Full { attached, max })
    }

    /// Stores only lines of existing jobs, so that a faulty worker cannot fill the store.
    fn store_logs(&self, logs: Vec<(JobId, pb::LogLine)>) {
        for (job, line) in logs {
            if self.machine.has_job(&job) {
                self.journal.log(&job, line);
            }
        }
    }

    fn job(&self, job: &JobId) -> Option<pb::JobView> {
        let job = self.machine.job_view(job)?;
        Some(status::job_view(
            &job,
            self.last_steps.get(&job.record.id),
            &self.store_url,
            Detail::Full,
        ))
    }

    fn snapshot(&self) -> Snapshot {
        let view = self.machine.view();
        let job = |job| {
            let job: &coordinator_core::JobView<'_> = job;
            status::job_view(
                job,
                self.last_steps.get(&job.record.id),
                &self.store_url,
                Detail::Brief,
            )
        };
        let mut waiting = BTreeMap::new();
        for job in &view.jobs {
            if let JobPhase::Queued { reason } = &job.record.phase {
                *waiting.entry(reason.word()).or_insert(0) += 1;
            }
        }
        let stragglers = view.jobs.iter().filter_map(|job| {
            let totals: Vec<StepTotals> = job.ranks.iter().filter_map(|it| it.totals).collect();
            Some((job.record.id.0.clone(), straggler(&totals)?))
        });
        Snapshot {
            waiting,
            stragglers: stragglers.collect(),
            jobs: view.jobs.iter().map(job).collect(),
            workers: self.workers(),
            totals: self
                .totals
                .iter()
                .map(|(job, totals)| (job.0.clone(), totals.clone()))
                .collect(),
        }
    }

    fn allocate_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

/// Returns when `stop` is set or its sender is dropped.
async fn stop_requested(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|it| *it).await.ok();
}

fn sleep_ms(deadline: Option<u64>, now: u64) -> u64 {
    deadline.map_or(SLEEP_MAX_MS, |it| {
        it.saturating_sub(now).clamp(SLEEP_MIN_MS, SLEEP_MAX_MS)
    })
}

/// None: fewer than two ranks have finished a step.
#[allow(clippy::cast_precision_loss)] // Steps of a process.
fn straggler(totals: &[StepTotals]) -> Option<f64> {
    let own_work = |it: &StepTotals| {
        let PhaseSeconds {
            data,
            forward,
            backward,
            optimizer,
            ..
        } = it.seconds;
        (data + forward + backward + optimizer) / it.steps.max(1) as f64
    };
    let mut work: Vec<f64> = totals.iter().map(own_work).collect();
    work.sort_by(f64::total_cmp);
    let median = *work.get(work.len().checked_sub(1)? / 2)?;
    (2 <= work.len()).then(|| {
        if 0.0 < median {
            work[work.len() - 1] / median
        } else {
            1.0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::Step;

    fn totals(step: u64, steps: u64, backward: f64) -> StepTotals {
        StepTotals {
            step: Step(step),
            steps,
            seconds: PhaseSeconds {
                backward,
                communication: 1e6,
                ..PhaseSeconds::default()
            },
        }
    }

    #[test]
    fn the_slowest_rank_is_held_against_the_median() {
        assert_eq!(straggler(&[]), None);
        assert_eq!(straggler(&[totals(3, 3, 3.0)]), None);
        let found = straggler(&[totals(10, 10, 10.0), totals(9, 4, 4.0), totals(9, 9, 27.0)]);
        assert_eq!(found, Some(3.0));
    }
}
