//! Files of images that jobs have made: which there are, and their bytes. They are written once
//! under a name that never means another image.

use super::Web;
use super::problem::Problem;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use proto::id::JobId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names that are listed of a job.
pub(super) const LISTED: usize = 40_000;
/// Bytes of an image.
const IMAGE_BYTES_MAX: u64 = 16 << 20;
/// A list of a job that still makes images is read again after this time.
const LISTED_FOR: Duration = Duration::from_secs(30);
const JOBS: usize = 64;
/// How every PNG file begins. What begins otherwise is not shown.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

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

/// Names of a job's images, grids first: their names begin with a letter.
pub(super) async fn names(web: &Web, job: &JobId) -> Result<Arc<Vec<String>>, Problem> {
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

pub(super) fn unreadable(error: &str) -> Problem {
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
