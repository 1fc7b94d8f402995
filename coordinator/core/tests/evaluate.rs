//! Evaluations: jobs of units that read several trained jobs, and that pause when too many units
//! fail.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Input, Reply};
use harness::{DETECT_WITHIN_MS, Harness, deleted, rank, sample_of};
use proto::evaluate::{
    Characters, EvaluateWork, EvaluatedModel, EvaluationPlan, MetricSettings, Prompts,
};
use proto::id::{JobId, Rank, Step};
use proto::knobs::Knobs;
use proto::message::{RankPhase, RankReport, UnitFailure, UnitRange};
use proto::reason::{MissingSource, Waiting};
use proto::sample::{SampleMethod, Weights};
use proto::spec::{JobSpec, Pairing, Work};

/// Three images with each of these weights, and the closing unit.
fn evaluation(models: &[(&JobId, Weights)]) -> JobSpec {
    let model = |(number, (job, weights)): (usize, &(&JobId, Weights))| EvaluatedModel {
        name: format!("m{number}"),
        job: (*job).clone(),
        weights: *weights,
        init: None,
        task: None,
        method: SampleMethod::Ddim,
        steps: 50,
        guidance: 7.5,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs: Knobs::default(),
    };
    let work = EvaluateWork {
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
        models: models.iter().enumerate().map(model).collect(),
        metrics: MetricSettings::default(),
        failed_share_max: 0.34,
    };
    let (job, _) = models[0];
    JobSpec {
        name: "table".to_owned(),
        work: Work::Evaluate(Box::new(work)),
        ..sample_of(job)
    }
}

fn evaluated(spec: &mut JobSpec) -> &mut EvaluateWork {
    match &mut spec.work {
        Work::Evaluate(work) => work,
        other @ (Work::Train(_) | Work::Sample(_) | Work::Build(_)) => {
            panic!("it has [{}]", other.table())
        }
    }
}

fn works(job: &JobId, generation: u64) -> RankReport {
    rank(job, generation, 0, RankPhase::Training)
}

fn leased(harness: &mut Harness, worker: &str, report: RankReport) -> Vec<UnitRange> {
    let effects = harness.receive(worker, vec![report]);
    let assignment = harness::assigned(&effects, worker);
    let leases = &assignment.units().unwrap().leases;
    leases.get(&Rank(0)).cloned().unwrap_or_default()
}

#[test]
fn every_model_is_pinned_to_its_checkpoint_until_the_job_ends() {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    let models = [
        (&source, Weights::Step(Step(2))),
        (&source, Weights::Base),
        (&source, Weights::Newest),
    ];
    let job = harness.submit(evaluation(&models));
    let record = harness.job(&job);
    assert_eq!(record.source, None, "that is for jobs of images");
    let steps = |harness: &Harness| -> Vec<Option<u64>> {
        let models = harness.job(&job).models.iter();
        models
            .map(|it| it.checkpoint.map(|checkpoint| checkpoint.step.0))
            .collect()
    };
    assert_eq!(steps(&harness), [Some(2), None, Some(2)]);
    // Only the newest one would be kept.
    assert_eq!(deleted(&harness.commit(&source, 4)), [] as [u64; 0]);
    harness.restart();
    assert_eq!(steps(&harness), [Some(2), None, Some(2)]);
    let effects = harness.receive("w3", vec![]);
    let assignment = harness::assigned(&effects, "w3");
    let order = assignment.units().unwrap();
    assert_eq!((order.models.len(), order.source.is_none()), (3, true));
    assert_eq!(order.models[0].job_toml, harness.job(&source).job_toml);
    let reply = harness.ask(|request| Input::Cancel {
        request,
        job: job.clone(),
    });
    assert!(matches!(reply, Reply::Phase { .. }), "{reply:?}");
    assert!(
        harness
            .job(&source)
            .checkpoints
            .iter()
            .all(|it| it.step == Step(4))
    );
}

#[test]
fn a_model_that_is_not_trained_yet_is_waited_for_only_if_the_plan_says_so() {
    let (mut harness, source) = Harness::training();
    let models = [(&source, Weights::Base), (&source, Weights::Newest)];
    let mut spec = evaluation(&models);
    let missing = MissingSource::NoCheckpoint {
        job: source.clone(),
    };
    assert_eq!(harness.refused(spec.clone()), missing.to_string());
    spec.after = vec![source.clone()];
    let job = harness.submit(spec);
    assert_eq!(harness.job(&job).models, []);
    let nobody = JobId("nobody-7".to_owned());
    let refused = harness.refused(evaluation(&[
        (&source, Weights::Base),
        (&nobody, Weights::Base),
    ]));
    assert!(
        refused.starts_with("evaluate.models: \"m1\": there is no job nobody-7"),
        "{refused}"
    );
}

