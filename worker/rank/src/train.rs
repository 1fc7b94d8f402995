//! Training as one rank process sees it: what the rank's machine ([`rank_core::gang`]) wants is
//! done here, one after the other, and the machine is told what came of it. Between generations the
//! model, the optimizer and the data set stay as they are. Called by [`crate::run`].

use crate::checkpoint::Checkpoints;
use crate::collective::{CollectiveError, Group, Membership, Store, first_line};
use crate::deadline::Deadlines;
use crate::exact::ExactSum;
use crate::group::{meet, open_store};
use crate::link::superseded;
use crate::load::{build, open_data};
use crate::position::Position;
use crate::prefetch::Prefetch;
use crate::process::Rank;
use crate::state::{Said, exchange, synchronize};
use crate::step::{Done, Stepping};
use crate::{device, environment};
use anyhow::Context;
use model::trainer::Trainer;
use model::weights;
use model_data::loader::Loader;
use proto::checkpoint::CheckpointRef;
use proto::id::Step;
use proto::message::{ShardReport, Stage, StepReport, WeightDigest};
use proto::spec::{Reduction, TrainWork};
use rank_core::gang::{Effect, Input, Order, Rules};
use rank_core::state::StateSource;
use std::collections::VecDeque;
use std::convert::Infallible;
use tch::Device;

/// Serves in one generation after another, and leaves only by an error of its own or because it is
/// told to. What goes wrong with the group costs the step that was under way: the state in memory
/// is that of the last whole step.
pub(crate) fn train(rank: &Rank<'_>, spec: &TrainWork) -> anyhow::Result<Infallible> {
    let first = rank.link.train(Rules::of(spec))?;
    let mut state = RankState::prepare(rank, spec, first)?;
    let mut wanted = VecDeque::from(rank.link.tell(Input::Loaded));
    loop {
        let Some(effect) = wanted.pop_front() else {
            wanted.extend(rank.link.wait_wanted()?);
            continue;
        };
        match state.perform(effect) {
            Ok(None) => {}
            Ok(Some(event)) => wanted.extend(rank.link.tell(event)),
            Err(error) if is_of_group(&error) => {
                state.close();
                let error = first_line(&format!("{error:#}")).to_owned();
                let generation = state.turn.order.generation;
                tracing::warn!(%generation, held = ?rank.link.held(), error, "the group is broken");
                wanted = rank.link.tell(Input::Broke { error }).into();
            }
            Err(error) => return Err(error),
        }
    }
}

/// What ends the generation and not the process.
fn is_of_group(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<CollectiveError>())
}

/// What outlives a generation.
struct RankState<'a> {
    rank: &'a Rank<'a>,
    spec: &'a TrainWork,
    device: Device,
    trainer: Trainer,
    /// With `reduction = "exact"`; otherwise the group's Reducer sums gradients.
    exact: Option<ExactSum>,
    loader: Loader,
    checkpoints: Checkpoints,
    turn: Turn,
}

/// What belongs to one generation.
struct Turn {
    order: Order,
    /// Until the ranks have met.
    store: Option<Store>,
    group: Option<Group>,
    said: Vec<Said>,
    prefetch: Option<Prefetch>,
    /// The newest step, until it is reported, and the shard that was written after it.
    done: Option<(Done, Option<ShardReport>)>,
}

