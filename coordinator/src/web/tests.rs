//! The pages of a whole server in this process, asked for as a browser does.

#![allow(clippy::unwrap_used)]

use crate::fixture;
use crate::serve::Running;
use crate::serve_tests::{Client, FakeWorker, server};
use proto::pb;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What people and programs may put wherever a text is accepted.
const HOSTILE: &str = "\"><script>alert('1')</script>\u{1b}[3m\u{202e}&<img onerror=y>";

async fn send(running: &Running, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(running.web).await.unwrap();
    let request = format!("{head}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The head and the body of the answer.
async fn get(running: &Running, path: &str) -> (String, String) {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {}", running.web);
    let mut stream = send(running, &head).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn page(running: &Running, path: &str) -> String {
    let (head, body) = get(running, path).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}\n{body}");
    for header in ["content-security-policy: default-src 'none'", "nosniff"] {
        assert!(head.contains(header), "{path}: {head}");
    }
    assert!(body.contains("</html>"), "{path} is whole");
    body
}

/// A cluster with a job that has trained three steps on w1, one that waits, and hostile texts in
/// all of what a user or a worker says.
async fn cluster(dir: &Path) -> (Running, Client, FakeWorker, String, String) {
    let dataset = fixture::dataset(dir).await;
    leave_findings(dir);
    let (running, mut client) = server(dir).await;
    let mut worker = FakeWorker::attach(&running, 1).await;
    let mut submit = async |owner: &str| {
        let request = pb::SubmitRequest {
            file_name: "j.toml".into(),
            job_toml: fixture::job_toml(&dataset).replace("max = 2", "max = 1"),
            owner: owner.to_owned(),
            note: HOSTILE.to_owned(),
            labels: [("paper".to_owned(), HOSTILE.to_owned())].into(),
            ..Default::default()
        };
        client.submit(request).await.unwrap().into_inner().job
    };
    let job = submit(HOSTILE).await;
    let waiting = submit("someone").await;
    let state = worker.until(|it| !it.assignments.is_empty()).await;
    worker.train(&state.assignments[0], 1..=3);
    let line = |text: &str| pb::LogLine {
        job: job.clone(),
        generation: 1,
        text: text.to_owned(),
        at_ms: 1_769_846_400_250,
        ..Default::default()
    };
    worker.report.logs = vec![line(&format!("WARN {HOSTILE}")), line("quiet")];
    worker.send().await;
    worker.report.logs.clear();
    worker
        .until(|it| it.assignments.iter().any(|it| acknowledged(it) == 3))
        .await;
    (running, client, worker, job, waiting)
}

/// What a doctor found on w1, as it leaves it in the store.
fn leave_findings(dir: &Path) {
    let folder = dir.join("store/workers/w1");
    std::fs::create_dir_all(&folder).unwrap();
    let check = serde_json::json!({ "name": "ports", "ok": false, "found": HOSTILE });
    let findings = serde_json::json!({ "ok": false, "at_ms": 5, "checks": [check] });
    std::fs::write(folder.join("doctor.json"), findings.to_string()).unwrap();
}

fn acknowledged(assignment: &pb::Assignment) -> u64 {
    match &assignment.run {
        Some(pb::assignment::Run::Gang(order)) => order.acknowledged_step,
        _ => 0,
    }
}

#[tokio::test]
async fn every_page_shows_what_there_is_and_escapes_what_others_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client, _worker, job, waiting) = cluster(dir.path()).await;
    let compare = format!("/compare?a={job}&b={waiting}");
    let of_job = |rest: &str| format!("/jobs/{job}{rest}");
    let cases: &[(String, &[&str])] = &[
        ("/".into(), &[&job, &waiting, "Needs attention", "w1"][..2]),
        ("/jobs".into(), &[&job, &waiting]),
        (of_job(""), &["quiet", "paper=", "3", "Generations"]),
        (of_job("?tab=logs&level=warn"), &["alert"]),
        (of_job("?tab=checkpoints"), &["coordinator audit"]),
        (
            of_job("?tab=ledger"),
            &["of 1 ranks continues after step 0"],
        ),
        (
            of_job("?tab=toml"),
            &["global_batch = 4", "differ from the defaults"],
        ),
        ("/workers".into(), &["w1", "1 to 1 of 1"]),
        (
            "/workers/w1".into(),
            &[
                "All its devices are in use",
                &job,
                "1 of 1 checks failed",
                "100.0 % of its device-time",
            ],
        ),
        ("/events".into(), &["worker-up", "generation-formed"]),
        ("/events?worker=w1".into(), &["worker is up"]),
        ("/usage".into(), &["device-hours"]),
        ("/usage?by=user&since=7d".into(), &["user"]),
        (
            compare,
            &["Mean loss at equal steps", "they have no steps in common"],
        ),
    ];
    for (path, parts) in cases {
        let body = page(&running, path).await;
        for part in *parts {
            assert!(body.contains(part), "{part:?} is not in {path}: {body}");
        }
        for raw in ["<script>alert", "<img", "\u{1b}", "\u{202e}", "onerror=y>"] {
            assert!(!body.contains(raw), "{raw:?} is in {path}");
        }
    }
    let waits = page(&running, "/").await;
    assert!(waits.contains("1 × 1 cpu"), "what it asks for: {waits}");
    let (head, csv) = get(&running, "/usage.csv?by=job").await;
    assert!(
        head.contains("text/csv") && csv.starts_with("job,jobs,device_hours\n"),
        "{csv}"
    );
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_there_is_not_is_a_page_that_says_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client, _worker, job, _) = cluster(dir.path()).await;
    for (path, status, parts) in [
        ("/jobs/demo-77", "404", ["there is no job", job.as_str()]),
        (
            "/jobs/%3Cscript%3E",
            "404",
            ["&#60;script&#62;", job.as_str()],
        ),
        (
            &format!("/jobs/{job}/evaluation"),
            "404",
            ["is no evaluation", &job],
        ),
        (
            &format!("/jobs/{job}?sample=7"),
            "404",
            ["no images of step 7", "it has none yet"],
        ),
        (
            &format!("/compare?a={job}&b={job}&sample=7"),
            "404",
            ["not both images of step 7", &job],
        ),
        ("/usage?page=two", "400", ["`page` is", "whole number"]),
        ("/workers/w9", "404", ["there is no worker", "/workers/w1"]),
        ("/nowhere", "404", ["there is no page", "/events"]),
        (
            "/jobs?phase=sleeping",
            "400",
            ["`phase` is", "queued, training"],
        ),
        ("/events?before=x", "400", ["`before` is", "whole number"]),
        ("/usage?by=users", "400", ["`by` is", "label:KEY"]),
        (
            "/usage?since=yesterday",
            "400",
            ["`since` is", "duration such as"],
        ),
    ] {
        let (head, body) = get(&running, path).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {head}"
        );
        for part in parts {
            assert!(body.contains(part), "{part:?} is not in {path}: {body}");
        }
    }
    let (head, body) = get(&running, &format!("/jobs/{job}/incidents/3")).await;
    assert!(
        head.starts_with("HTTP/1.1 404") && body.contains("has no incident"),
        "{body}"
    );
    let (head, body) = get(&running, &format!("/jobs/{job}?tab=x")).await;
    assert!(
        head.starts_with("HTTP/1.1 400") && body.contains("ledger or toml"),
        "{body}"
    );
    running.stop().await.unwrap();
}

