//! The file of questions: TOML, one `[[question]]` with `name` and `text` each.

use crate::error::VqaError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Largest number of questions about an image, and of bytes of a text.
const QUESTIONS_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 4096;

/// A question about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// A word for tables, for instance "head".
    pub name: String,
    /// What the model is asked.
    pub text: String,
}

/// Questions with distinct names, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Questions(Vec<Question>);

impl Questions {
    /// Reads the text of a file. `file` is its name for messages.
    ///
    /// # Errors
    /// Text that is not TOML of this form, no question or more than 100, a name that is not a word
    /// of lower-case letters, digits and `_` or that is there twice, or an empty or too long text.
    pub fn parse(file: &str, text: &str) -> Result<Self, VqaError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            question: Vec<Question>,
        }
        let fault = |problem: String| VqaError::Questions {
            file: file.to_owned(),
            problem,
        };
        let parsed: File = toml::from_str(text).map_err(|error| fault(error.to_string()))?;
        Self::new(file, parsed.question)
    }

    /// Questions that come from elsewhere. `file` is what they are called in messages.
    ///
    /// # Errors
    /// As [`Self::parse`], apart from the form.
    pub fn new(file: &str, questions: Vec<Question>) -> Result<Self, VqaError> {
        let fault = |problem: String| VqaError::Questions {
            file: file.to_owned(),
            problem,
        };
        if questions.is_empty() || questions.len() > QUESTIONS_MAX {
            return Err(fault(format!(
                "it has {} [[question]] tables; 1 to {QUESTIONS_MAX} are expected",
                questions.len()
            )));
        }
        let mut names = BTreeSet::new();
        for question in &questions {
            let Question { name, text } = question;
            let letter = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_';
            if name.is_empty() || name.len() > 64 || !name.chars().all(letter) {
                return Err(fault(format!(
                    "the name {name:?} is not 1 to 64 lower-case letters, digits and _"
                )));
            }
            if text.trim().is_empty() || text.len() > TEXT_BYTES_MAX {
                return Err(fault(format!(
                    "the text of question {name:?} has {} bytes; 1 to {TEXT_BYTES_MAX} are \
                     expected",
                    text.len()
                )));
            }
            if !names.insert(name) {
                return Err(fault(format!("two questions have the name {name:?}")));
            }
        }
        Ok(Self(questions))
    }

    /// All, in order.
    #[must_use]
    pub fn all(&self) -> &[Question] {
        &self.0
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|it| it.name.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The questions that ship with the program.
    const SHIPPED: &str = include_str!("../../../deploy/vqa/questions.toml");

    #[test]
    fn the_shipped_questions_are_those_that_the_paper_names() {
        let questions = Questions::parse("questions.toml", SHIPPED).unwrap();
        let names: Vec<&str> = questions.names().collect();
        assert_eq!(names, ["head", "expression", "gesture", "activity"]);
    }

    #[test]
    fn a_file_that_cannot_be_asked_is_refused_by_name() {
        let refused = |text: &str| Questions::parse("q.toml", text).unwrap_err().to_string();
        let one = "[[question]]\nname = \"head\"\ntext = \"Where?\"\n";
        assert!(refused("").contains("q.toml: it has 0 [[question]] tables"));
        assert!(refused(&one.repeat(2)).contains("two questions have the name \"head\""));
        assert!(refused(&one.replace("head", "My Head")).contains("the name \"My Head\""));
        assert!(refused(&one.replace("Where?", " ")).contains("question \"head\" has 1 bytes"));
        assert!(refused(&one.replace("text", "texts")).contains("unknown field `texts`"));
        assert!(refused("question = 3").starts_with("q.toml: "));
    }
}
