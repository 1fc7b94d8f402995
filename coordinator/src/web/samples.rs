//! Images on the pages of jobs: those of a job of images, and those of a training job by step, each
//! with what it was made from. A script asks for those of a step as the cursor of the curves moves.

use super::evaluation::{image_url, images as images_of};
use super::images::names;
use super::problem::Problem;
use super::query::Query;
use super::rows::Link;
use super::show;
use super::{Web, query_of};
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use proto::id::JobId;
use proto::limits::cut;
use proto::pb;
use proto::sample::{SampleUnit, SampleWork};
use proto::spec::Work;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Images on a page.
const ROWS: usize = 24;
/// Longer prompts are cut.
const PROMPT_BYTES: usize = 120;

/// A page of images.
#[derive(Debug)]
pub(super) struct Gallery {
    pub(super) images: Vec<Image>,
    pub(super) shown: String,
    /// The job that made them, if it is another one.
    pub(super) of: Option<Link>,
    pub(super) previous: Option<String>,
    pub(super) next: Option<String>,
    /// Of a training job: steps with images.
    pub(super) steps: Vec<Step>,
    /// Why there is none.
    pub(super) empty: String,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) step: u64,
    pub(super) text: String,
    pub(super) url: String,
    pub(super) open: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) url: String,
    /// The same for images of other weights that were made from the same prompt, seed and noise.
    /// Empty: it is not known.
    pub(super) key: String,
    /// What it was made from, or its file's name.
    pub(super) text: String,
}

