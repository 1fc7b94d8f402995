//! The gRPC service of the command line. Validates requests, passes them to the daemon's loop, and
//! maps its replies to messages and status codes. It makes no decisions. Called by tonic.
//!
//! | code | when |
//! |---|---|
//! | NOT_FOUND | no such job |
//! | INVALID_ARGUMENT | a field or job.toml is wrong; the message names it |
//! | FAILED_PRECONDITION | the state machine refused; the message says why |
//! | RESOURCE_EXHAUSTED | too many requests of this kind wait; try again |
//! | UNAVAILABLE | the coordinator is stopping |

use crate::daemon::{Handle, Stopping};
use crate::inspect::{InspectError, Inspector};
use crate::jobs::{Filter, Jobs, JobsError};
use crate::journal::Journal;
use crate::store::StateError;
use coordinator_core::event::{Input, Reply, RequestId};
use proto::id::JobId;
use proto::job::overrides::Override;
use proto::pb;
use proto::phase::{Phase, is_over};
use proto::sample::SampleWork;
use proto::spec::{JobSpec, Work};
use proto::wire::{WireError, job_id, worker_name};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Entries per read from the store.
const PAGE: usize = 512;
/// Jobs per reply.
const JOBS_MAX: usize = 1000;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Sender<T> = mpsc::Sender<Result<T, Status>>;

#[derive(Debug, Clone)]
pub(crate) struct ControlService {
    jobs: Jobs,
    handle: Handle,
    journal: Journal,
    inspector: Inspector,
}

impl ControlService {
    pub(crate) fn new(jobs: Jobs) -> Self {
        Self {
            handle: jobs.handle.clone(),
            journal: jobs.journal.clone(),
            inspector: Inspector::new(),
            jobs,
        }
    }

    /// The job of that name, or NOT_FOUND with the newest job names.
    async fn job(&self, name: &str) -> Result<(JobId, pb::JobView), Status> {
        let job = job_id(name.to_owned()).map_err(invalid)?;
        if let Some(view) = self.jobs.get(&job).await.map_err(failed)? {
            return Ok((job, view));
        }
        let jobs = self.handle.snapshot().await.map_err(unavailable)?.jobs;
        let newest: Vec<&str> = jobs
            .iter()
            .rev()
            .take(5)
            .map(|it| it.job.as_str())
            .collect();
        let known = match newest.as_slice() {
            [] => "there are no jobs yet".to_owned(),
            names => format!("the newest jobs are {}", names.join(", ")),
        };
        Err(Status::not_found(format!("there is no job {job}; {known}")))
    }

    /// Sends views until the job is over or the client has disconnected.
    async fn watch(
        &self,
        job: JobId,
        mut last: pb::JobView,
        to: &Sender<pb::JobView>,
    ) -> Result<(), Status> {
        let mut changes = self.handle.changes();
        loop {
            let over = is_over(&last.phase);
            if to.send(Ok(last.clone())).await.is_err() || over {
                return Ok(());
            }
            last = loop {
                changes.changed().await.map_err(|_| unavailable(Stopping))?;
                match self.jobs.get(&job).await.map_err(failed)? {
                    Some(view) if view != last => break view,
                    Some(_) => {}
                    None => return Err(Status::not_found(format!("job {job} no longer exists"))),
                }
            };
        }
    }

