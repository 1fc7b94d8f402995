//! The service of people's commands. Checks what comes in, asks the daemon's loop, and turns its
//! answers into replies and status codes. It decides nothing. Called by tonic.
//!
//! | code | when |
//! |---|---|
//! | NOT_FOUND | no such job |
//! | INVALID_ARGUMENT | a field or job.toml is wrong; the message names it |
//! | FAILED_PRECONDITION | the machine refuses, with its reason |
//! | UNAVAILABLE | the coordinator is stopping |

use crate::daemon::{Handle, Stopping};
use crate::journal::Journal;
use crate::pin::pin;
use crate::store::StateError;
use coordinator_core::event::{Input, Reply, RequestId};
use proto::id::JobId;
use proto::pb;
use proto::phase::is_over;
use proto::sample::{ImageSource, SampleWork};
use proto::spec::{JobSpec, Work};
use proto::wire::{WireError, job_id, worker_name};
use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Entries read from the store at a time.
const PAGE: usize = 512;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Sender<T> = mpsc::Sender<Result<T, Status>>;

#[derive(Debug, Clone)]
pub(crate) struct ControlService {
    handle: Handle,
    journal: Journal,
}

impl ControlService {
    pub(crate) fn new(handle: Handle, journal: Journal) -> Self {
        Self { handle, journal }
    }

    /// The job of that name, or NOT_FOUND with the names that there are.
    async fn job(&self, name: &str) -> Result<(JobId, pb::JobView), Status> {
        let job = job_id(name.to_owned()).map_err(invalid)?;
        if let Some(view) = self.handle.job(job.clone()).await.map_err(stopping)? {
            return Ok((job, view));
        }
        let jobs = self.handle.snapshot().await.map_err(stopping)?.jobs;
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

    /// Sends views until the job is over or the client has gone.
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
                changes.changed().await.map_err(|_| stopping(Stopping))?;
                match self.handle.job(job.clone()).await.map_err(stopping)? {
                    Some(view) if view != last => break view,
                    Some(_) => {}
                    None => return Err(Status::not_found(format!("job {job} is gone"))),
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

    /// With `follow`, goes on until the job is over and everything it said has been sent.
    async fn send_logs(
        &self,
        job: &JobId,
        request: &pb::LogsRequest,
        to: &Sender<pb::LogLine>,
    ) -> Result<(), Status> {
        let mut written = self.journal.written();
        let mut changes = self.handle.changes();
        let mut next = 0;
        loop {
            let over = match self.handle.job(job.clone()).await.map_err(stopping)? {
                Some(view) => is_over(&view.phase),
                None => true,
            };
            // Asked before reading, so that nothing said before the job's end can be missed.
            self.journal.flushed().await;
            loop {
                let lines = self
                    .journal
                    .logs(job, next, PAGE)
                    .await
                    .map_err(unreadable)?;
                let Some((last, _)) = lines.last() else { break };
                next = last + 1;
                for (_, line) in lines {
                    let wanted = request.rank.is_none_or(|it| it == line.rank);
                    if wanted && to.send(Ok(line)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            if over || !request.follow {
                return Ok(());
            }
            tokio::select! {
                changed = written.changed() => changed.map_err(|_| stopping(Stopping))?,
                changed = changes.changed() => changed.map_err(|_| stopping(Stopping))?,
                () = to.closed() => return Ok(()),
            }
        }
    }

    /// Looks whether what the job reads is there: the version of its data set (empty where another
    /// job's is taken), and the job in one sentence.
    async fn look(&self, file: &str, spec: &JobSpec) -> Result<(String, String), Status> {
        let resources = &spec.resources;
        let on = format!(
            "on {} to {} {} workers with {} ranks each",
            resources.workers_min,
            resources.workers_max,
            resources.device.name(),
            resources.devices_per_worker
        );
        match &spec.work {
            Work::Train(work) => {
                let version = pin(work).await.map_err(|error| {
                    Status::invalid_argument(format!("{file}: {}: {error}", error.field()))
                })?;
                let summary = format!(
                    "{} steps of {} samples from {} (version {}), {on}",
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
                    format!("{images} images of {job} in {steps} steps, {on}"),
                ))
            }
        }
    }

    async fn accept(&self, reply: Result<Reply, Stopping>) -> Result<String, Status> {
        match reply.map_err(stopping)? {
            Reply::Accepted { job } => Ok(job.0),
            Reply::Refused { reason } => Err(Status::failed_precondition(reason)),
            other => Err(unfitting(&other)),
        }
    }

    /// A wish about a job, answered with its phase.
    async fn request_change(
        &self,
        event: impl FnOnce(RequestId) -> Input + Send + 'static,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        match self.handle.ask(event).await.map_err(stopping)? {
            Reply::Phase { phase } => Ok(Response::new(pb::PhaseReply { phase })),
            Reply::Refused { reason } => Err(Status::failed_precondition(reason)),
            other => Err(unfitting(&other)),
        }
    }
}

/// Runs `work` in a task of its own; its error, if any, ends the stream.
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
            // The client may have gone.
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
            name_files(work, &files).map_err(|error| {
                invalid(proto::job::JobErrors(vec![proto::job::error_at(
                    file,
                    &job_toml,
                    "sample.references",
                    error,
                )]))
            })?;
        }
        let (dataset_version, summary) = self.look(file, &spec).await?;
        if dry_run {
            return Ok(Response::new(pb::SubmitReply {
                job: String::new(),
                summary,
            }));
        }
        // Stored is what this coordinator understood, so that a later default cannot change a
        // running job.
        let job_toml = proto::job::to_toml(&spec);
        let reply = self
            .handle
            .ask(move |request| Input::Submit {
                request,
                spec: Box::new(spec),
                job_toml,
                dataset_version,
            })
            .await;
        let job = self.accept(reply).await?;
        Ok(Response::new(pb::SubmitReply { job, summary }))
    }

