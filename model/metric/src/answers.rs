//! The VQA score: a model answers questions about images (head orientation, expression, gesture,
//! activity), the answers are embedded, and their cosines are compared (section 4.1). The paper can
//! be read in three ways; all are computed from one table of answers.

use crate::cosine::cosine;
use crate::error::MetricError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The answers about each image, and the embedding of each distinct answer.
///
/// ```
/// use metric::AnswerTable;
///
/// let mut table = AnswerTable::new(["head", "expression"]);
/// let answers = |answers: [&str; 2]| answers.map(|it| Some(it.to_owned())).to_vec();
/// table.insert("generated", answers(["left", "smile"])).unwrap();
/// table.insert("reference", answers(["left", "frown"])).unwrap();
/// for text in table.texts() {
///     // Stands for a text encoder's embedding.
///     let embedding = vec![f32::from(text == "frown"), f32::from(text != "frown")];
///     table.embed(text, embedding);
/// }
/// let reading = table.to_references("generated", ["reference"]).unwrap();
/// assert_eq!(reading.by_question, [Some(1.0), Some(0.0)]);
/// assert_eq!((reading.cosine, reading.left_out), (Some(0.5), 0));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerTable {
    questions: Vec<String>,
    /// Image -> its answer to each question; None: the model refused or said nothing.
    answers: BTreeMap<String, Vec<Option<String>>>,
    embeddings: BTreeMap<String, Vec<f32>>,
}

/// One reading of one image's VQA score.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Mean over the questions that have a cosine; None if none has.
    pub cosine: Option<f64>,
    /// For each question, the mean over the images compared with; None if a side is missing in all.
    pub by_question: Vec<Option<f64>>,
    /// Pairs of answers that were compared.
    pub pairs: u64,
    /// Pairs of which one side is missing. They are in no mean.
    pub left_out: u64,
}

impl Reading {
    /// 1 - cosine: reading (c).
    #[must_use]
    pub fn distance(&self) -> Option<f64> {
        self.cosine.map(|cosine| 1.0 - cosine)
    }
}

impl AnswerTable {
    /// An empty table with the names of its questions.
    #[must_use]
    pub fn new<Q: Into<String>>(questions: impl IntoIterator<Item = Q>) -> Self {
        Self {
            questions: questions.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// The names of the questions, in order.
    #[must_use]
    pub fn questions(&self) -> &[String] {
        &self.questions
    }

    /// Adds the answers about an image, one for each question in order. `image` is any name, such
    /// as a key or the digest of its bytes. White space around an answer is removed; an answer of
    /// nothing else is missing.
    ///
    /// # Errors
    /// Another number of answers than of questions; an image that has answers.
    pub fn insert(&mut self, image: &str, answers: Vec<Option<String>>) -> Result<(), MetricError> {
        if answers.len() != self.questions.len() {
            return Err(MetricError::Answers {
                image: image.to_owned(),
                found: answers.len(),
                expected: self.questions.len(),
            });
        }
        if self.answers.contains_key(image) {
            return Err(MetricError::Repeated {
                image: image.to_owned(),
            });
        }
        let trimmed = answers.into_iter().map(|answer| {
            let answer = answer?.trim().to_owned();
            (!answer.is_empty()).then_some(answer)
        });
        self.answers.insert(image.to_owned(), trimmed.collect());
        Ok(())
    }

    /// The answers about an image, None for a missing one; None if the image has none.
    #[must_use]
    pub fn answers(&self, image: &str) -> Option<&[Option<String>]> {
        self.answers.get(image).map(Vec::as_slice)
    }

    /// Every distinct answer that has no embedding yet, sorted.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.answers.values().flatten().flatten().collect();
        let missing = all
            .into_iter()
            .filter(|it| !self.embeddings.contains_key(*it));
        missing.cloned().collect()
    }

    /// Sets the embedding of an answer.
    pub fn embed(&mut self, answer: impl Into<String>, embedding: Vec<f32>) {
        self.embeddings.insert(answer.into(), embedding);
    }

    /// Reading (a): a generated image against its references. For each question the mean over the
    /// references, then the mean over the questions.
    ///
    /// # Errors
    /// An image without answers, or an answer without embedding.
    pub fn to_references<'a>(
        &self,
        generated: &str,
        references: impl IntoIterator<Item = &'a str>,
    ) -> Result<Reading, MetricError> {
        self.against(generated, references)
    }

