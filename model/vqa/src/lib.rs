//! Asks a model questions about images: visual question answering by any server that speaks
//! OpenAI's `/v1/chat/completions` with images (vLLM, llama.cpp, Ollama, or `deploy/vqa/serve.py`
//! for the paper's InstructBLIP). Answers are cached by content, so that a question is paid once;
//! refusals and empty answers are kept apart from answers and counted. Used for the VQA score
//! (paper section 4.1); what is computed from answers is in the crate `metric`.
//!
//! ```no_run
//! # async fn example(png: bytes::Bytes) -> Result<(), vqa::VqaError> {
//! use vqa::{Cache, Client, Image, Options, Questions, VqaError};
//!
//! let questions = Questions::parse("questions.toml", "[[question]]\nname = \"head\"\n\
//!     text = \"Which way is the head turned?\"")?;
//! let options = Options::new("http://localhost:8000", "instructblip-vicuna-7b");
//! let client = Client::new(options, Some(Cache::open("file:///var/cache/vqa")?))?;
//! let server = client.server().await?;
//! assert!(server.lists("instructblip-vicuna-7b"));
//! let image = Image { name: "sample 3".to_owned(), bytes: png };
//! // A row for each image, a column for each question; None where the model said nothing.
//! for row in client.ask_all(&questions, &[image]).await {
//!     let answers: Result<Vec<_>, VqaError> = row.into_iter().map(|it| Ok(it?.text())).collect();
//!     let answers: Vec<Option<String>> = answers?;
//! }
//! # Ok::<(), vqa::VqaError>(())
//! # }
//! ```

mod cache;
mod client;
mod counts;
mod error;
mod protocol;
mod questions;
mod retry;

pub use cache::Cache;
pub use client::{Answer, Client, Image, Options, Server};
pub use counts::{Counts, QuestionCounts, Usage};
pub use error::{Fault, VqaError};
pub use protocol::Reply;
pub use questions::{Question, Questions};
