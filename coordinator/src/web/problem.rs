//! The page in place of one that cannot be shown: what is wrong, and what there is instead.

use super::Frame;
use super::board::Board;
use super::query::WrongValue;
use super::show::in_url;
use crate::daemon::Stopping;
use crate::jobs::JobsError;
use crate::store::StateError;
use askama::Template;
use axum::http::StatusCode;
use proto::limits::{TEXT_BYTES, cut};

#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    title: &'static str,
    text: String,
    links: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct Page<'a> {
    frame: Frame,
    problem: &'a Problem,
}

impl Problem {
    pub(super) fn new(status: StatusCode, title: &'static str, text: &str) -> Self {
        Self {
            status,
            title,
            text: cut(text, TEXT_BYTES),
            links: Vec::new(),
        }
    }

    pub(super) fn no_page(path: &str) -> Self {
        let text = format!("there is no page {:?}", cut(path, 200));
        let mut problem = Self::new(StatusCode::NOT_FOUND, "No such page", &text);
        for (text, url) in [
            ("Now", "/"),
            ("Jobs", "/jobs"),
            ("Workers", "/workers"),
            ("Events", "/events"),
            ("Usage", "/usage"),
        ] {
            problem.links.push((text.to_owned(), url.to_owned()));
        }
        problem
    }

    pub(super) fn no_job(name: &str, board: &Board) -> Self {
        let newest = board.jobs.iter().rev().take(8).map(|it| &it.view.job);
        let links: Vec<(String, String)> = newest
            .map(|job| (job.clone(), format!("/jobs/{}", in_url(job))))
            .collect();
        let known = if links.is_empty() {
            "there are no jobs yet"
        } else {
            "the newest jobs are these"
        };
        let text = format!("there is no job {:?}; {known}", cut(name, 200));
        let mut problem = Self::new(StatusCode::NOT_FOUND, "No such job", &text);
        problem.links = links;
        problem
    }

    pub(super) fn not_found(title: &'static str, text: &str, links: Vec<(String, String)>) -> Self {
        let mut problem = Self::new(StatusCode::NOT_FOUND, title, text);
        problem.links = links;
        problem
    }

    pub(super) fn page(&self) -> String {
        let frame = Frame::of("");
        let page = Page {
            frame,
            problem: self,
        };
        page.render().unwrap_or_else(|error| error.to_string())
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl From<Stopping> for Problem {
    fn from(error: Stopping) -> Self {
        let code = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(code, "Not available", &error.to_string())
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Self {
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(code, "The store cannot be read", &error.to_string())
    }
}

impl From<JobsError> for Problem {
    fn from(error: JobsError) -> Self {
        match error {
            JobsError::Stopping(error) => error.into(),
            JobsError::State(error) => error.into(),
        }
    }
}

impl From<WrongValue> for Problem {
    fn from(error: WrongValue) -> Self {
        let code = StatusCode::BAD_REQUEST;
        Self::new(code, "A value in the address is wrong", &error.to_string())
    }
}

impl From<askama::Error> for Problem {
    fn from(error: askama::Error) -> Self {
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(code, "The page cannot be made", &error.to_string())
    }
}
