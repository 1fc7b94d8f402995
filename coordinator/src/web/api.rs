//! What scripts of the pages ask for: the steps of a job as columns of numbers.

use super::problem::Problem;
use super::query::Query;
use super::{Web, query_of};
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// Points of a curve: the least and the largest value of each cell are two.
const POINTS: u64 = 2000;

/// `/api/jobs/ID/steps?from=1&to=5000&max=2000`: steps `from` to `to` (all), at most `max` points a
/// curve. Each series has means, and of cells with several steps the least and the largest value;
/// `null` is a gap. `complete` is false while older steps are still being read; ask again then.
pub(super) async fn steps(State(web): State<Web>, Path(job): Path<String>, uri: Uri) -> Response {
    match read(&web, &job, &query_of(&uri)).await {
        Ok(object) => json_answer(StatusCode::OK, &Value::Object(object)),
        Err(problem) => json_answer(problem.status, &json!({ "error": problem.text() })),
    }
}

async fn read(web: &Web, job: &str, query: &Query) -> Result<Map<String, Value>, Problem> {
    let (_, view) = web.job(job).await?;
    let from = query.number("from")?.unwrap_or(1);
    let to = query.number("to")?.unwrap_or(u64::MAX);
    let max = query.number("max")?.unwrap_or(POINTS).clamp(4, POINTS);
    if to < from || (view.step != 0 && view.step < from) {
        let wrong = if to < from {
            format!("`to` is {to}, before `from`, {from}")
        } else {
            format!("`from` is {from}, after the last step")
        };
        let text = format!("{wrong}; job {job} has steps 1 to {}", view.step);
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "No such steps",
            &text,
        ));
    }
    let most = usize::try_from(max / 2).unwrap_or(2);
    let mut object = web.curves.range(&view, from..=to, most).await?;
    object.insert("job".into(), view.job.clone().into());
    object.insert("step".into(), view.step.into());
    object.insert("scores".into(), scores(&view));
    Ok(object)
}

/// Scores of evaluations by name: steps and means.
fn scores(view: &proto::pb::JobView) -> Value {
    let mut scores: Map<String, Value> = Map::new();
    let scored = view.evaluations.iter().filter(|it| it.state == "scored");
    for it in scored {
        let best = it.score.map(|score| ("keep_best", score));
        let means = it.means.iter().map(|mean| (mean.name.as_str(), mean.value));
        for (name, value) in means.chain(best) {
            let entry = scores.entry(name).or_insert_with(|| json!([]));
            if let Value::Array(points) = entry {
                points.push(json!([it.step, value]));
            }
        }
    }
    scores.into()
}

pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, value.to_string()).into_response()
}
