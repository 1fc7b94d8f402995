//! Evaluations while a job trains: which checkpoints get one, when it may run and on whose device,
//! what becomes of it, and what retention keeps.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{
    Effect, Evaluation, EvaluationState, Event, Input, JobPhase, JobRecord, Reply, Unscored,
};
use harness::{DETECT_WITHIN_MS, Harness, assigned, deleted, rank, spec, training, with_shard};
use proto::during::{EvaluateOn, Scored, TrainingEvaluation};
use proto::evaluate::{Characters, EvaluatedModel, EvaluationPlan, MetricSettings, Prompts};
use proto::id::{JobId, Rank, Step};
use proto::knobs::Knobs;
use proto::message::{RankPhase, RankReport, UnitFailure, UnitRange};
use proto::reason::Waiting;
use proto::sample::{SampleMethod, Weights};
use proto::score::Expression;
use proto::spec::{JobSpec, Pairing, Reduction};

/// Three images and the closing unit, of every second step.
fn plan(on: EvaluateOn) -> TrainingEvaluation {
    TrainingEvaluation {
        every: 2,
        on,
        plan: EvaluationPlan {
            resolution: None,
            in_domain: Some(Characters::Trained(3)),
            out_of_domain: None,
            prompts: Prompts::Texts(vec!["1girl".to_owned()]),
            seeds: vec![0],
            samples: 1,
            task: None,
            pairing: Pairing::B,
        },
        metrics: MetricSettings {
            clip: Some("file:///clip".to_owned()),
            ..MetricSettings::default()
        },
        failed_share_max: 0.34,
        model: EvaluatedModel {
            name: "itself".to_owned(),
            job: JobId("itself".to_owned()),
            weights: Weights::Newest,
            init: None,
            task: None,
            method: SampleMethod::Ddim,
            steps: 50,
            guidance: 7.5,
            reference_guidance: 1.0,
            negative_prompt: String::new(),
            knobs: Knobs::default(),
        },
    }
}

fn evaluated(workers: (u32, u32), steps: u64, on: EvaluateOn) -> JobSpec {
    let mut spec = spec(workers.0, workers.1);
    let work = training(&mut spec);
    work.train.steps = steps;
    work.train.reduction = Reduction::Exact;
    work.checkpoint.keep_best = Some(Expression::parse("clip_i * clip_t").unwrap());
    work.evaluation = Some(Box::new(plan(on)));
    spec
}

/// A job that trains on w1 and w2.
fn started(steps: u64, min: u32, on: EvaluateOn) -> (Harness, JobId) {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let job = harness.submit(evaluated((min, 2), steps, on));
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
    assert_eq!(harness.job(&job).word(), "running");
    (harness, job)
}

/// Both workers report while nothing new happens, for so long.
fn pass(harness: &mut Harness, job: &JobId, ms: u64) {
    for _ in 0..ms.div_ceil(DETECT_WITHIN_MS / 3) {
        harness.now += DETECT_WITHIN_MS / 3;
        let generation = harness.generation(job);
        for (worker, number) in [("w1", 0), ("w2", 1)] {
            harness.receive(
                worker,
                vec![rank(job, generation, number, RankPhase::Training)],
            );
        }
    }
}

fn evaluations<'a>(harness: &'a Harness, job: &JobId) -> &'a [Evaluation] {
    let evaluations = harness.job(job).evaluations.as_ref();
    evaluations.map_or(&[], |it| &it.list)
}

fn child(number: u64) -> JobId {
    JobId(format!("toy-eval-{number}"))
}

/// The other workers of a training job report that it goes on.
fn go_on(harness: &mut Harness, job: &JobId, except: &str) {
    let JobPhase::Running { members } = harness.job(job).phase.clone() else {
        return;
    };
    for member in members.iter().filter(|it| it.worker.name != except) {
        let (generation, first) = (harness.generation(job), member.first_rank.0);
        let report = rank(job, generation, first, RankPhase::Training);
        harness.receive(&member.worker.name, vec![report]);
    }
}

