//! The page of device-time by team, user, job or label, and the same as CSV.

use super::problem::Problem;
use super::query::Query;
use super::show::{self, At, Moment};
use super::{Frame, Web, query_of};
use crate::text::{csv as field, now_ms};
use crate::time::Since;
use crate::usage::{By, Usage};
use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use proto::limits::{TEXT_BYTES, cut};
use proto::pb;

/// Rows on a page; the CSV has all.
const ROWS: usize = 100;

#[derive(Debug, Template)]
#[template(path = "usage.html")]
struct Page {
    frame: Frame,
    by: String,
    since: String,
    until: String,
    rows: Vec<Row>,
    shown: String,
    previous: Option<String>,
    next: Option<String>,
    all: String,
    from: String,
    to: String,
    csv: String,
}

#[derive(Debug)]
struct Row {
    key: String,
    jobs: String,
    hours: String,
    share: String,
    bar: At,
}

/// What is asked for, as it was written.
#[derive(Debug)]
struct Asked {
    by: String,
    since: String,
    until: String,
}

async fn read(web: &Web, query: &Query) -> Result<(Asked, pb::UsageReply), Problem> {
    let field = |name, default: &str| {
        let text = cut(query.text(name).trim(), TEXT_BYTES);
        if text.is_empty() {
            default.to_owned()
        } else {
            text
        }
    };
    let asked = Asked {
        by: field("by", "team"),
        since: field("since", "30d"),
        until: field("until", ""),
    };
    let wrong = |text: &str| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "A value in the address is wrong",
            text,
        )
    };
    let by = By::parse(&asked.by).map_err(|why| wrong(&why))?;
    let now = now_ms();
    let time = |name: &str, text: &str| match Since::parse(text) {
        Ok(since) => Ok(since.at(now)),
        Err(why) => Err(wrong(&format!("`{name}` is {text:?}; {why}"))),
    };
    let since = time("since", &asked.since)?;
    let until = match asked.until.as_str() {
        "" => now,
        text => time("until", text)?,
    };
    if until < since {
        return Err(wrong("`until` is before `since`"));
    }
    let usage = web.jobs.usage(Usage::new(by, since, until)).await?;
    Ok((asked, usage.reply()))
}

pub(super) async fn page(web: &Web, query: &Query) -> Result<String, Problem> {
    let (asked, usage) = read(web, query).await?;
    let all: u64 = usage.rows.iter().map(|it| it.device_ms).sum();
    let most = usage.rows.first().map_or(0, |it| it.device_ms);
    let row = |it: &pb::UsageRow| Row {
        key: it.key.clone(),
        jobs: show::count(it.jobs),
        hours: show::hours(it.device_ms),
        share: show::percent(show::fraction(it.device_ms, all)),
        bar: At(100.0 * show::fraction(it.device_ms, most)),
    };
    let number = query.number("page")?.unwrap_or(1).max(1);
    let first = usize::try_from(number - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(ROWS);
    let rows: Vec<Row> = usage.rows.iter().skip(first).take(ROWS).map(row).collect();
    let url = |page: u64| query.with(&[("page", &page.to_string())]);
    let day = |ms: u64| Moment::of(ms).text.get(..10).unwrap_or("").to_owned();
    let page = Page {
        frame: Frame::of("usage"),
        shown: match (rows.len(), usage.rows.len()) {
            (0, all) => format!("none of {}", show::count(all as u64)),
            (count, all) => {
                format!(
                    "{} to {} of {}",
                    first + 1,
                    first + count,
                    show::count(all as u64)
                )
            }
        },
        previous: (1 < number).then(|| url(number - 1)),
        next: (first.saturating_add(ROWS) < usage.rows.len()).then(|| url(number + 1)),
        rows,
        all: show::hours(all),
        from: day(usage.from_ms),
        to: day(usage.to_ms.saturating_sub(1)),
        csv: format!("/usage.csv{}", query.with(&[("page", "")])),
        by: asked.by,
        since: asked.since,
        until: asked.until,
    };
    Ok(page.render()?)
}

pub(super) async fn csv(State(web): State<Web>, uri: Uri) -> Response {
    let (asked, usage) = match read(&web, &query_of(&uri)).await {
        Ok(read) => read,
        Err(problem) => return super::answer(Err(problem)),
    };
    let mut text = format!("{},jobs,device_hours\n", field(&asked.by));
    for row in &usage.rows {
        let line = format!(
            "{},{},{}\n",
            field(&row.key),
            row.jobs,
            show::hours(row.device_ms)
        );
        text.push_str(&line);
    }
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"usage.csv\"",
        ),
    ];
    (headers, text).into_response()
}
