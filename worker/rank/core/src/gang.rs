//! A rank of a gang: one process that serves in one generation after another. In each it meets the
//! other ranks, takes over the newest state, trains step by step, writes its shard of a checkpoint
//! now and then, and stops in order or because the group broke. What it holds in memory is always
//! the state after a whole step.

use crate::state::{StateLabel, StateSource};
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use proto::message::{Assignment, GracefulStop, RankPhase};
use proto::spec::TrainWork;

/// What the job says once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The job is done after so many steps.
    pub steps: u64,
    /// A checkpoint follows every so many steps, and the last.
    pub checkpoint_every: u64,
    /// A digest of the weights follows every so many steps; 0: never.
    pub digest_every: u64,
}

impl Rules {
    #[must_use]
    pub fn of(spec: &TrainWork) -> Self {
        Self {
            steps: spec.train.steps,
            checkpoint_every: spec.checkpoint.every,
            digest_every: spec.train.digest_every,
        }
    }

    /// Whether a checkpoint follows this step.
    fn saves(&self, step: Step) -> bool {
        step.0 != 0 && (step.0 == self.steps || step.0.is_multiple_of(self.checkpoint_every))
    }

    fn digests(&self, step: Step) -> bool {
        self.digest_every != 0 && step.0.is_multiple_of(self.digest_every)
    }
}

/// This rank's part of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub generation: Generation,
    pub rank: Rank,
    pub world: u32,
    /// It has no place in the generation and waits for one in which it has.
    pub standby: bool,
    /// The newest committed checkpoint when the generation was formed.
    pub resume: Option<CheckpointRef>,
    pub graceful_stop: Option<GracefulStop>,
    pub detect_within_ms: u64,
}

impl Order {
    /// None: the assignment is for ranks that work alone.
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
    /// The model, its base weights and the data set are there.
    Loaded,
    /// The daemon gave an order: the same one with changes, or that of a newer generation.
    Ordered(Order),
    /// The ranks of the generation have met. What each holds, in rank order.
    Met { holdings: Vec<Option<StateLabel>> },
    /// This state is in memory from now on. The others may still be taking over theirs.
    Holds(StateLabel),
    /// All ranks have the state that [`Effect::Synchronize`] named.
    Synchronized,
    /// The weights are those after this step. `graceful_stop`: some rank of the generation had been
    /// told to halt before it.
    Stepped { step: Step, graceful_stop: bool },
    /// This rank's shard of the checkpoint after this step is in the store.
    Saved { step: Step },
    /// The group is closed, as [`Effect::Leave`] wanted.
    Left,
    /// The group broke, or what was under way was given up for a newer generation.
    Broke { error: String },
}

/// What the shell is to do, one after the other. When one fails with the group the rest is dropped
/// and [`Input::Broke`] told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// From now on the process speaks as a rank of this order's generation.
    TakeUp(Order),
    Phase(RankPhase),
    /// Open the store in which the ranks meet, and say where it is.
    OpenStore,
    /// Wait for the address of the store, meet the other ranks there, and hear what each holds.
    Meet,
    /// Take over this state; `holds`: it is in memory already. Then prepare to train from there.
    Synchronize {
        source: StateSource,
        holds: bool,
    },
    Step(Step),
    /// Hash the weights after this step and say so.
    Digest(Step),
    /// Write this rank's shard of a checkpoint after this step.
    Save(Step),
    /// Report this step, and then its shard where one was written.
    Report(Step),
    /// Close the group; nothing of this generation follows.
    Leave,
    /// Free the thread that serves in the older generation from whatever it waits for.
    Abort,
}

