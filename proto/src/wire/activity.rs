//! Conversion of a rank's activity.

use super::{WireError, wrong};
use crate::id::Step;
use crate::message::{Activity, Stage};
use crate::pb;

impl From<&Activity> for pb::Activity {
    fn from(activity: &Activity) -> Self {
        use pb::activity::Stage as Wire;
        let (stage, number) = match activity.stage {
            Stage::Samples => (Wire::Samples, 0),
            Stage::MicroBatch(number) => (Wire::MicroBatch, number.into()),
            Stage::Reduction => (Wire::Reduction, 0),
            Stage::Update => (Wire::Update, 0),
            Stage::Digest => (Wire::Digest, 0),
            Stage::Checkpoint => (Wire::Checkpoint, 0),
            Stage::Validation(number) => (Wire::Validation, number.into()),
            Stage::Unit(number) => (Wire::Unit, number),
        };
        Self {
            step: activity.step.0,
            stage: stage.into(),
            number,
            for_ms: activity.for_ms,
        }
    }
}

impl TryFrom<pb::Activity> for Activity {
    type Error = WireError;

    fn try_from(activity: pb::Activity) -> Result<Self, WireError> {
        use pb::activity::Stage as Wire;
        let stage = match Wire::try_from(activity.stage) {
            Ok(Wire::Samples) => Stage::Samples,
            Ok(Wire::MicroBatch) => Stage::MicroBatch(batch_number(activity.number)?),
            Ok(Wire::Validation) => Stage::Validation(batch_number(activity.number)?),
            Ok(Wire::Unit) => Stage::Unit(activity.number),
            Ok(Wire::Reduction) => Stage::Reduction,
            Ok(Wire::Update) => Stage::Update,
            Ok(Wire::Digest) => Stage::Digest,
            Ok(Wire::Checkpoint) => Stage::Checkpoint,
            Ok(Wire::Unspecified) | Err(_) => {
                return wrong(
                    "activity.stage",
                    activity.stage,
                    "it must be one of the stages in train.proto",
                );
            }
        };
        Ok(Self {
            step: Step(activity.step),
            stage,
            for_ms: activity.for_ms,
        })
    }
}

fn batch_number(number: u64) -> Result<u32, WireError> {
    match u32::try_from(number) {
        Ok(0) => wrong("activity.number", 0, "batches are counted from 1"),
        Ok(number) => Ok(number),
        Err(_) => wrong("activity.number", number, "it must fit in 32 bits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_crosses_the_wire_unchanged_and_no_other_does() {
        let stages = [
            Stage::Samples,
            Stage::MicroBatch(3),
            Stage::Reduction,
            Stage::Update,
            Stage::Digest,
            Stage::Checkpoint,
            Stage::Validation(2),
            Stage::Unit(5),
            Stage::Unit(u64::MAX),
        ];
        for stage in stages {
            let activity = Activity {
                step: Step(4),
                stage,
                for_ms: 70,
            };
            assert_eq!(
                Activity::try_from(pb::Activity::from(&activity)),
                Ok(activity)
            );
        }
        let refused = |stage, number| {
            let wire = pb::Activity {
                stage,
                number,
                ..pb::Activity::default()
            };
            Activity::try_from(wire).unwrap_err().to_string()
        };
        assert_eq!(
            refused(9, 0),
            "field `activity.stage` is 9; it must be one of the stages in train.proto"
        );
        assert_eq!(
            refused(pb::activity::Stage::MicroBatch.into(), 0),
            "field `activity.number` is 0; batches are counted from 1"
        );
    }
}
