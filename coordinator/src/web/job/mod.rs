//! The page of a job: what it does and why, its curves, its history, where its time went, and its
//! text, logs and checkpoints in tabs.

mod band;
mod evaluations;
mod goodput;
mod ranks;

use super::board::{Board, JobLine, overdue_ms};
use super::curves::STEPS_MAX;
use super::logs::{LogFilter, LogRow};
use super::problem::Problem;
use super::query::Query;
use super::rows::{self, EventRow, Link, Parts};
use super::samples::{self, Gallery};
use super::show::{self, Moment};
use super::tabs::{self, Tab};
use super::{Frame, Web};
use askama::Template;
use band::{Band, Curve, band, curve};
use coordinator_core::Why;
use evaluations::{Evaluations, ModelMeans, evaluations, means};
use goodput::{Goodput, goodput};
use proto::pb;
use proto::phase::is_over;
use ranks::{RANKS, RankRow, rank_rows, spread};

const EVENTS: usize = 12;
/// Lines of the log under every tab.
const TAIL: usize = 14;

#[derive(Debug, Template)]
#[template(path = "job.html")]
struct Page {
    frame: Frame,
    job: String,
    head: Head,
    figures: Vec<Figure>,
    curve: Option<Curve>,
    band: Option<Band>,
    ranks: Vec<RankRow>,
    more_ranks: usize,
    spread: String,
    goodput: Option<Goodput>,
    evaluations: Option<Evaluations>,
    means: Option<ModelMeans>,
    /// The page with the scores of an evaluation.
    evaluation: Option<Link>,
    gallery: Option<Gallery>,
    units: Vec<(u64, String)>,
    incidents: Vec<IncidentRow>,
    events: Vec<EventRow>,
    tabs: Vec<(&'static str, String, bool)>,
    tab: Tab,
    tail: Vec<LogRow>,
}

#[derive(Debug)]
struct Head {
    phase: String,
    /// For how long it has waited for one rank, if that is far too long.
    overdue: Option<String>,
    sentence: Parts,
    remedy: Parts,
    pressure: Vec<String>,
    facts: Vec<(&'static str, String, Option<Link>)>,
    labels: Vec<(String, String)>,
    note: String,
    submitted: Moment,
    ended: Moment,
    done: u64,
}

/// A number of the job.
#[derive(Debug)]
struct Figure {
    what: &'static str,
    value: String,
    more: String,
}

#[derive(Debug)]
struct IncidentRow {
    at: Moment,
    generation: u64,
    url: String,
    sentence: String,
}

pub(super) async fn page(web: &Web, name: &str, query: &Query) -> Result<String, Problem> {
    let (id, view) = web.job(name).await?;
    let why = web.jobs.why(&id).await?;
    let board = web.look.board().await?;
    let line = board.job(name);
    let drawn = web.curves.with(&view, STEPS_MAX, |history| {
        (
            curve(history, &view),
            band(history, &view),
            history.curve.pace(),
        )
    });
    let (mut curve, band, pace) = drawn.await?;
    if let Some(curve) = &mut curve {
        // The run before this one, to hold it against.
        let older =
            board.jobs.iter().rev().find(|it| {
                it.view.name == view.name && it.view.job != view.job && it.view.step != 0
            });
        curve.compare = older.map(|it| Link {
            text: format!("compare with {}", it.view.job),
            url: format!("/compare?a={}&b={}", it.view.job, view.job),
        });
    }
    let tab = tabs::open(web, &id, &view, query).await?;
    let tail = web.tails.last(&id, TAIL, &LogFilter::default()).await?;
    let events = web.jobs.handle.event_log();
    let events = events.newest(u64::MAX, EVENTS, |it| {
        it.job == view.job && rows::is_rare(it)
    });
    let ranks = line.map_or(&[][..], |line| &line.ranks);
    let now = board.at_ms;
    let page = Page {
        frame: Frame::of("jobs"),
        job: view.job.clone(),
        head: head(&view, why.as_ref()),
        figures: figures(&view, line, place(&board, name), pace, now),
        curve,
        band,
        ranks: rank_rows(ranks),
        spread: spread(ranks),
        more_ranks: ranks.len().saturating_sub(RANKS),
        goodput: goodput(&view),
        evaluations: evaluations(&view),
        means: means(web, &id, &view).await,
        evaluation: (view.work == "evaluate").then(|| Link {
            text: "Scores with intervals, plots, grids, best and worst images".to_owned(),
            url: format!("{}/evaluation", Link::job(&view.job).url),
        }),
        gallery: samples::gallery(web, &view, query).await?,
        units: units(&view),
        incidents: incidents(&view),
        events: events.into_iter().map(EventRow::of).collect(),
        tabs: tabs::list(&tab, query),
        tab,
        tail,
    };
    Ok(page.render()?)
}

fn head(view: &pb::JobView, why: Option<&Why>) -> Head {
    let sentence = why.map_or_else(|| view.reason_sentence(), |it| it.sentence.clone());
    let pressure = view.pressure.iter().filter_map(pb::Reason::sentence);
    let text = |what, text: &str| (what, text.to_owned(), None);
    let mut facts = Vec::new();
    for (what, value) in [
        ("owner", &view.owner),
        ("team", &view.team),
        ("work", &view.work),
    ] {
        if !value.is_empty() {
            facts.push(text(what, value));
        }
    }
    let jobs = [
        ("evaluates", view.parent.as_ref()),
        ("reads", view.source.as_ref()),
    ];
    for (what, job) in jobs {
        facts.extend(job.map(|job| (what, String::new(), Some(Link::job(job)))));
    }
    for job in &view.after {
        facts.push(("after", String::new(), Some(Link::job(job))));
    }
    if let Some(cut) = view.cut_prompts.filter(|it| 0 < *it) {
        facts.push(text("prompts cut", &show::count(cut)));
    }
    if let Some(adapted) = &view.adapted {
        facts.push(text("samples", &show::count(adapted.training)));
    }
    let mut labels: Vec<(String, String)> = view.labels.clone().into_iter().collect();
    labels.sort();
    let (at, all) = rows::position(view);
    let overdue = why.and_then(|why| overdue_ms(why, view.last_step.as_ref()));
    Head {
        phase: view.phase.clone(),
        overdue: overdue.map(show::span),
        sentence: show::parts(&show::sentence(&sentence)),
        remedy: rows::remedy(why),
        pressure: pressure.collect(),
        facts,
        labels,
        note: view.note.clone(),
        submitted: Moment::of(view.submitted_ms),
        ended: Moment::of(view.ended_ms),
        done: rows::per_mille(at, all),
    }
}

/// Its place among the jobs that wait, from 1, and how many these are.
fn place(board: &Board, name: &str) -> Option<(usize, usize)> {
    let mut queue = board.queue.iter();
    let place = queue.position(|index| board.jobs[*index].view.job == name)?;
    Some((place + 1, board.queue.len()))
}

fn figures(
    view: &pb::JobView,
    line: Option<&JobLine>,
    place: Option<(usize, usize)>,
    pace: Option<f64>,
    now: u64,
) -> Vec<Figure> {
    let figure = |what, value: String, more: String| Figure { what, value, more };
    let (at, all) = rows::position(view);
    let noun = if view.units.is_some() {
        "units"
    } else {
        "step"
    };
    let mut figures = vec![figure(
        noun,
        show::count(at),
        format!("of {}", show::count(all)),
    )];
    if let Some((place, all)) = place {
        let of = format!("of {all} that wait");
        figures.push(figure("place", place.to_string(), of));
    }
    if view.last_step.is_some() {
        figures.push(figure("loss", rows::loss(view), String::new()));
    }
    let rate = rows::rate(view);
    if rate != show::NONE && view.units.is_none() {
        let pace = pace.map_or_else(String::new, |it| format!("{} s per step", show::number(it)));
        figures.push(figure("samples/s", rate, pace));
    } else if rate != show::NONE {
        figures.push(figure("speed", rate, String::new()));
    }
    if is_over(&view.phase) {
        let took = view.ended_ms.saturating_sub(view.submitted_ms);
        figures.push(figure("took", show::span(took), String::new()));
    } else if let Some(left) = rows::left_ms(view, pace).filter(|_| view.world != 0) {
        let end = Moment::of(now + left);
        let end = end.text.get(..16).unwrap_or("").to_owned();
        figures.push(figure("left", show::span(left), format!("{end} UTC")));
    }
    if let Some(line) = line.filter(|_| !is_over(&view.phase)) {
        let ranks = format!("asks {}", line.asks);
        figures.push(figure("ranks", view.world.to_string(), ranks));
    }
    let generation = match view.restarts {
        1 => "1 restart".to_owned(),
        restarts => format!("{restarts} restarts"),
    };
    figures.push(figure(
        "generation",
        view.generation.to_string(),
        generation,
    ));
    if let Some(newest) = view.checkpoints.last() {
        let every = match view.checkpoint_every {
            0 => String::new(),
            every => format!("every {}", show::count(every)),
        };
        figures.push(figure("checkpoint", show::count(newest.step), every));
    }
    figures
}

fn units(view: &pb::JobView) -> Vec<(u64, String)> {
    let failed = view.units.iter().flat_map(|it| &it.failed);
    failed.map(|it| (it.unit, it.error.clone())).collect()
}

fn incidents(view: &pb::JobView) -> Vec<IncidentRow> {
    let newest = view.incidents.iter().rev();
    newest
        .map(|it| IncidentRow {
            at: Moment::of(it.at_ms),
            generation: it.generation,
            url: rows::incident_url(&view.job, it),
            sentence: it.sentence(),
        })
        .collect()
}
