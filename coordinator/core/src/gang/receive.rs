//! How a gang handles reports of its ranks and the passing of time.

use super::blame::RankOf;
use super::commit;
use super::job::{Gang, State};
use super::running::Bounds;
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::explain::failure;
use crate::outbox::Outbox;
use crate::partitions::Partitions;
use proto::id::WorkerId;
use proto::message::RankReport;
use proto::reason::Ending;
use proto::reason::Violation;

/// Consequences of a rank's report that the caller must handle.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Why its generation must end, if it must.
    pub(crate) ending: Option<Ending>,
    pub(crate) violations: Vec<Violation>,
}

impl Gang {
    /// Applies the report of a rank of the running generation.
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
        let outcome = running.apply(&mut self.newest, report, bounds, outbox.now);
        if outcome.notify_all {
            self.send_to_members(outbox);
        }
        for step in &outcome.steps {
            self.ledger_step(step);
        }
        let disagreement = self.ledger_digests(report.rank, &report.digests);
        if !outcome.steps.is_empty() {
            self.head.recovered(outbox.wall);
        }
        for step in outcome.steps {
            outbox.emit(Event::Stepped {
                job: report.job.clone(),
                generation: report.generation,
                report: step,
            });
        }
        Received {
            ending: disagreement.or_else(|| failure(worker, report)),
            violations: outcome.violations,
        }
    }

    /// Applies a late report of a generation that ended. It may reveal the root cause, but it ends
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

    /// A worker is lost with all its processes.
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

    /// Advances as far as possible without further input. Returns true if the job ended now.
    pub(crate) fn advance(
        &mut self,
        partitions: &Partitions,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) -> bool {
        self.count_time(deadlines, outbox);
        self.expire_standbys(deadlines, outbox);
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
