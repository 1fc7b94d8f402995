//! The coordinator's machine by events and effects.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Effect, Input, JobPhase, Reply};
use desk::{DETECT_WITHIN_MS, Desk, id, manifests, rank, sends, spec, told, with_shard, with_step};
use proto::id::{JobId, Rank, Step};
use proto::message::RankPhase;

#[test]
fn a_job_is_saved_before_it_is_answered_and_says_what_it_waits_for() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    let job = desk.submit(spec(2, 2));
    assert_eq!(job, JobId("toy-1".to_owned()));
    assert_eq!(
        desk.reason(&job),
        "needs 2 cpu workers with 1 free device; 1 is free (w1)"
    );
    assert_eq!(
        desk.submit(spec(1, 1)),
        JobId("toy-2".to_owned()),
        "a smaller job does not wait behind it"
    );
    assert!(matches!(
        desk.job(&JobId("toy-2".to_owned())).phase,
        JobPhase::Running { .. }
    ));
    assert_eq!(
        desk.reason(&job),
        "needs 2 cpu workers with 1 free device; none is free; busy: w1"
    );
}

#[test]
fn an_impossible_gang_is_refused() {
    let mut desk = Desk::new();
    let submit = |request| Input::Submit {
        request,
        spec: Box::new(spec(3, 2)),
        job_toml: String::new(),
        dataset_version: String::new(),
    };
    let Reply::Refused { reason } = desk.ask(submit) else {
        panic!("accepted")
    };
    assert!(reason.contains("workers 3 to 2"), "{reason}");
    assert_eq!(desk.durable.jobs.len(), 0);
}

#[test]
fn a_generation_is_saved_before_it_is_sent_and_sent_on_every_report() {
    let mut desk = Desk::new();
    let job = desk.submit(spec(2, 2));
    desk.receive("w1", vec![]);
    let effects = desk.receive("w2", vec![]);
    assert_eq!(desk.generation(&job), 1);
    let (first, second) = (told(&effects, "w1"), told(&effects, "w2"));
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
        told(&desk.receive("w1", vec![]), "w1"),
        first,
        "again, whether it changed or not"
    );
    assert!(
        !sends(&desk.receive("w1", vec![])).contains_key("w2#1"),
        "but only to whom it concerns"
    );
}

#[test]
fn a_job_that_can_use_more_workers_waits_a_moment_for_them() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    let job = desk.submit(spec(1, 2));
    assert_eq!(desk.generation(&job), 0);
    assert!(
        desk.reason(&job)
            .ends_with("1 is free (w1); waits a moment for up to 2"),
        "{}",
        desk.reason(&job)
    );
    desk.now += DETECT_WITHIN_MS / 2;
    desk.receive("w1", vec![]);
    assert_eq!(
        desk.machine.next_deadline(),
        Some(desk.now + DETECT_WITHIN_MS / 2)
    );
    desk.wait(DETECT_WITHIN_MS / 2);
    assert_eq!(desk.generation(&job), 1);
}

#[test]
fn the_stores_address_reaches_every_member_when_nobody_loads_any_more() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    let job = desk.submit(spec(2, 2));
    let mut report = rank(&job, 1, 0, RankPhase::Joining);
    report.store_address = Some("host:1234".to_owned());
    let effects = desk.receive("w1", vec![report.clone()]);
    assert_eq!(
        told(&effects, "w1").gang().unwrap().store_address,
        None,
        "the other says nothing yet"
    );
    // However long the other takes, nobody gives it up.
    for _ in 0..200 {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive("w1", vec![report.clone()]);
        let effects = desk.receive("w2", vec![rank(&job, 1, 1, RankPhase::Starting)]);
        assert_eq!(told(&effects, "w2").gang().unwrap().store_address, None);
    }
    let effects = desk.receive("w2", vec![rank(&job, 1, 1, RankPhase::Joining)]);
    for worker in ["w1", "w2"] {
        assert_eq!(
            told(&effects, worker)
                .gang()
                .unwrap()
                .store_address
                .as_deref(),
            Some("host:1234")
        );
    }
    assert_eq!((desk.generation(&job), desk.job(&job).restarts), (1, 0));
}

