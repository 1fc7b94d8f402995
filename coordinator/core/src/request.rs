//! What people ask for: submit and cancel. Each is answered once, after what it changed is saved.

use crate::depend::Reads;
use crate::event::{Reply, RequestId};
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::record::{JobPhase, JobRecord, RECORD_VERSION, UnitsRecord};
use proto::id::{Generation, JobId, Step};
use proto::ledger::Tip;
use proto::message::SourceJob;
use proto::sample::{SampleWork, Weights};
use proto::spec::{ArchitectureSpec, JobSpec};

/// What is pinned of what a job reads.
struct Pinned {
    dataset_version: String,
    source: Option<SourceJob>,
}

impl Coordinator {
    pub(crate) fn on_submit(
        &mut self,
        request: RequestId,
        spec: JobSpec,
        job_toml: String,
        dataset_version: String,
        outbox: &mut Outbox,
    ) {
        let pinned = Pinned {
            dataset_version,
            source: None,
        };
        let reply = match self.admit(&spec, pinned) {
            Ok(pinned) => Reply::Accepted {
                job: self.enqueue(spec, job_toml, pinned, outbox),
            },
            Err(reason) => Reply::Refused { reason },
        };
        outbox.reply(request, reply);
    }

    /// Checks what depends on other jobs and on how jobs run; what the job reads, as far as it is
    /// clear now.
    fn admit(&self, spec: &JobSpec, mut pinned: Pinned) -> Result<Pinned, String> {
        let resources = &spec.resources;
        let gang = resources.workers_min.max(1)..=resources.workers_max;
        if gang.is_empty() || resources.workers_min == 0 || resources.devices_per_worker == 0 {
            return Err(format!(
                "resources: workers {} to {} with {} devices each is no gang; a gang is 1 or more \
                 workers, min <= max, with 1 or more devices",
                resources.workers_min, resources.workers_max, resources.devices_per_worker
            ));
        }
        self.may_follow(&self.next_id(spec), spec)?;
        if let Some(sample) = spec.work.sampling() {
            pinned.dataset_version = self.sampled(sample)?.head().dataset_version.clone();
            // Those that it waits for may bring newer weights, or the step that is meant.
            let waits = !spec.after.is_empty();
            pinned.source = match self.reads(spec) {
                Some(Reads::Found(_)) if waits && sample.weights == Weights::Newest => None,
                Some(Reads::Found(source)) => Some(source),
                Some(Reads::Missing {
                    waits_for: Some(_), ..
                }) if waits => None,
                Some(Reads::Missing { reason, .. }) => return Err(reason),
                None => None,
            };
        }
        Ok(pinned)
    }

    /// The trained job that is meant.
    fn sampled(&self, sample: &SampleWork) -> Result<&Job, String> {
        let id = &sample.job;
        let source = self.jobs.get(id).ok_or_else(|| self.no_such_job(id))?;
        let work = &source.head().spec.work;
        let Some(training) = work.training() else {
            let reads = work.sampling().map_or(id, |of| &of.job);
            return Err(format!(
                "job {id} draws pictures and trains nothing; sample {reads} instead"
            ));
        };
        if sample.count == 0 {
            return Err("count: 0 pictures were asked for; ask for 1 or more".to_owned());
        }
        suits(sample, &training.model.architecture)?;
        Ok(source)
    }

    pub(crate) fn on_cancel(&mut self, request: RequestId, id: &JobId, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get_mut(id) else {
            let reason = self.no_such_job(id);
            return outbox.reply(request, Reply::Refused { reason });
        };
        let read = job.head().pin().map(|pin| pin.job.clone());
        let was_over = job.is_over();
        if !was_over {
            job.cancel(outbox);
        }
        outbox.phases.push((request, id.clone()));
        if let Some(read) = read.filter(|_| !was_over) {
            self.retain(&read, outbox);
        }
    }

    fn next_id(&self, spec: &JobSpec) -> JobId {
        JobId(format!("{}-{}", spec.name, self.counters.jobs + 1))
    }

    fn enqueue(
        &mut self,
        spec: JobSpec,
        job_toml: String,
        pinned: Pinned,
        outbox: &mut Outbox,
    ) -> JobId {
        let id = self.next_id(&spec);
        self.counters.jobs += 1;
        let record = JobRecord {
            version: RECORD_VERSION,
            id: id.clone(),
            ledger: Tip::begin(&id, &pinned.dataset_version, &job_toml),
            job_toml,
            dataset_version: pinned.dataset_version,
            source: pinned.source,
            submitted_ms: outbox.wall,
            standbys: Vec::new(),
            paused: false,
            workers: None,
            generation: Generation(0),
            phase: JobPhase::Queued {
                reason: "was just submitted".to_owned(),
            },
            checkpoints: Vec::new(),
            reached: Step(0),
            restarts_without_progress: 0,
            permanent_failure: false,
            restarts: 0,
            incidents: Vec::new(),
            units: spec.work.units().map(|_| UnitsRecord::default()),
        };
        let job = Job::new(record, spec, self.deadlines, outbox.now);
        job.emit_queued(outbox);
        self.jobs.insert(id.clone(), job);
        outbox.save.insert(id.clone());
        outbox.save_counters = true;
        id
    }
}

/// Refuses wishes that the job's model has no use for.
fn suits(sample: &SampleWork, architecture: &ArchitectureSpec) -> Result<(), String> {
    let facts = architecture.facts();
    let (prompts, references) = (facts.sampling.prompts, facts.sampling.references);
    let wishes = [
        ("references", !sample.references.is_empty(), references),
        ("task", sample.task.is_some(), references),
        ("pairing", sample.pairing.is_some(), references),
        ("attention", !sample.attention.is_empty(), references),
        ("prompts", !sample.prompts.is_empty(), prompts),
    ];
    if let Some((request_change, ..)) = wishes
        .iter()
        .find(|(_, wished, offered)| *wished && !offered)
    {
        return Err(format!(
            "{request_change}: job {} trained a {}, which has no use for them; leave them out",
            sample.job, facts.noun
        ));
    }
    let most = sample.method.steps_max_of(architecture.timesteps());
    if most < sample.steps {
        return Err(format!(
            "steps: is {}; {} takes 1 to {most} steps on the noise schedule of job {}",
            sample.steps,
            sample.method.name(),
            sample.job
        ));
    }
    Ok(())
}
