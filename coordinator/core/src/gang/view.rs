//! The view of a gang.

use super::job::Gang;
use crate::record::JobRecord;
use crate::view_model::{JobView, RankView};

impl Gang {
    pub(crate) fn view(&self, record: JobRecord) -> JobView<'_> {
        let ranks = self.running().into_iter().flat_map(|running| {
            running.ranks.iter().filter_map(|(rank, live)| {
                Some(RankView {
                    rank: *rank,
                    worker: &running.owner(*rank)?.worker,
                    phase: live.phase.as_ref(),
                    activity: live.activity,
                    totals: live.totals,
                })
            })
        });
        JobView {
            record,
            spec: Some(&self.head.spec),
            ranks: ranks.collect(),
            last_step: self.newest.last_step.as_ref(),
            step: self.newest.acknowledged.max(self.committed()),
            stopping: self.stop_reason(),
            units: None,
        }
    }
}
