//! What goes wrong, by events and effects: who is to blame, what it costs, and when it is the job's
//! own fault.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{JobPhase, RESTARTS_WITHOUT_PROGRESS_MAX};
use desk::{
    DETECT_WITHIN_MS, Desk, failed, failed_for_good, ignored, manifests, rank, told, with_step,
};
use proto::id::{JobId, Step};
use proto::message::RankPhase;

#[test]
fn a_rank_that_fails_after_the_last_commit_does_not_cost_another_generation() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 4);
    desk.receive("w1", vec![rank(&job, 1, 0, failed("exit status 1"))]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
}

#[test]
fn a_failed_rank_ends_its_generation_and_the_job_goes_on_from_the_last_commit() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 2);
    let effects = desk.receive("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    assert_eq!(desk.generation(&job), 2);
    let assignment = told(&effects, "w1");
    assert_eq!(
        (
            assignment.generation.0,
            assignment.gang().unwrap().resume.unwrap().step
        ),
        (2, Step(2))
    );
    assert_eq!(assignment.gang().unwrap().acknowledged_step, Step(2));
    let incident = &desk.job(&job).incidents[0];
    assert_eq!(
        incident.what,
        "rank 1 on w2#1 failed: out of memory; the job goes on from what survivors hold, or step 2"
    );
    // The same report again, late, is of a generation that is over.
    desk.receive("w2", vec![rank(&job, 1, 1, failed("out of memory"))]);
    assert_eq!(desk.generation(&job), 2);
}

#[test]
fn the_culprit_is_named_although_its_victim_was_heard_first() {
    let (mut desk, job) = Desk::training();
    desk.receive(
        "w1",
        vec![rank(&job, 1, 0, failed("Connection closed by peer [w2]"))],
    );
    assert!(desk.job(&job).incidents[0].what.starts_with("rank 0"));
    desk.receive("w2", vec![rank(&job, 1, 1, failed("killed by signal 9"))]);
    let what = &desk.job(&job).incidents[0].what;
    assert_eq!(
        what,
        "rank 1 on w2#1 failed: killed by signal 9; the job goes on from what survivors hold, or \
        step 0"
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
    desk.receive("w1", vec![]);
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
    desk.receive("w2", vec![]);
    assert_eq!(
        desk.generation(&job),
        3,
        "it may come back; under 2 the other waited"
    );
}

#[test]
fn a_restarted_worker_is_another_worker() {
    let (mut desk, job) = Desk::training();
    let effects = desk.receive("w2#2", vec![]);
    assert_eq!(desk.generation(&job), 2);
    assert_eq!(told(&effects, "w2#2").generation.0, 2);
    assert!(
        desk.job(&job).incidents[0]
            .what
            .starts_with("worker w2#1 restarted as w2#2")
    );
    assert_eq!(
        ignored(&desk.receive("w2#1", vec![])),
        ["reports although w2#2 has taken its place"]
    );
    assert_eq!(desk.generation(&job), 2);
}

#[test]
fn a_member_that_does_not_come_back_to_a_restarted_coordinator_is_lost() {
    let (mut desk, job) = Desk::training();
    desk.restart();
    desk.now += 2 * DETECT_WITHIN_MS;
    desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert!(
        desk.job(&job).incidents[0].what.starts_with("worker w"),
        "{:?}",
        desk.job(&job).incidents
    );
    assert_eq!(desk.job(&job).restarts, 1);
}

#[test]
fn a_fault_that_comes_back_every_time_is_the_jobs_own() {
    let (mut desk, job) = Desk::training();
    for generation in 1..=u64::from(RESTARTS_WITHOUT_PROGRESS_MAX) {
        assert!(!desk.job(&job).phase.is_over());
        desk.receive(
            "w1",
            vec![rank(&job, generation, 0, failed("no such file"))],
        );
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
    desk.receive(
        "w2",
        vec![rank(&job, 1, 1, failed_for_good("step 3: the loss is NaN"))],
    );
    assert_eq!(desk.generation(&job), 1, "no generation follows");
    assert_eq!(
        desk.reason(&job),
        "rank 1 on w2#1 failed: step 3: the loss is NaN; another generation would end in the same \
        way; the last \
         good checkpoint is that of step 2"
    );
    // Without a commit there is none to name.
    let (mut desk, job) = Desk::training();
    desk.receive(
        "w1",
        vec![rank(&job, 1, 0, failed_for_good("step 1: the loss is NaN"))],
    );
    assert!(desk.reason(&job).ends_with("; there is no checkpoint yet"));
}

#[test]
fn a_hopeless_job_waits_for_the_manifest_that_is_on_its_way() {
    let (mut desk, job) = Desk::training();
    assert_eq!(manifests(&desk.shards(&job, 2)).len(), 1);
    desk.receive(
        "w1",
        vec![rank(&job, 1, 0, failed_for_good("step 3: the loss is NaN"))],
    );
    assert!(!desk.job(&job).phase.is_over());
    // Neither its fate nor a restart gives it another generation.
    desk.restart();
    desk.receive("w1", vec![]);
    desk.receive("w2", vec![]);
    desk.written(&job, 2, Ok(()));
    assert_eq!(desk.generation(&job), 1);
    assert!(desk.job(&job).phase.is_over());
}

#[test]
fn a_permanent_failure_heard_after_its_victim_s_ends_the_job_too() {
    let (mut desk, job) = Desk::training();
    assert_eq!(manifests(&desk.shards(&job, 2)).len(), 1);
    desk.receive(
        "w1",
        vec![rank(&job, 1, 0, failed("Connection closed by peer [w2]"))],
    );
    desk.receive(
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
    for generation in 1..u64::from(RESTARTS_WITHOUT_PROGRESS_MAX) {
        desk.receive("w1", vec![rank(&job, generation, 0, failed("boom"))]);
    }
    desk.commit(&job, 2);
    desk.receive("w1", vec![rank(&job, 5, 0, failed("boom"))]);
    assert_eq!(desk.generation(&job), 6);
}

#[test]
fn a_report_that_cannot_be_true_is_ignored_and_noted_once() {
    let (mut desk, job) = Desk::training();
    desk.receive("w3", vec![]);
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
        assert_eq!(ignored(&desk.receive(worker, vec![report.clone()])), [what]);
        assert_eq!(
            ignored(&desk.receive(worker, vec![report])),
            Vec::<String>::new(),
            "once"
        );
    }
    assert_eq!(desk.generation(&job), 1);
    assert_eq!(desk.machine.view().jobs[0].step, Step(0));
}

#[test]
fn a_rank_that_never_appears_ends_its_generation() {
    let (mut desk, job) = Desk::training();
    for _ in 0..24 {
        desk.now += DETECT_WITHIN_MS / 2;
        desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Joining)]);
        desk.receive("w2", vec![]);
    }
    assert_eq!(
        desk.job(&job).incidents[0].what,
        "worker w2#1 is up but does not run rank 1; rank 0 on w1 waited for it; the job goes on \
        from what survivors hold, or step 0"
    );
}
