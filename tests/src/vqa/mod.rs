//! A stand-in for a VQA model, for tests and for benchmarks without one. It is not a vision model:
//!
//! - About an image of the synthetic figures that it knows by its pixels it answers from the
//!   figure's own attributes.
//! - About any other image, such as a generated one or a crop, it answers what a small classifier
//!   guesses from the pixels ([`classifier`]), whose accuracy on unseen characters it reports.
//! - It never sees a prompt. A question about anything else is "unanswerable".
//!
//! It speaks as much of OpenAI's `/v1/chat/completions` and `/v1/models` as the client needs, and
//! has faults on demand ([`Behaviour`]): wrong answers, delays, errors, refusals, silence,
//! nonsense. Which request has a fault depends on its content and the seed alone.

pub mod attributes;
pub mod classifier;
mod http;

use anyhow::{Context, Result, bail};
use attributes::Attribute;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use classifier::{Accuracy, Classifier, Labelled};
use figures::synthetic::{SynthesizeOptions, synthesize};
use image::RgbImage;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The name of the model.
pub const MODEL: &str = "synthetic-figures";

/// Faults. Each but the delay is a fraction of all pairs of question and image.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Behaviour {
    /// Pairs with another answer than the right or guessed one.
    pub noise: f64,
    /// Pairs whose first request fails with status 503.
    pub errors: f64,
    /// Pairs that always fail with status 500.
    pub broken: f64,
    /// Pairs that are refused in words.
    pub refusals: f64,
    /// Pairs whose answer is empty.
    pub empty: f64,
    /// Pairs whose first answer is no JSON.
    pub nonsense: f64,
    /// Time before each answer.
    pub delay: Duration,
    pub seed: u64,
}

/// What the server knows.
#[derive(Debug)]
pub struct Knowledge {
    /// Digest of pixels -> tags.
    known: BTreeMap<[u8; 32], String>,
    classifier: Classifier,
}

impl Knowledge {
    /// Knows all images of a synthetic data set. The classifier is trained on other characters of
    /// the same kind: of `training` characters, every fourth is held out to measure it.
    ///
    /// # Errors
    /// An image that cannot be decoded.
    pub fn new(figures: &SynthesizeOptions, training: u32) -> Result<Self> {
        let mut known = BTreeMap::new();
        for (image, tags) in labelled(figures)? {
            known.insert(digest(&image), tags);
        }
        let others = SynthesizeOptions {
            characters: training,
            seed: figures.seed ^ 0x5eed_0f0f_ca11_ab1e,
            ..figures.clone()
        };
        let by_character = (others.outfits * others.images) as usize;
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (index, image) in labelled(&others)?.into_iter().enumerate() {
            let is_held_out = index / by_character % 4 == 3;
            let list = if is_held_out {
                &mut held_out
            } else {
                &mut train
            };
            list.push(image);
        }
        if train.is_empty() || held_out.is_empty() {
            bail!("{training} characters train no classifier; at least 4 are needed");
        }
        Ok(Self {
            known,
            classifier: Classifier::train(&train, &held_out),
        })
    }

    /// Of the classifier, on characters that it was not trained on.
    #[must_use]
    pub fn accuracy(&self) -> &[Accuracy] {
        self.classifier.accuracy()
    }

    /// The number of the answer about an image, and whether the image is known.
    #[must_use]
    pub fn class(&self, attribute: Attribute, image: &RgbImage) -> (usize, bool) {
        match self.known.get(&digest(image)) {
            Some(tags) => (attribute.class(tags), true),
            None => (self.classifier.class(attribute, image), false),
        }
    }
}

fn labelled(options: &SynthesizeOptions) -> Result<Vec<Labelled>> {
    synthesize(options)
        .map(|sample| {
            let image = image::load_from_memory(&sample.image);
            let image = image.with_context(|| sample.metadata.id.clone())?;
            Ok((image.into_rgb8(), sample.metadata.prompts))
        })
        .collect()
}

fn digest(image: &RgbImage) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(image.width().to_le_bytes());
    digest.update(image.as_raw());
    digest.finalize().into()
}

/// How many requests there were, by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    pub known: u64,
    pub guessed: u64,
    pub faults: u64,
}

