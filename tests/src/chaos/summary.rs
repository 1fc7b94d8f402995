//! What chaos did and how long anybody waited: kept while it runs, printed once at the end. Judges
//! nothing.

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
    /// Every strike, and how long it was until a step was done that began after it.
    pub(crate) strikes: Vec<(Kind, Option<Duration>)>,
    /// Between two steps told, and how many strikes there had been.
    longest: (Duration, usize),
    jobs: u32,
    incidents: usize,
    generations: u64,
    coordinator_left: u32,
}

impl Summary {
    pub(crate) fn new(seed: u64, steps: u64, digest: &str) -> Self {
        Self {
            seed,
            steps,
            digest: digest.to_owned(),
            began: Instant::now(),
            strikes: Vec::new(),
            longest: (Duration::ZERO, 0),
            jobs: 0,
            incidents: 0,
            generations: 0,
            coordinator_left: 0,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    #[must_use]
    pub fn kills(&self) -> usize {
        self.strikes
            .iter()
            .filter(|(kind, _)| kind.is_kill())
            .count()
    }

    /// How many strikes of this kind hit somebody.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.strikes.iter().filter(|(it, _)| *it == kind).count()
    }

    pub(crate) fn struck(&mut self, kind: Kind) -> usize {
        self.strikes.push((kind, None));
        self.strikes.len() - 1
    }

    pub(crate) fn got_over(&mut self, strike: usize, after: Duration) {
        self.strikes[strike].1 = Some(after);
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.longest = self.longest.max((time, self.strikes.len()));
    }

    pub(crate) fn job_done(&mut self, incidents: usize, generations: u64) {
        self.jobs += 1;
        self.incidents += incidents;
        self.generations += generations;
    }

    pub(crate) fn jobs(&self) -> u32 {
        self.jobs
    }

    pub(crate) fn coordinator_left(&mut self) {
        self.coordinator_left += 1;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
        for (kind, after) in &self.strikes {
            times.entry(*kind).or_default().extend(after);
        }
        writeln!(
            f,
            "CHAOS seed {}: {} SIGKILLs and {} other faults in {:.0} s",
            self.seed,
            self.kills(),
            self.strikes.len() - self.kills(),
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
                kind.words()
            )?;
        }
        let (longest, strikes) = self.longest;
        let after = strikes
            .checked_sub(1)
            .and_then(|last| self.strikes.get(last));
        writeln!(
            f,
            "  longest wait between two steps told: {:.2} s, after {}",
            longest.as_secs_f64(),
            after.map_or("no fault", |(kind, _)| kind.words())
        )?;
        writeln!(
            f,
            "  the coordinator ended by itself, the object store being away: {} times",
            self.coordinator_left
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