#[test]
fn settings_that_a_model_does_not_have_are_refused_with_its_name() {
    let (mut harness, source) = Harness::training();
    let mut spec = evaluation(&[(&source, Weights::Base), (&source, Weights::Base)]);
    evaluated(&mut spec).models[1].knobs.image_scale = Some(0.5);
    let refused = harness.refused(spec.clone());
    assert!(
        refused.starts_with("evaluate.models: \"m1\": "),
        "{refused}"
    );
    evaluated(&mut spec).models.pop();
    let job = harness.submit(spec);
    let refused = harness.refused(evaluation(&[(&job, Weights::Base)]));
    assert!(
        refused.contains("generates images and trains no model"),
        "{refused}"
    );
}

#[test]
fn the_job_pauses_when_more_units_failed_than_may_and_a_resume_tries_them_again() {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    harness.ask(|request| Input::Cancel {
        request,
        job: source.clone(),
    });
    for _ in 0..12 {
        harness.wait(DETECT_WITHIN_MS / 10);
    }
    let job = harness.submit(evaluation(&[(&source, Weights::Newest)]));
    harness.receive("w3", vec![]);
    harness.receive("w3", vec![works(&job, 1)]);
    // One of three may fail; the second one pauses the job.
    let mut done = Vec::new();
    for _ in 0..200 {
        if harness.job(&job).paused {
            break;
        }
        let generation = harness.generation(&job);
        let mut report = works(&job, generation);
        report.units.done.clone_from(&done);
        let units = leased(&mut harness, "w3", report.clone());
        for unit in units.iter().flat_map(|range| range.first..range.end) {
            if unit == 0 {
                done = vec![UnitRange::one(0)];
                report.units.done.clone_from(&done);
            } else {
                let error = "the server is away".to_owned();
                report.units.failed.push(UnitFailure { unit, error });
            }
        }
        harness.receive("w3", vec![report]);
        harness.now += DETECT_WITHIN_MS / 3;
    }
    let record = harness.job(&job);
    assert!(record.paused, "{record:?}");
    let units = record.units.as_ref().unwrap();
    assert_eq!(units.done, [UnitRange::one(0)], "what is done stays done");
    let paused = record.paused_because.clone().unwrap();
    let Waiting::UnitsFailed {
        failed,
        allowed,
        units,
        ..
    } = &paused
    else {
        panic!("{paused:?}")
    };
    assert_eq!((*failed, *allowed, *units), (2, 1, 4));
    assert!(
        paused.to_string().contains("the server is away"),
        "{paused}"
    );
    let generation = harness.generation(&job);
    harness.receive("w3", vec![rank(&job, generation, 0, RankPhase::Finished)]);
    harness.receive("w3", vec![]);
    assert_eq!(*harness.waiting(&job), paused);
    harness.restart();
    assert_eq!(*harness.waiting(&job), paused);
    let why = harness.machine.why(harness.now, &job).unwrap();
    assert_eq!(why.constraint, "paused");
    assert!(
        why.sentence.contains("2 of 4 units failed for good"),
        "{}",
        why.sentence
    );

    harness.ask(|request| Input::Pause {
        request,
        job: job.clone(),
        paused: false,
    });
    let record = harness.job(&job);
    assert_eq!((record.paused, &record.paused_because), (false, &None));
    let units = record.units.as_ref().unwrap();
    assert_eq!((units.set_aside.len(), units.failed.len()), (0, 0));
    finish_all(&mut harness, &job);
    assert_eq!(harness.job(&job).word(), "done");
}

/// Everything that is leased succeeds.
fn finish_all(harness: &mut Harness, job: &JobId) {
    let mut done = Vec::new();
    harness.receive("w3", vec![]);
    for _ in 0..50 {
        if harness.job(job).phase.is_over() {
            break;
        }
        let generation = harness.generation(job);
        let mut report = works(job, generation);
        report.units.done.clone_from(&done);
        let effects = harness.receive("w3", vec![report]);
        let sent = harness::sends(&effects);
        done = sent["w3#1"]
            .assignments
            .first()
            .and_then(|it| it.units().unwrap().leases.get(&Rank(0)).cloned())
            .unwrap_or_default();
        harness.now += DETECT_WITHIN_MS / 3;
    }
}
