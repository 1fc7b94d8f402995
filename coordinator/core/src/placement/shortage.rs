//! Why a job waits, as a value that becomes one sentence, and the remedy as another sentence.

use super::problem::Demand;
use crate::partitions::Partitions;
use proto::id::JobId;
use std::fmt;

/// Why a job waits, and the state of the workers of its device kind, as sorted names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage {
    demand: Demand,
    constraint: Constraint,
    pub(super) ready: Vec<String>,
    pub(super) busy: Vec<String>,
    pub(super) reserved: Vec<Blocker>,
    pub(super) drained: Vec<String>,
    pub(super) too_small: Vec<String>,
    /// Unreachable pairs among the workers that it could use.
    pub(super) partitions: Partitions,
}

/// The constraint that makes it wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Constraint {
    Workers,
    /// There are enough, but it waits briefly for more.
    GracePeriod,
    Quota {
        quota: u32,
        used: u32,
    },
}

/// A free worker that is reserved for a job ahead in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocker {
    pub(super) worker: String,
    pub(super) job: JobId,
}

impl Shortage {
    pub(super) fn new(demand: &Demand, constraint: Constraint) -> Self {
        // These fields do not explain why it waits.
        let demand = Demand {
            holds: Vec::new(),
            warm: Vec::new(),
            avoid: Vec::new(),
            partitions: Partitions::default(),
            ..demand.clone()
        };
        let (ready, busy, reserved, drained, too_small) = (vec![], vec![], vec![], vec![], vec![]);
        Self {
            demand,
            constraint,
            ready,
            busy,
            reserved,
            drained,
            too_small,
            partitions: Partitions::default(),
        }
    }

    fn none_is_up(&self) -> bool {
        let up = [&self.busy, &self.drained, &self.too_small];
        self.reserved.is_empty() && up.iter().all(|workers| workers.is_empty())
    }

    /// The constraint in one word.
    pub(crate) fn constraint(&self) -> &'static str {
        match self.constraint {
            Constraint::Workers if !self.partitions.is_empty() => "connection",
            Constraint::Workers => "workers",
            Constraint::GracePeriod => "settling",
            Constraint::Quota { .. } => "quota",
        }
    }

    /// What would let it start.
    pub(crate) fn remedy(&self) -> String {
        let (min_workers, devices) = (
            self.demand.workers_min.max(1),
            self.demand.devices_per_worker,
        );
        match &self.constraint {
            Constraint::Quota { quota, used } => {
                let (team, needs) = (
                    &self.demand.team,
                    u64::from(min_workers) * u64::from(devices),
                );
                if u64::from(*quota) < needs {
                    return format!(
                        "a quota of {needs} devices for team {team}, which has {quota}"
                    );
                }
                let over = (u64::from(*used) + needs).saturating_sub(u64::from(*quota));
                format!(
                    "jobs of team {team} releasing {}, or a higher quota",
                    pluralize(over, "device")
                )
            }
            Constraint::GracePeriod => {
                "nothing: it starts shortly with the workers that are up".to_owned()
            }
            Constraint::Workers => {
                let missing = u64::from(min_workers)
                    .saturating_sub(self.ready.len() as u64)
                    .max(1);
                let kind = self.demand.device.name();
                let mut remedies = Vec::new();
                if !self.partitions.is_empty() {
                    remedies.push(
                        "a connection between the workers that cannot reach each other".to_owned(),
                    );
                }
                if !self.busy.is_empty() {
                    remedies.push(format!(
                        "{} of {} becoming free",
                        pluralize(missing, "worker"),
                        self.busy.join(", ")
                    ));
                }
                if let Some(blocker) = self.reserved.first() {
                    remedies.push(format!("{} starting or leaving the queue", blocker.job));
                }
                if !self.drained.is_empty() {
                    remedies.push(format!(
                        "`coordinator undrain` of {}",
                        self.drained.join(" or ")
                    ));
                }
                let what = if 1 == missing { "worker" } else { "workers" };
                remedies.push(format!(
                    "{missing} more {kind} {what} with {} joining",
                    pluralize(devices.into(), "device")
                ));
                remedies.join(", or ")
            }
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let demand = &self.demand;
        let (workers, devices) = (demand.workers_min.max(1), demand.devices_per_worker);
        if let Constraint::Quota { quota, used } = &self.constraint {
            let needs = u64::from(workers) * u64::from(devices);
            let team = &demand.team;
            return write!(
                f,
                "needs {}; team {team} holds {used} of the {quota} that its quota allows",
                pluralize(needs, "device")
            );
        }
        let kind = demand.device.name();
        let plural = if workers == 1 { "" } else { "s" };
        write!(
            f,
            "needs {workers} {kind} worker{plural} with {}; ",
            pluralize(devices.into(), "free device")
        )?;
        match self.ready.len() {
            0 if self.none_is_up() => f.write_str("none is up")?,
            0 => f.write_str("none is free")?,
            1 => write!(f, "1 is free ({})", self.ready.join(", "))?,
            n => write!(f, "{n} are free ({})", self.ready.join(", "))?,
        }
        if !self.busy.is_empty() {
            write!(f, "; busy: {}", self.busy.join(", "))?;
        }
        for Blocker { worker, job } in &self.reserved {
            write!(
                f,
                "; {worker} is reserved for {job}, which is ahead in the queue"
            )?;
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
        if self.constraint == Constraint::GracePeriod {
            write!(
                f,
                "; waits briefly for up to {} workers",
                demand.workers_max
            )?;
        }
        Ok(())
    }
}

fn pluralize(number: u64, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}