    /// Reading (b): a generated image against the other images of the same character and prompt.
    /// The image itself may be among `others` and is skipped.
    ///
    /// # Errors
    /// As [`Self::to_references`].
    pub fn among_generated<'a>(
        &self,
        generated: &str,
        others: impl IntoIterator<Item = &'a str>,
    ) -> Result<Reading, MetricError> {
        let others = others.into_iter().filter(|other| *other != generated);
        self.against(generated, others)
    }

    fn against<'a>(
        &self,
        image: &str,
        others: impl IntoIterator<Item = &'a str>,
    ) -> Result<Reading, MetricError> {
        let of = |image: &str| {
            self.answers(image).ok_or_else(|| MetricError::NoAnswers {
                image: image.to_owned(),
            })
        };
        let own = of(image)?;
        let others: Result<Vec<_>, MetricError> = others.into_iter().map(of).collect();
        let others = others?;
        let mut reading = Reading::default();
        for (question, own) in own.iter().enumerate() {
            let mut cosines = Vec::with_capacity(others.len());
            for other in &others {
                match (own, &other[question]) {
                    (Some(own), Some(other)) => cosines.push(self.similarity(own, other)?),
                    _ => reading.left_out += 1,
                }
            }
            reading.pairs += cosines.len() as u64;
            reading.by_question.push(crate::mean(&cosines).ok());
        }
        let known: Vec<f64> = reading.by_question.iter().copied().flatten().collect();
        reading.cosine = crate::mean(&known).ok();
        Ok(reading)
    }

    fn similarity(&self, first: &str, second: &str) -> Result<f64, MetricError> {
        let of = |answer: &str| {
            let found = self.embeddings.get(answer);
            found.ok_or_else(|| MetricError::NoEmbedding {
                answer: answer.to_owned(),
            })
        };
        cosine(of(first)?, of(second)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, [&str; 2])]) -> AnswerTable {
        let mut table = AnswerTable::new(["head", "activity"]);
        for (image, answers) in rows {
            let answers = answers.map(|it| Some(it.to_owned()));
            table.insert(image, answers.to_vec()).unwrap();
        }
        for text in table.texts() {
            let embedding = match text.as_str() {
                "left" => vec![1.0, 0.0],
                "right" => vec![0.0, 1.0],
                _ => vec![3.0, 4.0],
            };
            table.embed(text, embedding);
        }
        assert!(table.texts().is_empty());
        table
    }

    #[test]
    fn three_readings_come_from_one_table() {
        let table = table(&[
            ("g1", ["left", "other"]),
            ("g2", ["right", "other"]),
            ("g3", ["left", "left"]),
            ("r1", ["left", "left"]),
            ("r2", ["right", "left"]),
        ]);
        let close = |found: Option<f64>, expected: f64| {
            assert!(
                (found.unwrap() - expected).abs() < 1e-7,
                "{found:?} {expected}"
            );
        };
        // Question 1: (1 + 0) / 2; question 2: 0.6 twice.
        let a = table.to_references("g1", ["r1", "r2"]).unwrap();
        close(a.by_question[0], 0.5);
        close(a.by_question[1], 0.6);
        close(a.cosine, 0.55);
        close(a.distance(), 0.45);
        assert_eq!((a.pairs, a.left_out), (4, 0));
        // g2: 0 and 1; g3: 1 and 0.6. The image itself, of cosine 1, is no other.
        let b = table.among_generated("g1", ["g1", "g2", "g3"]).unwrap();
        close(b.cosine, (0.5 + 0.8) / 2.0);
        assert_eq!(b.pairs, 4);
    }

    #[test]
    fn missing_answers_are_counted_and_in_no_mean() {
        let table = table(&[
            ("g", [" left\n", "  "]),
            ("r1", ["left", "left"]),
            ("r2", ["", "left"]),
        ]);
        let found = table.to_references("g", ["r1", "r2"]).unwrap();
        assert_eq!(found.by_question, [Some(1.0), None]);
        assert_eq!(
            (found.cosine, found.pairs, found.left_out),
            (Some(1.0), 1, 3)
        );
        let nothing = table.among_generated("g", []).unwrap();
        assert_eq!((nothing.cosine, nothing.left_out), (None, 0));
        assert_eq!(nothing.distance(), None);
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused_by_image_or_answer() {
        let mut table = table(&[("g", ["left", "left"])]);
        let message = |result: Result<(), MetricError>| result.unwrap_err().to_string();
        assert_eq!(
            message(table.insert("x", vec![None])),
            "image \"x\" has 1 answers to 2 questions"
        );
        assert_eq!(
            message(table.insert("g", vec![None, None])),
            "image \"g\" has answers already"
        );
        assert_eq!(table.answers("x"), None);
        let unknown = table.to_references("g", ["x"]).unwrap_err();
        assert_eq!(unknown.to_string(), "image \"x\" has no answers");
        let answers = vec![Some("up".to_owned()), None];
        table.insert("x", answers).unwrap();
        assert_eq!(table.texts(), ["up"]);
        let unknown = table.to_references("g", ["x"]).unwrap_err();
        assert_eq!(unknown.to_string(), "the answer \"up\" has no embedding");
    }
}
