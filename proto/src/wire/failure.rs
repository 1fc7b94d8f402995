//! Conversion of the failure of a rank process.

use super::{WireError, error_text, present, text};
use crate::limits::TEXT_BYTES;
use crate::pb;
use crate::reason::RankFailure;

impl From<&RankFailure> for pb::Failure {
    fn from(failure: &RankFailure) -> Self {
        use pb::failure::Kind;
        let of = |kind: Kind| Self {
            kind: kind.into(),
            ..Self::default()
        };
        match failure {
            RankFailure::Error {
                text,
                permanent,
                secondary,
            } => Self {
                text: text.clone(),
                permanent: *permanent,
                secondary: *secondary,
                ..of(Kind::Error)
            },
            RankFailure::Exited { outcome, success } => Self {
                text: outcome.clone(),
                success: *success,
                ..of(Kind::Exited)
            },
            RankFailure::Silent {
                for_ms,
                phase,
                activity,
            } => Self {
                text: phase.clone(),
                for_ms: *for_ms,
                activity: activity.as_ref().map(Into::into),
                ..of(Kind::Silent)
            },
            RankFailure::Hangs {
                activity,
                longest_ms,
            } => Self {
                activity: Some(activity.into()),
                longest_ms: *longest_ms,
                ..of(Kind::Hangs)
            },
            RankFailure::NotLeft => of(Kind::NotLeft),
            RankFailure::WorkerLeaves => of(Kind::WorkerLeaves),
            RankFailure::Removed => of(Kind::Removed),
        }
    }
}

impl TryFrom<pb::Failure> for RankFailure {
    type Error = WireError;

    /// A kind of a newer protocol becomes an error with its text: it is neither permanent nor
    /// secondary unless the sender says so.
    fn try_from(failure: pb::Failure) -> Result<Self, WireError> {
        use pb::failure::Kind;
        let activity = failure.activity;
        Ok(match Kind::try_from(failure.kind) {
            Ok(Kind::Exited) => Self::Exited {
                outcome: error_text("failure.text", failure.text)?,
                success: failure.success,
            },
            Ok(Kind::Silent) => Self::Silent {
                for_ms: failure.for_ms,
                phase: text("failure.text", failure.text, TEXT_BYTES)?,
                activity: activity.map(TryInto::try_into).transpose()?,
            },
            Ok(Kind::Hangs) => Self::Hangs {
                activity: present("failure.activity", activity)?.try_into()?,
                longest_ms: failure.longest_ms,
            },
            Ok(Kind::NotLeft) => Self::NotLeft,
            Ok(Kind::WorkerLeaves) => Self::WorkerLeaves,
            Ok(Kind::Removed) => Self::Removed,
            Ok(Kind::Error | Kind::Unspecified) | Err(_) => Self::Error {
                text: error_text("failure.text", failure.text)?,
                permanent: failure.permanent,
                secondary: failure.secondary,
            },
        })
    }
}
