//! `[sample.knobs]`: settings of sampling that only single architectures have, under the names of
//! their authors where there are any. Absent knobs have their authors' defaults, or ours where the
//! authors have none. An architecture lists its knobs in its facts; all others are refused.

use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};

/// The values that a job of images sets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// ControlNet: factors of the residuals, one for all, or one for each skip connection and the
    /// middle (13 at the size of SD 1.5). Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_scales: Option<Vec<f64>>,
    /// ControlNet: the residuals fade from the middle (1) to the first skip connection (0.1), and
    /// the unconditional prediction gets none. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guess_mode: Option<bool>,
    /// IP-Adapter: factor of the attention to the reference's tokens; 0 leaves it out. Its authors
    /// advise 0.5 with a prompt. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_scale: Option<f64>,
    /// FastComposer: fraction of the steps that see the subject; those before see the plain prompt.
    /// Default: 0.7, its pipeline's; its evaluation uses 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Kandinsky: the prior moves the reference's embedding towards the prompt in this fraction of
    /// its steps, the last ones; the rows of the paper's table 2 are 0.1 and 0.2. Absent: the
    /// embedding is drawn as it is (ours).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_strength: Option<f64>,
    /// Kandinsky: the prior's steps. Default: 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_steps: Option<u32>,
    /// Kandinsky: the prior's guidance. Default: 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_guidance: Option<f64>,
    /// Kandinsky: whether the reference's embedding is whitened before noise is added to it, as the
    /// prior's own embeddings are. Its pipeline does not do so and yet reverses it at the end.
    /// Default: false, as the pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_whitened: Option<bool>,
}

/// Default of [`Knobs::prior_steps`].
const PRIOR_STEPS: u32 = 25;

/// The name of a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knob {
    ControlScales,
    GuessMode,
    ImageScale,
    Alpha,
    PriorStrength,
    PriorSteps,
    PriorGuidance,
    PriorWhitened,
}

impl Knob {
    /// Its field of `[sample.knobs]`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ControlScales => "control_scales",
            Self::GuessMode => "guess_mode",
            Self::ImageScale => "image_scale",
            Self::Alpha => "alpha",
            Self::PriorStrength => "prior_strength",
            Self::PriorSteps => "prior_steps",
            Self::PriorGuidance => "prior_guidance",
            Self::PriorWhitened => "prior_whitened",
        }
    }
}

impl Knobs {
    /// The knobs of lines `name=value`, with values as in job.toml.
    ///
    /// # Errors
    /// The line that is no knob, and why.
    pub fn parse(lines: &[String]) -> Result<Self, String> {
        let text = lines.join("\n");
        toml::from_str(&text).map_err(|error| error.message().to_owned())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The prior's steps.
    #[must_use]
    pub fn prior_steps(&self) -> u32 {
        self.prior_steps.unwrap_or(PRIOR_STEPS)
    }

    /// How many of the prior's steps are made: the strength's fraction of them, rounded down.
    #[must_use]
    pub fn prior_steps_kept(&self) -> u32 {
        let steps = self.prior_steps();
        let strength = self.prior_strength.unwrap_or(0.0);
        ((f64::from(steps) * strength) as u32).min(steps)
    }

    /// The knobs that are set, in order.
    #[must_use]
    pub fn set(&self) -> Vec<Knob> {
        let all = [
            (Knob::ControlScales, self.control_scales.is_some()),
            (Knob::GuessMode, self.guess_mode.is_some()),
            (Knob::ImageScale, self.image_scale.is_some()),
            (Knob::Alpha, self.alpha.is_some()),
            (Knob::PriorStrength, self.prior_strength.is_some()),
            (Knob::PriorSteps, self.prior_steps.is_some()),
            (Knob::PriorGuidance, self.prior_guidance.is_some()),
            (Knob::PriorWhitened, self.prior_whitened.is_some()),
        ];
        let set = all.into_iter().filter(|(_, is_set)| *is_set);
        set.map(|(knob, _)| knob).collect()
    }

    /// Checks what can be checked without knowing the architecture.
    pub(crate) fn check(&self, faults: &mut Faults) {
        let scale = |field: &str, value: f64, faults: &mut Faults| {
            // The range also rejects NaN.
            faults.need((0.0..=10.0).contains(&value), field, || {
                format!("is {value}; it must be between 0 and 10")
            });
        };
        if let Some(value) = self.image_scale {
            scale("sample.knobs.image_scale", value, faults);
        }
        faults.fraction("sample.knobs.alpha", self.alpha.unwrap_or(0.0));
        let strength = self.prior_strength.unwrap_or(0.0);
        faults.fraction("sample.knobs.prior_strength", strength);
        if let Some(value) = self.prior_guidance {
            faults.need(
                (0.0..=100.0).contains(&value),
                "sample.knobs.prior_guidance",
                || format!("is {value}; it must be between 0 and 100"),
            );
        }
        let steps = self.prior_steps();
        faults.need(
            (2..=1000).contains(&steps),
            "sample.knobs.prior_steps",
            || format!("is {steps}; a prior takes 2 to 1000 steps"),
        );
        if let Some(scales) = &self.control_scales {
            let field = "sample.knobs.control_scales";
            faults.need(!scales.is_empty(), field, || {
                "is empty; it must have one scale for all residuals, such as [0.5], or one for each"
                    .into()
            });
            for value in scales {
                scale(field, *value, faults);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_fields() {
        let all = Knobs {
            control_scales: Some(vec![0.5]),
            guess_mode: Some(true),
            image_scale: Some(0.5),
            alpha: Some(0.5),
            prior_strength: Some(0.1),
            prior_steps: Some(25),
            prior_guidance: Some(4.0),
            prior_whitened: Some(true),
        };
        let table = toml::Table::try_from(&all).expect("knobs are a table");
        let names: Vec<&str> = all.set().into_iter().map(Knob::name).collect();
        assert_eq!(names.len(), table.len());
        assert!(names.iter().all(|name| table.contains_key(*name)));
        assert!(Knobs::default().set().is_empty() && Knobs::default().is_empty());
    }

    #[test]
    fn lines_are_read_as_in_job_toml() {
        let lines = |lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|it| (*it).to_owned()).collect();
            Knobs::parse(&lines)
        };
        let found = lines(&["image_scale=0.5", "control_scales=[0.5, 1]"]).expect("two knobs");
        assert_eq!(found.image_scale, Some(0.5));
        assert_eq!(found.control_scales, Some(vec![0.5, 1.0]));
        assert_eq!(lines(&[]), Ok(Knobs::default()));
        let error = lines(&["scale=0.5"]).expect_err("an unknown knob");
        assert!(error.contains("unknown field `scale`"), "{error}");
    }

    #[test]
    fn a_strength_keeps_its_fraction_of_the_prior_s_steps_rounded_down() {
        let kept = |strength, steps| {
            let knobs = Knobs {
                prior_strength: Some(strength),
                prior_steps: steps,
                ..Knobs::default()
            };
            knobs.prior_steps_kept()
        };
        // The rows of table 2: 25 steps at 0.1 and 0.2.
        assert_eq!(
            (kept(0.1, None), kept(0.2, None), kept(1.0, None)),
            (2, 5, 25)
        );
        assert_eq!((kept(0.03, None), kept(0.5, Some(3))), (0, 1));
    }
}
