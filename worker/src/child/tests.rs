//! Rank processes as seen by the daemon: how they exit, and what is sent over their sockets.
#![allow(clippy::unwrap_used)]
use super::*;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Step};
use proto::message::{GangOrder, RankPhase, Run, UnitReport};
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncBufReadExt, BufReader};

fn key() -> RankKey {
    RankKey {
        job: JobId("demo-1".into()),
        generation: Generation(3),
        rank: Rank(1),
    }
}

fn assignment() -> Box<Assignment> {
    Box::new(Assignment {
        job: key().job,
        generation: key().generation,
        job_toml: "name = \"demo\"".into(),
        dataset_version: "v".into(),
        first_rank: Rank(1),
        ranks: 1,
        store_url: "file:///store".into(),
        graceful_stop: None,
        detect_within_ms: 1000,
        run: Run::Gang(GangOrder {
            world: 2,
            resume: Some(CheckpointRef {
                step: Step(2),
                generation: Generation(1),
            }),
            ..GangOrder::default()
        }),
    })
}

struct Fixture {
    folder: tempfile::TempDir,
    children: Children,
    inputs: mpsc::Receiver<Input>,
    logs: Logs,
}

/// Children whose program is a shell script. The test takes over the program's part of the
/// protocol.
fn fixture(script: &str) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("worker-rank");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let settings = RankSettings {
        program,
        run_dir: folder.path().into(),
        cache_dir: folder.path().into(),
        address: "127.0.0.1".into(),
    };
    let (sender, inputs) = mpsc::channel(16);
    let logs = Logs::default();
    Fixture {
        children: Children::new(settings, sender, logs.clone()),
        folder,
        inputs,
        logs,
    }
}

async fn connect(fixture: &Fixture) -> BufReader<UnixStream> {
    let path = fixture
        .folder
        .path()
        .join(format!("{}-1.sock", std::process::id()));
    loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => return BufReader::new(stream),
            // The task that binds it has not run yet.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn order(stream: &mut BufReader<UnixStream>) -> RankOrder {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn a_process_that_fails_is_reported_with_its_status_last_line_and_output() {
    let mut fixture = fixture("echo on the way; echo oh no >&2; exit 7");
    fixture.children.spawn(key(), 0, assignment());
    let Some(Input::RankExited {
        key: found,
        success,
        outcome,
    }) = fixture.inputs.recv().await
    else {
        panic!("an exit")
    };
    assert_eq!(
        (found, success, outcome.as_str()),
        (key(), false, "exit status 7; its last line: oh no")
    );
    let mut lines: Vec<String> = fixture
        .logs
        .take(usize::MAX)
        .into_iter()
        .map(|line| line.text)
        .collect();
    lines.sort();
    assert_eq!(lines, ["oh no", "on the way"]);
}

#[tokio::test]
async fn a_program_that_is_missing_is_reported_as_an_exit() {
    let mut fixture = fixture("");
    std::fs::remove_file(fixture.folder.path().join("worker-rank")).unwrap();
    fixture.children.spawn(key(), 0, assignment());
    let Some(Input::RankExited {
        success: false,
        outcome,
        ..
    }) = fixture.inputs.recv().await
    else {
        panic!("an exit")
    };
    assert!(
        outcome.starts_with("cannot start ") && outcome.contains("worker-rank"),
        "{outcome}"
    );
}

#[tokio::test]
async fn orders_go_down_reports_come_up_and_a_kill_ends_it() {
    let mut fixture = fixture("exec tail -f /dev/null");
    fixture.children.spawn(key(), 4, assignment());
    let mut stream = connect(&fixture).await;
    let first = order(&mut stream).await;
    assert_eq!(
        first,
        RankOrder::Assignment {
            assignment: assignment(),
            rank: Rank(1),
            device: 4
        }
    );
    let known = Box::new(Assignment {
        run: Run::Gang(GangOrder {
            store_address: Some("127.0.0.1:9".into()),
            ..GangOrder::default()
        }),
        ..*assignment()
    });
    fixture.children.update(&key(), Rank(0), 4, known.clone());
    assert_eq!(
        order(&mut stream).await,
        RankOrder::Assignment {
            assignment: known,
            rank: Rank(0),
            device: 4
        }
    );
    fixture.children.stop(&key());
    assert_eq!(order(&mut stream).await, RankOrder::Stop);
    let report = RankReport {
        job: key().job,
        generation: key().generation,
        rank: key().rank,
        phase: RankPhase::Training,
        store_address: None,
        steps: vec![],
        shards: vec![],
        digests: vec![],
        units: UnitReport::default(),
        activity: None,
        totals: None,
    };
    let line = format!("{}\n", serde_json::to_string(&report).unwrap());
    stream.get_mut().write_all(line.as_bytes()).await.unwrap();
    assert_eq!(
        fixture.inputs.recv().await,
        Some(Input::RankReported {
            process: key(),
            report: Box::new(report)
        })
    );
    fixture.children.kill(&key());
    let outcome = "killed by signal 9".to_owned();
    assert_eq!(
        fixture.inputs.recv().await,
        Some(Input::RankExited {
            key: key(),
            success: false,
            outcome
        })
    );
}

#[tokio::test]
async fn a_process_that_reports_for_another_job_is_killed() {
    let mut fixture = fixture("exec tail -f /dev/null");
    fixture.children.spawn(key(), 0, assignment());
    let mut stream = connect(&fixture).await;
    stream
        .get_mut()
        .write_all(b"{\"job\":\"other-1\"}\n")
        .await
        .unwrap();
    // Closes the stream as the process would.
    drop(stream);
    let input = fixture.inputs.recv().await;
    assert!(
        matches!(input, Some(Input::RankExited { success: false, .. })),
        "{input:?}"
    );
}

#[tokio::test]
async fn only_this_user_may_answer_as_a_rank() {
    let own = rustix::process::geteuid().as_raw();
    let (stream, _rank) = UnixStream::pair().unwrap();
    assert_eq!(other_user(&stream, own), None);
    let other = format!("user {own}, this daemon is user {}", own + 1);
    assert_eq!(other_user(&stream, own + 1), Some(other));
}
