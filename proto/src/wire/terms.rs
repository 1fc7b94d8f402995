//! Conversion of the named terms of a step's loss, including reports stored by releases without
//! named terms.

use super::{WireError, wrong};
use crate::message::{LossTerm, TERMS_MAX};
use crate::pb;

impl From<&LossTerm> for pb::LossTerm {
    fn from(term: &LossTerm) -> Self {
        Self {
            name: term.name.clone(),
            value: term.value,
        }
    }
}

/// The terms of a step's loss. A report stored by a release without named terms has two of them in
/// dedicated fields.
#[must_use]
pub fn loss_terms(step: &pb::StepReport) -> Vec<LossTerm> {
    let term = |name: &str, value| LossTerm {
        name: name.to_owned(),
        value,
    };
    if step.terms.is_empty() {
        return vec![
            term("target", step.loss_target),
            term("face", step.loss_face),
        ];
    }
    step.terms
        .iter()
        .map(|it| term(&it.name, it.value))
        .collect()
}

/// The validated terms of an incoming report.
pub(super) fn checked(step: &pb::StepReport) -> Result<Vec<LossTerm>, WireError> {
    let count = step.terms.len();
    if TERMS_MAX < count {
        let found = format!("{count} entries long");
        return wrong("steps.terms", found, "at most 32 are accepted");
    }
    let terms = loss_terms(step);
    match terms.iter().find(|term| !is_name(&term.name)) {
        None => Ok(terms),
        Some(term) => wrong(
            "steps.terms.name",
            format!("{:?}", term.name),
            "it must be 1 to 64 lower-case letters, digits and underscores",
        ),
    }
}

/// Whether the name is usable as a JSON key and as a metric label.
fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=64).contains(&name.len()) && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(terms: &[(&str, f64)]) -> pb::StepReport {
        let terms = terms.iter().map(|(name, value)| pb::LossTerm {
            name: (*name).to_owned(),
            value: *value,
        });
        pb::StepReport {
            terms: terms.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn terms_keep_their_names_and_order_and_an_old_report_has_its_two() {
        let of = |step: &pb::StepReport| -> Vec<(String, f64)> {
            let terms = loss_terms(step).into_iter();
            terms.map(|it| (it.name, it.value)).collect()
        };
        let step = named(&[("reconstruction", 0.5)]);
        assert_eq!(of(&step), [("reconstruction".to_owned(), 0.5)]);
        let old = pb::StepReport {
            loss_target: 0.25,
            loss_face: 0.125,
            ..Default::default()
        };
        assert_eq!(
            of(&old),
            [("target".to_owned(), 0.25), ("face".to_owned(), 0.125)]
        );
    }

    #[test]
    fn a_name_that_cannot_be_a_label_is_refused() {
        let message = |step| checked(&step).map_err(|error| error.to_string());
        assert!(message(named(&[("target", 1.0)])).is_ok());
        assert_eq!(
            message(named(&[("a b", 1.0)])),
            Err(
                "field `steps.terms.name` is \"a b\"; it must be 1 to 64 lower-case letters, \
            digits and underscores"
                    .into()
            )
        );
        let many: Vec<(&str, f64)> = (0..33).map(|_| ("a", 0.0)).collect();
        assert_eq!(
            message(named(&many)),
            Err("field `steps.terms` is 33 entries long; at most 32 are accepted".into())
        );
    }
}
