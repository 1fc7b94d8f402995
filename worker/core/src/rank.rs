//! One rank of this node: what its process is doing and what is told of it to the coordinator. A
//! rank belongs to one generation for ever; its process may become a rank of the next. It never
//! decides; the machine in `lib.rs` does.

use crate::deadline::Deadlines;
use crate::event::{Millis, RankKey};
use proto::id::Step;
use proto::message::{
    Activity, Assignment, DIGESTS_MAX, RankPhase, RankReport, STEPS_MAX, UnitRange, UnitReport,
};

/// Shards that are kept for a coordinator that is away; older ones are dropped first, and their
/// checkpoints with them.
const SHARDS_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct RankState {
    /// What its process was started as.
    pub(crate) process: RankKey,
    pub(crate) life: Life,
    /// The latest report, with steps and shards gathered until the coordinator has them.
    pub(crate) report: RankReport,
    /// What the process was last told.
    pub(crate) handed: Option<Box<Assignment>>,
}

/// What the process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs and should; `heard` is its last sign of life, the first once it `spoke`. `leave_by`:
    /// until then it must have taken up this generation, if it has not yet; moved on while it is in
    /// a piece of a step that is its own.
    Running {
        device: u32,
        heard: Millis,
        spoke: bool,
        leave_by: Option<Millis>,
    },
    /// It was asked to leave, or killed. It holds its device until it is gone.
    Leaving { device: u32, kill_at: Millis },
    /// No process. The report stays until the coordinator no longer names the generation.
    Gone,
}

impl RankState {
    /// A process that was just started.
    pub(crate) fn started(
        key: &RankKey,
        device: u32,
        assignment: Box<Assignment>,
        now: Millis,
    ) -> Self {
        let life = Life::Running {
            device,
            heard: now,
            spoke: false,
            leave_by: None,
        };
        Self {
            process: key.clone(),
            life,
            report: blank(key, RankPhase::Starting),
            handed: Some(assignment),
        }
    }

    /// The rank of a newer generation that this rank's process becomes; None where there is none
    /// that could. One that works on units stays the rank that it is: its lease goes on.
    pub(crate) fn successor(
        &self,
        key: &RankKey,
        assignment: Box<Assignment>,
        leave_by: Millis,
    ) -> Option<Self> {
        let Life::Running {
            device,
            heard,
            spoke,
            ..
        } = self.life
        else {
            return None;
        };
        let failed = matches!(self.report.phase, RankPhase::Failed { .. });
        let is_other = assignment.units().is_some() && key.rank != self.report.rank;
        if failed || key.generation <= self.report.generation || is_other {
            return None;
        }
        // Who is still loading goes on loading, however long it takes.
        let starts = self.report.phase == RankPhase::Starting;
        let life = Life::Running {
            device,
            heard,
            spoke,
            leave_by: (!starts).then_some(leave_by),
        };
        let phase = if starts {
            RankPhase::Starting
        } else {
            RankPhase::Joining
        };
        let mut next = Self {
            process: self.process.clone(),
            life,
            report: blank(key, phase),
            handed: Some(assignment),
        };
        if let Some(lease) = next.lease() {
            next.report.units = within(lease, self.report.units.clone());
            next.report.activity = self.report.activity;
        }
        Some(next)
    }

    /// A rank that will not be started here, and why.
    pub(crate) fn refused(key: &RankKey, error: &str) -> Self {
        let phase = RankPhase::Failed {
            error: error.to_owned(),
            permanent: false,
        };
        Self {
            process: key.clone(),
            life: Life::Gone,
            report: blank(key, phase),
            handed: None,
        }
    }

    pub(crate) fn device(&self) -> Option<u32> {
        match self.life {
            Life::Running { device, .. } | Life::Leaving { device, .. } => Some(device),
            Life::Gone => None,
        }
    }

