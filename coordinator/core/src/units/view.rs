//! What is shown of a job of units. Nothing that is not saved is told of.

use super::job::Units;
use super::part::Part;
use crate::record::Millis;
use crate::shown::{JobView, RankView, SetAside, UnitsView};
use proto::id::Step;

impl Units {
    pub(crate) fn view(&self, now: Millis) -> JobView<'_> {
        let ranks = self.parts().iter().flat_map(|part| {
            part.ranks.iter().map(|(rank, units)| RankView {
                rank: *rank,
                worker: part.worker(),
                phase: units.live.phase.as_ref(),
                activity: units.live.activity,
            })
        });
        JobView {
            record: self.record(),
            spec: Some(&self.head.spec),
            ranks: ranks.collect(),
            last_step: None,
            step: Step(0),
            stopping: self.stops_because(),
            units: Some(self.units_view(now)),
        }
    }

    fn units_view(&self, now: Millis) -> UnitsView {
        let pool = &self.pool;
        let total = pool.plan().count;
        let (done, set_aside) = (pool.done().count(), pool.set_aside().count());
        let named = pool
            .failures()
            .iter()
            .filter(|(unit, _)| pool.set_aside().contains(**unit));
        UnitsView {
            total,
            done,
            set_aside,
            leased: self.parts().iter().map(Part::leased).sum(),
            failed: pool.failed(),
            per_second: if self.is_running() {
                self.rate.per_second(now)
            } else {
                0.0
            },
            named: named
                .map(|(unit, failures)| SetAside {
                    unit: *unit,
                    workers: failures.workers.clone(),
                    error: failures.error.clone(),
                })
                .collect(),
        }
    }

    /// Why all its workers are asked to leave, if they are.
    fn stops_because(&self) -> Option<String> {
        let mut leaving = self.parts().iter().map(|part| part.leaving.as_ref());
        let all = self.is_running() && leaving.clone().all(|it| it.is_some());
        leaving
            .next()
            .flatten()
            .filter(|_| all)
            .map(|it| it.why.clone())
    }
}
