//! One training step of a rank: forward and backward of its micro-batches, the reduction over all
//! ranks, and the update. The order of samples and all randomness come from the data (laws 1 and
//! 2). Called by [`crate::train`].

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

/// The parts of the process and of the generation that a step uses.
pub(crate) struct StepContext<'a> {
    pub(crate) rank: &'a Rank<'a>,
    pub(crate) spec: &'a TrainWork,
    pub(crate) generation: Generation,
    pub(crate) trainer: &'a mut Trainer,
    pub(crate) group: &'a Group,
    pub(crate) exact: Option<&'a mut ExactSum>,
    /// For the ids of samples; the examples come from `prefetch`.
    pub(crate) loader: &'a Loader,
    pub(crate) prefetch: &'a mut Prefetch,
}

/// A step whose update was applied.
#[derive(Debug)]
pub(crate) struct CompletedStep {
    /// The report, without the parts that follow the update.
    pub(crate) report: StepReport,
    /// True if some rank had been ordered to stop gracefully.
    pub(crate) graceful_stop: bool,
    /// Last lap: the end of the update.
    pub(crate) clock: Clock,
}

/// The loss of a step. Each value is the mean over the global batch.
#[derive(Debug, Clone)]
struct Losses {
    /// The total loss, then its terms in the order of [`Trainer::loss_terms`].
    values: Vec<f64>,
    /// Indices within the step of samples with a non-finite loss. The values exclude them.
    nonfinite: Vec<u32>,
}

