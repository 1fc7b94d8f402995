//! The coordinator's state machine by inputs and effects.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::WaitsFor;
use coordinator_core::event::{About, DatasetPin, Effect, Input, JobPhase, Reply};
use harness::{
    DETECT_WITHIN_MS, Harness, assigned, id, manifests, names, rank, sends, short_of, shortage,
    spec, with_shard, with_step,
};
use proto::id::{JobId, Rank, Step};
use proto::message::RankPhase;
use proto::reason::{Constraint, Shortage};

#[test]
fn a_job_is_saved_before_the_reply_and_its_reason_has_what_it_waits_for() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let job = harness.submit(spec(2, 2));
    assert_eq!(job, JobId("toy-1".to_owned()));
    let needs = Shortage {
        ready: names(&["w1"]),
        ..shortage(2)
    };
    assert_eq!(*harness.waiting(&job), short_of(needs, &[]));
    assert_eq!(
        harness.submit(spec(1, 1)),
        JobId("toy-2".to_owned()),
        "a smaller job does not wait behind it"
    );
    assert!(matches!(
        harness.job(&JobId("toy-2".to_owned())).phase,
        JobPhase::Running { .. }
    ));
    let needs = Shortage {
        busy: names(&["w1"]),
        ..shortage(2)
    };
    assert_eq!(*harness.waiting(&job), short_of(needs, &[]));
}

#[test]
fn an_impossible_gang_is_refused() {
    let mut harness = Harness::new();
    let submit = |request| Input::Submit {
        request,
        spec: Box::new(spec(3, 2)),
        job_toml: String::new(),
        dataset: DatasetPin::default(),
        about: About::default(),
        archived: vec![],
    };
    let Reply::Refused { reason } = harness.ask(submit) else {
        panic!("accepted")
    };
    assert!(reason.contains("workers 3 to 2"), "{reason}");
    assert_eq!(harness.durable.jobs.len(), 0);
}

#[test]
fn a_generation_is_saved_before_it_is_sent_and_sent_on_every_report() {
    let mut harness = Harness::new();
    let job = harness.submit(spec(2, 2));
    harness.receive("w1", vec![]);
    let effects = harness.receive("w2", vec![]);
    assert_eq!(harness.generation(&job), 1);
    let (first, second) = (assigned(&effects, "w1"), assigned(&effects, "w2"));
    assert_eq!((first.first_rank, second.first_rank), (Rank(0), Rank(1)));
    assert_eq!(
        (first.world(), first.ranks, first.gang().unwrap().resume),
        (2, 1, None)
    );
    assert_eq!(
        (first.job_toml.clone(), first.store_url.as_str()),
        (proto::job::to_toml(&spec(2, 2)), "file:///store")
    );
    assert_eq!(
        assigned(&harness.receive("w1", vec![]), "w1"),
        first,
        "sent again although it did not change"
    );
    assert!(
        !sends(&harness.receive("w1", vec![])).contains_key("w2#1"),
        "but only to the worker that reported"
    );
}

#[test]
fn a_job_that_can_use_more_workers_waits_briefly_for_them() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let job = harness.submit(spec(1, 2));
    assert_eq!(harness.generation(&job), 0);
    let needs = Shortage {
        constraint: Constraint::GracePeriod { workers_max: 2 },
        ready: names(&["w1"]),
        ..shortage(1)
    };
    assert_eq!(*harness.waiting(&job), short_of(needs, &[]));
    harness.now += DETECT_WITHIN_MS / 2;
    harness.receive("w1", vec![]);
    assert_eq!(
        harness.machine.next_deadline(),
        Some(harness.now + DETECT_WITHIN_MS / 2)
    );
    harness.wait(DETECT_WITHIN_MS / 2);
    assert_eq!(harness.generation(&job), 1);
}

#[test]
fn the_stores_address_reaches_every_member_when_no_rank_is_loading() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(spec(2, 2));
    let mut report = rank(&job, 1, 0, RankPhase::Joining);
    report.store_address = Some("host:1234".to_owned());
    let effects = harness.receive("w1", vec![report.clone()]);
    assert_eq!(
        assigned(&effects, "w1").gang().unwrap().store_address,
        None,
        "the other rank is not reported yet"
    );
    // However long the other rank loads, the generation does not time out.
    for _ in 0..200 {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w1", vec![report.clone()]);
        let effects = harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Starting)]);
        assert_eq!(assigned(&effects, "w2").gang().unwrap().store_address, None);
    }
    let effects = harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Joining)]);
    for worker in ["w1", "w2"] {
        assert_eq!(
            assigned(&effects, worker)
                .gang()
                .unwrap()
                .store_address
                .as_deref(),
            Some("host:1234")
        );
    }
    assert_eq!(
        (harness.generation(&job), harness.job(&job).restarts),
        (1, 0)
    );
}