    /// When this rank next needs the machine.
    pub(crate) fn deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        match self.life {
            Life::Running {
                heard,
                spoke,
                leave_by,
                ..
            } => {
                let silent = deadlines.silent_at(heard, spoke);
                Some(leave_by.map_or(silent, |leave_by| leave_by.min(silent)))
            }
            Life::Leaving { kill_at, .. } => Some(kill_at),
            Life::Gone => None,
        }
    }

    /// The process lives, and still speaks of an older generation: of what it is `activity` there.
    /// A piece that is all its own cannot be left half-way, and its own watch bounds it: the time
    /// to leave counts from its end.
    pub(crate) fn lives(&mut self, activity: Option<Activity>, deadlines: Deadlines, now: Millis) {
        let Life::Running {
            heard,
            spoke,
            leave_by,
            ..
        } = &mut self.life
        else {
            return;
        };
        (*heard, *spoke) = (now, true);
        if let Some(leave_by) = leave_by
            && activity.is_some_and(|activity| activity.stage.is_own())
        {
            *leave_by = deadlines.leave_at(now);
        }
    }

    /// Takes in what the process said of this generation. True when the coordinator should hear of
    /// it.
    pub(crate) fn merge(&mut self, said: RankReport, now: Millis) -> bool {
        if let Life::Running {
            heard,
            spoke,
            leave_by,
            ..
        } = &mut self.life
        {
            (*heard, *spoke) = (now, true);
            *leave_by = None;
        }
        let mut changed = self.advance(said.phase);
        self.report.activity = said.activity;
        if said.store_address.is_some() && said.store_address != self.report.store_address {
            self.report.store_address = said.store_address;
            changed = true;
        }
        let (acknowledged, committed) = self.known();
        for step in said.steps {
            let newest = self
                .report
                .steps
                .last()
                .map_or(acknowledged, |last| last.step.max(acknowledged));
            if step.step > newest {
                self.report.steps.push(step);
                changed = true;
            }
        }
        let surplus = self.report.steps.len().saturating_sub(STEPS_MAX);
        self.report.steps.drain(..surplus);
        for shard in said.shards {
            if shard.step > committed && !self.report.shards.contains(&shard) {
                self.report.shards.push(shard);
                changed = true;
            }
        }
        let surplus = self.report.shards.len().saturating_sub(SHARDS_MAX);
        self.report.shards.drain(..surplus);
        for digest in said.digests {
            let newest = self.report.digests.last();
            if newest.is_none_or(|newest| newest.step < digest.step) {
                self.report.digests.push(digest);
                changed = true;
            }
        }
        let surplus = self.report.digests.len().saturating_sub(DIGESTS_MAX);
        self.report.digests.drain(..surplus);
        let units = self.lease().map(|lease| within(lease, said.units));
        if let Some(units) = units
            && units != self.report.units
        {
            self.report.units = units;
            changed = true;
        }
        changed
    }

    /// What is told of it at `now`: what it did when it was last heard it has been doing since.
    pub(crate) fn told(&self, now: Millis) -> RankReport {
        let mut report = self.report.clone();
        if let (Some(activity), Life::Running { heard, .. }) = (&mut report.activity, self.life) {
            activity.for_ms = activity.for_ms.saturating_add(now.saturating_sub(heard));
        }
        report
    }

    /// Keeps the newest assignment and drops what the coordinator has by now. True when the report
    /// became shorter.
    pub(crate) fn hand(&mut self, assignment: Box<Assignment>) -> bool {
        self.handed = Some(assignment);
        let (acknowledged, committed) = self.known();
        let before = self.report.steps.len() + self.report.shards.len();
        self.report.steps.retain(|step| step.step > acknowledged);
        self.report.shards.retain(|shard| shard.step > committed);
        let units = self.report.units.clone();
        if let Some(lease) = self.lease() {
            self.report.units = within(lease, units.clone());
        }
        self.report.steps.len() + self.report.shards.len() != before || self.report.units != units
    }

    /// The units that its order names for this rank; None in a gang.
    fn lease(&self) -> Option<&[UnitRange]> {
        let order = self.handed.as_ref()?.units()?;
        let lease = order.leases.get(&self.report.rank);
        Some(lease.map_or(&[], Vec::as_slice))
    }

    /// Moves the phase on. What ended stays as it ended: the first failure is the telling one, and
    /// a rank that finished has finished whatever its process does on its way out. One that holds
    /// what it trained and was not asked to leave can still fail: what it holds is lost then, and a
    /// checkpoint of it never comes. True when it moved.
    pub(crate) fn advance(&mut self, phase: RankPhase) -> bool {
        let fails = matches!(phase, RankPhase::Failed { .. });
        let ended = match self.report.phase {
            RankPhase::Failed { .. } => true,
            RankPhase::Finished => !(fails && self.holds()),
            RankPhase::Starting
            | RankPhase::Ready
            | RankPhase::Joining
            | RankPhase::Training
            | RankPhase::Broken { .. } => false,
        };
        if ended || self.report.phase == phase {
            return false;
        }
        self.report.phase = phase;
        true
    }

    /// Its process runs, was not asked to leave, and trains: it keeps its state for whatever comes
    /// next.
    fn holds(&self) -> bool {
        let trains = self.handed.as_ref().is_some_and(|it| it.gang().is_some());
        matches!(self.life, Life::Running { .. }) && trains
    }

    /// The acknowledged and the committed step, as last handed down.
    fn known(&self) -> (Step, Step) {
        self.handed
            .as_ref()
            .and_then(|it| it.gang())
            .map_or((Step(0), Step(0)), |it| {
                (it.acknowledged_step, it.committed_step)
            })
    }
}

/// What is said of units that the lease names. What it names no more the coordinator knows, or
/// somebody else does.
fn within(lease: &[UnitRange], said: UnitReport) -> UnitReport {
    let overlap = |a: &UnitRange, b: &UnitRange| {
        let (first, end) = (a.first.max(b.first), a.end.min(b.end));
        (first < end).then_some(UnitRange { first, end })
    };
    let done = said.done.iter();
    let done = done.flat_map(|done| lease.iter().filter_map(move |leased| overlap(done, leased)));
    let is_leased = |unit: u64| lease.iter().any(|range| range.contains(unit));
    let failed = said.failed.into_iter();
    UnitReport {
        done: done.collect(),
        failed: failed.filter(|failure| is_leased(failure.unit)).collect(),
    }
}

fn blank(key: &RankKey, phase: RankPhase) -> RankReport {
    RankReport {
        job: key.job.clone(),
        generation: key.generation,
        rank: key.rank,
        phase,
        store_address: None,
        steps: Vec::new(),
        shards: Vec::new(),
        digests: Vec::new(),
        units: UnitReport::default(),
        activity: None,
    }
}
