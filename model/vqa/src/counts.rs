//! What was asked and what came of it, so that nothing is left out in silence.

use crate::client::Answer;
use crate::error::VqaError;
use crate::protocol::Reply;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tokens as the server counted them in `usage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    #[serde(default)]
    pub prompt_tokens: u64,
    #[serde(default)]
    pub completion_tokens: u64,
}

/// The counts of one question. An image is in exactly one of the first four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionCounts {
    pub answered: u64,
    /// The model declined.
    pub refused: u64,
    /// The model said nothing.
    pub empty: u64,
    /// No answer came after all attempts.
    pub failed: u64,
    /// Of all answers, those that were in the cache.
    pub cached: u64,
    /// Of all answers, those that end where the limit of tokens was reached.
    pub truncated: u64,
}

impl QuestionCounts {
    /// All images that were asked about.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.answered + self.refused + self.empty + self.failed
    }
}

/// Counts since the client was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// By the question's name.
    pub questions: BTreeMap<String, QuestionCounts>,
    /// Requests that were repeated.
    pub retries: u64,
    /// Entries of the cache that could not be read or written; the question was asked all the same.
    pub cache_faults: u64,
    /// Of new answers; those from the cache cost nothing.
    pub usage: Usage,
}

impl Counts {
    /// The fraction of questions without an answer because requests failed; 0 before the first.
    #[must_use]
    pub fn failed_fraction(&self) -> f64 {
        let sum = |of: fn(&QuestionCounts) -> u64| self.questions.values().map(of).sum::<u64>();
        let asked = sum(QuestionCounts::asked);
        if asked == 0 {
            return 0.0;
        }
        sum(|it| it.failed) as f64 / asked as f64
    }

    pub(crate) fn add(&mut self, question: &str, outcome: &Result<Answer, VqaError>) {
        let counts = self.questions.entry(question.to_owned()).or_default();
        let Ok(answer) = outcome else {
            counts.failed += 1;
            return;
        };
        match answer.reply {
            Reply::Text(_) => counts.answered += 1,
            Reply::Refusal(_) => counts.refused += 1,
            Reply::Empty => counts.empty += 1,
        }
        counts.truncated += u64::from(answer.truncated);
        if answer.cached {
            counts.cached += 1;
        } else {
            self.usage.prompt_tokens += answer.usage.prompt_tokens;
            self.usage.completion_tokens += answer.usage.completion_tokens;
        }
    }
}
