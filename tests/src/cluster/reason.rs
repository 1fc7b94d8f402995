//! The reasons in views of jobs, as values: tests of behaviour compare these and no sentences.

use proto::pb::reason::Of;
use proto::pb::{Incident, JobView};
use proto::reason::{Cause, Fault, Waiting};

/// Why the job is queued, if it is.
#[must_use]
pub fn waiting(view: &JobView) -> Option<Waiting> {
    let reason = view.cause.as_ref().filter(|it| it.of() == Of::Waiting)?;
    serde_json::from_str(&reason.json).ok()
}

/// Why the job failed, if it did.
#[must_use]
pub fn cause(view: &JobView) -> Option<Cause> {
    let reason = view.cause.as_ref().filter(|it| it.of() == Of::Cause)?;
    serde_json::from_str(&reason.json).ok()
}

/// What went wrong.
#[must_use]
pub fn fault(incident: &Incident) -> Option<Fault> {
    let reason = incident.cause.as_ref().filter(|it| it.of() == Of::Fault)?;
    serde_json::from_str(&reason.json).ok()
}
