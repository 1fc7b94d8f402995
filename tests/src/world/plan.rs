//! The plan of a world, generated from its seed: nodes, jobs, client requests and faults. There are
//! no faults after `heal_at`.

use super::Kinds;
use super::evaluations::PlannedEvaluation;
use super::rng::Rng;
use super::units::plan::{Planned, PlannedUnits};
use std::collections::BTreeMap;

/// The setting `detect_within_ms` of both machines.
pub(crate) const DETECT_WITHIN_MS: u64 = 3_000;

/// Longer than any world.
pub(crate) const FOREVER_MS: u64 = 1 << 40;

#[derive(Debug)]
pub(crate) struct Plan {
    /// Devices of each node.
    pub(crate) nodes: Vec<u32>,
    pub(crate) jobs: Vec<PlannedJob>,
    pub(crate) units: Vec<PlannedUnits>,
    /// How the units of evaluations behave.
    pub(crate) evaluations: Vec<PlannedUnits>,
    pub(crate) drains: Vec<PlannedDrain>,
    pub(crate) quotas: BTreeMap<String, u32>,
    pub(crate) faults: Vec<(u64, Fault)>,
    pub(crate) heal_at: u64,
    pub(crate) noise: Noise,
}

/// Random faults until `heal_at`, with their rates per 1000.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noise {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// A message is delayed, and all behind it on the stream.
    pub(crate) delayed: u64,
    /// The coordinator crashes between two effects.
    pub(crate) coordinator_crash: u64,
    /// A daemon crashes between two effects.
    pub(crate) daemon_crash: u64,
    /// The store fails, is slow, or loses its answer: for the coordinator's state, for manifests
    /// and deletions, for shards, and for reads of ranks.
    pub(crate) save_faults: u64,
    pub(crate) manifest_faults: u64,
    pub(crate) shard_faults: u64,
    pub(crate) load_faults: u64,
    pub(crate) slow_start: u64,
}

impl Noise {
    fn new(rng: &mut Rng) -> Self {
        let mut rate = |most: u64| {
            if rng.chance(500) {
                rng.between(0, most)
            } else {
                0
            }
        };
        Self {
            lost: rate(150),
            duplicated: rate(100),
            reordered: rate(30),
            delayed: rate(60),
            coordinator_crash: rate(8),
            daemon_crash: rate(2),
            save_faults: rate(20),
            manifest_faults: rate(400),
            shard_faults: rate(150),
            load_faults: rate(100),
            slow_start: rate(200),
        }
    }

