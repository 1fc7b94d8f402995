//! What a notification says. Pure.

use super::settings::What;
use crate::events;
use coordinator_core::event::Event;
use proto::id::JobId;
use proto::limits::{TEXT_BYTES, cut};
use proto::pb;
use proto::printable::{printable, printable_json};
use serde_json::json;
use std::collections::BTreeMap;

/// Something to tell of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    pub(crate) what: What,
    pub(crate) job: JobId,
    /// One sentence without the job's name.
    pub(crate) text: String,
    /// How many of them it tells of.
    pub(crate) count: u64,
    pub(crate) at_ms: u64,
}

impl Notice {
    /// None for events that nobody is told of.
    pub(crate) fn of(event: &Event, at_ms: u64) -> Option<Self> {
        let (what, job) = match event {
            Event::JobDone { job, .. } => (What::Done, job),
            Event::JobFailed { job, .. } => (What::Failed, job),
            Event::GenerationEnded { job, .. } => (What::Restarted, job),
            Event::EvaluationScored { job, .. } => (What::Evaluated, job),
            _ => return None,
        };
        Some(Self {
            what,
            job: job.clone(),
            text: events::line(event)?.text,
            count: 1,
            at_ms,
        })
    }

    /// The body that is posted, as JSON in one line. `view` is the job, unless it is deleted.
    /// `number` and the time that the coordinator started tell two notifications apart.
    pub(crate) fn body(&self, view: Option<&pb::JobView>, id: &str) -> String {
        let job = printable(&self.job.0);
        let named = match view {
            Some(view) if view.name != self.job.0 => format!("{job} ({})", printable(&view.name)),
            _ => job.to_string(),
        };
        let text = format!("{named}: {}", printable(&self.text));
        let empty = pb::JobView::default();
        let view = view.unwrap_or(&empty);
        let body = json!({
            "version": 1,
            "id": id,
            "event": self.what.word(),
            "count": self.count,
            "at_ms": self.at_ms,
            "job": self.job.0,
            "name": view.name,
            "team": view.team,
            "owner": view.owner,
            "labels": view.labels.iter().collect::<BTreeMap<_, _>>(),
            "note": view.note,
            "phase": view.phase,
            "step": view.step,
            "steps": view.steps,
            "generation": view.generation,
            "text": cut(&text, 2 * TEXT_BYTES),
        });
        printable_json(&body.to_string()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::id::Step;
    use serde_json::Value;

    #[test]
    fn a_hostile_name_stays_within_its_string() {
        let hostile = "x\",\"event\":\"failed\u{1b}[2J\u{202e}\n";
        let event = Event::JobDone {
            job: JobId("demo-1".into()),
            step: Step(4),
        };
        let notice = Notice::of(&event, 7).unwrap();
        let view = pb::JobView {
            name: hostile.into(),
            note: hostile.into(),
            labels: [("k".to_owned(), hostile.to_owned())].into(),
            step: 4,
            steps: 4,
            ..Default::default()
        };
        let body = notice.body(Some(&view), "1-2");
        assert!(
            !body.chars().any(proto::printable::is_deceptive),
            "{body:?}"
        );
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["event"], "done");
        assert_eq!(value["name"], hostile, "a program reads the name as it is");
        assert_eq!(
            value["text"],
            "demo-1 (x\",\"event\":\"failed\\u{1b}[2J\\u{202e}\\n): job is done after step 4"
        );
        assert_eq!((&value["at_ms"], &value["id"]), (&json!(7), &json!("1-2")));
        assert_eq!(value["count"], 1);
    }

    #[test]
    fn only_what_somebody_may_want_to_know_is_told() {
        let committed = Event::JobCancelled {
            job: JobId("demo-1".into()),
        };
        assert_eq!(Notice::of(&committed, 7), None);
    }
}
