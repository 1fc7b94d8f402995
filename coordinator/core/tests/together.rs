//! Inputs that arrive together, and reports that change nothing: what a large cluster needs.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{
    About, DatasetPin, Effect, Event, Input, JobPhase, Reply, RequestId,
};
use harness::{DETECT_WITHIN_MS, Harness, id, rank, received, sends, spec, with_step};
use proto::id::{JobId, WorkerId};
use proto::message::RankPhase;

fn submit(number: u64, workers: u32) -> Input {
    let spec = spec(workers, workers);
    Input::Submit {
        request: RequestId(number),
        job_toml: proto::job::to_toml(&spec),
        dataset: DatasetPin::default(),
        spec: Box::new(spec),
        about: About::default(),
        archived: vec![],
    }
}

fn toy(number: u64) -> JobId {
    JobId(format!("toy-{number}"))
}

fn replies(effects: &[Effect]) -> Vec<(u64, &Reply)> {
    let mut replies = Vec::new();
    for effect in effects {
        if let Effect::Reply { request, reply } = effect {
            replies.push((request.0, reply));
        }
    }
    replies.sort_by_key(|(request, _)| *request);
    replies
}

fn down(effects: &[Effect]) -> Vec<WorkerId> {
    let worker = |effect: &Effect| match effect {
        Effect::Emit(Event::WorkerDown { worker, .. }) => Some(worker.clone()),
        _ => None,
    };
    effects.iter().filter_map(worker).collect()
}

#[test]
fn what_comes_together_is_saved_once_and_each_request_is_answered() {
    let mut harness = Harness::new();
    let cancel = Input::Cancel {
        request: RequestId(3),
        job: toy(1),
    };
    let delete = Input::Delete {
        request: RequestId(4),
        job: toy(1),
        archived: vec![],
    };
    let effects = harness.handle_all(vec![
        received("w1", &[], vec![]),
        submit(1, 1),
        submit(2, 2),
        cancel,
        delete,
        received("w2", &[], vec![]),
    ]);
    let saves = effects.iter().filter(|it| matches!(it, Effect::Save(_)));
    assert_eq!(saves.count(), 1);
    let accepted = |number| Reply::Accepted { job: toy(number) };
    let deleted = Reply::Deleted { job: toy(1) };
    let gone = Reply::Refused {
        reason: "there is no job toy-1; the newest is toy-2".into(),
    };
    let expected = [
        (1, &accepted(1)),
        (2, &accepted(2)),
        (3, &gone),
        (4, &deleted),
    ];
    assert_eq!(replies(&effects), expected);
    assert!(!harness.durable.jobs.contains_key(&toy(1)));
    // Scheduled once, with both workers.
    let phase = &harness.job(&toy(2)).phase;
    assert!(matches!(phase, JobPhase::Running { .. }), "{phase:?}");
    assert_eq!(sends(&effects).len(), 2);
    assert_eq!(harness.machine.handle_all(harness.now, vec![]), []);
}

#[test]
fn a_report_that_changes_nothing_only_extends_the_lease() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(spec(1, 1));
    let mut lost = Vec::new();
    for _ in 0..60 {
        harness.now += DETECT_WITHIN_MS / 5;
        let ranks = vec![rank(&job, 1, 0, RankPhase::Training)];
        // The daemon of w1 has ranks, and that of w2 falls silent later.
        let mut effects = harness.receive("w1", ranks);
        if lost.is_empty() && harness.now < 100_000 + 20 * DETECT_WITHIN_MS / 5 {
            let quiet = harness.receive("w2", vec![]);
            assert!(matches!(quiet[..], [Effect::Send { .. }]), "{quiet:?}");
        }
        effects.extend(harness.receive("w3", vec![]));
        lost.extend(down(&effects));
    }
    assert_eq!(lost, [id("w2")], "silent workers go, others stay");
    let views = harness.machine.workers();
    let up: Vec<&str> = views
        .iter()
        .filter(|it| it.up)
        .map(|it| it.id.name.as_str())
        .collect();
    assert_eq!(up, ["w1", "w3"]);
}

#[test]
fn quiet_workers_do_not_delay_what_is_due() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(spec(1, 1));
    let ranks = vec![with_step(rank(&job, 1, 0, RankPhase::Training), 1)];
    harness.receive("w1", ranks);
    // w1 falls silent; only reports of w2, which change nothing, tell the time.
    let mut lost = Vec::new();
    for _ in 0..60 {
        if lost.is_empty() {
            harness.now += DETECT_WITHIN_MS / 5;
            lost.extend(down(&harness.receive("w2", vec![])));
        }
    }
    assert_eq!(lost, [id("w1")]);
    assert_eq!(
        harness.generation(&job),
        2,
        "it goes on at the other worker"
    );
}
