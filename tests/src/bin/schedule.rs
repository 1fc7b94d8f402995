//! `make bench-schedule`: how many times per second the coordinator's state machine can schedule,
//! with a full cluster and a long queue. Each round cancels one job and submits another; both
//! change the placement of others. And how many reports per second it can handle beside the most
//! jobs of a team that may wait, which must not make reports expensive. Only measures.

use anyhow::{Context, Result};
use coordinator_core::event::{
    About, DatasetPin, Durable, Effect, Input, JobPhase, JobRecord, Record, Reply, RequestId,
};
use coordinator_core::{Config, Coordinator, WaitingQuotas};
use proto::id::{JobId, WorkerId};
use proto::job;
use proto::message::WorkerReport;
use proto::spec::DeviceKind;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

const WORKERS: u32 = 128;
const DEVICES: u32 = 8;
const JOBS: u64 = 200;
const ROUNDS: u64 = 50;
/// Jobs that ended before.
const ENDED: u64 = 100_000;
/// Jobs that wait: the default quota of a team.
const WAITING: u64 = 500;
const WAITING_WORKERS: u32 = 8;
const REPORTS: u64 = 2_000;
/// No time passes, so no deadline expires.
const NOW: u64 = 100_000;

fn main() -> Result<()> {
    let begin = Instant::now();
    let (rate, running) = measure(Durable::default())?;
    println!(
        "BENCH scheduling: {JOBS} jobs, {running} of them running, on {WORKERS} workers of \
         {DEVICES} devices: {rate:.0} schedules per second ({:.1} s)",
        begin.elapsed().as_secs_f64()
    );
    let begin = Instant::now();
    let (with_ended, _) = measure(ended_jobs()?)?;
    println!(
        "BENCH scheduling after {ENDED} ended jobs: {with_ended:.0} schedules per second, {:.2} of \
         the rate without them ({:.1} s, with reading and archiving them once)",
        with_ended / rate,
        begin.elapsed().as_secs_f64()
    );
    let [alone, beside] = [0, WAITING].map(reports_per_second);
    let (alone, beside) = (alone?, beside?);
    println!(
        "BENCH reports of a worker: {alone:.0} per second, {beside:.0} beside {WAITING} jobs that \
         wait"
    );
    Ok(())
}

/// Reports of one worker that change nothing, beside jobs that no worker can run.
fn reports_per_second(waiting: u64) -> Result<f64> {
    let mut machine = Coordinator::restore(config(), Durable::default(), NOW);
    let report = |number, device| WorkerReport {
        worker: WorkerId {
            name: format!("w{number}"),
            boot: 1,
        },
        device,
        devices: DEVICES,
        ranks: vec![],
        peer_address: None,
        unreached: vec![],
    };
    for number in 1..=WAITING_WORKERS {
        let report = report(number, DeviceKind::Cuda);
        machine.handle(NOW, Input::Received { report });
    }
    for number in 1..=waiting {
        submit(&mut machine, number)?;
    }
    let begin = Instant::now();
    for _ in 0..REPORTS {
        let report = report(1, DeviceKind::Cuda);
        machine.handle(NOW, Input::Received { report });
    }
    Ok(REPORTS as f64 / begin.elapsed().as_secs_f64())
}

/// State of a release that kept ended jobs in memory.
fn ended_jobs() -> Result<Durable> {
    let mut machine = Coordinator::restore(config(), Durable::default(), NOW);
    let job = submit(&mut machine, 1)?;
    let request = RequestId(1);
    let mut record = None;
    for effect in machine.handle(NOW, Input::Cancel { request, job }) {
        if let Effect::Save(records) = effect {
            record = records.into_iter().find_map(|record| match record {
                Record::Job(job) => Some(*job),
                _ => None,
            });
        }
    }
    let record = record.context("a cancelled job is saved")?;
    let mut durable = Durable::default();
    durable.counters.jobs = ENDED;
    for number in 1..=ENDED {
        let id = JobId(format!("job-{number}"));
        let job = JobRecord {
            id: id.clone(),
            ..record.clone()
        };
        durable.jobs.insert(id, job);
    }
    Ok(durable)
}

fn config() -> Config {
    Config {
        store_url: "file:///store".to_owned(),
        detect_within_ms: 3_000,
        quotas: BTreeMap::new(),
        waiting: WaitingQuotas::default(),
        ended_jobs_max: 64,
    }
}

/// Schedules per second, and how many jobs run.
fn measure(durable: Durable) -> Result<(f64, usize)> {
    let ended = durable.counters.jobs;
    let mut machine = Coordinator::restore(config(), durable, NOW);
    for number in 1..=WORKERS {
        let report = WorkerReport {
            worker: WorkerId {
                name: format!("w{number}"),
                boot: 1,
            },
            device: DeviceKind::Cpu,
            devices: DEVICES,
            ranks: vec![],
            peer_address: None,
            unreached: vec![],
        };
        machine.handle(NOW, Input::Received { report });
    }
    let mut jobs = VecDeque::new();
    for number in 1..=JOBS {
        jobs.push_back(submit(&mut machine, ended + number)?);
    }
    let begin = Instant::now();
    for number in ended + JOBS + 1..=ended + JOBS + ROUNDS {
        let request = RequestId(2 * number + 1);
        let job = jobs.pop_front().context("the number of jobs is constant")?;
        machine.handle(NOW, Input::Cancel { request, job });
        jobs.push_back(submit(&mut machine, number)?);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let view = machine.view();
    let runs = |phase: &JobPhase| matches!(phase, JobPhase::Running { .. });
    let running = view
        .jobs
        .iter()
        .filter(|job| runs(&job.record.phase))
        .count();
    Ok((2.0 * ROUNDS as f64 / seconds, running))
}

/// Jobs of three priorities, five teams and many sizes.
fn submit(machine: &mut Coordinator, number: u64) -> Result<JobId> {
    let workers_min = 1 + number % 4;
    let text = format!(
        "name = \"job\"\n\
         [resources]\nworkers = {{ min = {workers_min}, max = {} }}\ndevices_per_worker = {}\n\
         priority = {}\nteam = \"team-{}\"\n\
         [data]\ndataset = \"file:///figures\"\nresolution = 32\n\
         [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n\
         [train]\nsteps = 1\nglobal_batch = 256\nmicro_batch = 1\n",
        workers_min + 1 + number % 5,
        1 + number % u64::from(DEVICES),
        number % 3,
        number % 5,
    );
    let event = Input::Submit {
        request: RequestId(2 * number),
        spec: Box::new(job::parse("job.toml", &text, None)?),
        job_toml: text,
        dataset: DatasetPin {
            version: "version".to_owned(),
            ..DatasetPin::default()
        },
        about: About::default(),
        archived: vec![],
    };
    let effects = machine.handle(NOW, event);
    let accepted = effects.into_iter().find_map(|effect| match effect {
        Effect::Reply {
            reply: Reply::Accepted { job },
            ..
        } => Some(job),
        _ => None,
    });
    accepted.with_context(|| format!("job {number} was refused"))
}
