//! The list of workers, in pages.

use super::board::WorkerLine;
use super::problem::Problem;
use super::query::Query;
use super::rows::WorkerRow;
use super::show;
use super::{Frame, Web};
use askama::Template;
use proto::limits::{TEXT_BYTES, cut};

const ROWS: usize = 100;

#[derive(Debug, Template)]
#[template(path = "workers.html")]
struct List {
    frame: Frame,
    name: String,
    states: Vec<(&'static str, bool)>,
    rows: Vec<WorkerRow>,
    shown: String,
    previous: Option<String>,
    next: Option<String>,
}

const STATES: [&str; 6] = ["", "up", "drained", "sick", "cut off", "down"];

pub(super) async fn list(web: &Web, query: &Query) -> Result<String, Problem> {
    let board = web.look.board().await?;
    let state = query.word("state", &STATES, "up, drained, sick, cut off or down")?;
    let name = cut(query.text("name").trim(), TEXT_BYTES);
    let page = query.number("page")?.unwrap_or(1).max(1);
    let matching: Vec<&WorkerLine> = board
        .workers
        .iter()
        .filter(|it| state.is_empty() || it.state() == state)
        .filter(|it| it.name().contains(name.as_str()))
        .collect();
    let first = usize::try_from(page - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(ROWS);
    let rows: Vec<WorkerRow> = matching
        .iter()
        .skip(first)
        .take(ROWS)
        .map(|it| WorkerRow::of(it))
        .collect();
    let url = |page: u64| query.with(&[("page", &page.to_string())]);
    let shown = match rows.len() {
        0 => format!("none of {}", show::count(matching.len() as u64)),
        count => format!(
            "{} to {} of {}",
            show::count(first as u64 + 1),
            show::count((first + count) as u64),
            show::count(matching.len() as u64)
        ),
    };
    let page = List {
        frame: Frame::of("workers"),
        states: STATES
            .into_iter()
            .skip(1)
            .map(|it| (it, it == state))
            .collect(),
        name,
        shown,
        previous: (1 < page).then(|| url(page - 1)),
        next: (first.saturating_add(ROWS) < matching.len()).then(|| url(page + 1)),
        rows,
    };
    Ok(page.render()?)
}
