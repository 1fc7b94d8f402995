//! Simulated clients: each has requests and repeats them until they are answered.

use super::World;
use super::agenda::SimEvent;
use super::evaluations::PlannedEvaluation;
use super::plan::PlannedJob;
use super::units::plan::{Planned, PlannedUnits};
use coordinator_core::event::{About, DatasetPin, Input, JobPhase, JobRecord, Reply, RequestId};
use proto::architecture::{Diffusion, Latents, Noise, Objective, Retrinet};
use proto::evaluate::{
    Characters, EvaluateWork, EvaluatedModel, EvaluationPlan, MetricSettings, Prompts,
};
use proto::id::JobId;
use proto::knobs::Knobs;
use proto::sample::{SampleMethod, SampleWork, Weights};
use proto::spec::{
    ArchitectureSpec, AutoencoderConfig, CheckpointPolicy, Clothes, Component, Data, Decay,
    DeviceKind, JobSpec, LossWeighting, Model, OnNonfinite, Optimizer, Pairing, Precision,
    PromptOrder, Reduction, References, Resources, Retrieval, Task, TextEncoderConfig, Train,
    TrainWork, Transform, UNetConfig, Work,
};
use std::collections::BTreeMap;

/// A client repeats an unanswered request after this time.
const RETRY_MS: u64 = 4_000;

#[derive(Debug, Clone)]
pub(crate) struct ClientRequest {
    kind: Kind,
    subject: Subject,
    pub(crate) granted: bool,
    /// The job that the submission created.
    pub(crate) job: Option<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Job(Planned),
    /// By its index.
    Node(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Submit,
    /// Cancels the job when it can never start, because a job that it waits for was not done.
    GiveUp,
    Cancel,
    Sample,
    /// Undone by the request that follows it in the list, from `until` on.
    Pause {
        until: u64,
    },
    Resume,
    Scale {
        workers: u32,
    },
    /// Undone like a pause.
    Drain {
        until: u64,
    },
    Undrain,
}

/// State of the jobs that a job waits for before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dependencies {
    Done,
    Pending,
    /// One of them has ended and is not done.
    Failed,
}

impl World {
    pub(crate) fn plan_requests(&mut self) {
        let mut client_requests = Vec::new();
        for (job, planned) in self.plan.jobs.iter().enumerate() {
            let job = Subject::Job(Planned::Trained(job));
            client_requests.push((job, Kind::Submit, Some(planned.at)));
            client_requests.push((job, Kind::Cancel, planned.cancel_at));
            client_requests.push((job, Kind::Sample, planned.sample_at));
            if let Some((from, until)) = planned.pause {
                client_requests.push((job, Kind::Pause { until }, Some(from)));
                client_requests.push((job, Kind::Resume, None));
            }
            if let Some((at, workers)) = planned.scale {
                client_requests.push((job, Kind::Scale { workers }, Some(at)));
            }
        }
        for drain in &self.plan.drains {
            let node = Subject::Node(drain.node);
            client_requests.push((node, Kind::Drain { until: drain.until }, Some(drain.from)));
            client_requests.push((node, Kind::Undrain, None));
        }
        for (units, planned) in self.plan.units.iter().enumerate() {
            let job = Subject::Job(Planned::Units(units));
            client_requests.push((job, Kind::Submit, Some(planned.at)));
            client_requests.push((job, Kind::Cancel, planned.cancel_at));
            if let Some((from, until)) = planned.pause {
                client_requests.push((job, Kind::Pause { until }, Some(from)));
                client_requests.push((job, Kind::Resume, None));
            }
            if let Some((at, workers)) = planned.scale {
                client_requests.push((job, Kind::Scale { workers }, Some(at)));
            }
        }
        let trained = self.plan.jobs.iter().enumerate();
        let trained =
            trained.map(|(job, planned)| (Planned::Trained(job), planned.at, &planned.after));
        let units = self.plan.units.iter().enumerate();
        let units = units.map(|(job, planned)| (Planned::Units(job), planned.at, &planned.after));
        for (job, at, after) in trained.chain(units) {
            if !after.is_empty() {
                client_requests.push((Subject::Job(job), Kind::GiveUp, Some(at)));
            }
        }
        for (subject, kind, at) in client_requests {
            let undoes = matches!(kind, Kind::Resume | Kind::Undrain);
            if at.is_none() && !undoes {
                continue;
            }
            if let Some(at) = at {
                self.agenda.put(
                    at,
                    SimEvent::ClientSends {
                        client_request: self.client_requests.len(),
                    },
                );
            }
            self.client_requests.push(ClientRequest {
                kind,
                subject,
                granted: false,
                job: None,
            });
        }
    }

