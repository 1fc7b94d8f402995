//! The last reported state of a rank. It is not durable: after a restart it is rebuilt from the
//! next reports.

use crate::record::Millis;
use proto::message::{Activity, RankPhase, StepTotals};

#[derive(Debug)]
pub(crate) struct RankLive {
    /// None if not reported yet.
    pub(crate) phase: Option<RankPhase>,
    /// When its worker last reported it; before the first report, when its generation was formed.
    pub(crate) last_report: Millis,
    /// When it entered its phase.
    pub(crate) since: Millis,
    /// What its thread was doing at the last report.
    pub(crate) activity: Option<Activity>,
    /// What its process has done, by its last report.
    pub(crate) totals: Option<StepTotals>,
    /// Its process started in this generation, so it holds no state.
    pub(crate) cold: bool,
}

impl RankLive {
    /// The phase in a few words.
    pub(crate) fn phase_word(&self) -> &'static str {
        self.phase.as_ref().map_or("not reported", RankPhase::word)
    }

    pub(crate) fn new(now: Millis) -> Self {
        Self {
            phase: None,
            last_report: now,
            since: now,
            activity: None,
            totals: None,
            cold: false,
        }
    }

    /// Applies a reported phase. Returns true if the phase advanced. A reordered older report does
    /// not move it back.
    pub(crate) fn apply(&mut self, phase: &RankPhase, now: Millis) -> bool {
        self.last_report = now;
        self.cold |= *phase == RankPhase::Starting;
        let new = self.phase.as_ref().map_or(0, progress) < progress(phase);
        if new {
            self.phase = Some(phase.clone());
            self.since = now;
        }
        new
    }
}

/// The order of phases in a rank's life, starting at 1.
fn progress(phase: &RankPhase) -> u8 {
    match phase {
        RankPhase::Starting => 1,
        RankPhase::Joining => 2,
        RankPhase::Ready => 3,
        RankPhase::Training => 4,
        RankPhase::Broken { .. } => 5,
        RankPhase::Finished => 6,
        RankPhase::Failed { .. } => 7,
    }
}
