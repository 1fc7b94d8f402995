//! What the ranks of one generation do together in the simulated world: meet at rank 0's store, then step in
//! lockstep. When one of them is gone the others notice, sooner if it died and later if it hangs, and fail.

use super::World;
use super::agenda::Happening;
use super::bug::Bug;
use super::plan::DETECT_WITHIN_MS;
use super::ranks::Pid;
use super::store;
use super::toy;
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{DIGESTS_MAX, PhaseSeconds, RankPhase, StepReport, WeightDigest, Work};
use std::collections::BTreeMap;

/// Steps between digests.
const DIGEST_EVERY: u64 = 3;

/// The ranks that met, by rank.
#[derive(Debug, Default)]
pub(crate) struct Group {
    joined: BTreeMap<Rank, Pid>,
}

impl World {
    /// Joins the generation when the store's address is known, and starts it when it is the last.
    pub(crate) fn try_join(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
        if process.phase != RankPhase::Joining {
            return;
        }
        let (key, world) = (process.key.clone(), process.assignment.world);
        if matches!(process.assignment.work, Work::Sample(_)) {
            process.phase = RankPhase::Training;
            self.say(pid, vec![], vec![]);
            let at = self.now + self.dice.between(200, 3_000);
            return self.agenda.put(at, Happening::RankFinishes { pid });
        }
        let Some(address) = process.assignment.store_address.clone() else {
            return;
        };
        let host: Option<Pid> = address.strip_prefix("host:").and_then(|pid| pid.parse().ok());
        if host
            .and_then(|host| self.working(host))
            .is_none_or(|host| host.key.generation != key.generation)
        {
            let error = format!("connection refused by {address}");
            return self
                .agenda
                .put(self.now + 500, Happening::RankFails { pid, error });
        }
        let group = self.groups.entry((key.job.clone(), key.generation)).or_default();
        group.joined.insert(key.rank, pid);
        if group.joined.len() < world as usize {
            return;
        }
        for pid in group.joined.values().copied().collect::<Vec<_>>() {
            if let Some(process) = self.working(pid) {
                process.phase = RankPhase::Training;
                self.say(pid, vec![], vec![]);
            }
        }
        self.agenda.put(
            self.now + 10,
            Happening::GroupSteps {
                job: key.job,
                generation: key.generation,
            },
        );
    }

    /// One step of all ranks of a generation, or the end of it.
    pub(crate) fn group_steps(&mut self, job: JobId, generation: Generation) {
        let Some(group) = self.groups.get(&(job.clone(), generation)) else {
            return;
        };
        let pids: Vec<Pid> = group.joined.values().copied().collect();
        let gone = pids
            .iter()
            .find(|pid| self.processes.get(pid).is_none_or(|process| process.hung));
        if let Some(gone) = gone {
            let hung = self.processes.contains_key(gone);
            return self.group_breaks(&pids, hung);
        }
        let Some(first) = self.processes.get(&pids[0]) else {
            return;
        };
        let Some(spec) = self.durable.jobs.get(&job).map(|record| record.spec.clone()) else {
            return;
        };
        let step = first.step + 1;
        if step <= spec.train.steps {
            self.step_together(&pids, step, spec.data.seed, u64::from(spec.micro_batches()));
        }
        let told = |pid: &Pid| {
            self.processes
                .get(pid)
                .is_some_and(|process| process.assignment.halt)
        };
        let last = spec.train.steps <= step || pids.iter().any(told);
        let saves = last || step.is_multiple_of(spec.checkpoint.every);
        let mut next = self.now
            + self
                .planned()
                .get(&spec.data.seed)
                .map_or(100, |planned| planned.step_ms);
        for pid in pids {
            let delay = self.dice.between(5, 200);
            let Some(process) = self.working(pid) else {
                continue;
            };
            let value = process.value;
            if saves {
                next = next.max(self.now + 220);
                self.agenda
                    .put(self.now + delay, Happening::RankWrites { pid, step, value });
                if self.bug == Some(Bug::ShardBeforeWritten) {
                    self.agenda
                        .put(self.now + 1, Happening::RankSaysWritten { pid, step, value });
                }
            }
            if last {
                self.agenda.put(self.now + delay, Happening::RankFinishes { pid });
            }
        }
        if !last {
            self.agenda.put(next, Happening::GroupSteps { job, generation });
        }
    }

    fn step_together(&mut self, pids: &[Pid], step: u64, seed: u64, micro_batches: u64) {
        let world = u32::try_from(pids.len()).expect("a handful of ranks");
        let wrong = self.bug == Some(Bug::WrongShare) && 1 < world;
        let share = |rank: u32| if wrong && rank == 1 { 0 } else { rank };
        let sums = (0..world).map(|rank| toy::partial_sum(seed, step, micro_batches, share(rank), world));
        let sum = sums.fold(0, u64::wrapping_add);
        for pid in pids {
            if let Some(process) = self.processes.get_mut(pid) {
                process.value = toy::fold(process.value, sum);
                process.step = step;
                if step.is_multiple_of(DIGEST_EVERY) {
                    let sha256 = store::digest(process.value);
                    process.digests.push(WeightDigest {
                        step: Step(step),
                        sha256,
                    });
                    let surplus = process.digests.len().saturating_sub(DIGESTS_MAX);
                    process.digests.drain(..surplus);
                }
            }
        }
        let report = StepReport {
            step: Step(step),
            loss: 1.0 / step as f64,
            loss_target: 0.0,
            loss_face: 0.0,
            gradient_norm: 1.0,
            learning_rate: 1e-3,
            samples: 1,
            seconds: PhaseSeconds::default(),
            peak_memory_bytes: 0,
            skipped_steps: 0,
            loss_scale: 1.0,
        };
        self.say(pids[0], vec![report], vec![]);
    }

    fn group_breaks(&mut self, pids: &[Pid], hung: bool) {
        for pid in pids {
            let (error, wait) = if hung {
                ("timed out waiting for a gradient", 2 * DETECT_WITHIN_MS)
            } else {
                ("connection closed by peer", self.dice.between(5, 100))
            };
            self.agenda.put(
                self.now + wait,
                Happening::RankFails {
                    pid: *pid,
                    error: error.to_owned(),
                },
            );
        }
    }

    /// The work of this rank is done; what it has to say about shards it says before or together with it.
    pub(crate) fn rank_finishes(&mut self, pid: Pid) {
        let Some(process) = self.working(pid) else { return };
        process.phase = RankPhase::Finished;
        self.say(pid, vec![], vec![]);
        let at = self.now + self.dice.between(10, 400);
        self.agenda.put(
            at,
            Happening::RankDies {
                pid,
                success: true,
                outcome: "exit status 0",
            },
        );
    }
}
