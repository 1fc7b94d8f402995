//! The people outside: each has wishes and asks until there is an answer.

use super::World;
use super::agenda::Happening;
use super::plan::PlannedJob;
use coordinator_core::event::{Event, Reply, RequestId};
use proto::architecture::{Diffusion, Noise, Objective, Retrinet};
use proto::id::JobId;
use proto::sample::SampleWork;
use proto::spec::{
    ArchitectureSpec, AutoencoderConfig, CheckpointPolicy, Clothes, Data, Decay, DeviceKind, JobSpec,
    LossWeighting, Model, OnNonfinite, Optimizer, Pairing, Precision, Reduction, References, Resources,
    Retrieval, Task, TextEncoderConfig, Train, TrainWork, UNetConfig, Work,
};
use std::collections::BTreeMap;

/// How long a person waits for an answer before asking again.
const PATIENCE_MS: u64 = 4_000;

#[derive(Debug, Clone)]
pub(crate) struct Wish {
    kind: Kind,
    /// The planned job it is about.
    job: usize,
    pub(crate) granted: bool,
    /// The job that it became.
    pub(crate) became: Option<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Submit,
    Cancel,
    Sample,
    /// Undone by the wish that follows it, from `until` on.
    Pause {
        until: u64,
    },
    Resume,
    Scale {
        workers: u32,
    },
    /// Undone like a pause. The node's number stands where the job's does.
    Drain {
        until: u64,
    },
    Undrain,
}

impl World {
    pub(crate) fn make_wishes(&mut self) {
        let mut wishes = Vec::new();
        for (job, planned) in self.plan.jobs.iter().enumerate() {
            wishes.push((job, Kind::Submit, Some(planned.at)));
            wishes.push((job, Kind::Cancel, planned.cancel_at));
            wishes.push((job, Kind::Sample, planned.sample_at));
            if let Some((from, until)) = planned.pause {
                wishes.push((job, Kind::Pause { until }, Some(from)));
                wishes.push((job, Kind::Resume, None));
            }
            if let Some((at, workers)) = planned.scale {
                wishes.push((job, Kind::Scale { workers }, Some(at)));
            }
        }
        for drain in &self.plan.drains {
            wishes.push((drain.node, Kind::Drain { until: drain.until }, Some(drain.from)));
            wishes.push((drain.node, Kind::Undrain, None));
        }
        for (job, kind, at) in wishes {
            let undoes = matches!(kind, Kind::Resume | Kind::Undrain);
            if at.is_none() && !undoes {
                continue;
            }
            if let Some(at) = at {
                self.agenda.put(
                    at,
                    Happening::Ask {
                        wish: self.wishes.len(),
                    },
                );
            }
            self.wishes.push(Wish {
                kind,
                job,
                granted: false,
                became: None,
            });
        }
    }

    /// One more job, of a person who asks for nothing else.
    pub(crate) fn encore(&mut self) {
        let job = PlannedJob::encore(self.plan.jobs.len() as u64, self.now);
        let wish = self.wishes.len();
        self.wishes.push(Wish {
            kind: Kind::Submit,
            job: self.plan.jobs.len(),
            granted: false,
            became: None,
        });
        self.plan.jobs.push(job);
        self.agenda.put(self.now, Happening::Ask { wish });
    }

    pub(crate) fn ask(&mut self, number: usize) {
        let wish = self.wishes[number].clone();
        if wish.granted {
            return;
        }
        self.agenda
            .put(self.now + PATIENCE_MS, Happening::Ask { wish: number });
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let event = match (wish.kind, self.submitted(wish.job)) {
            (Kind::Submit, _) => submit(request, &self.plan.jobs[wish.job]),
            (Kind::Cancel, Some(job)) => Event::Cancel { request, job },
            (Kind::Sample, Some(source)) => sample(request, source),
            (Kind::Pause { .. }, Some(job)) => Event::Pause {
                request,
                job,
                paused: true,
            },
            (Kind::Resume, Some(job)) => Event::Pause {
                request,
                job,
                paused: false,
            },
            (Kind::Scale { workers }, Some(job)) => Event::Scale {
                request,
                job,
                workers,
            },
            (Kind::Drain { .. } | Kind::Undrain, _) => Event::Drain {
                request,
                worker: self.nodes[wish.job].name.clone(),
                drained: wish.kind != Kind::Undrain,
            },
            (Kind::Cancel | Kind::Sample | Kind::Pause { .. } | Kind::Resume | Kind::Scale { .. }, None) => {
                return;
            }
        };
        self.requests.insert(request, number);
        self.coordinator_handles(event);
    }

