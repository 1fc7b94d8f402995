//! The state of one rank of this node: its process and the report that is sent to the coordinator.
//! A rank always belongs to one generation; its process may become a rank of the next. All
//! decisions are made by the machine in `lib.rs`.

use crate::deadline::Deadlines;
use crate::event::{Millis, RankKey};
use proto::id::Step;
use proto::message::{
    Activity, Assignment, DIGESTS_MAX, RankPhase, RankReport, STEPS_MAX, UnitRange, UnitReport,
};
use proto::reason::RankFailure;

/// Maximum number of unacknowledged shards. If the coordinator is unreachable for long, older ones
/// are dropped first, and their checkpoints are never committed.
const SHARDS_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct RankState {
    /// The rank as which its process was started.
    pub(crate) process: RankKey,
    pub(crate) process_state: ProcessState,
    /// The latest report. Steps and shards are accumulated until the coordinator acknowledges them.
    pub(crate) report: RankReport,
    /// The assignment that was last sent to the process.
    pub(crate) assignment: Option<Box<Assignment>>,
}

/// The state of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessState {
    /// It runs as assigned. `last_heard` is the time of its last report, or of its start before the
    /// first report (`has_reported`). `leave_by` is the deadline for leaving its older generation,
    /// if it has not yet; the deadline is postponed while the process is in a stage that waits for
    /// no other process.
    Running {
        device: u32,
        last_heard: Millis,
        has_reported: bool,
        leave_by: Option<Millis>,
    },
    /// It was asked to stop, or killed. It holds its device until it has exited.
    Stopping { device: u32, kill_at: Millis },
    /// There is no process. The report is retained until the assignments no longer name the
    /// generation.
    Exited,
}

impl RankState {
    /// A rank whose process was just started.
    pub(crate) fn started(
        key: &RankKey,
        device: u32,
        assignment: Box<Assignment>,
        now: Millis,
    ) -> Self {
        let process_state = ProcessState::Running {
            device,
            last_heard: now,
            has_reported: false,
            leave_by: None,
        };
        Self {
            process: key.clone(),
            process_state,
            report: new_report(key, RankPhase::Starting),
            assignment: Some(assignment),
        }
    }

    /// The state of this rank's process as a rank of a newer generation; None if the process cannot
    /// continue. In a job of units a process keeps its rank number, because its lease continues.
    pub(crate) fn successor(
        &self,
        key: &RankKey,
        assignment: Box<Assignment>,
        leave_by: Millis,
    ) -> Option<Self> {
        let ProcessState::Running {
            device,
            last_heard,
            has_reported,
            ..
        } = self.process_state
        else {
            return None;
        };
        let failed = matches!(self.report.phase, RankPhase::Failed { .. });
        let is_other_rank = assignment.units().is_some() && key.rank != self.report.rank;
        if failed || key.generation <= self.report.generation || is_other_rank {
            return None;
        }
        // A process that is still loading has no older generation to leave.
        let is_loading = self.report.phase == RankPhase::Starting;
        let process_state = ProcessState::Running {
            device,
            last_heard,
            has_reported,
            leave_by: (!is_loading).then_some(leave_by),
        };
        let phase = if is_loading {
            RankPhase::Starting
        } else {
            RankPhase::Joining
        };
        let mut next = Self {
            process: self.process.clone(),
            process_state,
            report: new_report(key, phase),
            assignment: Some(assignment),
        };
        next.report.totals = self.report.totals;
        if let Some(lease) = next.lease() {
            next.report.units = restrict_to_lease(lease, self.report.units.clone());
            next.report.activity = self.report.activity;
        }
        Some(next)
    }

    /// A rank that is not started on this worker, with the reason.
    pub(crate) fn refused(key: &RankKey, failure: RankFailure) -> Self {
        let phase = RankPhase::Failed { failure };
        Self {
            process: key.clone(),
            process_state: ProcessState::Exited,
            report: new_report(key, phase),
            assignment: None,
        }
    }

    pub(crate) fn device(&self) -> Option<u32> {
        match self.process_state {
            ProcessState::Running { device, .. } | ProcessState::Stopping { device, .. } => {
                Some(device)
            }
            ProcessState::Exited => None,
        }
    }

