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
use crate::run::{Permanent, Rank};
use crate::{device, environment, init};
use anyhow::{Context, ensure};
use model::error::ModelError;
use model::trainer::Trainer;
use model::weights;
use model_data::loader::{Loader, LoaderOptions};
use proto::id::Step;
use proto::message::{PhaseSeconds, RankPhase, ShardReport, StepReport, WeightDigest};
use proto::share;
use proto::spec::{Architecture, JobSpec, Reduction};
use tch::{Device, Kind, Tensor};

/// Memory for samples of one rank: a data set that fits stays decoded.
const CACHE_BYTES: usize = 1 << 30;

/// Trains to the end. The group is left in `held`, so that a failure can leave the process without dropping
/// it: its destructor would wait for peers.
pub(crate) fn train(rank: &Rank<'_>, spec: &JobSpec, held: &mut Option<Group>) -> anyhow::Result<()> {
    let assignment = &rank.task.assignment;
    let store = open_store(rank.link, assignment, rank.task.rank, &rank.settings.address)?;
    let device = device::choose(spec.resources.device, rank.task.device, spec.train.precision)?;
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
    let prefetch = Prefetch::start(
        rank.runtime,
        loader.clone(),
        spec,
        place,
        first..=spec.train.steps,
    );

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
        loader,
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
    /// Tells samples' ids; the examples come through `prefetch`.
    loader: Loader,
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
#[derive(Debug, Default, Clone)]
struct Losses {
    total: f64,
    target: f64,
    face: f64,
    /// Samples whose loss is not finite, by their place in the step; the three figures leave them out.
    nonfinite: Vec<u32>,
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
        let (loss, next) = self.sum(&own, step)?;
        seconds.communication += clock.lap();
        let update = if loss.nonfinite.is_empty() {
            self.trainer.update(step)
        } else {
            self.trainer.skip(step)
        };
        let update = update.map_err(|error| self.give_up(error, step, &loss.nonfinite))?;
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
                skipped_steps: update.skipped_steps,
                loss_scale: update.loss_scale,
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
        let mut place = self.first_sample();
        for (index, micro_batch) in examples.micro_batches.iter().enumerate() {
            let loss = self.trainer.forward(micro_batch, self.spec.train.global_batch)?;
            sum.total += loss.total;
            sum.target += loss.target;
            sum.face += loss.face;
            sum.nonfinite
                .extend(loss.nonfinite.iter().map(|at| place + *at as u32));
            place += micro_batch.len() as u32;
            seconds.forward += clock.lap();
            if index == last && self.exact.is_none() {
                self.group.reduce_next_backward("preparing to reduce")?;
            }
            let outcome = (loss.loss * scale).f_backward();
            let lap = clock.lap();
            outcome.map_err(|error| self.explain(&error))?;
            if let Some(exact) = &mut self.exact {
                exact.add([loss.total, loss.target, loss.face], self.trainer.loss_scale());
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
    fn sum(&mut self, own: &Losses, step: u64) -> anyhow::Result<(Losses, Next)> {
        let halts = self.rank.link.halts();
        let nonfinite = self.all_nonfinite(&own.nonfinite, step)?;
        if let Some(exact) = &mut self.exact {
            let sums = exact.reduce(self.group, (self.trainer.loss_scale(), halts), step)?;
            let [total, target, face] = sums.losses;
            let next = if sums.marks == 0 { Next::GoOn } else { Next::Leave };
            let loss = Losses {
                total,
                target,
                face,
                nonfinite,
            };
            return Ok((loss, next));
        }
        let halts = f64::from(u8::from(halts));
        let sums = Tensor::from_slice(&[own.total, own.target, own.face, halts]).to_device(self.device);
        self.group
            .all_reduce(&sums, &format!("adding up the loss of step {step}"))?;
        let sums = Vec::<f64>::try_from(&sums.to_device(Device::Cpu).to_kind(Kind::Double))?;
        let loss = Losses {
            total: sums[0],
            target: sums[1],
            face: sums[2],
            nonfinite,
        };
        let next = if sums[3] == 0.0 { Next::GoOn } else { Next::Leave };
        Ok((loss, next))
    }

    /// The samples of the step, by their place in it, whose loss is not finite on any rank.
    fn all_nonfinite(&self, own: &[u32], step: u64) -> anyhow::Result<Vec<u32>> {
        let mut marks = vec![0i64; self.spec.train.global_batch as usize];
        own.iter().for_each(|place| marks[*place as usize] = 1);
        let marks = Tensor::from_slice(&marks).to_device(self.device);
        self.group
            .all_reduce(&marks, &format!("adding up what is not finite in step {step}"))?;
        let marks = Vec::<i64>::try_from(&marks.to_device(Device::Cpu))?;
        let marked = (0..).zip(marks).filter(|(_, mark)| *mark != 0);
        Ok(marked.map(|(place, _)| place).collect())
    }

    /// The place in a step of the first sample of this rank.
    fn first_sample(&self) -> u32 {
        let (rank, world) = (self.rank.task.rank, self.group.membership().world);
        share::micro_batches(self.spec.micro_batches(), rank, world).start * self.spec.train.micro_batch
    }

    /// An update that cannot be, with the samples that it is about: those at `places` of the step, or all of it.
    fn give_up(&self, error: ModelError, step: u64, places: &[u32]) -> anyhow::Error {
        if !error.is_permanent() {
            return error.into();
        }
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
        Permanent(format!("{error}; the samples at positions {}", listed(&names))).into()
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

/// The first of many names, and how many follow.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
