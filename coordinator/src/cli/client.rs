//! The connection of a command to the coordinator. Its error messages suggest a remedy.

use super::Global;
use anyhow::{Result, anyhow};
use proto::limits::REPLY_BYTES;
use proto::pb;
use proto::pb::control_client::ControlClient;
use proto::version::{self, Stamp};
use std::error::Error;
use std::time::Duration;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of the headers of a reply: the text of an error, with some characters as three.
const HEADER_BYTES_MAX: u32 = 64 << 10;

pub(crate) type Client = ControlClient<InterceptedService<Channel, Stamp>>;

pub(crate) async fn connect(global: &Global) -> Result<Client> {
    let url = &global.coordinator;
    if url.starts_with("https:") {
        return Err(anyhow!(
            "{url}: https:// is not supported yet; use http://HOST:PORT"
        ));
    }
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(|_| anyhow!("{url:?} is no coordinator URL; use http://HOST:PORT"))?
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(CONNECT_WITHIN)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADER_BYTES_MAX);
    let channel = endpoint.connect().await.map_err(|error| {
        let reason = root_cause(&error);
        anyhow!("cannot reach a coordinator at {url}: {reason}; start one with `coordinator serve`")
    })?;
    let stamp: Stamp = version::stamp;
    Ok(ControlClient::with_interceptor(channel, stamp).max_decoding_message_size(REPLY_BYTES))
}

/// The error message for a failed request.
pub(crate) fn request_error(global: &Global, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::NotFound
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted => {
            anyhow!("{}", status.message())
        }
        Code::Unimplemented => anyhow!(
            "the coordinator at {} does not know this command: it is older than this command line \
             (release {}); upgrade the coordinator",
            global.coordinator,
            env!("CARGO_PKG_VERSION")
        ),
        _ => anyhow!(
            "the coordinator at {} failed to handle the request: {}",
            global.coordinator,
            status_text(status)
        ),
    }
}

/// True if a retry may succeed: the connection broke, or the coordinator is starting or stopping.
pub(crate) fn is_retryable(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
    )
}

pub(crate) async fn describe(
    global: &Global,
    client: &mut Client,
    job: &str,
) -> Result<pb::JobView> {
    let request = pb::JobRequest {
        job: job.to_owned(),
    };
    let reply = client
        .describe_job(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    Ok(reply.into_inner())
}

/// All finished steps of the job.
pub(crate) async fn steps(
    global: &Global,
    client: &mut Client,
    job: &str,
) -> Result<Vec<pb::StepReport>> {
    let failed = |status: Status| request_error(global, &status);
    let request = pb::JobRequest {
        job: job.to_owned(),
    };
    let mut stream = client
        .list_steps(request)
        .await
        .map_err(failed)?
        .into_inner();
    let mut steps = Vec::new();
    while let Some(step) = stream.message().await.map_err(failed)? {
        steps.push(step);
    }
    Ok(steps)
}

fn status_text(status: &Status) -> String {
    let cause = status
        .source()
        .map_or_else(String::new, |source| format!(" ({})", root_cause(source)));
    format!("{}{cause}", status.message())
}

/// The root cause: "Connection refused (os error 111)" rather than "transport error".
fn root_cause(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