    async fn send_steps(&self, job: &JobId, to: &Sender<pb::StepReport>) -> Result<(), Status> {
        self.journal.flushed().await;
        let mut after = 0;
        loop {
            let steps = self
                .journal
                .steps(job, after, PAGE)
                .await
                .map_err(unreadable)?;
            let Some(last) = steps.last() else {
                return Ok(());
            };
            after = last.step;
            for step in steps {
                if to.send(Ok(step)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn send_ledger(&self, job: &JobId, to: &Sender<pb::LedgerLine>) -> Result<(), Status> {
        let mut from = 0;
        loop {
            let lines = self
                .journal
                .ledger(job, from, PAGE)
                .await
                .map_err(unreadable)?;
            if lines.is_empty() {
                return Ok(());
            }
            from += lines.len() as u64;
            for json in lines {
                if to.send(Ok(pb::LedgerLine { json })).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// With `follow`, continues until the job is over and all its lines have been sent.
    async fn send_logs(
        &self,
        job: &JobId,
        request: &pb::LogsRequest,
        to: &Sender<pb::LogLine>,
    ) -> Result<(), Status> {
        let mut written = self.journal.written();
        let mut changes = self.handle.changes();
        let mut next = 0;
        let matches = |line: &pb::LogLine| {
            request.rank.is_none_or(|it| it == line.rank)
                && request.since_ms.is_none_or(|it| it <= line.at_ms)
        };
        // The last lines of those that exist now; None once they are sent.
        let tail = |lines: u64| usize::try_from(lines).unwrap_or(usize::MAX);
        let mut last_lines = request.tail.map(|lines| (tail(lines), VecDeque::new()));
        loop {
            let over = match self.handle.job(job.clone()).await.map_err(unavailable)? {
                Some(view) => is_over(&view.phase),
                None => true,
            };
            // The phase was queried before reading, so that no line before the job's end is missed.
            self.journal.flushed().await;
            loop {
                let lines = self
                    .journal
                    .logs(job, next, PAGE)
                    .await
                    .map_err(unreadable)?;
                let Some((last, _)) = lines.last() else { break };
                next = last + 1;
                for (_, line) in lines.into_iter().filter(|(_, line)| matches(line)) {
                    if let Some((limit, kept)) = &mut last_lines {
                        kept.push_back(line);
                        let excess = kept.len().saturating_sub(*limit);
                        kept.drain(..excess);
                    } else if to.send(Ok(line)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            for line in last_lines.take().into_iter().flat_map(|(_, kept)| kept) {
                if to.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
            if over || !request.follow {
                return Ok(());
            }
            tokio::select! {
                changed = written.changed() => changed.map_err(|_| unavailable(Stopping))?,
                changed = changes.changed() => changed.map_err(|_| unavailable(Stopping))?,
                () = to.closed() => return Ok(()),
            }
        }
    }

    /// Checks that the job's inputs exist. Returns the version of its data set (empty if it uses
    /// that of another job) and a summary of the job in one sentence.
    async fn check_inputs(&self, file: &str, spec: &JobSpec) -> Result<(String, String), Status> {
        let resources = &spec.resources;
        let placement = format!(
            "on {} to {} {} workers with {} ranks each",
            resources.workers_min,
            resources.workers_max,
            resources.device.name(),
            resources.devices_per_worker
        );
        match &spec.work {
            Work::Train(work) => {
                let version = self.inspector.pin(spec, work).await;
                let version = version.map_err(|error| match error {
                    InspectError::Busy => Status::resource_exhausted(error.to_string()),
                    InspectError::Refused { .. } => {
                        Status::invalid_argument(format!("{file}: {error}"))
                    }
                })?;
                let summary = format!(
                    "{} steps of {} samples from {} (version {}), {placement}",
                    work.train.steps,
                    work.train.global_batch,
                    work.data.dataset,
                    &version[..12],
                );
                Ok((version, summary))
            }
            Work::Sample(work) => {
                self.job(&work.job.0).await?;
                let (images, job, steps) = (work.images(), &work.job, work.steps);
                Ok((
                    String::new(),
                    format!("{images} images of {job} in {steps} steps, {placement}"),
                ))
            }
        }
    }

    fn accepted_job(reply: Result<Reply, Stopping>) -> Result<String, Status> {
        match reply.map_err(unavailable)? {
            Reply::Accepted { job } => Ok(job.0),
            Reply::Refused { reason } => Err(Status::failed_precondition(reason)),
            other => Err(unexpected_reply(&other)),
        }
    }

    /// Refuses a change of a job that is only in the archive.
    async fn refuse_archived(&self, job: &JobId) -> Result<(), Status> {
        match self.jobs.archived_phase(job).await.map_err(failed)? {
            Some(phase) => Err(Status::failed_precondition(format!(
                "job {job} is {phase} and will not run again; `coordinator retry` continues a \
                 failed job"
            ))),
            None => Ok(()),
        }
    }

    /// Requests a change of a job and replies with its phase.
    async fn request_change(
        &self,
        input: impl FnOnce(RequestId) -> Input + Send + 'static,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        match self.handle.request(input).await.map_err(unavailable)? {
            Reply::Phase { phase } => Ok(Response::new(pb::PhaseReply { phase })),
            Reply::Refused { reason } => Err(Status::failed_precondition(reason)),
            other => Err(unexpected_reply(&other)),
        }
    }
}

/// Runs `work` in its own task; its error, if any, ends the stream.
fn stream<T, F>(work: impl FnOnce(Sender<T>) -> F) -> Response<Replies<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(16);
    let errors = sender.clone();
    let work = work(sender);
    tokio::spawn(async move {
        if let Err(status) = work.await {
            // Fails if the client has disconnected.
            errors.send(Err(status)).await.ok();
        }
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

#[tonic::async_trait]
impl pb::control_server::Control for ControlService {
    type WatchJobStream = Replies<pb::JobView>;
    type ListStepsStream = Replies<pb::StepReport>;
    type ListLedgerStream = Replies<pb::LedgerLine>;
    type LogsStream = Replies<pb::LogLine>;

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitReply>, Status> {
        let pb::SubmitRequest {
            file_name,
            job_toml,
            dry_run,
            directory,
            files,
        } = request.into_inner();
        let file = if file_name.is_empty() {
            "job.toml"
        } else {
            file_name.as_str()
        };
        let directory = directory.map(PathBuf::from);
        let mut spec = proto::job::parse(file, &job_toml, directory.as_deref()).map_err(invalid)?;
        if let Work::Sample(work) = &mut spec.work {
            set_file_digests(work, &files).map_err(|error| {
                invalid(proto::job::JobErrors(vec![proto::job::error_at(
                    file,
                    &job_toml,
                    "sample.references",
                    error,
                )]))
            })?;
        }
        let (dataset_version, summary) = self.check_inputs(file, &spec).await?;
        if dry_run {
            return Ok(Response::new(pb::SubmitReply {
                job: String::new(),
                summary,
            }));
        }
        // Store the job with all defaults filled in, so that a later change of a default cannot
        // affect a running job.
        let job_toml = proto::job::to_toml(&spec);
        let archived = self.jobs.archived_names(&spec).await.map_err(failed)?;
        let reply = self
            .handle
            .request(move |request| Input::Submit {
                request,
                spec: Box::new(spec),
                job_toml,
                dataset_version,
                archived,
            })
            .await;
        let job = Self::accepted_job(reply)?;
        Ok(Response::new(pb::SubmitReply { job, summary }))
    }

    async fn cancel(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        let (job, _) = self.job(&request.into_inner().job).await?;
        if let Some(phase) = self.jobs.archived_phase(&job).await.map_err(failed)? {
            let phase = phase.to_string();
            return Ok(Response::new(pb::PhaseReply { phase }));
        }
        self.request_change(move |request| Input::Cancel { request, job })
            .await
    }

    async fn pause(
        &self,
        request: Request<pb::PauseRequest>,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        let pb::PauseRequest { job, paused } = request.into_inner();
        let (job, _) = self.job(&job).await?;
        self.refuse_archived(&job).await?;
        self.request_change(move |request| Input::Pause {
            request,
            job,
            paused,
        })
        .await
    }

    async fn scale(
        &self,
        request: Request<pb::ScaleRequest>,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        let pb::ScaleRequest { job, workers } = request.into_inner();
        let (job, _) = self.job(&job).await?;
        self.refuse_archived(&job).await?;
        self.request_change(move |request| Input::Scale {
            request,
            job,
            workers,
        })
        .await
    }

    async fn drain(
        &self,
        request: Request<pb::DrainRequest>,
    ) -> Result<Response<pb::DrainReply>, Status> {
        let pb::DrainRequest { worker, drained } = request.into_inner();
        let worker = worker_name(worker).map_err(invalid)?;
        let reply = self.handle.request(move |request| Input::Drain {
            request,
            worker,
            drained,
        });
        match reply.await.map_err(unavailable)? {
            Reply::Worker { drained, .. } => Ok(Response::new(pb::DrainReply { drained })),
            Reply::Refused { reason } => Err(Status::failed_precondition(reason)),
            other => Err(unexpected_reply(&other)),
        }
    }

    async fn why(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<pb::WhyReply>, Status> {
        let (job, _) = self.job(&request.into_inner().job).await?;
        let why = self.jobs.why(&job).await.map_err(failed)?;
        let why = why.ok_or_else(|| Status::not_found(format!("job {job} no longer exists")))?;
        Ok(Response::new(pb::WhyReply {
            sentence: why.sentence,
            constraint: why.constraint.into(),
            remedy: why.remedy,
            waits_for: why.waits_for.map(|it| pb::WaitsFor {
                rank: it.rank.0,
                worker: it.worker.name,
                phase: it.phase,
                for_ms: it.for_ms,
            }),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsReply>, Status> {
        let request = request.into_inner();
        if !request.phase.is_empty() && !Phase::ALL.iter().any(|it| it.word() == request.phase) {
            let all: Vec<&str> = Phase::ALL.iter().map(|it| it.word()).collect();
            return Err(Status::invalid_argument(format!(
                "field `phase` is {:?}; it must be one of {}",
                request.phase,
                all.join(", ")
            )));
        }
        let before = request.before.map(job_id).transpose().map_err(invalid)?;
        let limit = match request.limit {
            0 => JOBS_MAX,
            limit => limit as usize,
        };
        let filter = Filter {
            phase: request.phase,
            team: request.team,
            name: request.name,
        };
        let listed = self
            .jobs
            .list(&filter, limit.min(JOBS_MAX), before.as_ref());
        let (jobs, next) = listed.await.map_err(failed)?;
        Ok(Response::new(pb::ListJobsReply {
            jobs,
            next: next.map(|it| it.0),
        }))
    }

    async fn retry(
        &self,
        request: Request<pb::RetryRequest>,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        let pb::RetryRequest { job, set } = request.into_inner();
        let (job, _) = self.job(&job).await?;
        let overrides = set.iter().map(|it| it.parse::<Override>());
        let overrides: Vec<Override> = overrides
            .collect::<Result<_, _>>()
            .map_err(|error| Status::invalid_argument(format!("field `set`: {error}")))?;
        let archived = self.jobs.archived(&job).await.map_err(failed)?;
        self.request_change(move |request| Input::Retry {
            request,
            job,
            overrides,
            archived,
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteReply>, Status> {
        let pb::DeleteRequest { job, checkpoints } = request.into_inner();
        let (job, _) = self.job(&job).await?;
        let deleted = self.jobs.delete(job.clone()).await.map_err(failed)?;
        deleted.map_err(Status::failed_precondition)?;
        let mut files = 0;
        if checkpoints {
            files = self.jobs.delete_files(&job).await.map_err(|error| {
                Status::internal(format!(
                    "job {job} is deleted, but not its files under jobs/{job}/: {error}"
                ))
            })?;
        }
        Ok(Response::new(pb::DeleteReply { files }))
    }

    async fn describe_job(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<pb::JobView>, Status> {
        let (_, view) = self.job(&request.into_inner().job).await?;
        Ok(Response::new(view))
    }

    async fn watch_job(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let (job, view) = self.job(&request.into_inner().job).await?;
        let service = self.clone();
        Ok(stream(|sender| async move {
            service.watch(job, view, &sender).await
        }))
    }

    async fn list_steps(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<Self::ListStepsStream>, Status> {
        let (job, _) = self.job(&request.into_inner().job).await?;
        let service = self.clone();
        Ok(stream(|sender| async move {
            service.send_steps(&job, &sender).await
        }))
    }

    async fn list_ledger(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<Self::ListLedgerStream>, Status> {
        let (job, _) = self.job(&request.into_inner().job).await?;
        let service = self.clone();
        Ok(stream(|sender| async move {
            service.send_ledger(&job, &sender).await
        }))
    }

    async fn logs(
        &self,
        request: Request<pb::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let (job, _) = self.job(&request.job).await?;
        let service = self.clone();
        Ok(stream(|sender| async move {
            service.send_logs(&job, &request, &sender).await
        }))
    }

    async fn list_workers(
        &self,
        _request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersReply>, Status> {
        let workers = self.handle.snapshot().await.map_err(unavailable)?.workers;
        Ok(Response::new(pb::ListWorkersReply { workers }))
    }
}

/// Sets the digest of every file reference that lacks one; ranks find the file by its digest.
fn set_file_digests(work: &mut SampleWork, files: &HashMap<String, String>) -> Result<(), String> {
    for reference in &mut work.references {
        for (name, sha256) in reference.from.files_mut() {
            if !sha256.is_empty() {
                continue;
            }
            let digest = files.get(name).filter(|it| is_sha256(it));
            let digest = digest.ok_or_else(|| {
                format!("names {name}, which is not in the store; `coordinator submit` uploads it")
            })?;
            sha256.clone_from(digest);
        }
    }
    Ok(())
}

/// Checked strictly, because the digest becomes part of a path.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

trait InvalidArgument: std::fmt::Display {}
impl InvalidArgument for WireError {}
impl InvalidArgument for proto::job::JobErrors {}

#[allow(clippy::needless_pass_by_value)] // The signature that `map_err` needs.
fn invalid(error: impl InvalidArgument) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The state machine sent a reply of the wrong kind.
fn unexpected_reply(reply: &Reply) -> Status {
    Status::internal(format!(
        "the state machine sent an unexpected reply: {reply:?}"
    ))
}

fn unavailable(error: Stopping) -> Status {
    Status::unavailable(error.to_string())
}

#[allow(clippy::needless_pass_by_value)] // The signature that `map_err` needs.
fn unreadable(error: StateError) -> Status {
    Status::internal(error.to_string())
}

fn failed(error: JobsError) -> Status {
    match error {
        JobsError::Stopping(error) => unavailable(error),
        JobsError::State(error) => unreadable(error),
    }
}