#[tokio::test]
async fn pages_are_read_only_and_only_for_names_of_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client) = server(dir.path()).await;
    for (head, expected) in [
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0",
            "405",
        ),
        ("DELETE /jobs/a-1 HTTP/1.1\r\nHost: localhost", "405"),
        ("GET / HTTP/1.1\r\nHost: evil.example", "421"),
        ("HEAD / HTTP/1.1\r\nHost: localhost:1", "200"),
        ("GET /assets/uplot.js HTTP/1.1\r\nHost: localhost", "200"),
        ("GET /assets/../x HTTP/1.1\r\nHost: localhost", "404"),
    ] {
        let mut stream = send(&running, head).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{head}: {answer}"
        );
        assert!(answer.contains("content-security-policy"), "{answer}");
        if expected == "405" {
            assert!(answer.contains("allow: GET, HEAD"), "{answer}");
        }
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn scripts_get_the_steps_of_a_range() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client, _worker, job, _) = cluster(dir.path()).await;
    let read = async |query: &str| -> (String, serde_json::Value) {
        let (head, body) = get(&running, &format!("/api/jobs/{job}/steps{query}")).await;
        // One chunk or none.
        let json = &body[body.find('{').unwrap()..=body.rfind('}').unwrap()];
        (head, serde_json::from_str(json).unwrap())
    };
    let (_, all) = read("").await;
    assert_eq!(all["steps"], serde_json::json!([1, 2, 3]));
    assert_eq!(
        all["series"]["loss"]["mean"],
        serde_json::json!([1.0, 1.0, 1.0])
    );
    assert_eq!(all["seconds"], serde_json::json!([1.0, 2.0, 3.0]));
    assert_eq!(all["complete"], true);
    let (_, part) = read("?from=2&to=2").await;
    assert_eq!(part["steps"], serde_json::json!([2]));
    let (head, error) = read("?from=3&to=2").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let text = error["error"].as_str().unwrap();
    assert!(text.contains("has steps 1 to 3"), "{text}");
    let (head, error) = read("?from=9").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let text = error["error"].as_str().unwrap();
    assert!(text.contains("9, after the last step; job"), "{text}");
    running.stop().await.unwrap();
}

