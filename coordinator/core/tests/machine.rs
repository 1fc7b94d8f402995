//! The coordinator's machine by events and effects.

#![allow(clippy::unwrap_used)]

mod desk;

use coordinator_core::event::{Effect, Event, FRUITLESS_MAX, JobPhase, Reply};
use desk::{
    DETECT_WITHIN_MS, Desk, deleted, failed, failed_for_good, id, ignored, manifests, rank, sample_of, sends,
    spec, told, with_shard, with_step,
};
use proto::id::{JobId, Rank, Step};
use proto::message::{RankPhase, Work};

#[test]
fn a_job_is_saved_before_it_is_answered_and_says_what_it_waits_for() {
    let mut desk = Desk::new();
    desk.hear("w1", vec![]);
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
    let submit = |request| Event::Submit {
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
    desk.hear("w1", vec![]);
    let effects = desk.hear("w2", vec![]);
    assert_eq!(desk.generation(&job), 1);
    let (first, second) = (told(&effects, "w1"), told(&effects, "w2"));
    assert_eq!((first.first_rank, second.first_rank), (Rank(0), Rank(1)));
    assert_eq!((first.world, first.ranks, first.resume), (2, 1, None));
    assert_eq!(
        (first.job_toml.as_str(), first.store_url.as_str()),
        ("toml", "file:///store")
    );
    assert_eq!(
        told(&desk.hear("w1", vec![]), "w1"),
        first,
        "again, whether it changed or not"
    );
    assert!(
        !sends(&desk.hear("w1", vec![])).contains_key("w2#1"),
        "but only to whom it concerns"
    );
}

#[test]
fn a_job_that_can_use_more_workers_waits_a_moment_for_them() {
    let mut desk = Desk::new();
    desk.hear("w1", vec![]);
    let job = desk.submit(spec(1, 2));
    assert_eq!(desk.generation(&job), 0);
    assert!(
        desk.reason(&job)
            .ends_with("1 is free (w1); waits a moment for up to 2"),
        "{}",
        desk.reason(&job)
    );
    desk.now += DETECT_WITHIN_MS / 2;
    desk.hear("w1", vec![]);
    assert_eq!(
        desk.machine.next_deadline(),
        Some(desk.now + DETECT_WITHIN_MS / 2)
    );
    desk.wait(DETECT_WITHIN_MS / 2);
    assert_eq!(desk.generation(&job), 1);
}

#[test]
fn the_stores_address_reaches_every_member() {
    let mut desk = Desk::new();
    desk.hear("w1", vec![]);
    desk.hear("w2", vec![]);
    let job = desk.submit(spec(2, 2));
    let mut report = rank(&job, 1, 0, RankPhase::Joining);
    report.store_address = Some("host:1234".to_owned());
    let effects = desk.hear("w1", vec![report]);
    for worker in ["w1", "w2"] {
        assert_eq!(told(&effects, worker).store_address.as_deref(), Some("host:1234"));
    }
}

#[test]
fn steps_are_acknowledged_and_noted_once() {
    let (mut desk, job) = Desk::training();
    let report = with_step(with_step(rank(&job, 1, 0, RankPhase::Training), 1), 2);
    let effects = desk.hear("w1", vec![report.clone()]);
    assert_eq!(told(&effects, "w1").acknowledged_step, Step(2));
    let noted = |effects: &[Effect]| {
        effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Note(_)))
            .count()
    };
    assert_eq!((noted(&effects), noted(&desk.hear("w1", vec![report]))), (2, 0));
    assert_eq!(desk.machine.view().jobs[0].step, Step(2));
}

#[test]
fn a_checkpoint_is_committed_when_all_shards_are_there() {
    let (mut desk, job) = Desk::training();
    let first = desk.hear("w1", vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)]);
    assert_eq!(manifests(&first), vec![], "one shard of two");
    let written = manifests(&desk.shards(&job, 2));
    assert_eq!(written.len(), 1);
    let paths: Vec<&str> = written[0]
        .shards
        .iter()
        .map(|shard| shard.path.as_str())
        .collect();
    assert_eq!(paths, ["rank-0.safetensors", "rank-1.safetensors"]);
    assert_eq!(manifests(&desk.shards(&job, 2)), vec![], "it is on its way");
    assert!(desk.job(&job).checkpoints.is_empty(), "and not there yet");
    let effects = desk.written(&job, 2, Ok(()));
    assert_eq!(desk.job(&job).checkpoints.len(), 1);
    assert_eq!(told(&effects, "w2").committed_step, Step(2));
    assert_eq!(manifests(&desk.shards(&job, 2)), vec![], "it is there");
}

