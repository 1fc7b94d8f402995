//! The pages for people: what the cluster does now, jobs with their curves, workers, events, usage.
//! Read-only, one binary, no other server. All state of a page is in its URL, and every page works
//! without scripts; with them it is live ([`live`]) and curves can be looked into.
//!
//! A page is made in three steps: one bounded look at the state ([`look`]), a plain struct per
//! screen, and its template, which escapes everything ([`escape`]).

mod api;
mod assets;
pub(crate) mod board;
mod compare;
mod curves;
mod escape;
mod evaluation;
mod events;
mod guard;
mod history;
mod images;
mod incident;
mod job;
mod jobs;
mod live;
mod logs;
mod look;
mod now;
mod problem;
mod query;
mod rows;
mod samples;
mod show;
mod svg;
mod tabs;
mod usage;
mod worker;
mod workers;

#[cfg(test)]
mod tests;

use crate::budget::Budgets;
use crate::connections::MetricsListener;
use crate::jobs::Jobs;
use crate::text::now_ms;
use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use curves::Curves;
use evaluation::Evaluated;
use guard::Visitor;
use images::Galleries;
use live::Shared;
use logs::Tails;
use look::Look;
use problem::Problem;
use proto::id::JobId;
use proto::pb;
use proto::wire::job_id;
use query::Query;
use show::Moment;
use std::io;
use std::sync::Arc;
use tabs::Compared;
use worker::Doctors;

/// What the pages are made from. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Web {
    jobs: Jobs,
    look: Look,
    curves: Curves,
    tails: Tails,
    shared: Shared,
    galleries: Galleries,
    evaluated: Evaluated,
    compared: Compared,
    doctors: Doctors,
    budgets: Budgets,
}

/// What is around every page.
#[derive(Debug)]
struct Frame {
    /// The entry of the navigation that it belongs to.
    nav: &'static str,
    now: Moment,
    version: &'static str,
    commit: &'static str,
    /// Names the assets of this build, so that a browser keeps no older ones.
    assets: &'static str,
}

impl Frame {
    fn of(nav: &'static str) -> Self {
        Self {
            nav,
            now: Moment::of(now_ms()),
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("RETRI_COMMIT"),
            assets: assets::version(),
        }
    }
}

impl Web {
    pub(crate) fn new(jobs: Jobs, budgets: Budgets) -> Self {
        Self {
            look: Look::new(jobs.handle.clone()),
            curves: Curves::new(jobs.journal.clone()),
            tails: Tails::new(jobs.journal.clone()),
            shared: Shared::default(),
            galleries: Galleries::default(),
            evaluated: Evaluated::default(),
            compared: Compared::default(),
            doctors: Doctors::default(),
            budgets,
            jobs,
        }
    }

    /// The page at a path, as HTML.
    async fn page(&self, path: &str, query: &Query) -> Result<String, Problem> {
        let decoded: Vec<String> = path.split('/').skip(1).map(show::from_url).collect();
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        match parts[..] {
            [""] => now::page(self).await,
            ["jobs"] => jobs::page(self, query).await,
            ["jobs", job] => job::page(self, job, query).await,
            ["jobs", job, "evaluation"] => evaluation::page(self, job, query).await,
            ["jobs", job, "incidents", number] => incident::page(self, job, number).await,
            ["workers"] => workers::list(self, query).await,
            ["workers", worker] => worker::page(self, worker).await,
            ["events"] => events::page(self, query).await,
            ["usage"] => usage::page(self, query).await,
            ["compare"] => compare::page(self, query).await,
            _ => Err(Problem::no_page(path)),
        }
    }

    /// The job of that id, or a page that says which jobs there are.
    async fn job(&self, name: &str) -> Result<(JobId, pb::JobView), Problem> {
        if let Ok(id) = job_id(name.to_owned())
            && let Some(view) = self.jobs.get(&id).await?
        {
            return Ok((id, view));
        }
        let board = self.look.board().await?;
        Err(Problem::no_job(name, &board))
    }
}

/// Serves the pages until the listener fails.
pub(crate) async fn serve(
    listener: MetricsListener,
    jobs: Jobs,
    budgets: Budgets,
    is_local: bool,
) -> io::Result<()> {
    let web = Web::new(jobs, budgets.clone());
    let look = web.look.clone();
    let router = router(web, budgets, is_local);
    let service = router.into_make_service_with_connect_info::<Visitor>();
    let serving = async { axum::serve(listener, service).await };
    let ((), served) = tokio::join!(look.remember(), serving);
    served
}

fn router(web: Web, budgets: Budgets, is_local: bool) -> Router {
    let guard = guard::Guard { budgets, is_local };
    Router::new()
        .route("/assets/{name}", get(assets::file))
        .route("/api/jobs/{job}/steps", get(api::steps))
        .route("/api/jobs/{job}/samples", get(samples::api))
        .route("/jobs/{job}/images/{name}", get(images::file))
        .route("/usage.csv", get(usage::csv))
        .route("/live", get(live::stream))
        .fallback(any_page)
        .with_state(web)
        .layer(axum::middleware::from_fn_with_state(
            Arc::new(guard),
            guard::check,
        ))
}

async fn any_page(State(web): State<Web>, method: Method, uri: Uri) -> Response {
    debug_assert!(method == Method::GET || method == Method::HEAD, "see guard");
    answer(web.page(uri.path(), &query_of(&uri)).await)
}

fn query_of(uri: &Uri) -> Query {
    Query::parse(uri.query())
}

fn answer(page: Result<String, Problem>) -> Response {
    match page {
        Ok(page) => html(StatusCode::OK, page),
        Err(problem) => {
            let status = problem.status;
            html(status, problem.page())
        }
    }
}

fn html(status: StatusCode, page: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, page).into_response()
}
