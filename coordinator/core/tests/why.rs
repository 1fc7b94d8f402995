//! The sentences and remedies of `why`. Tests of behaviour compare its constraint, and the rank
//! that a job waits for, but no text.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::Why;
use coordinator_core::event::Input;
use harness::{
    DETECT_WITHIN_MS, Harness, failed_for_good, rank, sample_of, sampling, spec, with_step,
};
use proto::id::{JobId, Step};
use proto::message::{Activity, RankPhase, RankReport, Stage};

const RANKS: [(&str, u32); 3] = [("w1", 0), ("w2", 1), ("w3", 2)];

fn why(harness: &Harness, job: &JobId) -> Why {
    harness.machine.why(harness.now, job).unwrap()
}

/// The constraint, the sentence and the remedy.
fn check(harness: &Harness, job: &JobId, expected: (&str, &str, Option<&str>)) {
    let why = why(harness, job);
    let actual = (why.constraint, why.sentence.as_str(), why.remedy.as_deref());
    assert_eq!(actual, expected);
}

fn cancel(harness: &mut Harness, job: &JobId) {
    let job = job.clone();
    harness.ask(|request| Input::Cancel { request, job });
}

fn pause(harness: &mut Harness, job: &JobId) {
    let job = job.clone();
    harness.ask(|request| Input::Pause {
        request,
        job,
        paused: true,
    });
}

/// A job that needs at least `workers_min` workers trains on w1, w2 and w3.
fn three(workers_min: u32) -> (Harness, JobId) {
    let mut harness = Harness::new();
    for (worker, _) in RANKS {
        harness.receive(worker, vec![]);
    }
    let job = harness.submit(spec(workers_min, 3));
    for (worker, number) in RANKS {
        harness.receive(worker, vec![rank(&job, 1, number, RankPhase::Training)]);
    }
    (harness, job)
}

/// A rank of the first generation that has been in this stage for `for_ms`.
fn at(job: &JobId, number: u32, step: u64, stage: Stage, for_ms: u64) -> RankReport {
    let mut report = rank(job, 1, number, RankPhase::Training);
    report.activity = Some(Activity {
        step: Step(step),
        stage,
        for_ms,
    });
    report
}

/// w1 cannot reach w3, and all three ranks stay in the reduction until their generation ends.
fn part(harness: &mut Harness, job: &JobId) {
    for for_ms in [DETECT_WITHIN_MS, 2 * DETECT_WITHIN_MS] {
        for (worker, number) in RANKS {
            let unreached: &[&str] = if number == 0 { &["w3"] } else { &[] };
            let report = at(job, number, 1, Stage::Reduction, for_ms);
            harness.receive_unreachable(worker, unreached, vec![report]);
            if harness.generation(job) != 1 {
                return;
            }
        }
        harness.now += DETECT_WITHIN_MS / 2;
    }
}

/// A job that samples `count` images, plus one unit for the grid, on w3.
fn images(count: u32) -> (Harness, JobId) {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    cancel(&mut harness, &source);
    for _ in 0..12 {
        harness.wait(DETECT_WITHIN_MS / 10);
    }
    let mut spec = sample_of(&source);
    sampling(&mut spec).count = count;
    let job = harness.submit(spec);
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![rank(&job, 1, 0, RankPhase::Training)]);
    (harness, job)
}

#[test]
fn of_a_job_that_is_over() {
    let (mut harness, job) = Harness::training();
    let report = rank(&job, 1, 0, failed_for_good("step 1: the loss is NaN"));
    harness.receive("w1", vec![report]);
    let sentence = format!("it failed: {}", harness.cause(&job));
    let retry = Some("`coordinator retry toy-1`");
    check(&harness, &job, ("over", sentence.as_str(), retry));
    let (mut harness, job) = Harness::training();
    cancel(&mut harness, &job);
    let cancelled = "it was cancelled by a user";
    check(&harness, &job, ("over", cancelled, None));
}

#[test]
fn of_a_job_that_waits_for_workers() {
    let mut harness = Harness::new();
    let job = harness.submit(spec(1, 1));
    let expected = (
        "workers",
        "it needs 1 cpu worker with 1 free device; none is up",
        Some("1 more cpu worker with 1 device joining"),
    );
    check(&harness, &job, expected);
    pause(&mut harness, &job);
    let expected = (
        "paused",
        "it was paused by a user",
        Some("`coordinator resume toy-1`"),
    );
    check(&harness, &job, expected);
}

#[test]
fn of_a_job_that_waits_for_another_to_release_workers() {
    let (mut harness, low) = Harness::training();
    let mut high = spec(2, 2);
    high.resources.priority = 3;
    let high = harness.submit(high);
    for _ in 0..2 {
        harness.now += DETECT_WITHIN_MS / 2;
        harness.receive("w1", vec![rank(&low, 1, 0, RankPhase::Training)]);
        harness.receive("w2", vec![rank(&low, 1, 1, RankPhase::Training)]);
    }
    let expected = (
        "release",
        "it waits for toy-1 to release w1, w2",
        Some("the graceful stop of those jobs, which has begun"),
    );
    check(&harness, &high, expected);
}

