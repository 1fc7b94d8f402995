//! User requests: submit and cancel. Each gets one reply, after its changes are saved.

use crate::depend::SourceLookup;
use crate::event::{DatasetPin, Reply, RequestId};
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::record::{About, JobPhase, JobRecord, RECORD_VERSION, UnitsRecord};
use proto::account::Account;
use proto::during::Parent;
use proto::evaluate::{EvaluateWork, EvaluatedModel};
use proto::id::{Generation, JobId, Step};
use proto::ledger::Tip;
use proto::limits::JOB_TOML_BYTES;
use proto::message::SourceJob;
use proto::reason::Waiting;
use proto::sample::{SampleWork, Weights};
use proto::spec::{ArchitectureSpec, JobSpec};
use std::collections::BTreeMap;

/// The inputs of a job that are pinned at submission.
pub(crate) struct Pinned {
    pub(crate) dataset: DatasetPin,
    pub(crate) sources: Vec<SourceJob>,
}

impl Coordinator {
    pub(crate) fn on_submit(
        &mut self,
        request: RequestId,
        spec: JobSpec,
        job_toml: String,
        dataset: DatasetPin,
        about: About,
        outbox: &mut Outbox,
    ) {
        let pinned = Pinned {
            dataset,
            sources: Vec::new(),
        };
        let reply = match self.admit(&spec, pinned) {
            Ok(pinned) => Reply::Accepted {
                job: self.enqueue(spec, job_toml, pinned, (None, about), outbox),
            },
            Err(reason) => Reply::Refused { reason },
        };
        outbox.reply(request, reply);
    }

    /// Checks the job's resources and its dependencies on other jobs. Returns its pinned inputs, as
    /// far as they are known.
    fn admit(&self, spec: &JobSpec, mut pinned: Pinned) -> Result<Pinned, String> {
        let resources = &spec.resources;
        let gang = resources.workers_min.max(1)..=resources.workers_max;
        if gang.is_empty() || resources.workers_min == 0 || resources.devices_per_worker == 0 {
            return Err(format!(
                "resources: workers {} to {} with {} devices each is not a valid request; ask for \
                 at least 1 worker, min <= max, with at least 1 device each",
                resources.workers_min, resources.workers_max, resources.devices_per_worker
            ));
        }
        self.check_waiting(&resources.team)?;
        self.check_dependencies(&self.next_id(spec), spec)?;
        if let Some(sample) = spec.work.sampling() {
            pinned.dataset.version = self.sampled_job(sample)?.head().dataset_version.clone();
        }
        if let Some(work) = spec.work.training()
            && let Some(evaluation) = &work.evaluation
        {
            let id = self.next_id(spec);
            let sample = EvaluatedModel {
                job: id,
                ..evaluation.model.clone()
            };
            check_settings(
                &sample.as_sample(&evaluation.plan),
                &work.model.architecture,
            )
            .map_err(|why| format!("evaluate: {why}"))?;
        }
        if let Some(evaluation) = spec.work.evaluation() {
            pinned.dataset.version = self.evaluated_version(evaluation)?;
        }
        // Its dependencies may still write newer weights, or the requested step.
        let waits = !spec.after.is_empty();
        let newest = |(_, weights): &(_, Weights)| *weights == Weights::Newest;
        let reads_newest = spec.work.reads().iter().any(newest);
        pinned.sources = match self.find_sources(spec) {
            Some(SourceLookup::Found(_)) if waits && reads_newest => Vec::new(),
            Some(SourceLookup::Found(sources)) => sources,
            Some(SourceLookup::Missing {
                may_appear: true, ..
            }) if waits => Vec::new(),
            Some(SourceLookup::Missing { source, .. }) => return Err(source.to_string()),
            None => Vec::new(),
        };
        Ok(pinned)
    }

    /// Checks that the models of an evaluation were trained, generate images as it asks, and were
    /// trained on the same data set, whose version it returns.
    fn evaluated_version(&self, work: &EvaluateWork) -> Result<String, String> {
        let (mut first, mut bytes) = (None, 0);
        for model in &work.models {
            let named = |why| format!("evaluate.models: {:?}: {why}", model.name);
            let sample = model.as_sample(&work.plan);
            let head = self.sampled_job(&sample).map_err(named)?.head();
            let (id, version) = first.get_or_insert((&head.id, &head.dataset_version));
            if **version != head.dataset_version {
                return Err(named(format!(
                    "job {} was trained on version {} of its data set, and {id} on {version}; an \
                     evaluation has one data set, for all of its models",
                    head.id, head.dataset_version
                )));
            }
            bytes += head.effective_toml().len();
        }
        if JOB_TOML_BYTES < bytes {
            return Err(format!(
                "evaluate.models: the texts of their jobs have {bytes} bytes in all; at most \
                 {JOB_TOML_BYTES} are accepted"
            ));
        }
        Ok(first.map_or_else(String::new, |(_, version)| version.clone()))
    }

    /// Refuses one more waiting job of the team.
    pub(crate) fn check_waiting(&self, team: &str) -> Result<(), String> {
        let quotas = &self.config.waiting;
        let (mut own, mut all) = (0, 0);
        for job in self.jobs.values().filter(|job| job.is_queued()) {
            all += 1;
            own += u32::from(job.head().spec.resources.team == team);
        }
        let quota = quotas.teams.get(team).copied().unwrap_or(quotas.other);
        if quota <= own {
            return Err(format!(
                "team {team} has {own} waiting jobs, and its quota is {quota}; wait until some \
                 run, cancel some, or raise `waiting` of the team in the coordinator's `quotas`"
            ));
        }
        if quotas.all <= all {
            return Err(format!(
                "{all} jobs wait, and the quota of all teams together is {}; wait until some run, \
                 or cancel some",
                quotas.all
            ));
        }
        Ok(())
    }

