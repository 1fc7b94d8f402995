//! The page of events: everything that happened since the coordinator started, in pages, newest
//! first.

use super::problem::Problem;
use super::query::Query;
use super::rows::EventRow;
use super::{Frame, Web};
use askama::Template;
use proto::limits::{TEXT_BYTES, cut};

const ROWS: usize = 100;

#[derive(Debug, Template)]
#[template(path = "events.html")]
struct Page {
    frame: Frame,
    job: String,
    worker: String,
    kind: String,
    rows: Vec<EventRow>,
    older: String,
    newest: String,
}

pub(super) async fn page(web: &Web, query: &Query) -> Result<String, Problem> {
    let field = |name| cut(query.text(name).trim(), TEXT_BYTES);
    let (job, worker, kind) = (field("job"), field("worker"), field("kind"));
    let before = query.number("before")?;
    let log = web.jobs.handle.event_log();
    let mut lines = log.newest(before.unwrap_or(u64::MAX), ROWS + 1, |it| {
        (job.is_empty() || it.job == job)
            && (worker.is_empty() || it.worker == worker)
            && (kind.is_empty() || it.kind.contains(kind.as_str()))
    });
    let is_more = ROWS < lines.len();
    lines.truncate(ROWS);
    let last = lines.last().map_or(0, |it| it.number).to_string();
    let page = Page {
        frame: Frame::of("events"),
        job,
        worker,
        kind,
        rows: lines.into_iter().map(EventRow::of).collect(),
        older: if is_more {
            query.with(&[("before", &last)])
        } else {
            String::new()
        },
        newest: match before {
            Some(_) => format!("/events{}", query.with(&[("before", "")])),
            None => String::new(),
        },
    };
    Ok(page.render()?)
}