/// Where the process is in its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    Standby,
    Meeting,
    Synchronizing(StateSource),
    Training,
    /// The ranks stop together. `unsaved`: after a step that is in memory alone.
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
    /// The order of the generation that it serves in.
    serving: Order,
    /// The order that came last; of the same generation, or a newer one that it takes up as soon as
    /// it is out of this one.
    newest: Order,
    stage: Stage,
    /// The step whose shard is being written.
    saving: Option<Step>,
    /// What is in memory, once it trained or read a checkpoint.
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

    /// The order of the generation that it serves in.
    #[must_use]
    pub fn serving(&self) -> Order {
        self.serving
    }

    /// What it tells the other ranks when they have met.
    #[must_use]
    pub fn held(&self) -> Option<StateLabel> {
        self.held
    }

    /// What it tells the other ranks in each step: whether the generation is to end in order, and
    /// how.
    #[must_use]
    pub fn graceful_stop(&self) -> Option<GracefulStop> {
        self.serving.graceful_stop
    }

    #[must_use]
    pub fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// What is to be done now that this happened.
    pub fn handle(&mut self, event: Input) -> Vec<Effect> {
        match event {
            Input::Loaded => self.take_up(),
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
            return self.save_late();
        }
        match self.stage {
            // It takes up the order that is the newest when it has loaded.
            Stage::Loading => {
                self.serving = order;
                Vec::new()
            }
            Stage::Standby | Stage::Broken => self.take_up(),
            Stage::Finished { .. } if self.saving.is_none() => self.take_up(),
            Stage::Finished { .. }
            | Stage::Meeting
            | Stage::Synchronizing(_)
            | Stage::Training
            | Stage::Leaving { .. } => vec![Effect::Abort],
        }
    }

    /// It stopped without a checkpoint, because others were to go on from its memory, and now
    /// nobody goes on.
    fn save_late(&mut self) -> Vec<Effect> {
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

    /// It becomes a rank of the newest generation.
    fn take_up(&mut self) -> Vec<Effect> {
        self.serving = self.newest;
        self.saving = None;
        let mut effects = vec![Effect::TakeUp(self.serving)];
        if self.serving.standby {
            self.stage = Stage::Standby;
            effects.push(Effect::Phase(RankPhase::Ready));
            return effects;
        }
        self.stage = Stage::Meeting;
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
        self.hold(step);
        if self.is_superseded() {
            return self.take_up();
        }
        let mut effects = vec![Effect::Phase(RankPhase::Training)];
        // The generation before this one may have ended before all shards of this step were
        // written.
        let unsaved = self.serving.resume.is_none_or(|resume| resume.step < step);
        if self.rules.saves(step) && unsaved {
            self.saving = Some(step);
            effects.push(Effect::Save(step));
        }
        let ends = self.rules.steps <= step.0;
        effects.push(self.go_on(step, ends, false));
        effects
    }

    fn on_stepped(&mut self, step: Step, graceful_stop: bool) -> Vec<Effect> {
        self.hold(step);
        let mut effects = Vec::new();
        if self.rules.digests(step) {
            effects.push(Effect::Digest(step));
        }
        if self.is_superseded() {
            effects.push(Effect::Report(step));
            effects.extend(self.take_up());
            return effects;
        }
        let saves = self.rules.saves(step)
            || graceful_stop && self.serving.graceful_stop == Some(GracefulStop::WithCheckpoint);
        if saves {
            self.saving = Some(step);
            effects.push(Effect::Save(step));
        }
        effects.push(Effect::Report(step));
        let ends = graceful_stop || self.rules.steps <= step.0;
        effects.push(self.go_on(step, ends, !saves));
        effects
    }

    fn go_on(&mut self, step: Step, ends: bool, unsaved: bool) -> Effect {
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
            Stage::Finished { .. } if self.is_superseded() => self.take_up(),
            _ => Vec::new(),
        }
    }

    fn on_left(&mut self) -> Vec<Effect> {
        if self.is_superseded() {
            return self.take_up();
        }
        let Stage::Leaving { unsaved } = self.stage else {
            return Vec::new();
        };
        self.stage = Stage::Finished { unsaved };
        vec![Effect::Phase(RankPhase::Finished)]
    }

    /// The partial step is dropped: what is held is the state after the last whole one.
    fn on_broke(&mut self, error: String) -> Vec<Effect> {
        self.saving = None;
        if self.is_superseded() {
            return self.take_up();
        }
        self.stage = Stage::Broken;
        vec![Effect::Phase(RankPhase::Broken { error })]
    }

    fn hold(&mut self, step: Step) {
        let generation = self.serving.generation;
        self.held = Some(StateLabel { generation, step });
    }

    fn is_superseded(&self) -> bool {
        self.serving.generation < self.newest.generation
    }
}
