//! Where a rank's thread is.

use super::{WireError, wrong};
use crate::id::Step;
use crate::message::{Doing, Piece};
use crate::pb;

impl From<&Doing> for pb::Doing {
    fn from(doing: &Doing) -> Self {
        use pb::doing::Piece as Wire;
        let (piece, number) = match doing.piece {
            Piece::Samples => (Wire::Samples, 0),
            Piece::MicroBatch(number) => (Wire::MicroBatch, number.into()),
            Piece::Reduction => (Wire::Reduction, 0),
            Piece::Update => (Wire::Update, 0),
            Piece::Digest => (Wire::Digest, 0),
            Piece::Checkpoint => (Wire::Checkpoint, 0),
            Piece::Unit(number) => (Wire::Unit, number),
        };
        Self {
            step: doing.step.0,
            piece: piece.into(),
            number,
            for_ms: doing.for_ms,
        }
    }
}

impl TryFrom<pb::Doing> for Doing {
    type Error = WireError;

    fn try_from(doing: pb::Doing) -> Result<Self, WireError> {
        use pb::doing::Piece as Wire;
        let piece = match Wire::try_from(doing.piece) {
            Ok(Wire::Samples) => Piece::Samples,
            Ok(Wire::MicroBatch) if doing.number == 0 => {
                return wrong("doing.number", 0, "it is counted from 1 on");
            }
            Ok(Wire::MicroBatch) => match u32::try_from(doing.number) {
                Ok(number) => Piece::MicroBatch(number),
                Err(_) => return wrong("doing.number", doing.number, "a step has fewer micro-batches"),
            },
            Ok(Wire::Unit) => Piece::Unit(doing.number),
            Ok(Wire::Reduction) => Piece::Reduction,
            Ok(Wire::Update) => Piece::Update,
            Ok(Wire::Digest) => Piece::Digest,
            Ok(Wire::Checkpoint) => Piece::Checkpoint,
            Ok(Wire::Unspecified) | Err(_) => {
                return wrong(
                    "doing.piece",
                    doing.piece,
                    "it must be one of the pieces of train.proto",
                );
            }
        };
        Ok(Self {
            step: Step(doing.step),
            piece,
            for_ms: doing.for_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_crosses_the_wire_unchanged_and_no_other_does() {
        let pieces = [
            Piece::Samples,
            Piece::MicroBatch(3),
            Piece::Reduction,
            Piece::Update,
            Piece::Digest,
            Piece::Checkpoint,
            Piece::Unit(5),
            Piece::Unit(u64::MAX),
        ];
        for piece in pieces {
            let doing = Doing {
                step: Step(4),
                piece,
                for_ms: 70,
            };
            assert_eq!(Doing::try_from(pb::Doing::from(&doing)), Ok(doing));
        }
        let refused = |piece, number| {
            let wire = pb::Doing {
                piece,
                number,
                ..pb::Doing::default()
            };
            Doing::try_from(wire).unwrap_err().to_string()
        };
        assert_eq!(
            refused(9, 0),
            "field `doing.piece` is 9; it must be one of the pieces of train.proto"
        );
        assert_eq!(
            refused(pb::doing::Piece::MicroBatch.into(), 0),
            "field `doing.number` is 0; it is counted from 1 on"
        );
    }
}
