//! The view of a job of units. It shows only saved progress.

use super::job::Units;
use super::participant::Participant;
use crate::record::{JobRecord, Millis};
use crate::view_model::{JobView, RankView, SetAside, UnitsView};
use proto::id::Step;
use proto::reason::StopCause;

impl Units {
    pub(crate) fn view(&self, record: JobRecord, now: Millis) -> JobView<'_> {
        let ranks = self.participants().iter().flat_map(|participant| {
            participant.ranks.iter().map(|(rank, units)| RankView {
                rank: *rank,
                worker: participant.worker(),
                phase: units.live.phase.as_ref(),
                activity: units.live.activity,
                totals: None,
            })
        });
        JobView {
            record,
            spec: Some(&self.head.spec),
            ranks: ranks.collect(),
            last_step: None,
            step: Step(0),
            stopping: self.stop_reason(),
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
            leased: self.participants().iter().map(Participant::leased).sum(),
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

    /// Why all its workers are being released, if they are.
    fn stop_reason(&self) -> Option<StopCause> {
        let mut leaving = self
            .participants()
            .iter()
            .map(|participant| participant.leaving.as_ref());
        let all = self.is_running() && leaving.clone().all(|it| it.is_some());
        leaving
            .next()
            .flatten()
            .filter(|_| all)
            .map(|it| it.why.clone())
    }
}
