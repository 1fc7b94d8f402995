//! The page of a job: what it does and why, its curves, its history, where its time went, and its
//! text, logs and checkpoints in tabs.

use super::board::{Board, JobLine, RankLine, overdue_ms};
use super::curves::{Begun, History, STEPS_MAX};
use super::images::{self, Gallery};
use super::logs::{LogFilter, LogRow};
use super::problem::Problem;
use super::query::Query;
use super::rows::{self, EventRow, Link, Parts};
use super::show::{self, At, Moment};
use super::svg::{self, Lines};
use super::tabs::{self, Tab};
use super::{Frame, Web};
use askama::Template;
use coordinator_core::Why;
use proto::account::{Account, Bucket};
use proto::id::JobId;
use proto::message::PhaseSeconds;
use proto::pb;
use proto::phase::{Phase, is_over};

/// Points and size of the curve that there is without scripts.
const POINTS: usize = 400;
const CURVE_SIZE: (f64, f64) = (1000.0, 200.0);
/// Rows of ranks that are shown.
const RANKS: usize = 64;
const EVENTS: usize = 12;
/// Lines of the log under every tab.
const TAIL: usize = 14;
/// Ticks and marks on the band of generations; more would be one line.
const TICKS: usize = 400;

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
    goodput: Option<Goodput>,
    evaluations: Option<Evaluations>,
    means: Option<ModelMeans>,
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
struct Curve {
    lines: Lines,
    low: String,
    high: String,
    first: String,
    last: String,
    /// The job's last step, from which a script sees that there is more.
    newest: u64,
    /// How far the steps are read, if not to their end.
    read: String,
    compare: Option<Link>,
}

/// Generations by step.
#[derive(Debug)]
struct Band {
    spans: Vec<BandSpan>,
    ticks: Vec<(At, u64)>,
    marks: Vec<(At, String)>,
    end: String,
}

#[derive(Debug)]
struct BandSpan {
    x: At,
    width: At,
    even: bool,
    title: String,
}

#[derive(Debug)]
struct RankRow {
    rank: u32,
    worker: Link,
    phase: String,
    activity: String,
    /// Its own work per step, and what it waited.
    own: String,
    waited: String,
    /// Thousandths of the slowest rank's work.
    share: u64,
    slowest: bool,
}

#[derive(Debug)]
struct Goodput {
    percent: String,
    held: String,
    waited: String,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    word: &'static str,
    class: String,
    x: At,
    width: At,
    time: String,
    share: String,
}

#[derive(Debug)]
struct Evaluations {
    names: Vec<String>,
    rows: Vec<EvaluationRow>,
    note: String,
}

#[derive(Debug)]
struct EvaluationRow {
    step: String,
    job: Link,
    state: String,
    best: bool,
    values: Vec<String>,
    reason: String,
}

