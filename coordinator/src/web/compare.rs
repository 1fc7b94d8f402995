//! Two jobs beside each other: their curves, what was set differently, and how they learn at equal
//! steps.

use super::curves::{History, STEPS_MAX};
use super::problem::Problem;
use super::query::Query;
use super::rows::Link;
use super::show;
use super::svg;
use super::{Frame, Web};
use crate::comparison::{Means, differences, windows};
use askama::Template;
use proto::account::Account;
use proto::job::overrides::flat;
use proto::limits::{TEXT_BYTES, cut};
use proto::pb;
use std::cmp::Ordering;

/// Points and size of the curves that there are without scripts.
const POINTS: usize = 400;
const SIZE: (f64, f64) = (1000.0, 220.0);
/// Longer values, such as lists of prompts, are cut.
const VALUE_BYTES: usize = 300;

#[derive(Debug, Template)]
#[template(path = "compare.html")]
struct Page {
    frame: Frame,
    a: String,
    b: String,
    sides: Option<Sides>,
    jobs: Vec<String>,
}

#[derive(Debug)]
struct Sides {
    links: [Link; 2],
    facts: Vec<(&'static str, [String; 2])>,
    settings: Vec<(String, [Option<String>; 2])>,
    windows: Vec<Row>,
    curves: [Vec<String>; 2],
    note: String,
}

#[derive(Debug)]
struct Row {
    steps: String,
    a: String,
    b: String,
    difference: String,
    /// Whether that of `b` is `lower`, `higher` or neither.
    sign: &'static str,
}

pub(super) async fn page(web: &Web, query: &Query) -> Result<String, Problem> {
    let field = |name| cut(query.text(name).trim(), TEXT_BYTES);
    let (a, b) = (field("a"), field("b"));
    let board = web.look.board().await?;
    let trained = board.jobs.iter().rev().filter(|it| it.view.work == "train");
    let jobs = trained.take(50).map(|it| it.view.job.clone()).collect();
    let sides = if a.is_empty() || b.is_empty() {
        None
    } else {
        Some(sides(web, &a, &b).await?)
    };
    let page = Page {
        frame: Frame::of("compare"),
        a,
        b,
        sides,
        jobs,
    };
    Ok(page.render()?)
}

async fn sides(web: &Web, a: &str, b: &str) -> Result<Sides, Problem> {
    let (_, a) = web.job(a).await?;
    let (_, b) = web.job(b).await?;
    let (cells_a, first) = web.curves.with(&a, STEPS_MAX, losses).await?;
    let (cells_b, second) = web.curves.with(&b, STEPS_MAX, losses).await?;
    let windows = windows(&cells_a, &cells_b);
    // Both on one scale.
    let drawn = svg::together([&first, &second], SIZE);
    let signed = |value: f64| {
        format!(
            "{}{}",
            if 0.0 < value { "+" } else { "" },
            show::number(value)
        )
    };
    Ok(Sides {
        links: [Link::job(&a.job), Link::job(&b.job)],
        facts: facts(&a, &b),
        settings: settings(&a.job_toml, &b.job_toml),
        note: if windows.is_empty() {
            "they have no steps in common".to_owned()
        } else {
            String::new()
        },
        windows: windows
            .iter()
            .map(|it| Row {
                steps: format!("{} to {}", show::count(it.from), show::count(it.to)),
                a: show::number(it.a),
                b: show::number(it.b),
                difference: signed(it.b - it.a),
                sign: match it.b.total_cmp(&it.a) {
                    Ordering::Less => "lower",
                    Ordering::Greater => "higher",
                    Ordering::Equal => "",
                },
            })
            .collect(),
        curves: drawn,
    })
}

fn losses(history: &History) -> (Means, Vec<(u64, Option<f64>)>) {
    let curve = &history.curve;
    let index = curve.names.iter().position(|it| it == "loss");
    let mean = |cell: &crate::curve::Cell| cell.spans.get(index?)?.mean();
    let cells = curve.cells.iter();
    let means = cells.filter_map(|cell| Some((cell.first, cell.last, mean(cell)?)));
    (means.collect(), curve.means("loss", POINTS))
}

/// What was set differently, with values that fit into a table.
fn settings(a: &str, b: &str) -> Vec<(String, [Option<String>; 2])> {
    let read = |text: &str| flat(text).unwrap_or_default();
    let short = |value: Option<String>| value.map(|it| cut(&it, VALUE_BYTES));
    let found = differences(&read(a), &read(b)).into_iter();
    found
        .map(|(key, values)| (key, values.map(short)))
        .collect()
}

fn facts(a: &pb::JobView, b: &pb::JobView) -> Vec<(&'static str, [String; 2])> {
    let of = |view: &pb::JobView| {
        let account = view.account.as_ref().map(Account::from).unwrap_or_default();
        let goodput = account
            .goodput()
            .map_or_else(|| show::NONE.to_owned(), show::percent);
        [
            view.phase.clone(),
            show::count(view.step),
            super::rows::loss(view),
            super::rows::rate(view),
            view.restarts.to_string(),
            show::hours(account.held_ms()),
            goodput,
        ]
    };
    let titles = [
        "phase",
        "step",
        "last loss",
        "samples/s",
        "restarts",
        "device-hours",
        "goodput",
    ];
    let both = of(a).into_iter().zip(of(b));
    titles.into_iter().zip(both.map(|(a, b)| [a, b])).collect()
}
