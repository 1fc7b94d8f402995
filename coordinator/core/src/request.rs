//! What people ask for: submit, sample, cancel. Each is answered once, after what it changed is saved.

use crate::event::{Reply, RequestId};
use crate::gang::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::record::{JobPhase, JobRecord};
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Step};
use proto::ledger::Tip;
use proto::message::{SampleRequest, Work};
use proto::spec::{Architecture, JobSpec, Resources};

impl Coordinator {
    pub(crate) fn on_submit(
        &mut self,
        request: RequestId,
        spec: JobSpec,
        job_toml: String,
        dataset_version: String,
        outbox: &mut Outbox,
    ) {
        let resources = &spec.resources;
        let gang = resources.workers_min.max(1)..=resources.workers_max;
        if gang.is_empty() || resources.workers_min == 0 || resources.devices_per_worker == 0 {
            let reason = format!(
                "resources: workers {} to {} with {} devices each is no gang; a gang is 1 or more \
                 workers, min <= max, with 1 or more devices",
                resources.workers_min, resources.workers_max, resources.devices_per_worker
            );
            return outbox.reply(request, Reply::Refused { reason });
        }
        let job = self.enqueue(spec, job_toml, dataset_version, Work::Train, outbox);
        outbox.reply(request, Reply::Accepted { job });
    }

    pub(crate) fn on_sample(
        &mut self,
        request: RequestId,
        mut sample: SampleRequest,
        latest: bool,
        outbox: &mut Outbox,
    ) {
        let source = match self.sampled_job(&mut sample, latest) {
            Ok(source) => source,
            Err(reason) => return outbox.reply(request, Reply::Refused { reason }),
        };
        let mut spec = source.head.spec.clone();
        spec.name = format!("{}-sample", source.head.id);
        spec.resources = Resources {
            workers_min: 1,
            workers_max: 1,
            devices_per_worker: 1,
            ..spec.resources
        };
        let (job_toml, version) = (source.head.job_toml.clone(), source.head.dataset_version.clone());
        let job = self.enqueue(spec, job_toml, version, Work::Sample(sample), outbox);
        outbox.reply(request, Reply::Accepted { job });
    }

    /// The trained job that is meant; picks its newest checkpoint when that is asked for.
    fn sampled_job(&self, sample: &mut SampleRequest, latest: bool) -> Result<&Job, String> {
        let id = &sample.source;
        let source = self.jobs.get(id).ok_or_else(|| self.no_such_job(id))?;
        if let Work::Sample(of) = &source.head.work {
            return Err(format!(
                "job {id} draws pictures and trains nothing; sample {} instead",
                of.source
            ));
        }
        if sample.count == 0 {
            return Err("count: 0 pictures were asked for; ask for 1 or more".to_owned());
        }
        suits(sample, source.head.spec.model.architecture)?;
        let checkpoints = &source.checkpoints;
        if latest {
            sample.checkpoint = checkpoints.last().copied();
        }
        let has = |checkpoint: CheckpointRef| checkpoints.contains(&checkpoint);
        match sample.checkpoint {
            None if latest => Err(format!("job {id} has no committed checkpoint yet")),
            Some(asked) if !has(asked) => {
                let steps: Vec<String> = checkpoints.iter().map(|kept| kept.step.to_string()).collect();
                let steps = if steps.is_empty() {
                    "none".to_owned()
                } else {
                    steps.join(", ")
                };
                Err(format!(
                    "job {id} has no checkpoint of step {}; it has: {steps}",
                    asked.step
                ))
            }
            None | Some(_) => Ok(source),
        }
    }

    pub(crate) fn on_cancel(&mut self, request: RequestId, id: &JobId, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get_mut(id) else {
            let reason = self.no_such_job(id);
            return outbox.reply(request, Reply::Refused { reason });
        };
        let read = job.pin().map(|pin| pin.job.clone());
        if !job.is_over() {
            job.cancel(outbox);
        }
        outbox.phases.push((request, id.clone()));
        if let Some(read) = read {
            self.retain(&read, outbox);
        }
    }

    fn enqueue(
        &mut self,
        spec: JobSpec,
        job_toml: String,
        dataset_version: String,
        work: Work,
        outbox: &mut Outbox,
    ) -> JobId {
        self.counters.jobs += 1;
        let id = JobId(format!("{}-{}", spec.name, self.counters.jobs));
        let ledger = Tip::begin(&id, &dataset_version, &job_toml);
        let record = JobRecord {
            id: id.clone(),
            spec,
            job_toml,
            dataset_version,
            work,
            submitted_ms: outbox.wall,
            reserves: Vec::new(),
            ledger,
            paused: false,
            workers: None,
            generation: Generation(0),
            phase: JobPhase::Queued {
                reason: "was just submitted".to_owned(),
            },
            checkpoints: Vec::new(),
            reached: Step(0),
            fruitless: 0,
            hopeless: false,
            restarts: 0,
            incidents: Vec::new(),
        };
        let job = Job::new(record, self.deadlines, outbox.now);
        job.note_queued(outbox);
        self.jobs.insert(id.clone(), job);
        outbox.save.insert(id.clone());
        outbox.save_counters = true;
        id
    }
}

/// Refuses wishes that the job's model has no use for.
fn suits(sample: &SampleRequest, architecture: Architecture) -> Result<(), String> {
    let (name, unused) = match architecture {
        Architecture::Retrinet => return Ok(()),
        Architecture::TextToImage => (
            "text-to-image model",
            &["references", "task", "pairing", "attention"][..],
        ),
        Architecture::Autoencoder => (
            "autoencoder",
            &["references", "task", "pairing", "attention", "prompts"][..],
        ),
    };
    let wishes = [
        ("references", sample.references.is_empty()),
        ("task", sample.task.is_none()),
        ("pairing", sample.pairing.is_none()),
        ("attention", sample.attention.is_empty()),
        ("prompts", sample.prompts.is_empty()),
    ];
    match wishes
        .iter()
        .find(|(wish, absent)| !absent && unused.contains(wish))
    {
        Some((wish, _)) => Err(format!(
            "{wish}: job {} trained a {name}, which has no use for them; leave them out",
            sample.source
        )),
        None => Ok(()),
    }
}