/// A running server; its threads end with the process.
#[derive(Debug)]
pub struct VqaServer {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    knowledge: Arc<Knowledge>,
    behaviour: Behaviour,
    served: Mutex<Served>,
    /// Pairs whose first request has failed.
    failed: Mutex<BTreeSet<[u8; 32]>>,
}

impl VqaServer {
    /// Serves on a port of loopback; 0: a free one.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(knowledge: Arc<Knowledge>, behaviour: Behaviour, port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).context("a port for the server")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            knowledge,
            behaviour,
            served: Mutex::default(),
            failed: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || http::serve(client, |path, body| state.say(path, body)));
            }
        });
        Ok(Self { address, state })
    }

    /// `http://host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    #[must_use]
    pub fn served(&self) -> Served {
        let served = self.state.served.lock();
        served.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl State {
    fn say(&self, path: &str, body: &[u8]) -> (u16, String) {
        if path == "/v1/models" {
            return (
                200,
                json!({"object": "list", "data": [{"id": MODEL}]}).to_string(),
            );
        }
        if path != "/v1/chat/completions" {
            return (404, format!("no such path: {path}"));
        }
        match read(body) {
            Ok((question, image)) => self.reply(&question, &image),
            Err(error) => (400, format!("{error:#}")),
        }
    }

    fn reply(&self, question: &str, image: &RgbImage) -> (u16, String) {
        std::thread::sleep(self.behaviour.delay);
        let pair: [u8; 32] = {
            let mut hash = Sha256::new();
            hash.update(self.behaviour.seed.to_le_bytes());
            hash.update(digest(image));
            hash.update(question);
            hash.finalize().into()
        };
        // Independent fractions of the pair.
        let has = |fault: u8, fraction: f64| unit(&pair, fault) < fraction;
        let first = self
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pair);
        let fault = if has(0, self.behaviour.broken) {
            Some((500, "broken".to_owned()))
        } else if first && has(1, self.behaviour.errors) {
            Some((503, "overloaded".to_owned()))
        } else if first && has(2, self.behaviour.nonsense) {
            Some((200, "<html>not what you wanted</html>".to_owned()))
        } else if has(3, self.behaviour.refusals) {
            Some((200, completion("I'm sorry, I cannot help with that.")))
        } else if has(4, self.behaviour.empty) {
            Some((200, completion("")))
        } else {
            None
        };
        if let Some(fault) = fault {
            self.count(|served| served.faults += 1);
            return fault;
        }
        let Some(attribute) = Attribute::asked(question) else {
            return (200, completion("unanswerable"));
        };
        let (mut class, known) = self.knowledge.class(attribute, image);
        if has(5, self.behaviour.noise) {
            let others = attribute.classes() - 1;
            class = (class + 1 + (unit(&pair, 6) * others as f64) as usize) % (others + 1);
        }
        self.count(|served| {
            served.known += u64::from(known);
            served.guessed += u64::from(!known);
        });
        (200, completion(attribute.answer(class)))
    }

    fn count(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.served.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A number in [0, 1) for each pair and purpose.
fn unit(pair: &[u8; 32], purpose: u8) -> f64 {
    let digest = Sha256::digest([pair.as_slice(), &[purpose]].concat());
    let word = digest[..4]
        .iter()
        .fold(0u32, |word, byte| (word << 8) | u32::from(*byte));
    f64::from(word) / 2f64.powi(32)
}

fn completion(text: &str) -> String {
    let words = text.split_whitespace().count();
    json!({
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 64, "completion_tokens": words, "total_tokens": 64 + words},
    })
    .to_string()
}

/// The question and the image of a request.
fn read(body: &[u8]) -> Result<(String, RgbImage)> {
    let body: Value = serde_json::from_slice(body)?;
    let content = body["messages"][0]["content"].as_array();
    let content = content.context("messages[0].content is no list")?;
    let of = |kind: &str| content.iter().find(|it| it["type"] == kind);
    let question = of("text").and_then(|it| it["text"].as_str());
    let url = of("image_url").and_then(|it| it["image_url"]["url"].as_str());
    let url = url.context("there is no image_url")?;
    let encoded = url
        .strip_prefix("data:")
        .and_then(|it| it.split_once(";base64,"));
    let (_, encoded) = encoded.context("the image is no data URL")?;
    let image = image::load_from_memory(&STANDARD.decode(encoded)?)?;
    let question = question.context("there is no text")?;
    Ok((question.to_owned(), image.into_rgb8()))
}
