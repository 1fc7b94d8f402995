//! The errors of this crate. Each names the endpoint, the question and the image that it is about.

/// Why one question about one image has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("no connection: {0}")]
    Connection(String),
    #[error("no complete answer within {seconds} s")]
    Timeout { seconds: u64 },
    /// `body` is the beginning of what the server said.
    #[error("status {status}: {body}")]
    Status { status: u16, body: String },
    #[error("its answer is not that of /v1/chat/completions: {0}")]
    Nonsense(String),
    #[error("the image {0}")]
    Image(String),
}

impl Fault {
    /// True if the same request may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            // A gateway in front of the server may say something else for a while.
            Self::Connection(_) | Self::Timeout { .. } | Self::Nonsense(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Image(_) => false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VqaError {
    #[error("{file}: {problem}")]
    Questions { file: String, problem: String },
    #[error("{endpoint:?} is no endpoint: {problem}; write http://host:port or https://host")]
    Endpoint { endpoint: String, problem: String },
    #[error("{field} is {value}; {expected}")]
    Option {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("the HTTP client cannot be built")]
    Http(#[source] reqwest::Error),
    #[error("{endpoint}/v1/models: {fault}")]
    Models { endpoint: String, fault: Fault },
    #[error(
        "{endpoint}: no answer to question {question:?} about {image} after {attempts} attempts: \
         {fault}"
    )]
    Unanswered {
        endpoint: String,
        question: String,
        image: String,
        attempts: u32,
        fault: Fault,
    },
    #[error(transparent)]
    Store(#[from] storage::StoreError),
}