#[test]
fn of_a_job_that_waits_for_a_dependency() {
    let (mut harness, source) = Harness::training();
    let mut spec = spec(1, 1);
    spec.after = vec![source.clone()];
    let job = harness.submit(spec);
    let pending = "it waits for toy-1, which is running";
    check(&harness, &job, ("dependency", pending, None));
    cancel(&mut harness, &source);
    let why = why(&harness, &job);
    let remedy = "`coordinator retry toy-1`, or `coordinator cancel toy-2`";
    assert_eq!(
        (why.constraint, why.remedy.as_deref()),
        ("dependency-failed", Some(remedy))
    );
}

#[test]
fn of_a_job_that_waits_for_a_connection() {
    let (mut harness, job) = three(3);
    part(&mut harness, &job);
    let why = why(&harness, &job);
    assert_eq!(
        why.sentence,
        "it needs 3 cpu workers with 1 free device; 3 are free (w1, w2, w3); w1 and w3 cannot \
         reach each other (from w1 to w3 at w3:7073: no answer); its state is held by w1, w2, w3"
    );
    let remedy = why.remedy.unwrap();
    assert!(
        remedy.starts_with("a connection between the workers that cannot reach each other"),
        "{remedy}"
    );
}

#[test]
fn of_a_forming_generation() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    let job = harness.submit(spec(1, 1));
    harness.now += DETECT_WITHIN_MS / 2;
    let unreported =
        "it is forming its process group: rank 0 on w1 has not been reported for 0.5 s";
    check(&harness, &job, ("forming", unreported, None));
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Starting)]);
    let starting = "it is forming its process group: rank 0 on w1 has been starting for 0.0 s";
    check(&harness, &job, ("forming", starting, None));
}

/// The step is that of the ranks' activities, independent of rank 0's last step.
#[test]
fn of_a_step_that_waits_for_one_rank() {
    let (mut harness, job) = three(1);
    for (worker, number) in RANKS {
        let stage = if number == 1 {
            Stage::MicroBatch(2)
        } else {
            Stage::Reduction
        };
        harness.receive(worker, vec![at(&job, number, 2, stage, 700)]);
    }
    harness.wait(100);
    let why = why(&harness, &job);
    assert!(
        why.sentence
            .starts_with("it is training: step 2 has taken "),
        "{why:?}"
    );
    assert!(
        why.sentence.ends_with(
            "; rank 1 on w2 has been in micro-batch 2 for 0.8 s, and 2 others wait for it in the \
             reduction"
        ),
        "{why:?}"
    );
    assert_eq!(why.waits_for.unwrap().phase, "training: micro-batch 2");
}

#[test]
fn of_a_generation_that_leaves_one_worker_out() {
    let (mut harness, job) = three(1);
    part(&mut harness, &job);
    harness.receive("w3", vec![rank(&job, 2, 2, RankPhase::Ready)]);
    harness.receive("w2", vec![rank(&job, 2, 1, RankPhase::Training)]);
    let step = with_step(rank(&job, 2, 0, RankPhase::Training), 1);
    harness.receive_unreachable("w1", &["w3"], vec![step]);
    let why = why(&harness, &job);
    let left_out = "; w3 is left out: w1 and w3 cannot reach each other \
                    (from w1 to w3 at w3:7073: no answer)";
    assert!(why.sentence.ends_with(left_out), "{why:?}");
}

#[test]
fn of_a_generation_that_is_about_to_end() {
    let (mut harness, job) = three(1);
    pause(&mut harness, &job);
    let stopping = "it is stopping its generation gracefully: rank 0 on w1 has been training for \
                    0.0 s; 2 others wait for it (paused by a user)";
    check(&harness, &job, ("stopping", stopping, None));
    let (mut harness, job) = Harness::training();
    harness.shards(&job, 4);
    for (worker, number) in &RANKS[..2] {
        harness.receive(worker, vec![rank(&job, 1, *number, RankPhase::Finished)]);
    }
    let expected = (
        "manifest",
        "all ranks have finished; it waits for the manifest of step 4 to be written",
        Some("a response from the object store"),
    );
    check(&harness, &job, expected);
}

#[test]
fn of_a_job_of_units() {
    let (mut harness, job) = images(3);
    harness.receive("w3", vec![at(&job, 0, 0, Stage::Unit(0), 100)]);
    harness.now += 300;
    let running = "it is running units: 0 of 4 are done, 0.0 per second; rank 0 on w3 has been in \
                   unit 0 for 0.4 s";
    check(&harness, &job, ("units", running, None));
    assert_eq!(why(&harness, &job).waits_for.unwrap().phase, "in unit 0");

    let (mut harness, job) = images(9);
    harness.receive("w4", vec![]);
    harness.receive("w4", vec![rank(&job, 2, 0, RankPhase::Training)]);
    harness.ask(|request| Input::Drain {
        request,
        worker: "w3".to_owned(),
        drained: true,
    });
    harness.receive("w3", vec![at(&job, 0, 0, Stage::Unit(0), 100)]);
    let why = why(&harness, &job);
    assert!(
        why.sentence
            .ends_with("; it releases w3 after their current units"),
        "{why:?}"
    );
}
