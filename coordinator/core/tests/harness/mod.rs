//! A test harness for the coordinator's machine: inputs in, effects out. It applies saves to a
//! durable state like a state store. Time passes only if a test advances it.

use coordinator_core::event::{
    About, DatasetPin, Durable, Effect, Event, Input, JobPhase, JobRecord, Reply, RequestId,
};
use coordinator_core::{Config, Coordinator, WaitingQuotas};
use proto::architecture::{Diffusion, Latents, Noise, Objective, Retrinet};
use proto::checkpoint::{CheckpointManifest, CheckpointRef, ShardEntry};
use proto::environment::RankEnvironment;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{
    Assignment, DesiredState, PhaseSeconds, RankPhase, RankReport, ShardReport, StepReport,
    UnitReport, Unreached, WorkerReport,
};
use proto::reason::{
    Blocked, Cause, Consequence, Constraint, Ending, Fault, RankFailure, RankOn, Shortage,
    UnreachablePair, Violation, Waiting,
};
use proto::sample::SampleWork;
use proto::spec::{
    ArchitectureSpec, CheckpointPolicy, Clothes, Component, Data, Decay, DeviceKind, JobSpec,
    LossWeighting, Model, OnNonfinite, Optimizer, Pairing, Precision, PromptOrder, Reduction,
    References, Resources, Retrieval, Task, Train, TrainWork, Transform, Work,
};
use std::collections::BTreeMap;

pub(crate) const DETECT_WITHIN_MS: u64 = 1_000;

pub(crate) struct Harness {
    pub(crate) machine: Coordinator,
    pub(crate) durable: Durable,
    pub(crate) now: u64,
    requests: u64,
}

impl Harness {
    pub(crate) fn new() -> Self {
        let durable = Durable::default();
        Self {
            machine: machine(&durable, 100_000),
            durable,
            now: 100_000,
            requests: 0,
        }
    }

    /// Handles an input. Saves are applied, and must be the first effect.
    pub(crate) fn handle(&mut self, event: Input) -> Vec<Effect> {
        self.handle_all(vec![event])
    }

    /// The same for inputs that arrive together.
    pub(crate) fn handle_all(&mut self, inputs: Vec<Input>) -> Vec<Effect> {
        let effects = self.machine.handle_all(self.now, inputs);
        let late = effects
            .iter()
            .skip(1)
            .any(|effect| matches!(effect, Effect::Save(_)));
        assert!(!late, "a save after another effect: {effects:?}");
        if let Some(Effect::Save(records)) = effects.first() {
            records
                .iter()
                .cloned()
                .for_each(|record| self.durable.apply(record));
        }
        effects
    }

    pub(crate) fn wait(&mut self, ms: u64) -> Vec<Effect> {
        self.now += ms;
        self.handle(Input::Deadline)
    }

