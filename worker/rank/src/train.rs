//! The training of one generation as one rank sees it: load, meet the others, then step by step forward,
//! backward, reduce, update, report, and a share of a checkpoint now and then. The order of samples and all
//! randomness are the data's (laws 1 and 2); the sums are the group's; this file only puts them in order.
//! Called by [`crate::run`].

use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::collective::CollectiveError;
use crate::collective::{Group, first_line};
use crate::exact::ExactSum;
use crate::group::{agree, meet, open_store};
use crate::prefetch::{Prefetch, StepExamples};
use crate::run::Rank;
use crate::{device, environment, init};
use anyhow::{Context, bail, ensure};
use model::trainer::Trainer;
use model::weights;
use model_data::example::Example;
use model_data::loader::{Loader, LoaderOptions};
use proto::id::Step;
use proto::message::{PhaseSeconds, RankPhase, ShardReport, StepReport, WeightDigest};
use proto::spec::{Architecture, JobSpec, Reduction};
use tch::{Device, Kind, Tensor};

/// Memory for samples of one rank: a data set that fits stays decoded.
const CACHE_BYTES: usize = 1 << 30;

/// Trains to the end. The group is left in `held`, so that a failure can leave the process without dropping
/// it: its destructor would wait for peers.
pub(crate) fn train(rank: &Rank<'_>, spec: &JobSpec, held: &mut Option<Group>) -> anyhow::Result<()> {
    let assignment = &rank.task.assignment;
    let store = open_store(rank.link, assignment, rank.task.rank, &rank.settings.address)?;
    let device = device::choose(spec.resources.device, rank.task.device)?;
    let mut trainer = build(rank, spec, device)?;
    let checkpoints = Checkpoints::open(&assignment.store_url, &assignment.job)?;
    let mut first = 1;
    if let Some(place) = assignment.resume {
        let (_, tensors) = rank
            .runtime
            .block_on(checkpoints.read(place))
            .context("cannot resume")?;
        trainer
            .load_state(&tensors, place.step.0)
            .context("cannot resume")?;
        first = place.step.0 + 1;
    }
    let loader = rank
        .runtime
        .block_on(open_data(spec, &assignment.dataset_version))?;
    let place = (rank.task.rank, assignment.world);
    let prefetch = Prefetch::start(rank.runtime, loader, spec, place, first..=spec.train.steps);

    rank.link.phase(RankPhase::Joining);
    let group = held.insert(meet(
        rank.link,
        store,
        assignment,
        (rank.task.rank, &rank.settings.address, device),
    )?);
    agree(group, trainer.parameters())?;
    // Gradients must exist before the Reducer makes them views into its buckets.
    trainer.zero_gradients();
    let exact = match spec.train.reduction {
        Reduction::Exact => Some(ExactSum::new(trainer.parameters(), spec.micro_batches())),
        Reduction::Fast => {
            group.attach(trainer.parameters())?;
            None
        }
    };
    rank.link.phase(RankPhase::Training);
    tracing::info!(rank = rank.task.rank, world = assignment.world, first, "training");

    let mut training = Training {
        rank,
        spec,
        trainer,
        group,
        exact,
        checkpoints,
        prefetch,
        device,
    };
    for step in first..=spec.train.steps {
        let next = training.step(step).with_context(|| format!("step {step}"))?;
        if next == Next::Leave {
            tracing::info!(step, "the generation ends here, in order");
            break;
        }
    }
    Ok(())
}

/// The model with its base weights, on its device, with the job's thread count.
pub(crate) fn build(rank: &Rank<'_>, spec: &JobSpec, device: Device) -> anyhow::Result<Trainer> {
    tch::set_num_threads(i32::try_from(spec.train.threads).unwrap_or(i32::MAX));
    let weights = match &spec.model.init {
        Some(url) => Some(
            rank.runtime
                .block_on(init::fetch(url, &spec.model, &rank.settings.cache_dir))?,
        ),
        None => None,
    };
    Ok(Trainer::new(spec, weights.as_ref(), device)?)
}

pub(crate) async fn open_data(spec: &JobSpec, version: &str) -> anyhow::Result<Loader> {
    let options = LoaderOptions {
        needs_references: spec.model.architecture == Architecture::Retrinet,
        cache_bytes: CACHE_BYTES,
        version: Some(version.to_owned()),
    };
    Ok(Loader::open(&spec.data, options).await?)
}

struct Training<'a> {
    rank: &'a Rank<'a>,
    spec: &'a JobSpec,
    trainer: Trainer,
    group: &'a Group,
    /// With `reduction = "exact"`; otherwise the group's Reducer sums gradients.
    exact: Option<ExactSum>,
    checkpoints: Checkpoints,
    prefetch: Prefetch,
    device: Device,
}

/// What the ranks do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    /// Its checkpoint is written; the generation ends in order.
    Leave,
}

/// The loss of a step as reported: whole, target term, face term; each the mean over the global batch.
#[derive(Debug, Default, Clone, Copy)]
struct Losses {
    total: f64,
    target: f64,
    face: f64,
}

