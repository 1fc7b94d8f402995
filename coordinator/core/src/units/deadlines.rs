//! What a job of units waits for only so long.

use super::fail::Missing;
use super::job::Units;
use crate::deadline::Deadlines;
use crate::record::Millis;

impl Units {
    /// Ranks that should have been reported by now, one of each worker.
    pub(super) fn overdue(&self, deadlines: Deadlines, now: Millis) -> Vec<Missing> {
        let missing = self.parts().iter().filter_map(|part| {
            let mut ranks = part.ranks.iter();
            let (rank, _) = ranks.find(|(_, it)| deadlines.report_timeout(it.live.heard) <= now)?;
            Some(Missing {
                worker: part.worker().clone(),
                rank: *rank,
            })
        });
        missing.collect()
    }

    pub(crate) fn next_deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let ranks = self.parts().iter().flat_map(|part| part.ranks.values());
        let heard = ranks.map(|rank| rank.live.heard).min();
        let leaving = self.parts().iter().filter_map(|part| part.leaving.as_ref());
        let leaving = leaving.map(|leaving| leaving.until);
        heard
            .map(|heard| deadlines.report_timeout(heard))
            .into_iter()
            .chain(leaving)
            .chain(self.backing_off.values().copied())
            .min()
    }
}
