//! Why a job waits, as a value that becomes one sentence, and what would end the wait as another.

use super::problem::Demand;
use crate::partitions::Partitions;
use proto::id::JobId;
use std::fmt;

/// Why a gang waits, and how the workers of its kind stand. Names, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage {
    demand: Demand,
    lack: Lack,
    pub(super) ready: Vec<String>,
    pub(super) busy: Vec<String>,
    pub(super) kept: Vec<Blocker>,
    pub(super) drained: Vec<String>,
    pub(super) too_small: Vec<String>,
    /// Of those that it could use.
    pub(super) partitions: Partitions,
}

/// The constraint that holds it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    Workers,
    /// There are enough, and it waits a moment for more.
    GracePeriod,
    Quota {
        quota: u32,
        used: u32,
    },
}

/// A free worker that a job further ahead keeps for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocker {
    pub(super) worker: String,
    pub(super) job: JobId,
}

impl Shortage {
    pub(super) fn new(demand: &Demand, lack: Lack) -> Self {
        // What it holds now is no reason to wait.
        let demand = Demand {
            holds: Vec::new(),
            warm: Vec::new(),
            avoid: Vec::new(),
            partitions: Partitions::default(),
            ..demand.clone()
        };
        let (ready, busy, kept, drained, too_small) = (vec![], vec![], vec![], vec![], vec![]);
        Self {
            demand,
            lack,
            ready,
            busy,
            kept,
            drained,
            too_small,
            partitions: Partitions::default(),
        }
    }

    fn nobody_is_up(&self) -> bool {
        let up = [&self.busy, &self.drained, &self.too_small];
        self.kept.is_empty() && up.iter().all(|workers| workers.is_empty())
    }

    /// One word for what holds it back.
    pub(crate) fn constraint(&self) -> &'static str {
        match self.lack {
            Lack::Workers if !self.partitions.is_empty() => "connection",
            Lack::Workers => "workers",
            Lack::GracePeriod => "settling",
            Lack::Quota { .. } => "quota",
        }
    }

    /// What would let it start.
    pub(crate) fn remedy(&self) -> String {
        let (least, devices) = (
            self.demand.workers_min.max(1),
            self.demand.devices_per_worker,
        );
        match &self.lack {
            Lack::Quota { quota, used } => {
                let (team, needs) = (&self.demand.team, u64::from(least) * u64::from(devices));
                if u64::from(*quota) < needs {
                    return format!(
                        "a quota of {needs} devices for team {team}, which has {quota}"
                    );
                }
                let over = (u64::from(*used) + needs).saturating_sub(u64::from(*quota));
                format!(
                    "jobs of team {team} giving back {}, or a higher quota",
                    counted(over, "device")
                )
            }
            Lack::GracePeriod => "nothing: it starts in a moment with those that are up".to_owned(),
            Lack::Workers => {
                let missing = u64::from(least)
                    .saturating_sub(self.ready.len() as u64)
                    .max(1);
                let kind = self.demand.device.name();
                let mut ways = Vec::new();
                if !self.partitions.is_empty() {
                    ways.push(
                        "a connection between the workers that do not reach each other".to_owned(),
                    );
                }
                if !self.busy.is_empty() {
                    ways.push(format!(
                        "{} becoming free of {}",
                        counted(missing, "worker"),
                        self.busy.join(", ")
                    ));
                }
                if let Some(blocker) = self.kept.first() {
                    ways.push(format!("{} starting or leaving the queue", blocker.job));
                }
                if !self.drained.is_empty() {
                    ways.push(format!(
                        "`coordinator undrain` of {}",
                        self.drained.join(" or ")
                    ));
                }
                let what = if 1 == missing { "worker" } else { "workers" };
                ways.push(format!(
                    "{missing} more {kind} {what} with {} joining",
                    counted(devices.into(), "device")
                ));
                ways.join(", or ")
            }
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let demand = &self.demand;
        let (workers, devices) = (demand.workers_min.max(1), demand.devices_per_worker);
        if let Lack::Quota { quota, used } = &self.lack {
            let needs = u64::from(workers) * u64::from(devices);
            let team = &demand.team;
            return write!(
                f,
                "needs {}; team {team} holds {used} of the {quota} that its quota allows",
                counted(needs, "device")
            );
        }
        let kind = demand.device.name();
        let plural = if workers == 1 { "" } else { "s" };
        write!(
            f,
            "needs {workers} {kind} worker{plural} with {}; ",
            counted(devices.into(), "free device")
        )?;
        match self.ready.len() {
            0 if self.nobody_is_up() => f.write_str("none is up")?,
            0 => f.write_str("none is free")?,
            1 => write!(f, "1 is free ({})", self.ready.join(", "))?,
            n => write!(f, "{n} are free ({})", self.ready.join(", "))?,
        }
        if !self.busy.is_empty() {
            write!(f, "; busy: {}", self.busy.join(", "))?;
        }
        for Blocker { worker, job } in &self.kept {
            write!(f, "; {worker} is kept for {job}, which is before it")?;
        }
        if !self.drained.is_empty() {
            write!(f, "; drained: {}", self.drained.join(", "))?;
        }
        if !self.too_small.is_empty() {
            write!(f, "; too few devices: {}", self.too_small.join(", "))?;
        }
        if !self.partitions.is_empty() {
            write!(f, "; {}", self.partitions)?;
        }
        if self.lack == Lack::GracePeriod {
            write!(f, "; waits a moment for up to {}", demand.workers_max)?;
        }
        Ok(())
    }
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}
