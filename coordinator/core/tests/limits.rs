//! What a sender cannot do to the others: invented workers are forgotten, waiting jobs are bounded
//! by quotas, and a rank that its worker refuses ends its own job alone.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::WaitingQuotas;
use coordinator_core::event::{Effect, Event, Input, JobPhase, Reply};
use harness::{DETECT_WITHIN_MS, Harness, machine_with_quotas, rank, spec};
use proto::id::JobId;
use proto::job::overrides::Override;
use proto::message::RankPhase;
use proto::reason::RankFailure;

/// The time after which a worker that never held anything is forgotten.
const FORGOTTEN_MS: u64 = 1200 * DETECT_WITHIN_MS;

fn known(harness: &Harness) -> Vec<String> {
    let view = harness.machine.view();
    view.workers
        .iter()
        .map(|worker| worker.id.name.clone())
        .collect()
}

fn forgotten(effects: &[Effect]) -> usize {
    let count = |effect: &Effect| match effect {
        Effect::Emit(Event::WorkersForgotten { workers }) => workers.len(),
        _ => 0,
    };
    effects.iter().map(count).sum()
}

/// Time passes while worker `stays` reports, so that the clock does not take it for a suspension.
fn pass(harness: &mut Harness, stays: &str, ms: u64) -> usize {
    let end = harness.now + ms;
    let mut count = 0;
    while harness.now < end {
        harness.now = (harness.now + DETECT_WITHIN_MS / 3).min(end);
        count += forgotten(&harness.receive(stays, vec![]));
    }
    count
}

#[test]
fn workers_that_never_held_anything_are_forgotten_after_an_hour_and_others_never() {
    let mut harness = Harness::new();
    let job = harness.submit(spec(1, 1));
    harness.receive("held", vec![]);
    harness.receive("held", vec![rank(&job, 1, 0, RankPhase::Training)]);
    for number in 0..20 {
        harness.receive(&format!("invented-{number}"), vec![]);
    }
    harness.receive("stays", vec![]);
    // All but one fall silent.
    assert_eq!(
        pass(&mut harness, "stays", FORGOTTEN_MS - DETECT_WITHIN_MS),
        0
    );
    assert_eq!(known(&harness).len(), 22);
    assert_eq!(pass(&mut harness, "stays", 3 * DETECT_WITHIN_MS), 20);
    assert_eq!(known(&harness), ["held", "stays"]);
    assert_eq!(pass(&mut harness, "stays", FORGOTTEN_MS), 0);
    assert_eq!(known(&harness), ["held", "stays"]);
    // A forgotten worker may come back.
    harness.receive("invented-3#2", vec![]);
    assert_eq!(known(&harness).len(), 3);
}

#[test]
fn no_more_than_4096_invented_workers_are_remembered() {
    let mut harness = Harness::new();
    harness.receive("stays", vec![]);
    for number in 0..4_200 {
        harness.receive(&format!("invented-{number:04}"), vec![]);
    }
    let mut count = pass(&mut harness, "stays", 3 * DETECT_WITHIN_MS);
    assert_eq!(count, 104);
    let names = known(&harness);
    assert_eq!(names.len(), 4_097);
    assert_eq!(names[0], "invented-0104", "the oldest went first");
    count = pass(&mut harness, "stays", FORGOTTEN_MS);
    assert_eq!((count, known(&harness)), (4_096, vec!["stays".to_owned()]));
}

#[test]
fn waiting_jobs_are_bounded_by_team_and_in_all() {
    let mut harness = Harness::new();
    let quotas = WaitingQuotas {
        teams: [("large".to_owned(), 3)].into(),
        other: 2,
        all: 4,
    };
    harness.machine = machine_with_quotas(&harness.durable, harness.now, quotas);
    let of = |team: &str| {
        let mut spec = spec(1, 1);
        spec.resources.team = team.to_owned();
        spec
    };
    let first = harness.submit(of("a"));
    harness.submit(of("a"));
    assert_eq!(
        harness.refused(of("a")),
        "team a has 2 waiting jobs, and its quota is 2; wait until some run, cancel some, or raise \
         `waiting` of the team in the coordinator's `quotas`"
    );
    harness.submit(of("large"));
    harness.submit(of("large"));
    let all = harness.refused(of("large"));
    assert!(
        all.starts_with("4 jobs wait, and the quota of all teams"),
        "{all}"
    );
    // A job that runs does not wait.
    harness.receive("w1", vec![]);
    assert!(matches!(
        harness.job(&first).phase,
        JobPhase::Running { .. }
    ));
    harness.submit(of("large"));
    let full = harness.refused(of("large"));
    assert!(full.starts_with("team large has 3 waiting jobs"), "{full}");
    // A retried job waits, too.
    harness.ask(|request| Input::Cancel {
        request,
        job: first.clone(),
    });
    let retry = harness.ask(|request| Input::Retry {
        request,
        job: first.clone(),
        overrides: vec![],
        archived: vec![],
    });
    assert!(matches!(retry, Reply::Refused { .. }), "{retry:?}");
}

#[test]
fn overrides_cannot_make_a_job_larger_than_a_submission_may_be() {
    let mut harness = Harness::new();
    let job = harness.submit(spec(1, 1));
    harness.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    let mut refused = |overrides: Vec<Override>| {
        let reply = harness.ask(|request| Input::Retry {
            request,
            job: job.clone(),
            overrides,
            archived: vec![],
        });
        let Reply::Refused { reason } = reply else {
            panic!("{reply:?}")
        };
        reason
    };
    let set = |key: &str, value: &str| Override {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let many = refused(vec![set("train.steps", "30"); 257]);
    assert_eq!(
        many,
        "--set: the job would have 257 overrides; at most 256 are accepted"
    );
    let long = refused(vec![set("train.steps", &format!("{}7", "0".repeat(2000)))]);
    assert!(
        long.contains("at most 1024 are accepted") || long.contains("steps"),
        "{long}"
    );
}

#[test]
fn a_job_that_its_worker_refuses_fails_with_field_length_and_limit_and_others_run() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let good = harness.submit(spec(1, 1));
    let bad = harness.submit(spec(1, 1));
    let worker = |job: &JobId| {
        let JobPhase::Running { members } = &harness.durable.jobs[job].phase else {
            panic!("it does not run")
        };
        members[0].worker.name.clone()
    };
    let (of_good, of_bad) = (worker(&good), worker(&bad));
    harness.receive(&of_good, vec![rank(&good, 1, 0, RankPhase::Training)]);
    let text = "the worker refuses the assignment: field `job_toml` is 1200000 bytes long; at \
                most 1048576 are accepted";
    let failure = RankFailure::error(text, true);
    harness.receive(
        &of_bad,
        vec![rank(&bad, 1, 0, RankPhase::Failed { failure })],
    );
    let JobPhase::Failed { cause, .. } = &harness.durable.jobs[&bad].phase else {
        panic!("{:?}", harness.durable.jobs[&bad].phase)
    };
    assert!(cause.to_string().contains(text), "{cause}");
    let now = harness.now;
    let why = harness.machine.why(now, &bad).unwrap();
    assert!(
        why.sentence.contains("1200000 bytes long"),
        "{}",
        why.sentence
    );
    assert!(matches!(harness.job(&good).phase, JobPhase::Running { .. }));
}