/// A worker that is only there for evaluations runs everything that is leased to it.
fn run_all(harness: &mut Harness, worker: &str, job: &JobId) -> Vec<Effect> {
    let parent = harness.job(job).parent.clone().unwrap().job;
    let mut done: Vec<UnitRange> = Vec::new();
    for _ in 0..50 {
        go_on(harness, &parent, worker);
        let record: &JobRecord = harness.job(job);
        let units = record.units.as_ref().unwrap();
        let generation = units.generations.first().copied();
        let mut report: Vec<RankReport> = Vec::new();
        if let Some(generation) = generation {
            let mut one = rank(job, generation.0, 0, RankPhase::Training);
            one.units.done.clone_from(&done);
            report.push(one);
        }
        let effects = harness.receive(worker, report);
        if harness.job(job).phase.is_over() {
            return effects;
        }
        let sent = harness::sends(&effects);
        let state = sent.values().find(|it| it.worker.name == worker).unwrap();
        let own = state.assignments.iter().find(|it| it.job == *job);
        done = own
            .and_then(|it| it.units().unwrap().leases.get(&Rank(0)).cloned())
            .unwrap_or_default();
        harness.now += DETECT_WITHIN_MS / 3;
    }
    panic!("{job} is not over: {:?}", harness.job(job));
}

fn read(harness: &mut Harness, evaluation: &JobId, score: f64) -> Vec<Effect> {
    harness.handle(Input::ScoresRead {
        evaluation: evaluation.clone(),
        result: Ok(Scored {
            images: 3,
            missing: 0,
            means: [("clip_i".to_owned(), 0.5)].into(),
            score: Some(score),
        }),
    })
}

fn reads(effects: &[Effect]) -> Vec<JobId> {
    let read = |effect: &Effect| match effect {
        Effect::ReadScores { evaluation } => Some(evaluation.clone()),
        _ => None,
    };
    effects.iter().filter_map(read).collect()
}

#[test]
fn a_checkpoint_is_evaluated_by_an_ordinary_job_on_a_free_device() {
    let (mut harness, job) = started(4, 2, EvaluateOn::Free);
    harness.commit(&job, 2);
    let evaluation = child(2);
    let record = harness.job(&evaluation).clone();
    assert_eq!(record.parent.as_ref().unwrap().job, job);
    assert_eq!(record.models[0].checkpoint.unwrap().step, Step(2));
    assert_eq!(record.models[0].job_toml, harness.job(&job).job_toml);
    assert!(
        record.job_toml.contains("job = \"toy-1\""),
        "{}",
        record.job_toml
    );
    assert!(record.job_toml.contains("score = \"clip_i * clip_t\""));
    // Both workers train, and the job is at its minimum.
    assert!(matches!(
        harness.waiting(&evaluation),
        Waiting::Shortage { .. }
    ));
    let why = harness.machine.why(harness.now, &evaluation).unwrap();
    assert!(
        why.sentence.ends_with("it evaluates a checkpoint of toy-1"),
        "{}",
        why.sentence
    );
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert!(
        why.sentence
            .ends_with("toy-eval-2 evaluates step 2 and is queued"),
        "{}",
        why.sentence
    );
    // A third one appears.
    let effects = harness.receive("w3", vec![]);
    assert_eq!(assigned(&effects, "w3").job, evaluation);
    let effects = run_all(&mut harness, "w3", &evaluation);
    assert_eq!(reads(&effects), std::slice::from_ref(&evaluation));
    assert_eq!(
        evaluations(&harness, &job)[0].state,
        EvaluationState::Reading
    );
    // The store is away for a while, and the coordinator is restarted meanwhile.
    harness.handle(Input::ScoresRead {
        evaluation: evaluation.clone(),
        result: Err("503".to_owned()),
    });
    harness.restart();
    assert_eq!(reads(&harness.wait(0)), std::slice::from_ref(&evaluation));
    assert_eq!(reads(&harness.wait(DETECT_WITHIN_MS / 2)), []);
    let effects = read(&mut harness, &evaluation, 0.25);
    let scored = effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Emit(Event::EvaluationScored { step: Step(2), .. })
        )
    });
    assert!(scored, "{effects:?}");
    assert!(matches!(
        evaluations(&harness, &job)[0].state,
        EvaluationState::Scored(_)
    ));
    assert_eq!(harness.job(&job).word(), "running", "nothing stops it");
    assert_eq!(harness.generation(&job), 1);
    // A second answer changes nothing.
    let before = harness.durable.clone();
    read(&mut harness, &evaluation, 0.75);
    assert_eq!(harness.durable, before);
}

