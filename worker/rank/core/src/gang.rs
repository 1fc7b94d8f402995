//! A rank of a gang: one process that serves in successive generations. In each it meets the other
//! ranks at the rendezvous, synchronizes to the newest state, trains step by step, regularly writes
//! its shard of a checkpoint, and stops gracefully or because the process group broke. The state in
//! memory is always that after a whole step.

use crate::state::{StateLabel, StateSource};
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use proto::message::{Assignment, GracefulStop, RankPhase};
use proto::spec::TrainWork;

/// The parameters of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Total number of steps of the job.
    pub steps: u64,
    /// Steps between checkpoints. The last step always has one.
    pub checkpoint_every: u64,
    /// Steps between digests of the weights; 0: no digests.
    pub digest_every: u64,
    /// Steps between validations; 0: no validation.
    pub validate_every: u64,
}

impl Rules {
    #[must_use]
    pub fn of(spec: &TrainWork) -> Self {
        Self {
            steps: spec.train.steps,
            checkpoint_every: spec.checkpoint.every,
            digest_every: spec.train.digest_every,
            validate_every: spec.train.validate_every,
        }
    }

    /// Whether a checkpoint is written after this step.
    fn needs_checkpoint(&self, step: Step) -> bool {
        step.0 != 0 && (step.0 == self.steps || step.0.is_multiple_of(self.checkpoint_every))
    }

    fn needs_digest(&self, step: Step) -> bool {
        self.digest_every != 0 && step.0.is_multiple_of(self.digest_every)
    }

    fn needs_validation(&self, step: Step) -> bool {
        self.validate_every != 0 && step.0.is_multiple_of(self.validate_every)
    }
}

/// The assignment as seen by this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub generation: Generation,
    pub rank: Rank,
    pub world: u32,
    /// The rank is a standby: it is not a member of the generation and waits for one that includes
    /// it.
    pub standby: bool,
    /// The newest committed checkpoint when the generation was formed.
    pub resume: Option<CheckpointRef>,
    pub graceful_stop: Option<GracefulStop>,
    pub detect_within_ms: u64,
}

impl Order {
    /// None if the assignment is for a job of units.
    #[must_use]
    pub fn of(assignment: &Assignment, rank: Rank) -> Option<Self> {
        let gang = assignment.gang()?;
        Some(Self {
            generation: assignment.generation,
            rank,
            world: gang.world,
            standby: assignment.is_standby(),
            resume: gang.resume,
            graceful_stop: assignment.graceful_stop,
            detect_within_ms: assignment.detect_within_ms,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The model, its base weights and the data set are loaded.
    Loaded,
    /// The daemon sent an order: a changed one of the same generation, or that of a newer one.
    Ordered(Order),
    /// The rendezvous of the generation is complete. `holdings`: the state in memory of each rank,
    /// in rank order.
    Met { holdings: Vec<Option<StateLabel>> },
    /// This state is in memory from now on. Other ranks may still be receiving theirs.
    Holds(StateLabel),
    /// All ranks have the state of [`Effect::Synchronize`].
    Synchronized,
    /// This step is complete. `graceful_stop`: a graceful stop had been requested from some rank of
    /// the generation before the step.
    Stepped { step: Step, graceful_stop: bool },
    /// This rank's shard of the checkpoint after this step is in the store.
    Saved { step: Step },
    /// The process group is closed, as requested by [`Effect::Leave`].
    Left,
    /// The process group broke, or the current effect was aborted for a newer generation.
    Broke { error: String },
}

/// Effects, performed by the shell in order. If one fails because the group broke, the remaining
/// effects are dropped and [`Input::Broke`] follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Report as a rank of this order's generation from now on.
    TakeUp(Order),
    Phase(RankPhase),
    /// Open the c10d store for the rendezvous, and report its address.
    OpenStore,
    /// Wait for the address of the store, join the rendezvous, and gather the state label of each
    /// rank.
    Meet,
    /// Synchronize to this state, then prepare to train from it. `holds`: this rank has it in
    /// memory.
    Synchronize {
        source: StateSource,
        holds: bool,
    },
    Step(Step),
    /// Hash the weights after this step and report the digest.
    Digest(Step),
    /// Write this rank's shard of a checkpoint after this step.
    Save(Step),
    /// Compute the validation loss after this step, together with the other ranks.
    Validate(Step),
    /// Report this step, and then its shard if one was written.
    Report(Step),
    /// Close the process group of this generation.
    Leave,
    /// Unblock the thread that still serves in the older generation.
    Abort,
}

/// The state of the process in its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    Standby,
    Rendezvous,
    Synchronizing(StateSource),
    Training,
    /// All ranks stop. `unsaved`: the last step is only in memory.
    Leaving {
        unsaved: bool,
    },
    Finished {
        unsaved: bool,
    },
    Broken,
}

/// The machine.
#[derive(Debug)]
pub struct GangRank {
    rules: Rules,
    /// The order of the generation in which it serves.
    serving: Order,
    /// The last order received. If it is of a newer generation, it is adopted once the current one
    /// has been left.
    newest: Order,
    stage: Stage,
    /// The step whose shard is being written.
    saving: Option<Step>,
    /// The label of the state in memory; None until it has trained or loaded a state.
    held: Option<StateLabel>,
}

impl GangRank {
    #[must_use]
    pub fn new(rules: Rules, first: Order) -> Self {
        Self {
            rules,
            serving: first,
            newest: first,
            stage: Stage::Loading,
            saving: None,
            held: None,
        }
    }