#[test]
fn a_manifest_that_was_not_written_is_written_again() {
    let (mut desk, job) = Desk::training();
    desk.shards(&job, 2);
    assert_eq!(manifests(&desk.written(&job, 2, Err("503".to_owned()))), vec![]);
    desk.now += DETECT_WITHIN_MS;
    let again = desk.hear("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(manifests(&again).len(), 1);
}

#[test]
fn a_job_is_done_when_its_last_checkpoint_is_committed_and_all_ranks_are_finished() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 4);
    desk.hear("w1", vec![rank(&job, 1, 0, RankPhase::Finished)]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Running { .. }));
    let effects = desk.hear("w2", vec![rank(&job, 1, 1, RankPhase::Finished)]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(
        sends(&effects)["w1#1"].assignments,
        vec![],
        "its workers are told by its absence"
    );
}

#[test]
fn a_rank_that_fails_after_the_last_commit_does_not_cost_another_generation() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 4);
    desk.hear("w1", vec![rank(&job, 1, 0, failed("exit status 1"))]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
}

#[test]
fn a_failed_rank_ends_its_generation_and_the_job_goes_on_from_the_last_commit() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 2);
    let effects = desk.hear("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    assert_eq!(desk.generation(&job), 2);
    let assignment = told(&effects, "w1");
    assert_eq!(
        (assignment.generation.0, assignment.resume.unwrap().step),
        (2, Step(2))
    );
    assert_eq!(assignment.acknowledged_step, Step(2));
    let incident = &desk.job(&job).incidents[0];
    assert_eq!(
        incident.what,
        "rank 1 on w2#1 failed: out of memory; the job goes on from what survivors hold, or step 2"
    );
    // The same report again, late, is of a generation that is over.
    desk.hear("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    assert_eq!(desk.generation(&job), 2);
}

#[test]
fn the_culprit_is_named_although_its_victim_was_heard_first() {
    let (mut desk, job) = Desk::training();
    desk.hear(
        "w1",
        vec![rank(&job, 1, 0, failed("Connection closed by peer [w2]"))],
    );
    assert!(desk.job(&job).incidents[0].what.starts_with("rank 0"));
    desk.hear("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    let what = &desk.job(&job).incidents[0].what;
    assert_eq!(
        what,
        "rank 1 on w2#1 failed: killed by signal 9; the job goes on from what survivors hold, or step 0"
    );
    assert_eq!(desk.job(&job).incidents.len(), 1);
    assert_eq!(
        desk.generation(&job),
        2,
        "it does not end the next generation as well"
    );
}

#[test]
fn a_worker_that_is_not_heard_ends_what_it_was_part_of() {
    let (mut desk, job) = Desk::training();
    desk.now += DETECT_WITHIN_MS - 1;
    desk.hear("w1", vec![]);
    assert_eq!(desk.machine.next_deadline(), Some(desk.now + 1));
    desk.wait(1);
    assert!(
        desk.job(&job).incidents[0]
            .what
            .starts_with("worker w2#1 was not heard for 1000 ms")
    );
    assert_eq!(
        desk.reason(&job),
        "needs 2 cpu workers with 1 free device; 1 is free (w1); its state is kept by w1"
    );
    desk.hear("w2", vec![]);
    assert_eq!(
        desk.generation(&job),
        3,
        "it may come back; under 2 the other waited"
    );
}

#[test]
fn a_restarted_worker_is_another_worker() {
    let (mut desk, job) = Desk::training();
    let effects = desk.hear("w2#2", vec![]);
    assert_eq!(desk.generation(&job), 2);
    assert_eq!(told(&effects, "w2#2").generation.0, 2);
    assert!(
        desk.job(&job).incidents[0]
            .what
            .starts_with("worker w2#1 restarted as w2#2")
    );
    assert_eq!(
        ignored(&desk.hear("w2#1", vec![])),
        ["reports although w2#2 has taken its place"]
    );
    assert_eq!(desk.generation(&job), 2);
}

#[test]
fn a_restart_of_the_coordinator_restarts_nothing_that_comes_back() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 2);
    desk.restart();
    desk.wait(DETECT_WITHIN_MS);
    let effects = desk.hear("w1", vec![with_shard(rank(&job, 1, 0, RankPhase::Finished), 4)]);
    assert_eq!(told(&effects, "w1").generation.0, 1);
    desk.now += DETECT_WITHIN_MS - 1;
    desk.hear("w1", vec![]);
    let effects = desk.hear("w2", vec![with_shard(rank(&job, 1, 1, RankPhase::Finished), 4)]);
    assert_eq!(manifests(&effects).len(), 1);
    desk.written(&job, 4, Ok(()));
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(desk.job(&job).restarts, 0);
}