    /// The job that a planned job became, once that is known outside.
    pub(crate) fn submitted(&self, job: usize) -> Option<JobId> {
        let submit = self
            .wishes
            .iter()
            .find(|wish| wish.kind == Kind::Submit && wish.job == job)?;
        submit.became.clone()
    }

    pub(crate) fn on_reply(&mut self, request: RequestId, reply: Reply) {
        let Some(number) = self.requests.remove(&request) else {
            return;
        };
        let about_node = matches!(self.wishes[number].kind, Kind::Drain { .. } | Kind::Undrain);
        let asked = self.submitted(self.wishes[number].job).filter(|_| !about_node);
        self.oracle.on_reply(&self.durable, &reply, asked.as_ref());
        let over = asked
            .as_ref()
            .and_then(|id| self.durable.jobs.get(id))
            .is_some_and(|job| job.phase.is_over());
        let wish = &mut self.wishes[number];
        match reply {
            Reply::Accepted { job } => {
                wish.granted = true;
                wish.became = Some(job);
            }
            Reply::Phase { .. } | Reply::Worker { .. } => wish.granted = true,
            // No checkpoint yet: one may come as long as the job lives.
            Reply::Refused { .. } if wish.kind == Kind::Sample => wish.granted = over,
            // No such worker yet: it will come.
            Reply::Refused { .. } if about_node => {}
            Reply::Refused { .. } => wish.granted = wish.kind != Kind::Submit,
        }
        // Whoever paused or drained something takes it back later, and only once.
        if let (true, Kind::Pause { until } | Kind::Drain { until }) = (wish.granted, wish.kind) {
            let at = until.max(self.now + 1);
            self.agenda.put(at, Happening::Ask { wish: number + 1 });
        }
    }

    /// The planned jobs by the data seed that marks them, for whoever meets a record.
    pub(crate) fn planned(&self) -> BTreeMap<u64, &PlannedJob> {
        self.plan.jobs.iter().map(|job| (job.seed, job)).collect()
    }
}

fn submit(request: RequestId, job: &PlannedJob) -> Event {
    let spec = Box::new(spec(job));
    Event::Submit {
        request,
        spec,
        job_toml: "# toy".to_owned(),
        dataset_version: "toy".to_owned(),
    }
}

fn sample(request: RequestId, source: JobId) -> Event {
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
    Event::Submit {
        request,
        spec: Box::new(spec),
        job_toml: "# toy".to_owned(),
        dataset_version: String::new(),
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
        holdout: 0.0,
        seed: job.seed,
    };
    let train = Train {
        steps: job.steps,
        global_batch: job.micro_batches,
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
        reduction: Reduction::Fast,
        threads: 1,
        digest_every: 0,
    };
    let checkpoint = CheckpointPolicy {
        every: job.every,
        keep: job.keep,
    };
    let work = TrainWork {
        data,
        model: model(),
        train,
        checkpoint,
    };
    JobSpec {
        name: "toy".to_owned(),
        resources,
        after: Vec::new(),
        work: Work::Train(Box::new(work)),
    }
}

/// Never looked at: nothing here draws.
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
                face_probability: 0.5,
                face_enlargement: 1.33,
                figure_threshold: 0.5,
                clothes: Clothes::default(),
                scale: 0.8,
                multitask_reconstruction: 0.5,
            },
        }),
        init: None,
        freeze: vec![],
        activation_checkpointing: vec![],
    }
}
