//! Handles a worker's report: renews its lease, registers it, and applies its ranks' reports.

use crate::event::Event;
use crate::explain::failure;
use crate::fleet::{Arrival, Leave};
use crate::gang::{Class, classify};
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use proto::id::{JobId, WorkerId};
use proto::limits::LIST;
use proto::message::{RankReport, WorkerReport};
use proto::reason::{Ending, Violation};
use std::collections::BTreeMap;

impl Coordinator {
    pub(crate) fn on_report(&mut self, report: &WorkerReport, outbox: &mut Outbox) {
        let worker = &report.worker;
        match self
            .fleet
            .receive(report, self.deadlines, outbox.now, outbox.wall)
        {
            Arrival::Known => {}
            Arrival::Up => outbox.emit(Event::WorkerUp {
                worker: worker.clone(),
            }),
            Arrival::Replaced { old } => {
                self.reported_violations
                    .retain(|(reporter, _)| *reporter != old);
                let ending = Ending::WorkerRestarted {
                    old: old.clone(),
                    new: worker.clone(),
                };
                outbox.emit(Event::WorkerDown {
                    worker: old.clone(),
                    reason: ending.clone(),
                });
                outbox.emit(Event::WorkerUp {
                    worker: worker.clone(),
                });
                self.lose_worker(&old, &ending, outbox);
            }
            Arrival::Stale { newer, leave } => {
                self.ignore(worker, Violation::OldBoot { newer }, outbox);
                if let Some(Leave { successor, is_new }) = leave {
                    if is_new {
                        outbox.emit(Event::WorkerDisplaced {
                            worker: worker.clone(),
                            by: successor.clone(),
                        });
                    }
                    outbox.leave.push((worker.clone(), successor));
                }
                return;
            }
        }
        // Every report is answered with the desired state, even if it did not change.
        outbox.send.insert(worker.name.clone());
        let mut failures: BTreeMap<JobId, Ending> = BTreeMap::new();
        for rank in &report.ranks {
            let Some(ending) = self.on_rank(worker, rank, outbox) else {
                continue;
            };
            let known = failures.get(&rank.job);
            if known.is_none_or(|known| known.is_secondary() && !ending.is_secondary()) {
                failures.insert(rank.job.clone(), ending);
            }
        }
        for (id, ending) in failures {
            if let Some(job) = self.jobs.get_mut(&id).and_then(Job::gang_mut) {
                job.end_generation(&ending, self.deadlines, outbox);
            }
        }
    }

    /// Applies one rank's report. Returns why its generation ends, if it does.
    fn on_rank(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        outbox: &mut Outbox,
    ) -> Option<Ending> {
        let Some(job) = self.jobs.get_mut(&report.job) else {
            let job = report.job.clone();
            self.ignore(worker, Violation::UnknownJob { job }, outbox);
            return None;
        };
        let job = match job {
            Job::Gang(gang) => gang,
            Job::Units(units) => {
                if let Some(violation) = units.receive(worker, report, self.deadlines, outbox) {
                    self.ignore(worker, violation, outbox);
                }
                return None;
            }
        };
        match classify(job, worker, report) {
            Class::Live => {
                let received = job.receive(worker, report, outbox);
                for violation in received.violations {
                    self.ignore(worker, violation, outbox);
                }
                return received.ending;
            }
            Class::Standby => {
                job.receive_standby(worker, report, self.deadlines, outbox);
                job.receive_late(worker, report, outbox);
            }
            Class::Late => {
                let newest = job.head.generation;
                job.receive_late(worker, report, outbox);
                if report.generation < newest && failure(worker, report).is_none() {
                    let (job, reported) = (report.job.clone(), report.generation);
                    self.ignore(
                        worker,
                        Violation::OldGeneration {
                            job,
                            reported,
                            newest,
                        },
                        outbox,
                    );
                }
            }
            Class::Impossible(violation) => self.ignore(worker, violation, outbox),
        }
        None
    }

    fn ignore(&mut self, worker: &WorkerId, violation: Violation, outbox: &mut Outbox) {
        // Bounded: when it is full, what was reported may be reported once more.
        if LIST <= self.reported_violations.len() {
            self.reported_violations.clear();
        }
        if self
            .reported_violations
            .insert((worker.clone(), violation.kind()))
        {
            outbox.emit(Event::Ignored {
                worker: worker.clone(),
                violation,
            });
        }
    }
}
