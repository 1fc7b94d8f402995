//! The gRPC service of the command line. Validates requests, passes them to the daemon's loop, and
//! maps its replies to messages and status codes. It makes no decisions. Called by tonic.
//!
//! | code | when |
//! |---|---|
//! | NOT_FOUND | no such job |
//! | INVALID_ARGUMENT | a field or job.toml is wrong; the message names it |
//! | FAILED_PRECONDITION | the state machine refused; the message says why |
//! | RESOURCE_EXHAUSTED | too many requests or streams; the message says how many there may be |
//! | DEADLINE_EXCEEDED | the reader of a stream takes nothing |
//! | UNAVAILABLE | the coordinator is stopping |

mod follow;
mod inputs;

use crate::admission::{Admission, EndedQuotas, invalid, overrides, parse};
use crate::calls::short;
use crate::daemon::{Handle, Stopping};
use crate::event_log::EventLog;
use crate::inspect::Inspector;
use crate::jobs::{Filter, Jobs, JobsError};
use crate::journal::Journal;
use crate::own_log;
use crate::pressure::Pressures;
use crate::probes::{self, Probes};
use crate::store::StateError;
use crate::streams::{Replies, Streams, caller};
use crate::text::now_ms;
use crate::usage::{By, Usage};
use coordinator_core::event::{Input, Reply, RequestId};
use inputs::about;
use proto::id::JobId;
use proto::limits::{NAMED_BYTES, TEXT_BYTES, cut};
use proto::pb;
use proto::phase::{Phase, is_over};
use proto::wire::{job_id, worker_name};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use tonic::{Request, Response, Status};

/// Jobs per reply.
const JOBS_MAX: usize = 1000;

#[derive(Debug, Clone)]
pub(crate) struct ControlService {
    jobs: Jobs,
    handle: Handle,
    journal: Journal,
    event_log: EventLog,
    streams: Streams,
    admission: Admission,
    inspector: Inspector,
    pressures: Pressures,
    probes: Probes,
}

