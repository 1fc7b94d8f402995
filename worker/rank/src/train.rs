//! Training as one rank process sees it. In each generation: meet the others, settle who has the state, then step by
//! step forward, backward, reduce, update, report, and a share of a checkpoint now and then. Between generations the
//! model, the optimizer and the data set stay as they are. The order of samples and all
//! randomness are the data's (laws 1 and 2); the sums are the group's; this file only puts them in order.
//! Called by [`crate::run`].

use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::collective::CollectiveError;
use crate::collective::{Group, first_line};
use crate::deadline::Deadlines;
use crate::exact::{ExactSum, TooLarge};
use crate::group::{meet, open_store};
use crate::link::superseded;
use crate::prefetch::{Prefetch, StepExamples};
use crate::run::{Permanent, Rank};
use crate::state::{Held, settle};
use crate::{device, environment, init};
use anyhow::{Context, ensure};
use model::error::ModelError;
use model::trainer::Trainer;
use model::weights;
use model_data::loader::{Loader, LoaderOptions};
use proto::id::Step;
use proto::message::{Halt, LossTerm, PhaseSeconds, Piece, RankPhase, ShardReport, StepReport, WeightDigest};
use proto::share;
use proto::spec::{Reduction, TrainWork};
use tch::{Device, Kind, Tensor};

/// Memory for samples of one rank: a data set that fits stays decoded.
const CACHE_BYTES: usize = 1 << 30;

/// Serves in one generation after another, and leaves only by an error of its own or because it is told to. What goes
/// wrong with the group costs the step that was under way: the state in memory is that of the last whole step.
pub(crate) fn train(first: &Rank<'_>, spec: &TrainWork) -> anyhow::Result<()> {
    let mut seat = Seat::prepare(first, spec)?;
    let mut task = first.task.clone();
    loop {
        let generation = task.assignment.generation;
        let rank = Rank {
            task: &task,
            ..*first
        };
        rank.link.take_up(&task);
        let outcome = if task.assignment.is_reserve() {
            Ok(End::Reserve)
        } else {
            seat.serve(&rank)
        };
        rank.link.guard(generation, None);
        rank.link.marks().leave();
        let mut saved = true;
        match outcome {
            Ok(End::Reserve) => rank.link.phase(RankPhase::Ready),
            Ok(End::Held) => {
                rank.link.phase(RankPhase::Finished);
                saved = false;
            }
            Ok(End::Saved) => rank.link.phase(RankPhase::Finished),
            Err(error) if is_of_group(&error) => {
                let error = first_line(&format!("{error:#}")).to_owned();
                tracing::warn!(%generation, held = ?seat.held, error, "the group is broken");
                rank.link.phase(RankPhase::Broken { error });
            }
            Err(error) => return Err(error),
        }
        task = loop {
            match rank.link.next_task(generation, saved)? {
                Some(task) => break task,
                None => match seat.share(&rank) {
                    Ok(shard) => rank.link.shard(shard),
                    // A newer generation came first, and goes on with what is held.
                    Err(error) if is_of_group(&error) => {}
                    Err(error) => return Err(error),
                },
            }
            saved = true;
        };
    }
}

/// What ends the generation and not the process.
fn is_of_group(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<CollectiveError>())
}

/// How a process comes to the end of a generation in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It had no place in it.
    Reserve,
    /// The ranks stopped together after a step that is in memory alone.
    Held,
    /// Its share of the last step's checkpoint is written.
    Saved,
}

/// What outlives a generation.
struct Seat<'a> {
    spec: &'a TrainWork,
    device: Device,
    trainer: Trainer,
    /// With `reduction = "exact"`; otherwise the group's Reducer sums gradients.
    exact: Option<ExactSum>,
    loader: Loader,
    checkpoints: Checkpoints,
    /// What the trainer holds, once it has trained or agreed with others.
    held: Option<Held>,
}

