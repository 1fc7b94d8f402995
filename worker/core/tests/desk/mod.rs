//! A test harness for the daemon's machine: inputs in, effects out. Time only passes if a test says
//! so.
#![allow(dead_code, reason = "every test file uses its own part")]

use proto::checkpoint::ShardEntry;
use proto::environment::RankEnvironment;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{
    Activity, Assignment, DesiredState, GangOrder, Peer, PhaseSeconds, RankPhase, RankReport, Run,
    ShardReport, Stage, StepReport, UnitOrder, UnitRange, UnitReport, WorkerReport,
};
use proto::reason::RankFailure;
use proto::spec::DeviceKind;
use std::collections::BTreeMap;
use worker_core::event::{Effect, Input, RankKey};
use worker_core::{Config, Worker};

pub(crate) const DETECT_WITHIN_MS: u64 = 900;

/// A node with two devices, connected.
pub(crate) struct Desk {
    pub(crate) machine: Worker,
    pub(crate) now: u64,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let config = Config {
            worker: id(7),
            device: DeviceKind::Cpu,
            devices: 2,
            peer_address: Some("10.0.0.1:7073".to_owned()),
        };
        let mut desk = Self {
            machine: Worker::new(config, 5_000),
            now: 5_000,
        };
        desk.handle(Input::Connected);
        desk
    }

    pub(crate) fn handle(&mut self, input: Input) -> Vec<Effect> {
        self.machine.handle(self.now, input)
    }

    /// Lets this time pass, waking the machine at every deadline.
    pub(crate) fn wait(&mut self, ms: u64) -> Vec<Effect> {
        let end = self.now + ms;
        let mut effects = Vec::new();
        while self.now < end {
            self.now = self.machine.next_deadline().unwrap_or(end).min(end);
            effects.extend(self.handle(Input::Deadline));
            assert!(
                self.machine
                    .next_deadline()
                    .is_none_or(|deadline| self.now < deadline)
            );
        }
        effects
    }

    pub(crate) fn desire(&mut self, assignments: Vec<Assignment>) -> Vec<Effect> {
        self.desire_among(assignments, vec![])
    }

    pub(crate) fn desire_among(
        &mut self,
        assignments: Vec<Assignment>,
        peers: Vec<Peer>,
    ) -> Vec<Effect> {
        self.handle(Input::Desired(DesiredState {
            worker: id(7),
            assignments,
            detect_within_ms: DETECT_WITHIN_MS,
            peers,
            refused: vec![],
            successor: None,
        }))
    }

    pub(crate) fn report(&mut self, key: &RankKey, phase: RankPhase) -> Vec<Effect> {
        self.report_as(key, key, phase)
    }

    /// Reports as `key` from the process that was started as the rank `process`.
    pub(crate) fn report_as(
        &mut self,
        process: &RankKey,
        key: &RankKey,
        phase: RankPhase,
    ) -> Vec<Effect> {
        self.handle(Input::RankReported {
            process: process.clone(),
            report: Box::new(rank_report(key, phase)),
        })
    }

    pub(crate) fn exit(&mut self, key: &RankKey, success: bool, outcome: &str) -> Vec<Effect> {
        self.handle(Input::RankExited {
            key: key.clone(),
            success,
            outcome: outcome.to_owned(),
        })
    }

    /// The phase that is reported for the rank.
    pub(crate) fn phase(&self, key: &RankKey) -> RankPhase {
        let view = self.machine.view();
        view.ranks
            .iter()
            .find(|rank| rank.key == key)
            .expect("the rank is known")
            .report
            .phase
            .clone()
    }
}

pub(crate) fn id(boot: u64) -> WorkerId {
    WorkerId {
        name: "w1".to_owned(),
        boot,
    }
}

pub(crate) fn job() -> JobId {
    JobId("toy-1".to_owned())
}

pub(crate) fn key(generation: u64, rank: u32) -> RankKey {
    RankKey {
        job: job(),
        generation: Generation(generation),
        rank: Rank(rank),
    }
}