#[test]
fn steps_are_acknowledged_and_noted_once() {
    let (mut desk, job) = Desk::training();
    let report = with_step(with_step(rank(&job, 1, 0, RankPhase::Training), 1), 2);
    let effects = desk.receive("w1", vec![report.clone()]);
    assert_eq!(
        told(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(2)
    );
    let noted = |effects: &[Effect]| {
        effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Emit(_)))
            .count()
    };
    assert_eq!(
        (noted(&effects), noted(&desk.receive("w1", vec![report]))),
        (2, 0)
    );
    assert_eq!(desk.machine.view().jobs[0].step, Step(2));
}

#[test]
fn a_restart_of_the_coordinator_restarts_nothing_that_comes_back() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 2);
    desk.restart();
    desk.wait(DETECT_WITHIN_MS);
    let effects = desk.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Finished), 4)],
    );
    assert_eq!(told(&effects, "w1").generation.0, 1);
    desk.now += DETECT_WITHIN_MS - 1;
    desk.receive("w1", vec![]);
    let effects = desk.receive(
        "w2",
        vec![with_shard(rank(&job, 1, 1, RankPhase::Finished), 4)],
    );
    assert_eq!(manifests(&effects).len(), 1);
    desk.written(&job, 4, Ok(()));
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(desk.job(&job).restarts, 0);
}

#[test]
fn a_cancelled_job_stays_cancelled_and_its_workers_are_told() {
    let (mut desk, job) = Desk::training();
    let reply = desk.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    assert_eq!(
        reply,
        Reply::Phase {
            phase: "cancelled".to_owned()
        }
    );
    let effects = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(sends(&effects)["w1#1"].assignments, vec![]);
    desk.restart();
    assert!(matches!(desk.job(&job).phase, JobPhase::Cancelled { .. }));
    let unknown = desk.ask(|request| Input::Cancel {
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
    let (mut desk, job) = Desk::training();
    desk.now -= 50_000;
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    assert_eq!(desk.generation(&job), 1);
    let deadline = desk.machine.next_deadline().unwrap();
    assert_eq!(deadline, desk.now + DETECT_WITHIN_MS);
    desk.wait(DETECT_WITHIN_MS);
    assert_eq!(desk.job(&job).restarts, 1);
}

#[test]
fn reports_that_waited_while_the_coordinator_was_busy_are_heard_before_leases_end() {
    let (mut desk, job) = Desk::training();
    desk.now += 5 * DETECT_WITHIN_MS;
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    assert_eq!((desk.generation(&job), desk.job(&job).restarts), (1, 0));
    desk.now += DETECT_WITHIN_MS - 1;
    desk.receive("w1", vec![]);
    desk.wait(1);
    assert_eq!(desk.job(&job).restarts, 1, "whoever lives is heard by then");
}

#[test]
fn a_worker_without_a_stream_gets_no_new_work() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    desk.handle(Input::Disconnected { worker: id("w1") });
    let job = desk.submit(spec(1, 1));
    assert_eq!(desk.generation(&job), 0);
    assert_eq!(
        desk.machine.next_deadline(),
        Some(desk.now + DETECT_WITHIN_MS)
    );
    desk.receive("w1", vec![]);
    assert_eq!(desk.generation(&job), 1);
}

#[test]
fn why_a_generation_forms_for_long_is_said_of_a_rank_that_nobody_reported_too() {
    let mut desk = Desk::new();
    desk.receive("w1", vec![]);
    let job = desk.submit(spec(1, 1));
    desk.now += DETECT_WITHIN_MS / 2;
    let why = |desk: &Desk| desk.machine.why(desk.now, &job).unwrap();
    assert_eq!(
        why(&desk).sentence,
        "it forms a group and waits because rank 0 on w1 has not been reported for 0.5 s"
    );
    assert_eq!(why(&desk).waits_for.unwrap().phase, "not reported");
    desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    assert_eq!(
        why(&desk).sentence,
        "it forms a group and waits because rank 0 on w1 has been starting for 0.0 s"
    );
}
