//! Training in one rank process. Performs the effects of the rank's state machine
//! ([`rank_core::gang`]) in order, and passes the outcomes back as inputs. The model, the optimizer
//! and the data set stay loaded between generations. Called by [`crate::run`].

use crate::checkpoint::Checkpoints;
use crate::collective::device::peak_device_memory_bytes;
use crate::collective::network::{self, Interface};
use crate::collective::{CollectiveError, Group, Membership, Store, first_line};
use crate::deadline::Deadlines;
use crate::exact::ExactSum;
use crate::group::{open_store, rendezvous};
use crate::link::superseded;
use crate::load::{build, open_data};
use crate::position::Position;
use crate::prefetch::{Prefetch, Reading};
use crate::process::Rank;
use crate::state::{StateReport, gather_states, synchronize};
use crate::step::{CompletedStep, StepContext};
use crate::validation::{self, ValidationContext};
use crate::{device, environment};
use anyhow::Context;
use model::trainer::Trainer;
use model::weights;
use model_data::loader::Loader;
use proto::checkpoint::CheckpointRef;
use proto::environment::RankEnvironment;
use proto::id::Step;
use proto::message::{ShardReport, Stage, StepReport, WeightDigest};
use proto::spec::{DeviceKind, Reduction, TrainWork};
use rank_core::gang::{Effect, Input, Order, Rules};
use rank_core::state::StateSource;
use std::collections::VecDeque;
use std::convert::Infallible;
use tch::Device;

/// Runs one generation after another. Returns only on an error of this process. A failure of the
/// group discards the step in progress: the state in memory is that of the last completed step.
pub(crate) fn train(rank: &Rank<'_>, spec: &TrainWork) -> anyhow::Result<Infallible> {
    let first = rank.link.start_gang(Rules::of(spec))?;
    let mut state = RankState::prepare(rank, spec, first)?;
    let mut effects = VecDeque::from(rank.link.handle(Input::Loaded));
    loop {
        let Some(effect) = effects.pop_front() else {
            effects.extend(rank.link.wait_gang_effects()?);
            continue;
        };
        match state.perform(effect) {
            Ok(None) => {}
            Ok(Some(input)) => effects.extend(rank.link.handle(input)),
            Err(error) if is_collective_error(&error) => {
                state.close();
                let error = first_line(&format!("{error:#}")).to_owned();
                let generation = state.current.order.generation;
                tracing::warn!(%generation, held = ?rank.link.held(), error, "the group failed");
                effects = rank.link.handle(Input::Broke { error }).into();
            }
            Err(error) => return Err(error),
        }
    }
}

/// True if the error ends the generation but not the process.
fn is_collective_error(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<CollectiveError>())
}

/// State that outlives a generation.
struct RankState<'a> {
    rank: &'a Rank<'a>,
    spec: &'a TrainWork,
    device: Device,
    /// For NCCL's sockets; None on a CPU.
    interface: Option<Interface>,
    environment: RankEnvironment,
    trainer: Trainer,
    /// With `reduction = "exact"`; otherwise the group's Reducer sums gradients.
    exact: Option<ExactSum>,
    loader: Loader,
    /// Positions of the validation samples.
    validation: Vec<u64>,
    checkpoints: Checkpoints,
    current: GenerationState,
}

/// State of one generation.
struct GenerationState {
    order: Order,
    /// Rank 0's store, until the rendezvous.
    store: Option<Store>,
    group: Option<Group>,
    /// The state of every rank at the rendezvous.
    reports: Vec<StateReport>,
    prefetch: Option<Prefetch>,
    /// The newest step until it is reported, and the shard that was written after it.
    unreported: Option<(CompletedStep, Option<ShardReport>)>,
}

impl GenerationState {
    fn new(order: Order) -> Self {
        Self {
            order,
            store: None,
            group: None,
            reports: Vec::new(),
            prefetch: None,
            unreported: None,
        }
    }

    fn position(&self) -> Position {
        Position {
            rank: self.order.rank.0,
            world: self.order.world,
        }
    }

    fn deadlines(&self) -> Deadlines {
        Deadlines::new(self.order.detect_within_ms)
    }
}

