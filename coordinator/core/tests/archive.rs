//! Ended jobs leave the machine's memory, are deleted, or are retried.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with other tests")]
mod harness;

use coordinator_core::event::{Effect, Input, JobPhase, Record, Reply};
use harness::{Harness, failed_for_good, machine_with, rank, sample_of, spec};
use proto::id::{JobId, Step};
use proto::job::overrides::Override;
use proto::ledger::Line;
use proto::message::{GracefulStop, RankPhase};
use proto::phase::Phase;
use proto::reason::{Cause, Waiting};
use proto::spec::Work;
use std::time::Duration;

/// A coordinator that archives every job once it has ended, and a running job with a checkpoint of
/// step 2.
fn archiving() -> (Harness, JobId) {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 2);
    harness.machine = machine_with(&harness.durable, harness.now, 0);
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
    (harness, job)
}

fn cancel(harness: &mut Harness, job: &JobId) {
    let job = job.clone();
    harness.ask(|request| Input::Cancel { request, job });
    harness.handle(Input::Deadline);
}

fn retry(harness: &mut Harness, job: &JobId, set: &[&str]) -> Reply {
    let archived = harness.archived(std::slice::from_ref(job));
    let (job, overrides) = (
        job.clone(),
        set.iter().map(|it| it.parse().unwrap()).collect(),
    );
    harness.ask(|request| Input::Retry {
        request,
        job,
        overrides,
        archived,
    })
}

fn delete(harness: &mut Harness, job: &JobId) -> Reply {
    let archived = harness.archived(std::slice::from_ref(job));
    let job = job.clone();
    harness.ask(|request| Input::Delete {
        request,
        job,
        archived,
    })
}

fn in_memory(harness: &Harness) -> Vec<JobId> {
    let view = harness.machine.view();
    view.jobs.iter().map(|job| job.record.id.clone()).collect()
}

fn is_refused(reply: &Reply, part: &str) {
    assert!(
        matches!(reply, Reply::Refused { reason } if reason.contains(part)),
        "{part}: {reply:?}"
    );
}

#[test]
fn an_ended_job_is_archived_after_its_end_was_saved_and_shown() {
    let (mut harness, job) = archiving();
    let id = job.clone();
    harness.ask(|request| Input::Cancel { request, job: id });
    assert_eq!(
        in_memory(&harness),
        std::slice::from_ref(&job),
        "whoever watches sees its end"
    );
    let effects = harness.handle(Input::Deadline);
    let archived = match &effects[..] {
        [Effect::Save(records), ..] => records
            .iter()
            .any(|it| matches!(it, Record::Archived(record) if record.id == job)),
        _ => false,
    };
    assert!(archived, "{effects:?}");
    assert_eq!(in_memory(&harness), []);
    assert!(harness.durable.archived.contains(&job));
    harness.machine = machine_with(&harness.durable, harness.now, 0);
    assert_eq!(in_memory(&harness), [], "a restart does not load it");
}

#[test]
fn a_job_may_read_and_wait_for_an_archived_one_which_stays_in_memory_meanwhile() {
    let (mut harness, job) = archiving();
    cancel(&mut harness, &job);
    assert_eq!(in_memory(&harness), []);
    let images = harness.submit(sample_of(&job));
    assert_eq!(in_memory(&harness), [job.clone(), images.clone()]);
    let source = harness.job(&images).source.clone().unwrap();
    assert_eq!(source.checkpoint.unwrap().step, Step(2));
    harness.machine = machine_with(&harness.durable, harness.now, 0);
    assert_eq!(in_memory(&harness), [job.clone(), images.clone()]);
    is_refused(
        &delete(&mut harness, &job),
        "waits for job toy-1 or reads it",
    );
    cancel(&mut harness, &images);
    harness.handle(Input::Deadline);
    assert_eq!(in_memory(&harness), []);
    let mut after = spec(1, 1);
    after.after = vec![job.clone()];
    let waiting = harness.submit(after);
    assert!(
        matches!(
            &harness.job(&waiting).phase,
            JobPhase::Queued {
                reason: Waiting::DependencyFailed { .. }
            }
        ),
        "{:?}",
        harness.job(&waiting).phase
    );
    // It goes on once the other one is retried.
    assert!(matches!(
        retry(&mut harness, &job, &[]),
        Reply::Phase { .. }
    ));
    assert!(matches!(
        &harness.job(&waiting).phase,
        JobPhase::Queued {
            reason: Waiting::Dependencies { .. }
        }
    ));
}

#[test]
fn a_deleted_job_is_gone_and_one_that_runs_is_not_deleted() {
    let (mut harness, job) = archiving();
    is_refused(
        &delete(&mut harness, &job),
        "`coordinator cancel toy-1` ends it first",
    );
    cancel(&mut harness, &job);
    assert_eq!(
        delete(&mut harness, &job),
        Reply::Deleted { job: job.clone() }
    );
    assert!(harness.durable.jobs.is_empty() && harness.durable.archived.is_empty());
    is_refused(&delete(&mut harness, &job), "there is no job toy-1");
    let next = harness.submit(spec(1, 1));
    assert_ne!(next, job, "its id is not used again");
}

