//! Which workers a job of units requests, and how they join and leave one by one.

use super::job::{Running, State, Units};
use super::participant::{Leaving, Participant};
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::outbox::Outbox;
use crate::partitions::Partitions;
use crate::placement::{Demand, Takes};
use crate::record::Member;
use proto::during::EvaluateOn;
use proto::id::{Rank, WorkerId};
use proto::reason::{Fault, GenerationEnd, StopCause, Stopped, Waiting};

impl Units {
    /// What it requests from placement, if it should run: at least one worker, and as many as it
    /// has work for.
    pub(crate) fn demand(&self) -> Option<Demand> {
        let head = &self.head;
        if self.is_over() || head.paused || head.blocked_by.is_some() || head.must_fail() {
            return None;
        }
        let stays = |participant: &&Participant| participant.leaving.is_none();
        let holds = || self.participants().iter().filter(stays);
        let working = holds().filter(|participant| 0 < participant.leased());
        let working: Vec<WorkerId> = working
            .map(|participant| participant.worker().clone())
            .collect();
        let useful = self
            .remaining()
            .div_ceil(u64::from(head.devices_per_worker().max(1)));
        let useful = useful.max(working.len() as u64).max(1);
        let resources = &head.spec.resources;
        Some(Demand {
            job: head.id.clone(),
            number: head.number,
            priority: resources.priority,
            team: resources.team.clone(),
            workers_min: 1,
            workers_max: u32::try_from(useful)
                .unwrap_or(u32::MAX)
                .min(head.max_workers())
                .max(1),
            devices_per_worker: resources.devices_per_worker,
            device: resources.device,
            in_grace_period: false,
            holds: holds()
                .map(|participant| participant.worker().clone())
                .collect(),
            warm: working,
            avoid: self.backing_off.keys().cloned().collect(),
            // Its workers need not reach each other.
            partitions: Partitions::default(),
            takes: match &head.parent {
                None => Takes::Any,
                Some(parent) if parent.on == EvaluateOn::Shrink => {
                    Takes::FreeOrOf(parent.job.clone())
                }
                Some(_) => Takes::Free,
            },
        })
    }

    /// A worker joins, with a generation of its own.
    pub(crate) fn join(&mut self, worker: WorkerId, outbox: &mut Outbox) {
        let member = Member {
            worker,
            first_rank: Rank(0),
            ranks: self.head.devices_per_worker(),
        };
        let generation = self.head.generation.next();
        self.head.generation = generation;
        outbox.emit(Event::GenerationFormed {
            job: self.head.id.clone(),
            generation,
            world: member.ranks,
        });
        outbox.send_to_all(std::slice::from_ref(&member));
        let participant = Participant::new(member, generation, outbox);
        match &mut self.state {
            State::Running(running) => running.participants.push(participant),
            State::Queued { .. } | State::Ended(_) => {
                self.state = State::Running(Running {
                    participants: vec![participant],
                    units_freed: true,
                });
            }
        }
        self.save(outbox);
    }

    /// Asks all workers that are not in `given` to finish their current units and leave.
    pub(crate) fn release_all_but(
        &mut self,
        given: &[WorkerId],
        why: impl Fn(&WorkerId) -> StopCause,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        let (job, until) = (self.head.id.clone(), deadlines.graceful_stop(outbox.now));
        for participant in self.participants_mut() {
            if participant.leaving.is_some() || given.contains(participant.worker()) {
                continue;
            }
            let why = why(participant.worker());
            outbox.emit(Event::Stopping {
                job: job.clone(),
                generation: participant.generation,
                reason: why.clone(),
            });
            outbox.send.insert(participant.member.worker.name.clone());
            participant.leaving = Some(Leaving { why, until });
        }
    }

    /// Releases leaving workers that have finished, hold no lease, or missed the deadline. Returns
    /// true if any was released.
    pub(crate) fn release_workers(&mut self, outbox: &mut Outbox) -> bool {
        let now = outbox.now;
        let mut released = Vec::new();
        for participant in self.participants() {
            let Some(leaving) = &participant.leaving else {
                continue;
            };
            let worker = participant.worker();
            if participant.joined_in == outbox.input {
                // A worker must not join and leave during one input: jobs of units that compete for
                // one worker could pass it back and forth without end.
                continue;
            }
            if participant.leased() == 0 || participant.is_idle() {
                released.push((worker.clone(), leaving.why.clone(), false));
            } else if leaving.until <= now {
                released.push((worker.clone(), leaving.why.clone(), true));
            }
        }
        let any = !released.is_empty();
        for (worker, cause, late) in released {
            if late {
                let fault = Fault::UnitsOverdue {
                    cause: cause.clone(),
                    worker: worker.name.clone(),
                };
                self.head.record_incident(fault, outbox);
            }
            let stopped = Stopped::Worker {
                cause,
                worker: worker.name.clone(),
                late,
            };
            self.drop_participant(&worker, Waiting::Stopped { stopped }, outbox);
        }
        any
    }

    /// Removes this worker from the job. Its units are leased again.
    pub(super) fn drop_participant(
        &mut self,
        worker: &WorkerId,
        reason: Waiting,
        outbox: &mut Outbox,
    ) {
        let State::Running(running) = &mut self.state else {
            return;
        };
        let Some(index) = running
            .participants
            .iter()
            .position(|participant| participant.worker() == worker)
        else {
            return;
        };
        let participant = running.participants.remove(index);
        let is_last = running.participants.is_empty();
        let (job, generation) = (self.head.id.clone(), participant.generation);
        match (&reason, &participant.leaving) {
            (Waiting::Stopped { stopped }, _) => outbox.emit(Event::Stopped {
                job,
                generation,
                reason: stopped.clone(),
            }),
            // It was to leave anyway.
            (_, Some(leaving)) => outbox.emit(Event::Stopped {
                job,
                generation,
                reason: Stopped::Worker {
                    cause: leaving.why.clone(),
                    worker: worker.name.clone(),
                    late: false,
                },
            }),
            (Waiting::Fault { fault }, None) => outbox.emit(Event::GenerationEnded {
                job,
                generation,
                reason: GenerationEnd::Fault(fault.clone()),
            }),
            _ => {}
        }
        outbox.send.insert(worker.name.clone());
        for rank in participant.ranks.into_values() {
            self.release(rank.lease, rank.done);
        }
        if is_last {
            self.state = State::Queued { reason };
        }
        self.save(outbox);
    }
}
