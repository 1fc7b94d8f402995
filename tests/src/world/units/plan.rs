//! Planned jobs of units. They have their own random stream, so that worlds without them do not
//! change.

use crate::world::plan::PlannedJob;
use crate::world::rng::Rng;
use proto::spec::OnFailedUnit;
use std::collections::BTreeMap;

/// The first mark of jobs of units; seeds of training jobs are smaller.
const FIRST_MARK: u64 = 2_000_000;
/// The longest time that a job takes on one rank, in virtual milliseconds.
const WORK_MS_MAX: u64 = 60_000;

/// A planned job, by its index in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Planned {
    Trained(usize),
    Units(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct PlannedUnits {
    pub(crate) at: u64,
    /// Its first seed, which identifies it in a record.
    pub(crate) mark: u64,
    /// Images; the job has one more unit, the closing one.
    pub(crate) images: u32,
    pub(crate) unit_ms: u64,
    /// The training job whose weights it uses.
    pub(crate) source: usize,
    /// True: it uses the base weights instead of a checkpoint.
    pub(crate) base: bool,
    /// It starts when these are done.
    pub(crate) after: Vec<Planned>,
    pub(crate) poison: BTreeMap<u64, Poison>,
    pub(crate) on_failed: OnFailedUnit,
    pub(crate) workers_max: u32,
    pub(crate) devices: u32,
    pub(crate) priority: i32,
    pub(crate) team: &'static str,
    pub(crate) cancel_at: Option<u64>,
    pub(crate) pause: Option<(u64, u64)>,
    pub(crate) scale: Option<(u64, u32)>,
}

/// How a unit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Poison {
    /// It kills its process, each time.
    Kills,
    /// It gives an error, each time.
    Fails,
    /// It gives an error or kills its process the first `times` times, and then succeeds.
    Passes { kills: bool, times: u32 },
}

impl PlannedUnits {
    /// Every second job whose failed units are set aside, as those of an evaluation are.
    pub(crate) fn is_evaluation(&self) -> bool {
        self.on_failed == OnFailedUnit::SetAside && self.mark.is_multiple_of(2)
    }

    /// Generates jobs of units, and dependencies between all jobs. No job waits for a later one, in
    /// the order training jobs, then jobs of units; but a training job may wait for the first job
    /// of units, if that uses base weights and has no dependencies.
    pub(crate) fn random(
        seed: u64,
        nodes: &[u32],
        jobs: &mut [PlannedJob],
        heal_at: u64,
    ) -> Vec<Self> {
        let mut rng = Rng::new(seed, 5);
        let mut units: Vec<Self> = Vec::new();
        for number in 0..rng.between(1, 3) as usize {
            let one = Self::new(&mut rng, number, nodes, jobs.len(), heal_at);
            units.push(one);
        }
        for number in 0..units.len() {
            let after = dependencies(&mut rng, number, &units, jobs.len());
            units[number].after = after;
        }
        for (number, job) in jobs.iter_mut().enumerate().skip(1) {
            if rng.chance(120) {
                job.after = vec![Planned::Trained(rng.pick(number))];
            } else if rng.chance(100) && first_of_base(&units, number) {
                job.after = vec![Planned::Units(0)];
            }
        }
        units
    }

    fn new(rng: &mut Rng, number: usize, nodes: &[u32], trained: usize, heal_at: u64) -> Self {
        let devices = if rng.chance(200) && nodes.contains(&2) {
            2
        } else {
            1
        };
        let images = if rng.chance(300) {
            rng.between(1, 8)
        } else {
            rng.between(1, 200)
        };
        let at = rng.between(0, heal_at / 2);
        let mut poison = BTreeMap::new();
        if rng.chance(350) {
            for _ in 0..rng.between(1, 2) {
                poison.insert(rng.between(0, images), Poison::new(rng));
            }
        }
        Self {
            at,
            mark: FIRST_MARK + number as u64,
            images: images as u32,
            unit_ms: rng.between(20, (WORK_MS_MAX / images).clamp(40, 2_000)),
            source: rng.pick(trained),
            base: rng.chance(500),
            after: Vec::new(),
            poison,
            on_failed: if rng.chance(700) {
                OnFailedUnit::SetAside
            } else {
                OnFailedUnit::Stop
            },
            workers_max: if rng.chance(300) {
                rng.between(1, 4) as u32
            } else {
                4_096
            },
            devices,
            priority: rng.between(0, 2) as i32,
            team: if rng.chance(500) { "a" } else { "b" },
            cancel_at: rng.chance(100).then(|| rng.between(at, heal_at)),
            pause: rng.chance(250).then(|| {
                let from = rng.between(at, heal_at + 10_000);
                (from, from + rng.between(10, 30_000))
            }),
            scale: rng
                .chance(200)
                .then(|| (rng.between(at, heal_at + 10_000), rng.between(1, 4) as u32)),
        }
    }

    /// A job without faults and requests, on `devices` devices of every worker.
    pub(crate) fn plain(images: u32, unit_ms: u64, devices: u32) -> Self {
        Self {
            at: 0,
            mark: FIRST_MARK,
            images,
            unit_ms,
            source: 0,
            base: true,
            after: Vec::new(),
            poison: BTreeMap::new(),
            on_failed: OnFailedUnit::Stop,
            workers_max: 4_096,
            devices,
            priority: 0,
            team: "a",
            cancel_at: None,
            pause: None,
            scale: None,
        }
    }
}

impl Poison {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        match rng.between(1, 4) {
            1 => Self::Kills,
            2 => Self::Fails,
            _ => Self::Passes {
                kills: rng.chance(500),
                times: rng.between(1, 2) as u32,
            },
        }
    }
}

/// The jobs that this job of units waits for. If it samples from the newest checkpoint of one of
/// them, that is the last checkpoint.
fn dependencies(
    rng: &mut Rng,
    number: usize,
    units: &[PlannedUnits],
    trained: usize,
) -> Vec<Planned> {
    let mut after = Vec::new();
    if rng.chance(350) {
        after.push(Planned::Trained(units[number].source));
    }
    if rng.chance(150) {
        after.push(Planned::Trained(rng.pick(trained)));
    }
    // A job that needs a checkpoint may be refused for ever; only jobs of base weights qualify.
    let earlier = (0..number).filter(|it| units[*it].base);
    let earlier: Vec<usize> = earlier.collect();
    if !earlier.is_empty() && rng.chance(350) {
        after.push(Planned::Units(earlier[rng.pick(earlier.len())]));
    }
    after.sort();
    after.dedup();
    after
}

fn first_of_base(units: &[PlannedUnits], before: usize) -> bool {
    units
        .first()
        .is_some_and(|first| first.base && first.after.is_empty() && first.source < before)
}
