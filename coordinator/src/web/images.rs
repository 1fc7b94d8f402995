//! Images that jobs have made: a page of them on the job's page, and the files themselves. They are
//! written once under a name that never means another image.

use super::Web;
use super::problem::Problem;
use super::query::Query;
use super::show::{self, in_url};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use proto::id::JobId;
use proto::pb;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Images on a page.
const ROWS: usize = 24;
/// Names that are listed of a job.
const LISTED: usize = 40_000;
/// Bytes of an image.
const IMAGE_BYTES_MAX: u64 = 16 << 20;
/// A list of a job that still makes images is read again after this time.
const LISTED_FOR: Duration = Duration::from_secs(30);
const JOBS: usize = 64;
/// How every PNG file begins. What begins otherwise is not shown.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A page of images.
#[derive(Debug)]
pub(super) struct Gallery {
    pub(super) images: Vec<Image>,
    pub(super) shown: String,
    /// The job that made them, if it is another one.
    pub(super) of: Option<super::rows::Link>,
    pub(super) previous: Option<String>,
    pub(super) next: Option<String>,
    /// Steps with images: what they are called, their URLs, and which is shown.
    pub(super) steps: Vec<(String, String, bool)>,
}

#[derive(Debug)]
pub(super) struct Image {
    pub(super) url: String,
    pub(super) name: String,
}

type Listed = HashMap<String, (Instant, Arc<Vec<String>>)>;

/// Lists of images of jobs that were looked at. Cheap to clone; all clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Galleries(Arc<Mutex<Listed>>);

impl Galleries {
    fn known(&self, job: &JobId) -> Option<Arc<Vec<String>>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, names) = kept.get(&job.0)?;
        (at.elapsed() < LISTED_FOR).then(|| Arc::clone(names))
    }

    fn keep(&self, job: &JobId, names: &Arc<Vec<String>>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (at, _)| at.elapsed() < LISTED_FOR);
        if kept.len() < JOBS {
            kept.insert(job.0.clone(), (Instant::now(), Arc::clone(names)));
        }
    }
}

/// The images of a job, or of the newest evaluation of a training job, or of the one of the step
/// that the query names. None: there are none.
pub(super) async fn gallery(
    web: &Web,
    view: &pb::JobView,
    query: &Query,
) -> Result<Option<Gallery>, Problem> {
    let scored = || view.evaluations.iter().filter(|it| it.state == "scored");
    let (maker, chosen) = if view.work == "train" {
        let asked = query.number("sample")?;
        let found = match asked {
            Some(step) => scored().find(|it| it.step == step),
            None => scored().next_back(),
        };
        match found {
            Some(it) => (it.job.clone(), Some(it.step)),
            None => return Ok(None),
        }
    } else if matches!(view.work.as_str(), "sample" | "evaluate") {
        (view.job.clone(), None)
    } else {
        return Ok(None);
    };
    let names = names(web, &JobId(maker.clone())).await?;
    if names.is_empty() {
        return Ok(None);
    }
    let page = query.number("images")?.unwrap_or(1).max(1);
    let first = usize::try_from(page - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(ROWS);
    let images: Vec<Image> = names
        .iter()
        .skip(first)
        .take(ROWS)
        .map(|name| Image {
            url: format!("/jobs/{}/images/{}", in_url(&maker), in_url(name)),
            name: name
                .trim_end_matches(".png")
                .trim_start_matches('0')
                .to_owned(),
        })
        .collect();
    let url = |page: u64| query.with(&[("images", &page.to_string())]) + "#images";
    let steps = scored().map(|it| {
        let step = it.step.to_string();
        let changes = [("sample", step.as_str()), ("images", "")];
        let text = show::count(it.step);
        (
            text,
            query.with(&changes) + "#images",
            Some(it.step) == chosen,
        )
    });
    Ok(Some(Gallery {
        shown: format!(
            "{} to {} of {}",
            first + 1,
            first + images.len(),
            show::count(names.len() as u64)
        ),
        of: chosen.map(|_| super::rows::Link::job(&maker)),
        previous: (1 < page).then(|| url(page - 1)),
        next: (first.saturating_add(ROWS) < names.len()).then(|| url(page + 1)),
        steps: steps.collect(),
        images,
    }))
}

/// Names of a job's images, grids first: their names begin with a letter.
async fn names(web: &Web, job: &JobId) -> Result<Arc<Vec<String>>, Problem> {
    if let Some(known) = web.galleries.known(job) {
        return Ok(known);
    }
    let listed = web.jobs.checkpoints.outputs(job, LISTED).await;
    let listed = listed.map_err(|error| unreadable(&error.to_string()))?;
    let mut names: Vec<String> = listed.into_iter().filter(|it| is_image(it)).collect();
    names.sort_by_key(|name| {
        (
            name.starts_with(|it: char| it.is_ascii_digit()),
            name.clone(),
        )
    });
    let names = Arc::new(names);
    web.galleries.keep(job, &names);
    Ok(names)
}

fn unreadable(error: &str) -> Problem {
    let code = StatusCode::INTERNAL_SERVER_ERROR;
    Problem::new(code, "The store cannot be read", error)
}

/// Whether a name is one that jobs give to images.
fn is_image(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".png") else {
        return false;
    };
    let allowed = |it: char| it.is_ascii_alphanumeric() || "-_".contains(it);
    !stem.is_empty() && stem.len() <= 64 && stem.chars().all(allowed)
}

pub(super) async fn file(
    State(web): State<Web>,
    Path((job, name)): Path<(String, String)>,
) -> Response {
    match read(&web, &job, &name).await {
        Ok(bytes) => {
            let headers = [
                (header::CONTENT_TYPE, "image/png"),
                (header::CACHE_CONTROL, "private, max-age=86400"),
            ];
            (headers, bytes).into_response()
        }
        Err(problem) => super::answer(Err(problem)),
    }
}

async fn read(web: &Web, job: &str, name: &str) -> Result<bytes::Bytes, Problem> {
    let (id, _) = web.job(job).await?;
    let missing = || {
        let text = format!("job {job} has no image {name:?}");
        let link = super::rows::Link::job(&id.0);
        Problem::not_found("No such image", &text, vec![(link.text, link.url)])
    };
    if !is_image(name) {
        return Err(missing());
    }
    let read = web
        .jobs
        .checkpoints
        .read_output(&id, name, IMAGE_BYTES_MAX)
        .await;
    let bytes = read
        .map_err(|error| unreadable(&error))?
        .ok_or_else(missing)?;
    if !bytes.starts_with(PNG) {
        return Err(unreadable(&format!("{name} of {job} is no PNG file")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_images_are_read_from_the_store() {
        for name in ["0000012.png", "grid.png", "map-3_a.png"] {
            assert!(is_image(name), "{name}");
        }
        for name in [
            "rows.parquet",
            ".png",
            "../x.png",
            "a/b.png",
            "a.png.json",
            "a b.png",
        ] {
            assert!(!is_image(name), "{name}");
        }
    }
}
