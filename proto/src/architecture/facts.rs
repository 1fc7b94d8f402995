//! Static properties of an architecture, independent of any job.

use super::config::Component;

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
    /// The components that it loads from base weights, and whether each is required.
    pub base_parts: &'static [(&'static str, bool)],
    /// The file among base weights that holds components which no base model has.
    pub own_file: Option<&'static str>,
    pub sampling: Sampling,
}

impl Facts {
    /// The article of `noun`.
    #[must_use]
    pub fn article(&self) -> &'static str {
        if self.noun.starts_with('a') {
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
    /// `references`, `task`, `pairing` and `attention`
    pub references: bool,
}
