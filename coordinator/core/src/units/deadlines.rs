//! Timeouts of a job of units.

use super::fail::Missing;
use super::job::Units;
use crate::deadline::Deadlines;
use crate::record::Millis;

impl Units {
    /// Ranks whose report is overdue, at most one per worker.
    pub(super) fn overdue(&self, deadlines: Deadlines, now: Millis) -> Vec<Missing> {
        let missing = self.participants().iter().filter_map(|participant| {
            let mut ranks = participant.ranks.iter();
            let (rank, _) =
                ranks.find(|(_, it)| deadlines.report_timeout(it.live.last_report) <= now)?;
            Some(Missing {
                worker: participant.worker().clone(),
                rank: *rank,
            })
        });
        missing.collect()
    }

    pub(crate) fn next_deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let ranks = self
            .participants()
            .iter()
            .flat_map(|participant| participant.ranks.values());
        let last_report = ranks.map(|rank| rank.live.last_report).min();
        let leaving = self
            .participants()
            .iter()
            .filter_map(|participant| participant.leaving.as_ref());
        let leaving = leaving.map(|leaving| leaving.until);
        last_report
            .map(|last_report| deadlines.report_timeout(last_report))
            .into_iter()
            .chain(leaving)
            .chain(self.backing_off.values().copied())
            .min()
    }
}
