//! Requests for existing jobs and workers: pause, resume, scale, drain, undrain. Each is idempotent
//! and sets a desired setting, which is saved and stays until it is changed. Placement applies it.

use crate::event::{Reply, RequestId};
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use proto::id::JobId;

impl Coordinator {
    pub(crate) fn on_pause(
        &mut self,
        request: RequestId,
        id: &JobId,
        paused: bool,
        outbox: &mut Outbox,
    ) {
        self.request_change(request, id, outbox, |job| Ok(set_paused(job, paused)));
        // Its evaluations use devices on its behalf.
        for evaluation in self.running_evaluations(id) {
            if let Some(job) = self.jobs.get_mut(&evaluation)
                && set_paused(job, paused)
            {
                outbox.save.insert(evaluation);
            }
        }
    }

    pub(crate) fn on_scale(
        &mut self,
        request: RequestId,
        id: &JobId,
        workers: u32,
        outbox: &mut Outbox,
    ) {
        self.request_change(request, id, outbox, |job| {
            check_scale(job, workers)?;
            let head = job.head_mut();
            let changed = head.workers != Some(workers);
            head.workers = Some(workers);
            Ok(changed)
        });
    }

    /// Applies `set`, which returns whether it changed anything, and replies with the job's phase.
    fn request_change(
        &mut self,
        request: RequestId,
        id: &JobId,
        outbox: &mut Outbox,
        set: impl FnOnce(&mut Job) -> Result<bool, String>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            let reason = self.no_such_job(id);
            return outbox.reply(request, Reply::Refused { reason });
        };
        if job.is_over() {
            let reason = format!("job {id} is {} and will not run again", job.shown());
            return outbox.reply(request, Reply::Refused { reason });
        }
        match set(job) {
            Ok(changed) => {
                if changed {
                    outbox.save.insert(id.clone());
                }
                outbox.phase_replies.push((request, id.clone()));
            }
            Err(reason) => outbox.reply(request, Reply::Refused { reason }),
        }
    }

    pub(crate) fn on_drain(
        &mut self,
        request: RequestId,
        name: &str,
        drained: bool,
        outbox: &mut Outbox,
    ) {
        let known =
            self.drained.contains(name) || self.fleet.iter().any(|worker| worker.id.name == name);
        if !known {
            let names: Vec<&str> = self
                .fleet
                .iter()
                .map(|worker| worker.id.name.as_str())
                .collect();
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            let reason = format!("there is no worker {name}; known workers: {names}");
            return outbox.reply(request, Reply::Refused { reason });
        }
        let changed = if drained {
            self.drained.insert(name.to_owned())
        } else {
            self.drained.remove(name)
        };
        outbox.save_drained |= changed;
        let worker = name.to_owned();
        outbox.reply(request, Reply::Worker { worker, drained });
    }
}

/// Returns whether that changed anything.
fn set_paused(job: &mut Job, paused: bool) -> bool {
    let head = job.head_mut();
    let changed = head.paused != paused;
    head.paused = paused;
    head.paused_because = None;
    if let Job::Units(units) = job
        && changed
        && !paused
    {
        units.retry_failed();
    }
    changed
}

/// Checks that the job can be scaled to `workers` workers.
fn check_scale(job: &Job, workers: u32) -> Result<(), String> {
    let head = job.head();
    let (id, devices) = (&head.id, head.devices_per_worker());
    let Some(gang) = job.gang() else {
        return match workers {
            0 => Err(format!(
                "workers: 0 is not a valid scale for job {id}; its units need at least 1 worker"
            )),
            _ => Ok(()),
        };
    };
    let (ranks, micro_batches) = (
        u64::from(workers) * u64::from(devices),
        gang.plan.micro_batches,
    );
    if workers == 0 || u64::from(micro_batches) < ranks {
        let max_workers = micro_batches / devices.max(1);
        return Err(format!(
            "workers: {workers} is not a valid scale for job {id}; it has {micro_batches} \
             micro-batches per step and {devices} ranks per worker, so it can use 1 to \
             {max_workers} workers"
        ));
    }
    Ok(())
}