#[test]
fn a_member_that_does_not_come_back_to_a_restarted_coordinator_is_lost() {
    let (mut desk, job) = Desk::training();
    desk.restart();
    desk.now += 2 * DETECT_WITHIN_MS;
    desk.hear("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert!(
        desk.job(&job).incidents[0].what.starts_with("worker w"),
        "{:?}",
        desk.job(&job).incidents
    );
    assert_eq!(desk.job(&job).restarts, 1);
}

#[test]
fn a_manifest_on_its_way_when_its_generation_ends_still_counts() {
    let (mut desk, job) = Desk::training();
    desk.shards(&job, 2);
    desk.hear("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(
        desk.generation(&job),
        1,
        "the next generation waits until its fate is known"
    );
    let effects = desk.written(&job, 2, Ok(()));
    assert_eq!(desk.generation(&job), 2);
    assert_eq!(
        told(&effects, "w1").resume.map(|resume| resume.step),
        Some(Step(2))
    );
}

#[test]
fn an_older_generation_publishes_nothing() {
    let (mut desk, job) = Desk::training();
    desk.hear("w1", vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)]);
    desk.hear("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(desk.generation(&job), 2);
    desk.hear("w1", vec![with_shard(rank(&job, 2, 0, RankPhase::Training), 2)]);
    let late = || vec![with_shard(rank(&job, 1, 1, RankPhase::Training), 2)];
    let heard = desk.hear("w2", late());
    assert_eq!(manifests(&heard), vec![]);
    assert_eq!(
        ignored(&heard),
        ["still reports generation 1 of toy-1, which is at generation 2"]
    );
    assert_eq!(ignored(&desk.hear("w2", late())), Vec::<String>::new(), "once");
}

#[test]
fn a_fault_that_comes_back_every_time_is_the_jobs_own() {
    let (mut desk, job) = Desk::training();
    for generation in 1..=u64::from(FRUITLESS_MAX) {
        assert!(!desk.job(&job).phase.is_over());
        desk.hear("w1", vec![rank(&job, generation, 0, failed("no such file"))]);
    }
    let reason = desk.reason(&job);
    assert_eq!(
        reason,
        "rank 0 on w1#1 failed: no such file; that is generation 5 in a row that got no further"
    );
}

#[test]
fn a_failure_that_would_repeat_ends_the_job_at_once_and_names_the_last_good_checkpoint() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 2);
    desk.hear(
        "w2",
        vec![rank(&job, 1, 1, failed_for_good("step 3: the loss is NaN"))],
    );
    assert_eq!(desk.generation(&job), 1, "no generation follows");
    assert_eq!(
        desk.reason(&job),
        "rank 1 on w2#1 failed: step 3: the loss is NaN; another generation would end in the same way; the last \
         good checkpoint is that of step 2"
    );
    // Without a commit there is none to name.
    let (mut desk, job) = Desk::training();
    desk.hear(
        "w1",
        vec![rank(&job, 1, 0, failed_for_good("step 1: the loss is NaN"))],
    );
    assert!(desk.reason(&job).ends_with("; there is no checkpoint yet"));
}