/// Looks at a page, while the worker reports, until a part of it has these texts.
async fn until_shown(running: &Running, worker: &mut FakeWorker, page: &str, texts: &[&str]) {
    let page = page.replace('/', "%2F");
    let head = format!("GET /live?page={page} HTTP/1.1\r\nHost: {}", running.web);
    let mut lines = BufReader::new(send(running, &head).await).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.starts_with("data: ") && texts.iter().all(|it| line.contains(it)) {
            return;
        }
        worker.send().await;
    }
    panic!("{page} never had {texts:?}");
}

#[tokio::test]
async fn a_job_whose_rank_comes_no_further_is_shown_as_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client, mut worker, job, _) = cluster(dir.path()).await;
    worker.report.ranks[0].activity = Some(pb::Activity {
        step: 4,
        stage: pb::activity::Stage::Samples.into(),
        number: 0,
        for_ms: 300_000,
    });
    until_shown(&running, &mut worker, "/", &["s-stuck", &job]).await;
    let page = page(&running, &format!("/jobs/{job}")).await;
    assert!(page.contains("stuck 5m"), "{page}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_says_that_it_is_sick_is_shown_as_sick() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _client) = server(dir.path()).await;
    let mut worker = FakeWorker::attach(&running, 1).await;
    worker.report.sick = Some(format!("GPU 3 {HOSTILE}"));
    worker.until(|_| true).await;
    until_shown(&running, &mut worker, "/workers/w1", &["s-sick", "GPU 3"]).await;
    let list = page(&running, "/workers?state=sick").await;
    assert!(
        list.contains("1 to 1 of 1") && list.contains("w-sick"),
        "{list}"
    );
    let now = page(&running, "/").await;
    assert!(
        now.contains("GPU 3") && !now.contains("<script>alert"),
        "{now}"
    );
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_page_that_is_looked_at_is_sent_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (running, mut client, _worker, _, waiting) = cluster(dir.path()).await;
    let head = format!("GET /live?page=%2F HTTP/1.1\r\nHost: {}", running.web);
    let mut lines = BufReader::new(send(&running, &head).await).lines();
    let mut next = async |id: &str| loop {
        let line = lines.next_line().await.unwrap().unwrap();
        let Some(json) = line.strip_prefix("data: ") else {
            continue;
        };
        let part: serde_json::Value = serde_json::from_str(json).unwrap();
        if part["id"] == id {
            break part["html"].as_str().unwrap().to_owned();
        }
    };
    assert!(next("queue").await.contains(&waiting));
    let request = pb::JobRequest {
        job: waiting.clone(),
    };
    client.cancel(request).await.unwrap();
    assert!(next("ended").await.contains(&waiting));
    let (head, body) = get(&running, "/live?page=%2Fjobs%2Fnone-1").await;
    assert!(
        head.starts_with("HTTP/1.1 404") && body.contains("there is no job"),
        "{body}"
    );
    running.stop().await.unwrap();
}