/// The images of a job; of a training job those of the newest step, or of the one that the query
/// names. None: jobs of this kind make none.
pub(super) async fn gallery(
    web: &Web,
    view: &pb::JobView,
    query: &Query,
) -> Result<Option<Gallery>, Problem> {
    let (maker, chosen) = match view.work.as_str() {
        "sample" | "evaluate" => (view.job.clone(), None),
        "train" => match of_step(view, query.number("sample")?)? {
            Some(it) => (it.job.clone(), Some(it.step)),
            None => return Ok(none_yet(view)),
        },
        _ => return Ok(None),
    };
    let images = all(web, &maker).await?;
    if images.is_empty() && chosen.is_none() {
        return Ok(None);
    }
    let page = query.number("images")?.unwrap_or(1).max(1);
    let first = usize::try_from(page - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(ROWS);
    let url = |page: u64| query.with(&[("images", &page.to_string())]) + "#images";
    let count = images.len();
    let images: Vec<Image> = images.into_iter().skip(first).take(ROWS).collect();
    Ok(Some(Gallery {
        shown: match images.len() {
            0 => format!("none of {}", show::count(count as u64)),
            shown => format!(
                "{} to {} of {}",
                first + 1,
                first + shown,
                show::count(count as u64)
            ),
        },
        of: chosen.map(|_| Link::job(&maker)),
        previous: (1 < page).then(|| url(page - 1)),
        next: (first.saturating_add(ROWS) < count).then(|| url(page + 1)),
        steps: steps(view, chosen, query),
        images,
        empty: String::new(),
    }))
}

/// Evaluations of a training job whose images there are.
pub(super) fn scored(view: &pb::JobView) -> impl DoubleEndedIterator<Item = &pb::Evaluation> {
    view.evaluations.iter().filter(|it| it.state == "scored")
}

/// None: there is none yet.
fn of_step(view: &pb::JobView, step: Option<u64>) -> Result<Option<&pb::Evaluation>, Problem> {
    let Some(step) = step else {
        return Ok(scored(view).next_back());
    };
    if let Some(found) = scored(view).find(|it| it.step == step) {
        return Ok(Some(found));
    }
    let newest = scored(view).rev().take(8);
    let url = |step: u64| format!("{}?sample={step}#images", Link::job(&view.job).url);
    let mut links: Vec<(String, String)> = newest
        .map(|it| (format!("step {}", show::count(it.step)), url(it.step)))
        .collect();
    let known = if links.is_empty() {
        "it has none yet"
    } else {
        "the newest are of these"
    };
    links.push((format!("job {}", view.job), Link::job(&view.job).url));
    let text = format!("job {} has no images of step {step}; {known}", view.job);
    Err(Problem::not_found("No such images", &text, links))
}

/// What to expect of a job that makes images while it trains.
fn none_yet(view: &pb::JobView) -> Option<Gallery> {
    let every = every(view)?;
    let next = view.evaluation_due.unwrap_or(every);
    let running = view.evaluations.iter().find(|it| it.state != "unscored");
    let empty = match running {
        Some(it) => format!(
            "The first are being made by {}, of step {}.",
            it.job, it.step
        ),
        None => format!(
            "None yet: they are made every {} steps, the first of step {}.",
            show::count(every),
            show::count(next)
        ),
    };
    Some(Gallery {
        images: Vec::new(),
        shown: String::new(),
        of: None,
        previous: None,
        next: None,
        steps: Vec::new(),
        empty,
    })
}

/// None: it makes no images while it trains.
fn every(view: &pb::JobView) -> Option<u64> {
    // Most jobs do not, and need not be parsed.
    if !view.job_toml.contains("samples_every") && !view.job_toml.contains("evaluate_every") {
        return None;
    }
    let spec = proto::job::parse(&view.job, &view.job_toml, None).ok()?;
    match spec.work {
        Work::Train(work) => Some(work.evaluation?.every),
        _ => None,
    }
}

fn steps(view: &pb::JobView, chosen: Option<u64>, query: &Query) -> Vec<Step> {
    if chosen.is_none() {
        return Vec::new();
    }
    let step = |it: &pb::Evaluation| Step {
        step: it.step,
        text: show::count(it.step),
        url: query.with(&[("sample", &it.step.to_string()), ("images", "")]) + "#images",
        open: Some(it.step) == chosen,
    };
    scored(view).map(step).collect()
}

/// All images of a job that makes images, in order.
pub(super) async fn all(web: &Web, maker: &str) -> Result<Vec<Image>, Problem> {
    let id = JobId(maker.to_owned());
    let names = names(web, &id).await?;
    let mut known = match web.jobs.get(&id).await? {
        Some(view) => made_from(web, &id, &view).await?,
        None => HashMap::new(),
    };
    let image = |name: &String| {
        let (key, text) = known.remove(name).unwrap_or_else(|| {
            let name = name.trim_end_matches(".png").trim_start_matches('0');
            (String::new(), name.to_owned())
        });
        Image {
            url: image_url(maker, name),
            key,
            text,
        }
    };
    Ok(names.iter().map(image).collect())
}

/// Key and text of the images by their names, as far as they are known.
async fn made_from(
    web: &Web,
    id: &JobId,
    view: &pb::JobView,
) -> Result<HashMap<String, (String, String)>, Problem> {
    if let Some(count) = images_of(view) {
        let scored = web.evaluated.rows(&web.jobs.checkpoints, id, count).await;
        // A table that cannot be shown is no reason to hide the images.
        let Ok(scored) = scored else {
            return Ok(HashMap::new());
        };
        let several = scored.rows.windows(2).any(|it| it[0].model != it[1].model);
        let text = |row: &model_data::evaluation::Row| {
            let of = if several {
                format!("{} of {}", row.model, row.character)
            } else {
                row.character.clone()
            };
            let sample = match row.sample {
                0 => String::new(),
                sample => format!(", sample {sample}"),
            };
            let prompt = cut(&row.prompt, PROMPT_BYTES);
            format!("{of}, seed {}{sample}: “{prompt}”", row.seed)
        };
        let one = |row| {
            let row: &model_data::evaluation::Row = row;
            (row.image.clone(), (row.pair.clone(), text(row)))
        };
        return Ok(scored.rows.iter().map(one).collect());
    }
    let spec = proto::job::parse(&view.job, &view.job_toml, None);
    Ok(match spec.map(|it| it.work) {
        Ok(Work::Sample(work)) => of_units(&work),
        _ => HashMap::new(),
    })
}

fn of_units(work: &SampleWork) -> HashMap<String, (String, String)> {
    let mut found = HashMap::new();
    for unit in 0..work.images().min(super::images::LISTED as u64) {
        let Some(SampleUnit::Image {
            subject,
            prompt,
            seed,
        }) = work.unit(unit)
        else {
            continue;
        };
        let seed = work.seeds.get(seed).copied().unwrap_or_default();
        let prompt = work.prompts.get(prompt).map(String::as_str);
        let quoted = prompt.map_or_else(String::new, |it| format!(": “{}”", cut(it, PROMPT_BYTES)));
        let key = format!("{subject}/{seed}/{}", prompt.unwrap_or_default());
        let text = format!("subject {}, seed {seed}{quoted}", subject + 1);
        found.insert(format!("{unit:07}.png"), (key, text));
    }
    found
}

/// `/api/jobs/ID/samples?sample=STEP`: the first images of a step of a training job, as JSON.
pub(super) async fn api(State(web): State<Web>, Path(job): Path<String>, uri: Uri) -> Response {
    match read(&web, &job, &query_of(&uri)).await {
        Ok(object) => super::api::json_answer(StatusCode::OK, &object),
        Err(problem) => {
            super::api::json_answer(problem.status, &json!({ "error": problem.text() }))
        }
    }
}

async fn read(web: &Web, job: &str, query: &Query) -> Result<Value, Problem> {
    let (_, view) = web.job(job).await?;
    let gallery = gallery(web, &view, query).await?;
    let (images, shown, of) = match &gallery {
        Some(it) => (&it.images[..], it.shown.as_str(), it.of.as_ref()),
        None => (&[][..], "", None),
    };
    let images: Vec<Value> = images
        .iter()
        .map(|it| json!({ "url": it.url, "text": proto::printable::printable(&it.text) }))
        .collect();
    Ok(json!({
        "shown": shown,
        "job": of.map(|it| &it.text),
        "url": of.map(|it| &it.url),
        "images": images,
    }))
}
