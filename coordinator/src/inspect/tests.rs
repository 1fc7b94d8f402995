//! Children that misbehave. The real child is tested in `coordinator/tests/inspect.rs`.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::fixture;
use proto::spec::Work;

/// A shell script in the place of `coordinator inspect`.
fn inspector(script: &str, within: Duration) -> Inspector {
    let arguments = vec!["-c".to_owned(), script.to_owned()];
    let path = "/bin/sh".into();
    Inspector::with(Program::Child { path, arguments }, within)
}

fn spec(dataset: &str) -> JobSpec {
    proto::job::parse("job.toml", &fixture::job_toml(dataset), None).unwrap()
}

async fn pin(inspector: &Inspector, spec: &JobSpec) -> Result<String, String> {
    let Work::Train(work) = &spec.work else {
        panic!("the fixture trains");
    };
    inspector
        .pin(spec, work)
        .await
        .map(|pinned| pinned.version)
        .map_err(|error| error.to_string())
}

async fn refusal(script: &str, within: Duration) -> String {
    let inspector = inspector(script, within);
    pin(&inspector, &spec("file:///data")).await.unwrap_err()
}

#[tokio::test]
async fn however_a_child_ends_the_refusal_names_file_and_reason() {
    let long = Duration::from_secs(600);
    let end = "; `coordinator dataset verify file:///data` lists its faults";
    let reading = r#"echo '{"reading":"a.parquet"}'; "#;
    for (script, reason) in [
        (
            "echo 'thread main panicked' >&2; echo 'at a line' >&2; exit 101",
            "the program that read \"a.parquet\" of file:///data ended with exit status 101: at a \
             line",
        ),
        (
            "echo 'memory allocation of 8589934592 bytes failed' >&2; kill -ABRT $$",
            "reading \"a.parquet\" of file:///data takes more than 1024 MiB of memory",
        ),
        (
            "kill -SEGV $$",
            "the program that read \"a.parquet\" of file:///data was ended by signal 11: without a \
             message",
        ),
        (
            "echo '{\"answer\":{\"found\":{}}}'; exit 0",
            "the program that read \"a.parquet\" of file:///data ended with exit status 0: without \
             a message",
        ),
    ] {
        let error = refusal(&format!("{reading}{script}"), long).await;
        assert_eq!(error, format!("data.dataset: {reason}{end}"));
    }
    let error = refusal("exit 3", long).await;
    assert!(
        error.contains("that read file:///data ended with exit status 3"),
        "{error}"
    );
    // It writes without end: its pipe is closed.
    let error = refusal(&format!("{reading} exec yes"), long).await;
    assert!(error.contains("\"a.parquet\""), "{error}");
}

#[tokio::test]
async fn a_child_that_takes_too_long_is_ended() {
    let error = refusal("exec sleep 100000", Duration::from_millis(100)).await;
    let expected = "data.dataset: reading file:///data took longer than 0.1 s; \
                    `coordinator dataset verify file:///data` lists its faults";
    assert_eq!(error, expected);
}

/// The client has hung up, or the time is over: either way the future ends.
#[tokio::test]
async fn with_the_child_its_whole_group_ends() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "sleep 100000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait",
        pids.display()
    );
    let inspector = inspector(&script, Duration::from_secs(600));
    let job = spec("file:///data");
    let started = async {
        while !pids.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = started => {}
        ended = pin(&inspector, &job) => panic!("{ended:?}"),
    }
    for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
        let is_running = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = status
                .rsplit(')')
                .next()
                .and_then(|it| it.split_whitespace().next());
            // One that was killed may still wait for its parent to take note.
            !matches!(state, None | Some("Z" | "X"))
        };
        while is_running() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_answer_is_kept_until_a_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    let (file, count) = (dir.path().join("dataset.json"), dir.path().join("count"));
    std::fs::write(&file, "one").unwrap();
    let stamp = stamp(&url, "dataset.json").await.unwrap();
    let answer = Answer::Found {
        pinned: Pinned {
            version: "v".repeat(64),
            ..Pinned::default()
        },
        files: vec![(url.clone(), "dataset.json".to_owned(), stamp)],
    };
    let line = serde_json::to_string(&child::Line::Answer(answer)).unwrap();
    let script = format!(
        "cat > /dev/null; echo x >> {}; echo '{line}'",
        count.display()
    );
    let inspector = inspector(&script, Duration::from_secs(600));
    let looks = || std::fs::read_to_string(&count).unwrap().lines().count();
    let job = spec(&url);
    for _ in 0..3 {
        assert_eq!(pin(&inspector, &job).await.unwrap(), "v".repeat(64));
        assert_eq!(looks(), 1);
    }
    // The same data set, and another question about it.
    let text = fixture::job_toml(&url).replace("resolution = 32", "resolution = 64");
    let other = proto::job::parse("job.toml", &text, None).unwrap();
    pin(&inspector, &other).await.unwrap();
    assert_eq!(looks(), 2);
    std::fs::write(&file, "other").unwrap();
    pin(&inspector, &job).await.unwrap();
    assert_eq!(looks(), 3);
}

#[tokio::test]
async fn more_submits_than_can_wait_are_refused_at_once() {
    let inspector = inspector("exec sleep 100000", Duration::from_secs(600));
    let _all = inspector.inner.waiting.acquire_many(66).await.unwrap();
    let error = pin(&inspector, &spec("file:///data")).await.unwrap_err();
    assert!(error.contains("64 jobs already wait"), "{error}");
}