/// Mean scores of each model of an evaluation.
#[derive(Debug)]
struct ModelMeans {
    names: Vec<String>,
    rows: Vec<(String, String, Vec<String>)>,
    note: String,
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
        more_ranks: ranks.len().saturating_sub(RANKS),
        goodput: goodput(&view),
        evaluations: evaluations(&view),
        means: means(web, &id, &view).await,
        gallery: images::gallery(web, &view, query).await?,
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

fn curve(history: &History, view: &pb::JobView) -> Option<Curve> {
    let points = history.curve.means("loss", POINTS);
    let (first, last) = (points.first()?.0, points.last()?.0);
    let lines = svg::lines(&points, CURVE_SIZE);
    let read = if history.complete {
        String::new()
    } else {
        format!(
            "steps read so far: {} of {}",
            show::count(last),
            show::count(view.step)
        )
    };
    Some(Curve {
        low: show::number(lines.least),
        high: show::number(lines.largest),
        lines,
        first: show::count(first),
        last: show::count(last),
        newest: view.step,
        read,
        compare: None,
    })
}

#[allow(clippy::cast_precision_loss)] // Pixels.
fn band(history: &History, view: &pb::JobView) -> Option<Band> {
    let end = view.steps.max(view.step).max(1);
    let x = |step: u64| At(1000.0 * step.min(end) as f64 / end as f64);
    let generations = &history.generations;
    if generations.is_empty() {
        return None;
    }
    let skipped = generations.len().saturating_sub(TICKS);
    let until = |index: usize| generations.get(index + 1).map_or(view.step, |it| it.from);
    let spans = generations.iter().enumerate().skip(skipped);
    let spans = spans.map(|(index, it)| {
        let (from, to) = (it.from, until(index).max(it.from));
        BandSpan {
            x: x(from),
            width: At((x(to).0 - x(from).0).max(1.0)),
            even: index % 2 == 0,
            title: band_title(it, to),
        }
    });
    let ticks = view.checkpoints.iter().rev().take(TICKS);
    let marks = view.incidents.iter().filter_map(|it| {
        let step = history
            .after(it.generation)
            .map_or(view.step, |next| next.from + next.lost);
        Some((x(step), it.sentence()))
    });
    Some(Band {
        spans: spans.collect(),
        ticks: ticks.map(|it| (x(it.step), it.step)).collect(),
        marks: marks.collect(),
        end: show::count(end),
    })
}

fn band_title(it: &Begun, to: u64) -> String {
    let lost = match it.lost {
        0 => String::new(),
        lost => format!("; {lost} steps were done again"),
    };
    format!(
        "generation {}: {} ranks, steps {} to {to}{lost}",
        it.generation,
        it.world,
        it.from + 1
    )
}

fn own_work(it: &PhaseSeconds) -> f64 {
    it.data + it.forward + it.backward + it.optimizer
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Thousandths.
fn rank_rows(ranks: &[RankLine]) -> Vec<RankRow> {
    let works = ranks
        .iter()
        .filter_map(|it| it.step_seconds.as_ref().map(own_work));
    let most = works.clone().fold(0.0, f64::max);
    let least = works.fold(f64::INFINITY, f64::min);
    let seconds = |value: f64| format!("{} s", show::number(value));
    ranks
        .iter()
        .take(RANKS)
        .map(|it| {
            let own = it.step_seconds.as_ref().map(own_work);
            let share = own.map_or(0.0, |own| if 0.0 < most { own / most } else { 0.0 });
            RankRow {
                rank: it.rank,
                worker: Link::worker(&it.worker),
                phase: it.phase.clone(),
                activity: it
                    .activity
                    .as_ref()
                    .map_or_else(String::new, |(stage, for_ms)| {
                        format!("{stage}, {}", show::span(*for_ms))
                    }),
                own: own.map_or_else(|| show::NONE.to_owned(), seconds),
                waited: it
                    .step_seconds
                    .map_or_else(|| show::NONE.to_owned(), |all| seconds(all.communication)),
                share: (1000.0 * share).round() as u64,
                // Beyond what noise explains.
                slowest: own.is_some_and(|own| own == most && 1.2 * least < most),
            }
        })
        .collect()
}

fn goodput(view: &pb::JobView) -> Option<Goodput> {
    let account = view.account.as_ref().map(Account::from)?;
    let held = account.held_ms();
    let open = [("in progress", account.open_ms)];
    let buckets = Bucket::ALL.into_iter();
    let buckets = buckets.map(|bucket| (bucket.word(), account.of(bucket)));
    let mut x = 0.0;
    let parts = buckets
        .chain(open)
        .filter(|(_, ms)| 0 < *ms)
        .map(|(word, ms)| {
            let share = show::fraction(ms, held);
            let begin = x;
            x += 1000.0 * share;
            Part {
                word,
                class: word.replace(' ', "-"),
                x: At(begin),
                width: At(1000.0 * share),
                time: show::span(ms),
                share: show::percent(share),
            }
        });
    let parts: Vec<Part> = parts.collect();
    (!parts.is_empty()).then(|| Goodput {
        percent: account
            .goodput()
            .map_or_else(|| show::NONE.to_owned(), show::percent),
        held: show::span(held),
        waited: show::span(account.waited_ms),
        parts,
    })
}

fn evaluations(view: &pb::JobView) -> Option<Evaluations> {
    if view.evaluations.is_empty() && view.evaluation_due.is_none() {
        return None;
    }
    let mut names: Vec<String> = Vec::new();
    for mean in view.evaluations.iter().flat_map(|it| &it.means) {
        if !names.contains(&mean.name) {
            names.push(mean.name.clone());
        }
    }
    let has_score = view.evaluations.iter().any(|it| it.score.is_some());
    let number = |value: Option<f64>| value.map_or_else(|| show::NONE.to_owned(), show::number);
    let row = |it: &pb::Evaluation| {
        let mean = |name: &String| it.means.iter().find(|mean| mean.name == *name);
        let mut values: Vec<String> = names
            .iter()
            .map(|name| number(mean(name).map(|it| it.value)))
            .collect();
        if has_score {
            values.push(number(it.score));
        }
        EvaluationRow {
            step: show::count(it.step),
            job: Link::job(&it.job),
            state: it.state.clone(),
            best: it.best,
            values,
            reason: match it.missing {
                0 => it.reason.clone(),
                missing => format!("{missing} images failed"),
            },
        }
    };
    let rows = view.evaluations.iter().rev().map(row).collect();
    if has_score {
        names.push("keep_best".to_owned());
    }
    let mut note = Vec::new();
    note.extend(
        view.evaluation_due
            .map(|step| format!("step {step} is next")),
    );
    if view.evaluations_skipped != 0 {
        note.push(format!(
            "{} were skipped for newer ones",
            view.evaluations_skipped
        ));
    }
    Some(Evaluations {
        names,
        rows,
        note: note.join("; "),
    })
}

/// None: it is no evaluation, or it is not over.
async fn means(web: &Web, id: &JobId, view: &pb::JobView) -> Option<ModelMeans> {
    if view.work != "evaluate" || view.phase != Phase::Done {
        return None;
    }
    let summary = match web.jobs.checkpoints.summary(id).await {
        Ok(summary) => summary,
        Err(error) => {
            return Some(ModelMeans {
                names: Vec::new(),
                rows: Vec::new(),
                note: error,
            });
        }
    };
    let mut names: Vec<String> = Vec::new();
    for name in summary.models.iter().flat_map(|it| it.means.keys()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let rows = summary.models.iter().map(|model| {
        let value = |name: &String| {
            let mean = model.means.get(name);
            mean.map_or_else(|| show::NONE.to_owned(), |it| show::number(*it))
        };
        let images = match model.missing {
            0 => show::count(model.images),
            missing => format!("{} ({missing} missing)", show::count(model.images)),
        };
        (
            model.name.clone(),
            images,
            names.iter().map(value).collect(),
        )
    });
    Some(ModelMeans {
        rows: rows.collect(),
        note: format!("coordinator evaluate report {} --out DIR", view.job),
        names,
    })
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
