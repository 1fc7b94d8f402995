//! The faults: choice of the target, injection and undo. And the supervision of the processes
//! between faults, as systemd does it: processes that exited because of a fault are restarted; any
//! other exit is an error.

use super::{Chaos, PendingFault, WORKERS};
use crate::cluster::process::signal;
use crate::world::Rng;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// How long after the object store is back the coordinator may still exit because of it: the
/// deadline of a save, with a margin.
const STORE_AFTERMATH: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL to a rank.
    KillRank,
    /// SIGKILL to a daemon; its ranks die with it. Restarted later.
    KillDaemon,
    /// SIGKILL to the coordinator. Restarted later.
    KillCoordinator,
    /// SIGKILL to the object store. Restarted later.
    KillStore,
    /// SIGSTOP to a rank, permanently: its daemon must notice.
    StopRank,
    /// SIGSTOP, and SIGCONT later.
    PauseRank,
    PauseDaemon,
    PauseCoordinator,
    PauseStore,
    /// A worker is drained, and undrained later.
    Drain,
    /// A worker is added.
    Add,
    /// The added worker is shut down (SIGTERM).
    Remove,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::KillRank,
        Self::KillDaemon,
        Self::KillCoordinator,
        Self::KillStore,
        Self::StopRank,
        Self::PauseRank,
        Self::PauseDaemon,
        Self::PauseCoordinator,
        Self::PauseStore,
        Self::Drain,
        Self::Add,
        Self::Remove,
    ];

    pub(crate) fn random(rng: &mut Rng) -> Self {
        match rng.between(1, 100) {
            1..=34 => Self::KillRank,
            35..=47 => Self::KillDaemon,
            48..=59 => Self::KillCoordinator,
            60..=63 => Self::KillStore,
            64..=68 => Self::StopRank,
            69..=75 => Self::PauseRank,
            76..=80 => Self::PauseDaemon,
            81..=85 => Self::PauseCoordinator,
            86..=88 => Self::PauseStore,
            89..=93 => Self::Drain,
            94..=97 => Self::Add,
            _ => Self::Remove,
        }
    }

    #[must_use]
    pub fn is_kill(self) -> bool {
        matches!(
            self,
            Self::KillRank | Self::KillDaemon | Self::KillCoordinator | Self::KillStore
        )
    }

    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::KillRank => "SIGKILL to a rank",
            Self::KillDaemon => "SIGKILL to a daemon",
            Self::KillCoordinator => "SIGKILL to the coordinator",
            Self::KillStore => "SIGKILL to the object store",
            Self::StopRank => "SIGSTOP to a rank, permanently",
            Self::PauseRank => "SIGSTOP, SIGCONT to a rank",
            Self::PauseDaemon => "SIGSTOP, SIGCONT to a daemon",
            Self::PauseCoordinator => "SIGSTOP, SIGCONT to the coordinator",
            Self::PauseStore => "SIGSTOP, SIGCONT to the object store",
            Self::Drain => "a worker drained and undrained",
            Self::Add => "a worker added",
            Self::Remove => "SIGTERM to the added worker",
        }
    }
}

/// How a fault is undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undo {
    ContinueRank(u32),
    ContinueDaemon(usize),
    ContinueCoordinator,
    ContinueStore,
    StartDaemon(usize),
    StartCoordinator,
    StartStore,
    Undrain(usize),
    /// A daemon that was shut down has exited.
    Exited(usize),
}

