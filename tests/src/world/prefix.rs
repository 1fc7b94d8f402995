//! Restores a coordinator from every prefix of the writes of one world: the durable state must be
//! sufficient after a crash at any moment. Each restored coordinator then receives reports of
//! workers without ranks; the machine checks its own invariants after every event.

use super::plan::DETECT_WITHIN_MS;
use super::{Kinds, TraceMode, World};
use coordinator_core::event::{Durable, Input, Record};
use coordinator_core::{Config, Coordinator, WaitingQuotas};
use proto::id::WorkerId;
use proto::message::WorkerReport;
use proto::spec::DeviceKind;

/// How many reports each restored coordinator receives from every worker.
const ROUNDS: u64 = 12;

/// Returns the number of prefixes.
///
/// # Errors
/// The first prefix that cannot be restored, and why.
pub fn restore_every_prefix(seed: u64) -> Result<usize, String> {
    let mut world = World::new(Kinds::All, seed, None, TraceMode::Off);
    world.writes = Some(Vec::new());
    world.run_to_end()?;
    let writes = world.writes.take().unwrap_or_default();
    let mut durable = Durable::default();
    check_restore(&world, &durable)
        .map_err(|what| format!("seed {seed}, nothing written: {what}"))?;
    for (number, records) in writes.iter().enumerate() {
        records
            .iter()
            .cloned()
            .for_each(|record| durable.apply(record));
        check_restore(&world, &durable)
            .map_err(|what| format!("seed {seed}, after write {number}: {what}"))?;
    }
    Ok(writes.len() + 1)
}

fn check_restore(world: &World, durable: &Durable) -> Result<(), String> {
    let config = Config {
        store_url: "memory:".to_owned(),
        detect_within_ms: DETECT_WITHIN_MS,
        quotas: world.plan.quotas.clone(),
        waiting: WaitingQuotas::default(),
        ended_jobs_max: 64,
    };
    let mut machine = Coordinator::restore(config, durable.clone(), 1);
    let mut after = durable.clone();
    for round in 1..=ROUNDS {
        let now = 1 + round * DETECT_WITHIN_MS / 2;
        for node in &world.nodes {
            let worker = WorkerId {
                name: node.name.clone(),
                boot: u64::MAX,
            };
            let report = WorkerReport {
                worker,
                device: DeviceKind::Cpu,
                devices: node.devices,
                ranks: vec![],
                peer_address: None,
                unreached: vec![],
            };
            apply(&mut after, machine.handle(now, Input::Received { report }));
        }
        apply(&mut after, machine.handle(now, Input::Deadline));
        if machine
            .next_deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            return Err("its deadline does not advance".to_owned());
        }
    }
    for (id, before) in &durable.jobs {
        let job = &after.jobs[id];
        if job.generation < before.generation || job.checkpoints.last() != before.checkpoints.last()
        {
            return Err(format!("{id} was {before:?} and is {job:?}"));
        }
        let rests = job.phase.is_over() || job.paused || durable.drained.len() == world.nodes.len();
        if !rests && job.generation == before.generation && job.phase.word() == "running" {
            return Err(format!("{id} still runs on members that are lost: {job:?}"));
        }
    }
    Ok(())
}

fn apply(durable: &mut Durable, effects: Vec<coordinator_core::event::Effect>) {
    for effect in effects {
        if let coordinator_core::event::Effect::Save(records) = effect {
            records
                .into_iter()
                .for_each(|record: Record| durable.apply(record));
        }
    }
}
