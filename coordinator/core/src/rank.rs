//! What a rank said last, and since when. Never durable: after a restart it is rebuilt from the
//! next reports.

use crate::record::Millis;
use proto::message::{Activity, RankPhase};

#[derive(Debug)]
pub(crate) struct RankLive {
    /// None: not reported yet.
    pub(crate) phase: Option<RankPhase>,
    /// When it last stood in its worker's report; before the first, when its generation was formed.
    pub(crate) heard: Millis,
    /// Since when it is in its phase.
    pub(crate) since: Millis,
    /// Where its thread was when it was last heard.
    pub(crate) activity: Option<Activity>,
    /// Its process began in this generation; it holds nothing.
    pub(crate) cold: bool,
}

impl RankLive {
    /// Its phase in a few words.
    pub(crate) fn phase_word(&self) -> &'static str {
        self.phase.as_ref().map_or("not reported", RankPhase::word)
    }

    pub(crate) fn new(now: Millis) -> Self {
        Self {
            phase: None,
            heard: now,
            since: now,
            activity: None,
            cold: false,
        }
    }

    /// Takes the phase that was reported; true when it is a new one. A report that was overtaken
    /// sets nobody back.
    pub(crate) fn take(&mut self, phase: &RankPhase, now: Millis) -> bool {
        self.heard = now;
        self.cold |= *phase == RankPhase::Starting;
        let new = self.phase.as_ref().map_or(0, progress) < progress(phase);
        if new {
            self.phase = Some(phase.clone());
            self.since = now;
        }
        new
    }
}

/// Order of phases in a rank's life, above 0.
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