#[test]
fn a_hopeless_job_waits_for_the_manifest_that_is_on_its_way() {
    let (mut desk, job) = Desk::training();
    assert_eq!(manifests(&desk.shards(&job, 2)).len(), 1);
    desk.hear(
        "w1",
        vec![rank(&job, 1, 0, failed_for_good("step 3: the loss is NaN"))],
    );
    assert!(!desk.job(&job).phase.is_over());
    // Neither its fate nor a restart gives it another generation.
    desk.restart();
    desk.hear("w1", vec![]);
    desk.hear("w2", vec![]);
    desk.written(&job, 2, Ok(()));
    assert_eq!(desk.generation(&job), 1);
    assert!(desk.job(&job).phase.is_over());
}

#[test]
fn a_permanent_failure_heard_after_its_victim_s_ends_the_job_too() {
    let (mut desk, job) = Desk::training();
    assert_eq!(manifests(&desk.shards(&job, 2)).len(), 1);
    desk.hear(
        "w1",
        vec![rank(&job, 1, 0, failed("Connection closed by peer [w2]"))],
    );
    desk.hear(
        "w2",
        vec![rank(&job, 1, 1, failed_for_good("step 3: the loss is NaN"))],
    );
    desk.written(&job, 2, Ok(()));
    assert_eq!(desk.generation(&job), 1);
    assert!(desk.reason(&job).contains("step 3: the loss is NaN"));
}

#[test]
fn a_commit_makes_up_for_fruitless_generations() {
    let (mut desk, job) = Desk::training();
    for generation in 1..u64::from(FRUITLESS_MAX) {
        desk.hear("w1", vec![rank(&job, generation, 0, failed("boom"))]);
    }
    desk.commit(&job, 2);
    desk.hear("w1", vec![rank(&job, 5, 0, failed("boom"))]);
    assert_eq!(desk.generation(&job), 6);
}

#[test]
fn retention_deletes_what_nobody_reads() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 1);
    assert_eq!(deleted(&desk.commit(&job, 2)), [1]);
    let Reply::Accepted { job: pictures } = desk.ask(|request| Event::Sample {
        request,
        sample: sample_of(&job),
        latest: true,
    }) else {
        panic!("refused")
    };
    let Work::Sample(sample) = &desk.job(&pictures).work else {
        panic!("not a sample job")
    };
    assert_eq!(sample.checkpoint.unwrap().step, Step(2));
    assert!(
        deleted(&desk.commit(&job, 3)).is_empty(),
        "step 2 is to be drawn from"
    );
    let effects = {
        let mut effects = Vec::new();
        desk.ask(|request| Event::Cancel {
            request,
            job: pictures.clone(),
        });
        effects.extend(desk.commit(&job, 4));
        effects
    };
    assert_eq!(desk.job(&job).checkpoints.len(), 1);
    assert_eq!(deleted(&effects), [3], "2 went with the job that read it");
}

#[test]
fn pictures_are_drawn_by_a_job_of_one_rank() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 2);
    desk.hear("w3", vec![]);
    let sample = sample_of(&job);
    let Reply::Accepted { job: pictures } = desk.ask(|request| Event::Sample {
        request,
        sample,
        latest: true,
    }) else {
        panic!("refused")
    };
    assert_eq!(pictures, JobId("toy-1-sample-2".to_owned()));
    let assignment = told(&desk.hear("w3", vec![]), "w3");
    assert_eq!((assignment.world, assignment.resume), (1, None));
    desk.hear("w3", vec![rank(&pictures, 1, 0, RankPhase::Finished)]);
    assert!(matches!(desk.job(&pictures).phase, JobPhase::Done { .. }));
}

#[test]
fn pictures_of_nothing_are_refused_with_what_there_is() {
    let (mut desk, job) = Desk::training();
    let mut refused = |sample: proto::message::SampleRequest, latest| {
        let reply = desk.ask(|request| Event::Sample {
            request,
            sample,
            latest,
        });
        let Reply::Refused { reason } = reply else {
            panic!("{reply:?}")
        };
        reason
    };
    assert_eq!(
        refused(sample_of(&job), true),
        "job toy-1 has no committed checkpoint yet"
    );
    let unknown = sample_of(&JobId("toy-9".to_owned()));
    assert_eq!(
        refused(unknown, true),
        "there is no job toy-9; the newest is toy-1"
    );
    let mut none = sample_of(&job);
    none.count = 0;
    assert!(refused(none, false).starts_with("count: 0"));
}

