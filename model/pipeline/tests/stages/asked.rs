//! The stage that asks a model, against a server that knows the outfits which are drawn.

use crate::answers::pairs;
use crate::danbooru::{self, FakePost};
use crate::run::{build, clusters};
use crate::written::{buckets, drawn};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model_data::sample::Sample;
use proto::build::Stage;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Answers a question about an image: the status, and what is said.
type Script = dyn Fn(&str, &[u8], usize) -> (u16, String) + Send + Sync;

struct Server {
    address: String,
    requests: Arc<Mutex<usize>>,
}

impl Server {
    /// One thread for each connection; they end with the test.
    fn start(script: impl Fn(&str, &[u8], usize) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(0));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &*script, &seen));
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> usize {
        *self.requests.lock().unwrap()
    }
}

fn serve(stream: TcpStream, script: &Script, seen: &Mutex<usize>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let content = &body["messages"][0]["content"];
        let question = content[0]["text"].as_str().unwrap();
        let image = content[1]["image_url"]["url"].as_str().unwrap();
        let image = STANDARD.decode(image.split_once(',').unwrap().1).unwrap();
        let number = {
            let mut seen = seen.lock().unwrap();
            *seen += 1;
            *seen - 1
        };
        let (status, text) = script(question, &image, number);
        let said = json!({"model": "m", "choices": [{"message": {"content": text},
            "finish_reason": "stop"}], "usage": {"prompt_tokens": 40, "completion_tokens": 3}});
        let said = said.to_string();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{said}",
            said.len()
        );
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The outfit of each image.
fn known(drawn: &[(FakePost, Sample)]) -> BTreeMap<Vec<u8>, (usize, String)> {
    let outfits = drawn.iter().enumerate();
    outfits
        .map(|(number, (post, sample))| (sample.image.to_vec(), (number, post.outfit.clone())))
        .collect()
}

fn prepare(drawn: &[(FakePost, Sample)], folder: &Path, server: &Server) -> String {
    let posts = danbooru::lines(drawn.iter().map(|(post, _)| danbooru::new(post)));
    std::fs::write(folder.join("posts"), posts).unwrap();
    buckets(drawn, folder);
    format!(
        "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[outfits]\nimages = \"images\"\nendpoint = \
         {:?}\nmodel = \"m\"\n[units]\noutfits = 3\n[clusters]\nsignature = \"model\"\n",
        server.address
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_wrong_answers_and_an_outage_is_paid_once() {
    let drawn = drawn();
    let images = known(&drawn);
    let server = Server::start(move |question, image, number| {
        // A short outage.
        if number == 5 {
            return (503, String::new());
        }
        let (number, outfit) = &images[image];
        let answer = match (question.contains("colours"), number % 20) {
            (true, 19) => "mauve",
            (true, _) => "Blue and white.",
            (false, _) => outfit,
        };
        (200, answer.to_owned())
    });
    let folder = tempfile::tempdir().unwrap();
    let text = prepare(&drawn, folder.path(), &server);
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Outfits].report;
    // A character has one artist in each outfit, perhaps two; none of these is alone.
    assert_eq!((report.rows_in, report.rows_out), (32, 32), "{report:?}");
    assert_eq!(
        (
            report.counts["clothes answers"],
            report.counts["colours tokens"]
        ),
        (32, 32 * 43)
    );
    assert_eq!(server.requests(), 2 * 32 + 1);
    let posts: Vec<FakePost> = drawn.iter().map(|(post, _)| post.clone()).collect();
    let found = clusters(folder.path(), &text, &manifests[&Stage::Clusters]).await;
    let (both, wrong, missed) = pairs(&posts, &found);
    assert_eq!(wrong, 0);
    assert!(
        0 < missed && missed * 5 < both,
        "{both} pairs found, {missed} missed"
    );
    // A stage that is lost is repeated from the cache, and gives the same bytes.
    let lost = folder.path().join("out/stages/outfits");
    std::fs::remove_dir_all(lost).unwrap();
    let again = build(folder.path(), &text).await.unwrap();
    assert!(again[&Stage::Outfits] == manifests[&Stage::Outfits]);
    assert_eq!(server.requests(), 2 * 32 + 1);
    let divided = text.replace("outfits = 3", "outfits = 5");
    std::fs::remove_dir_all(folder.path().join("out/stages")).unwrap();
    let divided = build(folder.path(), &divided).await.unwrap();
    assert_eq!(
        divided[&Stage::Clusters].parts,
        manifests[&Stage::Clusters].parts
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_and_an_endpoint_that_refuses_to_serve_is_named() {
    let drawn = drawn();
    let refused: BTreeSet<Vec<u8>> = drawn[..2]
        .iter()
        .map(|(_, sample)| sample.image.to_vec())
        .collect();
    let server = Server::start(move |_, image, _| {
        let text = if refused.contains(image) {
            ""
        } else {
            "a dress"
        };
        (200, text.to_owned())
    });
    let folder = tempfile::tempdir().unwrap();
    let text = prepare(&drawn, folder.path(), &server);
    let manifests = build(folder.path(), &text).await.unwrap();
    assert_eq!(
        manifests[&Stage::Outfits].report.counts["clothes empty answers"],
        2
    );
    assert_eq!(
        manifests[&Stage::Clusters]
            .report
            .lost("a question without an answer"),
        2
    );
    let gone = Server::start(|_, _, _| (404, String::new()));
    let folder = tempfile::tempdir().unwrap();
    let text = prepare(&drawn, folder.path(), &gone);
    let error = build(folder.path(), &text).await.unwrap_err();
    let address = gone.address.trim_end_matches("/v1");
    assert!(error.contains(address) && error.contains("404"), "{error}");
}
