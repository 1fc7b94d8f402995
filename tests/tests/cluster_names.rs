//! Real processes on loopback: two daemons of one name, and watches that end before their job.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use tests::cluster::job::{TinyJob, with_figures};
use tests::cluster::process::Process;
use tests::cluster::{Cluster, binary};

fn daemon(cluster: &Cluster, folder: &str) -> Result<Process> {
    let mut command = Command::new(binary("worker")?);
    let own = cluster.directory().join(folder);
    std::fs::create_dir_all(&own)?;
    command
        .arg("daemon")
        .env("RETRI_WORKER__NAME", "node")
        .env("RETRI_WORKER__COORDINATOR", cluster.url())
        .env("RETRI_WORKER__METRICS_LISTEN", "127.0.0.1:0")
        .env("RETRI_WORKER__RUN_DIR", own.join("run"))
        .env("RETRI_WORKER__CACHE_DIR", cluster.directory().join("cache"));
    Process::start(folder, command, &own, "attached to the coordinator")
}

/// Cloned machines: the daemon that started first says what happened and leaves with the exit code
/// that keeps systemd from restarting it; the other does the work, and `workers` tells.
#[test]
fn of_two_daemons_of_one_name_the_older_leaves_and_says_why() -> Result<()> {
    let (cluster, dataset) = with_figures(0)?;
    let first = daemon(&cluster, "first")?;
    let second = daemon(&cluster, "second")?;
    let (status, output) = first.wait()?;
    ensure!(status.code() == Some(78), "{status}\n{output}");
    for part in ["another daemon named node", "took its place", "set `name`"] {
        ensure!(output.contains(part), "{part:?} is missing in\n{output}");
    }
    let workers = cluster.ok(&["workers"])?;
    ensure!(
        workers.contains("displaced another daemon of its name at 127.0.0.1:"),
        "{workers}"
    );
    let job = TinyJob {
        steps: 2,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    cluster.wait_done(&cluster.submit(&job.to_toml())?)?;
    second.terminate()?;
    cluster.stop()
}

/// Ctrl-C in a watch, on terminals of every kind: progress is shown, the job goes on, and the user
/// is told how to stop it.
#[test]
fn a_watch_shows_progress_on_every_terminal_and_says_that_the_job_goes_on() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let job = TinyJob {
        steps: 1_000_000,
        checkpoint_every: 1_000_000,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    let id = cluster.submit(&job.to_toml())?;
    cluster.wait_step(&id, 2)?;
    for variables in ["TERM=xterm", "TERM=dumb", "-u TERM", "TERM=xterm COLUMNS=1"] {
        let program = binary("coordinator")?;
        let watch = format!("env {variables} {} watch {id}", program.display());
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--command", &watch, "/dev/null"])
            .env("COORDINATOR_URL", cluster.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting script, of the package util-linux")?;
        let mut output = BufReader::new(script.stdout.take().context("it was asked for")?);
        let mut shown = String::new();
        while !shown.contains("training") {
            let mut line = Vec::new();
            ensure!(
                output.read_until(b'\n', &mut line)? != 0,
                "{variables}: {shown}"
            );
            shown += &String::from_utf8_lossy(&line);
        }
        let mut keyboard = script.stdin.take().context("it was asked for")?;
        keyboard.write_all(b"\x03")?;
        output.read_to_string(&mut shown)?;
        let status = script.wait()?;
        ensure!(status.code() == Some(130), "{variables}: {status}\n{shown}");
        for part in ["goes on", &format!("coordinator cancel {id}")] {
            ensure!(shown.contains(part), "{variables}: {shown:?}");
        }
        let hidden = shown.matches("\x1b[?25l").count();
        let again = shown.matches("\x1b[?25h").count();
        ensure!(hidden == again, "{variables}: the cursor stays hidden");
        if variables != "TERM=xterm" && !variables.contains("COLUMNS") {
            ensure!(!shown.contains('\x1b'), "{variables}: {shown:?}");
        }
    }
    ensure!(cluster.json(&["describe", &id])?["phase"] == "training");

    // Without a reader a watch ends at its next line, and so does not outlive its pipeline.
    let mut watch = cluster.client(cluster.url(), &["watch", &id])?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let status = watch
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .status()?;
    ensure!(status.code() == Some(141), "{status}");
    cluster.ok(&["cancel", &id])?;
    cluster.stop()
}
