//! The page of an evaluation: tables with intervals, the paper's values beside them, scatter plots,
//! the best and worst images, and a grid for each character. All of it is computed from the
//! evaluation's rows, as the report of the command line is.

mod plot;
mod rows;

use super::problem::Problem;
use super::query::Query;
use super::rows::Link;
use super::show::{self, in_url};
use super::{Frame, Web};
use crate::budget::blocking;
use crate::evaluation::numbers::{
    Part, columns, difference, estimate, excess, extremes, headline, models, pairings,
};
use crate::evaluation::paper::{Column, TABLES, differences};
use askama::Template;
use axum::http::StatusCode;
use metric::{Estimate, Measure};
use model_data::evaluation::Row;
use plot::{FRAME, Plot, plot};
use proto::pb;
pub(super) use rows::{Evaluated, Scored};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

/// Images that are shown as best, and as worst.
const EXTREMES: usize = 8;
/// Characters on a page, and columns of a grid.
const CHARACTERS: usize = 4;
const PROMPTS: usize = 12;

#[derive(Debug, Template)]
#[template(path = "evaluation.html")]
struct Page {
    frame: Frame,
    job: Link,
    sentence: String,
    facts: Vec<(&'static str, String)>,
    parts: Vec<Choice>,
    tables: Arc<Tables>,
    by: Vec<Choice>,
    extremes: Vec<(&'static str, Vec<Shown>)>,
    characters: Vec<Character>,
    shown: String,
    previous: Option<String>,
    next: Option<String>,
    plot: plot::Frame,
}

/// A link among others of which one is open.
#[derive(Debug)]
struct Choice {
    text: String,
    url: String,
    open: bool,
}

/// What is computed of one part of the rows.
#[derive(Debug)]
pub(super) struct Tables {
    scores: Option<Table>,
    paper: Vec<Paper>,
    pairings: Option<Table>,
    excess: Option<Table>,
    plots: Vec<Plot>,
}

#[derive(Debug)]
struct Table {
    head: Vec<String>,
    rows: Vec<(String, Vec<Cell>)>,
}

#[derive(Debug)]
struct Paper {
    title: &'static str,
    table: Table,
    /// Why its values are not comparable.
    because: Vec<String>,
}

#[derive(Debug, Default)]
struct Cell {
    value: String,
    interval: String,
}

#[derive(Debug)]
struct Shown {
    url: String,
    value: String,
    text: String,
}

/// A row for each model, a column for each prompt.
#[derive(Debug)]
struct Character {
    name: String,
    domain: &'static str,
    prompts: Vec<String>,
    more: usize,
    rows: Vec<(String, Vec<Option<Shown>>)>,
}

pub(super) async fn page(web: &Web, name: &str, query: &Query) -> Result<String, Problem> {
    let (id, view) = web.job(name).await?;
    let Some(images) = images(&view) else {
        return Err(no_evaluation(&view));
    };
    let part = part(query)?;
    let scored = web.evaluated.rows(&web.jobs.checkpoints, &id, images).await;
    let scored = scored.map_err(|error| super::images::unreadable(&error))?;
    let tables = tables(&scored, part).await?;
    let sentence = sentence(&scored, images, &view);
    Ok(made(&view.job, &scored.rows, tables, part, query, sentence)?.render()?)
}

fn made(
    job: &str,
    rows: &[Row],
    tables: Arc<Tables>,
    part: Part,
    query: &Query,
    sentence: String,
) -> Result<Page, Problem> {
    let of_part: Vec<&Row> = rows.iter().filter(|row| part.has(row)).collect();
    let columns = columns(rows);
    let by = by(query, &columns)?;
    let page = number_of(query)?;
    let mut characters: Vec<(&str, &'static str)> = Vec::new();
    for row in &of_part {
        let of = (row.character.as_str(), row.domain.name());
        if characters.last() != Some(&of) && !characters.contains(&of) {
            characters.push(of);
        }
    }
    let first = usize::try_from(page - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(CHARACTERS);
    let shown: Vec<Character> = characters
        .iter()
        .skip(first)
        .take(CHARACTERS)
        .map(|it| character(job, &of_part, *it))
        .collect();
    let url = |page: u64| query.with(&[("page", &page.to_string())]) + "#characters";
    let all = characters.len() as u64;
    Ok(Page {
        frame: Frame::of("jobs"),
        job: Link::job(job),
        sentence,
        facts: facts(rows),
        parts: parts(query, part, rows),
        by: by_choices(query, &columns, by),
        extremes: by.map_or_else(Vec::new, |by| best_and_worst(job, rows, part, by)),
        shown: match shown.len() {
            0 => format!("none of {}", show::count(all)),
            count => format!("{} to {} of {}", first + 1, first + count, show::count(all)),
        },
        previous: (1 < page).then(|| url(page - 1)),
        next: (first.saturating_add(CHARACTERS) < characters.len()).then(|| url(page + 1)),
        characters: shown,
        tables,
        plot: FRAME,
    })
}

/// How many images an evaluation makes. None: the job is none.
pub(super) fn images(view: &pb::JobView) -> Option<u64> {
    if view.work != "evaluate" {
        return None;
    }
    let spec = proto::job::parse(&view.job, &view.job_toml, None).ok()?;
    spec.work.evaluation().map(|work| work.images())
}

fn no_evaluation(view: &pb::JobView) -> Problem {
    let mut links: Vec<(String, String)> = Vec::new();
    for it in view.evaluations.iter().rev().take(8) {
        let text = format!("{} of step {}", it.job, show::count(it.step));
        links.push((text, format!("{}/evaluation", Link::job(&it.job).url)));
    }
    let known = if links.is_empty() {
        ""
    } else {
        "; these are its newest evaluations"
    };
    let text = format!(
        "job {} has [{}] and is no evaluation{known}",
        view.job, view.work
    );
    links.push((format!("job {}", view.job), Link::job(&view.job).url));
    Problem::not_found("No evaluation", &text, links)
}

fn part(query: &Query) -> Result<Part, Problem> {
    let words = Part::EACH.map(Part::name);
    let word = query.word("part", &words, "all, in-domain or out-of-domain")?;
    let found = Part::EACH.into_iter().find(|part| part.name() == word);
    Ok(found.unwrap_or(Part::All))
}

fn number_of(query: &Query) -> Result<u64, Problem> {
    Ok(query.number("page")?.unwrap_or(1).max(1))
}

/// The measure of the best and worst images. None: no image is scored.
fn by(query: &Query, columns: &[Column]) -> Result<Option<Column>, Problem> {
    let asked = query.text("by");
    if asked.is_empty() {
        return Ok(headline(columns));
    }
    let found = columns.iter().copied().find(|it| it.name() == asked);
    if found.is_some() {
        return Ok(found);
    }
    let names: Vec<String> = columns.iter().map(|it| it.name()).collect();
    let text = format!(
        "`by` is {asked:?}; it must be a measure that was computed: {}",
        names.join(", ")
    );
    let code = StatusCode::BAD_REQUEST;
    Err(Problem::new(code, "A value in the address is wrong", &text))
}

fn sentence(scored: &Scored, images: u64, view: &pb::JobView) -> String {
    let rows = show::count(scored.rows.len() as u64);
    let of = show::count(images);
    if scored.complete {
        format!("{rows} of {of} images are scored")
    } else {
        format!(
            "it is {}: what follows is of the first images, {rows} of {of}",
            view.phase
        )
    }
}

fn facts(rows: &[Row]) -> Vec<(&'static str, String)> {
    let distinct = |of: fn(&Row) -> &str| -> BTreeSet<&str> { rows.iter().map(of).collect() };
    let count = |of: fn(&Row) -> &str| show::count(distinct(of).len() as u64);
    let short = |it: &str| it.chars().take(12).collect::<String>();
    let versions = distinct(|row| &row.dataset_version);
    let versions: Vec<String> = versions.into_iter().map(short).collect();
    let cut = rows.iter().filter(|row| row.prompt_cut).count() as u64;
    let mut facts = vec![
        ("models", count(|row| &row.model)),
        ("characters", count(|row| &row.character)),
        ("prompts", count(|row| &row.prompt)),
        ("data set", versions.join(", ")),
    ];
    if cut != 0 {
        facts.push(("images of prompts that are cut", show::count(cut)));
    }
    facts
}

fn parts(query: &Query, open: Part, rows: &[Row]) -> Vec<Choice> {
    let has = |part: &Part| rows.iter().any(|row| part.has(row));
    let parts = Part::EACH.into_iter().filter(has);
    let choice = |part: Part| {
        let word = if part == Part::All { "" } else { part.name() };
        Choice {
            text: format!("{} characters", part.name()),
            url: or_all(query.with(&[("part", word), ("page", "")])),
            open: part == open,
        }
    };
    parts.map(choice).collect()
}

fn by_choices(query: &Query, columns: &[Column], open: Option<Column>) -> Vec<Choice> {
    let choice = |it: &Column| Choice {
        text: it.title(),
        url: query.with(&[("by", &it.name())]) + "#extremes",
        open: Some(*it) == open,
    };
    columns.iter().map(choice).collect()
}

fn or_all(url: String) -> String {
    if url.is_empty() { "?".to_owned() } else { url }
}

/// Computes what nobody has asked for yet, on a thread of its own: resampling takes a while.
async fn tables(scored: &Arc<Scored>, part: Part) -> Result<Arc<Tables>, Problem> {
    let lock = |scored: &Scored| {
        let tables = scored.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.get(&part).cloned()
    };
    if let Some(known) = lock(scored) {
        return Ok(known);
    }
    let rows = Arc::clone(scored);
    let computed = blocking(move || Arc::new(compute(&rows.rows, part))).await;
    let computed = computed.map_err(|error| super::images::unreadable(&error.to_string()))?;
    let mut tables = scored.tables.lock().unwrap_or_else(PoisonError::into_inner);
    tables.insert(part, Arc::clone(&computed));
    Ok(computed)
}

fn compute(rows: &[Row], part: Part) -> Tables {
    let (models, columns) = (models(rows), columns(rows));
    let titles = || columns.iter().map(|it| it.title());
    let scores = (!columns.is_empty()).then(|| Table {
        head: titles().collect(),
        rows: models
            .iter()
            .map(|model| {
                let cells = columns.iter();
                let cells = cells.map(|it| cell(estimate(rows, model, part, *it), false));
                ((*model).to_owned(), cells.collect())
            })
            .collect(),
    });
    let pairs = pairings(&models);
    let pairings = (!pairs.is_empty() && !columns.is_empty()).then(|| Table {
        head: titles().chain(["left out".to_owned()]).collect(),
        rows: pairs
            .iter()
            .map(|it| pairing(rows, *it, part, &columns))
            .collect(),
    });
    let swd = |it: &Column| matches!(it, Column::Swd(_));
    let swd: Vec<Column> = columns.iter().copied().filter(swd).collect();
    let excess = (!swd.is_empty()).then(|| Table {
        head: swd.iter().map(|it| it.title()).collect(),
        rows: models
            .iter()
            .map(|model| {
                let value = |it: &Column| excess(rows, model, part, *it);
                let cells = swd.iter().map(|it| plain(value(it), true));
                ((*model).to_owned(), cells.collect())
            })
            .collect(),
    });
    Tables {
        scores,
        paper: papers(rows, &models, part),
        pairings,
        excess,
        plots: plots(rows, &models, part, &columns),
    }
}

fn pairing(
    rows: &[Row],
    (a, b): (&str, &str),
    part: Part,
    columns: &[Column],
) -> (String, Vec<Cell>) {
    let mut left_out = 0;
    let mut cells = Vec::new();
    for column in columns {
        let found = difference(rows, (a, b), part, *column);
        left_out = left_out.max(found.as_ref().map_or(0, |it| it.left_out));
        cells.push(cell(found.map(|it| it.estimate), true));
    }
    cells.push(Cell {
        value: show::count(left_out),
        interval: String::new(),
    });
    (format!("{b} − {a}"), cells)
}

/// The paper's tables that have some of the models; their values are of all characters together.
fn papers(rows: &[Row], models: &[&str], part: Part) -> Vec<Paper> {
    let mut papers = Vec::new();
    if part != Part::All {
        return papers;
    }
    for table in &TABLES {
        let named: Vec<&str> = models.iter().copied().filter(|it| table.has(it)).collect();
        if named.is_empty() {
            continue;
        }
        let of_table = |row: &&Row| named.contains(&row.model.as_str());
        let of_table: Vec<&Row> = rows.iter().filter(of_table).collect();
        let heads = table
            .columns
            .iter()
            .flat_map(|it| [it.title(), "paper".to_owned(), "difference".to_owned()]);
        let line = |model: &&str| {
            let cells = table.columns.iter().flat_map(|column| {
                let ours = estimate(rows, model, part, *column);
                let paper = table.value(model, *column);
                let difference = ours.zip(paper).map(|(ours, paper)| ours.mean - paper);
                [
                    cell(ours, false),
                    plain(paper, false),
                    plain(difference, true),
                ]
            });
            ((*model).to_owned(), cells.collect())
        };
        papers.push(Paper {
            title: table.title,
            because: differences(&of_table),
            table: Table {
                head: heads.collect(),
                rows: named.iter().map(line).collect(),
            },
        });
    }
    papers
}

/// Those of the paper's tables, or that of the two measures that every evaluation has.
fn plots(rows: &[Row], models: &[&str], part: Part, columns: &[Column]) -> Vec<Plot> {
    let mut plots = Vec::new();
    for table in &TABLES {
        let named: Vec<&str> = models.iter().copied().filter(|it| table.has(it)).collect();
        let pairs = table.plots.iter();
        plots.extend(pairs.filter_map(|pair| plot(rows, &named, part, *pair, Some(table))));
    }
    if plots.is_empty() {
        let clip_i = Column::Of(Measure::ClipI);
        let others = [Measure::ClipT, Measure::Vqa, Measure::Lpips].map(Column::Of);
        let others = others.into_iter().filter(|it| columns.contains(it));
        plots.extend(others.filter_map(|it| plot(rows, models, part, (clip_i, it), None)));
    }
    plots
}

fn cell(found: Option<Estimate>, signed: bool) -> Cell {
    let Some(found) = found else {
        return plain(None, signed);
    };
    let number = |it: f64| four(it, signed);
    Cell {
        value: number(found.mean),
        interval: match found.low.zip(found.high) {
            Some((low, high)) => format!("{} to {}", number(low), number(high)),
            None => "one character".to_owned(),
        },
    }
}

fn plain(found: Option<f64>, signed: bool) -> Cell {
    Cell {
        value: found.map_or_else(|| show::NONE.to_owned(), |it| four(it, signed)),
        interval: String::new(),
    }
}

fn four(value: f64, signed: bool) -> String {
    if signed {
        format!("{value:+.4}")
    } else {
        format!("{value:.4}")
    }
}

fn best_and_worst(
    job: &str,
    rows: &[Row],
    part: Part,
    by: Column,
) -> Vec<(&'static str, Vec<Shown>)> {
    let of_part: Vec<Row> = rows.iter().filter(|row| part.has(row)).cloned().collect();
    let (high, low) = extremes(&of_part, by, EXTREMES);
    let (best, worst) = if by.higher_is_better() {
        (high, low)
    } else {
        (low, high)
    };
    let one = |row: &&Row| shown(job, row, by.of(row));
    let many = |rows: Vec<&Row>| rows.iter().map(one).collect();
    vec![("Best", many(best)), ("Worst", many(worst))]
}

fn shown(job: &str, row: &Row, value: Option<f64>) -> Shown {
    Shown {
        url: image_url(job, &row.image),
        value: value.map_or_else(String::new, |it| four(it, false)),
        text: format!(
            "{} of {}, “{}”, seed {}, sample {}",
            row.model, row.character, row.prompt, row.seed, row.sample
        ),
    }
}

pub(super) fn image_url(job: &str, image: &str) -> String {
    format!("/jobs/{}/images/{}", in_url(job), in_url(image))
}

/// The first image of each prompt and model.
fn character(job: &str, rows: &[&Row], (name, domain): (&str, &'static str)) -> Character {
    let own: Vec<&Row> = rows
        .iter()
        .copied()
        .filter(|row| row.character == name)
        .collect();
    let mut prompts: Vec<&str> = Vec::new();
    let mut models: Vec<&str> = Vec::new();
    for row in &own {
        if !prompts.contains(&row.prompt.as_str()) {
            prompts.push(&row.prompt);
        }
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    let more = prompts.len().saturating_sub(PROMPTS);
    prompts.truncate(PROMPTS);
    let line = |model: &&str| {
        let image = |prompt: &&str| {
            let found = own
                .iter()
                .find(|row| row.model == *model && row.prompt == *prompt);
            found.map(|row| shown(job, row, None))
        };
        ((*model).to_owned(), prompts.iter().map(image).collect())
    };
    Character {
        name: name.to_owned(),
        domain,
        rows: models.iter().map(line).collect(),
        prompts: prompts.iter().map(|it| (*it).to_owned()).collect(),
        more,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const HOSTILE: &str = "\"><script>alert(1)</script>\u{202e}";

    /// An image of a model and a character, with two measures.
    fn row(unit: u64, model: &str, character: &str, clip_i: f64) -> Row {
        let domain = if character == "out" {
            "out-of-domain"
        } else {
            "in-domain"
        };
        serde_json::from_value(json!({
            "unit": unit, "key": "k", "pair": format!("{character}-{}", unit % 2), "plan": "p",
            "dataset_version": "v", "model": model, "model_digest": "m", "job": "r-1", "step": 4,
            "domain": domain, "character": character, "sample_id": null, "prompt": HOSTILE,
            "prompt_cut": false, "seed": 3, "sample": 0, "noise_seed": 1, "method": "ddim",
            "steps": 2, "guidance": 1.0, "reference_guidance": 1.0, "negative_prompt": "",
            "knobs": "{}", "resolution": 32, "references": [], "concepts": [],
            "environment": "cpu", "image": format!("{unit:07}.png"), "image_sha256": "s",
            "clip": "c", "clip_i_each": [], "clip_i_whole_each": [], "clip_t_sliced": null,
            "vqa": null, "scores": { "clip_i": clip_i, "clip_t": 0.25, "face_distance": clip_i },
        }))
        .unwrap()
    }

    /// Two models of both pairings, three characters.
    fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for (at, model) in ["IP-Adapter-0.5-a", "IP-Adapter-0.5-b"]
            .into_iter()
            .enumerate()
        {
            for (character, clip_i) in [("one", 0.5), ("two", 0.75), ("out", 0.25)] {
                let unit = rows.len() as u64;
                rows.push(row(2 * unit, model, character, clip_i + 0.01 * at as f64));
            }
        }
        rows
    }

    #[test]
    fn a_table_has_means_with_intervals_and_the_paper_s_values_and_differences() {
        let all = compute(&rows(), Part::All);
        let scores = all.scores.unwrap();
        let at = scores.head.iter().position(|it| it == "CLIP-I").unwrap();
        let cell = &scores.rows[0].1[at];
        assert_eq!(
            (cell.value.as_str(), cell.interval.as_str()),
            ("0.5000", "0.2500 to 0.7500")
        );
        let paper = &all.paper[0];
        assert_eq!((paper.title, paper.table.rows.len()), ("Table 2", 2));
        assert_eq!(paper.table.rows[0].1[1].value, "0.7692");
        assert!(
            paper
                .because
                .iter()
                .any(|it| it.contains("3 images per model"))
        );
        let pairing = &all.pairings.unwrap().rows[0];
        assert_eq!(pairing.0, "IP-Adapter-0.5-b − IP-Adapter-0.5-a");
        assert_eq!(pairing.1[at].value, "+0.0100");
        assert_eq!((all.plots.len(), all.plots[0].has_paper), (1, true));
        let part = compute(&rows(), Part::Of(proto::evaluate::Domain::OutOfDomain));
        let cell = &part.scores.unwrap().rows[0].1[at];
        assert_eq!(
            (cell.value.as_str(), cell.interval.as_str()),
            ("0.2500", "one character")
        );
        assert!(part.paper.is_empty());
        let none: Vec<Row> = rows()
            .into_iter()
            .map(|row| Row {
                scores: metric::Scores::new(),
                ..row
            })
            .collect();
        let none = compute(&none, Part::All);
        assert!(none.scores.is_none() && none.plots.is_empty() && none.excess.is_none());
    }

    #[test]
    fn the_worst_of_a_distance_is_the_largest() {
        let rows = rows();
        let first = |by| {
            let found = best_and_worst("e-1", &rows, Part::All, by);
            found
                .into_iter()
                .map(|(_, shown)| shown[0].value.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(first(Column::Of(Measure::ClipI)), ["0.7600", "0.2500"]);
        assert_eq!(
            first(Column::Of(Measure::FaceDistance)),
            ["0.2500", "0.7600"]
        );
    }

    #[test]
    fn the_page_shows_every_part_and_escapes_prompts() {
        let rows = rows();
        let made = |query: &str| {
            let query = Query::parse(Some(query));
            let part = part(&query)?;
            let tables = Arc::new(compute(&rows, part));
            made("e-1", &rows, tables, part, &query, "all".to_owned())
        };
        let page = made("").unwrap().render().unwrap();
        let parts = [
            "<svg viewBox=\"0 0 420 316\"",
            "hollow",
            "1 to 3 of 3",
            "/jobs/e-1/images/0000004.png",
            "Best</h3>",
            "Worst</h3>",
            "in-domain characters",
            "by=clip_t",
        ];
        for part in parts {
            assert!(page.contains(part), "{part:?} is not in {page}");
        }
        assert!(
            !page.contains("<script>alert") && !page.contains('\u{202e}'),
            "{page}"
        );
        let page = made("part=out-of-domain&page=9").unwrap().render().unwrap();
        assert!(
            page.contains("none of 1") && page.contains("page=8"),
            "{page}"
        );
        let wrong = made("by=beauty").unwrap_err();
        assert!(wrong.text().contains("clip_i, clip_t"), "{}", wrong.text());
        assert!(made("part=x").is_err());
    }
}
