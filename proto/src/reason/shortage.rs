//! Why placement gives a job no workers, and what would help.

use super::pluralize;
use crate::id::JobId;
use crate::spec::DeviceKind;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum number of pairs named in one sentence.
const PAIRS_NAMED_MAX: usize = 4;

/// Why a job gets no workers, and the state of the workers of its device kind, as sorted names. The
/// lists are empty for [`Constraint::Quota`]: they do not matter then, and a job's reason should
/// change only with what makes it wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    pub constraint: Constraint,
    pub workers_min: u32,
    pub devices_per_worker: u32,
    pub device: DeviceKind,
    pub team: String,
    pub ready: Vec<String>,
    pub busy: Vec<String>,
    pub reserved: Vec<Reservation>,
    pub drained: Vec<String>,
    pub too_small: Vec<String>,
    /// Pairs among the workers that it could use.
    pub unreachable: Vec<UnreachablePair>,
}

/// The constraint that makes it wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Constraint {
    Workers,
    /// There are enough, but it waits briefly for up to this number.
    GracePeriod {
        workers_max: u32,
    },
    Quota {
        quota: u32,
        used: u32,
    },
}

/// A free worker that is reserved for a job ahead in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub worker: String,
    pub job: JobId,
}

/// Two live workers that cannot reach each other, as one of them reported it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnreachablePair {
    /// The names of both, in order.
    pub workers: (String, String),
    pub from: String,
    pub to: String,
    /// The address and the error of the last attempt.
    pub error: String,
}

impl Shortage {
    fn none_is_up(&self) -> bool {
        let up = [&self.busy, &self.drained, &self.too_small];
        self.reserved.is_empty() && up.iter().all(|workers| workers.is_empty())
    }

    /// The constraint in one word.
    #[must_use]
    pub fn constraint(&self) -> &'static str {
        match self.constraint {
            Constraint::Workers if !self.unreachable.is_empty() => "connection",
            Constraint::Workers => "workers",
            Constraint::GracePeriod { .. } => "grace-period",
            Constraint::Quota { .. } => "quota",
        }
    }

    fn devices_needed(&self) -> u64 {
        u64::from(self.workers_min) * u64::from(self.devices_per_worker)
    }

    /// What would let it start.
    #[must_use]
    pub fn remedy(&self) -> String {
        match &self.constraint {
            Constraint::Quota { quota, used } => {
                let (team, needs) = (&self.team, self.devices_needed());
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
            Constraint::GracePeriod { .. } => {
                "nothing: it starts shortly with the workers that are up".to_owned()
            }
            Constraint::Workers => self.more_workers(),
        }
    }

    fn more_workers(&self) -> String {
        let missing = u64::from(self.workers_min)
            .saturating_sub(self.ready.len() as u64)
            .max(1);
        let mut remedies = Vec::new();
        if !self.unreachable.is_empty() {
            remedies
                .push("a connection between the workers that cannot reach each other".to_owned());
        }
        if !self.busy.is_empty() {
            remedies.push(format!(
                "{} of {} becoming free",
                pluralize(missing, "worker"),
                self.busy.join(", ")
            ));
        }
        if let Some(first) = self.reserved.first() {
            remedies.push(format!("{} starting or leaving the queue", first.job));
        }
        if !self.drained.is_empty() {
            remedies.push(format!(
                "`coordinator undrain` of {}",
                self.drained.join(" or ")
            ));
        }
        let what = if 1 == missing { "worker" } else { "workers" };
        remedies.push(format!(
            "{missing} more {} {what} with {} joining",
            self.device.name(),
            pluralize(self.devices_per_worker.into(), "device")
        ));
        remedies.join(", or ")
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Constraint::Quota { quota, used } = &self.constraint {
            let team = &self.team;
            return write!(
                f,
                "needs {}; team {team} holds {used} of the {quota} that its quota allows",
                pluralize(self.devices_needed(), "device")
            );
        }
        let workers = self.workers_min;
        let plural = if workers == 1 { "" } else { "s" };
        write!(
            f,
            "needs {workers} {} worker{plural} with {}; ",
            self.device.name(),
            pluralize(self.devices_per_worker.into(), "free device")
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
        for Reservation { worker, job } in &self.reserved {
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
        if !self.unreachable.is_empty() {
            write!(f, "; {}", Pairs(&self.unreachable))?;
        }
        if let Constraint::GracePeriod { workers_max } = self.constraint {
            write!(f, "; waits briefly for up to {workers_max} workers")?;
        }
        Ok(())
    }
}

/// Names up to four pairs, and counts the others.
#[derive(Debug)]
pub struct Pairs<'a>(pub &'a [UnreachablePair]);

impl fmt::Display for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pair) in self.0.iter().take(PAIRS_NAMED_MAX).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{pair}")?;
        }
        match self.0.len().saturating_sub(PAIRS_NAMED_MAX) {
            0 => Ok(()),
            1 => f.write_str(", and 1 more pair"),
            more => write!(f, ", and {more} more pairs"),
        }
    }
}

impl fmt::Display for UnreachablePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = &self.workers;
        let (from, to, error) = (&self.from, &self.to, &self.error);
        write!(
            f,
            "{a} and {b} cannot reach each other (from {from} to {to} at {error})"
        )
    }
}
