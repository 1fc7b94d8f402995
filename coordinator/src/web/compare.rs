//! Two jobs beside each other: their curves, what was set differently, and how they learn at equal
//! steps.

use super::curves::{History, STEPS_MAX};
use super::problem::Problem;
use super::query::Query;
use super::rows::Link;
use super::show;
use super::svg;
use super::{Frame, Web};
use askama::Template;
use proto::account::Account;
use proto::job::overrides::flat;
use proto::limits::{TEXT_BYTES, cut};
use proto::pb;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Windows of steps whose mean losses are compared.
const WINDOWS: u64 = 10;
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

/// Mean losses of both over the same steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    from: u64,
    to: u64,
    a: f64,
    b: f64,
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
        settings: differences(&a.job_toml, &b.job_toml),
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

/// First and last step, and mean loss.
type Means = Vec<(u64, u64, f64)>;

fn losses(history: &History) -> (Means, Vec<(u64, Option<f64>)>) {
    let curve = &history.curve;
    let index = curve.names.iter().position(|it| it == "loss");
    let mean = |cell: &super::curve::Cell| cell.spans.get(index?)?.mean();
    let cells = curve.cells.iter();
    let means = cells.filter_map(|cell| Some((cell.first, cell.last, mean(cell)?)));
    (means.collect(), curve.means("loss", POINTS))
}

#[allow(clippy::cast_precision_loss)] // Steps of a window.
fn windows(a: &Means, b: &Means) -> Vec<Window> {
    let last = |cells: &Means| cells.last().map_or(0, |it| it.1);
    let common = last(a).min(last(b));
    let size = common.div_ceil(WINDOWS).max(1);
    let mean = |cells: &Means, from: u64, to: u64| {
        let within = cells.iter().filter(|it| from <= it.0 && it.1 <= to);
        let (mut sum, mut steps) = (0.0, 0.0);
        for (first, last, mean) in within {
            let count = (last + 1 - first) as f64;
            sum += mean * count;
            steps += count;
        }
        (0.0 < steps).then(|| sum / steps)
    };
    (0..WINDOWS)
        .map(|index| (index * size + 1, ((index + 1) * size).min(common)))
        .filter(|(from, to)| from <= to)
        .filter_map(|(from, to)| {
            Some(Window {
                from,
                to,
                a: mean(a, from, to)?,
                b: mean(b, from, to)?,
            })
        })
        .collect()
}

/// Keys that only one of them sets, or that they set differently.
fn differences(a: &str, b: &str) -> Vec<(String, [Option<String>; 2])> {
    let read = |text: &str| flat(text).unwrap_or_default();
    let (a, b): (BTreeMap<_, _>, BTreeMap<_, _>) = (read(a), read(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let value = |of: &BTreeMap<String, String>, key| of.get(key).map(|it| cut(it, VALUE_BYTES));
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| (key.clone(), [value(&a, key), value(&b, key)]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_means_over_the_steps_that_both_have() {
        let a: Means = (1..=20).map(|it| (it, it, 2.0)).collect();
        let b: Means = (1..=20).map(|it| (2 * it - 1, 2 * it, 1.0)).collect();
        let found = windows(&a, &b);
        assert_eq!(found.len(), 10);
        let first = Window {
            from: 1,
            to: 2,
            a: 2.0,
            b: 1.0,
        };
        assert_eq!(found[0], first);
        assert_eq!((found[9].from, found[9].to), (19, 20));
        assert_eq!(windows(&Means::new(), &a), []);
    }

    #[test]
    fn only_what_differs_is_shown() {
        let found = differences(
            "[train]\nsteps = 4\nclip = 1.0",
            "[train]\nsteps = 5\nclip = 1.0",
        );
        let steps = ["4", "5"].map(|it| Some(it.to_owned()));
        assert_eq!(found, [("train.steps".to_owned(), steps)]);
    }
}
