//! Reasons on the wire: as JSON, and as the sentence that the reader makes of it.

use crate::pb;
use crate::pb::reason::Of;
use crate::reason::{Cause, Fault, Pressure, Waiting};
use serde::Serialize;

fn to_wire(of: Of, value: &impl Serialize) -> pb::Reason {
    pb::Reason {
        of: of.into(),
        // These types have no maps and no fallible serializers: an error is impossible.
        json: serde_json::to_string(value).unwrap_or_default(),
    }
}

impl From<&Waiting> for pb::Reason {
    fn from(waiting: &Waiting) -> Self {
        to_wire(Of::Waiting, waiting)
    }
}

impl From<&Cause> for pb::Reason {
    fn from(cause: &Cause) -> Self {
        to_wire(Of::Cause, cause)
    }
}

impl From<&Fault> for pb::Reason {
    fn from(fault: &Fault) -> Self {
        to_wire(Of::Fault, fault)
    }
}

impl From<&Pressure> for pb::Reason {
    fn from(pressure: &Pressure) -> Self {
        to_wire(Of::Pressure, pressure)
    }
}

impl pb::Reason {
    /// The pressure that it is. None if it is something else, or of a kind that is not known.
    #[must_use]
    pub fn pressure(&self) -> Option<Pressure> {
        let is_one = self.of() == Of::Pressure;
        is_one.then(|| serde_json::from_str(&self.json).ok())?
    }

    /// The sentence. None if a newer release sent a kind that this one does not know.
    #[must_use]
    pub fn sentence(&self) -> Option<String> {
        let json = &self.json;
        match self.of() {
            Of::Waiting => serde_json::from_str::<Waiting>(json)
                .ok()
                .map(|it| it.to_string()),
            Of::Cause => serde_json::from_str::<Cause>(json)
                .ok()
                .map(|it| it.to_string()),
            Of::Fault => serde_json::from_str::<Fault>(json)
                .ok()
                .map(|it| it.to_string()),
            Of::Pressure => self.pressure().map(|it| it.to_string()),
            Of::Unspecified => None,
        }
    }
}

impl pb::JobView {
    /// Why the job is in its phase, as a sentence: made here, or the sender's if the kind of reason
    /// is not known.
    #[must_use]
    pub fn reason_sentence(&self) -> String {
        let own = self.cause.as_ref().and_then(pb::Reason::sentence);
        own.unwrap_or_else(|| self.reason.clone())
    }
}

impl pb::Incident {
    /// What happened, as a sentence; see [`pb::JobView::reason_sentence`].
    #[must_use]
    pub fn sentence(&self) -> String {
        let own = self.cause.as_ref().and_then(pb::Reason::sentence);
        own.unwrap_or_else(|| self.what.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_makes_the_sentence_and_takes_the_sender_s_for_an_unknown_kind() {
        let waiting = Waiting::Paused;
        let mut view = pb::JobView {
            reason: "a sentence of the sender".into(),
            cause: Some((&waiting).into()),
            ..Default::default()
        };
        assert_eq!(view.reason_sentence(), waiting.to_string());
        view.cause = Some(pb::Reason {
            of: Of::Waiting.into(),
            json: r#"{"kind":"levitates"}"#.into(),
        });
        assert_eq!(view.reason_sentence(), "a sentence of the sender");
        view.cause = Some(pb::Reason {
            of: 99,
            json: "{}".into(),
        });
        assert_eq!(view.reason_sentence(), "a sentence of the sender");
    }
}