    /// The rates that are not 0, for the trace.
    pub(crate) fn describe(&self) -> String {
        let all = [
            (self.lost, "lost messages"),
            (self.duplicated, "duplicated messages"),
            (self.reordered, "reordered messages"),
            (self.delayed, "delayed messages"),
            (
                self.coordinator_crash,
                "coordinator crashes between effects",
            ),
            (self.daemon_crash, "daemon crashes between effects"),
            (self.save_faults, "failed saves"),
            (self.manifest_faults, "failed manifests"),
            (self.shard_faults, "failed shards"),
            (self.load_faults, "failed reads"),
            (self.slow_start, "slow starts"),
        ];
        let there = all.iter().filter(|(permille, _)| *permille != 0);
        let parts: Vec<String> = there
            .map(|(permille, what)| format!("{what} ({permille} of 1000)"))
            .collect();
        if parts.is_empty() {
            "no noise".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct PlannedJob {
    pub(crate) at: u64,
    pub(crate) steps: u64,
    pub(crate) every: u64,
    pub(crate) keep: u32,
    pub(crate) workers_min: u32,
    pub(crate) workers_max: u32,
    pub(crate) devices: u32,
    pub(crate) seed: u64,
    pub(crate) micro_batches: u32,
    pub(crate) step_ms: u64,
    pub(crate) cancel_at: Option<u64>,
    pub(crate) sample_at: Option<u64>,
    pub(crate) priority: i32,
    pub(crate) team: &'static str,
    /// When it is paused and when it is resumed.
    pub(crate) pause: Option<(u64, u64)>,
    /// When it is scaled, and to how many workers.
    pub(crate) scale: Option<(u64, u32)>,
    /// It starts when these are done.
    pub(crate) after: Vec<Planned>,
    pub(crate) evaluation: Option<PlannedEvaluation>,
}

/// A node that is drained for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlannedDrain {
    pub(crate) node: usize,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// A rank process of this node dies.
    RankCrash {
        node: usize,
    },
    /// A rank process of this node hangs.
    RankHang {
        node: usize,
    },
    /// A rank process of this node is paused for a while.
    RankPause {
        node: usize,
        for_ms: u64,
    },
    /// Ranks of this node and of others cannot reach each other; daemons and coordinator can.
    RanksCut {
        node: usize,
        for_ms: u64,
    },
    /// Neither ranks nor daemons of these two nodes can reach each other; all others can.
    PairCut {
        nodes: (usize, usize),
        for_ms: u64,
    },
    NodeCrash {
        node: usize,
        down_ms: u64,
        clock_back: bool,
    },
    /// The daemon is asked to shut down, and restarted.
    NodeShutdown {
        node: usize,
        down_ms: u64,
    },
    CoordinatorCrash {
        down_ms: u64,
    },
    /// The coordinator's process is stalled; its events are deferred.
    CoordinatorStall {
        for_ms: u64,
    },
    /// The stream breaks, and can be reopened after that time.
    LinkBreak {
        node: usize,
        away_ms: u64,
    },
    /// The stream stays open and carries nothing.
    LinkStall {
        node: usize,
        for_ms: u64,
    },
    /// Messages in one direction of the stream are lost.
    OneWay {
        node: usize,
        up: bool,
        for_ms: u64,
    },
    /// A second coordinator starts on the same store; the first runs on for that time.
    TakeOver {
        for_ms: u64,
    },
    /// The coordinator's wall clock jumps.
    ClockJump {
        by_ms: i64,
    },
}

impl Plan {
    pub(crate) fn new(kinds: Kinds, seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let nodes: Vec<u32> = (0..rng.between(1, 4))
            .map(|_| rng.between(1, 2) as u32)
            .collect();
        let heal_at = rng.between(20_000, 90_000);
        let mut jobs: Vec<PlannedJob> = (0..rng.between(2, 4))
            .map(|_| PlannedJob::new(&mut rng, &nodes, heal_at))
            .collect();
        let count = if rng.chance(100) {
            0
        } else {
            rng.between(1, 24)
        };
        let faults: Vec<(u64, Fault)> = (0..count)
            .map(|_| (rng.between(0, heal_at), Fault::new(&mut rng, nodes.len())))
            .collect();
        let noise = Noise::new(&mut rng);
        // Client requests have their own random stream, so that they do not change the faults.
        let mut rng = Rng::new(seed, 3);
        jobs.iter_mut()
            .for_each(|job| job.add_requests(&mut rng, heal_at));
        let drains = PlannedDrain::random(&mut rng, nodes.len(), heal_at);
        let cuts = cuts(&mut Rng::new(seed, 4), nodes.len(), heal_at);
        if cuts.iter().any(|(_, cut)| cut.is_permanent()) {
            jobs.iter_mut()
                .for_each(|job| job.tolerate_node_loss(&nodes));
        }
        let mut quotas = quotas(&mut rng, &jobs);
        let faults = faults.into_iter().chain(cuts).collect();
        let (mut units, mut evaluations) = (Vec::new(), Vec::new());
        match kinds {
            Kinds::All => {}
            Kinds::Evaluated => {
                let planned = PlannedEvaluation::random(seed, jobs.len());
                for (job, planned) in jobs.iter_mut().zip(planned) {
                    if let Some((evaluation, units)) = planned {
                        job.evaluation = Some(evaluation);
                        evaluations.push(units);
                    }
                }
            }
            Kinds::Gangs => jobs.iter_mut().for_each(|job| job.sample_at = None),
            Kinds::Mixed | Kinds::Archived => {
                units = PlannedUnits::random(seed, &nodes, &mut jobs, heal_at);
                let most = units.iter().map(|units| units.devices).max().unwrap_or(0);
                quotas
                    .values_mut()
                    .for_each(|quota| *quota = most.max(*quota));
            }
        }
        Self {
            nodes,
            jobs,
            units,
            evaluations,
            drains,
            quotas,
            faults,
            heal_at,
            noise,
        }
    }
}

impl PlannedJob {
    fn new(rng: &mut Rng, nodes: &[u32], heal_at: u64) -> Self {
        let devices = if rng.chance(300) && nodes.contains(&2) {
            2
        } else {
            1
        };
        let fitting = nodes.iter().filter(|has| devices <= **has).count() as u64;
        let workers_min = rng.between(1, fitting);
        let workers_max = rng.between(workers_min, 4);
        let at = rng.between(0, heal_at / 2);
        let cancel = rng.chance(120).then(|| rng.between(at, heal_at));
        Self {
            at,
            steps: rng.between(1, 120),
            every: rng.between(1, 12),
            keep: rng.between(1, 3) as u32,
            workers_min: workers_min as u32,
            workers_max: workers_max as u32,
            devices,
            seed: rng.between(0, 1_000_000),
            micro_batches: rng.between(1, 6) as u32,
            step_ms: rng.between(50, 500),
            cancel_at: cancel,
            sample_at: rng.chance(300).then(|| rng.between(at, heal_at + 20_000)),
            priority: 0,
            team: "a",
            pause: None,
            scale: None,
            after: Vec::new(),
            evaluation: None,
        }
    }

    /// Submitted when all other jobs have ended, so that no world is short. It runs on any worker.
    pub(crate) fn extra_job(number: u64, at: u64) -> Self {
        Self {
            at,
            steps: 100,
            every: 10,
            keep: 2,
            workers_min: 1,
            workers_max: 4,
            devices: 1,
            seed: 1_000_001 + number,
            micro_batches: 4,
            step_ms: 50,
            cancel_at: None,
            sample_at: None,
            priority: 0,
            team: "b",
            pause: None,
            scale: None,
            after: Vec::new(),
            evaluation: None,
        }
    }

    /// Lowers `workers_min` so that the job can run without one of the fitting nodes.
    fn tolerate_node_loss(&mut self, nodes: &[u32]) {
        let fitting = nodes.iter().filter(|has| self.devices <= **has).count() as u32;
        self.workers_min = self.workers_min.min(fitting.saturating_sub(1).max(1));
    }

    /// Adds priority, team, pause and scale.
    fn add_requests(&mut self, rng: &mut Rng, heal_at: u64) {
        self.priority = rng.between(0, 2) as i32;
        self.team = if rng.chance(500) { "a" } else { "b" };
        self.pause = rng.chance(250).then(|| {
            let from = rng.between(self.at, heal_at + 10_000);
            (from, from + rng.between(10, 30_000))
        });
        self.scale = rng.chance(250).then(|| {
            (
                rng.between(self.at, heal_at + 10_000),
                rng.between(1, 4) as u32,
            )
        });
    }
}

impl PlannedDrain {
    fn random(rng: &mut Rng, nodes: usize, heal_at: u64) -> Vec<Self> {
        let count = if rng.chance(400) {
            rng.between(1, 2)
        } else {
            0
        };
        let one = |_| {
            let from = rng.between(0, heal_at + 10_000);
            let (node, until) = (rng.pick(nodes), from + rng.between(10, 30_000));
            Self { node, from, until }
        };
        (0..count).map(one).collect()
    }
}

/// Network partitions of node pairs, in some worlds; in some of these one is permanent.
fn cuts(rng: &mut Rng, nodes: usize, heal_at: u64) -> Vec<(u64, Fault)> {
    if nodes < 2 || !rng.chance(350) {
        return Vec::new();
    }
    let permanent = rng.chance(400);
    let count = rng.between(1, 2);
    let one = |number| {
        let from = rng.between(0, heal_at);
        let first = rng.pick(nodes);
        let other = (first + 1 + rng.pick(nodes - 1)) % nodes;
        let for_ms = if permanent && number == count {
            FOREVER_MS
        } else {
            rng.between(500, 40 * DETECT_WITHIN_MS).min(heal_at - from)
        };
        let nodes = (first.min(other), first.max(other));
        (from, Fault::PairCut { nodes, for_ms })
    };
    (1..=count).map(one).collect()
}

/// Sometimes a tight quota for team a, with room for each of its jobs alone.
fn quotas(rng: &mut Rng, jobs: &[PlannedJob]) -> BTreeMap<String, u32> {
    if !rng.chance(200) {
        return BTreeMap::new();
    }
    let of_a = jobs.iter().filter(|job| job.team == "a");
    let least = of_a
        .map(|job| job.workers_min * job.devices)
        .max()
        .unwrap_or(1);
    BTreeMap::from([("a".to_owned(), least + rng.between(0, 2) as u32)])
}

impl Fault {
    fn is_permanent(&self) -> bool {
        matches!(self, Self::PairCut { for_ms, .. } if *for_ms == FOREVER_MS)
    }

    fn new(rng: &mut Rng, nodes: usize) -> Self {
        let node = rng.pick(nodes);
        let short = rng.between(10, 2 * DETECT_WITHIN_MS);
        match rng.between(1, 20) {
            1 | 2 => Self::RankCrash { node },
            3 | 4 => Self::RankHang { node },
            5 | 6 => Self::NodeCrash {
                node,
                down_ms: short,
                clock_back: rng.chance(200),
            },
            7 => Self::NodeShutdown {
                node,
                down_ms: short,
            },
            8 | 9 => Self::CoordinatorCrash {
                down_ms: if rng.chance(200) {
                    short * 15
                } else {
                    short * 2
                },
            },
            10 => Self::LinkBreak {
                node,
                away_ms: short * 2,
            },
            11 => Self::LinkStall {
                node,
                for_ms: short * 2,
            },
            12 => Self::CoordinatorStall { for_ms: short },
            13 => Self::OneWay {
                node,
                up: rng.chance(500),
                for_ms: short * 2,
            },
            14 | 15 => Self::TakeOver { for_ms: short * 4 },
            16 | 17 => Self::RankPause {
                node,
                for_ms: short,
            },
            18 | 19 => Self::RanksCut {
                node,
                for_ms: short * 2,
            },
            _ => {
                let most = if rng.chance(200) { 600_000 } else { 40_000 };
                Self::ClockJump {
                    by_ms: rng.between(0, 2 * most) as i64 - most as i64,
                }
            }
        }
    }
}
