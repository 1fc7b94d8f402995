//! The coordinator's pages in a real browser, on a cluster with a job that trains, one that waits
//! and one that has failed: content, live updates, keyboard, 400 pixels, both themes, and texts of
//! people that would be markup.

use anyhow::{Context, Result, ensure};
use proto::phase::Phase;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use tests::cluster::job::{TinyJob, wait_training, with_figures};
use tests::cluster::{checkout, tool};

/// What a label, a note and an owner may be.
const MARKUP: &str = "<b>\"bold\"</b><img src=x onerror=alert(1)>";

#[test]
fn pages_work_in_a_browser() -> Result<()> {
    let (cluster, dataset) = with_figures(2)?;
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

    let jobs = serde_json::json!({ "running": running, "waiting": waiting, "failed": failed });
    let node = tool::path("browser/node")?;
    let browser = node.parent().context("the tool is in a folder")?;
    let mut looking = Command::new(&node)
        .arg(checkout().join("tests/web/pages.mjs"))
        .args(["check", cluster.web(), &jobs.to_string()])
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
