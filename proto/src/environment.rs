//! What a rank computes with and where: the facts on which the bits of a result depend, and the
//! machine. Ranks compare them at the rendezvous ([`differing`]); manifests of checkpoints keep
//! them. No I/O.

use serde::{Deserialize, Serialize};

/// The environment of one rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankEnvironment {
    /// The host's name.
    pub host: String,
    /// The worker's `address`.
    pub address: String,
    /// Our release and its commit, which fix how samples are prepared: `0.1.0 (commit 0123abcd)`.
    pub release: String,
    /// The version of libtorch.
    pub libtorch: String,
    /// The model of the GPU or CPU: `NVIDIA H200 (sm_90)`.
    pub device: String,
    /// Instruction set, TF32, and variables of the process that change rounding.
    pub numerics: String,
    /// The version of the GPU's driver; empty on a CPU. Does not change bits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
}

impl RankEnvironment {
    /// The facts that must be equal on all ranks of a gang, by name.
    #[must_use]
    pub fn facts(&self) -> [(&'static str, &str); 4] {
        [
            ("release", &self.release),
            ("libtorch", &self.libtorch),
            ("device", &self.device),
            ("numerics", &self.numerics),
        ]
    }

    /// Host and address, as an error names them.
    #[must_use]
    pub fn location(&self) -> String {
        format!("{} ({})", self.host, self.address)
    }
}

/// The names of the facts in which two environments differ, with both values.
#[must_use]
pub fn differing<'a>(
    one: &'a RankEnvironment,
    other: &'a RankEnvironment,
) -> Vec<(&'static str, &'a str, &'a str)> {
    let pairs = one.facts().into_iter().zip(other.facts());
    let pairs = pairs.filter(|((_, one), (_, other))| one != other);
    pairs
        .map(|((name, one), (_, other))| (name, one, other))
        .collect()
}