#[test]
fn an_evaluation_takes_no_worker_from_any_job_unless_its_own_gives_one_up() {
    let (mut harness, job) = started(4, 1, EvaluateOn::Free);
    harness.commit(&job, 2);
    pass(&mut harness, &job, 5 * DETECT_WITHIN_MS);
    let evaluation = child(2);
    assert!(matches!(
        harness.waiting(&evaluation),
        Waiting::Shortage { .. }
    ));
    assert_eq!(harness.generation(&job), 1, "it keeps both workers");
    // A later job of the same priority is not kept waiting by it: it takes what it could before.
    let other = harness.submit(spec(1, 1));
    pass(&mut harness, &job, DETECT_WITHIN_MS);
    let effects = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    let stops = harness::sends(&effects)["w1#1"].assignments[0].graceful_stop;
    assert!(stops.is_some(), "the job makes room for {other}");
}

#[test]
fn the_job_gives_a_worker_up_for_its_evaluation_and_takes_it_back() {
    let (mut harness, job) = started(6, 1, EvaluateOn::Shrink);
    harness.commit(&job, 2);
    let evaluation = child(2);
    assert!(matches!(
        harness.waiting(&evaluation),
        Waiting::Release { .. }
    ));
    // Both ranks finish their step; one of them goes.
    for (worker, number) in [("w1", 0), ("w2", 1)] {
        harness.receive(worker, vec![rank(&job, 1, number, RankPhase::Finished)]);
    }
    let JobPhase::Running { members } = &harness.job(&job).phase else {
        panic!("{:?}", harness.job(&job).phase)
    };
    assert_eq!(members.len(), 1);
    let left = if members[0].worker.name == "w1" {
        "w2"
    } else {
        "w1"
    };
    let stayed = if left == "w1" { "w2" } else { "w1" };
    assert_eq!(harness.job(&evaluation).word(), "running");
    harness.receive(stayed, vec![rank(&job, 2, 0, RankPhase::Training)]);
    let effects = run_all(&mut harness, left, &evaluation);
    read(&mut harness, &evaluation, 0.5);
    // The worker prepares to join again.
    assert!(!reads(&effects).is_empty());
    go_on(&mut harness, &job, left);
    let effects = harness.receive(left, vec![]);
    assert_eq!(assigned(&effects, left).job, job);
}

#[test]
fn at_its_minimum_the_job_gives_nothing_up_and_its_evaluation_waits_for_a_free_device() {
    let (mut harness, job) = started(4, 2, EvaluateOn::Shrink);
    // A job of lower priority has a worker that it would lose to any ordinary job.
    harness.receive("w3", vec![]);
    let mut low = spec(1, 1);
    low.resources.priority = -1;
    let low = harness.submit(low);
    harness.receive("w3", vec![rank(&low, 1, 0, RankPhase::Training)]);
    harness.commit(&job, 2);
    let evaluation = child(3);
    pass(&mut harness, &job, DETECT_WITHIN_MS / 2);
    assert!(matches!(
        harness.waiting(&evaluation),
        Waiting::Shortage { .. }
    ));
    assert_eq!(harness.job(&low).word(), "running");
    harness.ask(|request| Input::Cancel {
        request,
        job: low.clone(),
    });
    assert_eq!(harness.job(&evaluation).word(), "running");
}

#[test]
fn one_evaluation_runs_at_a_time_and_the_newest_checkpoint_is_next() {
    let (mut harness, job) = started(8, 2, EvaluateOn::Free);
    harness.commit(&job, 2);
    // Only one is kept, and the evaluation holds another.
    assert_eq!(deleted(&harness.commit(&job, 4)), [] as [u64; 0]);
    let effects = harness.commit(&job, 6);
    assert_eq!(deleted(&effects), [4], "it is not evaluated any more");
    let skipped = effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Emit(Event::EvaluationSkipped { step: Step(4), .. })
        )
    });
    assert!(skipped, "{effects:?}");
    let record = harness.job(&job).evaluations.clone().unwrap();
    assert_eq!((record.list.len(), record.skipped), (1, 1));
    assert_eq!(record.due.unwrap().step, Step(6));
    harness.restart();
    harness.receive("w3", vec![]);
    run_all(&mut harness, "w3", &child(2));
    read(&mut harness, &child(2), 0.5);
    let steps: Vec<u64> = evaluations(&harness, &job)
        .iter()
        .map(|it| it.checkpoint.step.0)
        .collect();
    assert_eq!(steps, [2, 6]);
    assert_eq!(harness.job(&job).evaluations.as_ref().unwrap().due, None);
}

