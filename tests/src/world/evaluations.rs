//! Evaluations of training jobs while they train: which jobs have them, what the store answers
//! about their scores, and what must hold of them at the end.

use super::World;
use super::agenda::SimEvent;
use super::outcome::Outcome;
use super::rng::Rng;
use super::units::plan::{PlannedUnits, Poison};
use coordinator_core::event::{
    Durable, EvaluationState, Evaluations, Input, JobPhase, JobRecord, Unscored,
};
use proto::checkpoint::CheckpointRef;
use proto::during::{EvaluateOn, Scored, TrainingEvaluation};
use proto::evaluate::{Characters, EvaluatedModel, EvaluationPlan, MetricSettings, Prompts};
use proto::id::JobId;
use proto::knobs::Knobs;
use proto::message::UnitRange;
use proto::sample::{SampleMethod, Weights};
use proto::score::Expression;
use proto::spec::Pairing;
use std::collections::BTreeMap;

/// The first mark of evaluations; those of other jobs are smaller.
const FIRST_MARK: u64 = 3_000_000;

#[derive(Debug, Clone, Copy)]
pub(crate) struct PlannedEvaluation {
    /// Every so many checkpoints.
    pub(crate) nth: u64,
    pub(crate) on: EvaluateOn,
    pub(crate) keep_best: bool,
    pub(crate) images: u32,
    /// Its seed, which finds its units in the plan.
    mark: u64,
}

impl PlannedEvaluation {
    /// The evaluations of some of so many jobs, with how their units behave.
    pub(crate) fn random(seed: u64, jobs: usize) -> Vec<Option<(Self, PlannedUnits)>> {
        let mut rng = Rng::new(seed, 6);
        let mut one = |number: usize| {
            let images = rng.between(1, 12) as u32;
            let evaluation = Self {
                nth: rng.between(1, 3),
                on: if rng.chance(500) {
                    EvaluateOn::Shrink
                } else {
                    EvaluateOn::Free
                },
                keep_best: rng.chance(700),
                images,
                mark: FIRST_MARK + number as u64,
            };
            let unit_ms = rng.between(20, 1_500);
            let mut poison = BTreeMap::new();
            if rng.chance(300) {
                let unit = rng.between(0, u64::from(images));
                poison.insert(unit, Poison::new(&mut rng));
            }
            let units = PlannedUnits {
                mark: evaluation.mark,
                poison,
                ..PlannedUnits::plain(images, unit_ms, 1)
            };
            rng.chance(850).then_some((evaluation, units))
        };
        (0..jobs).map(&mut one).collect()
    }

    pub(crate) fn score(self) -> Option<Expression> {
        let expression = Expression::parse("clip_i * clip_t").expect("it is one");
        self.keep_best.then_some(expression)
    }

