//! A gang takes a report of one of its ranks, or the passing of time.

use super::blame::RankOf;
use super::commit;
use super::job::{Gang, State};
use super::running::Bounds;
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::explain::{Ending, failure};
use crate::outbox::Outbox;
use crate::partitions::Partitions;
use crate::violation::Violation;
use proto::id::WorkerId;
use proto::message::RankReport;

/// What a rank's report leads to beyond its job.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Why its generation is to end, if it is.
    pub(crate) ending: Option<Ending>,
    pub(crate) violations: Vec<Violation>,
}

impl Gang {
    /// Takes the report of a rank of the running generation.
    pub(crate) fn receive(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        outbox: &mut Outbox,
    ) -> Received {
        let bounds = Bounds {
            steps_max: self.steps_max(),
            committed: self.committed(),
        };
        let State::Running(running) = &mut self.state else {
            return Received::default();
        };
        let news = running.take(&mut self.newest, report, bounds, outbox.now);
        if news.for_all {
            self.send_to_members(outbox);
        }
        for step in &news.steps {
            self.ledger_step(step);
        }
        let disagreement = self.ledger_digests(report.rank, &report.digests);
        for step in news.steps {
            outbox.emit(Event::Stepped {
                job: report.job.clone(),
                generation: report.generation,
                report: step,
            });
        }
        Received {
            ending: disagreement.or_else(|| failure(worker, report)),
            violations: news.violations,
        }
    }

    /// What is told late of a generation that ended may still say who was to blame. It ends
    /// nothing.
    pub(crate) fn receive_late(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        outbox: &mut Outbox,
    ) {
        if let Some(ending) = failure(worker, report) {
            let of = RankOf {
                generation: report.generation,
                rank: report.rank,
            };
            self.reattribute(worker, Some(of), &ending, outbox);
        }
    }

    /// This worker is gone, with all that it had.
    pub(crate) fn lose_worker(
        &mut self,
        worker: &WorkerId,
        ending: &Ending,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        self.reattribute(worker, None, ending, outbox);
        self.drop_standby(worker, outbox);
        if self.is_member(worker) {
            self.end_generation(ending, deadlines, outbox);
        }
    }

    /// Moves on as far as it goes by itself. True when it is over now and was not before.
    pub(crate) fn tend(
        &mut self,
        partitions: &Partitions,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) -> bool {
        self.tend_standbys(deadlines, outbox);
        let endings = [
            commit::retry(self, deadlines, outbox).err(),
            commit::begin(self, deadlines, outbox).err(),
            self.overdue(deadlines, outbox.now),
            self.partitioned(partitions, deadlines, outbox.now),
        ];
        for ending in endings.into_iter().flatten() {
            self.end_generation(&ending, deadlines, outbox);
        }
        if let Some(running) = self.running_mut()
            && running.all_finished()
            && running.finished_at.is_none()
        {
            running.finished_at = Some(outbox.now);
        }
        self.reconcile(outbox)
    }
}
