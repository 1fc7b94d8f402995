//! Static properties of an architecture, independent of any job.

use super::config::Component;
use crate::knobs::Knob;

/// Static properties of an architecture, independent of any job.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The name in job.toml.
    pub name: &'static str,
    /// The noun for sentences such as "job x trained a …".
    pub noun: &'static str,
    /// Its components, in the order in which data passes through them.
    pub components: &'static [Component],
    /// Components that are frozen if job.toml does not set `freeze`.
    pub frozen_by_default: &'static [Component],
    /// Components that its loss cannot train. They must be frozen.
    pub always_frozen: &'static [Component],
    /// Whether it trains with the paper's equation 3: masks of target and face. Else with the loss
    /// of its authors.
    pub equation_3: bool,
    /// Whether its U-Net attends to text states, so that both have one width.
    pub attends_to_text: bool,
    /// The names of its sizes, `model.size`.
    pub sizes: &'static [&'static str],
    /// The components that it loads from base weights, and whether each is required.
    pub base_parts: &'static [(&'static str, bool)],
    /// The file or part among base weights that holds components which no base model has.
    pub own_file: Option<&'static str>,
    pub defaults: Defaults,
    pub sampling: Sampling,
}

/// Defaults of job.toml that depend on the architecture. Those of a peer of the paper are the ones
/// of its authors' training code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// `data.prompt_drop`
    pub prompt_drop: f64,
    /// `train.learning_rate`
    pub learning_rate: f64,
    /// `train.optimizer.weight_decay`
    pub weight_decay: f64,
    /// `train.warmup`
    pub warmup: u64,
    /// `train.clip`; 0: no clipping.
    pub clip: f64,
}

impl Defaults {
    /// Those of this program's own architectures: the paper's prompt drop; PyTorch's weight decay;
    /// the rest is ours.
    pub const OURS: Self = Self {
        prompt_drop: 0.5,
        learning_rate: 1e-5,
        weight_decay: 1e-2,
        warmup: 0,
        clip: 0.0,
    };
}

impl Facts {
    /// The article of `noun`.
    #[must_use]
    pub fn article(&self) -> &'static str {
        if self.noun.starts_with(['a', 'i']) {
            "an"
        } else {
            "a"
        }
    }
}

/// Which inputs of sampling an architecture supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Whether it makes images at all.
    pub images: bool,
    /// `prompts`
    pub prompts: bool,
    /// `references`, `task` and `pairing`
    pub references: bool,
    /// The most `references` of one image; 0 without references.
    pub references_max: u32,
    /// `attention`
    pub attention: bool,
    /// The fields of `[sample.knobs]`
    pub knobs: &'static [Knob],
}
