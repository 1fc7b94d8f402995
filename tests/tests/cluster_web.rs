//! The coordinator's pages in a real browser, on a cluster with a job that trains, one that waits,
//! one that has failed, and twins that were evaluated while they trained: content, live updates,
//! keyboard, 400 pixels, both themes, and texts of people that would be markup. `make screens` sets
//! SCREENS to a folder, which then gets a picture of each.

use anyhow::{Context, Result, ensure};
use proto::phase::Phase;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use tests::cluster::job::{TinyJob, clip, wait_training, with_figures};
use tests::cluster::{Cluster, checkout, process, tool};

/// What a label, a note and an owner may be.
const MARKUP: &str = "<b>\"bold\"</b><img src=x onerror=alert(1)>";

/// Two trainings that draw the same and learn at another rate, evaluated at steps 96 and 192: their
/// ids, and that of their last evaluation.
fn twins(cluster: &Cluster, dataset: &str) -> Result<[(String, String); 2]> {
    let clip = clip(cluster, dataset)?;
    // Prompts of people may hold anything.
    let plan = format!(
        "[evaluate]\nin_domain = {{ trained = 1 }}\nout_of_domain = {{ held_out = 2 }}\nprompts = \
         [\"1girl, smile\", '{MARKUP}']\nseeds = [3]\nsteps = 2\nguidance = 3.0\n\
         clip = \"{clip}\"\n"
    );
    let job = TinyJob {
        name: "twin-a".to_owned(),
        steps: 192,
        checkpoint_every: 96,
        ..TinyJob::forty_steps(dataset, 1)
    };
    let text = job
        .to_toml()
        .replace("holdout = 0.25", "holdout = 0.5")
        .replace("[checkpoint]", "evaluate_every = 96\n[checkpoint]");
    // One after the other, so that a device is free for each evaluation. The first begins long
    // before the second is due, which would take its place.
    let evaluated = |text: &str| -> Result<(String, String)> {
        let job = cluster.submit(&format!("{text}{plan}"))?;
        cluster.wait_done(&job)?;
        // The last one is submitted when the job has ended.
        let view = loop {
            let view = cluster.wait(&job, "its view", |_| true)?;
            if view.evaluations.len() == 2 {
                break view;
            }
        };
        for it in &view.evaluations {
            cluster.wait_done(&it.job)?;
        }
        let last = view.evaluations.last().context("it has two")?;
        Ok((job, last.job.clone()))
    };
    let other = text.replace("twin-a", "twin-b").replace("1e-3", "3e-3");
    Ok([evaluated(&text)?, evaluated(&other)?])
}

/// Leaves a doctor's findings of the first worker where its page looks for them.
fn examine(cluster: &Cluster) -> Result<()> {
    let folder = cluster.directory().join("store/workers/w1");
    std::fs::create_dir_all(&folder)?;
    let check = |name: &str, ok: bool, found: &str| {
        serde_json::json!({
            "name": name, "ok": ok, "found": found,
        })
    };
    let long = format!("{MARKUP}{}", "x".repeat(10_000));
    let findings = serde_json::json!({
        "ok": false,
        "at_ms": 1_769_846_400_000_u64,
        "checks": [
            check("libtorch", true, "2.9.0, CPU build"),
            check("metrics port", false, &long),
        ],
    });
    std::fs::write(folder.join("doctor.json"), findings.to_string())?;
    Ok(())
}

#[test]
fn pages_work_in_a_browser() -> Result<()> {
    let (cluster, dataset) = with_figures(2)?;
    let twins = twins(&cluster, &dataset)?;
    examine(&cluster)?;
    let tiny = TinyJob {
        name: "fails".to_owned(),
        dataset,
        workers: 1,
        steps: 1_000_000,
        checkpoint_every: 5,
    };
    let limited = tiny
        .to_toml()
        .replace("[train]", "[train]\ntime_limit = \"1s\"");
    let failed = cluster.submit(&limited)?;
    cluster.wait(&failed, "its end", |view| view.phase == Phase::Failed)?;

    let endless = TinyJob {
        name: "runs".to_owned(),
        workers: 2,
        ..tiny.clone()
    };
    let file = cluster.write_job(&endless.to_toml())?;
    let label = format!("paper={MARKUP}");
    let running = cluster.ok(&[
        "submit", &file, "--owner", MARKUP, "--note", MARKUP, "--label", &label,
    ])?;
    let running = running
        .lines()
        .next()
        .context("submit names the job")?
        .to_owned();
    wait_training(&cluster, &running, 2)?;
    let waits = TinyJob {
        name: "waits".to_owned(),
        ..endless.clone()
    };
    let waiting = cluster.submit(&waits.to_toml())?;

    let jobs = serde_json::json!({
        "running": running, "waiting": waiting, "failed": failed,
        "twins": [&twins[0].0, &twins[1].0], "evaluation": twins[0].1,
    });
    let node = tool::path("browser/node")?;
    let browser = node.parent().context("the tool is in a folder")?;
    let mut looking = Command::new(&node)
        .arg(checkout().join("tests/web/pages.mjs"))
        .args(["check", cluster.web(), &jobs.to_string()])
        .args(std::env::var("SCREENS"))
        .env("BROWSER", browser)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting node")?;
    let mut answers = looking.stdin.take().context("stdin is a pipe")?;
    let lines = BufReader::new(looking.stdout.take().context("stdout is a pipe")?).lines();
    let mut said = String::new();
    for line in lines {
        let line = line?;
        match line.strip_prefix("CAUSE ") {
            Some("incident") => cluster.kill_rank(0)?,
            Some("stuck") => process::signal("STOP", cluster.rank(0)?)?,
            Some("job") => {
                let newcomer = TinyJob {
                    name: "newcomer".to_owned(),
                    ..endless.clone()
                };
                cluster.submit(&newcomer.to_toml())?;
            }
            _ => {
                said += &format!("{line}\n");
                continue;
            }
        }
        writeln!(answers, "done")?;
    }
    let status = looking.wait()?;
    ensure!(
        status.success() && said.ends_with("DONE\n"),
        "{status}:\n{said}"
    );
    cluster.stop()
}
