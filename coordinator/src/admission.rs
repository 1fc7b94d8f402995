//! What is checked of a request before it reaches the daemon's loop: the text of a job, its
//! overrides, and the number of its team's ended jobs. Used by [`crate::rpc`].

use crate::budget::blocking;
use crate::calls::short;
use crate::jobs::{Jobs, JobsError};
use proto::job::overrides::Override;
use proto::limits::{LIST, OVERRIDES};
use proto::spec::{JobSpec, Work};
use proto::wire::WireError;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::Status;

/// Texts of jobs that are parsed at a time, on threads of their own.
const PARSERS: usize = 2;

/// How many ended jobs a team may have before it may submit no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedQuotas {
    pub(crate) teams: BTreeMap<String, u32>,
    /// For a team without an entry.
    pub(crate) other: u32,
    /// For all teams together.
    pub(crate) all: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Admission {
    jobs: Jobs,
    parsers: Arc<Semaphore>,
    quotas: EndedQuotas,
}

impl Admission {
    pub(crate) fn new(jobs: Jobs, quotas: EndedQuotas) -> Self {
        Self {
            jobs,
            parsers: Arc::new(Semaphore::new(PARSERS)),
            quotas,
        }
    }

    /// Runs on a thread for blocking work, so that a large text delays nobody else.
    pub(crate) async fn parse<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.parsers.acquire().await;
        let parsed = blocking(work).await;
        drop(turn);
        parsed.map_err(|error| Status::internal(format!("the job cannot be parsed: {error}")))?
    }

    /// Refuses a job of a team that has as many ended ones as its quota.
    pub(crate) async fn check_ended(&self, team: &str) -> Result<(), Status> {
        let (own, all) = self
            .jobs
            .ended(team)
            .await
            .map_err(|error: JobsError| Status::unavailable(error.to_string()))?;
        let quota = self
            .quotas
            .teams
            .get(team)
            .copied()
            .unwrap_or(self.quotas.other);
        let remedy = "`coordinator delete` some, or set [retention] in the coordinator's settings";
        if u64::from(quota) <= own {
            return Err(Status::failed_precondition(format!(
                "team {team} has {own} ended jobs, and its quota is {quota}; {remedy}, or raise \
                 `ended` of the team in its `quotas`"
            )));
        }
        if u64::from(self.quotas.all) <= all {
            return Err(Status::failed_precondition(format!(
                "there are {all} ended jobs, and the quota of all teams together is {}; {remedy}",
                self.quotas.all
            )));
        }
        Ok(())
    }
}

/// A submitted job, and its canonical text.
pub(crate) fn parse(
    file: &str,
    text: &str,
    directory: Option<&Path>,
    files: &HashMap<String, String>,
) -> Result<(JobSpec, String), Status> {
    let mut spec = proto::job::parse(file, text, directory).map_err(invalid)?;
    let (field, set) = match &mut spec.work {
        Work::Train(_) | Work::Build(_) => ("", Ok(())),
        Work::Sample(work) => {
            let references = work.references.iter_mut();
            let named = references.flat_map(|reference| reference.from.files_mut());
            ("sample.references", set_file_digests(named, files))
        }
        Work::Evaluate(work) => ("evaluate", set_file_digests(work.plan.files_mut(), files)),
    };
    set.map_err(|error| {
        let error = proto::job::error_at(file, text, field, error);
        invalid(proto::job::JobErrors(vec![error]))
    })?;
    let canonical = proto::job::admit(file, &spec).map_err(invalid)?;
    Ok((spec, canonical))
}

/// The overrides of a request.
pub(crate) fn overrides(set: &[String]) -> Result<Vec<Override>, Status> {
    let refused = |text: String| Status::invalid_argument(format!("field `set`: {text}"));
    if OVERRIDES < set.len() {
        let found = set.len();
        return Err(refused(format!(
            "has {found} entries; at most {OVERRIDES} are accepted"
        )));
    }
    let one = |text: &String| match text.len() {
        0..=LIST => text.parse::<Override>(),
        bytes => Err(format!(
            "has an entry of {bytes} bytes; at most {LIST} are accepted"
        )),
    };
    set.iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map_err(refused)
}

/// Sets the digest of every file that lacks one; ranks find the file by its digest. `named`: the
/// names and digests.
fn set_file_digests<'a>(
    named: impl Iterator<Item = (&'a str, &'a mut String)>,
    files: &HashMap<String, String>,
) -> Result<(), String> {
    for (name, sha256) in named.filter(|(_, sha256)| sha256.is_empty()) {
        let digest = files.get(name).filter(|it| is_sha256(it));
        let digest = digest.ok_or_else(|| {
            format!("names {name}, which is not in the store; `coordinator submit` uploads it")
        })?;
        sha256.clone_from(digest);
    }
    Ok(())
}

/// Checked strictly, because the digest becomes part of a path.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

pub(crate) trait InvalidArgument: std::fmt::Display {}
impl InvalidArgument for WireError {}
impl InvalidArgument for proto::job::JobErrors {}

#[allow(clippy::needless_pass_by_value)] // The signature that `map_err` needs.
pub(crate) fn invalid(error: impl InvalidArgument) -> Status {
    short(Status::invalid_argument, &error.to_string())
}
