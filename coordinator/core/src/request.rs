//! What people ask for: submit, sample, cancel. Each is answered once, after what it changed is saved.

use crate::Coordinator;
use crate::event::{JobPhase, JobRecord, Reply, RequestId};
use crate::job::Job;
use crate::outbox::Outbox;
use proto::id::{Generation, JobId, Step};
use proto::ledger::Tip;
use proto::message::SourceJob;
use proto::sample::{SampleWork, Weights};
use proto::spec::{ArchitectureSpec, JobSpec, Work};

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
        let (dataset_version, source) = match &spec.work {
            Work::Train(_) => (dataset_version, None),
            Work::Sample(sample) => match self.pinned(sample) {
                Ok((version, source)) => (version, Some(source)),
                Err(reason) => return outbox.reply(request, Reply::Refused { reason }),
            },
        };
        let job = self.enqueue(spec, job_toml, dataset_version, source, outbox);
        outbox.reply(request, Reply::Accepted { job });
    }

    /// The trained job that images are made of, as it is now, and the version of its data set.
    fn pinned(&self, sample: &SampleWork) -> Result<(String, SourceJob), String> {
        let id = &sample.job;
        let source = self.jobs.get(id).ok_or_else(|| self.no_such_job(id))?;
        let Some(training) = source.record.spec.training() else {
            let reads = source.record.spec.work.sampling().map(|of| &of.job);
            return Err(format!(
                "job {id} draws pictures and trains nothing; sample {} instead",
                reads.unwrap_or(id)
            ));
        };
        suits(sample, &training.model.architecture)?;
        let checkpoints = &source.record.checkpoints;
        let checkpoint = match sample.weights {
            Weights::Base => None,
            Weights::Newest => match checkpoints.last() {
                Some(newest) => Some(*newest),
                None => return Err(format!("job {id} has no committed checkpoint yet")),
            },
            Weights::Step(step) => match checkpoints.iter().rev().find(|kept| kept.step == step) {
                Some(kept) => Some(*kept),
                None => {
                    let steps: Vec<String> = checkpoints.iter().map(|kept| kept.step.to_string()).collect();
                    let steps = if steps.is_empty() {
                        "none".to_owned()
                    } else {
                        steps.join(", ")
                    };
                    return Err(format!(
                        "job {id} has no checkpoint of step {step}; it has: {steps}"
                    ));
                }
            },
        };
        let pinned = SourceJob {
            job_toml: source.record.job_toml.clone(),
            checkpoint,
        };
        Ok((source.record.dataset_version.clone(), pinned))
    }

    pub(crate) fn on_cancel(&mut self, request: RequestId, id: &JobId, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get_mut(id) else {
            let reason = self.no_such_job(id);
            return outbox.reply(request, Reply::Refused { reason });
        };
        let was_over = job.record.phase.is_over();
        if !was_over {
            job.cancel(outbox);
        }
        let reads = job.record.spec.work.sampling().map(|sample| sample.job.clone());
        outbox.phases.push((request, id.clone()));
        if let Some(source) = reads
            && !was_over
        {
            self.retain(&source, outbox);
        }
    }

    fn enqueue(
        &mut self,
        spec: JobSpec,
        job_toml: String,
        dataset_version: String,
        source: Option<SourceJob>,
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
            source,
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

    pub(crate) fn no_such_job(&self, id: &JobId) -> String {
        let newest = self
            .in_submit_order()
            .last()
            .map(|newest| format!("; the newest is {newest}"));
        format!("there is no job {id}{}", newest.unwrap_or_default())
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
    if let Some((wish, ..)) = wishes.iter().find(|(_, wished, offered)| *wished && !offered) {
        return Err(format!(
            "{wish}: job {} trained a {}, which has no use for them; leave them out",
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