    /// Adds one more job, without further requests.
    pub(crate) fn extra_job(&mut self) {
        let job = PlannedJob::extra_job(self.plan.jobs.len() as u64, self.now);
        let client_request = self.client_requests.len();
        self.client_requests.push(ClientRequest {
            kind: Kind::Submit,
            subject: Subject::Job(Planned::Trained(self.plan.jobs.len())),
            granted: false,
            job: None,
        });
        self.plan.jobs.push(job);
        self.agenda
            .put(self.now, SimEvent::ClientSends { client_request });
    }

    pub(crate) fn ask(&mut self, number: usize) {
        let client_request = self.client_requests[number].clone();
        if client_request.granted {
            return;
        }
        self.agenda.put(
            self.now + RETRY_MS,
            SimEvent::ClientSends {
                client_request: number,
            },
        );
        if client_request.kind == Kind::GiveUp && !self.dependencies_failed(number) {
            return;
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let Some(mut event) = self.request(request, &client_request) else {
            return;
        };
        if let Input::Submit { spec, archived, .. } = &mut event {
            *archived = self.archived_jobs(spec);
        }
        self.requests.insert(request, number);
        self.coordinator_handles(event);
    }

    /// Records of the archived jobs that a job names, as the shell reads them from the archive.
    fn archived_jobs(&self, spec: &JobSpec) -> Vec<JobRecord> {
        let named = spec.after.iter().chain(spec.work.read_jobs());
        let archived = named.filter(|id| self.durable.archived.contains(*id));
        archived
            .filter_map(|id| self.durable.jobs.get(id).cloned())
            .collect()
    }

    /// The coordinator input of a request; None as long as it cannot be built.
    fn request(&self, request: RequestId, client_request: &ClientRequest) -> Option<Input> {
        let job = match client_request.subject {
            Subject::Job(job) => job,
            Subject::Node(node) => {
                return Some(Input::Drain {
                    request,
                    worker: self.nodes[node].name.clone(),
                    drained: client_request.kind != Kind::Undrain,
                });
            }
        };
        if client_request.kind == Kind::Submit {
            return self.submit(request, job);
        }
        let job = self.submitted(job)?;
        Some(match client_request.kind {
            Kind::Sample => sample(request, job),
            Kind::Pause { .. } | Kind::Resume => Input::Pause {
                request,
                job,
                paused: client_request.kind != Kind::Resume,
            },
            Kind::Scale { workers } => Input::Scale {
                request,
                job,
                workers,
            },
            Kind::Cancel | Kind::GiveUp => Input::Cancel { request, job },
            Kind::Submit | Kind::Drain { .. } | Kind::Undrain => return None,
        })
    }

    /// None until the jobs that it waits for have ids.
    fn submit(&self, request: RequestId, job: Planned) -> Option<Input> {
        let after = match job {
            Planned::Trained(job) => &self.plan.jobs[job].after,
            Planned::Units(job) => &self.plan.units[job].after,
        };
        let after = after
            .iter()
            .map(|job| self.submitted(*job))
            .collect::<Option<_>>()?;
        let mut spec = match job {
            Planned::Trained(job) => spec(&self.plan.jobs[job]),
            Planned::Units(job) => {
                let planned = &self.plan.units[job];
                units(planned, self.submitted(Planned::Trained(planned.source))?)
            }
        };
        spec.after = after;
        Some(submit(request, spec))
    }

    /// True if the job waits for one that has ended and is not done. Marks the request as granted
    /// once all dependencies are done.
    fn dependencies_failed(&mut self, number: usize) -> bool {
        let Subject::Job(planned) = self.client_requests[number].subject else {
            return false;
        };
        let id = self.submitted(planned);
        let Some(record) = id.and_then(|id| self.durable.jobs.get(&id)) else {
            return false;
        };
        match self.dependencies(record) {
            Dependencies::Done => self.client_requests[number].granted = true,
            Dependencies::Pending => {}
            Dependencies::Failed => return true,
        }
        false
    }

    fn dependencies(&self, record: &JobRecord) -> Dependencies {
        let spec = self
            .specs
            .get(&record.id)
            .filter(|_| !record.phase.is_over());
        let Some(spec) = spec else {
            return Dependencies::Done;
        };
        let other = |id: &JobId| self.durable.jobs.get(id);
        // A job that samples from the newest checkpoint also waits for the first one.
        let reads = spec.work.reads().into_iter();
        let mut newest = reads.filter(|(_, weights)| *weights == Weights::Newest);
        let newest = newest.next().map(|(job, _)| job);
        let newest = newest.filter(|_| record.source.is_none() && record.models.is_empty());
        let source = newest.and_then(other);
        let never = |source: &JobRecord| source.phase.is_over() && source.checkpoints.is_empty();
        let phases = || spec.after.iter().filter_map(|id| Some(&other(id)?.phase));
        let done = |phase: &JobPhase| matches!(phase, JobPhase::Done { .. });
        if source.is_some_and(never) || phases().any(|phase| phase.is_over() && !done(phase)) {
            Dependencies::Failed
        } else if source.is_none() && phases().all(done) {
            Dependencies::Done
        } else {
            Dependencies::Pending
        }
    }

    /// A job that no client knows, because the answer was lost, and that waits for one that will
    /// never be done.
    pub(crate) fn is_abandoned(&self, record: &JobRecord) -> bool {
        let known =
            |client_request: &ClientRequest| client_request.job.as_ref() == Some(&record.id);
        self.dependencies(record) == Dependencies::Failed && !self.client_requests.iter().any(known)
    }

    /// The id of a planned job, once a client has received it.
    pub(crate) fn submitted(&self, job: Planned) -> Option<JobId> {
        let submit = self.client_requests.iter().find(|client_request| {
            client_request.kind == Kind::Submit && client_request.subject == Subject::Job(job)
        })?;
        submit.job.clone()
    }

    pub(crate) fn on_reply(&mut self, request: RequestId, reply: Reply) {
        let Some(number) = self.requests.remove(&request) else {
            return;
        };
        let requested = match self.client_requests[number].subject {
            Subject::Job(job) => self.submitted(job),
            Subject::Node(_) => None,
        };
        self.oracle
            .on_reply(&self.durable, &reply, requested.as_ref());
        let over = |id: &JobId| {
            self.durable
                .jobs
                .get(id)
                .is_some_and(|job| job.phase.is_over())
        };
        let is_over = match self.client_requests[number].subject {
            Subject::Job(Planned::Units(units))
                if self.client_requests[number].kind == Kind::Submit =>
            {
                let source = self.submitted(Planned::Trained(self.plan.units[units].source));
                source.is_some_and(|source| over(&source))
            }
            Subject::Job(_) | Subject::Node(_) => requested.as_ref().is_some_and(over),
        };
        let client_request = &mut self.client_requests[number];
        let units = matches!(client_request.subject, Subject::Job(Planned::Units(_)));
        match reply {
            Reply::Accepted { job } => {
                client_request.granted = true;
                client_request.job = Some(job);
            }
            Reply::Phase { .. } | Reply::Worker { .. } | Reply::Deleted { .. } => {
                client_request.granted = true;
            }
            // No checkpoint yet; one may follow as long as the job has not ended.
            Reply::Refused { .. } if client_request.kind == Kind::Sample => {
                client_request.granted = is_over
            }
            Reply::Refused { .. } if units && client_request.kind == Kind::Submit => {
                let subject = client_request.subject;
                let client_requests = self
                    .client_requests
                    .iter_mut()
                    .filter(|client_request| client_request.subject == subject && is_over);
                return client_requests.for_each(|client_request| client_request.granted = true);
            }
            // The worker has not registered yet.
            Reply::Refused { .. } if matches!(client_request.subject, Subject::Node(_)) => {}
            Reply::Refused { .. } => client_request.granted = client_request.kind != Kind::Submit,
        }
        // A pause or drain is undone later, and only once.
        if let (true, Kind::Pause { until } | Kind::Drain { until }) =
            (client_request.granted, client_request.kind)
        {
            let at = until.max(self.now + 1);
            self.agenda.put(
                at,
                SimEvent::ClientSends {
                    client_request: number + 1,
                },
            );
        }
    }

    /// The planned jobs by data seed, which identifies them in a record.
    pub(crate) fn planned(&self) -> BTreeMap<u64, &PlannedJob> {
        self.plan.jobs.iter().map(|job| (job.seed, job)).collect()
    }
}

fn sample(request: RequestId, source: JobId) -> Input {
    let resources = Resources {
        workers_min: 1,
        workers_max: 1,
        devices_per_worker: 1,
        device: DeviceKind::Cpu,
        priority: 0,
        team: "default".to_owned(),
    };
    let spec = JobSpec {
        name: format!("{source}-sample"),
        resources,
        after: Vec::new(),
        work: Work::Sample(Box::new(SampleWork::of(source))),
    };
    submit(request, spec)
}

fn submit(request: RequestId, spec: JobSpec) -> Input {
    Input::Submit {
        request,
        job_toml: proto::job::to_toml(&spec),
        spec: Box::new(spec),
        dataset: DatasetPin {
            version: "toy".to_owned(),
            ..DatasetPin::default()
        },
        about: About::default(),
        // Filled in when it is sent.
        archived: Vec::new(),
    }
}

fn spec(job: &PlannedJob) -> JobSpec {
    let resources = Resources {
        workers_min: job.workers_min,
        workers_max: job.workers_max,
        devices_per_worker: job.devices,
        device: DeviceKind::Cpu,
        priority: job.priority,
        team: job.team.to_owned(),
    };
    let data = Data {
        dataset: "file:///toy".to_owned(),
        resolution: 8,
        prompt_drop: 0.5,
        looks_drop: 0.0,
        prompt_order: PromptOrder::AsWritten,
        holdout: 0.0,
        ratings: proto::rating::Ratings::default(),
        seed: job.seed,
    };
    let train = Train {
        steps: job.steps,
        // Every rank has at least one micro-batch.
        global_batch: job.micro_batches.max(job.workers_max * job.devices),
        micro_batch: 1,
        optimizer: Optimizer::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        },
        learning_rate: 1e-3,
        learning_rates: BTreeMap::new(),
        warmup: 0,
        decay: Decay::Constant,
        clip: None,
        ema: None,
        precision: Precision::Fp32,
        on_nonfinite: OnNonfinite::Stop,
        latent_cache_mib: 0,
        reduction: match job.evaluation {
            Some(_) => Reduction::Exact,
            None => Reduction::Fast,
        },
        threads: 1,
        digest_every: 0,
        validate_every: 0,
        validate_samples: 64,
        time_limit: None,
    };
    let checkpoint = CheckpointPolicy {
        every: job.every,
        keep: job.keep,
        keep_best: job.evaluation.and_then(PlannedEvaluation::score),
    };
    let work = TrainWork {
        data,
        model: model(),
        train,
        checkpoint,
        evaluation: job
            .evaluation
            .map(|evaluation| Box::new(evaluation.plan(job.every))),
    };
    JobSpec {
        name: "toy".to_owned(),
        resources,
        after: Vec::new(),
        work: Work::Train(Box::new(work)),
    }
}