#[test]
fn a_cancelled_job_stays_cancelled_and_its_workers_are_told() {
    let (mut desk, job) = Desk::training();
    let reply = desk.ask(|request| Event::Cancel {
        request,
        job: job.clone(),
    });
    assert_eq!(
        reply,
        Reply::Phase {
            phase: "cancelled".to_owned()
        }
    );
    let effects = desk.hear("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(sends(&effects)["w1#1"].assignments, vec![]);
    desk.restart();
    assert!(matches!(desk.job(&job).phase, JobPhase::Cancelled { .. }));
    let unknown = desk.ask(|request| Event::Cancel {
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
fn a_report_that_cannot_be_true_is_ignored_and_noted_once() {
    let (mut desk, job) = Desk::training();
    desk.hear("w3", vec![]);
    let other = JobId("other-7".to_owned());
    let cases = [
        (
            "w1",
            rank(&other, 1, 0, failed("x")),
            "reports a rank of other-7, which was never submitted here",
        ),
        (
            "w1",
            rank(&job, 9, 0, failed("x")),
            "reports generation 9 of toy-1, whose newest generation is 1",
        ),
        (
            "w3",
            rank(&job, 1, 0, failed("x")),
            "reports a rank of toy-1 generation 1, of which it is not a member",
        ),
        (
            "w1",
            rank(&job, 1, 1, failed("x")),
            "reports rank 1; it runs 1 ranks from rank 0 on",
        ),
        (
            "w1",
            with_step(rank(&job, 1, 0, RankPhase::Training), 5),
            "reports step 5 of a job that has steps 1 to 4",
        ),
    ];
    for (worker, report, what) in cases {
        assert_eq!(ignored(&desk.hear(worker, vec![report.clone()])), [what]);
        assert_eq!(
            ignored(&desk.hear(worker, vec![report])),
            Vec::<String>::new(),
            "once"
        );
    }
    assert_eq!(desk.generation(&job), 1);
    assert_eq!(desk.machine.view().jobs[0].step, Step(0));
}

#[test]
fn shards_of_different_base_weights_are_no_checkpoint() {
    let (mut desk, job) = Desk::training();
    let mut other = with_shard(rank(&job, 1, 1, RankPhase::Training), 2);
    other.shards[0].init_digest = Some("ff".to_owned());
    desk.hear("w1", vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)]);
    assert_eq!(manifests(&desk.hear("w2", vec![other])), vec![]);
    assert!(
        desk.job(&job).incidents[0]
            .what
            .contains("different base weights")
    );
}

#[test]
fn a_rank_that_never_appears_ends_its_generation() {
    let (mut desk, job) = Desk::training();
    for _ in 0..24 {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.hear("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        desk.hear("w2", vec![]);
    }
    assert_eq!(
        desk.job(&job).incidents[0].what,
        "worker w2#1 is up but does not run rank 1; rank 0 on w1 waited for it; the job goes on from what survivors hold, or step 0"
    );
}

#[test]
fn a_clock_that_is_set_back_takes_nothing_from_a_lease() {
    let (mut desk, job) = Desk::training();
    desk.now -= 50_000;
    desk.hear("w1", vec![]);
    desk.hear("w2", vec![]);
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
    desk.hear("w1", vec![]);
    desk.hear("w2", vec![]);
    assert_eq!((desk.generation(&job), desk.job(&job).restarts), (1, 0));
    desk.now += DETECT_WITHIN_MS - 1;
    desk.hear("w1", vec![]);
    desk.wait(1);
    assert_eq!(desk.job(&job).restarts, 1, "whoever lives is heard by then");
}

#[test]
fn a_worker_without_a_stream_gets_no_new_work() {
    let mut desk = Desk::new();
    desk.hear("w1", vec![]);
    desk.handle(Event::Disconnected { worker: id("w1") });
    let job = desk.submit(spec(1, 1));
    assert_eq!(desk.generation(&job), 0);
    assert_eq!(desk.machine.next_deadline(), Some(desk.now + DETECT_WITHIN_MS));
    desk.hear("w1", vec![]);
    assert_eq!(desk.generation(&job), 1);
}
