//! Whether the ranks of a gang may compute together: they must agree on libraries, preprocessing,
//! device model and rounding, because only then do their bits compare. Where they differ, the ranks
//! in the minority are refused by name.

use proto::environment::{RankEnvironment, differing};
use proto::id::Rank;
use std::fmt;

/// Some ranks of a generation differ from the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The ranks that differ, sorted.
    pub refused: Vec<Rank>,
    what: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refusal {}

/// Compares the environments of all ranks, in rank order. The largest group of equal ones stays; of
/// two such groups, the one with the lower rank.
///
/// # Errors
/// Some ranks differ from that group.
pub fn agree(environments: &[RankEnvironment]) -> Result<(), Refusal> {
    let equals = |one: &RankEnvironment| {
        let equal = environments.iter().filter(|it| it.facts() == one.facts());
        equal.count()
    };
    // `max_by_key` returns the last of several, so the order is reversed.
    let Some(majority) = environments.iter().rev().max_by_key(|it| equals(it)) else {
        return Ok(());
    };
    let mut refused = Vec::new();
    let mut sentences = Vec::new();
    let others: Vec<String> = (0..)
        .zip(environments)
        .filter(|(_, it)| it.facts() == majority.facts())
        .map(|(rank, _): (u32, _)| rank.to_string())
        .collect();
    for (rank, environment) in (0..).map(Rank).zip(environments) {
        let facts = differing(environment, majority);
        if facts.is_empty() {
            continue;
        }
        let facts: Vec<String> = facts
            .into_iter()
            .map(|(name, has, expected)| format!("{name} {has:?} instead of {expected:?}"))
            .collect();
        let (location, facts) = (environment.location(), facts.join(" and "));
        sentences.push(format!("rank {rank} on {location} has {facts}"));
        refused.push(rank);
    }
    if refused.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{}, as on rank{} {} ({}); the ranks of a gang must agree: install one release and one \
        libtorch on all workers of the job, with devices of one model",
        sentences.join("; "),
        if others.len() == 1 { "" } else { "s" },
        others.join(", "),
        majority.host
    );
    Err(Refusal { refused, what })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn on(host: &str) -> RankEnvironment {
        RankEnvironment {
            host: host.into(),
            address: "10.0.0.1".into(),
            release: "0.1.0 (commit aa)".into(),
            libtorch: "2.10.0".into(),
            device: "NVIDIA H200 (sm_90)".into(),
            numerics: "AVX512, TF32 off".into(),
            driver: "550.54".into(),
        }
    }

    fn older(host: &str) -> RankEnvironment {
        RankEnvironment {
            libtorch: "2.9.1".into(),
            ..on(host)
        }
    }

    #[test]
    fn hosts_addresses_and_drivers_may_differ() {
        let other = RankEnvironment {
            address: "10.0.0.2".into(),
            driver: "570.10".into(),
            ..on("b")
        };
        assert_eq!(agree(&[on("a"), other]), Ok(()));
        assert_eq!(agree(&[]), Ok(()));
    }

    #[test]
    fn the_rank_that_differs_is_named_with_host_and_both_values() {
        let refusal = agree(&[on("a"), older("b"), on("c")]).unwrap_err();
        assert_eq!(refusal.refused, [Rank(1)]);
        assert_eq!(
            refusal.to_string(),
            "rank 1 on b (10.0.0.1) has libtorch \"2.9.1\" instead of \"2.10.0\", as on ranks 0, 2 \
            (a); the ranks of a gang must agree: install one release and one libtorch on all \
            workers of the job, with devices of one model"
        );
    }

    #[test]
    fn every_fact_counts_and_several_are_all_named() {
        let release = RankEnvironment {
            release: "0.1.0 (commit bb)".into(),
            ..older("b")
        };
        let text = agree(&[on("a"), on("a"), release]).unwrap_err().to_string();
        assert!(
            text.starts_with(
                "rank 2 on b (10.0.0.1) has release \"0.1.0 (commit bb)\" instead of \"0.1.0 \
                (commit aa)\" and libtorch \"2.9.1\" instead of \"2.10.0\", as on ranks 0, 1 (a)"
            ),
            "{text}"
        );
        let device = RankEnvironment {
            device: "Tesla V100 (sm_70)".into(),
            ..on("b")
        };
        let numerics = RankEnvironment {
            numerics: "AVX2, TF32 off".into(),
            ..on("b")
        };
        for other in [device, numerics] {
            assert_eq!(agree(&[on("a"), other]).unwrap_err().refused, [Rank(1)]);
        }
    }

    #[test]
    fn without_a_majority_the_lowest_rank_stays() {
        let refusal = agree(&[on("a"), older("b")]).unwrap_err();
        assert_eq!(refusal.refused, [Rank(1)]);
        let refusal = agree(&[older("b"), on("a"), on("a"), older("b")]).unwrap_err();
        assert_eq!(refusal.refused, [Rank(1), Rank(2)]);
    }
}
