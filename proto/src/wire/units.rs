//! Conversion of unit leases and unit outcomes.

use super::{WireError, bounded, error_text, text, wrong};
use crate::id::Rank;
use crate::limits::{DEVICES, JOB_TOML_BYTES};
use crate::message::{SourceJob, UnitFailure, UnitOrder, UnitRange, UnitReport};
use crate::pb;
use std::collections::BTreeMap;

fn ranges_to_wire(ranges: &[UnitRange]) -> Vec<pb::UnitRange> {
    let wire = |range: &UnitRange| pb::UnitRange {
        first: range.first,
        end: range.end,
    };
    ranges.iter().map(wire).collect()
}

/// Requires ranges that are sorted, do not overlap and are not empty.
fn ranges_from_wire(
    field: &'static str,
    ranges: Vec<pb::UnitRange>,
) -> Result<Vec<UnitRange>, WireError> {
    let mut previous_end = 0;
    for range in &ranges {
        if range.first < previous_end || range.end <= range.first {
            let value = format!("{} to {}", range.first, range.end);
            return wrong(
                field,
                value,
                "ranges of units must be sorted, not overlap and not be empty",
            );
        }
        previous_end = range.end;
    }
    let plain = |range: pb::UnitRange| UnitRange {
        first: range.first,
        end: range.end,
    };
    Ok(bounded(field, ranges)?.into_iter().map(plain).collect())
}

impl From<&UnitReport> for pb::UnitReport {
    fn from(report: &UnitReport) -> Self {
        let failure = |failure: &UnitFailure| pb::UnitFailure {
            unit: failure.unit,
            error: failure.error.clone(),
        };
        Self {
            done: ranges_to_wire(&report.done),
            failed: report.failed.iter().map(failure).collect(),
        }
    }
}

impl TryFrom<pb::UnitReport> for UnitReport {
    type Error = WireError;

    fn try_from(report: pb::UnitReport) -> Result<Self, WireError> {
        let failure = |failure: pb::UnitFailure| {
            Ok(UnitFailure {
                unit: failure.unit,
                error: error_text("units.failed.error", failure.error)?,
            })
        };
        Ok(Self {
            done: ranges_from_wire("units.done", report.done)?,
            failed: bounded("units.failed", report.failed)?
                .into_iter()
                .map(failure)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&UnitOrder> for pb::UnitOrder {
    fn from(order: &UnitOrder) -> Self {
        let lease = |(rank, units): (&Rank, &Vec<UnitRange>)| pb::UnitLease {
            rank: rank.0,
            units: ranges_to_wire(units),
        };
        let source = |source: &SourceJob| pb::SourceJob {
            job_toml: source.job_toml.clone(),
            checkpoint: source.checkpoint.map(Into::into),
        };
        Self {
            source: order.source.as_ref().map(source),
            models: order.models.iter().map(source).collect(),
            leases: order.leases.iter().map(lease).collect(),
        }
    }
}

impl TryFrom<pb::UnitOrder> for UnitOrder {
    type Error = WireError;

    fn try_from(order: pb::UnitOrder) -> Result<Self, WireError> {
        let source = |field, source: pb::SourceJob| {
            Ok(SourceJob {
                job_toml: text(field, source.job_toml, JOB_TOML_BYTES)?,
                checkpoint: source.checkpoint.map(Into::into),
            })
        };
        let models = bounded("units.models", order.models)?;
        let models: Vec<SourceJob> = models
            .into_iter()
            .map(|it| source("units.models.job_toml", it))
            .collect::<Result<_, WireError>>()?;
        let bytes: usize = models.iter().map(|it| it.job_toml.len()).sum();
        if JOB_TOML_BYTES < bytes {
            let expected = format!("at most {JOB_TOML_BYTES} bytes in all are accepted");
            return wrong("units.models.job_toml", bytes, expected);
        }
        let named = order.source;
        let source = named.map(|it| source("units.source.job_toml", it));
        let mut leases = BTreeMap::new();
        if DEVICES as usize * 2 < order.leases.len() {
            let expected = format!("at most {} are accepted", DEVICES * 2);
            return wrong("units.leases", order.leases.len(), expected);
        }
        for lease in order.leases {
            let units = ranges_from_wire("units.leases", lease.units)?;
            if leases.insert(Rank(lease.rank), units).is_some() {
                return wrong(
                    "units.leases",
                    lease.rank,
                    "each rank has at most one lease",
                );
            }
        }
        Ok(Self {
            source: source.transpose()?,
            models,
            leases,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::CheckpointRef;
    use crate::id::{Generation, Step};

    fn order() -> UnitOrder {
        let range = |first, end| UnitRange { first, end };
        UnitOrder {
            source: Some(SourceJob {
                job_toml: "name".into(),
                checkpoint: Some(CheckpointRef {
                    step: Step(3),
                    generation: Generation(1),
                }),
            }),
            models: vec![SourceJob {
                job_toml: "model".into(),
                checkpoint: None,
            }],
            leases: BTreeMap::from([
                (Rank(0), vec![range(0, 2), range(5, 6)]),
                (Rank(1), vec![range(2, 5)]),
            ]),
        }
    }

    #[test]
    fn an_order_crosses_the_wire_unchanged() {
        assert_eq!(
            UnitOrder::try_from(pb::UnitOrder::from(&order())),
            Ok(order())
        );
    }

    #[test]
    fn ranges_that_overlap_are_refused() {
        let refused = |change: fn(&mut pb::UnitOrder)| {
            let mut wire = pb::UnitOrder::from(&order());
            change(&mut wire);
            UnitOrder::try_from(wire).unwrap_err().to_string()
        };
        let expected = "; ranges of units must be sorted, not overlap and not be empty";
        assert_eq!(
            refused(|it| it.leases[0].units[1].first = 1),
            format!("field `units.leases` is 1 to 6{expected}")
        );
        assert_eq!(
            refused(|it| it.leases[0].units[1].end = 5),
            format!("field `units.leases` is 5 to 5{expected}")
        );
        assert_eq!(
            refused(|it| it.leases[1].rank = 0),
            "field `units.leases` is 0; each rank has at most one lease"
        );
    }
}