    /// Returns the trained job that `sample` reads, if the request fits it.
    fn sampled_job(&self, sample: &SampleWork) -> Result<&Job, String> {
        let id = &sample.job;
        let source = self.jobs.get(id).ok_or_else(|| self.no_such_job(id))?;
        let work = &source.head().spec.work;
        let Some(training) = work.training() else {
            let reads = work.read_jobs().next().unwrap_or(id);
            return Err(format!(
                "job {id} generates images and trains no model; sample job {reads} instead"
            ));
        };
        if sample.count == 0 {
            return Err("count: 0 images requested; request at least 1".to_owned());
        }
        check_settings(sample, &training.model.architecture)?;
        Ok(source)
    }

    pub(crate) fn on_cancel(&mut self, request: RequestId, id: &JobId, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get_mut(id) else {
            let reason = self.no_such_job(id);
            return outbox.reply(request, Reply::Refused { reason });
        };
        let read = job.head().read_jobs();
        let was_over = job.is_over();
        if !was_over {
            job.cancel(outbox);
            self.cancel_evaluations(id, outbox);
        }
        outbox.phase_replies.push((request, id.clone()));
        for read in read.iter().filter(|_| !was_over) {
            self.retain(read, outbox);
        }
    }

    fn next_id(&self, spec: &JobSpec) -> JobId {
        JobId(format!("{}-{}", spec.name, self.counters.jobs + 1))
    }

    /// `parent`: the job that it evaluates, if the coordinator submits it. `about`: what its user
    /// says about it.
    pub(crate) fn enqueue(
        &mut self,
        spec: JobSpec,
        job_toml: String,
        pinned: Pinned,
        (parent, about): (Option<Parent>, About),
        outbox: &mut Outbox,
    ) -> JobId {
        let id = self.next_id(&spec);
        self.counters.jobs += 1;
        let record = JobRecord {
            version: RECORD_VERSION,
            id: id.clone(),
            ledger: Tip::begin(&id, &pinned.dataset.version, &job_toml),
            job_toml,
            overrides: Vec::new(),
            trained_ms: 0,
            dataset_version: pinned.dataset.version,
            cut_prompts: pinned.dataset.cut_prompts,
            lost_tags: pinned.dataset.lost_tags,
            adapted: pinned.dataset.adapted,
            source: None,
            models: Vec::new(),
            parent,
            evaluations: None,
            submitted_ms: outbox.wall,
            standbys: Vec::new(),
            paused: false,
            paused_because: None,
            workers: None,
            generation: Generation(0),
            phase: JobPhase::Queued {
                reason: Waiting::Submitted,
            },
            checkpoints: Vec::new(),
            reached: Step(0),
            restarts_without_progress: 0,
            permanent_failure: false,
            restarts: 0,
            incidents: Vec::new(),
            units: spec.work.units().map(|_| UnitsRecord::default()),
            about,
            account: Account {
                until_ms: outbox.wall,
                ..Account::default()
            },
            faults: BTreeMap::new(),
            committed_ms: None,
        };
        let mut job = Job::new(record, spec, self.deadlines, outbox.now);
        job.head_mut().sources = pinned.sources;
        job.emit_queued(outbox);
        self.jobs.insert(id.clone(), job);
        outbox.save.insert(id.clone());
        outbox.save_counters = true;
        id
    }
}

/// Refuses settings that the job's model does not support.
fn check_settings(sample: &SampleWork, architecture: &ArchitectureSpec) -> Result<(), String> {
    let facts = architecture.facts();
    if !facts.sampling.images {
        if let Some((field, why)) = architecture.refuse(sample) {
            return Err(format!("{field}: job {}: {why}", sample.job));
        }
        return Err(format!(
            "job {} trained a {}, which makes no images: sample from a job of another architecture",
            sample.job, facts.noun
        ));
    }
    let (prompts, references) = (facts.sampling.prompts, facts.sampling.references);
    let settings = [
        ("references", !sample.references.is_empty(), references),
        ("swap_references", sample.swap_references, references),
        ("task", sample.task.is_some(), references),
        ("pairing", sample.pairing.is_some(), references),
        (
            "attention",
            !sample.attention.is_empty(),
            facts.sampling.attention,
        ),
        ("prompts", !sample.prompts.is_empty(), prompts),
        (
            "negative_prompt",
            !sample.negative_prompt.is_empty(),
            prompts,
        ),
    ];
    let unsupported = |(_, set, supported): &&(&str, bool, bool)| *set && !supported;
    if let Some((field, ..)) = settings.iter().find(unsupported) {
        return Err(format!(
            "{field}: job {} trained a {}, which does not use this setting; omit it",
            sample.job, facts.noun
        ));
    }
    if let Some((field, why)) = architecture.refuse(sample) {
        return Err(format!("{field}: job {}: {why}", sample.job));
    }
    let max_steps = sample.method.steps_max_of(architecture.timesteps());
    if max_steps < sample.steps {
        return Err(format!(
            "steps: is {}; {} takes 1 to {max_steps} steps on the noise schedule of job {}",
            sample.steps,
            sample.method.name(),
            sample.job
        ));
    }
    Ok(())
}
