//! Sends questions, a bounded number at a time, repeats what may succeed later, and keeps answers.

use crate::cache::{Cache, Entry, digest, key};
use crate::counts::{Counts, Usage};
use crate::error::{Fault, VqaError};
use crate::protocol::{Completion, Reply, completion, models, request, shown};
use crate::questions::{Question, Questions};
use crate::retry::{retry_after, wait};
use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::header::RETRY_AFTER;
use reqwest::{RequestBuilder, Response};
use serde_json::{Map, Value};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use url::Url;

/// Longest body of an answer that is read.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Which model is asked, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The server without `/v1`, for instance `http://localhost:8000`.
    pub endpoint: String,
    /// The model's name on that server.
    pub model: String,
    /// Sent as a bearer token. Not part of an answer's key.
    pub api_key: Option<String>,
    /// Limit of an answer's length.
    pub max_tokens: u32,
    pub seed: u64,
    /// Further fields of the request, for instance `response_format`.
    pub extra: Map<String, Value>,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Times that a question is sent at most.
    pub attempts: u32,
    /// The wait after the first failed attempt; later ones double it, up to a minute.
    pub first_wait: Duration,
    /// Time of one attempt.
    pub timeout: Duration,
}

impl Options {
    /// Answers of at most 16 tokens at temperature 0, 8 requests at a time, 6 attempts.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            model: model.into(),
            api_key: None,
            max_tokens: 16,
            seed: 0,
            extra: Map::new(),
            concurrency: 8,
            attempts: 6,
            first_wait: Duration::from_secs(1),
            timeout: Duration::from_secs(120),
        }
    }

    fn check(&self) -> Result<(), VqaError> {
        let endpoint = |problem: String| VqaError::Endpoint {
            endpoint: self.endpoint.clone(),
            problem,
        };
        let url = Url::parse(&self.endpoint).map_err(|error| endpoint(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(endpoint(format!("its scheme is {:?}", url.scheme())));
        }
        for (field, value) in [
            ("max_tokens", self.max_tokens as usize),
            ("concurrency", self.concurrency),
            ("attempts", self.attempts as usize),
        ] {
            if !(1..=4096).contains(&value) {
                return Err(VqaError::Option {
                    field,
                    value: value.to_string(),
                    expected: "1 to 4096 is expected",
                });
            }
        }
        if self.model.is_empty() || self.timeout.is_zero() {
            let (field, value) = match self.model.is_empty() {
                true => ("model", "empty"),
                false => ("timeout", "0 s"),
            };
            return Err(VqaError::Option {
                field,
                value: value.to_owned(),
                expected: "a value is expected",
            });
        }
        Ok(())
    }
}

/// An image to ask about.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// For messages: a path or a key.
    pub name: String,
    /// PNG, JPEG or WebP.
    pub bytes: Bytes,
}

/// The answer to one question about one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub reply: Reply,
    /// It ends where the limit of tokens was reached.
    pub truncated: bool,
    /// It was in the cache.
    pub cached: bool,
    pub usage: Usage,
    /// The name that the server gave its model.
    pub server_model: Option<String>,
}

impl Answer {
    /// The text; None for a refusal or silence.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match &self.reply {
            Reply::Text(text) => Some(text.clone()),
            Reply::Refusal(_) | Reply::Empty => None,
        }
    }
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Names in `/v1/models`.
    pub models: Vec<String>,
}

impl Server {
    /// True if the server lists this model. Some serve any name without listing it.
    #[must_use]
    pub fn lists(&self, model: &str) -> bool {
        self.models.iter().any(|it| it == model)
    }
}

/// A client of one endpoint and model. Its limit of requests holds for all of its callers.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    options: Options,
    cache: Option<Cache>,
    slots: Semaphore,
    counts: Mutex<Counts>,
}

impl Client {
    /// Sends nothing yet.
    ///
    /// # Errors
    /// An endpoint that is no URL, or an option out of range.
    pub fn new(options: Options, cache: Option<Cache>) -> Result<Self, VqaError> {
        options.check()?;
        storage::install_tls();
        let http = reqwest::Client::builder()
            .timeout(options.timeout)
            .build()
            .map_err(VqaError::Http)?;
        Ok(Self {
            http,
            slots: Semaphore::new(options.concurrency),
            options,
            cache,
            counts: Mutex::default(),
        })
    }

    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Counts of all questions so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counts = self.counts.lock();
        counts.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the server for its models, once.
    ///
    /// # Errors
    /// The server cannot be reached or does not speak the protocol.
    pub async fn server(&self) -> Result<Server, VqaError> {
        let found = async {
            let response = self.send(self.http.get(self.url("models"))).await?;
            models(&self.body(response).await?)
        };
        match found.await {
            Ok(models) => Ok(Server { models }),
            Err(fault) => Err(VqaError::Models {
                endpoint: self.endpoint().to_owned(),
                fault,
            }),
        }
    }

