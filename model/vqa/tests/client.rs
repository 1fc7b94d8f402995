//! The client against a server that says what each test prescribes.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;
use vqa::{Cache, Client, Fault, Image, Options, Questions, Reply, VqaError};

const QUESTIONS: &str = "[[question]]\nname = \"head\"\ntext = \"Where to?\"\n\
    [[question]]\nname = \"mood\"\ntext = \"How?\"\n";

/// Status, further header lines, body.
type Said = (u16, &'static str, String);
/// The body of a request, and how many came before it -> what is answered.
type Script = dyn Fn(&Value, usize) -> Said + Send + Sync;

struct Server {
    address: String,
    /// Bodies of all requests of completions.
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    /// One thread for each connection; they end with the test.
    fn start(script: impl Fn(&Value, usize) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &*script, &seen));
            }
        });
        Self { address, requests }
    }

    fn options(&self) -> Options {
        Options {
            first_wait: Duration::from_millis(1),
            ..Options::new(&self.address, "blip")
        }
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, script: &Script, seen: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut key = String::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if lower.starts_with("authorization:") {
                key = line.trim().to_owned();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let (status, headers, text) = if first.starts_with("GET /v1/models ") {
            let known = key.eq_ignore_ascii_case("authorization: bearer secret");
            let listed = json!({"data": [{"id": if known { "blip" } else { "unknown" }}]});
            (200, "", listed.to_string())
        } else {
            assert!(first.starts_with("POST /v1/chat/completions "), "{first}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            let number = {
                let mut seen = seen.lock().unwrap();
                seen.push(body.clone());
                seen.len() - 1
            };
            script(&body, number)
        };
        let answer = format!(
            "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{text}",
            text.len()
        );
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn said(text: &str) -> Said {
    let body = json!({"model": "blip-7b", "choices": [{"message": {"content": text},
        "finish_reason": "stop"}], "usage": {"prompt_tokens": 40, "completion_tokens": 3}});
    (200, "", body.to_string())
}

fn image(name: &str) -> Image {
    Image {
        name: name.to_owned(),
        bytes: Bytes::from(format!("\u{89}PNG {name}").into_bytes().split_off(1)),
    }
}

fn questions() -> Questions {
    Questions::parse("q.toml", QUESTIONS).unwrap()
}

/// The question of a request.
fn asked(body: &Value) -> &str {
    body["messages"][0]["content"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn answers_come_in_order_and_are_asked_for_once() {
    let server = Server::start(|body, _| said(&format!("to {}", asked(body))));
    let folder = tempfile::tempdir().unwrap();
    let cache = || Cache::open(&format!("file://{}/c", folder.path().display())).unwrap();
    let client = Client::new(server.options(), Some(cache())).unwrap();
    let images = [image("a"), image("b")];
    let texts = |rows: Vec<Vec<Result<vqa::Answer, VqaError>>>| -> Vec<Vec<Option<String>>> {
        let row = |row: Vec<Result<vqa::Answer, VqaError>>| {
            row.into_iter().map(|it| it.unwrap().text()).collect()
        };
        rows.into_iter().map(row).collect()
    };
    let row = ["to Where to?", "to How?"]
        .map(|it| Some(it.to_owned()))
        .to_vec();
    let found = texts(client.ask_all(&questions(), &images).await);
    assert_eq!(found, [row.clone(), row.clone()]);
    assert_eq!(server.requests().len(), 4);
    let counts = client.counts();
    assert_eq!(
        (counts.usage.prompt_tokens, counts.usage.completion_tokens),
        (160, 12)
    );
    assert_eq!(
        (
            counts.questions["head"].answered,
            counts.questions["head"].cached
        ),
        (2, 0)
    );
    // Another client of another endpoint, which is away, has them all.
    let away = Options {
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..server.options()
    };
    let second = Client::new(away.clone(), Some(cache())).unwrap();
    let renamed = [Image {
        name: "other".to_owned(),
        ..images[0].clone()
    }];
    assert_eq!(texts(second.ask_all(&questions(), &renamed).await), [row]);
    let answer = second.ask(&questions().all()[0], &images[1]).await.unwrap();
    assert!(answer.cached && answer.server_model.as_deref() == Some("blip-7b"));
    assert_eq!(second.counts().questions["head"].cached, 2);
    assert_eq!(second.counts().usage.prompt_tokens, 0);
    // Other options, another question or another model are asked again.
    for changed in [
        Options {
            max_tokens: 17,
            ..server.options()
        },
        Options {
            seed: 1,
            ..server.options()
        },
        Options {
            model: "blop".to_owned(),
            ..server.options()
        },
    ] {
        let client = Client::new(changed, Some(cache())).unwrap();
        let answer = client.ask(&questions().all()[0], &images[0]).await.unwrap();
        assert!(!answer.cached);
    }
    assert_eq!(server.requests().len(), 7);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_may_not_is_named_at_once() {
    let server = Server::start(|_, number| match number {
        0 => (503, "", "busy".to_owned()),
        1 => (429, "retry-after: 0\r\n", String::new()),
        2 => (200, "", "<html>gateway</html>".to_owned()),
        _ => said("yes"),
    });
    let client = Client::new(server.options(), None).unwrap();
    let answer = client
        .ask(&questions().all()[0], &image("a"))
        .await
        .unwrap();
    assert_eq!(answer.reply, Reply::Text("yes".to_owned()));
    assert_eq!(client.counts().retries, 3);

    let server = Server::start(|_, _| (404, "", "the model `blip`\ndoes not exist".to_owned()));
    let client = Client::new(server.options(), None).unwrap();
    let error = client
        .ask(&questions().all()[1], &image("a.png"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: no answer to question \"mood\" about a.png after 1 attempts: status 404: the \
             model `blip` does not exist",
            server.address
        )
    );
    assert_eq!(server.requests().len(), 1);
    assert_eq!(client.counts().questions["mood"].failed, 1);
    assert_eq!(client.counts().failed_fraction(), 1.0);
}

#[tokio::test]
async fn a_server_that_is_away_or_slow_or_talks_nonsense_is_given_up_by_name() {
    let away = Options {
        attempts: 2,
        first_wait: Duration::from_millis(1),
        ..Options::new("http://127.0.0.1:9", "blip")
    };
    let client = Client::new(away, None).unwrap();
    let fault = |error: VqaError| match error {
        VqaError::Unanswered {
            attempts, fault, ..
        } => (attempts, fault),
        other => panic!("{other}"),
    };
    let question = &questions().all()[0].clone();
    let (attempts, found) = fault(client.ask(question, &image("a")).await.unwrap_err());
    assert_eq!(attempts, 2);
    assert!(matches!(&found, Fault::Connection(_)), "{found}");
    let error = client.server().await.unwrap_err().to_string();
    assert!(
        error.starts_with("http://127.0.0.1:9/v1/models: no connection"),
        "{error}"
    );

    // A listener that accepts in its backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        attempts: 1,
        timeout: Duration::from_millis(50),
        ..Options::new(format!("http://{}", silent.local_addr().unwrap()), "blip")
    };
    let client = Client::new(options, None).unwrap();
    let (_, found) = fault(client.ask(question, &image("a")).await.unwrap_err());
    assert_eq!(found, Fault::Timeout { seconds: 1 });

    let server = Server::start(|_, _| (200, "", "{\"choices\": 3}".to_owned()));
    let options = Options {
        attempts: 2,
        ..server.options()
    };
    let client = Client::new(options, None).unwrap();
    let (attempts, found) = fault(client.ask(question, &image("a")).await.unwrap_err());
    assert_eq!(attempts, 2);
    assert!(found.to_string().contains("{\"choices\": 3}"), "{found}");
}

#[tokio::test]
async fn refusals_and_silence_are_counted_and_kept_like_answers() {
    let server = Server::start(|body, _| match asked(body) {
        "Where to?" => said("I'm sorry, I can't say."),
        _ => said(" "),
    });
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&format!("file://{}", folder.path().display())).unwrap();
    let client = Client::new(server.options(), Some(cache)).unwrap();
    for _ in 0..2 {
        let rows = client.ask_all(&questions(), &[image("a")]).await;
        assert!(
            rows[0]
                .iter()
                .all(|it| it.as_ref().unwrap().text().is_none())
        );
    }
    assert_eq!(server.requests().len(), 2);
    let counts = client.counts();
    assert_eq!(
        (
            counts.questions["head"].refused,
            counts.questions["head"].cached
        ),
        (2, 1)
    );
    assert_eq!(
        (
            counts.questions["mood"].empty,
            counts.questions["mood"].asked()
        ),
        (2, 2)
    );
    assert_eq!(counts.failed_fraction(), 0.0);
}

/// As many requests as allowed are open together, and never more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_bounded_and_parallel() {
    const TOGETHER: usize = 3;
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    // Nobody passes before three are there.
    let barrier = Arc::new(Barrier::new(TOGETHER));
    let counted = (Arc::clone(&open), Arc::clone(&most));
    let server = Server::start(move |_, _| {
        let now = counted.0.fetch_add(1, Ordering::SeqCst) + 1;
        counted.1.fetch_max(now, Ordering::SeqCst);
        barrier.wait();
        counted.0.fetch_sub(1, Ordering::SeqCst);
        // Nobody answers, and so makes room for the next, before all are counted.
        barrier.wait();
        said("yes")
    });
    let options = Options {
        concurrency: TOGETHER,
        ..server.options()
    };
    let client = Client::new(options, None).unwrap();
    let images: Vec<Image> = (0..6).map(|i| image(&i.to_string())).collect();
    let rows = client.ask_all(&questions(), &images).await;
    assert!(rows.iter().flatten().all(Result::is_ok) && rows.len() == 6);
    assert_eq!(most.load(Ordering::SeqCst), TOGETHER);
}

#[tokio::test]
async fn a_broken_entry_of_the_cache_is_counted_and_asked_again() {
    let server = Server::start(|_, _| said("yes"));
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&format!("file://{}", folder.path().display())).unwrap();
    let client = Client::new(server.options(), Some(cache)).unwrap();
    let question = &questions().all()[0].clone();
    client.ask(question, &image("a")).await.unwrap();
    let inner = std::fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let entry = std::fs::read_dir(inner.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    std::fs::write(entry.path(), "{").unwrap();
    assert!(!client.ask(question, &image("a")).await.unwrap().cached);
    assert_eq!(client.counts().cache_faults, 1);
    assert!(client.ask(question, &image("a")).await.unwrap().cached);
}

#[tokio::test]
async fn the_server_is_asked_for_its_models_with_the_key() {
    let server = Server::start(|_, _| said("yes"));
    let options = Options {
        api_key: Some("secret".to_owned()),
        endpoint: format!("{}/v1/", server.address),
        ..server.options()
    };
    let client = Client::new(options, None).unwrap();
    let found = client.server().await.unwrap();
    assert!(found.lists("blip") && !found.lists("blop"));
    client
        .ask(&questions().all()[0], &image("a"))
        .await
        .unwrap();
}

#[test]
fn options_out_of_range_are_refused_by_field() {
    let refused = |options: Options| Client::new(options, None).unwrap_err().to_string();
    let default = Options::new("http://localhost:8000", "m");
    assert!(refused(Options::new("localhost:8000", "m")).contains("is no endpoint"));
    assert!(refused(Options::new("file:///x", "m")).contains("write http://host:port"));
    assert!(refused(Options::new("http://localhost", "")).starts_with("model is empty"));
    for (changed, text) in [
        (
            Options {
                concurrency: 0,
                ..default.clone()
            },
            "concurrency is 0; 1 to 4096",
        ),
        (
            Options {
                attempts: 0,
                ..default.clone()
            },
            "attempts is 0",
        ),
        (
            Options {
                max_tokens: 9999,
                ..default.clone()
            },
            "max_tokens is 9999",
        ),
        (
            Options {
                timeout: Duration::ZERO,
                ..default.clone()
            },
            "timeout is 0 s",
        ),
    ] {
        assert!(refused(changed).starts_with(text), "{text}");
    }
}