    async fn cancel(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        let (job, _) = self.job(&request.into_inner().job).await?;
        self.request_change(move |request| Input::Cancel { request, job })
            .await
    }

    async fn pause(
        &self,
        request: Request<pb::PauseRequest>,
    ) -> Result<Response<pb::PhaseReply>, Status> {
        let pb::PauseRequest { job, paused } = request.into_inner();
        let (job, _) = self.job(&job).await?;
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
        let asked = self.handle.ask(move |request| Input::Drain {
            request,
            worker,
            drained,
        });
        match asked.await.map_err(stopping)? {
            Reply::Worker { drained, .. } => Ok(Response::new(pb::DrainReply { drained })),
            Reply::Refused { reason } => Err(Status::failed_precondition(reason)),
            other => Err(unfitting(&other)),
        }
    }

    async fn why(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<pb::WhyReply>, Status> {
        let (job, _) = self.job(&request.into_inner().job).await?;
        let why = self.handle.why(job.clone()).await.map_err(stopping)?;
        let why = why.ok_or_else(|| Status::not_found(format!("job {job} is gone")))?;
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
        _request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsReply>, Status> {
        let jobs = self.handle.snapshot().await.map_err(stopping)?.jobs;
        Ok(Response::new(pb::ListJobsReply { jobs }))
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
        let workers = self.handle.snapshot().await.map_err(stopping)?.workers;
        Ok(Response::new(pb::ListWorkersReply { workers }))
    }
}

/// Gives every file that was only named the digest by which ranks find it.
fn name_files(work: &mut SampleWork, files: &HashMap<String, String>) -> Result<(), String> {
    for reference in &mut work.references {
        let ImageSource::File { name, sha256 } = &mut reference.from else {
            continue;
        };
        if sha256.is_empty() {
            let digest = files.get(name).filter(|it| is_sha256(it));
            let digest = digest.ok_or_else(|| {
                format!(
                    "names {name}, which is not in the store; `coordinator submit` puts it there"
                )
            })?;
            sha256.clone_from(digest);
        }
    }
    Ok(())
}

/// It becomes part of a path.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

trait InvalidArgument: std::fmt::Display {}
impl InvalidArgument for WireError {}
impl InvalidArgument for proto::job::JobErrors {}

#[allow(clippy::needless_pass_by_value)] // The shape that `map_err` wants.
fn invalid(error: impl InvalidArgument) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The machine answered another question.
fn unfitting(reply: &Reply) -> Status {
    Status::internal(format!("the machine answered with {reply:?}"))
}

fn stopping(error: Stopping) -> Status {
    Status::unavailable(error.to_string())
}

#[allow(clippy::needless_pass_by_value)] // The shape that `map_err` wants.
fn unreadable(error: StateError) -> Status {
    Status::internal(error.to_string())
}