    /// Restarts the coordinator from the saved state.
    pub(crate) fn restart(&mut self) {
        for record in self.durable.jobs.values() {
            proto::job::parse_stored(&record.id, &record.job_toml)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        self.machine = machine(&self.durable, self.now);
    }

    pub(crate) fn ask(&mut self, event: impl FnOnce(RequestId) -> Input) -> Reply {
        self.requests += 1;
        let request = RequestId(self.requests);
        let effects = self.handle(event(request));
        let reply = effects.into_iter().find_map(|effect| match effect {
            Effect::Reply { request: to, reply } if to == request => Some(reply),
            _ => None,
        });
        reply.expect("every request is answered at once")
    }

    /// Records of those jobs that are archived, as the shell reads them.
    pub(crate) fn archived(&self, jobs: &[JobId]) -> Vec<JobRecord> {
        let archived = jobs.iter().filter(|id| self.durable.archived.contains(*id));
        archived.map(|id| self.durable.jobs[id].clone()).collect()
    }

    pub(crate) fn refused(&mut self, spec: JobSpec) -> String {
        let names = named(&spec);
        let archived = self.archived(&names);
        let reply = self.ask(|request| Input::Submit {
            request,
            job_toml: proto::job::to_toml(&spec),
            dataset: DatasetPin {
                version: "version".to_owned(),
                ..DatasetPin::default()
            },
            spec: Box::new(spec),
            about: About::default(),
            archived,
        });
        let Reply::Refused { reason } = reply else {
            panic!("{reply:?}")
        };
        reason
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> JobId {
        let names = named(&spec);
        let archived = self.archived(&names);
        let reply = self.ask(|request| Input::Submit {
            request,
            job_toml: proto::job::to_toml(&spec),
            dataset: DatasetPin {
                version: "version".to_owned(),
                ..DatasetPin::default()
            },
            spec: Box::new(spec),
            about: About::default(),
            archived,
        });
        let Reply::Accepted { job } = reply else {
            panic!("{reply:?}")
        };
        job
    }

    /// `worker`, as `name` or `name#boot`, reports these ranks.
    pub(crate) fn receive(&mut self, worker: &str, ranks: Vec<RankReport>) -> Vec<Effect> {
        self.receive_unreachable(worker, &[], ranks)
    }

    /// The same for a worker that cannot reach these others.
    pub(crate) fn receive_unreachable(
        &mut self,
        worker: &str,
        unreached: &[&str],
        ranks: Vec<RankReport>,
    ) -> Vec<Effect> {
        self.handle(received(worker, unreached, ranks))
    }

    pub(crate) fn job(&self, id: &JobId) -> &JobRecord {
        &self.durable.jobs[id]
    }

    pub(crate) fn generation(&self, id: &JobId) -> u64 {
        self.job(id).generation.0
    }

    /// Why the job is queued.
    pub(crate) fn waiting(&self, id: &JobId) -> &Waiting {
        match &self.job(id).phase {
            JobPhase::Queued { reason } => reason,
            phase => panic!("{id} is {phase:?}"),
        }
    }

    /// Why the job failed.
    pub(crate) fn cause(&self, id: &JobId) -> &Cause {
        match &self.job(id).phase {
            JobPhase::Failed { cause, .. } => cause,
            phase => panic!("{id} is {phase:?}"),
        }
    }

    /// What its incidents say, oldest first.
    pub(crate) fn faults(&self, id: &JobId) -> Vec<&Fault> {
        self.job(id).incidents.iter().map(|it| &it.what).collect()
    }

    /// A job that trains on w1 and w2: steps 1 to 4, with a checkpoint every 2 steps.
    pub(crate) fn training() -> (Self, JobId) {
        let mut harness = Self::new();
        harness.receive("w1", vec![]);
        harness.receive("w2", vec![]);
        let job = harness.submit(spec(2, 2));
        harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
        harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
        (harness, job)
    }

    /// Both ranks report their shard of `step`. Returns the effects of the last report.
    pub(crate) fn shards(&mut self, job: &JobId, step: u64) -> Vec<Effect> {
        let generation = self.generation(job);
        self.receive(
            "w1",
            vec![with_shard(
                rank(job, generation, 0, RankPhase::Training),
                step,
            )],
        );
        self.receive(
            "w2",
            vec![with_shard(
                rank(job, generation, 1, RankPhase::Training),
                step,
            )],
        )
    }

    pub(crate) fn written(
        &mut self,
        job: &JobId,
        step: u64,
        result: Result<(), String>,
    ) -> Vec<Effect> {
        let checkpoint = CheckpointRef {
            step: Step(step),
            generation: self.job(job).generation,
        };
        self.handle(Input::ManifestWritten {
            job: job.clone(),
            checkpoint,
            result,
        })
    }

    /// Commits a checkpoint: reports all shards, then confirms the manifest.
    pub(crate) fn commit(&mut self, job: &JobId, step: u64) -> Vec<Effect> {
        assert_eq!(manifests(&self.shards(job, step)).len(), 1);
        self.written(job, step, Ok(()))
    }
}

/// A report of `worker`, which cannot reach these others.
pub(crate) fn received(worker: &str, unreached: &[&str], ranks: Vec<RankReport>) -> Input {
    let unreached = unreached.iter().map(|peer| Unreached {
        peer: id(peer),
        error: format!("{peer}:7073: no answer"),
    });
    let report = WorkerReport {
        worker: id(worker),
        device: DeviceKind::Cpu,
        devices: 1,
        ranks,
        peer_address: Some(format!("{worker}:7073")),
        unreached: unreached.collect(),
    };
    Input::Received { report }
}

pub(crate) fn machine(durable: &Durable, now: u64) -> Coordinator {
    machine_with(durable, now, 64)
}

/// A machine that keeps this many ended jobs in memory.
pub(crate) fn machine_with(durable: &Durable, now: u64, ended_jobs_max: usize) -> Coordinator {
    let config = Config {
        store_url: "file:///store".to_owned(),
        detect_within_ms: DETECT_WITHIN_MS,
        quotas: BTreeMap::new(),
        waiting: WaitingQuotas::default(),
        ended_jobs_max,
    };
    Coordinator::restore(config, durable.clone(), now)
}

/// A machine with quotas of waiting jobs.
pub(crate) fn machine_with_quotas(
    durable: &Durable,
    now: u64,
    waiting: WaitingQuotas,
) -> Coordinator {
    let config = Config {
        store_url: "file:///store".to_owned(),
        detect_within_ms: DETECT_WITHIN_MS,
        quotas: BTreeMap::new(),
        waiting,
        ended_jobs_max: 64,
    };
    Coordinator::restore(config, durable.clone(), now)
}

pub(crate) fn id(worker: &str) -> WorkerId {
    let (name, boot) = worker.split_once('#').unwrap_or((worker, "1"));
    WorkerId {
        name: name.to_owned(),
        boot: boot.parse().unwrap(),
    }
}

pub(crate) fn rank(job: &JobId, generation: u64, rank: u32, phase: RankPhase) -> RankReport {
    let (job, generation, rank) = (job.clone(), Generation(generation), Rank(rank));
    RankReport {
        job,
        generation,
        rank,
        phase,
        store_address: None,
        steps: vec![],
        shards: vec![],
        digests: vec![],
        units: UnitReport::default(),
        activity: None,
        totals: None,
    }
}

pub(crate) fn failed(error: &str) -> RankPhase {
    RankPhase::Failed {
        failure: RankFailure::error(error, false),
    }
}

/// A failure that another generation would repeat.
pub(crate) fn failed_for_good(error: &str) -> RankPhase {
    RankPhase::Failed {
        failure: RankFailure::error(error, true),
    }
}

pub(crate) fn with_shard(mut report: RankReport, step: u64) -> RankReport {
    let path = format!("rank-{}.safetensors", report.rank);
    let shard = ShardEntry {
        path,
        size_bytes: 1,
        sha256: "00".to_owned(),
    };
    let environment = "toy".to_owned();
    report.shards.push(ShardReport {
        step: Step(step),
        shard,
        init_digest: None,
        environment,
        rank_environment: RankEnvironment::default(),
    });
    report
}

pub(crate) fn with_step(mut report: RankReport, step: u64) -> RankReport {
    report.steps.push(StepReport {
        step: Step(step),
        loss: 1.0,
        terms: Vec::new(),
        gradient_norm: 1.0,
        learning_rate: 0.1,
        samples: 1,
        seconds: PhaseSeconds::default(),
        peak_memory_bytes: 0,
        peak_device_memory_bytes: 0,
        skipped_steps: 0,
        loss_scale: 1.0,
    });
    report
}

pub(crate) fn sends(effects: &[Effect]) -> BTreeMap<String, DesiredState> {
    let send = |effect: &Effect| match effect {
        Effect::Send { worker, state } => Some((worker.to_string(), state.clone())),
        _ => None,
    };
    effects.iter().filter_map(send).collect()
}

/// The worker's only assignment.
pub(crate) fn assigned(effects: &[Effect], worker: &str) -> Assignment {
    let state = sends(effects)
        .remove(&id(worker).to_string())
        .expect("the worker is sent its desired state");
    assert_eq!(state.assignments.len(), 1, "{state:?}");
    state.assignments[0].clone()
}

pub(crate) fn manifests(effects: &[Effect]) -> Vec<CheckpointManifest> {
    let manifest = |effect: &Effect| match effect {
        Effect::WriteManifest { manifest } => Some((**manifest).clone()),
        _ => None,
    };
    effects.iter().filter_map(manifest).collect()
}

pub(crate) fn deleted(effects: &[Effect]) -> Vec<u64> {
    let step = |effect: &Effect| match effect {
        Effect::DeleteCheckpoint { checkpoint, .. } => Some(checkpoint.step.0),
        _ => None,
    };
    effects.iter().filter_map(step).collect()
}

pub(crate) fn ignored(effects: &[Effect]) -> Vec<Violation> {
    let violation = |effect: &Effect| match effect {
        Effect::Emit(Event::Ignored { violation, .. }) => Some(violation.clone()),
        _ => None,
    };
    effects.iter().filter_map(violation).collect()
}

pub(crate) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The shortage of a job of [`spec`] that needs so many workers, when none is up.
pub(crate) fn shortage(workers_min: u32) -> Shortage {
    Shortage {
        constraint: Constraint::Workers,
        workers_min,
        devices_per_worker: 1,
        device: DeviceKind::Cpu,
        team: "default".to_owned(),
        ready: vec![],
        busy: vec![],
        reserved: vec![],
        drained: vec![],
        too_small: vec![],
        unreachable: vec![],
    }
}

/// The reason of a job that waits for workers, while these hold its state.
pub(crate) fn short_of(shortage: Shortage, state_holders: &[&str]) -> Waiting {
    Waiting::Shortage {
        shortage: Box::new(shortage),
        state_holders: names(state_holders),
    }
}

/// `a` reports that it cannot reach `b`, by [`Harness::receive_unreachable`]. `a` comes before `b`.
pub(crate) fn unreachable(a: &str, b: &str) -> UnreachablePair {
    UnreachablePair {
        workers: (a.to_owned(), b.to_owned()),
        from: a.to_owned(),
        to: b.to_owned(),
        error: format!("{b}:7073: no answer"),
    }
}

pub(crate) fn rank_on(rank: u32, worker: &str) -> RankOn {
    RankOn {
        rank: Rank(rank),
        worker: Some(worker.to_owned()),
    }
}

pub(crate) fn rank_failed(rank: u32, worker: &str, failure: RankFailure) -> Ending {
    Ending::RankFailed {
        rank: Rank(rank),
        worker: id(worker),
        failure,
    }
}

/// A generation that ended early while these ranks waited; the job resumes from a step.
pub(crate) fn resumes(ending: Ending, blocked: &[(u32, &str)], step: u64) -> Fault {
    let blocked = blocked.iter().map(|(rank, worker)| rank_on(*rank, worker));
    Fault::Generation {
        ending,
        blocked: Blocked::new(blocked.collect()),
        consequence: Consequence::Resumes { from: Step(step) },
    }
}

/// A job that samples 4 images from another job's model and writes a grid of them: 5 units.
pub(crate) fn sample_of(source: &JobId) -> JobSpec {
    let work = SampleWork {
        count: 4,
        ..SampleWork::of(source.clone())
    };
    JobSpec {
        name: "images".to_owned(),
        resources: Resources {
            workers_min: 1,
            workers_max: 64,
            ..spec(1, 1).resources
        },
        after: Vec::new(),
        work: Work::Sample(Box::new(work)),
    }
}

pub(crate) fn sampling(spec: &mut JobSpec) -> &mut SampleWork {
    match &mut spec.work {
        Work::Sample(work) => work,
        other @ (Work::Train(_) | Work::Evaluate(_) | Work::Build(_)) => {
            panic!("it has [{}]", other.table())
        }
    }
}

pub(crate) fn training(spec: &mut JobSpec) -> &mut TrainWork {
    match &mut spec.work {
        Work::Train(work) => work,
        other @ (Work::Sample(_) | Work::Evaluate(_) | Work::Build(_)) => {
            panic!("it has [{}]", other.table())
        }
    }
}

fn resources(workers_min: u32, workers_max: u32) -> Resources {
    Resources {
        workers_min,
        workers_max,
        devices_per_worker: 1,
        device: DeviceKind::Cpu,
        priority: 0,
        team: "default".to_owned(),
    }
}

fn model() -> Model {
    let (unet, autoencoder, text_encoder) = proto::size::named("tiny").expect("a size named tiny");
    Model {
        architecture: ArchitectureSpec::Retrinet(Retrinet {
            diffusion: Diffusion {
                autoencoder,
                text_encoder,
                unet,
                latents: Latents::default(),
                noise: Noise::default(),
                objective: Objective {
                    face_loss_weight: 0.1,
                    target_mask_threshold: 0.5,
                    loss_weighting: LossWeighting::Epsilon,
                },
            },
            retrieval: Retrieval::default(),
            references: References {
                task: Task::Composition,
                pairing: Pairing::B,
                count: 4,
                drop: 0.0,
                joint_drop: None,
                transform: Transform::default(),
                face_probability: 0.5,
                face_enlargement: 1.33,
                figure_threshold: 0.5,
                clothes: Clothes::default(),
                scale: 0.8,
                multitask_reconstruction: 0.5,
            },
        }),
        init: None,
        freeze: vec![Component::Autoencoder],
        activation_checkpointing: vec![],
    }
}

pub(crate) fn spec(workers_min: u32, workers_max: u32) -> JobSpec {
    let resources = resources(workers_min, workers_max);
    let data = Data {
        dataset: "file:///data".to_owned(),
        resolution: 64,
        prompt_drop: 0.5,
        looks_drop: 0.0,
        prompt_order: PromptOrder::AsWritten,
        holdout: 0.1,
        ratings: proto::rating::Ratings::default(),
        seed: 1,
    };
    let train = Train {
        steps: 4,
        global_batch: 8,
        // Each rank needs a micro-batch per step.
        micro_batch: if workers_max <= 2 { 4 } else { 1 },
        optimizer: Optimizer::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        },
        learning_rate: 1e-4,
        learning_rates: BTreeMap::new(),
        warmup: 0,
        decay: Decay::Constant,
        clip: None,
        ema: None,
        precision: Precision::Fp32,
        on_nonfinite: OnNonfinite::Stop,
        latent_cache_mib: 0,
        reduction: Reduction::Fast,
        threads: 1,
        digest_every: 0,
        validate_every: 0,
        validate_samples: 64,
        time_limit: None,
    };
    let model = model();
    let checkpoint = CheckpointPolicy {
        every: 2,
        keep: 1,
        keep_best: None,
    };
    JobSpec {
        name: "toy".to_owned(),
        resources,
        after: Vec::new(),
        work: Work::Train(Box::new(TrainWork {
            data,
            model,
            train,
            checkpoint,
            evaluation: None,
        })),
    }
}

/// Jobs that a job waits for or reads.
fn named(spec: &JobSpec) -> Vec<JobId> {
    let read = spec.work.read_jobs();
    spec.after.iter().chain(read).cloned().collect()
}