impl StepContext<'_> {
    pub(crate) fn step(&mut self, step: u64) -> anyhow::Result<CompletedStep> {
        let mut clock = Clock::start();
        let mut seconds = PhaseSeconds::default();
        self.begin(step, Stage::Samples);
        let examples = self
            .rank
            .link
            .unless_superseded(self.generation, self.prefetch.next())?;
        let examples = examples.context("the loader has no more steps")??;
        seconds.data = clock.lap();
        ensure!(
            examples.step == step,
            "the loader returned step {}",
            examples.step
        );
        self.trainer.zero_gradients();
        seconds.optimizer = clock.lap();
        let local = self.accumulate(&examples, &mut clock, &mut seconds)?;
        self.begin(step, Stage::Reduction);
        let sums = self.reduce_losses(&local, step);
        let (loss, graceful_stop) = sums.map_err(|error| match error.downcast::<TooLarge>() {
            Ok(error) => self.permanent_failure(&error, step, &[]),
            Err(other) => other,
        })?;
        seconds.communication += clock.lap();
        self.begin(step, Stage::Update);
        let update = if loss.nonfinite.is_empty() {
            self.trainer.update(step)
        } else {
            self.trainer.skip(step)
        };
        let update = update.map_err(|error| self.update_error(error, step, &loss.nonfinite))?;
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
            peak_device_memory_bytes: 0,
            skipped_steps: update.skipped_steps,
            loss_scale: update.loss_scale,
        };
        Ok(CompletedStep {
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

    /// Runs forward and backward of this rank's micro-batches. With the Reducer, the last backward
    /// also reduces the gradients.
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
        // The Reducer averages over the ranks, but losses are already divided by the global batch.
        let scale = match self.exact {
            Some(_) => 1.0,
            None => f64::from(self.group.membership().world),
        };
        let mut offset = self.first_sample();
        for (index, micro_batch) in examples.micro_batches.iter().enumerate() {
            // Checked here because a step may have many micro-batches.
            if self.rank.link.is_superseded(self.generation) {
                return Err(superseded(self.generation).into());
            }
            let reduces = index == last && self.exact.is_none();
            if reduces {
                self.begin(examples.step, Stage::Reduction);
                self.group.agree_on_buckets("preparing to reduce")?;
                seconds.communication += clock.lap();
            }
            // A backward that reduces also waits for the other ranks. The Reducer's hook switches
            // the stage to `Reduction` once the last local gradient is ready.
            self.begin(examples.step, Stage::MicroBatch(index as u32 + 1));
            let spans = self.rank.link.progress().spans();
            let global_batch = self.spec.train.global_batch;
            let loss = spans.timed("forward", examples.step, || {
                self.trainer.forward(micro_batch, global_batch)
            })?;
            let values = [&[loss.total], loss.terms.as_slice()].concat();
            for (sum, value) in sum.values.iter_mut().zip(&values) {
                *sum += value;
            }
            sum.nonfinite
                .extend(loss.nonfinite.iter().map(|index| offset + *index as u32));
            offset += micro_batch.len() as u32;
            seconds.forward += clock.lap();
            if reduces {
                self.group.reduce_next_backward("preparing to reduce")?;
            }
            let outcome = spans.timed("backward", examples.step, || {
                (loss.loss * scale).f_backward()
            });
            let lap = clock.lap();
            outcome.map_err(|error| self.backward_error(&error))?;
            if let Some(exact) = &mut self.exact {
                exact.add(&values, self.trainer.loss_scale());
                seconds.backward += lap + clock.lap();
                continue;
            }
            // Collectives that ran before the last local gradient was ready overlapped with the
            // backward and are counted as backward.
            let local = reduces.then(|| self.group.local_backward()).flatten();
            let local = local.map_or(lap, |local| local.as_secs_f64().min(lap));
            seconds.backward += local;
            seconds.communication += lap - local;
        }
        Ok(sum)
    }

    fn backward_error(&self, error: &tch::TchError) -> CollectiveError {
        let reason = first_line(&error.to_string()).to_owned();
        self.group.name_peer(CollectiveError {
            action: "backward and reducing gradients".into(),
            reason,
        })
    }

    /// Sums the losses over all ranks (with `exact` also the gradients). Also returns whether any
    /// rank was ordered to stop gracefully, so that all ranks stop after the same step.
    fn reduce_losses(&mut self, local: &Losses, step: u64) -> anyhow::Result<(Losses, bool)> {
        let stops = self.rank.link.graceful_stop().is_some();
        let nonfinite = self.all_nonfinite(&local.nonfinite, step)?;
        if let Some(exact) = &mut self.exact {
            let sums = exact.reduce(self.group, (self.trainer.loss_scale(), stops), step)?;
            let loss = Losses {
                values: sums.losses,
                nonfinite,
            };
            return Ok((loss, sums.flagged != 0));
        }
        let stops = f64::from(u8::from(stops));
        let sums = [local.values.as_slice(), &[stops]].concat();
        let sums = Tensor::from_slice(&sums).to_device(self.group.membership().device);
        self.group
            .all_reduce(&sums, &format!("all-reduce of the loss of step {step}"))?;
        let mut values = Vec::<f64>::try_from(&sums.to_device(Device::Cpu).to_kind(Kind::Double))?;
        let stops = values.pop().context("the all-reduce returned no values")?;
        Ok((Losses { values, nonfinite }, stops != 0.0))
    }

    /// Indices within the step of the samples whose loss is not finite on any rank.
    fn all_nonfinite(&self, local: &[u32], step: u64) -> anyhow::Result<Vec<u32>> {
        let mut flags = vec![0i64; self.spec.train.global_batch as usize];
        local.iter().for_each(|index| flags[*index as usize] = 1);
        let flags = Tensor::from_slice(&flags).to_device(self.group.membership().device);
        self.group.all_reduce(
            &flags,
            &format!("all-reduce of the non-finite samples of step {step}"),
        )?;
        let flags = Vec::<i64>::try_from(&flags.to_device(Device::Cpu))?;
        let flagged = (0..).zip(flags).filter(|(_, flag)| *flag != 0);
        Ok(flagged.map(|(index, _)| index).collect())
    }

    /// Index within a step of this rank's first sample.
    fn first_sample(&self) -> u32 {
        let membership = self.group.membership();
        let (rank, world) = (membership.rank, membership.world);
        sharding::micro_batches(self.spec.micro_batches(), rank, world).start
            * self.spec.train.micro_batch
    }

    /// The error of a failed update. A permanent one names the samples at `indices` within the
    /// step, or all samples if there are none.
    fn update_error(&self, error: ModelError, step: u64, indices: &[u32]) -> anyhow::Error {
        if error.is_permanent() {
            self.permanent_failure(&error, step, indices)
        } else {
            error.into()
        }
    }

    fn permanent_failure(
        &self,
        error: &dyn std::error::Error,
        step: u64,
        indices: &[u32],
    ) -> anyhow::Error {
        let global_batch = self.spec.train.global_batch;
        let samples = self.loader.places(step, global_batch, 0..global_batch);
        let rows = self.loader.rows();
        let names: Vec<String> = samples
            .unwrap_or_default()
            .into_iter()
            .zip(0..)
            .filter(|(_, index)| indices.is_empty() || indices.contains(index))
            .map(|((_, position), _)| format!("{position} (id {})", rows[position as usize].id))
            .collect();
        Permanent(format!(
            "{error}; the samples at positions {}",
            format_list(&names)
        ))
        .into()
    }
}

/// Joins the first names and counts the rest.
fn format_list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