pub(crate) fn assignment(generation: u64, first_rank: u32, ranks: u32) -> Assignment {
    Assignment {
        job: job(),
        generation: Generation(generation),
        job_toml: String::new(),
        dataset_version: String::new(),
        first_rank: Rank(first_rank),
        ranks,
        store_url: String::new(),
        graceful_stop: None,
        detect_within_ms: DETECT_WITHIN_MS,
        run: gang(GangOrder::default()),
    }
}

/// A gang of four ranks.
pub(crate) fn gang(order: GangOrder) -> Run {
    Run::Gang(GangOrder { world: 4, ..order })
}

/// An assignment of a job of units with the leases of each rank.
pub(crate) fn units(generation: u64, ranks: u32, leases: &[(u32, UnitRange)]) -> Assignment {
    let mut all: BTreeMap<Rank, Vec<UnitRange>> = BTreeMap::new();
    for (rank, range) in leases {
        all.entry(Rank(*rank)).or_default().push(*range);
    }
    Assignment {
        run: Run::Units(UnitOrder {
            models: Vec::new(),
            source: None,
            leases: all,
        }),
        ..assignment(generation, 0, ranks)
    }
}

pub(crate) fn rank_report(key: &RankKey, phase: RankPhase) -> RankReport {
    let RankKey {
        job,
        generation,
        rank,
    } = key.clone();
    RankReport {
        job,
        generation,
        rank,
        phase,
        store_address: None,
        steps: vec![],
        shards: vec![],
        digests: vec![],
        units: UnitReport::default(),
        activity: None,
        totals: None,
    }
}

pub(crate) fn step(step: u64) -> StepReport {
    StepReport {
        step: Step(step),
        loss: 1.0,
        terms: Vec::new(),
        gradient_norm: 1.0,
        learning_rate: 0.1,
        samples: 1,
        seconds: PhaseSeconds::default(),
        peak_memory_bytes: 0,
        peak_device_memory_bytes: 0,
        skipped_steps: 0,
        loss_scale: 1.0,
    }
}

pub(crate) fn shard(step: u64) -> ShardReport {
    let shard = ShardEntry {
        path: "rank-0.safetensors".to_owned(),
        size_bytes: 1,
        sha256: "00".to_owned(),
    };
    ShardReport {
        step: Step(step),
        shard,
        init_digest: None,
        environment: String::new(),
        rank_environment: RankEnvironment::default(),
    }
}

pub(crate) fn failed(failure: RankFailure) -> RankPhase {
    RankPhase::Failed { failure }
}

/// The process ended without an error of its own.
pub(crate) fn exited(outcome: &str, success: bool) -> RankPhase {
    failed(RankFailure::Exited {
        outcome: outcome.to_owned(),
        success,
    })
}

/// Killed after 900 ms without a heartbeat, in this phase and at this step and micro-batch.
pub(crate) fn silent(phase: &str, at: Option<(u64, u32)>) -> RankPhase {
    let activity = at.map(|(step, micro_batch)| Activity {
        step: Step(step),
        stage: Stage::MicroBatch(micro_batch),
        for_ms: 50,
    });
    failed(RankFailure::Silent {
        for_ms: 900,
        phase: phase.to_owned(),
        activity,
    })
}

pub(crate) fn error(text: &str) -> RankPhase {
    RankPhase::Failed {
        failure: RankFailure::error(text, false),
    }
}

pub(crate) fn reports(effects: &[Effect]) -> Vec<WorkerReport> {
    let report = |effect: &Effect| match effect {
        Effect::Report(report) => Some(report.clone()),
        _ => None,
    };
    effects.iter().filter_map(report).collect()
}

pub(crate) fn spawned(effects: &[Effect]) -> Vec<(RankKey, u32)> {
    let spawn = |effect: &Effect| match effect {
        Effect::Spawn { key, device, .. } => Some((key.clone(), *device)),
        _ => None,
    };
    effects.iter().filter_map(spawn).collect()
}
