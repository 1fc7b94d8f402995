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
}

/// The name of a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knob {
    ControlScales,
    GuessMode,
    ImageScale,
    Alpha,
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
        }
    }
}

impl Knobs {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The knobs that are set, in order.
    #[must_use]
    pub fn set(&self) -> Vec<Knob> {
        let all = [
            (Knob::ControlScales, self.control_scales.is_some()),
            (Knob::GuessMode, self.guess_mode.is_some()),
            (Knob::ImageScale, self.image_scale.is_some()),
            (Knob::Alpha, self.alpha.is_some()),
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
        };
        let table = toml::Table::try_from(&all).expect("knobs are a table");
        let names: Vec<&str> = all.set().into_iter().map(Knob::name).collect();
        assert_eq!(names.len(), table.len());
        assert!(names.iter().all(|name| table.contains_key(*name)));
        assert!(Knobs::default().set().is_empty() && Knobs::default().is_empty());
    }
}
