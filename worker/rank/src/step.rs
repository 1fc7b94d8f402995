//! One step of a rank: forward and backward of its micro-batches, the sum over all ranks, and the
//! update. The order of samples and all randomness are the data's (laws 1 and 2). Called by
//! [`crate::train`].

use crate::clock::Clock;
use crate::collective::{CollectiveError, Group, first_line};
use crate::exact::{ExactSum, TooLarge};
use crate::link::superseded;
use crate::prefetch::{Prefetch, StepExamples};
use crate::process::{Permanent, Rank};
use anyhow::{Context, ensure};
use model::error::ModelError;
use model::trainer::Trainer;
use model_data::loader::Loader;
use proto::id::{Generation, Step};
use proto::message::{LossTerm, PhaseSeconds, Stage, StepReport};
use proto::sharding;
use proto::spec::TrainWork;
use tch::{Device, Kind, Tensor};

/// What a step needs of the process and of the generation.
pub(crate) struct Stepping<'a> {
    pub(crate) rank: &'a Rank<'a>,
    pub(crate) spec: &'a TrainWork,
    pub(crate) generation: Generation,
    pub(crate) trainer: &'a mut Trainer,
    pub(crate) group: &'a Group,
    pub(crate) exact: Option<&'a mut ExactSum>,
    /// Tells samples' ids; the examples come through `prefetch`.
    pub(crate) loader: &'a Loader,
    pub(crate) prefetch: &'a mut Prefetch,
}

/// A step whose update is in the weights.
#[derive(Debug)]
pub(crate) struct Done {
    /// As it is to be reported, but for what follows the update.
    pub(crate) report: StepReport,
    /// Whether some rank had been told to halt.
    pub(crate) graceful_stop: bool,
    /// Since the update.
    pub(crate) clock: Clock,
}

/// The loss of a step as reported, each value the mean over the global batch.
#[derive(Debug, Clone)]
struct Losses {
    /// The whole loss, then its terms in the order of [`Trainer::loss_terms`].
    values: Vec<f64>,
    /// Samples whose loss is not finite, by their place in the step; the values leave them out.
    nonfinite: Vec<u32>,
}

