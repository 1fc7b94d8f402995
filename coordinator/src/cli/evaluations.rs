//! The evaluations of a training job's checkpoints, as text, as a table and as points of a curve.

use super::table;
use proto::pb;

/// The name of `checkpoint.keep_best`'s value among the scores.
const KEEP_BEST: &str = "keep_best";

fn scored(view: &pb::JobView) -> impl Iterator<Item = &pb::Evaluation> {
    view.evaluations.iter().filter(|it| it.state == "scored")
}

/// A sentence for every evaluation that has ended.
pub(crate) fn ended(view: &pb::JobView) -> impl Iterator<Item = String> {
    view.evaluations
        .iter()
        .filter_map(|it| match it.state.as_str() {
            "scored" => Some(format!(
                "step {} is evaluated: {}; images in {}",
                it.step,
                scores(it),
                images_of(view, &it.job)
            )),
            "unscored" => Some(format!(
                "step {} has no scores: {}: {}",
                it.step, it.job, it.reason
            )),
            _ => None,
        })
}

/// The URL of the folder of a job's images.
pub(crate) fn images_of(view: &pb::JobView, job: &str) -> String {
    format!("{}/jobs/{job}/images", view.store_url.trim_end_matches('/'))
}

/// `clip_i 0.7312, clip_t 0.2311, keep_best 0.1690`.
fn scores(it: &pb::Evaluation) -> String {
    let means = it.means.iter().map(|mean| (mean.name.as_str(), mean.value));
    let best = it.score.map(|score| (KEEP_BEST, score));
    let mut parts: Vec<String> = means
        .chain(best)
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    if parts.is_empty() {
        parts.push("no image has a score".to_owned());
    }
    if it.missing != 0 {
        let all = it.images + it.missing;
        parts.push(format!("{} of {all} images failed", it.missing));
    }
    parts.join(", ")
}

/// What is evaluated now and next, and what never is; None if there is nothing of it.
pub(crate) fn open_text(view: &pb::JobView) -> Option<String> {
    let open = view.evaluations.iter();
    let open = open.filter(|it| it.state == "running" || it.state == "reading");
    let mut parts: Vec<String> = open
        .map(|it| format!("of step {} by {}", it.step, it.job))
        .collect();
    let due = view.evaluation_due;
    parts.extend(due.map(|step| format!("of step {step} next")));
    if view.evaluations_skipped != 0 {
        let skipped = view.evaluations_skipped;
        parts.push(format!(
            "{skipped} checkpoints skipped, because a newer one was due first"
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The best checkpoint by `checkpoint.keep_best`, if there is one.
pub(crate) fn best_text(view: &pb::JobView) -> Option<String> {
    let best = view.evaluations.iter().find(|it| it.best)?;
    Some(format!(
        "best checkpoint: step {} ({:.4})",
        best.step,
        best.score.unwrap_or_default()
    ))
}

/// The names of all scores, in the order of the first evaluation that has them.
fn names(view: &pb::JobView) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for it in scored(view) {
        let best = it.score.map(|_| KEEP_BEST);
        for name in it.means.iter().map(|mean| mean.name.as_str()).chain(best) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

fn value(it: &pb::Evaluation, name: &str) -> Option<f64> {
    if name == KEEP_BEST {
        return it.score;
    }
    let mean = it.means.iter().find(|mean| mean.name == name)?;
    Some(mean.value)
}

/// Steps and values of each score, by its name.
pub(crate) fn curves(view: &pb::JobView) -> Vec<(String, Vec<(u64, f64)>)> {
    let points = |name: &str| {
        scored(view)
            .filter_map(|it| Some((it.step, value(it, name)?)))
            .collect()
    };
    let names = names(view).into_iter();
    names.map(|name| (name.to_owned(), points(name))).collect()
}

/// Prints a table with a row for each evaluation.
pub(crate) fn print(view: &pb::JobView) {
    if view.evaluations.is_empty() {
        return;
    }
    let names = names(view);
    let upper: Vec<String> = names.iter().map(|name| name.to_uppercase()).collect();
    let mut header = vec!["STEP", "EVALUATION", "STATE"];
    header.extend(upper.iter().map(String::as_str));
    header.extend(["IMAGES", "NOTE"]);
    let mut table = table(&header);
    for it in &view.evaluations {
        let mut row = vec![it.step.to_string(), it.job.clone(), it.state.clone()];
        let cell = |name: &&str| value(it, name).map_or("-".to_owned(), |it| format!("{it:.4}"));
        row.extend(names.iter().map(cell));
        row.push(match it.state.as_str() {
            "scored" if it.missing != 0 => format!("{}, {} failed", it.images, it.missing),
            "scored" => it.images.to_string(),
            _ => "-".to_owned(),
        });
        row.push(if it.best {
            "best".to_owned()
        } else {
            it.reason.clone()
        });
        table.add_cells(&row);
    }
    table.print_below();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> pb::JobView {
        let mean = |name: &str, value| pb::Score {
            name: name.to_owned(),
            value,
        };
        let evaluation = |step, state: &str| pb::Evaluation {
            step,
            state: state.to_owned(),
            job: format!("demo-eval-{step}"),
            ..Default::default()
        };
        pb::JobView {
            evaluations: vec![
                pb::Evaluation {
                    images: 3,
                    missing: 1,
                    means: vec![mean("clip_i", 0.5), mean("clip_t", 0.25)],
                    score: Some(0.125),
                    best: true,
                    ..evaluation(2, "scored")
                },
                pb::Evaluation {
                    reason: "it was cancelled".to_owned(),
                    ..evaluation(4, "unscored")
                },
                evaluation(6, "running"),
            ],
            evaluation_due: Some(8),
            evaluations_skipped: 2,
            store_url: "file:///store".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn each_end_is_a_sentence_with_its_scores() {
        let ended: Vec<String> = ended(&view()).collect();
        assert_eq!(
            ended,
            [
                "step 2 is evaluated: clip_i 0.5000, clip_t 0.2500, keep_best 0.1250, 1 of 4 \
                 images failed; images in file:///store/jobs/demo-eval-2/images",
                "step 4 has no scores: demo-eval-4: it was cancelled",
            ]
        );
        assert_eq!(
            open_text(&view()).as_deref(),
            Some(
                "of step 6 by demo-eval-6; of step 8 next; 2 checkpoints skipped, because a newer \
                 one was due first"
            )
        );
        assert_eq!(
            best_text(&view()).as_deref(),
            Some("best checkpoint: step 2 (0.1250)")
        );
        assert_eq!(open_text(&pb::JobView::default()), None);
    }

    #[test]
    fn each_score_is_a_curve() {
        let expected = [
            ("clip_i".to_owned(), vec![(2, 0.5)]),
            ("clip_t".to_owned(), vec![(2, 0.25)]),
            ("keep_best".to_owned(), vec![(2, 0.125)]),
        ];
        assert_eq!(curves(&view()), expected);
    }
}