    /// It never pauses, because nobody would resume it.
    pub(crate) fn plan(self, checkpoint_every: u64) -> TrainingEvaluation {
        TrainingEvaluation {
            every: self.nth * checkpoint_every,
            on: self.on,
            plan: EvaluationPlan {
                resolution: None,
                in_domain: Some(Characters::Trained(1)),
                out_of_domain: None,
                prompts: Prompts::Texts(vec![String::new()]),
                seeds: vec![self.mark],
                samples: self.images,
                task: None,
                pairing: Pairing::B,
            },
            metrics: MetricSettings {
                clip: Some("file:///clip".to_owned()),
                ..MetricSettings::default()
            },
            failed_share_max: 1.0,
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
}

impl World {
    /// The coordinator asks for the scores of an evaluation. The store may be slow.
    pub(crate) fn read_scores(&mut self, evaluation: JobId) {
        let slow = self.roll_fault(self.plan.noise.manifest_faults / 2);
        let delay = if slow {
            self.rng.between(1, 2 * super::plan::DETECT_WITHIN_MS)
        } else {
            self.rng.between(5, 60)
        };
        let boot = self.coordinator.boot;
        let event = SimEvent::ScoresRead { boot, evaluation };
        self.agenda.put(self.now + delay, event);
    }

    /// The store answers, fails, or its answer is lost.
    pub(crate) fn scores_read(&mut self, boot: u64, evaluation: JobId) {
        let fault = self.roll_fault(self.plan.noise.manifest_faults);
        let kind = if fault { self.rng.between(1, 2) } else { 0 };
        let result = match kind {
            1 => Err("503 slow down".to_owned()),
            2 => return,
            _ => self.scores_of(&evaluation),
        };
        let input = Input::ScoresRead { evaluation, result };
        self.as_coordinator(boot, |world| world.coordinator_handles(input));
    }

    /// The score depends on the step alone, and neither rises nor falls.
    fn scores_of(&mut self, evaluation: &JobId) -> Result<Scored, String> {
        let spec = self.specs.get(evaluation);
        let work = spec.and_then(|spec| spec.work.evaluation());
        let work = work.ok_or_else(|| format!("{evaluation} evaluates nothing"))?;
        let closing = work.images();
        let written = self.store.has_unit(evaluation, closing);
        let (score, weights) = (work.metrics.score.clone(), work.models[0].weights);
        let Weights::Step(step) = weights else {
            return Err(format!("{evaluation} evaluates no checkpoint"));
        };
        let record = self.durable.jobs.get(evaluation);
        let aside = record.and_then(|record| record.units.as_ref());
        let aside = aside.map_or(&[][..], |units| &units.set_aside);
        let given_up = aside
            .iter()
            .any(|range: &UnitRange| (range.first..range.end).contains(&closing));
        self.oracle.require(written || given_up, || {
            format!("the scores of {evaluation} are read, and its last unit has no output")
        });
        if !written {
            return Err("there is no such object".to_owned());
        }
        let missing = aside
            .iter()
            .map(|range: &UnitRange| range.count())
            .sum::<u64>();
        Ok(Scored {
            images: closing.saturating_sub(missing),
            missing,
            means: BTreeMap::new(),
            score: score.map(|_| (step.0 * 7_919 % 101) as f64),
        })
    }

    /// What must hold of the evaluations of a training job at the end.
    pub(crate) fn check_evaluations_end(&self, record: &JobRecord) -> Result<(), String> {
        let id = &record.id;
        let spec = self.specs.get(id).and_then(|spec| spec.training());
        let Some((work, plan)) = spec.and_then(|work| Some((work, work.evaluation.as_ref()?)))
        else {
            return match &record.evaluations {
                None => Ok(()),
                Some(_) => Err(format!("{id} has evaluations and no plan for them")),
            };
        };
        let none = Evaluations::default();
        let evaluations = record.evaluations.as_ref().unwrap_or(&none);
        if is_open(evaluations) {
            return Err(format!("{id} is over, and its evaluations are not"));
        }
        // A fault may cost a checkpoint that would have been evaluated, but not the last one.
        let found = evaluations.list.len() as u64 + evaluations.skipped;
        let most = plan.count(work.train.steps);
        let last = evaluations.list.last().map(|it| it.checkpoint.step.0);
        let is_done = matches!(record.phase, JobPhase::Done { .. });
        if most < found || is_done && last != Some(work.train.steps) {
            return Err(format!(
                "{id} has {found} of at most {most} evaluations and skips, the last of step {last:?}"
            ));
        }
        for it in &evaluations.list {
            let phase = self.durable.jobs.get(&it.job).map(|job| &job.phase);
            let fits = match &it.state {
                EvaluationState::Scored(_) => matches!(phase, Some(JobPhase::Done { .. })),
                EvaluationState::Unscored(Unscored::Failed) => {
                    matches!(phase, Some(JobPhase::Failed { .. }))
                }
                EvaluationState::Unscored(Unscored::Cancelled) => {
                    matches!(phase, Some(JobPhase::Cancelled { .. }))
                }
                EvaluationState::Unscored(Unscored::Unreadable { .. }) => true,
                EvaluationState::Unscored(_)
                | EvaluationState::Running
                | EvaluationState::Reading => false,
            };
            if !fits {
                return Err(format!("{id}: {} is {:?}", it.job, it.state));
            }
        }
        let best = evaluations.best();
        let keep = work.checkpoint.keep.max(1) as usize;
        let older = record.checkpoints.len().saturating_sub(keep);
        let surplus = record.checkpoints[..older].iter();
        if let Some(kept) = surplus.into_iter().find(|it| Some(**it) != best) {
            return Err(format!("{id} keeps step {}, which nobody reads", kept.step));
        }
        match best.filter(|best| !record.checkpoints.contains(best)) {
            Some(best) => Err(format!("{id} has deleted its best step {}", best.step)),
            None => Ok(()),
        }
    }

    /// Adds what became of evaluations.
    pub(crate) fn count_evaluations(&self, outcome: &mut Outcome) {
        for record in self.durable.jobs.values() {
            let evaluations = record.evaluations.iter();
            for it in evaluations.clone().flat_map(|it| &it.list) {
                match it.state {
                    EvaluationState::Scored(_) => outcome.scored += 1,
                    _ => outcome.unscored += 1,
                }
            }
            outcome.skipped += evaluations.map(|it| it.skipped as u32).sum::<u32>();
        }
    }
}

pub(crate) fn is_open(evaluations: &Evaluations) -> bool {
    let open = |state: &EvaluationState| {
        matches!(state, EvaluationState::Running | EvaluationState::Reading)
    };
    evaluations.due.is_some() || evaluations.list.iter().any(|it| open(&it.state))
}

/// The evaluation that reads this checkpoint and is not over.
pub(crate) fn reader<'a>(
    durable: &'a Durable,
    job: &JobId,
    checkpoint: CheckpointRef,
) -> Option<&'a JobId> {
    let mut live = durable.jobs.values().filter(|it| !it.phase.is_over());
    let found = live.find(|it| {
        let parent = it.parent.as_ref();
        let mut models = it.models.iter();
        parent.is_some_and(|parent| parent.job == *job)
            && models.any(|model| model.checkpoint == Some(checkpoint))
    });
    found.map(|it| &it.id)
}

/// A job that evaluates one that was cancelled, and is not over itself.
pub(crate) fn orphan(durable: &Durable) -> Option<&JobId> {
    let mut live = durable.jobs.values().filter(|it| !it.phase.is_over());
    let found = live.find(|it| {
        let parent = it.parent.as_ref();
        let parent = parent.and_then(|parent| durable.jobs.get(&parent.job));
        parent.is_some_and(|parent| matches!(parent.phase, JobPhase::Cancelled { .. }))
    });
    found.map(|it| &it.id)
}
