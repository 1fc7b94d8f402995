//! What people see of a running job, through a real cluster: a notification of its end, its log
//! with steps, the coordinator's own log, the stacks and the trace of its ranks, `top`, its curve
//! in TensorBoard, and a worker that is drained because its GPU is sick.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::TcpListener;
use std::process::Command;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::nvml::FakeNvml;
use tests::cluster::prometheus::Webhook;
use tests::cluster::{Cluster, Options, http, tool};

/// Far more than are needed.
const LOOKS_MAX: usize = 50;

fn job(dataset: String, workers: u32, steps: u64) -> TinyJob {
    TinyJob {
        name: "seen".to_owned(),
        dataset,
        workers,
        steps,
        checkpoint_every: 10,
    }
}

fn dataset(cluster: &Cluster) -> Result<String> {
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    Ok(dataset)
}

#[test]
fn a_running_job_is_seen_and_its_end_reaches_a_webhook() -> Result<()> {
    let webhook = Webhook::start()?;
    let url = format!("http://{}/hook", webhook.address);
    let cluster = Cluster::start(Options {
        environment: vec![("RETRI_COORDINATOR__NOTIFY__URL".to_owned(), url)],
        ..Options::with_workers(2)
    })?;
    let data = dataset(&cluster)?;
    let id = cluster.submit(&job(data.clone(), 2, 1_000_000).to_toml())?;
    cluster.wait_step(&id, 6)?;
    stacks(&cluster, &id)?;
    trace(&cluster, &id)?;
    let top = cluster.ok(&["top"])?;
    ensure!(top.starts_with("1 jobs run, 0 wait"), "{top}");
    ensure!(top.contains(&id) && top.contains("samples/s"), "{top}");

    let waiting = cluster.submit(&job(data.clone(), 2, 1).to_toml())?;
    let view = cluster.json(&["describe", &waiting])?;
    ensure!(
        view["queue"]["place"] == 1 && view["queue"]["waiting"] == 1,
        "{view}"
    );
    cluster.ok(&["cancel", &waiting])?;

    let log = cluster.ok(&["logs", &id, "--output", "json"])?;
    let lines = log.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>()?;
    ensure!(
        !lines.is_empty() && lines.iter().all(|line| line["dropped"] == 0),
        "{log}"
    );
    let own = cluster.ok(&["logs", "--self", "--tail", "1000"])?;
    ensure!(
        own.contains("generation formed") && own.contains(&id),
        "{own}"
    );
    cluster.ok(&["cancel", &id])?;

    let short = cluster.submit(&job(data, 1, 2).to_toml())?;
    // On a busy machine a generation may restart before.
    let notice = loop {
        let notice: Value = serde_json::from_str(&webhook.next()?)?;
        if notice["event"] == "done" {
            break notice;
        }
    };
    ensure!(notice["job"] == short.as_str(), "{notice}");
    ensure!(notice["name"] == "seen" && notice["step"] == 2, "{notice}");
    let text = notice["text"].as_str().context("a text")?;
    ensure!(text.contains("job is done after step 2"), "{notice}");
    tensorboard(&cluster, &short)
}

/// Prints the scalars of an event file as JSON: name, then steps and values.
const READ: &str = r"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({tag: [[it.step, it.value] for it in events.Scalars(tag)]
                  for tag in events.Tags()['scalars']}))
";

/// The real package reads what `curve --tensorboard` writes.
fn tensorboard(cluster: &Cluster, id: &str) -> Result<()> {
    let folder = cluster.directory().join("runs");
    let path = folder.display().to_string();
    cluster.ok(&["curve", id, "--tensorboard", &path])?;
    let complete = tool::path("tensorboard/complete")?;
    let package = complete.parent().context("the package has a folder")?;
    let read = Command::new("python3")
        .args(["-c", READ])
        .arg(folder.join(id))
        .env("PYTHONPATH", package)
        .output()?;
    let error = String::from_utf8_lossy(&read.stderr);
    ensure!(read.status.success(), "{error}");
    let read: Value = serde_json::from_slice(&read.stdout)?;
    let steps = cluster.ok(&["curve", id, "--format", "jsonl"])?;
    let steps = steps.lines().map(serde_json::from_str::<Value>);
    let steps = steps.collect::<Result<Vec<_>, _>>()?;
    ensure!(steps.len() == 2, "{steps:?}");
    for (tag, field) in [("loss/total", "loss"), ("gradient_norm", "gradient_norm")] {
        let scalars = read[tag].as_array().context("no such tag")?;
        ensure!(scalars.len() == steps.len(), "{tag}: {read}");
        for (scalar, step) in scalars.iter().zip(&steps) {
            ensure!(scalar[0] == step["step"], "{tag}: {read}");
            // The file has single precision.
            #[allow(clippy::cast_possible_truncation)]
            let values = [&scalar[1], &step[field]].map(|it| it.as_f64().map(|it| it as f32));
            ensure!(
                values[0].is_some() && values[0] == values[1],
                "{tag}: {read} {step}"
            );
        }
    }
    Ok(())
}

