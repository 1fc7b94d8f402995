//! The list of jobs, archived ones too, in pages.

use super::problem::Problem;
use super::query::Query;
use super::rows::JobRow;
use super::{Frame, Web};
use crate::jobs::Filter;
use askama::Template;
use proto::id::JobId;
use proto::limits::{TEXT_BYTES, cut};
use proto::phase::Phase;
use proto::wire::job_id;

const ROWS: usize = 50;

#[derive(Debug, Template)]
#[template(path = "jobs.html")]
struct Page {
    frame: Frame,
    name: String,
    team: String,
    phases: Vec<(&'static str, bool)>,
    rows: Vec<JobRow>,
    older: String,
    newest: String,
}

pub(super) async fn page(web: &Web, query: &Query) -> Result<String, Problem> {
    let field = |name| cut(query.text(name).trim(), TEXT_BYTES);
    let words: Vec<&'static str> = std::iter::once("")
        .chain(Phase::ALL.map(Phase::word))
        .collect();
    let expected = "a phase of a job, such as queued, training, done or failed";
    let filter = Filter {
        phase: query.word("phase", &words, expected)?.to_owned(),
        team: field("team"),
        name: field("name"),
    };
    // One that is no id has no jobs before it.
    let before = Some(query.text("before")).filter(|it| !it.is_empty());
    let before: Option<JobId> = before.and_then(|it| job_id(it.to_owned()).ok());
    let (jobs, next) = web.jobs.list(&filter, ROWS, before.as_ref()).await?;
    let page = Page {
        frame: Frame::of("jobs"),
        phases: words
            .into_iter()
            .skip(1)
            .map(|it| (it, it == filter.phase))
            .collect(),
        name: filter.name,
        team: filter.team,
        rows: jobs.iter().rev().map(JobRow::of).collect(),
        older: next.map_or_else(String::new, |it| query.with(&[("before", &it.0)])),
        newest: match before {
            Some(_) => format!("/jobs{}", query.with(&[("before", "")])),
            None => String::new(),
        },
    };
    Ok(page.render()?)
}
