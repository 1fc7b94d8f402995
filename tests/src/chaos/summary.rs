//! Statistics of a chaos run: its faults and the recovery times, printed at the end.

use super::Kind;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Summary {
    seed: u64,
    steps: u64,
    digest: String,
    began: Instant,
    /// Every fault, and the time until the first completed step that began after it.
    pub(crate) faults: Vec<(Kind, Option<Duration>)>,
    /// The longest time between two reported steps, and the number of faults before it.
    longest: (Duration, usize),
    jobs: u32,
    incidents: usize,
    generations: u64,
    coordinator_exited: u32,
}

impl Summary {
    pub(crate) fn new(seed: u64, steps: u64, digest: &str) -> Self {
        Self {
            seed,
            steps,
            digest: digest.to_owned(),
            began: Instant::now(),
            faults: Vec::new(),
            longest: (Duration::ZERO, 0),
            jobs: 0,
            incidents: 0,
            generations: 0,
            coordinator_exited: 0,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    #[must_use]
    pub fn kills(&self) -> usize {
        self.faults
            .iter()
            .filter(|(kind, _)| kind.is_kill())
            .count()
    }

    /// How many faults of this kind had a target.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.faults.iter().filter(|(it, _)| *it == kind).count()
    }

    pub(crate) fn add_fault(&mut self, kind: Kind) -> usize {
        self.faults.push((kind, None));
        self.faults.len() - 1
    }

    pub(crate) fn recovered(&mut self, fault: usize, after: Duration) {
        self.faults[fault].1 = Some(after);
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.longest = self.longest.max((time, self.faults.len()));
    }

    pub(crate) fn job_done(&mut self, incidents: usize, generations: u64) {
        self.jobs += 1;
        self.incidents += incidents;
        self.generations += generations;
    }

    pub(crate) fn jobs(&self) -> u32 {
        self.jobs
    }

    pub(crate) fn coordinator_exited(&mut self) {
        self.coordinator_exited += 1;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
        for (kind, after) in &self.faults {
            times.entry(*kind).or_default().extend(after);
        }
        writeln!(
            f,
            "CHAOS seed {}: {} SIGKILLs and {} other faults in {:.0} s",
            self.seed,
            self.kills(),
            self.faults.len() - self.kills(),
            self.elapsed().as_secs_f64()
        )?;
        writeln!(
            f,
            "  {:<38} {:>5}  until the next step: median, longest",
            "fault", "times"
        )?;
        for (kind, times) in &mut times {
            times.sort();
            let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
            let (median, longest) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
            let count = self.count(*kind);
            writeln!(
                f,
                "  {:<38} {count:>5}  {median:>8.2} s {longest:>8.2} s",
                kind.description()
            )?;
        }
        let (longest, faults) = self.longest;
        let after = faults.checked_sub(1).and_then(|last| self.faults.get(last));
        writeln!(
            f,
            "  longest time between two reported steps: {:.2} s, after {}",
            longest.as_secs_f64(),
            after.map_or("no fault", |(kind, _)| kind.description())
        )?;
        writeln!(
            f,
            "  the coordinator exited because the object store was unavailable: {} times",
            self.coordinator_exited
        )?;
        writeln!(
            f,
            "  {} jobs of {} steps: all done; {} generations, {} incidents",
            self.jobs, self.steps, self.generations, self.incidents
        )?;
        write!(
            f,
            "  audits: {0} of {0} clean; digests: {0} of {0} equal the undisturbed run's, {1}",
            self.jobs, self.digest
        )
    }
}
