//! The paired difference of two trainings that drew the same: their losses at equal steps, and how
//! sure a difference of them is.

use crate::comparison::Means;
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

/// A paired difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Paired {
    estimate: Estimate,
    steps: u64,
}

/// Mean of `b`'s loss minus `a`'s over the steps that both have, with its interval of 95 % by a
/// bootstrap of stretches of steps. None: fewer than [`STEPS_MIN`] values in common. Each value may
/// be the mean of several steps, of as many as the others and of the same ones in both. A step that
/// was computed twice counts as it was last.
pub(crate) fn difference(a: &Means, b: &Means) -> Option<Paired> {
    let losses = |means: &Means| -> BTreeMap<(u64, u64), f64> {
        means.iter().map(|it| ((it.0, it.1), it.2)).collect()
    };
    let a = losses(a);
    let width = |(first, last): (u64, u64)| last - first;
    // The last cell may be of fewer steps.
    let widest = a.keys().copied().map(width).max()?;
    let differences: Vec<f64> = losses(b)
        .iter()
        .filter(|(cell, _)| width(**cell) == widest)
        .filter_map(|(cell, loss)| Some(loss - a.get(cell)?))
        .filter(|it| it.is_finite())
        .collect();
    if differences.len() < STEPS_MIN {
        return None;
    }
    let count = differences.len();
    let stretch = |index: usize| index * STRETCHES / count;
    let values = differences.into_iter().enumerate();
    let values = values.map(|(index, value)| (stretch(index), value));
    Some(Paired {
        estimate: bootstrap(values, Bootstrap::default()).ok()?,
        steps: count as u64 * (widest + 1),
    })
}

impl Paired {
    pub(crate) fn mean(&self) -> f64 {
        self.estimate.mean
    }

    /// Its least and its largest value.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        self.estimate.low.zip(self.estimate.high)
    }

    /// Steps that it is of.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// What it says of jobs with these names.
    pub(crate) fn verdict(&self, [a, b]: [&str; 2]) -> String {
        match self.interval() {
            Some((low, _)) if 0.0 < low => format!("{a} has the lower loss"),
            Some((_, high)) if high < 0.0 => format!("{b} has the lower loss"),
            Some(_) | None => "the interval includes 0: no difference is shown".to_owned(),
        }
    }
}

/// The difference in words, of jobs with these names.
pub(crate) fn text(found: &Paired, names: [&str; 2]) -> String {
    let [a, b] = names;
    let (low, high) = found.interval().unwrap_or((f64::NAN, f64::NAN));
    format!(
        "paired: {b} minus {a} is {:+.6}, between {low:+.6} and {high:+.6} (95 %, {} steps); {}",
        found.mean(),
        found.steps,
        found.verdict(names)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn steps(count: u64, loss: impl Fn(u64) -> f64) -> Means {
        (1..=count).map(|step| (step, step, loss(step))).collect()
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
        assert_eq!((found.steps(), found.estimate.characters), (400, 20));
        let (low, high) = found.interval().unwrap_or((0.0, 1.0));
        assert!(0.0099 < low && high < 0.0101, "{found:?}");
        let said = text(&found, ["one-1", "two-2"]);
        assert!(
            said.ends_with("(95 %, 400 steps); one-1 has the lower loss"),
            "{said}"
        );
        let other = difference(&b, &a).unwrap_or_else(|| panic!("400 steps are enough"));
        assert!(text(&other, ["two-2", "one-1"]).ends_with("one-1 has the lower loss"));
        let none = difference(&a, &a).unwrap_or_else(|| panic!("400 steps are enough"));
        assert!(text(&none, ["a", "b"]).ends_with("includes 0: no difference is shown"));
        assert_eq!(difference(&a[..39].to_vec(), &b), None);
        assert_eq!(difference(&a, &Means::new()), None);
        // Of a curve that is too long to be read step by step: means of 4 steps, the last of 1.
        let wide = |steps: &Means| -> Means {
            let mean = |it: &[(u64, u64, f64)]| {
                let sum: f64 = it.iter().map(|it| it.2).sum();
                (it[0].0, it[it.len() - 1].1, sum / it.len() as f64)
            };
            steps[..397].chunks(4).map(mean).collect()
        };
        let coarse = difference(&wide(&a), &wide(&b)).unwrap_or_else(|| panic!("99 cells"));
        assert_eq!(coarse.steps(), 396);
        assert!((coarse.mean() - found.mean()).abs() < 1e-5, "{coarse:?}");
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
