//! The faults: who is hit, what is done to it, and what is taken back later. And the care for the
//! processes between faults, which is what systemd does: whoever ended is started again, and
//! whoever ended without a reason is the culprit.

use super::{Chaos, Open, WORKERS};
use crate::cluster::process::signal;
use crate::world::Rng;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// How long after the object store was back the coordinator may still end because of it: its save's
/// deadline, with room.
const STORE_AFTERMATH: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL to a rank.
    KillRank,
    /// SIGKILL to a daemon; its ranks die with it. Started again later.
    KillDaemon,
    /// SIGKILL to the coordinator. Started again later.
    KillCoordinator,
    /// SIGKILL to the object store. Started again later.
    KillStore,
    /// SIGSTOP to a rank, for ever: somebody must notice.
    StopRank,
    /// SIGSTOP, and SIGCONT later.
    PauseRank,
    PauseDaemon,
    PauseCoordinator,
    PauseStore,
    /// A worker is drained, and used again later.
    Drain,
    /// One worker more.
    Add,
    /// The added worker is asked to leave (SIGTERM).
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

    pub(crate) fn drawn(rng: &mut Rng) -> Self {
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
    pub fn words(self) -> &'static str {
        match self {
            Self::KillRank => "SIGKILL to a rank",
            Self::KillDaemon => "SIGKILL to a daemon",
            Self::KillCoordinator => "SIGKILL to the coordinator",
            Self::KillStore => "SIGKILL to the object store",
            Self::StopRank => "SIGSTOP to a rank, for ever",
            Self::PauseRank => "SIGSTOP, SIGCONT to a rank",
            Self::PauseDaemon => "SIGSTOP, SIGCONT to a daemon",
            Self::PauseCoordinator => "SIGSTOP, SIGCONT to the coordinator",
            Self::PauseStore => "SIGSTOP, SIGCONT to the object store",
            Self::Drain => "a worker drained, and used again",
            Self::Add => "a worker added",
            Self::Remove => "SIGTERM to the added worker",
        }
    }
}

/// What a fault left behind and time mends.
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
    /// A daemon that was asked to leave has left.
    Gone(usize),
}