impl<'a> Seat<'a> {
    fn prepare(rank: &Rank<'_>, spec: &'a TrainWork) -> anyhow::Result<Self> {
        let assignment = &rank.task.assignment;
        let device = device::choose(rank.job.resources.device, rank.task.device, spec.train.precision)?;
        let mut trainer = build(rank, spec, device)?;
        let exact = match spec.train.reduction {
            Reduction::Exact => {
                // It moves the gradients, so they must be there.
                trainer.zero_gradients();
                Some(ExactSum::new(
                    trainer.parameters(),
                    spec.micro_batches(),
                    1 + trainer.loss_terms().len(),
                ))
            }
            Reduction::Fast => None,
        };
        let loader = rank
            .runtime
            .block_on(open_data(spec, &assignment.dataset_version))?;
        Ok(Self {
            spec,
            device,
            trainer,
            exact,
            loader,
            checkpoints: Checkpoints::open(&assignment.store_url, &assignment.job)?,
            held: None,
        })
    }

    /// This rank's share of a checkpoint of what it holds.
    fn share(&self, rank: &Rank<'_>) -> anyhow::Result<ShardReport> {
        share_of(rank, self.spec, &self.trainer, &self.checkpoints)
    }

    /// One generation, to its end.
    fn serve(&mut self, rank: &Rank<'_>) -> anyhow::Result<End> {
        let (assignment, number) = (&rank.task.assignment, rank.task.rank);
        let (spec, generation, address) = (self.spec, assignment.generation, &rank.settings.address);
        let resume = assignment.gang().and_then(|gang| gang.resume);
        let store = open_store(rank.link, assignment, number, address)?;
        rank.link.phase(RankPhase::Joining);
        let mut group = meet(rank.link, store, assignment, (number, address, self.device))?;
        rank.link.guard(generation, group.aborter());
        let read = |trainer: &Trainer, place| {
            let read = self.checkpoints.read_for(trainer, place);
            Ok(rank.link.unless_superseded(generation, read)??)
        };
        let held = &mut self.held;
        let source = settle(&group, &mut self.trainer, held, resume, read)?;
        let mut step = source.step();
        self.held = Some(Held { generation, step });
        // Gradients must exist before the Reducer makes them views into its buckets.
        self.trainer.zero_gradients();
        match &mut self.exact {
            Some(exact) => exact.clear(),
            None => {
                let marks = rank.link.marks().clone();
                group.attach(self.trainer.parameters(), move || marks.own_gradients_ready())?;
            }
        }
        let steps = step.0 + 1..=spec.train.steps;
        let place = (number, assignment.world());
        let deadlines = Deadlines::new(assignment.detect_within_ms);
        let loader = self.loader.clone();
        let prefetch = Prefetch::start(rank.runtime, deadlines, loader, spec, place, steps.clone());
        rank.link.phase(RankPhase::Training);
        tracing::info!(rank = number, world = assignment.world(), ?source, "training");

        let mut training = Training {
            rank,
            spec,
            trainer: &mut self.trainer,
            group: &group,
            exact: self.exact.as_mut(),
            checkpoints: &self.checkpoints,
            loader: &self.loader,
            prefetch,
            device: self.device,
        };
        // The generation before this one may have ended before all shares of this step were written.
        if training.saves(step.0) && resume.is_none_or(|resume| resume.step < step) {
            let shard = training.share()?;
            rank.link.shard(shard);
        }
        for number in steps {
            if rank.link.is_over(generation) {
                return Err(superseded(generation).into());
            }
            let next = training.step(number, &mut step);
            self.held = Some(Held { generation, step });
            if let Next::Leave(end) = next.with_context(|| format!("step {number}"))? {
                tracing::info!(step = number, ?end, "the generation ends here, in order");
                return Ok(end);
            }
        }
        Ok(End::Saved)
    }
}

/// The model with its base weights, on its device, with the job's thread count.
pub(crate) fn build(rank: &Rank<'_>, spec: &TrainWork, device: Device) -> anyhow::Result<Trainer> {
    tch::set_num_threads(i32::try_from(spec.train.threads).unwrap_or(i32::MAX));
    let weights = match &spec.model.init {
        Some(url) => Some(
            rank.runtime
                .block_on(init::fetch(url, &spec.model, &rank.settings.cache_dir))?,
        ),
        None => None,
    };
    Trainer::new(spec, weights.as_ref(), device).map_err(|error| {
        let permanent = error.is_permanent();
        let mut error = anyhow::Error::from(error);
        if let Some(url) = &spec.model.init {
            error = error.context(format!("model.init {url}"));
        }
        if permanent {
            Permanent(format!("{error:#}")).into()
        } else {
            error
        }
    })
}

