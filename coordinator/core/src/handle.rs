//! Handles inputs: applies them to workers and jobs, advances all jobs once, and collects the
//! effects.

use crate::event::{Effect, Event, Input, Reply};
use crate::invariant;
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::record::{Millis, Record};
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, WorkerId};
use proto::limits::LIST;
use proto::message::{DesiredState, Peer, WorkerReport};
use proto::reason::Ending;
use std::collections::BTreeSet;

/// Some things wait for the next input, without a deadline of their own. They wait no longer than
/// this, and than a third of `detect_within`, whatever the inputs are.
const UPDATE_EVERY_MS: Millis = 1_000;

impl Coordinator {
    /// Handles one input and returns the effects, which the caller performs in order. Invalid input
    /// never causes an error or a panic: it is refused or ignored, with a reason. Panics if an
    /// internal invariant is broken: a crash and a restart are cheaper than a wrong checkpoint.
    pub fn handle(&mut self, now: Millis, input: Input) -> Vec<Effect> {
        self.handle_all(now, vec![input])
    }

    /// Handles inputs that arrived together, in order, as one: jobs are advanced and scheduled, and
    /// records saved, once for all of them. So a machine that has fallen behind catches up.
    pub fn handle_all(&mut self, now: Millis, inputs: Vec<Input>) -> Vec<Effect> {
        let monotonic = self
            .clock
            .advance(now, self.due, self.deadlines.patience_ms());
        self.inputs += 1;
        let mut outbox = Outbox::new(monotonic, now, self.inputs);
        let mut reported = BTreeSet::new();
        let every = UPDATE_EVERY_MS.min(self.config.detect_within_ms / 3);
        let late = self.updated_at.saturating_add(every);
        let mut is_due = late <= monotonic || self.due.is_some_and(|due| due <= monotonic);
        for input in inputs {
            let renewed = match &input {
                Input::Received { report } => self.renew(report, &mut outbox),
                _ => false,
            };
            if !renewed {
                is_due = true;
                self.apply(input, &mut reported, &mut outbox);
            }
        }
        // Reports that change nothing only extend leases. Everything else is as the last update
        // left it, until something is due.
        if is_due {
            self.update(&reported, &mut outbox);
        }
        self.due = self.find_due();
        self.conclude(outbox)
    }

    /// Extends the worker's lease if that is all that its report asks for, as most reports do: it
    /// has no ranks, and is as it was. Returns whether that is so.
    fn renew(&mut self, report: &WorkerReport, outbox: &mut Outbox) -> bool {
        let renewed = report.ranks.is_empty()
            && self
                .fleet
                .renew(report, self.deadlines, outbox.now, outbox.wall);
        if renewed {
            // Every report is answered with the desired state, even if it did not change.
            outbox.send.insert(report.worker.name.clone());
        }
        renewed
    }

    fn apply(&mut self, input: Input, reported: &mut BTreeSet<JobId>, outbox: &mut Outbox) {
        match input {
            Input::Submit {
                request,
                spec,
                job_toml,
                dataset,
                about,
                archived,
            } => {
                self.recall(archived, outbox.now);
                self.on_submit(request, *spec, job_toml, dataset, about, outbox);
            }
            Input::Retry {
                request,
                job,
                overrides,
                archived,
            } => {
                self.recall(archived, outbox.now);
                self.on_retry(request, &job, overrides, outbox);
            }
            Input::Delete {
                request,
                job,
                archived,
            } => {
                self.recall(archived, outbox.now);
                self.on_delete(request, &job, outbox);
            }
            Input::Cancel { request, job } => self.on_cancel(request, &job, outbox),
            Input::Pause {
                request,
                job,
                paused,
            } => self.on_pause(request, &job, paused, outbox),
            Input::Scale {
                request,
                job,
                workers,
            } => self.on_scale(request, &job, workers, outbox),
            Input::Drain {
                request,
                worker,
                drained,
            } => {
                self.on_drain(request, &worker, drained, outbox);
            }
            Input::Received { report } => {
                reported.extend(report.ranks.iter().map(|rank| rank.job.clone()));
                self.on_report(&report, outbox);
            }
            Input::Disconnected { worker } => self.fleet.disconnect(&worker),
            Input::ManifestWritten {
                job,
                checkpoint,
                result,
            } => {
                self.on_manifest_written(&job, checkpoint, result, outbox);
            }
            Input::ScoresRead { evaluation, result } => {
                self.on_scores_read(&evaluation, result, outbox);
            }
            Input::Deadline => {}
        }
    }

    /// Does all that follows from the inputs and from the time.
    fn update(&mut self, reported: &BTreeSet<JobId>, outbox: &mut Outbox) {
        self.expire(outbox);
        self.detect_partitions(outbox);
        self.advance_jobs(outbox);
        self.update_evaluations(outbox);
        self.update_dependencies(outbox);
        self.schedule(outbox);
        self.save_batches(outbox);
        self.settle_accounts(reported, outbox);
        self.archive_ended(outbox);
        invariant::check(self);
        self.due_of_jobs = self.find_due_of_jobs();
        self.updated_at = outbox.now;
    }

    fn on_manifest_written(
        &mut self,
        id: &JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
        outbox: &mut Outbox,
    ) {
        let Some(job) = self.jobs.get_mut(id).and_then(Job::gang_mut) else {
            return;
        };
        if job.on_manifest_result(checkpoint, result, outbox) {
            outbox.emit(Event::Committed {
                job: id.clone(),
                checkpoint,
            });
            self.retain(id, outbox);
        }
    }