#[test]
fn a_failed_job_continues_from_its_last_checkpoint_with_what_was_set() {
    let (mut harness, job) = archiving();
    harness.receive(
        "w2",
        vec![rank(&job, 1, 1, failed_for_good("the loss is NaN"))],
    );
    harness.handle(Input::Deadline);
    assert_eq!(harness.job(&job).shown(), Phase::Failed);
    assert_eq!(in_memory(&harness), [], "it is in the archive");
    let text = harness.job(&job).job_toml.clone();
    let reply = retry(
        &mut harness,
        &job,
        &["train.steps=6", "train.learning_rate=1e-6"],
    );
    assert!(matches!(reply, Reply::Phase { .. }), "{reply:?}");
    let record = harness.job(&job);
    assert_eq!(record.job_toml, text, "the submitted text keeps its bytes");
    let set = |key: &str, value: &str| Override {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    assert_eq!(
        record.overrides[..1],
        [set("train.steps", "6")],
        "{:?}",
        record.overrides
    );
    assert_eq!(record.checkpoints.last().unwrap().step, Step(2));
    assert_eq!(record.restarts_without_progress, 0);
    // The members of the failed generation are asked to stop; then the next one forms.
    harness.wait(1_000);
    harness.receive("w2", vec![]);
    let effects = harness.receive("w1", vec![]);
    assert_eq!(
        harness.job(&job).shown(),
        Phase::Running,
        "{:?}",
        harness.job(&job).phase
    );
    let order = harness::assigned(&effects, "w1");
    assert!(order.job_toml.contains("steps = 6"), "{}", order.job_toml);
    let resume = order.gang().unwrap().resume.unwrap();
    assert_eq!(resume.step, Step(2));
    harness.restart();
    assert_eq!(harness.job(&job).overrides.len(), 2);
}

#[test]
fn each_override_is_a_line_of_the_ledger() {
    let (mut harness, job) = archiving();
    cancel(&mut harness, &job);
    let archived = harness.archived(std::slice::from_ref(&job));
    let (id, before) = (job.clone(), harness.job(&job).ledger.entries);
    let request = coordinator_core::event::RequestId(99);
    let overrides = vec!["train.steps=9".parse().unwrap()];
    let effects = harness.handle(Input::Retry {
        request,
        job: id,
        overrides,
        archived,
    });
    let Effect::Save(records) = &effects[0] else {
        panic!("{effects:?}")
    };
    let entries = records.iter().find_map(|record| match record {
        Record::Ledger { entries, .. } => Some(entries),
        _ => None,
    });
    let expected = Line::Override {
        key: "train.steps".to_owned(),
        value: "9".to_owned(),
    };
    assert_eq!(entries.unwrap().last().unwrap().line, expected);
    assert_eq!(harness.job(&job).ledger.entries, before + 1);
}

#[test]
fn what_cannot_be_retried_is_refused_with_the_reason() {
    let (mut harness, job) = archiving();
    is_refused(
        &retry(&mut harness, &job, &[]),
        "only a failed or cancelled job",
    );
    cancel(&mut harness, &job);
    for (set, part) in [
        ("data.seed=7", "data.seed: only keys of"),
        (
            "train.global_batch=64",
            "train.global_batch: it changes the samples",
        ),
        ("train.steps=1", "train.steps: 1 is less than the 2 steps"),
    ] {
        is_refused(&retry(&mut harness, &job, &[set]), part);
        assert_eq!(harness.job(&job).shown(), Phase::Cancelled);
        assert!(
            harness.job(&job).overrides.is_empty(),
            "nothing is half applied"
        );
    }
    is_refused(
        &retry(&mut harness, &JobId("none-7".to_owned()), &[]),
        "there is no job",
    );
}

#[test]
fn a_job_whose_time_is_used_up_stops_with_a_checkpoint_and_fails_until_it_gets_more() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let mut limited = spec(1, 1);
    if let Work::Train(work) = &mut limited.work {
        work.train.time_limit = Some(Duration::from_secs(5));
    }
    let job = harness.submit(limited);
    let training = |harness: &mut Harness, generation: u64| {
        harness.receive("w1", vec![rank(&job, generation, 0, RankPhase::Training)])
    };
    // Waiting and loading do not count.
    harness.wait(900);
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    training(&mut harness, 1);
    for _ in 0..5 {
        harness.wait(900);
        let effects = training(&mut harness, 1);
        assert_eq!(harness::assigned(&effects, "w1").graceful_stop, None);
    }
    harness.wait(600);
    let effects = training(&mut harness, 1);
    assert_eq!(
        harness::assigned(&effects, "w1").graceful_stop,
        Some(GracefulStop::WithCheckpoint)
    );
    let report = harness::with_shard(rank(&job, 1, 0, RankPhase::Finished), 3);
    harness.receive("w1", vec![report]);
    harness.written(&job, 3, Ok(()));
    harness.handle(Input::Deadline);
    assert!(
        matches!(
            &harness.job(&job).phase,
            JobPhase::Failed {
                cause: Cause::TimeLimit {
                    limit_s: 5,
                    step: Step(3)
                },
                ..
            }
        ),
        "{:?}",
        harness.job(&job).phase
    );
    let why = harness
        .machine
        .why(harness.now, &job)
        .expect("the job exists");
    assert_eq!(
        why.remedy.as_deref(),
        Some("`coordinator retry toy-1 --set train.time_limit=SECONDS`")
    );
    is_refused(
        &retry(&mut harness, &job, &[]),
        "train.time_limit: job toy-1 has trained for 5 s",
    );
    let reply = retry(&mut harness, &job, &["train.time_limit=1m"]);
    assert!(matches!(reply, Reply::Phase { .. }), "{reply:?}");
    assert!(matches!(
        harness.job(&job).phase,
        JobPhase::Queued { .. } | JobPhase::Running { .. }
    ));
}