#[test]
fn the_best_checkpoint_is_kept_and_the_former_best_is_not() {
    let (mut harness, job) = started(8, 2, EvaluateOn::Free);
    harness.receive("w3", vec![]);
    let mut all = Vec::new();
    for (step, number, score) in [(2, 2, 0.5), (4, 3, 0.25), (6, 4, 0.75), (8, 5, 0.1)] {
        let effects = harness.commit(&job, step);
        all.extend(deleted(&effects));
        run_all(&mut harness, "w3", &child(number));
        all.extend(deleted(&read(&mut harness, &child(number), score)));
    }
    assert_eq!(
        all,
        [4, 2],
        "each when it was neither the best nor the newest"
    );
    let kept: Vec<u64> = harness
        .job(&job)
        .checkpoints
        .iter()
        .map(|it| it.step.0)
        .collect();
    assert_eq!(kept, [6, 8]);
    let best = harness
        .job(&job)
        .evaluations
        .as_ref()
        .unwrap()
        .best()
        .unwrap();
    assert_eq!(best.step, Step(6));
    harness.restart();
    assert_eq!(harness.job(&job).checkpoints[0], best);
}

#[test]
fn the_last_checkpoint_is_evaluated_after_the_job_is_done() {
    let (mut harness, job) = started(4, 2, EvaluateOn::Free);
    for step in [2, 4] {
        harness.commit(&job, step);
    }
    let generation = harness.generation(&job);
    for (worker, number) in [("w1", 0), ("w2", 1)] {
        harness.receive(
            worker,
            vec![rank(&job, generation, number, RankPhase::Finished)],
        );
    }
    assert_eq!(harness.job(&job).word(), "done");
    for (number, score) in [(2, 0.5), (3, 0.25)] {
        let evaluation = child(number);
        let members = match &harness.job(&evaluation).phase {
            JobPhase::Running { members } => members.clone(),
            phase => panic!("{evaluation} is {phase:?}"),
        };
        run_all(&mut harness, &members[0].worker.name, &evaluation);
        read(&mut harness, &evaluation, score);
    }
    let kept: Vec<u64> = harness
        .job(&job)
        .checkpoints
        .iter()
        .map(|it| it.step.0)
        .collect();
    assert_eq!(kept, [2, 4], "the best and the newest");
}

#[test]
fn a_pause_a_resume_a_cancel_and_a_delete_of_the_job_are_those_of_its_evaluation() {
    let (mut harness, job) = started(8, 2, EvaluateOn::Free);
    harness.commit(&job, 2);
    let evaluation = child(2);
    for paused in [true, false] {
        harness.ask(|request| Input::Pause {
            request,
            job: job.clone(),
            paused,
        });
        assert_eq!(harness.job(&evaluation).paused, paused);
    }
    harness.commit(&job, 4);
    harness.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    let record = harness.job(&job);
    assert_eq!(
        (record.word(), harness.job(&evaluation).word()),
        ("cancelled", "cancelled")
    );
    let list = evaluations(&harness, &job);
    assert_eq!(list.len(), 1, "step 4 is not evaluated any more");
    assert_eq!(
        list[0].state,
        EvaluationState::Unscored(Unscored::Cancelled)
    );
    let kept: Vec<u64> = harness
        .job(&job)
        .checkpoints
        .iter()
        .map(|it| it.step.0)
        .collect();
    assert_eq!(kept, [4], "nobody reads step 2");
    let reply = harness.ask(|request| Input::Delete {
        request,
        job: job.clone(),
        archived: Vec::new(),
    });
    assert!(matches!(reply, Reply::Deleted { .. }), "{reply:?}");
    assert!(
        harness.durable.jobs.is_empty(),
        "{:?}",
        harness.durable.jobs.keys()
    );
}

