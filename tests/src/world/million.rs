//! One job of very many units and nothing that goes wrong: how much a machine does in a second, and
//! how much it holds.

use super::plan::{Noise, Plan, PlannedJob};
use super::units::plan::PlannedUnits;
use super::{Broken, Story, World};
use coordinator_core::event::Record;
use std::collections::BTreeMap;
use std::time::Instant;

/// Nodes and devices of each.
const DEVICES: u32 = 8;
const NODES: [u32; 4] = [DEVICES; 4];
const UNIT_MS: u64 = 10;
/// Records are measured once in so many saves.
const MEASURED: u64 = 10;

/// How a job of many units went.
#[derive(Debug, Clone, PartialEq)]
pub struct Many {
    pub units: u64,
    pub events: u64,
    pub seconds: f64,
    /// Virtual.
    pub lasted_ms: u64,
    pub saves: u64,
    /// Largest record of the job, as it is stored.
    pub record_bytes: usize,
    /// Largest resident memory of this process so far; None where the system does not say.
    pub resident_kib: Option<u64>,
}

/// What is saved of the job.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    saves: u64,
    record_bytes: usize,
}

impl Measured {
    pub(crate) fn on_save(&mut self, records: &[Record]) {
        self.saves += 1;
        if !self.saves.is_multiple_of(MEASURED) {
            return;
        }
        for record in records {
            let bytes = serde_json::to_vec(record).map_or(0, |bytes| bytes.len());
            self.record_bytes = self.record_bytes.max(bytes);
        }
    }
}

/// Lives through a world with one job of so many units, and one more that closes it.
///
/// # Errors
/// What the oracle did not accept.
pub fn many_units(units: u32) -> Result<Many, Broken> {
    let began = Instant::now();
    let plan = Plan {
        nodes: NODES.to_vec(),
        // Somebody must have trained what the units are made with.
        jobs: vec![PlannedJob::encore(0, 0)],
        units: vec![PlannedUnits::plain(units, UNIT_MS, DEVICES)],
        drains: Vec::new(),
        quotas: BTreeMap::new(),
        faults: Vec::new(),
        heal_at: 0,
        noise: Noise::default(),
    };
    let mut world = World::of_plan(plan, 0, None, Story::Dropped);
    world.patience_ms = u64::from(units) * UNIT_MS + super::PATIENCE_MS;
    world.measured = Some(Measured::default());
    let outcome = world.live_or_break(0)?;
    let measured = world.measured.unwrap_or_default();
    Ok(Many {
        units: u64::from(units) + 1,
        events: outcome.events,
        seconds: began.elapsed().as_secs_f64(),
        lasted_ms: world.now,
        saves: measured.saves,
        record_bytes: measured.record_bytes,
        resident_kib: resident_kib(),
    })
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
