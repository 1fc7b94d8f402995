//! One job of very many units, without faults: measures events per second and the size of the
//! record.

use super::plan::{Noise, Plan, PlannedJob};
use super::units::plan::PlannedUnits;
use super::{Broken, TraceMode, World};
use coordinator_core::event::Record;
use std::collections::BTreeMap;
use std::time::Instant;

/// Devices of each node.
const DEVICES: u32 = 8;
const NODES: [u32; 4] = [DEVICES; 4];
const UNIT_MS: u64 = 10;
/// Every tenth save is measured.
const MEASURE_EVERY: u64 = 10;

/// Measurements of a job of many units.
#[derive(Debug, Clone, PartialEq)]
pub struct ManyUnits {
    pub units: u64,
    pub events: u64,
    pub seconds: f64,
    /// In virtual time.
    pub lasted_ms: u64,
    pub saves: u64,
    /// The largest record of the job, as stored.
    pub record_bytes: usize,
    /// Peak resident memory of this process; None if the system does not report it.
    pub resident_kib: Option<u64>,
}

/// Number and largest size of the saves.
#[derive(Debug, Default)]
pub(crate) struct SaveStats {
    saves: u64,
    record_bytes: usize,
}

impl SaveStats {
    pub(crate) fn on_save(&mut self, records: &[Record]) {
        self.saves += 1;
        if !self.saves.is_multiple_of(MEASURE_EVERY) {
            return;
        }
        for record in records {
            let bytes = serde_json::to_vec(record).map_or(0, |bytes| bytes.len());
            self.record_bytes = self.record_bytes.max(bytes);
        }
    }
}

/// Runs a world with one job of `units` units and the closing unit.
///
/// # Errors
/// A violation that the oracle found.
pub fn many_units(units: u32) -> Result<ManyUnits, Broken> {
    let began = Instant::now();
    let plan = Plan {
        nodes: NODES.to_vec(),
        // The job whose weights the units use.
        jobs: vec![PlannedJob::extra_job(0, 0)],
        evaluations: Vec::new(),
        units: vec![PlannedUnits::plain(units, UNIT_MS, DEVICES)],
        drains: Vec::new(),
        quotas: BTreeMap::new(),
        faults: Vec::new(),
        heal_at: 0,
        noise: Noise::default(),
    };
    let mut world = World::of_plan(plan, 0, None, TraceMode::Off);
    world.finish_within_ms = u64::from(units) * UNIT_MS + super::FINISH_WITHIN_MS;
    world.save_stats = Some(SaveStats::default());
    let outcome = world.run_catching_panics(0)?;
    let save_stats = world.save_stats.unwrap_or_default();
    Ok(ManyUnits {
        units: u64::from(units) + 1,
        events: outcome.events,
        seconds: began.elapsed().as_secs_f64(),
        lasted_ms: world.now,
        saves: save_stats.saves,
        record_bytes: save_stats.record_bytes,
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