/// The stack of each rank's model thread goes down to `main`. Code that a library generates at run
/// time hides what called it, so it may take some looks.
fn stacks(cluster: &Cluster, id: &str) -> Result<()> {
    let mut last = Value::Null;
    for _ in 0..LOOKS_MAX {
        last = cluster.json(&["stacks", id])?;
        let ranks = last["ranks"].as_array().context("a list")?;
        ensure!(ranks.len() == 2, "{last}");
        let reaches_main = |rank: &Value| {
            let frames = rank["threads"][0]["frames"].as_array();
            let named = |frame: &Value| frame.as_str().is_some_and(|it| it.contains("main"));
            frames.is_some_and(|frames| frames.iter().any(named))
        };
        for rank in ranks {
            let threads = rank["threads"].as_array().context("threads")?;
            ensure!(3 < threads.len() && rank["note"] == "", "{rank}");
        }
        if ranks.iter().all(reaches_main) {
            return Ok(());
        }
    }
    bail!("no stack reaches main: {last:#}")
}

fn trace(cluster: &Cluster, id: &str) -> Result<()> {
    let file = cluster.directory().join("trace.json");
    let path = file.display().to_string();
    cluster.ok(&["trace", id, "--steps", "2..5", "--out", &path])?;
    let trace: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let events = trace["traceEvents"].as_array().context("a list")?;
    for rank in 0..2 {
        for name in ["forward", "backward", "reduction", "update", "read samples"] {
            let of = |event: &&Value| event["name"] == name && event["pid"] == rank;
            let steps: Vec<u64> = events
                .iter()
                .filter(of)
                .filter_map(|event| event["args"]["step"].as_u64())
                .collect();
            let all = (2..=5).all(|step| steps.contains(&step));
            ensure!(all, "{name} of rank {rank}: {steps:?}");
        }
    }
    let none = cluster.run(&["trace", id, "--steps", "999999..999999", "--out", &path])?;
    let error = none.failure()?;
    ensure!(
        error.contains("no rank remembers steps 999999..999999"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_dead_receiver_costs_nothing_and_a_sick_gpu_drains_its_worker() -> Result<()> {
    // Nobody listens at this address any more.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let url = format!("http://{address}/hook");
    let folder = tempfile::tempdir()?;
    let nvml = FakeNvml::build(folder.path())?;
    let cluster = Cluster::start(Options {
        environment: vec![
            ("RETRI_COORDINATOR__NOTIFY__URL".to_owned(), url),
            nvml.variable(),
        ],
        ..Options::with_workers(1)
    })?;
    let data = dataset(&cluster)?;
    let id = cluster.submit(&job(data.clone(), 1, 2).to_toml())?;
    cluster.wait_done(&id)?;
    let page = http::get(&format!("{}/metrics", cluster.coordinator_metrics()))?;
    for line in [
        "retri_jobs{phase=\"done\"} 1",
        "retri_notifications_total{outcome=\"sent\"} 0",
    ] {
        ensure!(page.contains(line), "{line} is not in\n{page}");
    }

    nvml.set(0, 79)?;
    let id = cluster.submit(&job(data, 1, 1_000_000).to_toml())?;
    let mut watch = cluster.watch(&id)?;
    watch.until("queued because its worker is drained", |view| {
        view.phase == "queued" && view.reason.contains("drained")
    })?;
    let workers = cluster.json(&["workers"])?;
    ensure!(workers[0]["drained"] == true, "{workers}");
    let sick = workers[0]["sick"].as_str().unwrap_or_default();
    ensure!(
        sick == "GPU 1 reported Xid 79: the GPU has fallen off the bus",
        "{sick}"
    );
    cluster.ok(&["cancel", &id])?;
    Ok(())
}