    /// Counts the device-time of the jobs of which something is new. Every change of the devices
    /// that a job holds is saved, so none is missed.
    fn settle_accounts(&mut self, reported: &BTreeSet<JobId>, outbox: &Outbox) {
        for id in outbox.save.union(reported) {
            if let Some(job) = self.jobs.get_mut(id)
                // The account of an ended job is final: late reports of its ranks change nothing.
                && (outbox.save.contains(id) || !job.is_over())
            {
                job.settle_account(outbox.wall);
            }
        }
    }

    /// Saves ledger entries and completed units, which are saved in batches, if the batch interval
    /// has passed or the job is saved anyway.
    fn save_batches(&mut self, outbox: &mut Outbox) {
        let due = self.deadlines.ledger(self.ledger_saved_at) <= outbox.now;
        for (id, job) in &mut self.jobs {
            if job.has_batch() && (due || outbox.save.contains(id)) {
                let entries = job.save_batch(outbox);
                outbox.ledger_entries.extend(entries);
                self.ledger_saved_at = outbox.now;
            }
        }
    }

    /// Expires worker leases and ends what depended on them.
    fn expire(&mut self, outbox: &mut Outbox) {
        for worker in self.fleet.expire(outbox.now) {
            let silent_for_ms = self.config.detect_within_ms;
            let ending = Ending::WorkerLost {
                worker: worker.clone(),
                silent_for_ms,
            };
            outbox.emit(Event::WorkerDown {
                worker: worker.clone(),
                reason: ending.clone(),
            });
            self.lose_worker(&worker, &ending, outbox);
        }
        let workers = self.fleet.forget(self.deadlines, outbox.now);
        if !workers.is_empty() {
            self.reported_violations
                .retain(|(reporter, _)| !workers.contains(reporter));
            outbox.emit(Event::WorkersForgotten { workers });
        }
    }

    fn detect_partitions(&mut self, outbox: &mut Outbox) {
        let partitions = self.fleet.partitions();
        for pair in partitions.new_since(&self.partitions) {
            let pair = pair.clone();
            outbox.emit(Event::Unreachable { pair });
        }
        self.partitions = partitions;
    }

    /// A worker is lost with all its processes.
    pub(crate) fn lose_worker(&mut self, worker: &WorkerId, ending: &Ending, outbox: &mut Outbox) {
        for job in self.jobs.values_mut() {
            job.lose_worker(worker, ending, self.deadlines, outbox);
        }
    }

    /// Advances every job as far as possible without further input.
    fn advance_jobs(&mut self, outbox: &mut Outbox) {
        let mut no_longer_read = Vec::new();
        for job in self.jobs.values_mut() {
            let read = job.head().read_jobs();
            if job.advance(&self.partitions, self.deadlines, outbox) {
                no_longer_read.extend(read);
            }
        }
        for source in no_longer_read {
            self.retain(&source, outbox);
        }
    }

    /// Turns the outbox into effects.
    fn conclude(&mut self, mut outbox: Outbox) -> Vec<Effect> {
        for (request, id) in std::mem::take(&mut outbox.phase_replies) {
            let reply = match self.jobs.get(&id) {
                Some(job) => Reply::Phase {
                    phase: job.shown().to_string(),
                },
                // Deleted by an input that came with it.
                None => Reply::Refused {
                    reason: self.no_such_job(&id),
                },
            };
            outbox.reply(request, reply);
        }
        let jobs = outbox.save.iter().filter_map(|id| self.jobs.get(id));
        let mut records: Vec<Record> = jobs
            .map(|job| Record::Job(Box::new(job.record())))
            .collect();
        records.append(&mut outbox.ledger_entries);
        records.append(&mut outbox.removed);
        if outbox.save_drained {
            records.insert(0, Record::Drained(self.drained.clone()));
        }
        if outbox.save_counters {
            records.insert(0, Record::Counters(self.counters));
        }
        let workers = outbox
            .send
            .iter()
            .filter_map(|name| self.fleet.reachable(name));
        let mut states: Vec<DesiredState> =
            workers.map(|worker| self.desired(&worker.id)).collect();
        for state in states.iter().filter(|it| !it.assignments.is_empty()) {
            self.fleet.set_held(&state.worker);
        }
        states.extend(
            outbox
                .leave
                .drain(..)
                .map(|(worker, successor)| DesiredState {
                    worker,
                    assignments: Vec::new(),
                    detect_within_ms: self.config.detect_within_ms,
                    peers: Vec::new(),
                    refused: Vec::new(),
                    successor: Some(successor),
                }),
        );
        outbox.into_effects(records, states)
    }

    fn desired(&self, worker: &WorkerId) -> DesiredState {
        let assignment = |job: &Job| job.assignment(worker, &self.config);
        DesiredState {
            worker: worker.clone(),
            assignments: self.jobs.values().filter_map(assignment).collect(),
            detect_within_ms: self.config.detect_within_ms,
            peers: self.peers(worker),
            refused: Vec::new(),
            successor: None,
        }
    }

    /// The other workers with ranks of a job that has ranks on this one: as many as a list may
    /// have. A job has no more workers; those of several jobs may be more, and are then pinged by
    /// others.
    fn peers(&self, worker: &WorkerId) -> Vec<Peer> {
        let mut others = BTreeSet::new();
        for job in self.jobs.values() {
            // Ranks of a job of units do not communicate.
            let workers = || job.processes().map(|it| &it.worker);
            if job.gang().is_some() && workers().any(|it| it == worker) {
                others.extend(workers().filter(|it| *it != worker));
            }
        }
        others
            .into_iter()
            .filter_map(|it| self.fleet.peer(it))
            .take(LIST)
            .collect()
    }
}
