//! What people ask of jobs and workers that are there: pause, resume, scale, drain, undrain. Each
//! sets a wish that is saved and then holds until another is set; asking twice is asking once.
//! Placement brings it about.

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
        self.request_change(request, id, outbox, |job| {
            let head = job.head_mut();
            let changed = head.paused != paused;
            head.paused = paused;
            Ok(changed)
        });
    }

    pub(crate) fn on_scale(
        &mut self,
        request: RequestId,
        id: &JobId,
        workers: u32,
        outbox: &mut Outbox,
    ) {
        self.request_change(request, id, outbox, |job| {
            may_have(job, workers)?;
            let head = job.head_mut();
            let changed = head.workers != Some(workers);
            head.workers = Some(workers);
            Ok(changed)
        });
    }

    /// Answers with the phase after `set`, which says whether it changed anything.
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
                outbox.phases.push((request, id.clone()));
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
            let there = if names.is_empty() {
                "none yet".to_owned()
            } else {
                names.join(", ")
            };
            let reason = format!("there is no worker {name}; there is {there}");
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

/// Whether the job can be scaled to so many workers.
fn may_have(job: &Job, workers: u32) -> Result<(), String> {
    let head = job.head();
    let (id, devices) = (&head.id, head.devices_per_worker());
    let Some(gang) = job.gang() else {
        return match workers {
            0 => Err(format!(
                "workers: 0 is no scale for job {id}; its units need 1 worker or more"
            )),
            _ => Ok(()),
        };
    };
    let (ranks, micro_batches) = (
        u64::from(workers) * u64::from(devices),
        gang.plan.micro_batches,
    );
    if workers == 0 || u64::from(micro_batches) < ranks {
        let most = micro_batches / devices.max(1);
        return Err(format!(
            "workers: {workers} is no scale for job {id}; it has {micro_batches} micro-batches in \
            a step and \
             {devices} ranks on each worker, so 1 to {most} workers can have work"
        ));
    }
    Ok(())
}
