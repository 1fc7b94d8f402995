//! What holds of an architecture whatever a job says.

use super::config::Component;

/// What holds of an architecture whatever a job says.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// As job.toml writes it.
    pub name: &'static str,
    /// In a sentence about a trained job: "job x trained a …".
    pub noun: &'static str,
    /// The parts that it is made of, in the order in which data meets them.
    pub components: &'static [Component],
    /// What stays frozen when job.toml does not say.
    pub frozen_by_default: &'static [Component],
    /// Components that its loss cannot train: they must be frozen.
    pub always_frozen: &'static [Component],
    /// The parts of a base model that it takes over when they are there, and whether they must be
    /// there.
    pub base_parts: &'static [(&'static str, bool)],
    /// The file, among base weights, with what no base model has.
    pub own_file: Option<&'static str>,
    pub sampling: Sampling,
}

/// What sampling may ask of an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// `prompts`
    pub prompts: bool,
    /// `references`, `task`, `pairing` and `attention`
    pub references: bool,
}