    /// The next deadline of this rank.
    pub(crate) fn deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        match self.process_state {
            ProcessState::Running {
                last_heard,
                has_reported,
                leave_by,
                ..
            } => {
                let silent = deadlines.silent_at(last_heard, has_reported);
                Some(leave_by.map_or(silent, |leave_by| leave_by.min(silent)))
            }
            ProcessState::Stopping { kill_at, .. } => Some(kill_at),
            ProcessState::Exited => None,
        }
    }

    /// Records a heartbeat of a process that still reports for an older generation. A stage that
    /// waits for no other process cannot be interrupted and is bounded by the process's own
    /// watchdog, so the time for leaving starts at its end.
    pub(crate) fn record_heartbeat(
        &mut self,
        activity: Option<Activity>,
        deadlines: Deadlines,
        now: Millis,
    ) {
        let ProcessState::Running {
            last_heard,
            has_reported,
            leave_by,
            ..
        } = &mut self.process_state
        else {
            return;
        };
        (*last_heard, *has_reported) = (now, true);
        if let Some(leave_by) = leave_by
            && activity.is_some_and(|activity| activity.stage.is_own())
        {
            *leave_by = deadlines.leave_at(now);
        }
    }

    /// Merges a report of the process for this generation. Returns true if the coordinator should
    /// receive a new report.
    pub(crate) fn merge(&mut self, report: RankReport, now: Millis) -> bool {
        if let ProcessState::Running {
            last_heard,
            has_reported,
            leave_by,
            ..
        } = &mut self.process_state
        {
            (*last_heard, *has_reported) = (now, true);
            *leave_by = None;
        }
        let mut changed = self.advance(report.phase);
        self.report.activity = report.activity;
        self.report.totals = report.totals.or(self.report.totals);
        if report.store_address.is_some() && report.store_address != self.report.store_address {
            self.report.store_address = report.store_address;
            changed = true;
        }
        let (acknowledged, committed) = self.acknowledged_and_committed();
        for step in report.steps {
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
        for shard in report.shards {
            if shard.step > committed && !self.report.shards.contains(&shard) {
                self.report.shards.push(shard);
                changed = true;
            }
        }
        let surplus = self.report.shards.len().saturating_sub(SHARDS_MAX);
        self.report.shards.drain(..surplus);
        for digest in report.digests {
            let newest = self.report.digests.last();
            if newest.is_none_or(|newest| newest.step < digest.step) {
                self.report.digests.push(digest);
                changed = true;
            }
        }
        let surplus = self.report.digests.len().saturating_sub(DIGESTS_MAX);
        self.report.digests.drain(..surplus);
        let units = self
            .lease()
            .map(|lease| restrict_to_lease(lease, report.units));
        if let Some(units) = units
            && units != self.report.units
        {
            self.report.units = units;
            changed = true;
        }
        changed
    }

    /// The report to send at `now`. The last known activity is assumed to continue.
    pub(crate) fn current_report(&self, now: Millis) -> RankReport {
        let mut report = self.report.clone();
        if let (Some(activity), ProcessState::Running { last_heard, .. }) =
            (&mut report.activity, self.process_state)
        {
            activity.for_ms = activity
                .for_ms
                .saturating_add(now.saturating_sub(last_heard));
        }
        report
    }

    /// Stores the newest assignment and drops what it acknowledges from the report. Returns true if
    /// the report changed.
    pub(crate) fn set_assignment(&mut self, assignment: Box<Assignment>) -> bool {
        self.assignment = Some(assignment);
        let (acknowledged, committed) = self.acknowledged_and_committed();
        let before = self.report.steps.len() + self.report.shards.len();
        self.report.steps.retain(|step| step.step > acknowledged);
        self.report.shards.retain(|shard| shard.step > committed);
        let units = self.report.units.clone();
        if let Some(lease) = self.lease() {
            self.report.units = restrict_to_lease(lease, units.clone());
        }
        self.report.steps.len() + self.report.shards.len() != before || self.report.units != units
    }

    /// The units that are leased to this rank; None in a gang.
    fn lease(&self) -> Option<&[UnitRange]> {
        let order = self.assignment.as_ref()?.units()?;
        let lease = order.leases.get(&self.report.rank);
        Some(lease.map_or(&[], Vec::as_slice))
    }

    /// Advances the phase. Final phases do not change: the first failure is the root cause, and a
    /// finished rank stays finished however its process exits. Exception: a finished rank that
    /// holds trained state and was not asked to stop can still fail, because its state is then lost
    /// before a checkpoint of it is written. Returns true if the phase changed.
    pub(crate) fn advance(&mut self, phase: RankPhase) -> bool {
        let is_failure = matches!(phase, RankPhase::Failed { .. });
        let ended = match self.report.phase {
            RankPhase::Failed { .. } => true,
            RankPhase::Finished => !(is_failure && self.holds_state()),
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

    /// Whether its process runs, was not asked to stop, and holds training state for the next
    /// generation.
    fn holds_state(&self) -> bool {
        let trains = self
            .assignment
            .as_ref()
            .is_some_and(|it| it.gang().is_some());
        matches!(self.process_state, ProcessState::Running { .. }) && trains
    }

    /// The acknowledged and the committed step of the last assignment.
    fn acknowledged_and_committed(&self) -> (Step, Step) {
        self.assignment
            .as_ref()
            .and_then(|it| it.gang())
            .map_or((Step(0), Step(0)), |it| {
                (it.acknowledged_step, it.committed_step)
            })
    }
}

/// Removes units from a report that are not in the lease. These are acknowledged or were leased to
/// another rank.
fn restrict_to_lease(lease: &[UnitRange], report: UnitReport) -> UnitReport {
    let intersection = |a: &UnitRange, b: &UnitRange| {
        let (first, end) = (a.first.max(b.first), a.end.min(b.end));
        (first < end).then_some(UnitRange { first, end })
    };
    let done = report.done.iter();
    let done = done.flat_map(|done| {
        lease
            .iter()
            .filter_map(move |leased| intersection(done, leased))
    });
    let is_leased = |unit: u64| lease.iter().any(|range| range.contains(unit));
    let failed = report.failed.into_iter();
    UnitReport {
        done: done.collect(),
        failed: failed.filter(|failure| is_leased(failure.unit)).collect(),
    }
}

fn new_report(key: &RankKey, phase: RankPhase) -> RankReport {
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
        totals: None,
    }
}
