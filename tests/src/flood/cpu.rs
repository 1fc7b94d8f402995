//! Processor time of the processes of a flood: who took it. The machine is small, so that a
//! generator of floods, the coordinator and the victim share its processors; without these numbers
//! a step rate says nothing.

use crate::cluster::Cluster;
use anyhow::{Context, Result};
use std::fs::read_to_string;
use std::ops::{Add, Sub};

/// Ticks per second in /proc, on every Linux that users see.
const TICKS: f64 = 100.0;

/// Seconds of processor time since some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// The coordinator, with the child processes that looked into files for it.
    pub coordinator: f64,
    /// The worker's daemon and its ranks: the victim.
    pub victim: f64,
    /// This process: the flood, and the questions that measure the coordinator's silence.
    pub sender: f64,
    /// Everything else on the machine.
    pub others: f64,
    pub idle: f64,
}

impl Cpu {
    pub(crate) fn now(cluster: &Cluster) -> Result<Self> {
        let (own, children) = process(&cluster.coordinator_pid()?.to_string())?;
        let coordinator = own + children;
        let mut victim = process(&cluster.worker_pid(0)?.to_string())?.0;
        for rank in cluster.ranks(0)? {
            victim += process(&rank.to_string())?.0;
        }
        let sender = process("self")?.0;
        let (busy, idle) = machine()?;
        Ok(Self {
            coordinator,
            victim,
            sender,
            others: busy - coordinator - victim - sender,
            idle,
        })
    }

    /// What the coordinator and the victim had for themselves: what they took, and what nobody
    /// took.
    #[must_use]
    pub fn available(&self) -> f64 {
        self.coordinator + self.victim + self.idle
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            coordinator: self.coordinator + other.coordinator,
            victim: self.victim + other.victim,
            sender: self.sender + other.sender,
            others: self.others + other.others,
            idle: self.idle + other.idle,
        }
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            coordinator: self.coordinator - other.coordinator,
            victim: self.victim - other.victim,
            sender: self.sender - other.sender,
            others: self.others - other.others,
            idle: self.idle - other.idle,
        }
    }
}

/// Seconds of a process, and of the children that it has waited for.
fn process(pid: &str) -> Result<(f64, f64)> {
    let path = format!("/proc/{pid}/stat");
    let stat = read_to_string(&path).with_context(|| format!("reading {path}"))?;
    of_stat(&stat).with_context(|| format!("{path} has no times"))
}

/// utime and stime, cutime and cstime: fields 14 to 17. Field 2 is a name, which may contain
/// anything, in parentheses.
fn of_stat(stat: &str) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |number: usize| Some(fields.get(number - 3)?.parse::<f64>().ok()? / TICKS);
    Some((seconds(14)? + seconds(15)?, seconds(16)? + seconds(17)?))
}

/// Seconds of all processors: in use, and idle.
fn machine() -> Result<(f64, f64)> {
    let stat = read_to_string("/proc/stat").context("reading /proc/stat")?;
    of_machine(&stat).context("/proc/stat has no times")
}

/// user, nice, system, idle, iowait, irq, softirq, steal. Guests are in the first two.
fn of_machine(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks = line.split_whitespace().take(8).map(str::parse);
    let ticks: Vec<f64> = ticks.collect::<Result<_, _>>().ok()?;
    let idle = ticks.get(3)? + ticks.get(4)?;
    let busy = ticks.iter().sum::<f64>() - idle;
    Some((busy / TICKS, idle / TICKS))
}

/// Seconds of processor time of this thread. None: the kernel does not say.
pub(crate) fn of_this_thread() -> Option<f64> {
    let text = read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_what_the_kernel_says() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 20 30 15 0 1";
        assert_eq!(of_stat(stat), Some((2.0, 0.5)));
        let machine = "cpu  100 20 30 400 50 0 5 10 7 0\ncpu0 1 2 3\n";
        assert_eq!(of_machine(machine), Some((1.65, 4.5)));
        assert_eq!((of_stat("12 (x) S 1"), of_machine("x")), (None, None));
    }
}