impl Chaos<'_> {
    /// Does it, if there is somebody to do it to. Returns whether there was.
    pub(crate) fn strike(&mut self, kind: Kind) -> Result<bool> {
        let before = self.job.seen.step;
        let at = Instant::now();
        let Some(whom) = self.perform(kind)? else {
            return Ok(false);
        };
        let seen = &self.job.seen;
        println!(
            "{:8.1} s  {} generation {} world {} step {before}: {} ({whom})",
            self.summary.elapsed().as_secs_f64(),
            self.job.id,
            seen.generation,
            seen.world,
            kind.words(),
        );
        let strike = self.summary.struck(kind);
        let first = None;
        self.open.push(Open {
            strike,
            at,
            first,
            before,
        });
        Ok(true)
    }

    /// Whom it hit; None: nobody was there.
    fn perform(&mut self, kind: Kind) -> Result<Option<String>> {
        match kind {
            Kind::KillRank | Kind::StopRank | Kind::PauseRank => return self.strike_rank(kind),
            Kind::KillDaemon | Kind::PauseDaemon | Kind::Drain => return self.strike_worker(kind),
            Kind::Add | Kind::Remove => return self.change_fleet(kind),
            Kind::KillCoordinator | Kind::PauseCoordinator if !self.coordinator_answers() => {
                return Ok(None);
            }
            Kind::KillStore | Kind::PauseStore if self.store_is_struck() => return Ok(None),
            Kind::KillCoordinator => {
                self.cluster.kill_coordinator()?;
                self.later(Undo::StartCoordinator);
            }
            Kind::PauseCoordinator => {
                signal("STOP", self.cluster.coordinator_pid()?)?;
                self.later(Undo::ContinueCoordinator);
            }
            Kind::KillStore => {
                self.store.kill()?;
                self.store_struck = Some(Instant::now());
                self.later(Undo::StartStore);
            }
            Kind::PauseStore => {
                signal("STOP", self.store.pid()?)?;
                self.store_struck = Some(Instant::now());
                self.later(Undo::ContinueStore);
            }
        }
        Ok(Some("the only one".to_owned()))
    }

    fn strike_rank(&mut self, kind: Kind) -> Result<Option<String>> {
        let mut ranks = Vec::new();
        for worker in self.idle_workers() {
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
        // It may just have ended.
        if signal(name, pid).is_err() {
            return Ok(None);
        }
        if kind == Kind::PauseRank {
            self.later(Undo::ContinueRank(pid));
        }
        Ok(Some(format!("process {pid}")))
    }

    fn strike_worker(&mut self, kind: Kind) -> Result<Option<String>> {
        let workers = self.idle_workers();
        if workers.is_empty() || kind == Kind::Drain && !self.coordinator_answers() {
            return Ok(None);
        }
        let worker = workers[self.rng.pick(workers.len())];
        match kind {
            Kind::Drain => {
                let name = Self::name(worker);
                // Refused while the coordinator does not know it (yet).
                let asked = self.cluster.run(&["drain", &name, "--no-wait"])?;
                if asked.code != Some(0) {
                    return Ok(None);
                }
                self.later(Undo::Undrain(worker));
            }
            Kind::PauseDaemon => {
                signal("STOP", self.cluster.worker_pid(worker)?)?;
                self.later(Undo::ContinueDaemon(worker));
            }
            _ => {
                self.cluster.kill_worker(worker)?;
                self.later(Undo::StartDaemon(worker));
            }
        }
        Ok(Some(Self::name(worker)))
    }

    fn change_fleet(&mut self, kind: Kind) -> Result<Option<String>> {
        let extra = WORKERS;
        let there = self.idle_workers().contains(&extra);
        match kind {
            Kind::Add if !self.cluster.has_worker(extra) => self.cluster.start_worker(extra)?,
            Kind::Remove if there => {
                signal("TERM", self.cluster.worker_pid(extra)?)?;
                self.undos.push((Instant::now(), Undo::Gone(extra)));
            }
            _ => return Ok(None),
        }
        Ok(Some(Self::name(extra)))
    }

    fn name(worker: usize) -> String {
        format!("w{}", worker + 1)
    }

    fn later(&mut self, undo: Undo) {
        let longest = u64::try_from(self.options.longest.as_millis()).unwrap_or(u64::MAX);
        let longest = match undo {
            // Long enough that the coordinator may give up a save, which ends it.
            Undo::StartStore | Undo::ContinueStore => longest * 4,
            // Half of all others are short.
            _ if self.rng.chance(500) => longest / 10,
            _ => longest,
        };
        let after = Duration::from_millis(self.rng.between(0, longest));
        self.undos.push((Instant::now() + after, undo));
    }

    /// Workers whose daemons run and are not hit already.
    fn idle_workers(&self) -> Vec<usize> {
        let hit = |worker: &usize| {
            self.undos.iter().any(|(_, undo)| match undo {
                Undo::ContinueDaemon(it)
                | Undo::StartDaemon(it)
                | Undo::Undrain(it)
                | Undo::Gone(it) => it == worker,
                Undo::ContinueRank(_)
                | Undo::ContinueCoordinator
                | Undo::ContinueStore
                | Undo::StartCoordinator
                | Undo::StartStore => false,
            })
        };
        let all = 0..=WORKERS;
        all.filter(|worker| self.cluster.has_worker(*worker) && !hit(worker))
            .collect()
    }

    pub(crate) fn coordinator_answers(&self) -> bool {
        let away = [Undo::ContinueCoordinator, Undo::StartCoordinator];
        !self.undos.iter().any(|(_, undo)| away.contains(undo)) && !self.store_is_struck()
    }

    fn store_is_struck(&self) -> bool {
        let away = [Undo::ContinueStore, Undo::StartStore];
        self.undos.iter().any(|(_, undo)| away.contains(undo))
    }

    /// Whether everybody who should run does.
    pub(crate) fn is_whole(&self) -> bool {
        self.cluster.has_coordinator() && (0..WORKERS).all(|worker| self.cluster.has_worker(worker))
    }

    /// Takes back what is due, and starts whoever ended.
    pub(crate) fn tend(&mut self) -> Result<()> {
        let now = Instant::now();
        // One by one, because what can be taken back depends on what else is still away.
        for due in self.undos.clone() {
            if due.0 <= now && self.take_back(&due.1)? {
                self.undos.retain(|other| *other != due);
            }
        }
        if let Some(status) = self.cluster.coordinator_ended()? {
            let excused = self.store_is_struck()
                || self
                    .store_struck
                    .is_some_and(|at| at.elapsed() < STORE_AFTERMATH);
            ensure!(excused, "the coordinator ended by itself: {status}");
            self.summary.coordinator_left();
            println!("          the coordinator ended with {status}: the object store was away");
            self.cluster.forget_coordinator();
            self.undos.push((now, Undo::StartCoordinator));
        }
        for worker in 0..=WORKERS {
            let leaves = self
                .undos
                .iter()
                .any(|(_, undo)| *undo == Undo::Gone(worker));
            if let Some(status) = self.cluster.worker_ended(worker)? {
                ensure!(
                    leaves && status.success(),
                    "the daemon of {} ended by itself: {status}",
                    Self::name(worker)
                );
                self.cluster.forget_worker(worker);
            }
        }
        Ok(())
    }

    /// Whether it is done; if not, it is tried again.
    fn take_back(&mut self, undo: &Undo) -> Result<bool> {
        match undo {
            // It may have been killed meanwhile: that was the fault's price.
            Undo::ContinueRank(pid) => drop(signal("CONT", *pid)),
            Undo::ContinueDaemon(worker) => signal("CONT", self.cluster.worker_pid(*worker)?)?,
            Undo::ContinueCoordinator => signal("CONT", self.cluster.coordinator_pid()?)?,
            Undo::ContinueStore => {
                signal("CONT", self.store.pid()?)?;
                self.store_struck = Some(Instant::now());
            }
            Undo::StartStore => {
                self.store.restart().context("the object store")?;
                self.store_struck = Some(Instant::now());
            }
            Undo::StartDaemon(worker) => self.cluster.start_worker(*worker)?,
            Undo::StartCoordinator if self.store_is_struck() => return Ok(false),
            Undo::StartCoordinator => self.cluster.start_coordinator()?,
            Undo::Undrain(_) if !self.coordinator_answers() => return Ok(false),
            Undo::Undrain(worker) => {
                let answer = self.cluster.run(&["undrain", &Self::name(*worker)])?;
                return Ok(answer.code == Some(0));
            }
            Undo::Gone(worker) => return Ok(!self.cluster.has_worker(*worker)),
        }
        Ok(true)
    }
}