impl<'a> RankState<'a> {
    fn prepare(rank: &'a Rank<'a>, spec: &'a TrainWork, first: Order) -> anyhow::Result<Self> {
        let assignment = &rank.task.assignment;
        let device = device::choose(
            rank.job.resources.device,
            rank.task.device,
            spec.train.precision,
        )?;
        // Before the minutes that loading can take: a wrong address fails at once.
        let interface = match rank.job.resources.device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => Some(network::of_this_process(&rank.settings.address)?),
        };
        if let Some(interface) = &interface {
            tracing::info!(%interface, "NCCL's network interface");
        }
        let mut trainer = build(rank, spec, device)?;
        let exact = match spec.train.reduction {
            Reduction::Exact => {
                // Gradients must exist before they are moved into buckets.
                trainer.zero_gradients();
                let losses = 1 + trainer.loss_terms().len();
                Some(ExactSum::new(
                    trainer.parameters(),
                    spec.micro_batches(),
                    losses,
                ))
            }
            Reduction::Fast => None,
        };
        let loader = rank
            .runtime
            .block_on(open_data(spec, &assignment.dataset_version))?;
        Ok(Self {
            rank,
            spec,
            device,
            interface,
            environment: environment::of_rank(
                rank.job.resources.device,
                rank.task.device,
                &rank.settings.address,
            ),
            trainer,
            exact,
            validation: validation::samples(spec, loader.held_out())?,
            loader,
            checkpoints: Checkpoints::open(&assignment.store_url, &assignment.job)?,
            current: GenerationState::new(first),
        })
    }

    /// Performs one effect. Returns the outcome if the machine expects one.
    fn perform(&mut self, effect: Effect) -> anyhow::Result<Option<Input>> {
        let link = self.rank.link;
        match effect {
            Effect::TakeUp(order) => {
                self.close();
                self.current = GenerationState::new(order);
                link.start_generation(order.generation, order.rank);
            }
            Effect::Phase(phase) => link.phase(phase),
            Effect::OpenStore => {
                let address = &self.rank.settings.address;
                self.current.store = Some(open_store(link, self.current.order, address)?);
            }
            Effect::Meet => {
                let (spans, step) = (link.progress().spans(), self.trainer.step());
                return spans
                    .timed("rendezvous", step, || self.rendezvous())
                    .map(Some);
            }
            Effect::Synchronize { source, holds } => {
                let (spans, step) = (link.progress().spans(), source.step().0);
                spans.timed("restore", step, || self.synchronize(source, holds))?;
                return Ok(Some(Input::Synchronized));
            }
            Effect::Step(step) => return self.step(step).map(Some),
            Effect::Digest(step) => self.digest(step),
            Effect::Save(step) => {
                self.save(step)?;
                return Ok(Some(Input::Saved { step }));
            }
            Effect::Validate(step) => self.validate(step)?,
            Effect::Report(_) => self.report(),
            Effect::Leave => {
                self.close();
                tracing::info!(step = self.trainer.step(), "the generation ends gracefully");
                return Ok(Some(Input::Left));
            }
            // Performed by the connection task.
            Effect::Abort => {}
        }
        Ok(None)
    }

    /// Drops the group, which closes the connections to the peers.
    fn close(&mut self) {
        let order = self.current.order;
        self.current = GenerationState::new(order);
        self.rank.link.set_aborter(order.generation, None);
        self.rank.link.progress().end();
    }

    fn rendezvous(&mut self) -> anyhow::Result<Input> {
        let Self {
            rank,
            interface,
            environment,
            current,
            ..
        } = self;
        let Position {
            rank: number,
            world,
        } = current.position();
        let membership = Membership {
            job: rank.task.assignment.job.0.clone(),
            generation: current.order.generation,
            rank: number,
            world,
            host: rank.settings.address.clone(),
            interface: interface.clone(),
            device: self.device,
            timeout: current.deadlines().collective(),
        };
        let group = rendezvous(
            rank.link,
            current.store.take(),
            membership,
            environment.clone(),
            current.deadlines(),
        )?;
        rank.link
            .set_aborter(current.order.generation, group.aborter());
        current.reports = gather_states(&group, &self.trainer, rank.link.held())?;
        current.group = Some(group);
        let holdings = current.reports.iter().map(|report| report.held).collect();
        Ok(Input::Met { holdings })
    }

    /// Synchronizes the state of all ranks and prepares to train from there.
    fn synchronize(&mut self, source: StateSource, holds: bool) -> anyhow::Result<()> {
        let (link, current) = (self.rank.link, &mut self.current);
        let group = current.group.as_mut().context("there is no group yet")?;
        let generation = current.order.generation;
        let read = |trainer: &Trainer, checkpoint| {
            let read = self.checkpoints.read_for(trainer, checkpoint);
            Ok(link.unless_superseded(generation, read)??)
        };
        let on_loaded = |label| drop(link.handle(Input::Holds(label)));
        let trainer = &mut self.trainer;
        synchronize(
            group,
            trainer,
            &current.reports,
            (source, holds),
            read,
            on_loaded,
        )?;
        // Gradients must exist before the Reducer makes them views into its buckets.
        trainer.zero_gradients();
        match &mut self.exact {
            Some(exact) => exact.clear(),
            None => {
                let progress = link.progress().clone();
                group.attach_reducer(trainer.parameters(), move || {
                    progress.local_gradients_ready();
                })?;
            }
        }
        let steps = source.step().0 + 1..=self.spec.train.steps;
        let position = current.position();
        let reading = Reading {
            deadlines: current.deadlines(),
            loader: self.loader.clone(),
            position,
            steps,
            spans: link.progress().spans(),
        };
        let prefetch = Prefetch::start(self.rank.runtime, self.spec, reading);
        current.prefetch = Some(prefetch);
        let Position { rank, world } = position;
        tracing::info!(rank, world, ?source, "training");
        Ok(())
    }

    fn step(&mut self, step: Step) -> anyhow::Result<Input> {
        let generation = self.current.order.generation;
        if self.rank.link.is_superseded(generation) {
            return Err(superseded(generation).into());
        }
        let current = &mut self.current;
        let mut context = StepContext {
            rank: self.rank,
            spec: self.spec,
            generation,
            trainer: &mut self.trainer,
            group: current.group.as_ref().context("there is no group yet")?,
            exact: self.exact.as_mut(),
            loader: &self.loader,
            prefetch: current
                .prefetch
                .as_mut()
                .context("prefetching has not started")?,
        };
        let completed = context
            .step(step.0)
            .with_context(|| format!("step {step}"))?;
        let graceful_stop = completed.graceful_stop;
        current.unreported = Some((completed, None));
        Ok(Input::Stepped {
            step,
            graceful_stop,
        })
    }

    fn digest(&self, step: Step) {
        let link = self.rank.link;
        link.progress().begin(step.0, Stage::Digest);
        let sha256 = weights::digest(&self.trainer.state().into_iter().collect());
        link.progress().end();
        link.digest(WeightDigest { step, sha256 });
    }

    /// Writes this rank's shard of a checkpoint. A shard after a step is reported with that step.
    fn save(&mut self, step: Step) -> anyhow::Result<()> {
        if self.current.unreported.is_none() {
            let shard = self.write_shard(step)?;
            self.rank.link.shard(shard);
            return Ok(());
        }
        self.rank.link.progress().begin(step.0, Stage::Checkpoint);
        let written = self.write_shard(step);
        if let Some((completed, shard)) = &mut self.current.unreported {
            completed.report.seconds.checkpoint = completed.clock.lap();
            match written {
                Ok(written) => *shard = Some(written),
                Err(error) => {
                    // The step is complete even if its shard was not written.
                    self.report();
                    return Err(error.context(format!("step {step}")));
                }
            }
        }
        Ok(())
    }

    fn write_shard(&self, step: Step) -> anyhow::Result<ShardReport> {
        let (current, state) = (&self.current, self.trainer.state());
        let generation = current.order.generation;
        let checkpoint = CheckpointRef { step, generation };
        let write = self.checkpoints.write_shard(
            current.deadlines(),
            checkpoint,
            current.position(),
            &state,
        );
        let shard = self.rank.link.unless_superseded(generation, write)?;
        Ok(ShardReport {
            step,
            shard: shard.context("writing a checkpoint")?,
            init_digest: self.trainer.init_digest(),
            environment: environment::describe(self.spec, self.rank.job.resources.device),
            rank_environment: self.environment.clone(),
        })
    }

    /// Adds the validation loss to the report of the step.
    fn validate(&mut self, step: Step) -> anyhow::Result<()> {
        let current = &mut self.current;
        if let Some((completed, _)) = &mut current.unreported {
            // What lies between the update and the validation has its own figures, or none.
            completed.clock.lap();
        }
        let mut context = ValidationContext {
            rank: self.rank,
            spec: self.spec,
            generation: current.order.generation,
            deadlines: current.deadlines(),
            trainer: &mut self.trainer,
            group: current.group.as_ref().context("there is no group yet")?,
            loader: &self.loader,
            samples: &self.validation,
        };
        let outcome = context.validate(step);
        let Some((completed, _)) = &mut current.unreported else {
            return outcome.map(drop);
        };
        completed.report.seconds.validation = completed.clock.lap();
        match outcome {
            Ok(terms) => {
                if let (0, Some(loss)) = (current.order.rank.0, terms.first()) {
                    tracing::info!(%step, loss = loss.value, "validation");
                }
                completed.report.terms.extend(terms);
                Ok(())
            }
            Err(error) => {
                // The step is complete even if its validation is not.
                self.report();
                Err(error.context(format!("validation after step {step}")))
            }
        }
    }

    /// Reports the step before its shard: committing a checkpoint acknowledges its step, and an
    /// acknowledged step is no longer reported.
    fn report(&mut self) {
        // Sending blocks while the daemon does not read.
        self.rank.link.progress().end();
        let Some((completed, shard)) = self.current.unreported.take() else {
            return;
        };
        self.rank.link.step(StepReport {
            peak_memory_bytes: environment::peak_memory_bytes(),
            peak_device_memory_bytes: peak_device_memory_bytes(self.device),
            ..completed.report
        });
        if let Some(shard) = shard {
            self.rank.link.shard(shard);
        }
    }
}