impl Training<'_> {
    fn step(&mut self, step: u64) -> anyhow::Result<Next> {
        let mut clock = Clock::start();
        let mut seconds = PhaseSeconds::default();
        let examples = self.prefetch.next().context("the loader ended early")??;
        seconds.data = clock.lap();
        ensure!(examples.step == step, "the loader is at step {}", examples.step);
        self.trainer.zero_gradients();
        seconds.optimizer = clock.lap();
        let own = self.accumulate(&examples, &mut clock, &mut seconds)?;
        let (loss, next) = self.sum(own, step)?;
        seconds.communication += clock.lap();
        let update = self.trainer.update(step)?;
        seconds.optimizer += clock.lap();
        if self.spec.train.digest_every != 0 && step.is_multiple_of(self.spec.train.digest_every) {
            let sha256 = weights::digest(&self.trainer.state().into_iter().collect());
            self.rank.link.digest(WeightDigest {
                step: Step(step),
                sha256,
            });
        }
        let last = step == self.spec.train.steps || next == Next::Leave;
        if step.is_multiple_of(self.spec.checkpoint.every) || last {
            self.checkpoint(step).context("writing a checkpoint")?;
            seconds.checkpoint = clock.lap();
        }
        if self.rank.task.rank == 0 {
            self.rank.link.step(StepReport {
                step: Step(step),
                loss: loss.total,
                loss_target: loss.target,
                loss_face: loss.face,
                gradient_norm: update.gradient_norm,
                learning_rate: update.learning_rate,
                samples: self.spec.train.global_batch,
                seconds,
                peak_memory_bytes: environment::peak_memory_bytes(),
            });
        }
        Ok(next)
    }

    /// Forward and backward of this rank's micro-batches; only the last one's backward communicates.
    fn accumulate(
        &mut self,
        examples: &StepExamples,
        clock: &mut Clock,
        seconds: &mut PhaseSeconds,
    ) -> anyhow::Result<Losses> {
        let mut sum = Losses::default();
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
        for (index, micro_batch) in examples.micro_batches.iter().enumerate() {
            let loss = self.trainer.forward(micro_batch, self.spec.train.global_batch)?;
            refuse_non_finite(loss.total, micro_batch)?;
            sum.total += loss.total;
            sum.target += loss.target;
            sum.face += loss.face;
            seconds.forward += clock.lap();
            if index == last && self.exact.is_none() {
                self.group.reduce_next_backward("preparing to reduce")?;
            }
            let outcome = (loss.loss * scale).f_backward();
            let lap = clock.lap();
            outcome.map_err(|error| self.explain(&error))?;
            if let Some(exact) = &mut self.exact {
                exact.add([loss.total, loss.target, loss.face], 1.0);
                self.trainer.zero_gradients();
                seconds.backward += lap + clock.lap();
                continue;
            }
            // The last backward ends when the gradients of all ranks are in; it is our own until our last
            // gradient was ready. The collectives that ran before that overlapped with it and cost nothing.
            let own = (index == last).then(|| self.group.own_backward()).flatten();
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

    /// Every rank's part of the loss together (of the gradients too, where the Reducer did not do it), and whether one
    /// of them was told to halt: what one knows they all learn in the same step.
    fn sum(&mut self, own: Losses, step: u64) -> anyhow::Result<(Losses, Next)> {
        let halts = self.rank.link.halts();
        if let Some(exact) = &mut self.exact {
            let sums = exact.reduce(self.group, (1.0, halts), step)?;
            let [total, target, face] = sums.losses;
            let next = if sums.marks == 0 { Next::GoOn } else { Next::Leave };
            return Ok((Losses { total, target, face }, next));
        }
        let halts = f64::from(u8::from(halts));
        let sums = Tensor::from_slice(&[own.total, own.target, own.face, halts]).to_device(self.device);
        self.group
            .all_reduce(&sums, &format!("adding up the loss of step {step}"))?;
        let sums = Vec::<f64>::try_from(&sums.to_device(Device::Cpu).to_kind(Kind::Double))?;
        let &[total, target, face, halts] = sums.as_slice() else {
            bail!("four sums became {}", sums.len())
        };
        let next = if halts == 0.0 { Next::GoOn } else { Next::Leave };
        Ok((Losses { total, target, face }, next))
    }

    fn checkpoint(&self, step: u64) -> anyhow::Result<()> {
        let (assignment, rank) = (&self.rank.task.assignment, self.rank.task.rank);
        let state = self.trainer.state();
        let write = self.checkpoints.write_share(
            (Step(step), assignment.generation),
            (rank, assignment.world),
            &state,
        );
        let shard = self.rank.runtime.block_on(write)?;
        self.rank.link.shard(ShardReport {
            step: Step(step),
            shard,
            init_digest: self.trainer.init_digest(),
            environment: environment::describe(self.spec),
        });
        Ok(())
    }
}

/// A loss that is no number would poison every weight at the next update.
fn refuse_non_finite(loss: f64, micro_batch: &[Example]) -> anyhow::Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    let positions: Vec<String> = micro_batch
        .iter()
        .map(|example| example.position.to_string())
        .collect();
    bail!(
        "the loss is {loss} for the samples at positions {}; nothing was changed",
        positions.join(", ")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_loss_that_is_no_number_names_the_samples() {
        let example = |position| Example {
            position,
            target: image::RgbImage::new(1, 1),
            target_mask: image::GrayImage::new(1, 1),
            face_mask: image::GrayImage::new(1, 1),
            references: Vec::new(),
            prompt: String::new(),
            timestep: 0,
            noise_seed: 0,
        };
        let error = refuse_non_finite(f64::NAN, &[example(3), example(14)])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("NaN") && error.contains("positions 3, 14"),
            "{error}"
        );
        refuse_non_finite(0.5, &[example(3)]).unwrap();
    }
}
