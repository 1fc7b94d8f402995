//! The scores on the page of a job: those of a training job by step, and the means of each model of
//! an evaluation.

use crate::web::Web;
use crate::web::rows::Link;
use crate::web::show;
use proto::id::JobId;
use proto::pb;
use proto::phase::Phase;

#[derive(Debug)]
pub(super) struct Evaluations {
    pub(super) names: Vec<String>,
    pub(super) rows: Vec<EvaluationRow>,
    pub(super) note: String,
}

#[derive(Debug)]
pub(super) struct EvaluationRow {
    pub(super) step: String,
    pub(super) job: Link,
    pub(super) state: String,
    pub(super) best: bool,
    pub(super) values: Vec<String>,
    pub(super) reason: String,
}

/// Mean scores of each model of an evaluation.
#[derive(Debug)]
pub(super) struct ModelMeans {
    pub(super) names: Vec<String>,
    pub(super) rows: Vec<(String, String, Vec<String>)>,
    pub(super) note: String,
}

pub(super) fn evaluations(view: &pb::JobView) -> Option<Evaluations> {
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
pub(super) async fn means(web: &Web, id: &JobId, view: &pb::JobView) -> Option<ModelMeans> {
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
        note: String::new(),
        names,
    })
}