impl ControlService {
    pub(crate) fn new(
        jobs: Jobs,
        quotas: EndedQuotas,
        pressures: &Pressures,
        probes: &Probes,
    ) -> Self {
        Self {
            handle: jobs.handle.clone(),
            journal: jobs.journal.clone(),
            event_log: jobs.handle.event_log().clone(),
            streams: Streams::new(),
            admission: Admission::new(jobs.clone(), quotas),
            inspector: Inspector::new(),
            pressures: pressures.clone(),
            probes: probes.clone(),
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

    /// What others send too much of while the job is not over.
    fn pressure(&self, view: &pb::JobView) -> Vec<pb::Reason> {
        if is_over(&view.phase) {
            return Vec::new();
        }
        self.pressures.now().iter().map(Into::into).collect()
    }

    fn accepted_job(reply: Result<Reply, Stopping>) -> Result<String, Status> {
        match reply.map_err(unavailable)? {
            Reply::Accepted { job } => Ok(job.0),
            Reply::Refused { reason } => Err(short(Status::failed_precondition, &reason)),
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
            Reply::Refused { reason } => Err(short(Status::failed_precondition, &reason)),
            other => Err(unexpected_reply(&other)),
        }
    }
}

#[tonic::async_trait]
impl pb::control_server::Control for ControlService {
    type WatchJobStream = Replies<pb::JobView>;
    type ListStepsStream = Replies<pb::StepReport>;
    type ListLedgerStream = Replies<pb::LedgerLine>;
    type LogsStream = Replies<pb::LogLine>;
    type ProbeStream = Replies<pb::ProbeReply>;
    type EventsStream = Replies<pb::EventLine>;

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitReply>, Status> {
        let address = caller(&request).map_or(Ipv4Addr::UNSPECIFIED.into(), |it| it.address);
        let pb::SubmitRequest {
            file_name,
            job_toml,
            dry_run,
            directory,
            files,
            owner,
            labels,
            note,
        } = request.into_inner();
        let about = about(owner, labels, note)?;
        let file = if file_name.is_empty() {
            "job.toml".to_owned()
        } else {
            file_name
        };
        let name = file.clone();
        let directory = directory.map(PathBuf::from);
        let parsed = self
            .admission
            .parse(move || parse(&name, &job_toml, directory.as_deref(), &files));
        // The job is stored with all defaults filled in, so that a later change of a default cannot
        // affect a running job.
        let (spec, job_toml) = parsed.await?;
        let (dataset, summary) = self.check_inputs(&file, &spec, address).await?;
        self.admission.check_ended(&spec.resources.team).await?;
        if dry_run {
            return Ok(Response::new(pb::SubmitReply {
                job: String::new(),
                summary,
            }));
        }
        let archived = self.jobs.archived_names(&spec).await.map_err(failed)?;
        let bytes: usize = archived.iter().map(|job| job.job_toml.len()).sum();
        if NAMED_BYTES < bytes {
            return Err(Status::failed_precondition(format!(
                "{file}: the archived jobs that it names have {bytes} bytes of text in all; at \
                 most {NAMED_BYTES} are accepted"
            )));
        }
        let reply = self
            .handle
            .request(move |request| Input::Submit {
                request,
                spec: Box::new(spec),
                job_toml,
                dataset,
                about,
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
            Reply::Refused { reason } => Err(short(Status::failed_precondition, &reason)),
            other => Err(unexpected_reply(&other)),
        }
    }

    async fn why(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<pb::WhyReply>, Status> {
        let (job, view) = self.job(&request.into_inner().job).await?;
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
            pressure: self.pressure(&view),
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
                cut(&request.phase, TEXT_BYTES),
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
        let overrides = self.admission.parse(move || overrides(&set)).await?;
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
        let deleted = deleted.map_err(Status::failed_precondition)?;
        let mut files = 0;
        if checkpoints {
            files = self.jobs.delete_files(&deleted).await.map_err(|error| {
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
        let (job, mut view) = self.job(&request.into_inner().job).await?;
        view.pressure = self.pressure(&view);
        if view.phase == Phase::Queued {
            let place = self.handle.queue_place(job).await.map_err(unavailable)?;
            view.queue = place.map(|it| pb::QueuePlace {
                place: it.place,
                waiting: it.waiting,
                starts_in_ms: it.starts_in_ms,
            });
        }
        Ok(Response::new(view))
    }

    async fn watch_job(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = caller(&request);
        let (job, view) = self.job(&request.into_inner().job).await?;
        let service = self.clone();
        self.streams.open(caller, |reader| async move {
            service.watch(job, view, &reader).await
        })
    }

    async fn list_steps(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<Self::ListStepsStream>, Status> {
        let caller = caller(&request);
        let (job, _) = self.job(&request.into_inner().job).await?;
        let service = self.clone();
        self.streams.open(caller, |reader| async move {
            service.send_steps(&job, &reader).await
        })
    }

    async fn list_ledger(
        &self,
        request: Request<pb::JobRequest>,
    ) -> Result<Response<Self::ListLedgerStream>, Status> {
        let caller = caller(&request);
        let (job, _) = self.job(&request.into_inner().job).await?;
        let service = self.clone();
        self.streams.open(caller, |reader| async move {
            service.send_ledger(&job, &reader).await
        })
    }

    async fn logs(
        &self,
        request: Request<pb::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        if request.own {
            return self.streams.open(caller, |reader| async move {
                own_log::send(&request, &reader).await
            });
        }
        let (job, _) = self.job(&request.job).await?;
        let service = self.clone();
        self.streams.open(caller, |reader| async move {
            service.send_logs(&job, &request, &reader).await
        })
    }

    async fn probe(
        &self,
        request: Request<pb::ProbeRequest>,
    ) -> Result<Response<Self::ProbeStream>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let (job, view) = self.job(&request.job).await?;
        let workers: BTreeSet<String> = view.members.into_iter().filter_map(name_of).collect();
        if workers.is_empty() {
            return Err(Status::failed_precondition(format!(
                "{job} has no ranks that could be asked: it is {}",
                view.phase
            )));
        }
        let probe = pb::Probe {
            number: 0,
            job: job.0,
            trace: request.trace,
        };
        let asking = self.probes.ask(probe, workers).ok_or_else(|| {
            Status::resource_exhausted("too many ask for stacks or traces already; try again")
        })?;
        self.streams.open(caller, |reader| async move {
            probes::send(asking, &reader).await
        })
    }

    async fn list_workers(
        &self,
        _request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersReply>, Status> {
        let workers = self.handle.workers().await.map_err(unavailable)?;
        Ok(Response::new(pb::ListWorkersReply { workers }))
    }

    async fn usage(
        &self,
        request: Request<pb::UsageRequest>,
    ) -> Result<Response<pb::UsageReply>, Status> {
        let pb::UsageRequest {
            by,
            since_ms,
            until_ms,
        } = request.into_inner();
        let by = By::parse(&cut(&by, TEXT_BYTES)).map_err(Status::invalid_argument)?;
        let until_ms = if until_ms == 0 { now_ms() } else { until_ms };
        if until_ms < since_ms {
            return Err(Status::invalid_argument(format!(
                "field `until_ms` is {until_ms}; it must not be before `since_ms`, {since_ms}"
            )));
        }
        let usage = self.jobs.usage(Usage::new(by, since_ms, until_ms));
        Ok(Response::new(usage.await.map_err(failed)?.reply()))
    }

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        if !request.job.is_empty() {
            self.job(&request.job).await?;
        }
        let service = self.clone();
        self.streams.open(caller, |reader| async move {
            service.send_events(&request, &reader).await
        })
    }
}

fn name_of(member: pb::Member) -> Option<String> {
    Some(member.worker?.name)
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