impl Chaos<'_> {
    /// Injects the fault, if it has a target. Returns whether it had.
    pub(crate) fn inject(&mut self, kind: Kind) -> Result<bool> {
        let before = self.job.seen.step;
        let at = Instant::now();
        let Some(target) = self.perform(kind)? else {
            return Ok(false);
        };
        let seen = &self.job.seen;
        println!(
            "{:8.1} s  {} generation {} world {} step {before}: {} ({target})",
            self.summary.elapsed().as_secs_f64(),
            self.job.id,
            seen.generation,
            seen.world,
            kind.description(),
        );
        let fault = self.summary.add_fault(kind);
        let first = None;
        self.pending.push(PendingFault {
            fault,
            at,
            first,
            before,
        });
        Ok(true)
    }

    /// Returns the target; None: there was none.
    fn perform(&mut self, kind: Kind) -> Result<Option<String>> {
        match kind {
            Kind::KillRank | Kind::StopRank | Kind::PauseRank => {
                return self.inject_into_rank(kind);
            }
            Kind::KillDaemon | Kind::PauseDaemon | Kind::Drain => {
                return self.inject_into_worker(kind);
            }
            Kind::Add | Kind::Remove => return self.add_or_remove_worker(kind),
            Kind::KillCoordinator | Kind::PauseCoordinator if !self.coordinator_answers() => {
                return Ok(None);
            }
            Kind::KillStore | Kind::PauseStore if self.store_is_down() => return Ok(None),
            Kind::KillCoordinator => {
                self.cluster.kill_coordinator()?;
                self.schedule_undo(Undo::StartCoordinator);
            }
            Kind::PauseCoordinator => {
                signal("STOP", self.cluster.coordinator_pid()?)?;
                self.schedule_undo(Undo::ContinueCoordinator);
            }
            Kind::KillStore => {
                self.store.kill()?;
                self.store_fault_at = Some(Instant::now());
                self.schedule_undo(Undo::StartStore);
            }
            Kind::PauseStore => {
                signal("STOP", self.store.pid()?)?;
                self.store_fault_at = Some(Instant::now());
                self.schedule_undo(Undo::ContinueStore);
            }
        }
        Ok(Some("the only one".to_owned()))
    }

    fn inject_into_rank(&mut self, kind: Kind) -> Result<Option<String>> {
        let mut ranks = Vec::new();
        for worker in self.unaffected_workers() {
            ranks.extend(self.cluster.ranks(worker)?);
        }
        ranks.retain(|pid| {
            !self
                .undos
                .iter()
                .any(|(_, undo)| *undo == Undo::ContinueRank(*pid))
        });
        if ranks.is_empty() {
            return Ok(None);
        }
        let pid = ranks[self.rng.pick(ranks.len())];
        let name = if kind == Kind::KillRank {
            "KILL"
        } else {
            "STOP"
        };
        // The process may just have exited.
        if signal(name, pid).is_err() {
            return Ok(None);
        }
        if kind == Kind::PauseRank {
            self.schedule_undo(Undo::ContinueRank(pid));
        }
        Ok(Some(format!("process {pid}")))
    }

    fn inject_into_worker(&mut self, kind: Kind) -> Result<Option<String>> {
        let workers = self.unaffected_workers();
        if workers.is_empty() || kind == Kind::Drain && !self.coordinator_answers() {
            return Ok(None);
        }
        let worker = workers[self.rng.pick(workers.len())];
        match kind {
            Kind::Drain => {
                let name = Self::name(worker);
                // Refused while the coordinator does not know the worker.
                let asked = self.cluster.run(&["drain", &name, "--no-wait"])?;
                if asked.code != Some(0) {
                    return Ok(None);
                }
                self.schedule_undo(Undo::Undrain(worker));
            }
            Kind::PauseDaemon => {
                signal("STOP", self.cluster.worker_pid(worker)?)?;
                self.schedule_undo(Undo::ContinueDaemon(worker));
            }
            _ => {
                self.cluster.kill_worker(worker)?;
                self.schedule_undo(Undo::StartDaemon(worker));
            }
        }
        Ok(Some(Self::name(worker)))
    }

    fn add_or_remove_worker(&mut self, kind: Kind) -> Result<Option<String>> {
        let extra = WORKERS;
        let is_running = self.unaffected_workers().contains(&extra);
        match kind {
            Kind::Add if !self.cluster.has_worker(extra) => self.cluster.start_worker(extra)?,
            Kind::Remove if is_running => {
                signal("TERM", self.cluster.worker_pid(extra)?)?;
                self.undos.push((Instant::now(), Undo::Exited(extra)));
            }
            _ => return Ok(None),
        }
        Ok(Some(Self::name(extra)))
    }

    fn name(worker: usize) -> String {
        format!("w{}", worker + 1)
    }

    fn schedule_undo(&mut self, undo: Undo) {
        let longest = u64::try_from(self.options.longest.as_millis()).unwrap_or(u64::MAX);
        let longest = match undo {
            // Long enough for a save to exceed its deadline, which ends the coordinator.
            Undo::StartStore | Undo::ContinueStore => longest * 4,
            // Half of the other faults are short.
            _ if self.rng.chance(500) => longest / 10,
            _ => longest,
        };
        let after = Duration::from_millis(self.rng.between(0, longest));
        self.undos.push((Instant::now() + after, undo));
    }

    /// Workers whose daemons run without a fault.
    fn unaffected_workers(&self) -> Vec<usize> {
        let has_fault = |worker: &usize| {
            self.undos.iter().any(|(_, undo)| match undo {
                Undo::ContinueDaemon(it)
                | Undo::StartDaemon(it)
                | Undo::Undrain(it)
                | Undo::Exited(it) => it == worker,
                Undo::ContinueRank(_)
                | Undo::ContinueCoordinator
                | Undo::ContinueStore
                | Undo::StartCoordinator
                | Undo::StartStore => false,
            })
        };
        let all = 0..=WORKERS;
        all.filter(|worker| self.cluster.has_worker(*worker) && !has_fault(worker))
            .collect()
    }

    pub(crate) fn coordinator_answers(&self) -> bool {
        let away = [Undo::ContinueCoordinator, Undo::StartCoordinator];
        !self.undos.iter().any(|(_, undo)| away.contains(undo)) && !self.store_is_down()
    }

    fn store_is_down(&self) -> bool {
        let away = [Undo::ContinueStore, Undo::StartStore];
        self.undos.iter().any(|(_, undo)| away.contains(undo))
    }

    /// Whether all required processes run.
    pub(crate) fn all_running(&self) -> bool {
        self.cluster.has_coordinator() && (0..WORKERS).all(|worker| self.cluster.has_worker(worker))
    }

    /// Undoes faults that are due, and handles processes that have exited.
    pub(crate) fn supervise(&mut self) -> Result<()> {
        let now = Instant::now();
        // One by one: whether one can be undone depends on the others.
        for due in self.undos.clone() {
            if due.0 <= now && self.undo(&due.1)? {
                self.undos.retain(|other| *other != due);
            }
        }
        if let Some(status) = self.cluster.coordinator_ended()? {
            let is_expected = self.store_is_down()
                || self
                    .store_fault_at
                    .is_some_and(|at| at.elapsed() < STORE_AFTERMATH);
            ensure!(is_expected, "the coordinator ended by itself: {status}");
            self.summary.coordinator_exited();
            println!(
                "          the coordinator ended with {status}: the object store was unavailable"
            );
            self.cluster.forget_coordinator();
            self.undos.push((now, Undo::StartCoordinator));
        }
        for worker in 0..=WORKERS {
            let is_leaving = self
                .undos
                .iter()
                .any(|(_, undo)| *undo == Undo::Exited(worker));
            if let Some(status) = self.cluster.worker_ended(worker)? {
                ensure!(
                    is_leaving && status.success(),
                    "the daemon of {} ended by itself: {status}",
                    Self::name(worker)
                );
                self.cluster.forget_worker(worker);
            }
        }
        Ok(())
    }

    /// Returns whether it is done; if not, it is tried again.
    fn undo(&mut self, undo: &Undo) -> Result<bool> {
        match undo {
            // The rank may have been killed meanwhile, as a consequence of the fault.
            Undo::ContinueRank(pid) => drop(signal("CONT", *pid)),
            Undo::ContinueDaemon(worker) => signal("CONT", self.cluster.worker_pid(*worker)?)?,
            Undo::ContinueCoordinator => signal("CONT", self.cluster.coordinator_pid()?)?,
            Undo::ContinueStore => {
                signal("CONT", self.store.pid()?)?;
                self.store_fault_at = Some(Instant::now());
            }
            Undo::StartStore => {
                self.store.restart().context("the object store")?;
                self.store_fault_at = Some(Instant::now());
            }
            Undo::StartDaemon(worker) => self.cluster.start_worker(*worker)?,
            Undo::StartCoordinator if self.store_is_down() => return Ok(false),
            Undo::StartCoordinator => self.cluster.start_coordinator()?,
            Undo::Undrain(_) if !self.coordinator_answers() => return Ok(false),
            Undo::Undrain(worker) => {
                let answer = self.cluster.run(&["undrain", &Self::name(*worker)])?;
                return Ok(answer.code == Some(0));
            }
            Undo::Exited(worker) => return Ok(!self.cluster.has_worker(*worker)),
        }
        Ok(true)
    }
}