impl Turn {
    fn new(order: Order) -> Self {
        Self {
            order,
            store: None,
            group: None,
            said: Vec::new(),
            prefetch: None,
            done: None,
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
        let mut trainer = build(rank, spec, device)?;
        let exact = match spec.train.reduction {
            Reduction::Exact => {
                // It moves the gradients, so they must be there.
                trainer.zero_gradients();
                {
                    let losses = 1 + trainer.loss_terms().len();
                    Some(ExactSum::new(
                        trainer.parameters(),
                        spec.micro_batches(),
                        losses,
                    ))
                }
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
            trainer,
            exact,
            loader,
            checkpoints: Checkpoints::open(&assignment.store_url, &assignment.job)?,
            turn: Turn::new(first),
        })
    }

    /// Does what the machine wants, and says what came of it where the machine waits for that.
    fn perform(&mut self, effect: Effect) -> anyhow::Result<Option<Input>> {
        let link = self.rank.link;
        match effect {
            Effect::TakeUp(order) => {
                self.close();
                self.turn = Turn::new(order);
                link.take_up(order.generation, order.rank);
            }
            Effect::Phase(phase) => link.phase(phase),
            Effect::OpenStore => {
                let address = &self.rank.settings.address;
                self.turn.store = Some(open_store(link, self.turn.order, address)?);
            }
            Effect::Meet => return self.meet().map(Some),
            Effect::Synchronize { source, holds } => {
                self.synchronize(source, holds)?;
                return Ok(Some(Input::Synchronized));
            }
            Effect::Step(step) => return self.step(step).map(Some),
            Effect::Digest(step) => self.digest(step),
            Effect::Save(step) => {
                self.save(step)?;
                return Ok(Some(Input::Saved { step }));
            }
            Effect::Report(_) => self.report(),
            Effect::Leave => {
                self.close();
                tracing::info!(
                    step = self.trainer.step(),
                    "the generation ends here, in order"
                );
                return Ok(Some(Input::Left));
            }
            // The link's: it comes from other threads.
            Effect::Abort => {}
        }
        Ok(None)
    }

    /// Lets go of the group. The peers notice.
    fn close(&mut self) {
        let order = self.turn.order;
        self.turn = Turn::new(order);
        self.rank.link.guard(order.generation, None);
        self.rank.link.progress().leave();
    }

    fn meet(&mut self) -> anyhow::Result<Input> {
        let Self { rank, turn, .. } = self;
        let Position {
            rank: number,
            world,
        } = turn.position();
        let membership = Membership {
            job: rank.task.assignment.job.0.clone(),
            generation: turn.order.generation,
            rank: number,
            world,
            host: rank.settings.address.clone(),
            device: self.device,
            timeout: turn.deadlines().collective(),
        };
        let group = meet(rank.link, turn.store.take(), membership, turn.deadlines())?;
        rank.link.guard(turn.order.generation, group.aborter());
        turn.said = exchange(&group, &self.trainer, rank.link.held())?;
        turn.group = Some(group);
        let holdings = turn.said.iter().map(|said| said.held).collect();
        Ok(Input::Met { holdings })
    }

    /// Takes over the state, and prepares to train from there.
    fn synchronize(&mut self, source: StateSource, holds: bool) -> anyhow::Result<()> {
        let (link, turn) = (self.rank.link, &mut self.turn);
        let group = turn.group.as_mut().context("the ranks have not met")?;
        let generation = turn.order.generation;
        let read = |trainer: &Trainer, checkpoint| {
            let read = self.checkpoints.read_for(trainer, checkpoint);
            Ok(link.unless_superseded(generation, read)??)
        };
        let took = |label| drop(link.tell(Input::Holds(label)));
        let trainer = &mut self.trainer;
        synchronize(group, trainer, &turn.said, (source, holds), read, took)?;
        // Gradients must exist before the Reducer makes them views into its buckets.
        trainer.zero_gradients();
        match &mut self.exact {
            Some(exact) => exact.clear(),
            None => {
                let progress = link.progress().clone();
                group.attach(trainer.parameters(), move || progress.own_gradients_ready())?;
            }
        }
        let steps = source.step().0 + 1..=self.spec.train.steps;
        let (deadlines, position, loader) =
            (turn.deadlines(), turn.position(), self.loader.clone());
        let prefetch = Prefetch::start(
            self.rank.runtime,
            deadlines,
            loader,
            self.spec,
            position,
            steps,
        );
        turn.prefetch = Some(prefetch);
        let Position { rank, world } = position;
        tracing::info!(rank, world, ?source, "training");
        Ok(())
    }

    fn step(&mut self, step: Step) -> anyhow::Result<Input> {
        let generation = self.turn.order.generation;
        if self.rank.link.is_over(generation) {
            return Err(superseded(generation).into());
        }
        let turn = &mut self.turn;
        let mut stepping = Stepping {
            rank: self.rank,
            spec: self.spec,
            generation,
            trainer: &mut self.trainer,
            group: turn.group.as_ref().context("the ranks have not met")?,
            exact: self.exact.as_mut(),
            loader: &self.loader,
            prefetch: turn.prefetch.as_mut().context("nothing is loaded ahead")?,
        };
        let done = stepping
            .step(step.0)
            .with_context(|| format!("step {step}"))?;
        let graceful_stop = done.graceful_stop;
        turn.done = Some((done, None));
        Ok(Input::Stepped {
            step,
            graceful_stop,
        })
    }

    fn digest(&self, step: Step) {
        let link = self.rank.link;
        link.progress().begin(step.0, Stage::Digest);
        let sha256 = weights::digest(&self.trainer.state().into_iter().collect());
        link.progress().leave();
        link.digest(WeightDigest { step, sha256 });
    }

    /// Writes this rank's shard of a checkpoint. One that follows a step is reported with it.
    fn save(&mut self, step: Step) -> anyhow::Result<()> {
        if self.turn.done.is_none() {
            let shard = self.write_shard(step)?;
            self.rank.link.shard(shard);
            return Ok(());
        }
        self.rank.link.progress().begin(step.0, Stage::Checkpoint);
        let written = self.write_shard(step);
        if let Some((done, shard)) = &mut self.turn.done {
            done.report.seconds.checkpoint = done.clock.lap();
            match written {
                Ok(written) => *shard = Some(written),
                Err(error) => {
                    // A shard that was not written takes nothing from the step.
                    self.report();
                    return Err(error.context(format!("step {step}")));
                }
            }
        }
        Ok(())
    }

    fn write_shard(&self, step: Step) -> anyhow::Result<ShardReport> {
        let (turn, state) = (&self.turn, self.trainer.state());
        let generation = turn.order.generation;
        let checkpoint = CheckpointRef { step, generation };
        let write =
            self.checkpoints
                .write_share(turn.deadlines(), checkpoint, turn.position(), &state);
        let shard = self.rank.link.unless_superseded(generation, write)?;
        Ok(ShardReport {
            step,
            shard: shard.context("writing a checkpoint")?,
            init_digest: self.trainer.init_digest(),
            environment: environment::describe(self.spec, self.rank.job.resources.device),
        })
    }

    /// The step first, then its shard: a commit tells that the step is known, and it would never be
    /// told.
    fn report(&mut self) {
        // To tell may take as long as the daemon does not listen.
        self.rank.link.progress().leave();
        let Some((done, shard)) = self.turn.done.take() else {
            return;
        };
        self.rank.link.step(StepReport {
            peak_memory_bytes: environment::peak_memory_bytes(),
            ..done.report
        });
        if let Some(shard) = shard {
            self.rank.link.shard(shard);
        }
    }
}