    /// The order of the generation in which it serves.
    #[must_use]
    pub fn serving(&self) -> Order {
        self.serving
    }

    /// The label of the state in memory, which is exchanged at the rendezvous.
    #[must_use]
    pub fn held(&self) -> Option<StateLabel> {
        self.held
    }

    /// The requested graceful stop, which is exchanged between the ranks in each step.
    #[must_use]
    pub fn graceful_stop(&self) -> Option<GracefulStop> {
        self.serving.graceful_stop
    }

    #[must_use]
    pub fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Handles one input and returns the effects to perform.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Loaded => self.adopt_newest(),
            Input::Ordered(order) => self.on_ordered(order),
            Input::Met { holdings } => self.on_met(&holdings),
            Input::Holds(label) => {
                self.held = Some(label);
                Vec::new()
            }
            Input::Synchronized => self.on_synchronized(),
            Input::Stepped {
                step,
                graceful_stop,
            } => self.on_stepped(step, graceful_stop),
            Input::Saved { step } => self.on_saved(step),
            Input::Left => self.on_left(),
            Input::Broke { error } => self.on_broke(error),
        }
    }

    fn on_ordered(&mut self, order: Order) -> Vec<Effect> {
        if order.generation < self.newest.generation {
            return Vec::new();
        }
        self.newest = order;
        if order.generation == self.serving.generation {
            self.serving = order;
            return self.save_after_stop();
        }
        match self.stage {
            // The newest order at the end of loading is adopted.
            Stage::Loading => {
                self.serving = order;
                Vec::new()
            }
            Stage::Standby | Stage::Broken => self.adopt_newest(),
            Stage::Finished { .. } if self.saving.is_none() => self.adopt_newest(),
            Stage::Finished { .. }
            | Stage::Rendezvous
            | Stage::Synchronizing(_)
            | Stage::Training
            | Stage::Leaving { .. } => vec![Effect::Abort],
        }
    }

    /// Saves after a stop without checkpoint: the state was to be continued from memory, but now a
    /// checkpoint is requested because no process continues.
    fn save_after_stop(&mut self) -> Vec<Effect> {
        let (Stage::Leaving { unsaved } | Stage::Finished { unsaved }) = &mut self.stage else {
            return Vec::new();
        };
        if !*unsaved || self.serving.graceful_stop != Some(GracefulStop::WithCheckpoint) {
            return Vec::new();
        }
        *unsaved = false;
        let step = self.held.map_or(Step(0), |held| held.step);
        self.saving = Some(step);
        vec![Effect::Save(step)]
    }

    /// Becomes a rank of the newest generation.
    fn adopt_newest(&mut self) -> Vec<Effect> {
        self.serving = self.newest;
        self.saving = None;
        let mut effects = vec![Effect::TakeUp(self.serving)];
        if self.serving.standby {
            self.stage = Stage::Standby;
            effects.push(Effect::Phase(RankPhase::Ready));
            return effects;
        }
        self.stage = Stage::Rendezvous;
        if self.serving.rank == Rank(0) && 1 < self.serving.world {
            effects.push(Effect::OpenStore);
        }
        effects.extend([Effect::Phase(RankPhase::Joining), Effect::Meet]);
        effects
    }

    fn on_met(&mut self, holdings: &[Option<StateLabel>]) -> Vec<Effect> {
        let source = StateSource::newest(holdings, self.serving.resume);
        let own = holdings
            .get(self.serving.rank.0 as usize)
            .copied()
            .flatten();
        let holds = matches!(source, StateSource::Memory { label, .. } if own == Some(label));
        self.stage = Stage::Synchronizing(source);
        vec![Effect::Synchronize { source, holds }]
    }

    fn on_synchronized(&mut self) -> Vec<Effect> {
        let Stage::Synchronizing(source) = self.stage else {
            return Vec::new();
        };
        let step = source.step();
        self.set_held(step);
        if self.is_superseded() {
            return self.adopt_newest();
        }
        let mut effects = vec![Effect::Phase(RankPhase::Training)];
        // The previous generation may have ended before all shards of this step were written.
        let unsaved = self.serving.resume.is_none_or(|resume| resume.step < step);
        if self.rules.needs_checkpoint(step) && unsaved {
            self.saving = Some(step);
            effects.push(Effect::Save(step));
        }
        let ends = self.rules.steps <= step.0;
        effects.push(self.next_effect(step, ends, false));
        effects
    }

    fn on_stepped(&mut self, step: Step, graceful_stop: bool) -> Vec<Effect> {
        self.set_held(step);
        let mut effects = Vec::new();
        if self.rules.needs_digest(step) {
            effects.push(Effect::Digest(step));
        }
        if self.is_superseded() {
            effects.push(Effect::Report(step));
            effects.extend(self.adopt_newest());
            return effects;
        }
        let writes_checkpoint = self.rules.needs_checkpoint(step)
            || graceful_stop && self.serving.graceful_stop == Some(GracefulStop::WithCheckpoint);
        if writes_checkpoint {
            self.saving = Some(step);
            effects.push(Effect::Save(step));
        }
        if self.rules.needs_validation(step) {
            effects.push(Effect::Validate(step));
        }
        effects.push(Effect::Report(step));
        let ends = graceful_stop || self.rules.steps <= step.0;
        effects.push(self.next_effect(step, ends, !writes_checkpoint));
        effects
    }

    fn next_effect(&mut self, step: Step, ends: bool, unsaved: bool) -> Effect {
        if ends {
            self.stage = Stage::Leaving { unsaved };
            return Effect::Leave;
        }
        self.stage = Stage::Training;
        Effect::Step(Step(step.0 + 1))
    }

    fn on_saved(&mut self, step: Step) -> Vec<Effect> {
        self.saving = self.saving.filter(|saving| *saving != step);
        match self.stage {
            Stage::Finished { .. } if self.is_superseded() => self.adopt_newest(),
            _ => Vec::new(),
        }
    }

    fn on_left(&mut self) -> Vec<Effect> {
        if self.is_superseded() {
            return self.adopt_newest();
        }
        let Stage::Leaving { unsaved } = self.stage else {
            return Vec::new();
        };
        self.stage = Stage::Finished { unsaved };
        vec![Effect::Phase(RankPhase::Finished)]
    }

    /// The partial step is dropped; the state in memory is that after the last whole step.
    fn on_broke(&mut self, error: String) -> Vec<Effect> {
        self.saving = None;
        if self.is_superseded() {
            return self.adopt_newest();
        }
        self.stage = Stage::Broken;
        vec![Effect::Phase(RankPhase::Broken { error })]
    }

    fn set_held(&mut self, step: Step) {
        let generation = self.serving.generation;
        self.held = Some(StateLabel { generation, step });
    }

    fn is_superseded(&self) -> bool {
        self.serving.generation < self.newest.generation
    }
}