#[test]
fn steps_are_acknowledged_and_emitted_once() {
    let (mut harness, job) = Harness::training();
    let report = with_step(with_step(rank(&job, 1, 0, RankPhase::Training), 1), 2);
    let effects = harness.receive("w1", vec![report.clone()]);
    assert_eq!(
        assigned(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(2)
    );
    let emitted = |effects: &[Effect]| {
        effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Emit(_)))
            .count()
    };
    assert_eq!(
        (
            emitted(&effects),
            emitted(&harness.receive("w1", vec![report]))
        ),
        (2, 0)
    );
    assert_eq!(harness.machine.view().jobs[0].step, Step(2));
}

#[test]
fn a_restart_of_the_coordinator_restarts_no_generation_that_reconnects() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 2);
    harness.restart();
    harness.wait(DETECT_WITHIN_MS);
    let effects = harness.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Finished), 4)],
    );
    assert_eq!(assigned(&effects, "w1").generation.0, 1);
    harness.now += DETECT_WITHIN_MS - 1;
    harness.receive("w1", vec![]);
    let effects = harness.receive(
        "w2",
        vec![with_shard(rank(&job, 1, 1, RankPhase::Finished), 4)],
    );
    assert_eq!(manifests(&effects).len(), 1);
    harness.written(&job, 4, Ok(()));
    assert!(matches!(harness.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(harness.job(&job).restarts, 0);
}

#[test]
fn a_cancelled_job_stays_cancelled_and_its_workers_are_released() {
    let (mut harness, job) = Harness::training();
    let reply = harness.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    assert_eq!(
        reply,
        Reply::Phase {
            phase: "cancelled".to_owned()
        }
    );
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(sends(&effects)["w1#1"].assignments, vec![]);
    harness.restart();
    assert!(matches!(
        harness.job(&job).phase,
        JobPhase::Cancelled { .. }
    ));
    let unknown = harness.ask(|request| Input::Cancel {
        request,
        job: JobId("x-1".to_owned()),
    });
    assert_eq!(
        unknown,
        Reply::Refused {
            reason: "there is no job x-1; the newest is toy-1".to_owned()
        }
    );
}

#[test]
fn a_clock_that_is_set_back_takes_nothing_from_a_lease() {
    let (mut harness, job) = Harness::training();
    harness.now -= 50_000;
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    assert_eq!(harness.generation(&job), 1);
    let deadline = harness.machine.next_deadline().unwrap();
    assert_eq!(deadline, harness.now + DETECT_WITHIN_MS);
    harness.wait(DETECT_WITHIN_MS);
    assert_eq!(harness.job(&job).restarts, 1);
}

#[test]
fn reports_that_waited_while_the_coordinator_was_busy_are_handled_before_leases_expire() {
    let (mut harness, job) = Harness::training();
    harness.now += 5 * DETECT_WITHIN_MS;
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    assert_eq!(
        (harness.generation(&job), harness.job(&job).restarts),
        (1, 0)
    );
    harness.now += DETECT_WITHIN_MS - 1;
    harness.receive("w1", vec![]);
    harness.wait(1);
    assert_eq!(
        harness.job(&job).restarts,
        1,
        "every live worker has reported by then"
    );
}

#[test]
fn a_worker_without_a_stream_gets_no_new_work() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.handle(Input::Disconnected { worker: id("w1") });
    let job = harness.submit(spec(1, 1));
    assert_eq!(harness.generation(&job), 0);
    assert_eq!(
        harness.machine.next_deadline(),
        Some(harness.now + DETECT_WITHIN_MS)
    );
    harness.receive("w1", vec![]);
    assert_eq!(harness.generation(&job), 1);
}

#[test]
fn why_names_an_unreported_rank_of_a_forming_generation() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let job = harness.submit(spec(1, 1));
    harness.now += DETECT_WITHIN_MS / 2;
    let why = |harness: &Harness| harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(why(&harness).constraint, "forming");
    let waits_for = |for_ms, phase: &str| WaitsFor {
        rank: Rank(0),
        worker: id("w1"),
        phase: phase.to_owned(),
        for_ms,
    };
    let unreported = waits_for(DETECT_WITHIN_MS / 2, "not reported");
    assert_eq!(why(&harness).waits_for, Some(unreported));
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    assert_eq!(why(&harness).constraint, "forming");
    let starting = waits_for(0, RankPhase::Starting.word());
    assert_eq!(why(&harness).waits_for, Some(starting));
}