    /// Asks all questions about all images. One list for each image, with one outcome for each
    /// question, in order; a failed question does not stop the others.
    pub async fn ask_all(
        &self,
        questions: &Questions,
        images: &[Image],
    ) -> Vec<Vec<Result<Answer, VqaError>>> {
        let count = questions.all().len();
        let pairs = images.iter().enumerate().flat_map(|(row, image)| {
            let columns = questions.all().iter().enumerate();
            columns.map(move |(column, question)| (row * count + column, question, image))
        });
        let asked = pairs.map(|(index, question, image)| async move {
            (index, self.ask(question, image).await)
        });
        // Twice as many as may be sent, so that cached answers do not wait for others.
        let mut outcomes: Vec<_> = stream::iter(asked)
            .buffer_unordered(2 * self.options.concurrency)
            .collect()
            .await;
        outcomes.sort_by_key(|(index, _)| *index);
        let mut outcomes = outcomes.into_iter().map(|(_, outcome)| outcome);
        images
            .iter()
            .map(|_| outcomes.by_ref().take(count).collect())
            .collect()
    }

    /// The answer to one question about one image: from the cache, or from the server.
    ///
    /// # Errors
    /// No answer after all attempts, or the server refuses the request.
    pub async fn ask(&self, question: &Question, image: &Image) -> Result<Answer, VqaError> {
        let outcome = self.ask_uncounted(question, image).await;
        self.count(|counts| counts.add(&question.name, &outcome));
        outcome
    }

    async fn ask_uncounted(&self, question: &Question, image: &Image) -> Result<Answer, VqaError> {
        let image_sha256 = digest(&image.bytes);
        let key = key(&self.options, &question.text, &image_sha256);
        if let Some(cache) = &self.cache {
            match cache.get(&key).await {
                Ok(Some(entry)) => return Ok(answer(entry, true)),
                Ok(None) => {}
                Err(()) => self.count(|counts| counts.cache_faults += 1),
            }
        }
        let found = self.complete(question, image).await?;
        let entry = Entry {
            model: self.options.model.clone(),
            server_model: found.model,
            question: question.text.clone(),
            image_sha256,
            reply: found.reply,
            truncated: found.truncated,
            usage: found.usage,
        };
        if let Some(cache) = &self.cache {
            let put = cache.put(&key, &entry).await;
            self.count(|counts| counts.cache_faults += u64::from(put.is_err()));
        }
        Ok(answer(entry, false))
    }

    /// Sends a question until it is answered, at most `attempts` times.
    async fn complete(&self, question: &Question, image: &Image) -> Result<Completion, VqaError> {
        let failed = |attempts, fault| VqaError::Unanswered {
            endpoint: self.endpoint().to_owned(),
            question: question.name.clone(),
            image: image.name.clone(),
            attempts,
            fault,
        };
        let body = request(&self.options, &question.text, &image.bytes);
        let body = Bytes::from(body.map_err(|fault| failed(0, fault))?.to_string());
        // Spreads the waits of different questions, and of nothing else.
        let spread = f64::from(image.bytes.last().copied().unwrap_or_default()) / 256.0;
        for attempt in 1.. {
            let (fault, after) = match self.attempt(body.clone()).await {
                Ok(found) => return Ok(found),
                Err(failure) => failure,
            };
            if attempt >= self.options.attempts || !fault.is_passing() {
                return Err(failed(attempt, fault));
            }
            self.count(|counts| counts.retries += 1);
            tokio::time::sleep(wait(attempt, self.options.first_wait, after, spread)).await;
        }
        unreachable!("the last attempt returns")
    }

    /// One request. With the wait that the server asks for if it fails.
    async fn attempt(&self, body: Bytes) -> Result<Completion, (Fault, Option<Duration>)> {
        // Released before a wait, so that a failing question does not hold up the others.
        let _slot = self.slots.acquire().await;
        let post = self.http.post(self.url("chat/completions"));
        let post = post.header("content-type", "application/json").body(body);
        let response = self.send(post).await.map_err(|fault| (fault, None))?;
        let after = response.headers().get(RETRY_AFTER);
        let after = after.and_then(|value| retry_after(value.to_str().ok()?));
        let found = async { completion(&self.body(response).await?) };
        found.await.map_err(|fault| (fault, after))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Fault> {
        let request = match &self.options.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        request.send().await.map_err(|error| self.fault(&error))
    }

    /// The body of an answer with a status of success.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Fault> {
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.fault(&error))? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(Fault::Nonsense(format!(
                    "it has over {BODY_BYTES_MAX} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        Err(Fault::Status {
            status: status.as_u16(),
            body: shown(&body),
        })
    }

    fn fault(&self, error: &reqwest::Error) -> Fault {
        if error.is_timeout() {
            return Fault::Timeout {
                seconds: self.options.timeout.as_secs().max(1),
            };
        }
        // Its own text names the URL, its causes what happened.
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Fault::Connection(shown(cause.to_string().as_bytes()))
    }

    fn endpoint(&self) -> &str {
        let endpoint = self.options.endpoint.trim_end_matches('/');
        endpoint.strip_suffix("/v1").unwrap_or(endpoint)
    }

    fn url(&self, method: &str) -> String {
        format!("{}/v1/{method}", self.endpoint())
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let counts = self.counts.lock();
        change(&mut counts.unwrap_or_else(PoisonError::into_inner));
    }
}

fn answer(entry: Entry, cached: bool) -> Answer {
    Answer {
        reply: entry.reply,
        truncated: entry.truncated,
        cached,
        usage: entry.usage,
        server_model: entry.server_model,
    }
}