impl Stepping<'_> {
    pub(crate) fn step(&mut self, step: u64) -> anyhow::Result<Done> {
        let mut clock = Clock::start();
        let mut seconds = PhaseSeconds::default();
        self.begin(step, Stage::Samples);
        let examples = self
            .rank
            .link
            .unless_superseded(self.generation, self.prefetch.next())?;
        let examples = examples.context("the loader ended early")??;
        seconds.data = clock.lap();
        ensure!(
            examples.step == step,
            "the loader is at step {}",
            examples.step
        );
        self.trainer.zero_gradients();
        seconds.optimizer = clock.lap();
        let own = self.accumulate(&examples, &mut clock, &mut seconds)?;
        self.begin(step, Stage::Reduction);
        let sums = self.sum(&own, step);
        let (loss, graceful_stop) = sums.map_err(|error| match error.downcast::<TooLarge>() {
            Ok(large) => self.permanent_failure(&large, step, &[]),
            Err(other) => other,
        })?;
        seconds.communication += clock.lap();
        self.begin(step, Stage::Update);
        let update = if loss.nonfinite.is_empty() {
            self.trainer.update(step)
        } else {
            self.trainer.skip(step)
        };
        let update = update.map_err(|error| self.give_up(error, step, &loss.nonfinite))?;
        seconds.optimizer += clock.lap();
        let report = StepReport {
            step: Step(step),
            loss: loss.values[0],
            terms: self.terms(&loss),
            gradient_norm: update.gradient_norm,
            learning_rate: update.learning_rate,
            samples: self.spec.train.global_batch,
            seconds,
            peak_memory_bytes: 0,
            skipped_steps: update.skipped_steps,
            loss_scale: update.loss_scale,
        };
        Ok(Done {
            report,
            graceful_stop,
            clock,
        })
    }

    fn terms(&self, loss: &Losses) -> Vec<LossTerm> {
        let names = self.trainer.loss_terms().iter();
        let named = names.zip(&loss.values[1..]).map(|(name, value)| LossTerm {
            name: (*name).to_owned(),
            value: *value,
        });
        named.collect()
    }

    fn begin(&self, step: u64, stage: Stage) {
        self.rank.link.progress().begin(step, stage);
    }

    /// Forward and backward of this rank's micro-batches; only the last one's backward
    /// communicates.
    fn accumulate(
        &mut self,
        examples: &StepExamples,
        clock: &mut Clock,
        seconds: &mut PhaseSeconds,
    ) -> anyhow::Result<Losses> {
        let mut sum = Losses {
            values: vec![0.0; 1 + self.trainer.loss_terms().len()],
            nonfinite: Vec::new(),
        };
        let last = examples
            .micro_batches
            .len()
            .checked_sub(1)
            .context("no micro-batch for this rank")?;
        // The Reducer averages over ranks, while losses are already divided by the global batch.
        let scale = match self.exact {
            Some(_) => 1.0,
            None => f64::from(self.group.membership().world),
        };
        let mut place = self.first_sample();
        for (index, micro_batch) in examples.micro_batches.iter().enumerate() {
            // A step may have many, and the others do not wait for them.
            if self.rank.link.is_over(self.generation) {
                return Err(superseded(self.generation).into());
            }
            let reduces = index == last && self.exact.is_none();
            if reduces {
                self.begin(examples.step, Stage::Reduction);
                self.group.agree_on_buckets("preparing to reduce")?;
                seconds.communication += clock.lap();
            }
            // The backward that reduces ends when the gradients of all ranks are in. It is our own
            // until our last gradient is ready: the Reducer's group marks that.
            self.begin(examples.step, Stage::MicroBatch(index as u32 + 1));
            let loss = self
                .trainer
                .forward(micro_batch, self.spec.train.global_batch)?;
            let values = [&[loss.total], loss.terms.as_slice()].concat();
            for (sum, value) in sum.values.iter_mut().zip(&values) {
                *sum += value;
            }
            sum.nonfinite
                .extend(loss.nonfinite.iter().map(|at| place + *at as u32));
            place += micro_batch.len() as u32;
            seconds.forward += clock.lap();
            if reduces {
                self.group.reduce_next_backward("preparing to reduce")?;
            }
            let outcome = (loss.loss * scale).f_backward();
            let lap = clock.lap();
            outcome.map_err(|error| self.explain(&error))?;
            if let Some(exact) = &mut self.exact {
                exact.add(&values, self.trainer.loss_scale());
                seconds.backward += lap + clock.lap();
                continue;
            }
            // The collectives that ran before our last gradient was ready overlapped with the
            // backward and cost nothing.
            let own = reduces.then(|| self.group.own_backward()).flatten();
            let own = own.map_or(lap, |own| own.as_secs_f64().min(lap));
            seconds.backward += own;
            seconds.communication += lap - own;
        }
        Ok(sum)
    }

    fn explain(&self, error: &tch::TchError) -> CollectiveError {
        let reason = first_line(&error.to_string()).to_owned();
        self.group.blame(CollectiveError {
            action: "backward and reducing gradients".into(),
            reason,
        })
    }

    /// Every rank's part of the loss together (of the gradients too, where the Reducer did not do
    /// it), and whether one of them was told to halt: what one knows they all learn in the same
    /// step.
    fn sum(&mut self, own: &Losses, step: u64) -> anyhow::Result<(Losses, bool)> {
        let stops = self.rank.link.graceful_stop().is_some();
        let nonfinite = self.all_nonfinite(&own.nonfinite, step)?;
        if let Some(exact) = &mut self.exact {
            let sums = exact.reduce(self.group, (self.trainer.loss_scale(), stops), step)?;
            let loss = Losses {
                values: sums.losses,
                nonfinite,
            };
            return Ok((loss, sums.progress != 0));
        }
        let stops = f64::from(u8::from(stops));
        let sums = [own.values.as_slice(), &[stops]].concat();
        let sums = Tensor::from_slice(&sums).to_device(self.group.membership().device);
        self.group
            .all_reduce(&sums, &format!("adding up the loss of step {step}"))?;
        let mut values = Vec::<f64>::try_from(&sums.to_device(Device::Cpu).to_kind(Kind::Double))?;
        let stops = values.pop().context("no sum came back")?;
        Ok((Losses { values, nonfinite }, stops != 0.0))
    }

    /// The samples of the step, by their place in it, whose loss is not finite on any rank.
    fn all_nonfinite(&self, own: &[u32], step: u64) -> anyhow::Result<Vec<u32>> {
        let mut progress = vec![0i64; self.spec.train.global_batch as usize];
        own.iter().for_each(|place| progress[*place as usize] = 1);
        let progress = Tensor::from_slice(&progress).to_device(self.group.membership().device);
        self.group.all_reduce(
            &progress,
            &format!("adding up what is not finite in step {step}"),
        )?;
        let progress = Vec::<i64>::try_from(&progress.to_device(Device::Cpu))?;
        let marked = (0..).zip(progress).filter(|(_, mark)| *mark != 0);
        Ok(marked.map(|(place, _)| place).collect())
    }

    /// The place in a step of the first sample of this rank.
    fn first_sample(&self) -> u32 {
        let membership = self.group.membership();
        let (rank, world) = (membership.rank, membership.world);
        sharding::micro_batches(self.spec.micro_batches(), rank, world).start
            * self.spec.train.micro_batch
    }

    /// An update that cannot be, with the samples that it is about: those at `places` of the step,
    /// or all of it.
    fn give_up(&self, error: ModelError, step: u64, places: &[u32]) -> anyhow::Error {
        if error.is_permanent() {
            self.permanent_failure(&error, step, places)
        } else {
            error.into()
        }
    }

    fn permanent_failure(
        &self,
        error: &dyn std::error::Error,
        step: u64,
        places: &[u32],
    ) -> anyhow::Error {
        let global_batch = self.spec.train.global_batch;
        let samples = self.loader.places(step, global_batch, 0..global_batch);
        let rows = self.loader.rows();
        let names: Vec<String> = samples
            .unwrap_or_default()
            .into_iter()
            .zip(0..)
            .filter(|(_, place)| places.is_empty() || places.contains(place))
            .map(|((_, position), _)| format!("{position} (id {})", rows[position as usize].id))
            .collect();
        Permanent(format!(
            "{error}; the samples at positions {}",
            listed(&names)
        ))
        .into()
    }
}

/// The first of many names, and how many follow.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
