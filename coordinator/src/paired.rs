//! The paired difference of two trainings that drew the same: their losses at equal steps, and how
//! sure a difference of them is.

use metric::{Bootstrap, Estimate, bootstrap};
use proto::pb;
use proto::spec::Work;
use std::collections::BTreeMap;

/// Losses of neighbouring steps resemble each other, because the weights do, so that an interval
/// resamples stretches of steps and not steps: so many in all.
const STRETCHES: usize = 20;
/// Steps in common below which an interval would be of a few values.
pub(crate) const STEPS_MIN: usize = 2 * STRETCHES;

/// Why two jobs are no twins, as the rest of a sentence that begins with "not paired, because".
/// None: both drew the same samples and the same noise in every step.
pub(crate) fn apart(a: &pb::JobView, b: &pb::JobView) -> Option<String> {
    let parsed = |view: &pb::JobView| {
        let spec = proto::job::parse(&view.job, &view.job_toml, None).ok()?;
        match spec.work {
            Work::Train(work) => Some(work),
            _ => None,
        }
    };
    let (Some(first), Some(second)) = (parsed(a), parsed(b)) else {
        return Some("only jobs that train have losses".to_owned());
    };
    let version = |view: &pb::JobView| view.dataset_version.clone();
    let mut found = proto::twin::differences(&first, &second);
    if version(a) != version(b) {
        found.push(("the data set's version", version(a), version(b)));
    }
    let (field, a, b) = found.into_iter().next()?;
    Some(format!("{field} is {a} and {b}: they draw differently"))
}

/// Mean of `b`'s loss minus `a`'s over the steps that both have, with its interval of 95 % by a
/// bootstrap of stretches of steps. None: fewer than [`STEPS_MIN`] steps in common. A step that was
/// computed twice counts as it was last.
pub(crate) fn difference(a: &[pb::StepReport], b: &[pb::StepReport]) -> Option<Estimate> {
    let losses = |steps: &[pb::StepReport]| -> BTreeMap<u64, f64> {
        steps.iter().map(|it| (it.step, it.loss)).collect()
    };
    let (a, b) = (losses(a), losses(b));
    let differences: Vec<f64> = b
        .iter()
        .filter_map(|(step, loss)| Some(loss - a.get(step)?))
        .filter(|it| it.is_finite())
        .collect();
    if differences.len() < STEPS_MIN {
        return None;
    }
    let count = differences.len();
    let stretch = |index: usize| index * STRETCHES / count;
    let values = differences.into_iter().enumerate();
    let values = values.map(|(index, value)| (stretch(index), value));
    bootstrap(values, Bootstrap::default()).ok()
}

/// The difference in words, of jobs with these names.
pub(crate) fn text(found: &Estimate, names: [&str; 2]) -> String {
    let [a, b] = names;
    let (low, high) = (
        found.low.unwrap_or(f64::NAN),
        found.high.unwrap_or(f64::NAN),
    );
    let verdict = if 0.0 < low {
        format!("{a} has the lower loss")
    } else if high < 0.0 {
        format!("{b} has the lower loss")
    } else {
        "the interval includes 0: no difference is shown".to_owned()
    };
    format!(
        "paired: {b} minus {a} is {:+.6}, between {low:+.6} and {high:+.6} (95 %, {} steps); \
         {verdict}",
        found.mean, found.images
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn steps(count: u64, loss: impl Fn(u64) -> f64) -> Vec<pb::StepReport> {
        let step = |step| pb::StepReport {
            step,
            loss: loss(step),
            ..Default::default()
        };
        (1..=count).map(step).collect()
    }

    #[test]
    fn a_small_difference_shows_under_noise_that_both_have() {
        // Noise of 1, the same in both; a difference of a hundredth, and noise of their own of a
        // thousandth.
        let noise = |step: u64| ((step * 7919) % 1000) as f64 / 500.0 - 1.0;
        let own = |step: u64| ((step * 104_729) % 1000) as f64 / 5e5 - 1e-3;
        let a = steps(400, noise);
        let b = steps(500, |step| noise(step) + 0.01 + own(step));
        let found = difference(&a, &b).unwrap_or_else(|| panic!("400 steps are enough"));
        assert_eq!((found.images, found.characters), (400, 20));
        assert!(
            Some(0.0099) < found.low && found.high < Some(0.0101),
            "{found:?}"
        );
        let said = text(&found, ["one-1", "two-2"]);
        assert!(
            said.ends_with("(95 %, 400 steps); one-1 has the lower loss"),
            "{said}"
        );
        let other = difference(&b, &a).unwrap_or_else(|| panic!("400 steps are enough"));
        assert!(text(&other, ["two-2", "one-1"]).ends_with("one-1 has the lower loss"));
        let none = difference(&a, &a).unwrap_or_else(|| panic!("400 steps are enough"));
        assert!(text(&none, ["a", "b"]).ends_with("includes 0: no difference is shown"));
        assert_eq!(difference(&a[..39], &b), None);
        assert_eq!(difference(&a, &[]), None);
    }

    #[test]
    fn jobs_that_draw_differently_are_not_paired_and_the_reason_is_named() {
        let view = |text: String| pb::JobView {
            job: "demo-1".to_owned(),
            job_toml: text,
            dataset_version: "abc".to_owned(),
            ..Default::default()
        };
        let text = fixture::job_toml("file:///data");
        let first = view(text.clone());
        assert_eq!(apart(&first, &first), None);
        let seed = view(text.replace("[data]\n", "[data]\nseed = 5\n"));
        assert_eq!(
            apart(&first, &seed).as_deref(),
            Some("data.seed is 0 and 5: they draw differently")
        );
        let version = pb::JobView {
            dataset_version: "def".to_owned(),
            ..first.clone()
        };
        assert_eq!(
            apart(&first, &version).as_deref(),
            Some("the data set's version is abc and def: they draw differently")
        );
        let none = view("nothing".to_owned());
        assert!(apart(&first, &none).is_some());
    }
}
