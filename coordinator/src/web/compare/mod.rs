//! Two jobs beside each other: their curves, what was set differently, how they learn at equal
//! steps, the paired difference of twins, and their images side by side.

mod pairs;

use super::curves::{History, STEPS_MAX};
use super::problem::Problem;
use super::query::Query;
use super::rows::Link;
use super::show;
use super::svg;
use super::{Frame, Web};
use crate::comparison::{Means, differences, windows};
use crate::curve::Curve;
use crate::paired;
use askama::Template;
use pairs::{Pairs, pairs};
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
    paired: Paired,
    curves: [Vec<String>; 2],
    note: String,
    images: Option<Pairs>,
}

/// The paired difference of twins, or why there is none.
#[derive(Debug)]
struct Paired {
    found: Option<Difference>,
    because: String,
}

#[derive(Debug)]
struct Difference {
    mean: String,
    low: String,
    high: String,
    steps: String,
    verdict: String,
    /// On a line of 1000 where the interval begins, how long it is, its mean, and 0.
    line: [show::At; 4],
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
    let has_curve = |work: &str| matches!(work, "train" | "sample" | "evaluate");
    let trained = board
        .jobs
        .iter()
        .rev()
        .filter(|it| has_curve(&it.view.work));
    let jobs = trained.take(50).map(|it| it.view.job.clone()).collect();
    let sides = if a.is_empty() || b.is_empty() {
        None
    } else {
        Some(sides(web, &a, &b, query).await?)
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

async fn sides(web: &Web, a: &str, b: &str, query: &Query) -> Result<Sides, Problem> {
    let (_, a) = web.job(a).await?;
    let (_, b) = web.job(b).await?;
    let (curve_a, first) = web.curves.with(&a, STEPS_MAX, losses).await?;
    let (curve_b, second) = web.curves.with(&b, STEPS_MAX, losses).await?;
    let stride = curve_a.stride().max(curve_b.stride());
    let [cells_a, cells_b] = [curve_a, curve_b].map(|curve| means(&curve, stride));
    let windows = windows(&cells_a, &cells_b);
    let images = pairs(web, [&a, &b], query).await?;
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
        paired: paired_difference([&a, &b], [&cells_a, &cells_b]),
        curves: drawn,
        images,
    })
}

fn paired_difference([a, b]: [&pb::JobView; 2], cells: [&Means; 2]) -> Paired {
    let none = |because: String| Paired {
        found: None,
        because,
    };
    if a.job == b.job {
        return none("Not paired: it is one job.".to_owned());
    }
    if let Some(because) = paired::apart(a, b) {
        return none(format!("Not paired, because {because}."));
    }
    let Some(found) = paired::difference(cells[0], cells[1]) else {
        let least = paired::STEPS_MIN;
        return none(format!(
            "Not paired yet: they need {least} steps in common."
        ));
    };
    let Some((low, high)) = found.interval() else {
        return none("Not paired: the losses are not finite.".to_owned());
    };
    let six = |value: f64| format!("{value:+.6}");
    let span = [low, high, 0.0].into_iter();
    let (least, most) = (
        span.clone().fold(f64::INFINITY, f64::min),
        span.fold(0.0, f64::max),
    );
    let at = |value: f64| show::At(40.0 + 920.0 * (value - least) / (most - least).max(1e-12));
    Paired {
        found: Some(Difference {
            mean: six(found.mean()),
            low: six(low),
            high: six(high),
            steps: show::count(found.steps()),
            verdict: show::sentence(&found.verdict([&a.job, &b.job])),
            line: [
                at(low),
                show::At(at(high).0 - at(low).0),
                at(found.mean()),
                at(0.0),
            ],
        }),
        because: String::new(),
    }
}

fn losses(history: &History) -> (Curve, Vec<(u64, Option<f64>)>) {
    let curve = &history.curve;
    (curve.clone(), curve.means("loss", POINTS))
}

/// Mean losses of cells of so many steps, so that those of two jobs are of the same steps.
fn means(curve: &Curve, stride: u64) -> Means {
    curve.in_cells("loss", stride)
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