/// A placeholder; the simulation trains no model.
fn model() -> Model {
    Model {
        architecture: ArchitectureSpec::Retrinet(Retrinet {
            diffusion: Diffusion {
                unet: UNetConfig {
                    channels: 8,
                    channel_mult: vec![1],
                    res_blocks: 1,
                    attention_levels: vec![],
                    heads: 1,
                    context_dim: 8,
                    latent_channels: 4,
                    norm_groups: 1,
                },
                autoencoder: AutoencoderConfig {
                    channels: 8,
                    channel_mult: vec![1],
                    res_blocks: 1,
                    latent_channels: 4,
                    scaling_factor: 1.0,
                    norm_groups: 1,
                },
                text_encoder: TextEncoderConfig {
                    width: 8,
                    layers: 1,
                    heads: 1,
                    tokens: 8,
                },
                latents: Latents::default(),
                noise: Noise::default(),
                objective: Objective {
                    face_loss_weight: 0.0,
                    target_mask_threshold: 0.5,
                    loss_weighting: LossWeighting::Epsilon,
                },
            },
            retrieval: Retrieval::default(),
            references: References {
                task: Task::Multitask,
                pairing: Pairing::B,
                count: 1,
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
        freeze: vec![
            Component::Autoencoder,
            Component::TextEncoder,
            Component::Encoder,
            Component::Middle,
        ],
        activation_checkpointing: vec![],
    }
}

fn units(planned: &PlannedUnits, source: JobId) -> JobSpec {
    let resources = Resources {
        workers_min: 1,
        workers_max: planned.workers_max,
        devices_per_worker: planned.devices,
        device: DeviceKind::Cpu,
        priority: planned.priority,
        team: planned.team.to_owned(),
    };
    let weights = if planned.base {
        Weights::Base
    } else {
        Weights::Newest
    };
    let work = if planned.is_evaluation() {
        Work::Evaluate(Box::new(evaluation(planned, &source, weights)))
    } else {
        Work::Sample(Box::new(SampleWork {
            weights,
            count: planned.images,
            seeds: vec![planned.mark],
            on_failed_unit: planned.on_failed,
            ..SampleWork::of(source)
        }))
    };
    JobSpec {
        name: "units".to_owned(),
        resources,
        after: Vec::new(),
        work,
    }
}

/// As many images, of two models if that is possible. It never pauses, because nobody would resume
/// it.
fn evaluation(planned: &PlannedUnits, source: &JobId, weights: Weights) -> EvaluateWork {
    let models = if planned.images.is_multiple_of(2) {
        2
    } else {
        1
    };
    let model = |number: u32| EvaluatedModel {
        name: format!("m{number}"),
        job: source.clone(),
        weights,
        init: None,
        task: None,
        method: SampleMethod::Ddim,
        steps: 50,
        guidance: 7.5,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs: Knobs::default(),
    };
    EvaluateWork {
        plan: EvaluationPlan {
            resolution: None,
            in_domain: Some(Characters::Trained(1)),
            out_of_domain: None,
            prompts: Prompts::Texts(vec![String::new()]),
            seeds: vec![planned.mark],
            samples: planned.images / models,
            task: None,
            pairing: Pairing::B,
        },
        models: (0..models).map(model).collect(),
        metrics: MetricSettings::default(),
        failed_share_max: 1.0,
    }
}