pub(crate) async fn open_data(spec: &TrainWork, version: &str) -> anyhow::Result<Loader> {
    let version = Some(version.to_owned());
    let options = LoaderOptions::new(&spec.model.architecture, CACHE_BYTES, version);
    Ok(Loader::open(&spec.data, options).await?)
}

struct Training<'a> {
    rank: &'a Rank<'a>,
    spec: &'a TrainWork,
    trainer: &'a mut Trainer,
    group: &'a Group,
    exact: Option<&'a mut ExactSum>,
    checkpoints: &'a Checkpoints,
    /// Tells samples' ids; the examples come through `prefetch`.
    loader: &'a Loader,
    prefetch: Prefetch,
    device: Device,
}

/// What the ranks do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    /// The generation ends in order.
    Leave(End),
}

/// The loss of a step as reported, each value the mean over the global batch.
#[derive(Debug, Clone)]
struct Losses {
    /// The whole loss, then its terms in the order of [`Trainer::loss_terms`].
    values: Vec<f64>,
    /// Samples whose loss is not finite, by their place in the step; the values leave them out.
    nonfinite: Vec<u32>,
}

impl Training<'_> {
    /// Sets `held` as soon as the weights are those after this step.
    fn step(&mut self, step: u64, held: &mut Step) -> anyhow::Result<Next> {
        let mut clock = Clock::start();
        let mut seconds = PhaseSeconds::default();
        self.begin(step, Piece::Samples);
        let generation = self.rank.task.assignment.generation;
        let examples = self
            .rank
            .link
            .unless_superseded(generation, self.prefetch.next())?;
        let examples = examples.context("the loader ended early")??;
        seconds.data = clock.lap();
        ensure!(examples.step == step, "the loader is at step {}", examples.step);
        self.trainer.zero_gradients();
        seconds.optimizer = clock.lap();
        let own = self.accumulate(&examples, &mut clock, &mut seconds)?;
        self.begin(step, Piece::Reduction);
        let sums = self.sum(&own, step);
        let (loss, halts) = sums.map_err(|error| match error.downcast::<TooLarge>() {
            Ok(large) => self.hopeless(&large, step, &[]),
            Err(other) => other,
        })?;
        seconds.communication += clock.lap();
        self.begin(step, Piece::Update);
        let update = if loss.nonfinite.is_empty() {
            self.trainer.update(step)
        } else {
            self.trainer.skip(step)
        };
        let update = update.map_err(|error| self.give_up(error, step, &loss.nonfinite))?;
        *held = Step(step);
        seconds.optimizer += clock.lap();
        if self.spec.train.digest_every != 0 && step.is_multiple_of(self.spec.train.digest_every) {
            self.begin(step, Piece::Digest);
            let sha256 = weights::digest(&self.trainer.state().into_iter().collect());
            self.rank.link.marks().leave();
            self.rank.link.digest(WeightDigest {
                step: Step(step),
                sha256,
            });
        }
        let mut shard = None;
        if self.saves(step) || halts && self.rank.link.halt() == Some(Halt::Save) {
            self.begin(step, Piece::Checkpoint);
            shard = Some(self.share());
            seconds.checkpoint = clock.lap();
        }
        // To tell may take as long as the daemon does not listen.
        self.rank.link.marks().leave();
        let next = match &shard {
            _ if !halts => Next::GoOn,
            Some(_) => Next::Leave(End::Saved),
            None => Next::Leave(End::Held),
        };
        self.rank.link.step(StepReport {
            step: Step(step),
            loss: loss.values[0],
            terms: self.terms(&loss),
            gradient_norm: update.gradient_norm,
            learning_rate: update.learning_rate,
            samples: self.spec.train.global_batch,
            seconds,
            peak_memory_bytes: environment::peak_memory_bytes(),
            skipped_steps: update.skipped_steps,
            loss_scale: update.loss_scale,
        });
        // After its step: a commit tells that the step is known, and it would never be told. A share that was not written
        // takes nothing from the step.
        if let Some(shard) = shard {
            self.rank.link.shard(shard?);
        }
        Ok(next)
    }

    fn terms(&self, loss: &Losses) -> Vec<LossTerm> {
        let names = self.trainer.loss_terms().iter();
        let named = names.zip(&loss.values[1..]).map(|(name, value)| LossTerm {
            name: (*name).to_owned(),
            value: *value,
        });
        named.collect()
    }

    fn begin(&self, step: u64, piece: Piece) {
        self.rank.link.marks().begin(step, piece);
    }

    /// Whether a checkpoint follows this step.
    fn saves(&self, step: u64) -> bool {
        step != 0 && (step.is_multiple_of(self.spec.checkpoint.every) || step == self.spec.train.steps)
    }

    /// Forward and backward of this rank's micro-batches; only the last one's backward communicates.
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
            let generation = self.rank.task.assignment.generation;
            if self.rank.link.is_over(generation) {
                return Err(superseded(generation).into());
            }
            let reduces = index == last && self.exact.is_none();
            if reduces {
                self.begin(examples.step, Piece::Reduction);
                self.group.agree_on_buckets("preparing to reduce")?;
                seconds.communication += clock.lap();
            }
            // The backward that reduces ends when the gradients of all ranks are in. It is our own until our last gradient is
            // ready: the Reducer's group marks that.
            self.begin(examples.step, Piece::MicroBatch(index as u32 + 1));
            let loss = self.trainer.forward(micro_batch, self.spec.train.global_batch)?;
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
            // The collectives that ran before our last gradient was ready overlapped with the backward and cost nothing.
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

    /// Every rank's part of the loss together (of the gradients too, where the Reducer did not do it), and whether one
    /// of them was told to halt: what one knows they all learn in the same step.
    fn sum(&mut self, own: &Losses, step: u64) -> anyhow::Result<(Losses, bool)> {
        let halts = self.rank.link.halt().is_some();
        let nonfinite = self.all_nonfinite(&own.nonfinite, step)?;
        if let Some(exact) = &mut self.exact {
            let sums = exact.reduce(self.group, (self.trainer.loss_scale(), halts), step)?;
            let loss = Losses {
                values: sums.losses,
                nonfinite,
            };
            return Ok((loss, sums.marks != 0));
        }
        let halts = f64::from(u8::from(halts));
        let sums = [own.values.as_slice(), &[halts]].concat();
        let sums = Tensor::from_slice(&sums).to_device(self.device);
        self.group
            .all_reduce(&sums, &format!("adding up the loss of step {step}"))?;
        let mut values = Vec::<f64>::try_from(&sums.to_device(Device::Cpu).to_kind(Kind::Double))?;
        let halts = values.pop().context("no sum came back")?;
        Ok((Losses { values, nonfinite }, halts != 0.0))
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
        if error.is_permanent() {
            self.hopeless(&error, step, places)
        } else {
            error.into()
        }
    }

    fn hopeless(&self, error: &dyn std::error::Error, step: u64, places: &[u32]) -> anyhow::Error {
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

    fn share(&self) -> anyhow::Result<ShardReport> {
        share_of(self.rank, self.spec, self.trainer, self.checkpoints)
    }
}

/// Writes this rank's share of a checkpoint; the coordinator is to be told of it.
fn share_of(
    rank: &Rank<'_>,
    spec: &TrainWork,
    trainer: &Trainer,
    checkpoints: &Checkpoints,
) -> anyhow::Result<ShardReport> {
    let (assignment, number) = (&rank.task.assignment, rank.task.rank);
    let step = Step(trainer.step());
    let state = trainer.state();
    let generation = assignment.generation;
    let deadlines = Deadlines::new(assignment.detect_within_ms);
    let write = checkpoints.write_share(
        deadlines,
        (step, generation),
        (number, assignment.world()),
        &state,
    );
    let shard = rank.link.unless_superseded(generation, write)?;
    Ok(ShardReport {
        step,
        shard: shard.context("writing a checkpoint")?,
        init_digest: trainer.init_digest(),
        environment: environment::describe(spec, rank.job.resources.device),
    })
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