#[test]
fn an_evaluation_that_fails_costs_the_training_nothing_and_may_be_tried_again() {
    let (mut harness, job) = started(8, 2, EvaluateOn::Free);
    harness.receive("w3", vec![]);
    harness.commit(&job, 2);
    let evaluation = child(2);
    harness.ask(|request| Input::Cancel {
        request,
        job: evaluation.clone(),
    });
    let unscored = EvaluationState::Unscored(Unscored::Cancelled);
    assert_eq!(evaluations(&harness, &job)[0].state, unscored);
    assert_eq!(harness.generation(&job), 1);
    let retry = |harness: &mut Harness| {
        harness.ask(|request| Input::Retry {
            request,
            job: child(2),
            overrides: Vec::new(),
            archived: Vec::new(),
        })
    };
    assert!(matches!(retry(&mut harness), Reply::Phase { .. }));
    assert_eq!(
        evaluations(&harness, &job)[0].state,
        EvaluationState::Running
    );
    harness.ask(|request| Input::Cancel {
        request,
        job: evaluation.clone(),
    });
    // The checkpoint goes when nobody reads it, and with it the way back.
    assert_eq!(deleted(&harness.commit(&job, 4)), [2]);
    let Reply::Refused { reason } = retry(&mut harness) else {
        panic!("it has nothing to read")
    };
    assert!(
        reason.contains("the checkpoint of step 2 of toy-1, which was deleted"),
        "{reason}"
    );
    assert_eq!(
        evaluations(&harness, &job)[1].state,
        EvaluationState::Running
    );
}

#[test]
fn an_evaluation_that_waits_for_a_user_is_given_up_for_a_newer_checkpoint() {
    let (mut harness, job) = started(8, 2, EvaluateOn::Free);
    harness.receive("w3", vec![]);
    harness.commit(&job, 2);
    let evaluation = child(2);
    // Two of three images fail, and one may.
    for _ in 0..200 {
        if harness.job(&evaluation).paused {
            break;
        }
        go_on(&mut harness, &job, "w3");
        let generation = harness.generation(&evaluation);
        let mut report = rank(&evaluation, generation, 0, RankPhase::Training);
        let effects = harness.receive("w3", vec![report.clone()]);
        let leases = assigned(&effects, "w3").units().unwrap().leases.clone();
        for unit in leases.values().flatten().flat_map(|it| it.first..it.end) {
            let error = "the server is away".to_owned();
            report.units.failed.push(UnitFailure { unit, error });
        }
        harness.receive("w3", vec![report]);
        harness.now += DETECT_WITHIN_MS / 3;
    }
    assert!(harness.job(&evaluation).paused);
    let generation = harness.generation(&evaluation);
    harness.receive(
        "w3",
        vec![rank(&evaluation, generation, 0, RankPhase::Finished)],
    );
    assert_eq!(
        evaluations(&harness, &job)[0].state,
        EvaluationState::Running
    );
    pass(&mut harness, &job, DETECT_WITHIN_MS / 3);
    harness.commit(&job, 4);
    let list = evaluations(&harness, &job);
    let EvaluationState::Unscored(why) = &list[0].state else {
        panic!("{:?}", list[0])
    };
    assert!(why.to_string().contains("the server is away"), "{why}");
    assert_eq!(harness.job(&evaluation).word(), "cancelled");
    assert_eq!(list[1].state, EvaluationState::Running);
}

#[test]
fn a_step_that_a_waiting_job_names_is_kept_for_it() {
    let mut harness = Harness::new();
    harness.receive("w1", vec![]);
    harness.receive("w2", vec![]);
    let mut spec = spec(2, 2);
    training(&mut spec).train.steps = 8;
    let job = harness.submit(spec);
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Training)]);
    harness.commit(&job, 2);
    // It compares step 2 with what is the newest when the job is done.
    let mut waiting = evaluated((1, 1), 4, EvaluateOn::Free);
    let work = training(&mut waiting).evaluation.take().unwrap();
    let mut work = work.of(&job, Step(2), None);
    let newest = EvaluatedModel {
        name: "newest".to_owned(),
        weights: Weights::Newest,
        ..work.models[0].clone()
    };
    work.models.push(newest);
    let waiting = harness.submit(JobSpec {
        after: vec![job.clone()],
        work: proto::spec::Work::Evaluate(Box::new(work)),
        ..harness::sample_of(&job)
    });
    assert_eq!(harness.job(&waiting).models, [], "not known yet");
    assert_eq!(deleted(&harness.commit(&job, 4)), [] as [u64; 0]);
    assert_eq!(deleted(&harness.commit(&job, 6)), [4]);
    harness.ask(|request| Input::Cancel {
        request,
        job: waiting,
    });
    let kept: Vec<u64> = harness
        .job(&job)
        .checkpoints
        .iter()
        .map(|it| it.step.0)
        .collect();
    assert_eq!(kept, [6]);
    let report = with_shard(rank(&job, 1, 0, RankPhase::Training), 8);
    harness.receive("w1", vec![report]);
}
